"""Ladders in the tidy table: the points of each scaling curve, and the law fitted to it."""

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy import results
from cxrstudy.evaluate.metrics import auprc, auroc, bootstrap
from cxrstudy.evaluate.small_samples import class_counts, exact_width, is_flat, widened_difference
from cxrstudy.memo import remembered
from cxrstudy.scaling.fit import fit_scaling

TASKS = (
    "findings",
    "lines_tubes",
)  # of which curves are made: not NAME@DATA, whose scores lie in another file
CONTINUED = ("clip", "unicl", "dinov2", "clip+labels")


def points(table: pd.DataFrame, metric: str = "auroc", label: str = "macro") -> pd.DataFrame:
    """Rows of continually pretrained encoders in ``TASKS``: one a (paradigm, n_images, seed, task), sorted; those
    without a value, where too few test images have a label, are left out."""
    wanted = (
        (table["stage"] == "classify") & (table["metric"] == metric) & (table["label"] == label)
    )
    wanted &= table["value"].notna()
    chosen = table[wanted & table["task"].isin(TASKS) & continued(table)]
    return chosen.sort_values(["task", "paradigm", "n_images", "seed"]).reset_index(drop=True)


def reference(
    table: pd.DataFrame, task: str, metric: str = "auroc", label: str = "macro"
) -> pd.DataFrame:
    """Rows of one task that are no point of a ladder: the base as it came or continued elsewhere, and controls."""
    wanted = (table["stage"] == "classify") & (table["task"] == task) & (table["label"] == label)
    chosen = table[wanted & (table["metric"] == metric) & table["value"].notna()]
    return chosen[~continued(chosen)]


def continued(table: pd.DataFrame) -> pd.Series:
    """Whether each row's encoder went on from a base, on images of the institution that judges it."""
    return table["paradigm"].isin(CONTINUED) & (table["base"].fillna("") != "") & ~abroad(table)


def abroad(table: pd.DataFrame) -> pd.Series:
    """Whether each row's encoder went on from a base on another institution's images: a control, no rung."""
    elsewhere = table["trained_on"].notna() & (table["trained_on"] != table["institution"])
    return elsewhere & (table["base"].fillna("") != "")


def of_base(rows: pd.DataFrame, base: str, data: Any) -> pd.DataFrame:
    """Those of ``rows`` that judge the encoder named ``base`` as it came, on the same data; none where it was not."""
    name = "base-" + re.sub(
        r"-[0-9a-f]{6}$", "", base
    )  # a base that is a run of its own ends in a digest
    named = np.array([run.rpartition("-")[0] == name for run in rows["run"]], dtype=bool)
    return rows[named & (rows["paradigm"] != "control") & (rows["data"] == data)]


def same_patients(table: pd.DataFrame) -> str:
    """The hash of the labelled patients of all evaluated runs; ValueError when runs were judged on different ones."""
    judged = table[(table["stage"] == "classify")]
    hashes = judged.groupby("patients")["run"].first()
    if len(hashes) > 1:
        raise ValueError(
            f"runs were judged on different patients and cannot be compared: {', '.join(hashes)}"
        )
    return str(hashes.index[0]) if len(hashes) else ""


