"""Scaling laws of a study's curves: the form that predicts held-out sizes best, and its fit.

Each curve is fitted from the subset size on at which it passes its base model. Below that size,
more data only undoes harm, and an exponent would describe repetition. The law that is quoted is the
one that hold-out extrapolation chose. It is used beyond the largest size only where it predicted
held-out sizes better than the last value did, by more than their noise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy.scaling.cells import Cell, Cells, Floats, Measured
from cxrstudy.scaling.contrasts import above_base, curves
from cxrstudy.scaling.extrapolation import choose_form, extrapolate
from cxrstudy.scaling.fit import ScalingFit, fit_scaling

LAST = "last value"
METRICS = ("auroc", "dice")  # larger is better, 1 the best
CURVE = ["task", "metric", "data", "one", "start", "samples_seen"]
FITTED = ["from_n", "sizes", "runs", "form", "exponent", "low", "high", "floor", "refused"]
FITTED += ["law_error", "last_error", "extrapolates"]
LIMIT = 4  # a law is read up to so many times the largest subset


@dataclass(frozen=True)
class Curve:
    """The runs of one scaling curve, one entry a run: K sizes and errors (K,), and their noise."""

    cell: Cell  # the curve, without a size
    cells: tuple[Cell, ...]  # by rising size, from where the base model is passed
    n: Floats
    error: Floats
    noise: dict[str, Any]  # as fit_scaling takes it

    @property
    def named(self) -> dict[str, Any]:
        """The columns that name it."""
        c = self.cell
        values = (c.task, c.metric, c.data, c.arm, c.start, c.samples_seen)
        return dict(zip(CURVE, values, strict=True))


def curves_of(cells: Cells) -> Iterator[Curve]:
    """Yield every in-house curve of two sizes or more, from where it passes its base model."""
    for sizes in curves(cells):
        if sizes[0].metric not in METRICS or len(sizes) < 2:
            continue
        passed = above_base(sizes, cells)
        own = [cells[cell] for cell in passed]
        n = np.repeat([c.n_images for c in passed], [len(m.values) for m in own])
        error = 1 - np.concatenate([m.values for m in own] or [np.empty(0)])
        yield Curve(sizes[0].curve, tuple(passed), n, error, _noise(n, own))


def _noise(n: Floats, own: list[Measured]) -> dict[str, Any]:
    """Return the noise of runs as ``fit_scaling`` takes it.

    With at least 4 degrees of freedom between seeds, it is estimated from them. Otherwise each
    run's bootstrap standard deviation is a lower bound, without the part that all runs share: the
    same test patients shift a whole curve and do not change its shape.
    """
    if len(n) - len(np.unique(n)) >= 4 or len(n) < 2:
        return {"robust": True}
    draws = np.concatenate([m.draws for m in own])  # (K, R)
    rest = draws - draws.mean(axis=0)
    sigma = np.nanstd(rest, axis=1) * np.sqrt(len(n) / (len(n) - 1))
    return {"sigma": np.maximum(sigma, 1e-9), "partial": True, "robust": True}


def laws(cells: Cells) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return the law of every curve.

    Returns:
        fits: one row a curve: its name, from_n (smallest size fitted), sizes, runs, form (the one
        chosen), exponent with its 95% interval low and high, floor, refused (why there is no law),
        law_error and last_error (median absolute error on the largest size, left out: of the chosen
        form, of the last value) and extrapolates (whether the law did better by more than the
        standard error of the held-out mean).
        bands: n_images, value, low, high of the metric along each law.
        trials: as ``extrapolate`` returns them, each curve's name first.
    """
    fits: list[dict[str, Any]] = []
    bands: list[pd.DataFrame] = []
    trials: list[pd.DataFrame] = []
    for curve in curves_of(cells):
        tried = extrapolate(curve.n, curve.error, left_out=(1,), **curve.noise)
        trials.append(tried.assign(**curve.named)[[*CURVE, *tried.columns]])
        row, fit = fitted(curve, tried)
        fits.append(row)
        if fit is not None:
            reach = curve.n.max() * (LIMIT if row["extrapolates"] else 1)
            n = np.geomspace(curve.n.min(), reach, 40)
            low, high = fit.interval(n)
            band = {"n_images": n, "value": 1 - fit.predict(n), "low": 1 - high, "high": 1 - low}
            bands.append(pd.DataFrame(curve.named | band))
    none = pd.DataFrame(columns=[*CURVE, "n_images", "value", "low", "high"])
    return (
        pd.DataFrame(fits, columns=[*CURVE, *FITTED]),
        pd.concat(bands, ignore_index=True) if bands else none,
        pd.concat(trials, ignore_index=True) if trials else pd.DataFrame(columns=CURVE),
    )


def _noise_of_held_out(curve: Curve) -> float:
    """Return the standard error of the largest size's mean over seeds; 0 if it has one seed."""
    own = curve.error[curve.n == curve.n.max()] if len(curve.n) else curve.error
    return float(own.std(ddof=1) / np.sqrt(len(own))) if len(own) > 1 else 0.0


def fitted(
    curve: Curve, tried: pd.DataFrame | None = None
) -> tuple[dict[str, Any], ScalingFit | None]:
    """Return the row of ``laws`` of one curve and its fit, None where it is refused."""
    if tried is None:
        tried = extrapolate(curve.n, curve.error, left_out=(1,), **curve.noise)
    off = tried[tried["refused"] == ""].groupby("method")["off"].apply(lambda o: o.abs().median())
    law_error, last_error = (float(off.get(name, np.nan)) for name in ("chosen", LAST))
    row = curve.named | {
        "from_n": float(curve.n.min()) if len(curve.n) else np.nan,
        "sizes": len(np.unique(curve.n)),
        "runs": len(curve.n),
        "law_error": law_error,
        "last_error": last_error,
        "extrapolates": bool(law_error + _noise_of_held_out(curve) < last_error),
        "form": "",
        "refused": "",
    }
    if not len(curve.n):
        return row | {"refused": "no subset size is above the base model on all larger sizes"}, None
    forms = choose_form(curve.n, curve.error, **curve.noise)
    chosen = forms.loc[forms["chosen"], "form"]
    try:
        fit = fit_scaling(
            curve.n,
            curve.error,
            form=str(chosen.iloc[0]) if len(chosen) else "power",
            **curve.noise,
        )
    except ValueError as reason:
        return row | {"refused": str(reason), "extrapolates": False}, None
    low, high = fit.exponent_interval()
    row |= {"form": fit.form, "exponent": fit.exponent, "low": low, "high": high}
    return row | {"floor": fit.floor}, fit
