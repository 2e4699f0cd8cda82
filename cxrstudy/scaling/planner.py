"""'I have n images: what gain over the open-weights base do I expect, and what would ten times as many bring?'

The answer is a grid of numbers with the words to say them. `consult` reads it here; ``book/assets/planner.js`` reads it
by the same rules in the reader's browser.
"""

import html
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from cxrstudy.evaluate.metrics import interval
from cxrstudy.scaling.decide import KEY, Ladder, read_ladders, widened
from cxrstudy.scaling.fit import ScalingFit, fit_scaling
from cxrstudy.scaling.ladders import at_home, noise_of

Floats = NDArray[np.float64]
LIMIT = 4  # a law is read up to so many times the largest measured size
TITLES = {"findings": "findings", "lines_tubes": "lines and tubes"}
SAID = {  # pieces of a sentence
    "value": "With {n} images, {name} is expected to reach a macro {metric} of {value} [{low}, {high}] on {task} "
    "({kind} x-rays).",
    "gain": " Over its base as it came ({base}) that is {gain} [{gain_low}, {gain_high}]: {verdict}.",
    "better": "a gain",
    "worse": "a loss",
    "unclear": "no clear difference",
    "no_base": " Its base was not evaluated, so no gain can be said.",
    "beyond": " The law is extrapolated here: the largest size measured is {largest}.",
    "measured": " No law was fitted: this is read between the sizes that were measured.",
    "ten": " Ten times as many, {more_n}, would add {more} [{more_low}, {more_high}].",
    "capped": " For ten times as many these runs cannot speak; {more_n}, the most that they can, would add {more} "
    "[{more_low}, {more_high}].",
    "end": " For more images these runs cannot speak.",
    "few": "No answer for {n} images with {name} on {task} ({kind} x-rays): the smallest size measured is {smallest}.",
    "many": "No answer for {n} images with {name} on {task} ({kind} x-rays): the law is read up to {limit}, {factor} "
    "times the largest size measured.",
    "many_measured": "No answer for {n} images with {name} on {task} ({kind} x-rays): the largest size measured is "
    "{largest}, and no law could be fitted to go beyond it.",
    "not_a_number": "Type a number of images, 1 or more.",
    "reason": "Why there is no law: {reason}. ",
    "covers": "The intervals hold {covers}. ",
    "home": "The same base on as many images of {where}, {n} of each: in-house is {gain} [{low}, {high}] beyond it, "
    "{verdict}.",
    "no_home": "Whether as many images of others would have done as well was not tried.",
    "abreast": "All on {task} with {n} images: {each}.",
    "each": "{name} {value}, from a base of {base}",
    "each_alone": "{name} {value}",
    "each_none": "{name} no answer",
}
_NUMBERS = [
    "value",
    "low",
    "high",
    "gain",
    "gain_low",
    "gain_high",
    "more",
    "more_low",
    "more_high",
]


def planner(table: pd.DataFrame, n_images: ArrayLike, **how: Any) -> pd.DataFrame:
    """What ``n_images`` (one number or several) would bring: `consult` of the `planner_grid` that ``how`` describes."""
    return consult(planner_grid(table, **how), n_images)


