"""The sentences of the book's pages, from the tables of the analysis, records and presets."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from cxrstudy import grid, recorded, results
from cxrstudy.recorded import RECORDED
from cxrstudy.scaling.verdicts import (
    BETTER,
    GAIN,
    MARGIN,
    OVER_BASELINE,
    OVER_OTHERS,
    OVER_RANDOM,
    OVER_SEEN,
    WORSE,
)
from cxrstudy.shown import TASKS, human, without_html
from cxrstudy.tables import effect, interval

Tables = Mapping[str, pd.DataFrame]
NOT_RUN = "*The analysis of these runs has no result yet.*"


# ---- what was run --------------------------------------------------------------------------------
def names(source: str) -> dict[str, str]:
    """Return names of a source's paradigms: of DINOv2 trained with the DINO term alone."""
    curves = grid.load_preset(source.removeprefix(RECORDED)).curves
    settings = [dict(getattr(curve, "dino", None) or {}) for curve in curves]
    whole = any(float(own.get("ibot_weight", 0)) > 0 for own in settings)
    return {} if whole else {"dinov2": "dinov2 (DINO term alone)"}


def title_of(source: str, table: pd.DataFrame) -> str:
    """Return the title of a figure: the study and the kind of its x-rays."""
    kinds = " and ".join(sorted(table["kind"].dropna().unique()))
    return f"{recorded.name_of(source)} ({kinds} x-rays)"


def provenance(table: pd.DataFrame, missing: list[str], source: str) -> str:
    """Return what was run, on what, from which code, and what is missing."""
    preset = grid.load_preset(source.removeprefix(RECORDED))
    if table.empty:
        wait = f"about {preset.minutes:g} minutes on {preset.hardware}"
        run = f"`{command(source)}` runs it ({wait})."
        return f"**Nothing of preset `{source}` has been run on this machine yet.** {run}"
    once = table.drop_duplicates("run")
    seeds = table.loc[table["stage"] == "pretrain", "seed"].dropna().unique()
    kinds = sorted(table["kind"].dropna().unique())
    kept = "Recorded with this book, not run on your machine. " * source.startswith(RECORDED)
    minutes, machines = once["seconds"].sum() / 60, _list(once["hardware"].unique())
    text = (
        f"{kept}Preset `{source.removeprefix(RECORDED)}`: {len(once)} runs, "
        f"{minutes:.1f} minutes of computing on {machines}. "
        f"Code at {_list(once['commit'].unique())}. Seeds: {_list(sorted(int(s) for s in seeds))}. "
        f"Data: {_list(kinds)}."
    )
    changed = recorded.variant_alone(source)
    if missing:
        some = _list(missing[:3]) + ", ..." * (len(missing) > 3)
        text += f" **{len(missing)} evaluations have no result yet** ({some}); "
        text += f"{'the same call' if changed else f'`{command(source)}`'} runs them."
    if changed:
        text += f" **It was run with changed values only: `{changed}`.** "
        text += f"`{command(source)}` runs it as it is written."
    if kinds == ["synthetic"]:
        text += " These are **synthetic x-rays**: the numbers say nothing about patients."
    if "real" in kinds:
        text += " The test images are **real x-rays**. Research only, not for clinical use."
        text += f"\n\n{caution(source)}"
    return text


def command(source: str) -> str:
    """Return what a reader types to run a source's preset."""
    name = source.removeprefix(RECORDED)
    needs = grid.load_preset(name).needs_root
    if name != source:
        root = " --data-root /path/to/images" if needs else ""
        return f"cxrstudy run --preset {name} --unrecorded{root}"
    return f"make study PRESET={name}" + (" DATA_ROOT=/path/to/images" if needs else "")


def described(source: str) -> str:
    """Return a preset's title and description."""
    preset = grid.load_preset(source.removeprefix(RECORDED))
    title = preset.title if preset.title.endswith((".", "?", "!")) else f"{preset.title}."
    return without_html(f"*{title}* {preset.description}")


