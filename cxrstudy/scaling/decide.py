"""What ladders decide: from how many images on continuing pays, and when one paradigm overtakes another.

Every interval is of 95% and paired: runs are compared on the same resamples of the same test patients. Where a ladder
repeats a size with other seeds, intervals hold the spread between seeds too: its variance (``compare.components``),
pooled over the ladder's sizes or a size's own where that is larger, enters a mean over S seeds by its S-th part with a
Student quantile, and is added in squares. Simulated with 2 or 3 seeds at 5 sizes, such intervals hold the truth 95 to
98% of the time (90% at the noisiest size where seeds spread three times as much at one end). A ladder of one seed says
so in ``covers``: its intervals hold the sampling of patients alone and are too narrow by what seeds do.
"""

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

from cxrstudy.evaluate.compare import components
from cxrstudy.evaluate.metrics import interval
from cxrstudy.evaluate.small_samples import FLAT, is_flat
from cxrstudy.scaling.ladders import (
    judged_labels,
    of_base,
    points,
    reference,
    resampled,
    same_patients,
    tested,
)

Floats = NDArray[np.float64]
KEY = [
    "task",
    "paradigm",
    "base",
    "encoder",
    "data",
    "samples_seen",
]  # what the runs of one ladder share
NEVER, SMALLEST = "never within the ladder", "from the smallest on"
NO_BASE, NO_SIZE = "base not evaluated", "no size in common"
_TURNED = [
    "sizes",
    "smallest",
    "largest",
    "first",
    "first_said",
    "holds",
    "holds_said",
    "seeds",
    "covers",
]


@dataclass(frozen=True)
class Ladder:
    """One task's runs of one paradigm from one base: K sizes, means over seeds, R resamples of the patients."""

    key: dict[str, Any]  # the values of KEY
    name: str  # the paradigm, and what else tells the ladder from others of its task and paradigm
    runs: pd.DataFrame  # its rows of ``ladders.points``
    sizes: Floats  # (K,) rising
    seeds: NDArray[np.int64]  # (K,) runs at each size
    values: Floats  # (K,)
    draws: Floats  # (R, K)
    spread: Floats  # (K,) half the 95% interval that seeds give a mean; NaN where no size has two
    base: tuple[float, Floats] | None  # value and resamples (R,); None where it was not evaluated
    exact: float = (
        0.0  # how far an interval reaches where all resamples are alike (``ladders.tested``)
    )

    @property
    def covers(self) -> str:
        """What its intervals hold."""
        return "patients alone: one seed" if np.isnan(self.spread).any() else "patients and seeds"

    @property
    def hidden(self) -> Floats:
        """(K,) ``exact`` where all resamples are alike, else 0."""
        return np.where(is_flat(self.draws), self.exact, 0.0)

    def intervals(self) -> tuple[Floats, Floats]:
        """(low, high) of its values, (K,) each."""
        low, high = widened(self.values, self.draws, self.spread, self.hidden)
        exact = self.hidden > 0  # a value lies between 0 and 1
        return np.where(exact, np.maximum(low, 0), low), np.where(exact, np.minimum(high, 1), high)

    def gains(self) -> tuple[Floats, Floats, Floats]:
        """(gain, low, high) over the base at every size, (K,) each; NaN where the base was not evaluated."""
        if self.base is None:
            return (np.full(len(self.sizes), np.nan),) * 3
        gain = self.values - self.base[0]
        return gain, *widened(gain, self.draws - self.base[1][:, None], self.spread, self.hidden)


