"""What run records hold for a claim: cells of the grid, their resamples, the spread between seeds, and the scope."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy import results
from cxrstudy.evaluate.metrics import counts, known_mean, units
from cxrstudy.memo import remembered
from cxrstudy.scaling.hypotheses import BASE, CONTRASTS, Cell, Claim, Floats, Ladder, NotTestable
from cxrstudy.scaling.ladders import CONTINUED, abroad, of_base, resampled

Spread = dict[Ladder, tuple[float, float]]  # variance between seeds, its degrees of freedom
_STAGES, _KEY = ("classify", "segment"), ["base", "data", "encoder", "samples_seen"]
_TITLES = {"lines_tubes": "lines and tubes", "auroc": "AUROC", "dice": "Dice", "cl_dice": "clDice"}


def find_rungs(table: pd.DataFrame) -> pd.DataFrame:
    """Macro rows of every encoder that is no control, each once; ``base`` is "" for those that are bases themselves."""
    kept = table[
        (table["label"] == "macro") & table["stage"].isin(_STAGES) & table["value"].notna()
    ]
    kept = kept[kept["paradigm"].notna() & (kept["paradigm"] != "control") & ~abroad(kept)]
    kept = kept.drop_duplicates(["folder", "task", "metric"])
    return kept.assign(base=kept["base"].fillna("").astype(str))


def find_cells(rungs: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """The rows of each paradigm's longest ladder and of its base (``n_images`` BASE), and why it has none."""
    continued = rungs[(rungs["base"] != "") & rungs["paradigm"].isin(CONTINUED)].dropna(
        subset=[*_KEY, "n_images"]
    )
    parts, unclear = [continued[:0]], {}
    for paradigm, runs in continued.groupby("paradigm"):
        sizes = runs.groupby(_KEY)["n_images"].nunique()
        longest = sizes[sizes == sizes.max()].index.tolist()
        if len(longest) > 1:
            told = " and ".join(
                f"from {base} on {data}, {seen:,.0f} seen" for base, data, _, seen in longest
            )
            unclear[str(paradigm)] = f"one longest ladder of {paradigm}: as long are {told}"
            continue
        base, data = longest[0][:2]
        bases = of_base(rungs[rungs["base"] == ""], base, data)
        own = runs[(runs[_KEY] == list(longest[0])).all(axis=1)]
        parts += [own, bases.assign(paradigm=paradigm, n_images=BASE, base=base)]
    return pd.concat(parts), unclear


def seed_spread(grids: Iterable[pd.DataFrame]) -> Spread:
    """Variance of the macro metric between the seeds of a rung, pooled by ladder, with its degrees of freedom.

    ``grids``: rows of ``find_rungs``, a frame a grid of runs: those of two grids may differ in more than their seeds.
    """
    squares: Spread = {}
    for rungs in grids:
        rows = rungs[rungs["base"] != ""]
        each = rows.groupby(["task", "metric", "paradigm", *_KEY, "n_images"])["value"].agg(
            ["var", "size"]
        )
        for (task, metric, paradigm, *_), variance, size in each[each["size"] > 1].itertuples():
            total, dof = squares.get((task, metric, paradigm), (0.0, 0.0))
            squares[task, metric, paradigm] = (total + variance * (size - 1), dof + size - 1)
    return {ladder: (total / dof, dof) for ladder, (total, dof) in squares.items()}


def find_options(
    claim: Claim, cells: pd.DataFrame, unclear: Mapping[str, str]
) -> tuple[list[dict[Cell, float]], list[str], list[str]]:
    """Weights over cells of every option that can be tried, each in words, and what is missing for the others."""
    options, words, left = [], [], []
    for task, metric in claim.measures:
        rows = cells[(cells["task"] == task) & (cells["metric"] == metric)]
        there = {str(paradigm): set(own["n_images"]) for paradigm, own in rows.groupby("paradigm")}
        what = _what(task, metric)
        for one in [(paradigm,) for paradigm in claim.one] if claim.each else [claim.one]:
            try:
                weights, said = _contrast(claim, [one, claim.other], there, unclear, what)
            except NotTestable as reason:
                left.append(str(reason))
                continue
            options.append({(task, metric, paradigm, n): w for (paradigm, n), w in weights.items()})
            words.append(said)
    if not options:
        raise NotTestable("; ".join(dict.fromkeys(left)))
    return options, words, list(dict.fromkeys(left))


def _contrast(
    claim: Claim,
    families: list[tuple[str, ...]],
    there: Mapping[str, set[float]],
    unclear: Mapping[str, str],
    what: str,
) -> tuple[dict[tuple[str, float], float], str]:
    """Weights over (paradigm, number of images) and words; ``there``: which numbers each paradigm has."""
    sides = []
    for family in families:
        side = [paradigm for paradigm in family if paradigm in there]
        if family and not side:
            reasons = [unclear[paradigm] for paradigm in family if paradigm in unclear]
            raise NotTestable(
                "; ".join(reasons) or f"runs of {' or '.join(family)} judged on {what}"
            )
        sides += [side] * bool(family)
    everyone = [paradigm for side in sides for paradigm in side]
    sizes = sorted(set.intersection(*(there[paradigm] - {BASE} for paradigm in everyone)))
    weigher, need, _ = CONTRASTS[claim.contrast]
    if len(sizes) < need:
        said = f"{need} numbers of images" if need > 1 else "a number of images"
        raise NotTestable(f"{said} at which {' and '.join(everyone)} were judged on {what}")
    by_size, how = weigher(sizes)
    for paradigm in everyone:
        if BASE in by_size and BASE not in there[paradigm]:
            raise NotTestable(f"the base of {paradigm} judged on {what}")
    shares = [
        (p, sign / len(side)) for sign, side in zip((1, -1), sides, strict=False) for p in side
    ]
    weights = {(paradigm, n): share * w for paradigm, share in shares for n, w in by_size.items()}
    return weights, f"{' minus '.join(' and '.join(side) for side in sides)}, {what}, {how}"


