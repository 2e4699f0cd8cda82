"""The planner: what would continued pretraining on n images bring, and on ten times as many?

The answer is a grid of numbers with the words to say them. ``consult`` reads it here, and
``book/assets/planner.js`` reads it by the same rules in the browser. Between measured sizes the
answer is a contrast of the two nearest cells. Beyond the largest size there is an answer only where
the curve's law predicted held-out sizes better than the last value did (``laws``).
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from cxrstudy.scaling import contrasts, laws
from cxrstudy.scaling.cells import SEEN, Cell, Cells, Floats, base_of, control_of
from cxrstudy.scaling.verdicts import MARGIN

TITLES = {"findings": "findings", "lines_tubes": "lines and tubes"}
TASKS, METRIC = tuple(TITLES), "auroc"
KEY = ["task", "name", "start", "samples_seen"]
NUMBERS = ["value", "low", "high", "gain", "gain_low", "gain_high", "more", "more_low", "more_high"]
SAID = {  # pieces of a sentence
    "control": "At equal compute, {control_n} in-house images are {control} [{control_low}, "
    "{control_high}] in macro {metric} beyond {control_what}: {control_verdict}.",
    "no_control": "No control at equal compute was run for {name} on {task}: a gain over the base "
    "model may come from more training alone.",
    "value": " With {n} images, {name} is expected to reach a macro {metric} of {value} [{low}, "
    "{high}] on {task} ({kind} x-rays).",
    "gain": " Over its base model ({base}) that is {gain} [{gain_low}, {gain_high}]: {verdict}.",
    "no_base": " Its base model was not evaluated, so its gain is unknown.",
    "beyond": " This is extrapolated by the fitted law: the largest size measured is {largest}.",
    "ten": " Ten times as many, {more_n}, would add {more} [{more_low}, {more_high}].",
    "capped": " The most that these runs can answer for, {more_n}, would add {more} [{more_low}, "
    "{more_high}].",
    "end": " These runs have no answer for more images.",
    "few": "No answer for {n} images with {name} on {task} ({kind} x-rays): the smallest size "
    "measured is {smallest}.",
    "many": "No answer for {n} images with {name} on {task} ({kind} x-rays): the answers end at "
    "{limit}. {reason}",
    "not_a_number": "Type a number of images, 1 or more.",
    "covers": "The intervals include {covers}.",
}


def planner_grid(
    cells: Cells, seed_variance: contrasts.SeedVariance | None = None
) -> dict[str, Any]:
    """Return the planner's numbers as a dictionary that JSON holds.

    ``curves`` has one entry a scaling curve (``outlook``), ``said`` the words.
    """
    known = contrasts.seed_variances(cells) if seed_variance is None else seed_variance
    entries = [
        outlook(sizes, cells, known)
        for sizes in contrasts.curves(cells)
        if sizes[0].task in TASKS and sizes[0].metric == METRIC
    ]
    return {"metric": METRIC.upper(), "titles": TITLES, "said": SAID, "curves": entries}


def outlook(sizes: list[Cell], cells: Cells, known: contrasts.SeedVariance) -> dict[str, Any]:
    """Return what one scaling curve says of numbers of images.

    ``at`` holds NUMBERS and ``verdict`` (of the gain) at its ``n_images``: measured sizes and 30
    between the smallest and the ``limit``. ``measured`` holds the same at the measured sizes.
    """
    top, base = sizes[-1], base_of(sizes[0])
    own = {cell: cells[cell] for cell in [*sizes, base] if cell in cells}
    curve = next(laws.curves_of(own), None)
    row, fit = laws.fitted(curve) if curve is not None else ({"extrapolates": False}, None)
    beyond = fit if row["extrapolates"] else None
    smallest, largest = sizes[0].n_images, top.n_images
    limit = largest * (laws.LIMIT if beyond is not None else 1)
    measured = np.array([cell.n_images for cell in sizes])
    knots = np.unique(np.concatenate([np.geomspace(smallest, limit, 30), measured]).round(3))
    reason = (
        "No answer goes beyond the largest size, because the last value predicted held-out sizes "
        "at least as well as a law."
    )
    first = contrasts.contrast({top: 1.0}, cells, known)
    return {
        "task": top.task,
        "name": top.arm,
        "start": top.start,
        "samples_seen": top.samples_seen,
        "kind": cells[top].kind,
        "smallest": smallest,
        "largest": largest,
        "limit": float(limit),
        "reason": reason
        if beyond is None
        else f"The law is read up to {laws.LIMIT} times the largest.",
        "covers": first.variance_sources,
        "base_value": float(cells[base].values.mean()) if base in cells else None,
        "control": _control(top, cells, known),
        "measured": _read(measured, sizes, cells, known, None, limit),
        "at": _read(knots, sizes, cells, known, beyond, limit),
        **{name: getattr(cells[top], name) for name in contrasts.COUNTED},
    }


def _control(top: Cell, cells: Cells, known: contrasts.SeedVariance) -> dict[str, Any] | None:
    """Return the largest subset minus its control at equal compute, if one was run."""
    other = control_of(top, cells)
    if other is None:
        return None
    seen = other.arm.endswith(SEEN)
    what = "more steps on images already seen" if seen else "as many out-of-domain images"
    found = contrasts.contrast({top: 1.0, other: -1.0}, cells, known)
    said = contrasts.verdict(found, MARGIN[METRIC])
    ends = {"effect": found.effect, "low": found.low, "high": found.high}
    return {"n": top.n_images, "what": what, "verdict": said} | ends


def _read(
    n_images: Floats, sizes: list[Cell], cells: Cells, known: contrasts.SeedVariance,
    law: Any, limit: float,
) -> dict[str, list[Any]]:  # fmt: skip
    """Return NUMBERS and the verdict of the gain at some numbers of images."""
    base = base_of(sizes[0])
    found: dict[str, list[Any]] = {name: [] for name in ["n_images", *NUMBERS, "verdict"]}
    for n in n_images:
        here = _weights(n, sizes)
        added = _law_adds(law, n, sizes[-1].n_images)
        value = contrasts.contrast(here, cells, known)
        numbers: list[float | None] = [*_ends(value, added)]
        said = None
        if base in cells:
            gain = contrasts.contrast(here | {base: -1.0}, cells, known)
            numbers += _ends(gain, added)
            said = contrasts.verdict(gain, MARGIN[METRIC])
        else:
            numbers += [None] * 3
        numbers += _more(n, min(10 * n, limit), sizes, cells, known, law)
        for name, entry in zip(found, [float(n), *numbers, said], strict=True):
            found[name].append(entry)
    return found


def _weights(n: float, sizes: list[Cell]) -> dict[Cell, float]:
    """Return weights of the two cells around n, linear in log n; of the last one beyond it."""
    at = np.log([cell.n_images for cell in sizes])
    shares = [np.interp(np.log(n), at, row) for row in np.eye(len(sizes))]
    return {cell: float(w) for cell, w in zip(sizes, shares, strict=True) if w > 0}


def _law_adds(law: Any, n: float, largest: float) -> tuple[float, float, float]:
    """Return what a law adds beyond the largest size, with its 95% interval; zeros within it."""
    if law is None or n <= largest:
        return 0.0, 0.0, 0.0
    draws = law.samples(np.array([largest, n]))
    low, high = np.quantile(draws[:, 0] - draws[:, 1], [0.025, 0.975])
    best = float(law.predict(largest) - law.predict(n))
    return best, min(float(low), best), max(float(high), best)


def _ends(e: contrasts.Estimate, added: tuple[float, float, float]) -> list[float]:
    """Return effect and interval of a contrast plus what a law adds, in quadrature."""
    more, low, high = added
    effect = e.effect + more
    below, above = np.hypot(e.effect - e.low, more - low), np.hypot(e.high - e.effect, high - more)
    return [effect, float(effect - below), float(effect + above)]


def _more(
    n: float,
    more_n: float,
    sizes: list[Cell],
    cells: Cells,
    known: contrasts.SeedVariance,
    law: Any,
) -> list[float]:
    """Return what ``more_n`` images add to n."""
    weights = _weights(more_n, sizes)
    for cell, w in _weights(n, sizes).items():
        weights[cell] = weights.get(cell, 0.0) - w
    largest = sizes[-1].n_images
    if n >= largest:
        weights = {sizes[-1]: 0.0}
    there, here = _law_adds(law, more_n, largest), _law_adds(law, n, largest)
    added = tuple(a - b for a, b in zip(there, here, strict=True))
    estimate = contrasts.contrast(weights, cells, known)
    return _ends(estimate, (added[0], min(added), max(added)))


def consult(grid: Mapping[str, Any], n_images: ArrayLike) -> pd.DataFrame:
    """Return what a ``planner_grid`` says of numbers of images: one row a (curve, number).

    Between the sizes of the grid it reads linearly in log n. Columns: task, name, start,
    samples_seen, n_images, NUMBERS, more_n, base_value, verdict, covers, reach ("inside" what was
    measured, "extrapolated" by the law, "refused" outside: all numbers are NaN) and status, a
    sentence.

    Raises:
        ValueError: a number of images below 1.
    """
    sizes = np.atleast_1d(np.asarray(n_images, dtype=float))
    wrong = sizes[~(np.isfinite(sizes) & (sizes >= 1))]
    if len(wrong):
        raise ValueError(f"n_images must be at least 1, got {wrong[0]:g}")
    rows = []
    for curve, n in itertools.product(grid["curves"], sizes):
        answered = curve["smallest"] <= n <= curve["limit"]
        at, x = np.log(curve["at"]["n_images"]), np.log(n)
        row: dict[str, Any] = {name: curve[name] for name in KEY} | {"n_images": n}
        for name in NUMBERS:
            values = np.array(curve["at"][name], float)
            row[name] = float(np.interp(x, at, values)) if answered else np.nan
        nearest = int(np.abs(at - x).argmin())
        row["verdict"] = (curve["at"]["verdict"][nearest] or "") if answered else ""
        row["more_n"] = min(10 * n, curve["limit"]) if answered else np.nan
        row["base_value"] = np.nan if curve["base_value"] is None else curve["base_value"]
        row["covers"] = curve["covers"]
        inside = "inside" if n <= curve["largest"] else "extrapolated"
        row["reach"] = inside if answered else "refused"
        rows.append(row | {"status": _sentence(grid, curve, row)})
    columns = [*KEY, "n_images", *NUMBERS, "more_n", "base_value", "verdict", "covers", "reach"]
    return pd.DataFrame(rows, columns=[*columns, "status"])


def _sentence(grid: Mapping[str, Any], curve: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Return a row in words: parts of ``said``, filled in like ``sentence`` of planner.js."""
    said = grid["said"]
    words = {name: curve[name] for name in ("name", "kind", "reason")} | {"metric": grid["metric"]}
    words["task"] = grid["titles"].get(curve["task"], curve["task"])
    words |= {name: f"{curve[name]:,.0f}" for name in ("smallest", "largest", "limit")}
    words["n"] = f"{row['n_images']:,.0f}"
    if row["reach"] == "refused":
        return str(said["few" if row["n_images"] < curve["smallest"] else "many"].format(**words))
    words |= {name: signed(row[name], k >= 3) for k, name in enumerate(NUMBERS)}
    words |= {"base": signed(row["base_value"], False), "verdict": row["verdict"]}
    words["more_n"] = f"{row['more_n']:,.0f}"
    control = curve["control"]
    if control:
        words |= {"control_n": f"{control['n']:,.0f}", "control": signed(control["effect"], True)}
        words |= {f"control_{end}": signed(control[end], True) for end in ("low", "high")}
        words |= {"control_what": control["what"], "control_verdict": control["verdict"]}
    pieces = ["control" if control else "no_control", "value"]
    pieces.append("no_base" if np.isnan(row["gain"]) else "gain")
    pieces += ["beyond"] if row["reach"] == "extrapolated" else []
    ten = 10 * row["n_images"] <= curve["limit"]
    pieces.append("ten" if ten else "capped" if row["n_images"] < curve["limit"] else "end")
    return "".join(said[piece].format(**words) for piece in pieces)


def signed(value: float, sign: bool = True) -> str:
    """Return a number with three decimals, and with its sign where asked; never -0.000.

    Four decimals where three would hide the sign, as ``tables.interval`` and planner.js write it.
    """
    places = 4 if sign and 0.00005 <= abs(value) < 0.0005 else 3
    rounded = round(float(value), places) + 0.0
    return f"{rounded:+.{places}f}" if sign else f"{rounded:.{places}f}"