def planner_grid(
    table: pd.DataFrame,
    n_grid: Sequence[float] | None = None,
    *,
    metric: str = "auroc",
    form: str = "power",
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The planner's numbers as a dictionary that JSON holds: ``ladders`` has an entry a ladder, ``said`` the words.

    Parameters as ``ladders.fit_ladders`` takes them, whose law is read; ``n_grid`` and an entry as in `prospect`.
    ValueError: as ``decide.read_ladders``.
    """
    compared = at_home(table, metric=metric, resamples=resamples, seed=seed)
    entries = [
        prospect(
            ladder,
            noise_of(table, ladder.runs, metric),
            n_grid,
            form=form,
            resamples=resamples,
            seed=seed,
        )
        | {"home": _home(compared, ladder)}
        for ladder in read_ladders(table, metric=metric, resamples=resamples, seed=seed)
    ]
    return {
        "metric": metric.upper(),
        "factor": LIMIT,
        "titles": TITLES,
        "said": SAID,
        "ladders": entries,
    }


def prospect(
    ladder: Ladder,
    noise: dict[str, Any],
    n_grid: Sequence[float] | None = None,
    *,
    form: str = "power",
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """What one ladder says of numbers of images, from a law fitted to its runs' errors; ``noise``: `ladders.noise_of`.

    ``curves`` are given at ``curves["n_images"]``: 60 sizes spread evenly on a log scale between the ``smallest`` size
    and the ``limit`` (or those of ``n_grid`` that lie there), and where a straight piece may bend.

    - ``basis`` "law": the limit is `LIMIT` times the largest size. ``value`` is the noise-free curve. The interval of
      ``gain`` joins, in squares, the law's profile interval and the paired resamples of (the ladder's mean - the base);
      that of ``value``, the resamples of the ladder's mean. What seeds do shows in the runs' scatter about the law.
      Simulated (``tests/scaling/test_planner.py``), it holds the truth 93 to 98% of the time with one or three seeds a
      size, seeds spreading up to twice a run's own noise. ``covers`` says which it is.
    - "measured": no law was fitted, for the ``reason`` given. Straight pieces in log n between the measured means, and
      between the ends of their intervals; the limit is the largest size.
    - ``more``: what ten times as many add, or the limit where that is less: from refitted laws
      (``ScalingFit.samples``), or from the paired resamples.

    Intervals are those of the mean over seeds; a single run scatters about it.
    """
    n, error = ladder.runs["n_images"].to_numpy(float), 1 - ladder.runs["value"].to_numpy(float)
    smallest, largest = float(n.min()), float(n.max())
    fit, reason, limit = None, "", largest
    try:
        fit, limit = (
            fit_scaling(n, error, form=form, resamples=resamples, seed=seed, **noise),
            LIMIT * largest,
        )
    except ValueError as refused:
        reason = str(refused).rstrip(".")
    spaced = (
        np.geomspace(smallest, limit, 60) if n_grid is None else np.asarray(n_grid, dtype=float)
    )
    knots = np.concatenate([spaced, ladder.sizes, ladder.sizes / 10, [limit / 10, limit]])
    knots = np.unique(knots[(knots >= smallest) & (knots <= limit)].round(3))
    curves = {"n_images": knots} | (
        _of_law(ladder, fit, knots, limit) if fit else _of_measured(ladder, knots)
    )
    ends = zip(
        ("low", "high", "gain", "gain_low", "gain_high"),
        (*ladder.intervals(), *ladder.gains()),
        strict=True,
    )
    measured = {"n_images": ladder.sizes, "seeds": ladder.seeds, "value": ladder.values} | dict(
        ends
    )
    entry: dict[str, Any] = {
        name: None if pd.isna(value) else value for name, value in ladder.key.items()
    }
    entry |= {"name": ladder.name, "kind": str(ladder.runs["kind"].iloc[0])}
    entry |= {
        "basis": "law" if fit else "measured",
        "reason": reason,
        "smallest": smallest,
        "largest": largest,
    }
    scatter = "patients, and seeds as far as runs scatter about the law: one seed a size"
    entry |= {"covers": scatter if fit and np.isnan(ladder.spread).any() else ladder.covers}
    entry |= {"limit": limit, "base_value": ladder.base[0] if ladder.base else None}
    return entry | {"measured": _plain(measured), "curves": _plain(curves)}


def consult(grid: dict[str, Any], n_images: ArrayLike) -> pd.DataFrame:
    """What a `planner_grid` says of ``n_images``: one row a (ladder, n), read between its sizes linearly in log n.

    Columns: those of ``decide.KEY``, name, n_images, value, low, high, gain, gain_low, gain_high, more, more_low,
    more_high, more_n, base_value, basis ("law" or "measured, no law"), ``reason`` (why there is no law), ``covers``
    (what intervals hold), ``reach`` ("inside" what was measured, "extrapolated" by the law, "refused" below the
    smallest size or above the limit, where all numbers are NaN) and ``status``, a sentence.
    ValueError: an n_images that is not a number of at least 1.
    """
    sizes = np.atleast_1d(np.asarray(n_images, dtype=float))
    wrong = sizes[~(np.isfinite(sizes) & (sizes >= 1))]
    if len(wrong):
        raise ValueError(f"n_images must be at least 1, got {wrong[0]:g}")
    rows = []
    for ladder, n in itertools.product(grid["ladders"], sizes):
        answered = ladder["smallest"] <= n <= ladder["limit"]
        at, x = np.log(ladder["curves"]["n_images"]), np.log(n)
        row = {name: ladder[name] for name in [*KEY, "name"]} | {"n_images": n}
        for name in _NUMBERS:
            row[name] = (
                float(np.interp(x, at, np.array(ladder["curves"][name], float)))
                if answered
                else np.nan
            )
        row["more_n"] = min(10 * n, ladder["limit"]) if answered else np.nan
        row["base_value"] = np.nan if ladder["base_value"] is None else ladder["base_value"]
        row |= {"basis": "law" if ladder["basis"] == "law" else "measured, no law"}
        row |= {name: ladder[name] for name in ("reason", "covers")}
        row["reach"] = (
            "refused" if not answered else "inside" if n <= ladder["largest"] else "extrapolated"
        )
        rows.append(row | {"status": _sentence(grid, ladder, row)})
    columns = [
        *KEY,
        "name",
        "n_images",
        *_NUMBERS,
        "more_n",
        "base_value",
        "basis",
        "reason",
        "covers",
        "reach",
        "status",
    ]
    return pd.DataFrame(rows, columns=columns)


def abreast(grid: dict[str, Any], task: str, n_images: float) -> str:
    """What every paradigm is expected to reach on a task with ``n_images``, beside its base, in words."""
    said, each = grid["said"], []
    for ladder in (ladder for ladder in grid["ladders"] if ladder["task"] == task):
        row = consult(grid | {"ladders": [ladder]}, n_images).iloc[0]
        piece = (
            "each_none"
            if row["reach"] == "refused"
            else "each"
            if row["base_value"] > 0
            else "each_alone"
        )
        words = {"value": _number(row["value"], False), "base": _number(row["base_value"], False)}
        each.append(said[piece].format(name=ladder["name"], **words))
    title = grid["titles"].get(task, task)
    return str(said["abreast"].format(task=title, n=f"{n_images:,.0f}", each="; ".join(each)))


def shown(rows: pd.DataFrame) -> pd.DataFrame:
    """`consult`'s rows as a table to read, numbers with their intervals: a row a (task, paradigm, number of images)."""
    told = []
    for row in rows.to_dict("records"):
        more = (
            f"{row['more_n']:,.0f}: {_told(row, 'more')}" if row["more_n"] > row["n_images"] else ""
        )
        cells = {"task": TITLES.get(row["task"], row["task"]), "paradigm": row["name"]}
        cells |= {"images": f"{row['n_images']:,.0f}", "expected": _told(row, "value")}
        cells |= {
            "gain over the base": _told(row, "gain"),
            "ten times as many, or the most, would add": more,
        }
        told.append(
            cells
            | {
                "read from": row["basis"]
                + ("" if row["reach"] == "inside" else f"; {row['reach']}")
            }
        )
    columns = [
        "task",
        "paradigm",
        "images",
        "expected",
        "gain over the base",
        "ten times as many, or the most, would add",
    ]
    return pd.DataFrame(told, columns=[*columns, "read from"])