def caution(source: str) -> str:
    """Return what a data card demands to be read before the numbers of real images."""
    from cxrstudy.data.cards import read_card

    preset = grid.load_preset(source.removeprefix(RECORDED))
    cards = [read_card(values["card"]) for values in preset.data.values()]
    shown = (card for card in cards if card.caution)
    said = "\n\n".join(f"> **Read this first: {c.title}.** {c.caution}" for c in shown)
    return without_html(said)


def _list(items: Any) -> str:
    return ", ".join(str(item) for item in items)


# ---- what came of it -----------------------------------------------------------------------------
def in_short(source: str, tables: Tables, table: pd.DataFrame) -> str:
    """Return the answer of a source: gains over the base model, the control and baselines."""
    if not tables or not (tables["contrasts"]["kind"] == GAIN).any():
        return (
            "**In short:** no encoder trained on in-house images was evaluated here by labels. "
            "These runs do not say what such images bring."
        )
    lines = [f"- {text}" for text in _per_curve(source, tables)]
    rest = [supervised(tables), *pixels(tables), harm(tables), hardly_trained(table)]
    return "\n\n".join(filter(None, ["**In short.** " + count(tables), "\n".join(lines), *rest]))


def largest(tables: Tables, kind: str) -> pd.DataFrame:
    """Return the contrasts of a kind at each curve's largest subset, macro AUROC."""
    rows = _of_kind(tables, kind)
    most = rows.groupby(["task", "one", "start"])["n_images"].transform("max")
    return rows[rows["n_images"] == most]


def _of_kind(tables: Tables, kind: str) -> pd.DataFrame:
    rows = tables["contrasts"]
    return rows[(rows["kind"] == kind) & (rows["metric"] == "auroc") & rows["task"].isin(TASKS)]


def count(tables: Tables) -> str:
    """Return in how many curves the largest subset is better than base model and control."""
    own = largest(tables, GAIN)
    better = f"{int((own['verdict'] == BETTER).sum())} of {len(own)} comparisons"
    said = [f"With the largest subset, encoders are better than their base model in {better}."]
    controls = {
        OVER_SEEN: "as many more steps on images already seen",
        OVER_OTHERS: "as many steps on out-of-domain images",
    }
    for kind, what in controls.items():
        rows = largest(tables, kind)
        if len(rows):
            told = rows["verdict"].value_counts()
            each = ", ".join(f"{n} {word}" for word, n in told.items())
            said.append(f"Compared with {what}: {each}.")
    if len(said) == 1:
        said.append(
            "No control at equal compute was run: a gain may come from more training alone."
        )
    return " ".join(said)


def supervised(tables: Tables) -> str:
    """Return how encoders compare with a network trained from scratch on the labels, by task."""
    rows = tables["values"]
    rows = rows[(rows["metric"] == "auroc") & rows["task"].isin(TASKS)]
    said = []
    for row in rows[rows["start"].str.startswith("supervised")].itertuples():
        own = rows[(rows["task"] == row.task) & (rows["n_images"] > 0)]
        above = int((own["value"] > row.value).sum())
        auroc, task = interval(row.value, row.low, row.high), TASKS[row.task].lower()
        said.append(
            f"A network trained from scratch on the labels has {auroc} on {task}; "
            f"{above} of {len(own)} continued encoders are above it."
        )
    return " ".join(said)


def _per_curve(source: str, tables: Tables) -> Iterator[str]:
    known = names(source)
    gained = largest(tables, GAIN)
    plain = largest(tables, OVER_BASELINE).set_index(["task", "one", "start"])
    for row in gained.itertuples():
        text = (
            f"{TASKS[row.task]}, {known.get(row.one, row.one)} with {human(row.n_images)} images: "
            f"{effect(row)} than the base model"
        )
        if row.verdict not in (BETTER, WORSE):
            text = text.removesuffix(" than the base model") + " (against the base model)"
        if (row.task, row.one, row.start) in plain.index:
            best = plain.loc[(row.task, row.one, row.start)]
            name = {"pixels": "raw pixels"}.get(best["other"], str(best["other"]).replace(":", " "))
            text += f"; {effect(best)} against {name}, the best baseline without labels"
        yield text + "."


