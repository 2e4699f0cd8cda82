"""Sentences and tables of the pages on claims, sensitivity, the planner and the discussion.

All of them format the tables of the analysis (``sources.analysis``); nothing is computed here.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cxrstudy import grid, recorded, sources, text
from cxrstudy.scaling import verdicts
from cxrstudy.tables import effect, interval

TASKS = {"findings": "findings", "lines_tubes": "lines and tubes"}
DECIDED = (verdicts.SUPPORTED, verdicts.CONTRADICTED)  # beginnings of these verdicts
DISTANCE = "distance"  # the preset whose institutions differ in how far they are from the pools
CONTROLS = (verdicts.OVER_SEEN, verdicts.OVER_OTHERS)
Tables = Mapping[str, pd.DataFrame]


# ---- studies -------------------------------------------------------------------------------------
def study_names(names: Sequence[str]) -> dict[str, str]:
    """Return what each source is called; "recorded" is said where this machine ran it too."""
    short = {name: name.removeprefix(recorded.RECORDED) for name in names}
    return {name: recorded.name_of(name) if own in names else own for name, own in short.items()}


def analyses(names: Sequence[str]) -> dict[str, dict[str, pd.DataFrame]]:
    """Return the analysis of every source and ``--set`` variant that has one, by name."""
    found = {}
    for source, name in study_names(names).items():
        for variant in ["", *sources.variants(source)]:
            tables = sources.analysis(source, variant)
            if tables and len(tables["values"]):
                found[f"{name} {variant}".strip()] = tables
    return found


def ledgers(studies: Mapping[str, Tables]) -> dict[str, pd.DataFrame]:
    """Return the claims of every study, with p corrected by Holm over all of them together."""
    return verdicts.with_holm({name: tables["claims"] for name, tables in studies.items()})


def tested(values: pd.DataFrame) -> str:
    """Return the kind of x-rays of a study, and the test images, patients and positives by task."""
    rows = values[(values["metric"] == "auroc") & values["task"].isin(TASKS)]
    each = [
        f"{TASKS[row.task]}, {row.n:,.0f} test images of {row.n_patients:,.0f} patients with "
        f"{row.positives:,.0f} positive labels"
        for row in rows.drop_duplicates("task").itertuples()
    ]
    kinds = " and ".join(sorted(values["kind"].dropna().unique()))
    clinic = "; research only, not for clinical use" * ("real" in kinds)
    return f"{kinds.capitalize()} x-rays{clinic}. Test set: {'; '.join(each) or 'other tasks'}."


def titled(name: str, tables: Tables) -> str:
    """Return the title of a study's figure: its name and the kind of its x-rays."""
    return f"{name} ({' and '.join(sorted(tables['values']['kind'].dropna().unique()))} x-rays)"


def dino_note(names: Sequence[str]) -> str:
    """Return in which sources ``dinov2`` is the DINO term alone; empty if in none."""
    alone = []
    for source, name in study_names(names).items():
        values = sources.analysis(source).get("values")
        if values is not None and (values["arm"] == "dinov2").any() and text.names(source):
            alone.append(name)
    whom = ", ".join(alone)
    return (
        f"The DINO arm is `dinov2`. In {whom} it is the DINO term alone: no iBOT, no KoLeo, no "
        "local crops. A verdict on it is none on RAD-DINO."
    ) * bool(alone)


# ---- claims --------------------------------------------------------------------------------------
def counted(ledgers: Mapping[str, pd.DataFrame]) -> str:
    """Return how many verdicts are which, and which decided ones remain after Holm's correction."""
    rows = pd.concat(ledgers.values(), keys=ledgers, names=["study"]).reset_index("study")
    each = rows["verdict"].value_counts().reindex(verdicts.VERDICTS).dropna()
    decided = rows[rows["verdict"].str.startswith(DECIDED)]
    left = decided[decided["p_holm"] < 0.05]
    plain = decided["verdict"].eq(verdicts.SUPPORTED).sum()
    told = ", ".join(f"{row.id} in {row.study}" for row in left.itertuples())
    return (
        f"{rows['id'].nunique()} claims in {len(ledgers)} studies give {len(rows)} verdicts: "
        f"{', '.join(f'{n:.0f} {word}' for word, n in each.items())}. "
        f"{'No claim' if not plain else f'{plain}'} is supported on more than one base an arm. "
        f"Of the {len(decided)} decided verdicts, {len(left)} remain after Holm's correction over "
        f"all {rows['p'].notna().sum()} p values: {told or 'none'}."
    )