def embedded(grid: dict[str, Any]) -> str:
    """The planner of a page at the book's root as HTML: the grid as data, and the script and style that show it."""
    data = json.dumps(grid, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return (
        '<link rel="stylesheet" href="_static/planner.css"><div id="planner"><noscript><p>This part needs JavaScript; '
        f'the table below does not.</p></noscript></div><script type="application/json" id="planner-grid">{data}'
        '</script><script src="_static/planner.js" defer></script>'
    )


def boxed(frame: pd.DataFrame, label: str) -> str:
    """A wide table as HTML that scrolls within its own box, by keyboard too; ``label`` names the box."""
    inner = frame.to_html(index=False, border=0)
    return f'<div class="planner-table" role="region" tabindex="0" aria-label="{html.escape(label)}">{inner}</div>'


# ---- the parts -----------------------------------------------------------------------------------------------------
def _of_law(ladder: Ladder, fit: ScalingFit, knots: Floats, limit: float) -> dict[str, Floats]:
    """Curves of a fitted law at the knots (G,)."""
    share = (
        ladder.seeds / ladder.seeds.sum()
    )  # patients move the ladder as a whole, of which the fit knows nothing
    mean, draws, value = ladder.values @ share, ladder.draws @ share, 1 - fit.predict(knots)
    high, low = (1 - end for end in fit.interval(knots))

    def joined(base: float, base_draws: Floats | float) -> tuple[Floats, Floats, Floats]:
        below, above = widened(np.array([mean - base]), (draws - base_draws)[:, None], np.zeros(1))
        best = value - base
        ends = (
            best - np.hypot(value - low, mean - base - below),
            best + np.hypot(high - value, above - mean + base),
        )
        return best, *ends

    more_n = np.minimum(10 * knots, limit)
    samples, more = fit.samples(np.stack([knots, more_n])), fit.predict(knots) - fit.predict(more_n)
    more_low, more_high = interval(samples[:, 0] - samples[:, 1])
    gain = joined(*ladder.base) if ladder.base else [np.full(len(knots), np.nan)] * 3
    every = (*joined(0.0, 0.0), *gain, more, np.fmin(more_low, more), np.fmax(more_high, more))
    return dict(zip(_NUMBERS, every, strict=True))


def _of_measured(ladder: Ladder, knots: Floats) -> dict[str, Floats]:
    """Straight pieces in log n between measured sizes, at the knots (G,)."""
    at, unit = np.log(ladder.sizes), np.eye(len(ladder.sizes))
    more_n = np.minimum(10 * knots, ladder.sizes[-1])
    here, there = (
        np.stack([np.interp(np.log(n), at, row) for row in unit]) for n in (knots, more_n)
    )  # (K, G)
    step = there - here
    more, spread = ladder.values @ step, np.sqrt(np.nan_to_num(ladder.spread) ** 2 @ step**2)
    held = (ladder.values, *ladder.intervals(), *ladder.gains())
    every = (*(part @ here for part in held), more, *widened(more, ladder.draws @ step, spread))
    return dict(zip(_NUMBERS, every, strict=True))


def _sentence(grid: dict[str, Any], ladder: dict[str, Any], row: dict[str, Any]) -> str:
    """A row in words: pieces of ``said``, chosen and filled as ``sentence`` of planner.js does."""
    said, n, law = grid["said"], row["n_images"], ladder["basis"] == "law"
    words = {name: ladder[name] for name in ("name", "kind")} | {"metric": grid["metric"]}
    words |= {"task": grid["titles"].get(ladder["task"], ladder["task"]), "factor": grid["factor"]}
    words |= {name: f"{ladder[name]:,.0f}" for name in ("smallest", "largest", "limit")} | {
        "n": f"{n:,.0f}"
    }
    if row["reach"] == "refused":
        return said["few" if n < ladder["smallest"] else "many" if law else "many_measured"].format(
            **words
        )
    words |= {name: _number(row[name], name in _NUMBERS[3:]) for name in _NUMBERS}
    words |= {"base": _number(row["base_value"], False), "more_n": f"{row['more_n']:,.0f}"}
    words["verdict"] = said[_verdict(row["gain_low"], row["gain_high"])]
    pieces = ["value", "no_base" if np.isnan(row["gain"]) else "gain"]
    pieces += ["beyond"] * (row["reach"] == "extrapolated") + ["measured"] * (not law)
    pieces += ["ten" if 10 * n <= ladder["limit"] else "capped" if n < ladder["limit"] else "end"]
    return "".join(said[piece].format(**words) for piece in pieces)


def _home(compared: pd.DataFrame, ladder: Ladder) -> str:
    """What a ladder's images bring beyond as many of others (of ``ladders.at_home``), in words."""
    own = compared[
        (compared["task"] == ladder.key["task"]) & (compared["paradigm"] == ladder.key["paradigm"])
    ]
    if own.empty:
        return SAID["no_home"]
    row = own.sort_values("n_images").iloc[-1]
    words = {name: _number(row[name], True) for name in ("gain", "low", "high")} | {
        "n": f"{row['n_images']:,.0f}"
    }
    words |= {"where": str(row["elsewhere"]).removeprefix("synthetic:")}
    return SAID["home"].format(verdict=SAID[_verdict(row["low"], row["high"])], **words)


def _verdict(low: float, high: float) -> str:
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def _told(row: dict[str, Any], what: str) -> str:
    """A number of a row with its interval."""
    names = ("value", "low", "high") if what == "value" else (what, f"{what}_low", f"{what}_high")
    if any(np.isnan(row[name]) for name in names):
        return "not known"
    return "{} [{},\N{NO-BREAK SPACE}{}]".format(
        *(_number(row[name], what != "value") for name in names)
    )


def _number(value: float, signed: bool) -> str:
    """Three decimals; nothing is -0.000."""
    return f"{round(value, 3) + 0.0:{'+' if signed else ''}.3f}"


def _plain(columns: dict[str, Any]) -> dict[str, list[float | None]]:
    """Arrays as JSON holds them: 6 decimals, None for NaN."""
    return {
        name: [round(float(v), 6) if np.isfinite(v) else None for v in values]
        for name, values in columns.items()
    }