def in_words(claim: Claim) -> str:
    """A contrast before there are runs."""
    families = [
        f" {'or' if claim.each else 'and'} ".join(family)
        for family in (claim.one, claim.other)
        if family
    ]
    measures = " or ".join(_what(*measure) for measure in claim.measures)
    return f"{' minus '.join(families)}, {measures}, {CONTRASTS[claim.contrast][2]}"


def _what(task: str, metric: str) -> str:
    return f"{_TITLES.get(task, task.replace('_', ' '))} (macro {_TITLES.get(metric, metric)})"


def used_rows(options: Sequence[Mapping[Cell, float]], cells: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``cells`` that the options weigh; NotTestable where they were judged on different patients."""
    wanted = {cell for option in options for cell in option}
    keys = zip(cells["task"], cells["metric"], cells["paradigm"], cells["n_images"], strict=True)
    used = cells[[key in wanted for key in keys]]
    for stage, rows in used.groupby("stage"):
        first = rows.groupby("patients")["run"].first()
        if len(first) > 1:
            raise NotTestable(f"the same patients: those of {stage} {' and '.join(first)} differ")
    return used


def find_labels(table: pd.DataFrame) -> dict[tuple[str, str], dict[str, set[str]]]:
    """By (task, metric) and label, the folders of the runs in which it was judged."""
    judged = table.loc[
        (table["label"] != "macro") & table["value"].notna(), ["task", "metric", "label", "folder"]
    ]
    found: dict[tuple[str, str], dict[str, set[str]]] = {}
    for task, metric, label, folder in judged.itertuples(index=False):
        found.setdefault((task, metric), {}).setdefault(label, set()).add(folder)
    return found


def measure(
    cell: Cell,
    runs: Sequence[Any],
    judged: Mapping[tuple[str, str], dict[str, set[str]]],
    resamples: int,
    seed: int,
) -> tuple[Floats, Floats]:
    """Values (S,) and resamples (S, R) of a cell, a row a seed, over the labels that all used ``runs`` (tuples of
    ``used_rows``) judged, which ``judged`` (of ``find_labels``) tells."""
    alike = [run for run in runs if (run.task, run.metric) == cell[:2]]
    folders = {run.folder for run in alike}
    labels = tuple(label for label, where in judged.get(cell[:2], {}).items() if folders <= where)
    pairs = []
    for run in (run for run in alike if (run.paradigm, run.n_images) == cell[2:]):
        if not labels:
            raise NotTestable(f"a label of {_what(run.task, run.metric)} that all runs judged")
        if not (Path(run.folder) / "scores.parquet").is_file():
            raise NotTestable(f"the kept scores of {run.stage} {run.run}; run it again")
        by = _drawn if run.stage == "segment" else resampled
        pairs.append(by(run.folder, labels, run.metric, resamples, seed))
    return np.array([value for value, _ in pairs]), np.stack([draws for _, draws in pairs])


@functools.cache
@remembered
def _drawn(
    folder: str, devices: tuple[str, ...], metric: str, resamples: int, seed: int
) -> tuple[float, Floats]:
    """As ``ladders.resampled``, of a segment run: the mean over devices of the means over images that show them."""
    kept = results.kept_scores(folder)
    wide = kept.pivot(index=["image_id", "patient_id"], columns="device", values=metric)[
        list(devices)
    ].sort_index()
    values = wide.to_numpy(np.float64)
    unit, patients = units(wide.index.get_level_values("patient_id").to_numpy(), len(wide))
    sums, shown = np.zeros((2, patients, len(devices)))
    np.add.at(sums, unit, np.nan_to_num(values))
    np.add.at(shown, unit, ~np.isnan(values))

    def macro(drawn: Floats) -> Floats:
        """Of patients that were ``drawn`` (G, B) so often."""
        total, images = sums.T @ drawn, shown.T @ drawn
        return known_mean(np.where(images > 0, total / np.maximum(images, 1), np.nan).T)

    draws = [
        macro(drawn) for drawn in counts(patients, resamples, seed)
    ]  # those of `metrics.bootstrap`
    return float(macro(np.ones((patients, 1)))[0]), np.concatenate(draws)


def scope(used: pd.DataFrame) -> str:
    """Kind, grid, seeds and hardware of the runs, and what beside the objective is the same or differs between them."""

    def named(column: str) -> str:
        return ", ".join(sorted(str(value) for value in used[column].dropna().unique()))

    own = used[used["n_images"] != BASE]
    seeds = ", ".join(f"{seed:g}" for seed in sorted(own["seed"].dropna().unique()))
    said = [
        f"{named('kind')} x-rays",
        f"preset {named('preset')}",
        *([f"seed {seeds}"] if seeds else []),
    ]
    for word, column in (("architecture", "encoder"), ("base", "base")):
        said.append(
            f"{word} {'differs' if used[column].nunique() > 1 else 'the same'} ({named(column)})"
        )
    seen = [f"{count:,.0f}" for count in sorted(own["samples_seen"].unique())]
    said += [f"{' or '.join(seen)} samples seen"] if seen else []
    return "; ".join([*said, named("hardware")])
