"""What the book's pages say of a set of runs: sentences and tables computed from records, never typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from cxrstudy import grid, recorded, results, study
from cxrstudy.data.manifest import label_names
from cxrstudy.data.vocabulary import phrase
from cxrstudy.memo import remembered
from cxrstudy.plots import TASKS, human
from cxrstudy.recorded import RECORDED, name_of
from cxrstudy.run import read_plan, read_plans, run_table
from cxrstudy.scaling import ladders
from cxrstudy.scaling.forms import at_the_least
from cxrstudy.shown import Shown, nothing, words

if TYPE_CHECKING:  # these import torch, which most pages can do without
    from cxrstudy.data.cards import Card
    from cxrstudy.data.images import Prepared

LOSS = 0.01  # of macro AUROC: the smallest loss of interest, as the chapter on the method says


def title_of(preset: str, table: pd.DataFrame, variant: str = "") -> str:
    """The title of a figure of a source: its name, and the kinds of x-rays that its ``table`` is about."""
    kinds = ", ".join(sorted(table["kind"].dropna().unique()))
    return f"{' '.join(filter(None, [name_of(preset), variant]))} ({kinds} x-rays)."


def plan_table(preset: str, variant: str = "") -> tuple[pd.DataFrame, list[str]]:
    """(tidy table of the runs of a preset's plan, names of planned runs without a record).

    ``preset``: one that was run on this machine; or ``recorded:NAME``, whose results came with the book.
    """
    if preset.startswith(RECORDED):
        name = preset.removeprefix(RECORDED)
        whole = [] if variant or grid.load_preset(name).needs_root else grid.plan(name)
        left = [
            run.name
            for run in grid.without(whole, recorded.run_names(name))
            if run.stage in recorded.SCORES
        ]
        return recorded.load(name, variant), left
    planned = [
        study.runs_root() / preset / run["stage"] / run["name"]
        for run in read_plan(preset, variant)
    ]
    there = [folder for folder in planned if (folder / "record.json").is_file()]
    return results.load_records(there), [folder.name for folder in planned if folder not in there]


def variants(preset: str) -> list[str]:
    """The ``--set`` variants of a preset (or of ``recorded:NAME``) that there are results of."""
    if preset.startswith(RECORDED):
        return recorded.variants(preset.removeprefix(RECORDED))
    return [
        plan["variant"] for plan in read_plans() if plan["preset"] == preset and plan["variant"]
    ]


def provenance(table: pd.DataFrame, missing: list[str], preset: str) -> str:
    """What was run, on what, from which code, what is missing; of real x-rays, what their card warns of."""
    described = grid.load_preset(preset.removeprefix(RECORDED))
    if table.empty:
        wait = f"about {described.minutes:g} minutes on {described.hardware}"
        return (
            f"**Nothing of preset `{preset}` has been run on this machine yet.** "
            f"`{command(preset)}` runs it ({wait})."
        )
    kinds = sorted(table["kind"].dropna().unique())
    seeds = sorted(
        int(seed) for seed in table.loc[table["stage"] == "pretrain", "seed"].dropna().unique()
    )
    once, kept = table.drop_duplicates("run"), preset.startswith(RECORDED)
    title = described.title[:1].lower() + described.title[1:]
    text = (
        f"{'Recorded with this book, not on your machine: p' if kept else 'P'}reset `{preset.removeprefix(RECORDED)}` "
        f"({title}): {len(once)} runs, {once['seconds'].sum() / 60:.1f} minutes of "
        f"computing on {_list(once['hardware'].unique())}, code at {_list(once['commit'].unique())}, "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {_list(seeds)}. Data: {_list(kinds)}."
    )
    if missing:
        some = _list(missing[:3]) + ", ..." * (len(missing) > 3)
        text += f" **{len(missing)} evaluations have no result yet** ({some}); `{command(preset)}` runs them."
    if "synthetic" in kinds and "real" not in kinds:
        text += " Every number here is about **synthetic x-rays** and says nothing about patients."
    if "real" in kinds:
        text += f" The evaluated x-rays are **real**; research only, not for clinical use.\n\n{caution(preset)}"
    return text


def command(preset: str) -> str:
    """What a reader types to run a preset."""
    name = preset.removeprefix(RECORDED)
    needs = grid.load_preset(name).needs_root
    if name != preset:
        return f"cxrstudy run --preset {name} --unrecorded" + (
            " --data-root /path/to/images" if needs else ""
        )
    return f"make study PRESET={name}" + (" DATA_ROOT=/path/to/images" if needs else "")


def _list(items: Any) -> str:
    return ", ".join(str(item) for item in items)


@remembered
def answers(
    table: pd.DataFrame, fits: pd.DataFrame, tasks: Sequence[str] = tuple(TASKS)
) -> pd.DataFrame:
    """In short what each ladder shows, a row a (task, paradigm): where it starts and ends, what more in-house images
    bring (`ladders.growth`), what its ends are beyond its base (`ladders.gains`), beyond as many images of others
    (`ladders.at_home`) and beyond the best control, and what ten times the images bring by the law of ``fits``."""
    growth, gained, elsewhere = ladders.growth(table), ladders.gains(table), ladders.at_home(table)
    differences = {"beyond its base": gained, "beyond as many of others": elsewhere}
    differences["beyond the best control"] = ladders.beyond_control(table)
    rows: list[dict[str, str]] = []
    for task in tasks:
        for paradigm, ladder in ladders.points(table[table["task"] == task]).groupby("paradigm"):
            mean = ladder.groupby("n_images")["value"].mean()
            ends = {n: f"{mean[n]:.3f} with {human(n)}" for n in (mean.index[0], mean.index[-1])}
            row = {"ladder": f"{TASKS[task]}, {paradigm}", "macro AUROC": "; ".join(ends.values())}
            own = growth[(growth["task"] == task) & (growth["paradigm"] == paradigm)]
            row["most minus fewest"] = "; ".join(
                f"{_gain(each)}: {_sign(each)}{recovery(each, gained)}" for each in own.itertuples()
            )
            for column, compared in differences.items():
                own = compared[(compared["task"] == task) & (compared["paradigm"] == paradigm)]
                own = own[own["n_images"].isin(list(ends))].sort_values("n_images")
                row[column] = "; ".join(
                    f"{_gain(each)} with {human(each.n_images)}{getattr(each, 'control', '')}: {_sign(each)}"
                    for each in own.itertuples()
                )
            fit = fits[(fits["task"] == task) & (fits["paradigm"] == paradigm)]
            row["a tenfold cuts error by"] = _tenfold(fit.iloc[0]) if len(fit) else ""
            rows.append(row)
    shown = pd.DataFrame(rows)
    return (
        shown.loc[:, (shown != "").any()].replace("", "not run").set_index("ladder")
        if rows
        else shown
    )


def _tenfold(fit: pd.Series) -> str:
    """What ten times the images cut, by a row of `ladders.fit_ladders`; or why it fitted no law."""
    if fit["refused"]:
        return f"no law: {fit['refused'].partition(' (')[0]}"
    within = " (its interval was not kept)"
    if "exponent_low" in fit:
        low, high = float(fit["exponent_low"]), float(fit["exponent_high"])
        within = (
            f" [{1 - 10**-low:.1%}{' or less' if at_the_least(low) else ''}, {1 - 10**-high:.1%}]"
        )
    of = f" of what is above a floor of {fit['floor']:.3f}" if fit["floor"] > 0 else ""
    return f"{1 - 10 ** -fit['exponent']:.1%}{within}{of}, through {fit['points']:.0f} points"


def _gain(row: Any) -> str:
    return (
        f"{row.gain:+.3f} [{row.low:+.3f},\u00a0{row.high:+.3f}]"  # no line ends within an interval
    )


def _sign(row: Any) -> str:
    return "better" if row.low > 0 else "worse" if row.high < 0 else "no clear difference"


def recovery(grown: Any, gained: pd.DataFrame) -> str:
    """What to say beside a row of `ladders.growth`, where the smallest subset is below its base with certainty."""
    own = gained[(gained["task"] == grown.task) & (gained["paradigm"] == grown.paradigm)]
    own = own[(own["n_images"] == grown.fewest) & (own["high"] < 0)]
    if own.empty:
        return ""
    lost = -float(own["gain"].iloc[0])
    how = (
        f"{'mostly' if lost >= grown.gain / 2 else 'in part'} recovery: " if grown.gain > 0 else ""
    )
    return f" ({how}the smallest subset is {lost:.3f} below the base)"


def hardly_trained(table: pd.DataFrame) -> str:
    """How many continued encoders have hardly trained; empty where none has.

    ``clip`` and ``unicl`` by their loss beside that of guessing, where it is recorded; ``dinov2`` by how far its
    weights moved. How far is no measure for the others: an ImageNet network that moved by 0.5% changed its scores.
    """
    rows = table[
        (table["stage"] == "pretrain") & table["value"].notna() & (table["base"].fillna("") != "")
    ]
    guessing = (rows["metric"] == "loss_over_chance") & (rows["value"] > results.CHANCE)
    still = (
        (rows["metric"] == "moved")
        & (rows["label"] == "dinov2")
        & (rows["value"] < results.LEAST_MOVED)
    )
    few, of = (len(set(part["run"])) for part in (rows[guessing | still], rows))
    if not few:
        return ""
    return (
        f"**{few} of {of} continued encoders hardly trained** (a loss that is still that of guessing, or weights that "
        f"moved by less than {results.LEAST_MOVED:.0%}): an interval around 0 may then say only that, not that the "
        "images bring nothing."
    )


def scale_artefacts(preset: str, variant: str = "") -> tuple[pd.DataFrame, pd.DataFrame]:
    """(fits, curves) of the scale run of a plan; empty where it has not been run. Computed anew for recorded runs."""
    if preset.startswith(RECORDED):
        how = grid.load_preset(preset.removeprefix(RECORDED)).scale
        return ladders.fit_ladders(plan_table(preset, variant)[0], form=how.get("form", "power"))
    for run in read_plan(preset, variant):
        folder = study.runs_root() / preset / run["stage"] / run["name"]
        if run["stage"] == "scale" and (folder / "record.json").is_file():
            fits, curves = (pd.read_csv(folder / f"{name}.csv") for name in ("fits", "curves"))
            return fits.fillna({"refused": ""}), curves
    return ladders.fit_ladders(results.load_records([]))


def agreement(ledger: pd.DataFrame) -> str:
    """The claims of `claims.ledger` by verdict, the paper's before its neighbours', each with effect and interval."""
    words = {
        "supported": "Supported by these runs",
        "contradicted": "Contradicted by these runs",
        "inconclusive": "Left open",
        "not testable": "Not testable with these runs",
    }
    lines = []
    for verdict, title in words.items():
        own = ledger[ledger["verdict"] == verdict].sort_values("source", kind="stable")
        if len(own):
            lines += [f"**{title}:**", ""]
        for row in own.itertuples():
            told = (
                f": {row.effect:+.4f} [{row.low:+.4f}, {row.high:+.4f}]"
                if row.effect == row.effect
                else ""
            )
            decided = verdict in ("supported", "contradicted")
            if (
                verdict == "contradicted" and row.high >= 0
            ):  # of a claim that something is there at all
                told, decided = (
                    f"{told}, an effect of {row.threshold:g} is excluded, one below 0 is not shown",
                    False,
                )
            told += f"; {row.why.partition(';')[0]}" if verdict == "inconclusive" else ""
            told += (
                f"; not after Holm's correction (p {row.p_holm:.2g})"
                if decided and row.p_holm >= 0.05
                else ""
            )
            lines.append(f"- {row.claim} ({row.source}){told}")
        lines += [""] * bool(len(own))
    return "\n".join(lines)


def thresholds(crossed: pd.DataFrame) -> list[str]:
    """Sentences on `decide.crossovers`: from how many images on continuing beats the base, by task and paradigm."""
    return [
        f"{TASKS[row.task]}, `{row.name}`: first size whose gain excludes zero: {row.first_said}; the same "
        f"at every larger size: {row.holds_said} ({row.covers})."
        for row in crossed.itertuples()
    ]


def at_home(compared: pd.DataFrame) -> list[str]:
    """Sentences on `ladders.at_home`: what in-house images bring beyond as much training on others'."""
    said = []
    for row in compared.itertuples():
        where = str(row.elsewhere).removeprefix("synthetic:")
        against = f"{human(row.n_images)} in-house images against as many of `{where}`, from one base at one budget"
        said.append(f"{TASKS[row.task]}, `{row.paradigm}`: {against}: {_gain(row)}, {_sign(row)}.")
    return said


def others_as_good(compared: pd.DataFrame) -> str:
    """In how many ladders in-house images brought more than as much training on others' (`ladders.at_home`)."""
    if compared.empty:
        return ""
    better = int((compared["low"] > 0).sum())
    return (
        f"**Own images, or any?** Against the same base, continued at the same budget on as many images of others, "
        f"in-house images were measurably better in {better} of {len(compared)} ladders where that was run."
    )


def above_random(table: pd.DataFrame) -> list[str]:
    """Sentences on how far bases as they came lie above random weights of their architecture, by task."""
    said = []
    for task, name in TASKS.items():
        rows = ladders.reference(table, task)
        none = rows[rows["encoder"].fillna("").str.startswith("random:")]
        bases = rows[(rows["paradigm"] != "control") & (rows["base"].fillna("") == "")]
        for base in bases[~bases["run"].str.startswith("shuffled-")].itertuples():
            alike = none[
                (none["encoder"] == f"random:{base.encoder}") & (none["data"] == base.data)
            ]
            for least in alike["value"]:
                said.append(
                    f"{name}, `{base.paradigm}`: {base.value - least:+.3f} ({least:.3f} at random)"
                )
    return said


def harm(gained: pd.DataFrame, bound: float = -LOSS) -> str:
    """For which subset sizes a loss of macro AUROC is shown, for which one of ``-bound`` is neither shown nor excluded,
    and for how many it is excluded; that none was harmed is said only where every interval excludes such a loss."""
    if gained.empty:
        return ""
    lost = gained[gained["high"] < 0]
    left = gained[~(gained["high"] < 0)]
    short = left[~(left["low"] > bound)]  # where there is no interval, nothing is excluded

    def rung(row: Any) -> str:
        return f"`{row.paradigm}` with {human(row.n_images)} on {TASKS[row.task].lower()}"

    told = [
        f"{rung(row)} lost {-row.gain:.3f} [{row.low:+.3f}, {row.high:+.3f}]"
        for row in lost.itertuples()
    ]
    said = [f"A loss is shown: {'; '.join(told)}."] if told else []
    tests, rest = _test_images(gained), len(left) - len(short)
    if len(short):
        named = "; ".join(rung(row) for row in short.itertuples())
        said.append(
            f"{'No loss is shown, but one' if not told else 'None is shown, but one'} of {-bound:.2f} is not excluded, "
            f"for {len(short)} of {len(gained)} points: {named}."
        )
        said += [f"Whether these were harmed cannot be told from {tests}."] if tests else []
    elif not told:
        of = f" on {tests}" if tests else ""
        said.append(
            f"No point's interval reaches down to {bound:+.2f}{of}: continuing harmed none of them by that much."
        )
    if rest and (told or len(short)):
        said.append(
            f"For the other {'one' if rest == 1 else rest} a loss of {-bound:.2f} is excluded."
        )
    return " ".join(said)


def _test_images(gained: pd.DataFrame) -> str:
    """The test images and patients of `ladders.gains`, in words."""
    if "n" not in gained or gained["n"].isna().all():
        return ""
    images, patients = (
        " to ".join(f"{n:,.0f}" for n in sorted({gained[name].min(), gained[name].max()}))
        for name in ("n", "n_patients")
    )
    return f"{images} test images of {patients} patients"


def caution(preset: str) -> str:
    """What must be said before the numbers of a preset on real images: the card's own words on confounding."""
    from cxrstudy.data.cards import read_card

    described = grid.load_preset(preset.removeprefix(RECORDED))
    cards_ = [read_card(values["card"]) for values in described.data.values()]
    return "\n\n".join(
        f"> **Read this first: {card.title}.** {card.caution}" for card in cards_ if card.caution
    )


def data_sets(presets: list[str]) -> list[tuple[str, Prepared, Card]]:
    """(name, prepared data, card) of every finished data run of these presets; each data set once."""
    from cxrstudy.data.cards import read_card
    from cxrstudy.data.images import open_prepared

    found: dict[tuple[str, int], tuple[str, Prepared, Card]] = {}
    for preset in presets:
        for row in run_table(preset):
            if row["stage"] == "data" and row["record"]:
                prepared = open_prepared(row["notebook"].parent)
                key = (prepared.info["institution"], prepared.info["size"])
                found.setdefault(
                    key, (grid.slug(row["name"]), prepared, read_card(prepared.info["card"]))
                )
    return list(found.values())


def describe_data(name: str, prepared: Prepared, card: Card) -> str:
    """A heading and a paragraph on one prepared data set: how many images, what was left out and why, its terms."""
    from cxrstudy.data import odd

    manifest, info = prepared.manifest, prepared.info
    what = "Synthetic" if info["kind"] == "synthetic" else "Real"
    lost = [
        f"{sum(parts.values()):,} {said}"
        + (f" ({', '.join(f'{why} {n:,}' for why, n in parts.items())})")
        for said, parts in (
            ("rows of the table are left out", info.get("left_out") or {}),
            ("images could not be read and are left out", info.get("set_aside") or {}),
            ("are odd and kept", info.get("odd") or {}),
        )
        if sum(parts.values())
    ]
    warned = [f"**Warning: {sentence}**" for sentence in odd.losses(info, len(manifest))]
    return (
        f"## {card.title}{'' if card.title.endswith('?') else ':'} {name}\n\n**{what} x-rays.** {len(manifest):,} "
        f"images of {manifest['patient_id'].nunique():,} patients at {info['size']} px"
        f"{'; ' if lost else ''}{'; '.join(lost)}. {' '.join(warned)}{' ' if warned else ''}"
        f"Licence: {card.licence}. Cite: {card.citation}."
    )


def prevalence_table(prepared: Prepared) -> Shown:
    """Share of images with each label recorded as present, of those where it is known, by split; and where not."""
    manifest, names = prepared.manifest, label_names(prepared.manifest)
    if not names:
        return nothing("", "This data set records no labels.")
    labels = manifest[[f"label:{name}" for name in names]].set_axis(
        [phrase(name) for name in names], axis=1
    )
    parts = labels.groupby(manifest["split"])
    shares = parts.mean().T.map(
        lambda share: "unknown in all" if pd.isna(share) else f"{share:.3f}"
    )
    sizes = parts.size()
    shares.columns = pd.Index([f"{split} (n = {sizes[split]:,})" for split in shares.columns])
    unknown = labels.isna()
    shares["unknown"] = [
        f"{share:.1%} ({count:,})"
        for share, count in zip(unknown.mean(), unknown.sum(), strict=True)
    ]
    caption = (
        f"Share of images on which each label is present, of those where it is known, in each part of the "
        f"{len(manifest):,} images: 0 means known to be absent in all. Blank or unknown is not absent: the last column "
        "counts it."
    )
    return words(shares.rename_axis("label"), "The prevalence of each label.", caption)