def pixels(tables: Tables) -> Iterator[str]:
    """Yield a warning for each task on which no encoder is better than raw pixels."""
    rows = tables["values"]
    rows = rows[rows["metric"] == "auroc"]
    for task, title in TASKS.items():
        own = rows[rows["task"] == task]
        plain = own[own["start"] == "pixels"]["value"]
        over = tables["contrasts"]
        over = over[(over["kind"] == OVER_BASELINE) & (over["task"] == task)]
        over = over[(over["metric"] == "auroc") & (over["other"] == "pixels")]
        if len(plain) and len(over) and not (over["verdict"] == BETTER).any():
            best = over.loc[over["effect"].idxmax()]
            yield (
                f"On {title.lower()}, **no encoder is better than raw pixels** (the best: "
                f"{interval(best.effect, best.low, best.high, sign=True)})."
            )


def harm(tables: Tables, bound: float = MARGIN["auroc"]) -> str:
    """Return at which subset sizes an encoder is worse than its base model, or may be.

    The text says that none was harmed only if every interval excludes a loss of ``bound``.
    """
    rows = _of_kind(tables, GAIN)
    if rows.empty:
        return ""
    lost = rows[rows["verdict"] == WORSE]
    open_ = rows[(rows["verdict"] != WORSE) & ~(rows["low"] > -bound)]

    def named(row: Any) -> str:
        return f"{row.one} with {human(row.n_images)} on {TASKS[row.task].lower()}"

    said = []
    if len(lost):
        each = "; ".join(
            f"{named(r)} {interval(r.effect, r.low, r.high, sign=True)}" for r in lost.itertuples()
        )
        said.append(f"**Harm.** Worse than the base model: {each}.")
    if len(open_):
        tests = f"{rows['n'].max():,} test images of {rows['n_patients'].max():,} patients"
        points = f"{len(open_)} of {len(rows)} points"
        said.append(f"A loss of {bound:g} is not excluded for {points}, on {tests}.")
    if not said:
        said.append(f"No encoder lost {bound:g} or more: every interval excludes it.")
    return " ".join(said)


def hardly_trained(table: pd.DataFrame) -> str:
    """Return how many continued encoders hardly trained; "" if none.

    CLIP and UniCL: their loss is close to that of guessing. DINOv2: its weights hardly changed.
    """
    rows = table[(table["stage"] == "pretrain") & table["value"].notna()]
    rows = rows[rows["base"].fillna("") != ""]
    guessing = (rows["metric"] == "loss_over_chance") & (rows["value"] > results.CHANCE)
    still = (rows["metric"] == "relative_weight_change") & (rows["label"] == "dinov2")
    still &= rows["value"] < results.LEAST_MOVED
    few, of = (len(set(part["run"])) for part in (rows[guessing | still], rows))
    if not few:
        return ""
    return (
        f"**{few} of {of} continued encoders hardly trained**: their loss is that of guessing, or "
        f"their weights moved by less than {results.LEAST_MOVED:.0%}. An interval around 0 may "
        "then say only that."
    )


def control_sentence(tables: Tables, source: str) -> str:
    """Return the gain beyond the control at the largest subset, over all curves, in a sentence."""
    known = names(source)
    rows = pd.concat([largest(tables, kind) for kind in (OVER_OTHERS, OVER_SEEN)])
    each = [
        f"{TASKS[row.task].lower()}, {known.get(row.one, row.one)} {effect(row)}"
        for row in rows.itertuples()
    ]
    return "; ".join(each)


# ---- the first page ------------------------------------------------------------------------------
def short_answer(source: str, tables: Tables) -> str:
    """Return a source's answer in one paragraph: test set, gain, control and harm."""
    gained = largest(tables, GAIN) if tables else pd.DataFrame()
    if gained.empty:
        return f"**{recorded.name_of(source)}**: {NOT_RUN}"
    kind = tables["values"]["kind"].iloc[0]
    tests = f"{gained['n'].max():,} test images of {gained['n_patients'].max():,} patients"
    said = [f"**On {kind} x-rays** ({recorded.name_of(source)}; {tests})."]
    said += [_gain_answer(TASKS[task], own) for task, own in gained.groupby("task", sort=False)]
    rest = [_unlearned(tables), _control_answer(tables), *pixels(tables)]
    return " ".join(filter(None, [*said, *rest, _harm_answer(tables)]))