@remembered
def fit_ladders(
    table: pd.DataFrame,
    *,
    metric: str = "auroc",
    form: str = "power",
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fit 1 - metric against n_images for every (task, paradigm) of the tidy table.

    Returns (fits, curves): fits has task, paradigm, form, points, exponent with its 95% interval, floor and ``refused``
    (the reason, where the data cannot support a fit); curves has task, paradigm, n_images, value, low, high of the
    fitted metric.
    """
    same_patients(table)
    fits: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    for (task, paradigm), ladder in points(table, metric).groupby(["task", "paradigm"]):
        for held in ("samples_seen", "base", "data", "encoder"):
            if ladder[held].nunique() > 1:
                found = sorted(ladder[held].unique())
                raise ValueError(
                    f"the {paradigm} runs are no ladder: their {held} differ ({found})"
                )
        n = ladder["n_images"].to_numpy(float)
        row = {"task": task, "paradigm": paradigm, "form": form, "points": len(ladder)}
        how = noise_of(table, ladder, metric)
        try:
            fit = fit_scaling(
                n,
                1 - ladder["value"].to_numpy(float),
                form=form,
                resamples=resamples,
                seed=seed,
                **how,
            )
        except ValueError as reason:
            fits.append(row | {"refused": str(reason)})
            continue
        ends = dict(zip(("exponent_low", "exponent_high"), fit.exponent_interval(), strict=True))
        fits.append(row | {"exponent": fit.exponent, "floor": fit.floor, "refused": ""} | ends)
        grid = np.geomspace(n.min(), n.max() * 4, 60)
        low, high = fit.interval(grid)
        curve = {"n_images": grid, "value": 1 - fit.predict(grid), "low": 1 - high, "high": 1 - low}
        curves.append(pd.DataFrame({"task": task, "paradigm": paradigm, **curve}))
    none = pd.DataFrame(columns=["task", "paradigm", "n_images", "value", "low", "high"])
    columns = [
        "task",
        "paradigm",
        "form",
        "points",
        "exponent",
        "exponent_low",
        "exponent_high",
        "floor",
        "refused",
    ]
    return pd.DataFrame(fits).reindex(columns=columns), pd.concat(curves) if curves else none


def noise_of(table: pd.DataFrame, ladder: pd.DataFrame, metric: str) -> dict[str, Any]:
    """How `fit_scaling` is asked to treat the noise of a ladder's runs; robustly in any case, for that costs nothing.

    Where seeds were run at several sizes (4 degrees of freedom or more) it is told no more: their scatter tells. So for
    tasks whose kept scores are not of labels. Else it gets each run's own noise over resampled patients, as a part
    (seeds are not in it).
    """
    repeated = len(ladder) - ladder["n_images"].nunique()
    if repeated >= 4 or str(ladder["task"].iloc[0]) not in TASKS:
        return {"robust": True}
    return {"sigma": own_noise(table, ladder, metric), "partial": True, "robust": True}


def own_noise(
    table: pd.DataFrame, ladder: pd.DataFrame, metric: str, resamples: int = 1000
) -> np.ndarray:
    """Standard deviation of each run's macro ``metric`` (K,) beside that of its ladder, over resampled test patients.

    All runs are judged on the same patients, whose sampling moves a curve as a whole and cannot bend it: what is left
    after each resample's mean over the ladder is taken away is a run's own noise. From the scores kept with the
    records; from the interval's width, which holds both, for a ladder that has kept none.
    """
    folders = [Path(folder) for folder in ladder["folder"]]
    if len(folders) < 2 or not all((folder / "scores.parquet").is_file() for folder in folders):
        return ((ladder["high"] - ladder["low"]) / (2 * 1.96)).to_numpy(float)
    names = judged_labels(table, str(ladder["task"].iloc[0]))
    draws = np.stack(
        [resampled(str(folder), names, metric, resamples, 0)[1] for folder in folders], axis=1
    )
    rest = draws - draws.mean(axis=1, keepdims=True)
    return rest.std(axis=0) * np.sqrt(len(folders) / (len(folders) - 1))


def judged_labels(table: pd.DataFrame, task: str) -> tuple[str, ...]:
    """Labels of a task that were judged in any run."""
    rows = table[
        (table["stage"] == "classify") & (table["task"] == task) & (table["label"] != "macro")
    ]
    return tuple(rows.loc[rows["value"].notna(), "label"].unique())


@functools.cache
@remembered
def resampled(
    folder: str, names: tuple[str, ...], metric: str, resamples: int, seed: int
) -> tuple[float, np.ndarray]:
    """Macro metric of a run from its kept scores, and of each resample (resamples,) of its test patients."""
    measure = {"auroc": auroc, "auprc": auprc}[metric]
    table = results.kept_scores(folder).sort_values("image_id")
    y, s = (
        table[[f"{what}:{name}" for name in names]].to_numpy(float) for what in ("truth", "score")
    )
    draws = bootstrap(
        measure, y, s, groups=table["patient_id"].to_numpy(), resamples=resamples, seed=seed
    )
    return float(np.nanmean(measure(y, s))), np.nanmean(draws, axis=1)


@functools.cache
@remembered
def tested(folder: str, names: tuple[str, ...]) -> dict[str, float]:
    """On what a run's macro metric rests, from its kept scores: ``n`` test images, ``n_patients``, and ``hidden``, what
    a difference of two encoders may hide where all resamples are alike (`exact_width`, the mean over ``names``)."""
    table = results.kept_scores(folder)
    truth, patients = (
        table[[f"truth:{name}" for name in names]].to_numpy(float),
        table["patient_id"].to_numpy(),
    )
    known, pairs = (~np.isnan(truth)).any(axis=1), class_counts(truth, patients)["pairs"]
    hidden = float(np.mean([exact_width(n) for n in pairs]))
    return {"n": int(known.sum()), "n_patients": len(np.unique(patients[known])), "hidden": hidden}


def gains(
    table: pd.DataFrame, *, metric: str = "auroc", resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Continued minus base, macro ``metric``, with the interval of the paired difference on the same resamples.

    One row a (task, paradigm, n_images): gain, the mean over its ``seeds`` runs, low, high of that mean, the
    ``least`` and ``most`` a single seed gained, and the test images ``n`` of ``n_patients`` that it rests on. From the
    per-image test scores kept with each record; runs whose base was not evaluated are left out. Patients are resampled;
    seeds are not, so the interval holds sampling variance alone, and what seeds do stands beside it.
    """
    same_patients(table)
    found: dict[tuple[Any, ...], list[tuple[float, np.ndarray]]] = {}
    on: dict[tuple[Any, ...], dict[str, float]] = {}
    for task in TASKS:
        names = judged_labels(table, task)
        ladder = points(table[table["task"] == task], metric)
        if ladder.empty or not names:
            continue
        bases = reference(table, task, metric)
        for row in ladder.itertuples():
            own = of_base(bases, row.base, row.data)
            if len(own):
                value, draws = resampled(row.folder, names, metric, resamples, seed)
                base_value, base_draws = resampled(
                    own["folder"].iloc[0], names, metric, resamples, seed
                )
                key = (task, row.paradigm, row.n_images, row.base, row.data)
                found.setdefault(key, []).append((value - base_value, draws - base_draws))
                on[key] = tested(str(row.folder), names) | {
                    "flat": bool(is_flat(draws) and is_flat(base_draws))
                }
    rows = []
    for key, runs in found.items():
        each, (task, paradigm, n_images, *_) = [gain for gain, _ in runs], key
        low, high = np.nanpercentile(np.mean([draws for _, draws in runs], axis=0), [2.5, 97.5])
        low, high = widened_difference(
            float(np.mean(each)), low, high, on[key]["hidden"] * on[key]["flat"]
        )
        rung = {
            "task": task,
            "paradigm": paradigm,
            "n_images": n_images,
            "seeds": len(runs),
            "gain": np.mean(each),
        }
        rung |= {"low": low, "high": high, "least": min(each), "most": max(each)}
        rows.append(rung | {name: on[key][name] for name in ("n", "n_patients")})
    columns = [
        "task",
        "paradigm",
        "n_images",
        "seeds",
        "gain",
        "low",
        "high",
        "least",
        "most",
        "n",
        "n_patients",
    ]
    return pd.DataFrame(rows, columns=columns)


def difference(
    one: list[tuple[float, np.ndarray]], other: list[tuple[float, np.ndarray]], hidden: float
) -> dict[str, float]:
    """Mean of runs (of `resampled`) minus the mean of others: gain, low, high on the same resampled patients;
    ``hidden``: see `tested`."""
    (value, draws), (less, less_draws) = (
        (np.mean([value for value, _ in runs]), np.mean([draws for _, draws in runs], axis=0))
        for runs in (one, other)
    )
    low, high = np.nanpercentile(draws - less_draws, [2.5, 97.5])
    hidden = hidden if is_flat(draws) and is_flat(less_draws) else 0.0
    low, high = widened_difference(float(value - less), low, high, hidden)
    return {"gain": float(value - less), "low": low, "high": high}


def growth(
    table: pd.DataFrame, *, metric: str = "auroc", resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """What more in-house images bring: each ladder's macro ``metric`` with the most minus with the fewest of them.

    One row a (task, paradigm, base, data) of two sizes or more: gain of the means over seeds, low, high on the same
    resampled patients, fewest, most. As in `gains`, the interval holds no spread between seeds.
    """
    same_patients(table)
    rows = []
    for task in TASKS:
        names = judged_labels(table, task)
        for (paradigm, *_), ladder in points(table[table["task"] == task], metric).groupby(
            ["paradigm", "base", "data"]
        ):
            ends = ladder["n_images"].agg(["min", "max"])
            if ends["min"] == ends["max"]:
                continue
            few, many = (
                [
                    resampled(folder, names, metric, resamples, seed)
                    for folder in ladder.loc[at, "folder"]
                ]
                for at in (ladder["n_images"] == end for end in ends)
            )
            rung = {"task": task, "paradigm": paradigm, "fewest": ends["min"], "most": ends["max"]}
            rows.append(
                rung | difference(many, few, tested(str(ladder["folder"].iloc[0]), names)["hidden"])
            )
    return pd.DataFrame(rows, columns=["task", "paradigm", "fewest", "most", "gain", "low", "high"])


def beyond_control(
    table: pd.DataFrame, *, metric: str = "auroc", resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Each ladder's mean with the most images minus the best control that was trained on no label of the task: pixels,
    random weights, what view, age and sex alone would guess.

    One row a (task, paradigm): n_images, gain, low, high on the same resampled patients, and ``control`` in words.
    """
    same_patients(table)
    rows = []
    for task in TASKS:
        names, own = judged_labels(table, task), points(table[table["task"] == task], metric)
        others = reference(table, task, metric)
        plain = ~others["encoder"].astype(str).str.contains("shuffled|supervised")
        others = others[(others["paradigm"] == "control") & plain].sort_values("value")
        if others.empty:
            continue
        best = resampled(others["folder"].iloc[-1], names, metric, resamples, seed)
        for paradigm, ladder in own.groupby("paradigm"):
            most = ladder["n_images"].max()
            top = ladder.loc[ladder["n_images"] == most, "folder"]
            each = [resampled(folder, names, metric, resamples, seed) for folder in top]
            hidden = tested(str(top.iloc[0]), names)["hidden"]
            rung = {"task": task, "paradigm": paradigm, "n_images": most} | difference(
                each, [best], hidden
            )
            rows.append(
                rung | {"control": f", over {str(others['encoder'].iloc[-1]).replace(':', ' ')}"}
            )
    return pd.DataFrame(
        rows, columns=["task", "paradigm", "n_images", "gain", "low", "high", "control"]
    )


def at_home(
    table: pd.DataFrame, *, metric: str = "auroc", resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Continued in-house minus continued elsewhere, from the same base with as many images and samples seen.

    One row a (task, paradigm, n_images) where both were judged: gain, the mean over in-house ``seeds``, low, high of it
    on the same resampled patients, and ``elsewhere``, the other institution. What is left of a gain over the base when
    more training alone is taken away.
    """
    same_patients(table)
    rows = []
    for task in TASKS:
        names, own = judged_labels(table, task), points(table[table["task"] == task], metric)
        others = reference(table, task, metric)
        for other in others[abroad(others)].itertuples():
            alike = (
                (own["paradigm"] == other.paradigm)
                & (own["base"] == other.base)
                & (own["data"] == other.data)
            )
            alike &= (own["n_images"] == other.n_images) & (
                own["samples_seen"] == other.samples_seen
            )
            if not alike.any():
                continue
            away = resampled(other.folder, names, metric, resamples, seed)
            each = [
                resampled(folder, names, metric, resamples, seed)
                for folder in own.loc[alike, "folder"]
            ]
            rung = {
                "task": task,
                "paradigm": other.paradigm,
                "n_images": other.n_images,
                "seeds": len(each),
            }
            hidden = tested(str(other.folder), names)["hidden"]
            rows.append(rung | difference(each, [away], hidden) | {"elsewhere": other.trained_on})
    columns = ["task", "paradigm", "n_images", "seeds", "gain", "low", "high", "elsewhere"]
    return pd.DataFrame(rows, columns=columns)