def side_by_side(ledgers: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return one row a claim and one column a study: verdict, effect with interval, corrected p."""
    columns = {name: rows.set_index("id").apply(_cell, axis=1) for name, rows in ledgers.items()}
    first = next(iter(ledgers.values())).set_index("id", drop=False)
    told = [f"{row.id}: {row.claim}" for row in first.itertuples()]
    return pd.DataFrame({"claim": pd.Series(told, first.index)} | columns).set_index("claim")


def sources_of(ledger: pd.DataFrame) -> str:
    """Return which claims come from another publication than the first."""
    first, *others = ledger.groupby("source", sort=False)["id"]
    each = [f"{', '.join(ids)} ({source})" for source, ids in others]
    return f"The claims are those of {first[0]}, except {'; '.join(each) or 'none'}."


def _cell(row: Any) -> str:
    if row["verdict"] == verdicts.UNTESTABLE:
        return str(row["verdict"])
    said = f"{row['verdict']}: {interval(row['effect'], row['low'], row['high'], sign=True)}"
    if row["verdict"].startswith(DECIDED) and "p_holm" in row:
        said += f"; p {row['p_holm']:.2g} after Holm"
    return said


def untestable(ledgers: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the claims of each study that are not testable, by what is missing."""
    found = []
    for name, rows in ledgers.items():
        own = rows[rows["verdict"] == verdicts.UNTESTABLE]
        weak = own["why"].str.contains("has not learned the task")
        cells = {"a base model is not above random weights": own[weak]}
        cells |= {"runs were not made": own[~weak]}
        listed = {why: ", ".join(part["id"]) or "none" for why, part in cells.items()}
        found.append({"study": name} | listed)
    return pd.DataFrame(found).set_index("study")


def above_random(contrasts: pd.DataFrame) -> str:
    """Return how far each base model is above random weights of its architecture, by task."""
    rows = contrasts[(contrasts["kind"] == verdicts.OVER_RANDOM) & contrasts["task"].isin(TASKS)]
    each = [
        f"{TASKS[row.task]}, {row.one} {effect(row)}"
        for row in rows[rows["metric"] == "auroc"].itertuples()
    ]
    return f"Base models above random weights: {'; '.join(each)}." if each else ""


def above_but_open(ledger: pd.DataFrame) -> list[str]:
    """Return the inconclusive claims whose interval is above 0, each with the reason."""
    rows = ledger[(ledger["verdict"] == verdicts.INCONCLUSIVE) & (ledger["low"] > 0)]
    return [
        f"`{row.id}` {interval(row.effect, row.low, row.high, sign=True)}: "
        f"{row.why.partition('; ')[2] or row.why}"
        for row in rows.itertuples()
    ]


def harm_and_gain(ledger: pd.DataFrame) -> str:
    """Return how each paradigm's smallest and largest subset differ from the base model."""
    rows = ledger[ledger["why"].str.contains("against their base models: ")]
    if rows.empty:
        return ""
    told = rows["why"].iloc[0].partition("against their base models: ")[2]
    return told.partition("; left out")[0].replace("with the most", "with the largest subset")


def harm_then_gain(tables: Tables, names: Mapping[str, str]) -> str:
    """Return how many points are worse than the base model, and from which size on it is passed."""
    rows = tables["contrasts"]
    rows = rows[(rows["kind"] == verdicts.GAIN) & (rows["metric"] == "auroc")]
    rows = rows[rows["task"].isin(TASKS)]
    lost = rows[rows["verdict"] == verdicts.WORSE]["n_images"]
    few = f", all with {lost.max():,.0f} images or fewer" if len(lost) else ""
    crossed = tables["crossovers"]
    crossed = crossed[(crossed["metric"] == "auroc") & crossed["task"].isin(TASKS)]
    each = [
        f"{names.get(row.one, row.one)} on {TASKS[row.task]} "
        + (f"from {row.holds:,.0f} images on" if row.holds == row.holds else "at no size")
        for row in crossed.itertuples()
    ]
    return (
        f"{len(lost)} of {len(rows)} points are worse than their base model{few}. Better, at every "
        f"larger size too: {'; '.join(each)}."
    )


# ---- sensitivity ---------------------------------------------------------------------------------
def setting_table(claims: pd.DataFrame) -> pd.DataFrame:
    """Return each claim tested under any setting: the reference's verdict, and where it differs."""
    changed = verdicts.changes(claims)
    base = claims[claims["reference"]].drop_duplicates("id").set_index("id")
    asked = claims.loc[claims["verdict"] != verdicts.UNTESTABLE, "id"].unique()
    found = []
    for name in asked:
        own, here = changed[changed["id"] == name], base.loc[name]
        tested = here["verdict"] != verdicts.UNTESTABLE
        same = own[(own["verdict"] == here["verdict"]) & tested]
        other = own[(own["verdict"] != here["verdict"]) & (own["verdict"] != verdicts.UNTESTABLE)]
        differs = [
            f"{row.factor} {row.setting}: {row.verdict} "
            f"{interval(row.effect, row.low, row.high, sign=True)}"
            for row in other.itertuples()
        ]
        cells = {"claim": here["claim"], "reference": _cell(here)}
        rest = f"{len(own) - len(same) - len(other)} not testable"
        cells |= {"the same verdict": f"{len(same)} of {len(own)} settings, {rest}"}
        found.append({"id": name} | cells | {"another verdict": "; ".join(differs) or "none"})
    return pd.DataFrame(found).set_index("id")


def changed_verdicts(claims: pd.DataFrame) -> list[str]:
    """Return the verdicts that differ from the reference's, a sentence each."""
    rows = verdicts.changes(claims)
    told = [
        f"With {row.factor} at {row.setting}, `{row.id}` is {row.verdict}; "
        f"in the reference it is {row.reference_verdict}."
        for row in rows[rows["differs"]].itertuples()
    ]
    turned = ", ".join(f"`{row.id}`" for row in rows[rows["reverses"]].itertuples())
    return [*told, f"Effects with opposite signs, both intervals without 0: {turned or 'none'}."]


def control_by_setting(contrasts: pd.DataFrame) -> str:
    """Return how many settings show which verdict on the gain over the control, by task."""
    rows = contrasts.drop_duplicates(["task", "effect", "low", "high"])  # same runs, given twice
    said = []
    for task, own in rows.groupby("task"):
        each = ", ".join(f"{n} {word}" for word, n in own["verdict"].value_counts().items())
        said.append(f"On {TASKS[str(task)]}, {len(own)} different results: {each}.")
    return " ".join(said)


def distances() -> pd.DataFrame:
    """Return `by_site` of the preset ``distance``, recorded or run here; empty if it was not."""
    name = next((name for name in sources.studies() if name.endswith(DISTANCE)), "")
    if not name:
        return pd.DataFrame()
    preset = grid.load_preset(name.removeprefix(recorded.RECORDED))
    sites = dict.fromkeys(curve.evaluated for curve in preset.curves)
    return by_site(sources.analysis(name), list(sites))


def by_site(tables: Tables, sites: Sequence[str]) -> pd.DataFrame:
    """Return the gains over out-of-domain images as settings: a factor an arm, a setting a site.

    ``sites``: names of the preset's data sets, the first the reference; others are left out.
    """
    rows = tables["contrasts"] if "contrasts" in tables else pd.DataFrame({"kind": []})
    rows = rows[rows["kind"] == verdicts.OVER_OTHERS].copy()
    if rows.empty:
        return rows
    rows["setting"] = rows["data"].map(grid.slug)
    rows = rows[rows["setting"].isin(sites)]
    rows = rows.assign(factor=rows["one"], reference=rows["setting"] == sites[0])
    return rows.sort_values("setting", key=lambda names: names.map(list(sites).index))


def site_sentences(rows: pd.DataFrame) -> str:
    """Return in how many comparisons in-house images are better than others', by site."""
    rows = rows[(rows["metric"] == "auroc") & rows["task"].isin(TASKS)]
    lines = []
    for site, own in rows.groupby("setting", sort=False):
        better = own["verdict"] == verdicts.BETTER
        each = "; ".join(
            f"{TASKS[row.task].lower()}, {row.one} {effect(row)}" for row in own.itertuples()
        )
        lines.append(f"- *{site}*: better in {better.sum()} of {len(own)} comparisons ({each}).")
    return "\n".join(lines)


def tube_readings(contrasts: pd.DataFrame) -> list[str]:
    """Return CLIP's largest - smallest subset on tubes, by report and by base training."""
    rows = contrasts[(contrasts["kind"] == verdicts.GROWTH) & (contrasts["metric"] == "auroc")]
    rows = rows[(rows["task"] == "lines_tubes") & (rows["one"] == "clip")]
    told = []
    for factor in ("devices that reports name (%)", "training of the text-supervised base (times)"):
        own = rows[rows["factor"] == factor].drop_duplicates("setting")
        own = own.assign(x=own["setting"].astype(float)).sort_values("x")
        each = "; ".join(f"{row.setting}: {effect(row)}" for row in own.itertuples())
        told += [f"By {factor}: {each}."] * bool(len(own))
    return told


# ---- the planner ---------------------------------------------------------------------------------
def embedded(planner: Mapping[str, Any]) -> str:
    """Return the planner as HTML: its grid as data, and the script and style that show it."""
    data = json.dumps(planner, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return (
        '<link rel="stylesheet" href="_static/planner.css"><div id="planner"><noscript><p>This '
        "part needs JavaScript; the table below does not.</p></noscript></div>"
        f'<script type="application/json" id="planner-grid">{data}</script>'
        '<script src="_static/planner.js" defer></script>'
    )


def planner_table(planner: Mapping[str, Any]) -> pd.DataFrame:
    """Return what the planner says at the measured sizes: a row a (task, paradigm, size)."""
    found = []
    for curve in planner["curves"]:
        for row in pd.DataFrame(curve["measured"]).itertuples():
            gain = "base model not evaluated"
            if curve["base_value"] is not None:
                told = interval(row.gain, row.gain_low, row.gain_high, sign=True)
                gain = f"{told}: {row.verdict}"
            cells = {"task": planner["titles"][curve["task"]], "paradigm": curve["name"]}
            cells |= {"images": f"{row.n_images:,.0f}", "gain over base model": gain}
            found.append(cells | {"macro AUROC": interval(row.value, row.low, row.high)})
    return pd.DataFrame(found).set_index("task") if found else pd.DataFrame()


def overtake_table(overtakes: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Return from which subset size on one paradigm is better than another."""
    rows = overtakes[(overtakes["metric"] == "auroc") & overtakes["task"].isin(TASKS)]
    rows = rows[rows["first"].notna()].fillna({"holds": 0})
    shown = {"task": rows["task"].map(TASKS), "paradigm": rows["one"].replace(names)}
    shown |= {"better than": rows["other"].replace(names)}
    shown["first with"] = rows["first"].map("{:,.0f} images".format)
    shown["and with all from"] = rows["holds"].map(lambda n: f"{n:,.0f} images" if n else "no size")
    return pd.DataFrame(shown).set_index("task")