def rungs(
    table: pd.DataFrame, *, metric: str = "auroc", resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Every size of every ladder: macro ``metric`` (value, value_low, value_high) and its ``gain`` over the base, low,
    high, as means over ``seeds`` runs; ``covers`` says what the intervals hold. A base not evaluated: gain NaN.

    ValueError: as `read_ladders`.
    """
    found = []
    for ladder in read_ladders(table, metric=metric, resamples=resamples, seed=seed):
        columns = {"n_images": ladder.sizes, "seeds": ladder.seeds, "value": ladder.values}
        columns |= dict(zip(("value_low", "value_high"), ladder.intervals(), strict=True))
        columns |= dict(zip(("gain", "low", "high"), ladder.gains(), strict=True))
        found.append(
            pd.DataFrame(ladder.key | {"name": ladder.name} | columns | {"covers": ladder.covers})
        )
    if found:
        return pd.concat(found, ignore_index=True)
    names = [
        "name",
        "n_images",
        "seeds",
        "value",
        "value_low",
        "value_high",
        "gain",
        "low",
        "high",
        "covers",
    ]
    return pd.DataFrame(columns=[*KEY, *names])


def crossovers(
    table: pd.DataFrame, *, metric: str = "auroc", resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """The smallest size at which continuing beats the open-weights base, and the smallest from which it stays so.

    One row a ladder. ``first``: the smallest n_images whose gain's interval lies above 0; ``holds``: the smallest such
    that it does there and at every larger size measured; NaN for never. ``first_said`` and ``holds_said`` put them in
    words. ``first`` searches ``sizes`` intervals, each of which lies above 0 by chance 2.5 times in a hundred: plan by
    ``holds``. ``seeds``: the fewest at any size. ValueError: as `read_ladders`.
    """
    rows = []
    for ladder in read_ladders(table, metric=metric, resamples=resamples, seed=seed):
        turned = turning(ladder.sizes, ladder.gains()[1] > 0)
        if ladder.base is None:
            turned |= {"first_said": NO_BASE, "holds_said": NO_BASE}
        told = {"name": ladder.name, "seeds": int(ladder.seeds.min()), "covers": ladder.covers}
        rows.append(ladder.key | turned | told)
    return pd.DataFrame(rows, columns=[*KEY, "name", *_TURNED])


def differences(
    table: pd.DataFrame, *, metric: str = "auroc", resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Macro ``metric`` of one paradigm minus another's at every size that both measured on the same data.

    Rows: task, one, other, n_images, difference, low, high, seeds (of the two, the fewer), covers, ``equal_compute``
    (both saw as many samples). Seeds of the two are taken as independent, which is wide where they share subsets.
    ValueError: as `read_ladders`.
    """
    found = [
        _apart(*pair)
        for pair in _pairs(read_ladders(table, metric=metric, resamples=resamples, seed=seed))
    ]
    columns = [
        "task",
        "one",
        "other",
        "n_images",
        "difference",
        "low",
        "high",
        "seeds",
        "covers",
        "equal_compute",
    ]
    kept = [rows for rows in found if len(rows)]
    return pd.concat(kept, ignore_index=True)[columns] if kept else pd.DataFrame(columns=columns)


def overtakes(
    table: pd.DataFrame, *, metric: str = "auroc", resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """The smallest size at which paradigm ``one`` is ahead of ``other``, and the smallest from which it stays ahead.

    Both orders of every pair are rows, with ``first``, ``holds`` and their words as in `crossovers`, over the ``sizes``
    that both measured; a pair without one says so. ``lead``: how far the base of ``one`` is ahead already (NaN: not
    both were evaluated). Where ``equal_compute`` is False the two saw unequally many samples, and a lead is not the
    paradigm's alone. ValueError: as `read_ladders`.
    """
    rows = []
    for pair in _pairs(read_ladders(table, metric=metric, resamples=resamples, seed=seed)):
        own = _apart(*pair)
        for (ahead, behind), wins in ((pair, own["low"] > 0), (pair[::-1], own["high"] < 0)):
            turned = turning(own["n_images"].to_numpy(float), wins.to_numpy(bool))
            turned |= {} if len(own) else {"first_said": NO_SIZE, "holds_said": NO_SIZE}
            row = {
                "task": ahead.key["task"],
                "one": ahead.name,
                "other": behind.name,
                "seeds": own["seeds"].min(),
            }
            row["lead"] = ahead.base[0] - behind.base[0] if ahead.base and behind.base else np.nan
            rows.append(row | turned | _together(ahead, behind))
    return pd.DataFrame(rows, columns=["task", "one", "other", "lead", *_TURNED, "equal_compute"])


def read_ladders(
    table: pd.DataFrame, *, metric: str = "auroc", resamples: int = 1000, seed: int = 0
) -> list[Ladder]:
    """Every ladder of the table, from the scores kept with its runs' records; resampled once a run and process.

    ValueError: a metric other than auroc and auprc; runs judged on different patients; a run without kept scores, or
    without those of a label that others judged.
    """
    if metric not in ("auroc", "auprc"):
        raise ValueError(
            f"metric must be auroc or auprc, which kept scores can give, got {metric!r}"
        )
    same_patients(table)
    groups = dict(list(points(table, metric).groupby(KEY, dropna=False)))
    found = []
    for values, runs in groups.items():
        key = dict(zip(KEY, values, strict=True))
        names = judged_labels(table, key["task"])
        if not names:
            continue
        read = functools.partial(_read, names=names, metric=metric, resamples=resamples, seed=seed)
        each = {
            n: [read(folder) for folder in own["folder"]] for n, own in runs.groupby("n_images")
        }
        home = of_base(reference(table, key["task"], metric), key["base"], key["data"])["folder"]
        alike = pd.DataFrame([other for other in groups if other[:2] == values[:2]], columns=KEY)
        apart = ", ".join(
            f"{name} {key[name]}" for name in KEY if alike[name].nunique(dropna=False) > 1
        )
        ladder = Ladder(
            key=key,
            name=f"{key['paradigm']} ({apart})" if apart else key["paradigm"],
            runs=runs.reset_index(drop=True),
            sizes=np.array(list(each), dtype=float),
            seeds=np.array([len(own) for own in each.values()]),
            values=np.array([np.mean([value for value, _ in own]) for own in each.values()]),
            draws=np.stack(
                [np.mean([draws for _, draws in own], axis=0) for own in each.values()], axis=1
            ),
            spread=seed_spread(list(each.values())),
            base=read(str(home.iloc[0])) if len(home) else None,
            exact=tested(str(runs["folder"].iloc[0]), names)["hidden"],
        )
        found.append(ladder)
    return found


def widened(
    values: Floats, draws: Floats, spread: Floats, hidden: Floats | float = 0.0
) -> tuple[Floats, Floats]:
    """(low, high) of values (K,) from their resamples (R, K), each side joined in squares with ``spread`` (K,), half
    the interval of what the resamples do not hold; NaN counts as none. Where all resamples are alike, both sides get
    ``hidden`` (see ``small_samples.widened_difference``)."""
    low, high = interval(draws)
    flat = high - low <= FLAT
    low, high = np.where(flat, low - hidden, low), np.where(flat, high + hidden, high)
    more = np.nan_to_num(spread)
    return values - np.hypot(np.maximum(values - low, 0), more), values + np.hypot(
        np.maximum(high - values, 0), more
    )


def seed_spread(each: list[list[tuple[float, Floats]]]) -> Floats:
    """Half the 95% interval that seeds give the mean of each of K sizes' runs, (K,); NaN where no size has two.

    ``each`` holds a size's runs: value and resamples (R,). The variance between seeds (``compare.components``) is
    pooled over sizes with its degrees of freedom, or a size's own where that is larger.
    """
    count = np.array([len(runs) for runs in each])
    dof = int((count - 1).sum())
    if dof == 0:
        return np.full(len(each), np.nan)
    own = np.zeros(len(each))
    for k, runs in enumerate(each):
        if len(runs) > 1:
            own[k] = (
                components([value for value, _ in runs], np.stack([draws for _, draws in runs]))[
                    "seed_sd"
                ]
                ** 2
            )
    pooled = ((count - 1) * own).sum() / dof
    return np.asarray(scipy.stats.t.ppf(0.975, dof) * np.sqrt(np.maximum(own, pooled) / count))


def turning(sizes: Floats, ahead: NDArray[np.bool_]) -> dict[str, Any]:
    """``first`` of the rising sizes (K,) at which ``ahead`` (K,) is true, and ``holds``, the first from which it is so
    at all larger ones too: numbers (NaN for never) and words."""
    stays = np.logical_and.accumulate(ahead[::-1])[::-1]
    first, holds = (float(sizes[which][0]) if which.any() else np.nan for which in (ahead, stays))
    said = {"first_said": NEVER, "holds_said": NEVER}
    if ahead.any():
        said["first_said"] = f"at {first:,.0f}" + (", the smallest" if ahead[0] else "")
    if stays.any():
        alone = ", the largest" if holds == sizes[-1] else ""
        said["holds_said"] = SMALLEST if stays[0] else f"from {holds:,.0f} on{alone}"
    ends = {"smallest": sizes[0], "largest": sizes[-1]} if len(sizes) else {}
    return {"sizes": len(sizes), **ends, "first": first, "holds": holds} | said


# ---- the parts -----------------------------------------------------------------------------------------------------
def _read(
    folder: str, names: tuple[str, ...], metric: str, resamples: int, seed: int
) -> tuple[float, Floats]:
    """``ladders.resampled`` of a run's kept scores."""
    path = Path(folder) / "scores.parquet"
    if not path.is_file():
        raise ValueError(
            f"{path}: not there; run classify.ipynb with out={folder} again, which keeps the scores"
        )
    try:
        return resampled(folder, names, metric, resamples, seed)
    except KeyError as lacks:
        raise ValueError(
            f"{path}: labels that other runs judged are missing ({lacks}); judge all runs alike"
        ) from None


def _pairs(ladders: list[Ladder]) -> list[tuple[Ladder, Ladder]]:
    """Two paradigms' ladders of one task on the same data."""
    alike = ("task", "data")
    return [
        (one, other)
        for one, other in itertools.combinations(ladders, 2)
        if one.key["paradigm"] != other.key["paradigm"]
        and all(one.key[name] == other.key[name] for name in alike)
    ]


def _apart(one: Ladder, other: Ladder) -> pd.DataFrame:
    """One minus the other at every size in common."""
    sizes, i, j = np.intersect1d(one.sizes, other.sizes, return_indices=True)
    value = one.values[i] - other.values[j]
    spread = np.hypot(np.nan_to_num(one.spread[i]), np.nan_to_num(other.spread[j]))
    low, high = widened(
        value,
        one.draws[:, i] - other.draws[:, j],
        spread,
        np.minimum(one.hidden[i], other.hidden[j]),
    )
    columns = {"n_images": sizes, "difference": value, "low": low, "high": high}
    columns |= {"seeds": np.minimum(one.seeds[i], other.seeds[j])}
    named = {"task": one.key["task"], "one": one.name, "other": other.name}
    return pd.DataFrame(columns).assign(**named, **_together(one, other))


def _together(one: Ladder, other: Ladder) -> dict[str, Any]:
    """What must be said of a comparison of two ladders."""
    alone = [ladder for ladder in (one, other) if np.isnan(ladder.spread).any()]
    covers = (
        f"patients, and seeds but for the one of {alone[0].name}" if len(alone) == 1 else one.covers
    )
    return {
        "covers": covers,
        "equal_compute": bool(one.key["samples_seen"] == other.key["samples_seen"]),
    }