def _gain_answer(task: str, own: pd.DataFrame) -> str:
    """Return the gain over the base model of a task's largest subsets."""
    if len(own) == 1:
        row = next(own.itertuples())
        images = human(row.n_images)
        return f"{task}, {row.one} with {images} images: {effect(row)} (against its base model)."
    ends = sorted({f"{e:+.3f}" for e in own["effect"]}, key=float)
    reach = " to ".join(dict.fromkeys((ends[0], ends[-1])))
    better = int((own["verdict"] == BETTER).sum())
    return (
        f"{task}: {better} of {len(own)} encoders are better than their base model "
        f"({reach} macro AUROC)."
    )


def _unlearned(tables: Tables) -> str:
    """Return the base models not clearly above random weights of their architecture."""
    rows = _of_kind(tables, OVER_RANDOM)
    rows = rows[rows["low"] < MARGIN["auroc"]]
    each = [f"{row.one} on {TASKS[row.task].lower()}" for row in rows.itertuples()]
    if not each:
        return ""
    return f"Not clearly above random weights to begin with: {', '.join(each)}."


def _control_answer(tables: Tables) -> str:
    own = largest(tables, GAIN)
    for kind, what in (
        (OVER_OTHERS, "on out-of-domain images"),
        (OVER_SEEN, "on images that the base model had already seen"),
    ):
        rows = largest(tables, kind)
        if len(rows):
            better = int((rows["verdict"] == BETTER).sum())
            each = "; ".join(
                f"{word} for {_listed(part)}"
                for word, part in rows[rows["verdict"] != BETTER].groupby("verdict")
            )
            lacking = ", ".join(sorted(set(own["one"]) - set(rows["one"])))
            alone = f" {lacking} has no control." if lacking else ""
            return (
                f"**Against as many steps {what}, in-house images are better in {better} of "
                f"{len(rows)} comparisons**: {each}.{alone}"
            )
    return "No control at equal compute was run, so a gain may come from more training alone."


def _listed(rows: pd.DataFrame) -> str:
    return ", ".join(f"{row.one} on {TASKS[row.task].lower()}" for row in rows.itertuples())


def _harm_answer(tables: Tables) -> str:
    rows = _of_kind(tables, GAIN)
    lost = rows[rows["verdict"] == WORSE]
    if lost.empty:
        return ""
    return (
        f"With few images encoders got worse: {len(lost)} of {len(rows)} points are below their "
        f"base model, all with {human(lost['n_images'].max())} images or fewer."
    )


def distance_answer(rows: pd.DataFrame) -> str:
    """Return the gain over unseen images of others by distance, in a sentence.

    ``rows``: as ``claims_text.distances`` returns them.
    """
    if rows.empty:
        return (
            "The synthetic institution lies inside the range of its pool, and no control has used "
            "images of others that the base model had not seen. "
        )
    rows = rows[(rows["metric"] == "auroc") & rows["task"].isin(TASKS)]
    each = [
        f"{site} {(own['verdict'] == BETTER).sum()} of {len(own)}"
        for site, own in rows.groupby("setting", sort=False)
    ]
    return (
        "Against as many unseen images of other institutions, in-house images are better in "
        f"[so many comparisons by distance](sensitivity.html): {', '.join(each)}. "
    )


def change_answer(settings: Tables) -> str:
    """Return the gains over the control in the sensitivity analysis; "" without one."""
    if "settings_contrasts" not in settings:
        return ""
    rows = settings["settings_contrasts"]
    rows = rows[rows["kind"].isin([OVER_SEEN, OVER_OTHERS]) & (rows["metric"] == "auroc")]
    rows = rows[rows["task"].isin(TASKS)].drop_duplicates(["task", "effect"])
    if rows.empty:
        return ""
    told = rows["verdict"].value_counts()
    return (
        f"In {len(rows)} comparisons of a [sensitivity analysis](sensitivity.html), in-house "
        f"images are better than the control in {told.get(BETTER, 0)} and worse in "
        f"{told.get(WORSE, 0)}."
    )
