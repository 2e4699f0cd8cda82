"""Hold-out extrapolation: which form of law predicts subset sizes that it was not fitted to.

A law that describes a curve need not continue it. As Alabdulmohsin et al. 2022 evaluate their
estimators, a form is evaluated by its error on the largest sizes, fitted without them, beside naive
guesses.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from cxrstudy.scaling.fit import fit_scaling
from cxrstudy.scaling.forms import FORMS, Floats

NAIVE = ("last value", "log-linear")
_TRIED = [
    "left_out",
    "method",
    "form",
    "n_images",
    "value",
    "predicted",
    "low",
    "high",
    "held",
    "off",
    "refused",
]


def choose_form(
    n: ArrayLike,
    error: ArrayLike,
    sigma: ArrayLike | None = None,
    *,
    forms: Sequence[str] = FORMS,
    left_out: Sequence[int] = (1, 2),
    plateau: float = 0.5,
    robust: bool = False,
    partial: bool = False,
) -> pd.DataFrame:
    """Which form to trust: fitted without the largest one, then two sizes (``left_out``), each predicts their means.

    ``n``, ``error`` (K,), ``sigma`` and the rest as `fit_scaling` takes them.
    One row a form, the simpler first: ``held_out``
    (root mean square of prediction minus mean), ``predicted`` (how many held-out sizes), ``rival`` (the same of the
    form chosen so far, on the sizes that both could predict), ``tie`` (root mean square error of those means
    themselves), ``chosen`` and ``refused``, the reason why a form could not be fitted. A form replaces a simpler one
    only where it is better by more than ``tie``: within what noise explains, the simpler one stands. With too few sizes
    to leave one out, the simplest form that all runs together allow is chosen, and ``predicted`` is 0; where none can
    be fitted, none is chosen. ValueError: shapes that differ.
    """
    size, y, spread = _checked(n, error, sigma)
    kwargs: dict[str, Any] = {"plateau": plateau, "robust": robust, "partial": partial}
    means = {m: float(y[size == m].mean()) for m in np.unique(size)}
    deviation = _deviation(size, y, spread)
    rows: list[dict[str, Any]] = []
    missed: dict[str, dict[tuple[int, float], float]] = {}
    chosen: str | None = None
    for form in forms:
        found: dict[tuple[int, float], float] = {}
        refused = ""
        for k in left_out:
            try:
                fit, rest = _fit_without(k, size, y, spread, form=form, **kwargs)
            except ValueError as reason:
                refused = refused or str(reason)
                continue
            found |= {(k, m): float(fit.predict(m)) - means[m] for m in rest}
        missed[form] = found
        row = {
            "form": form,
            "predicted": len(found),
            "held_out": _rms(found.values()),
            "refused": refused,
        }
        both = [key for key in found if chosen and key in missed[chosen]]
        tie = _rms([deviation[size == m].mean() / np.sqrt((size == m).sum()) for _, m in both])
        rival = _rms([missed[chosen][key] for key in both]) if chosen else np.nan
        if found and (not chosen or _rms([found[key] for key in both]) < rival - tie):
            chosen = form
        rows.append(row | {"rival": rival, "tie": tie, "refused": "" if found else refused})
    table = pd.DataFrame(rows)
    if chosen is None:
        chosen = next((form for form in forms if _fits(size, y, spread, form, **kwargs)), None)
    table["chosen"] = table["form"] == chosen
    return table[["form", "held_out", "predicted", "rival", "tie", "chosen", "refused"]]


def extrapolate(
    n: ArrayLike,
    error: ArrayLike,
    sigma: ArrayLike | None = None,
    *,
    left_out: Sequence[int] = (1, 2),
    forms: Sequence[str] = ("power", "power_floor"),
    level: float = 0.95,
    plateau: float = 0.5,
    robust: bool = False,
    partial: bool = False,
) -> pd.DataFrame:
    """Fit without the largest one or two sizes and predict every run there, beside naive guesses.

    Methods: each of ``forms``; ``chosen``, the form that `choose_form` picks from the runs that are left; ``last
    value``, the mean at the largest size left; ``log-linear``, a straight line through error and log n. One row a
    (left_out, method, held-out run): form, n_images, ``value`` (the run's error), predicted, low, high (the interval of
    one new run), ``held`` (whether it held the value; none for naive guesses), ``off`` (predicted minus value). A
    method that refuses has one row with the reason in ``refused``. ValueError: shapes that differ.
    """
    size, y, spread = _checked(n, error, sigma)
    kwargs: dict[str, Any] = {"plateau": plateau, "robust": robust, "partial": partial}
    rows: list[dict[str, Any]] = []
    for k in left_out:
        rest = np.unique(size)[:-k]
        kept, held = np.isin(size, rest), ~np.isin(size, rest)
        told = None if spread is None else spread[kept]
        for method in (*forms, "chosen", *NAIVE):
            row = {
                "left_out": k,
                "method": method,
                "form": "" if method in ("chosen", *NAIVE) else method,
            }
            try:
                if method == "chosen":
                    row["form"] = _chosen(size[kept], y[kept], told, **kwargs)
                ends: tuple[Any, Any] = (np.nan, np.nan)
                if method in NAIVE:
                    predicted = _naive(method, size[kept], y[kept], size[held])
                else:
                    fit = _fit_without(k, size, y, spread, form=row["form"], **kwargs)[0]
                    predicted, ends = (
                        fit.predict(size[held]),
                        fit.interval(size[held], level, noise=True),
                    )
            except ValueError as reason:
                rows.append(row | {"refused": str(reason)})
                continue
            new = pd.DataFrame({"n_images": size[held], "value": y[held], "predicted": predicted})
            new = new.assign(
                low=ends[0], high=ends[1], refused="", off=new["predicted"] - new["value"]
            )
            inside = (new["low"] <= new["value"]) & (new["value"] <= new["high"])
            new["held"] = inside.astype(float).where(new["low"].notna())
            rows += [row | record for record in new.to_dict("records")]
    return pd.DataFrame(rows).reindex(columns=_TRIED).fillna({"refused": ""})


# ---- the parts -----------------------------------------------------------------------------------------------------
def _checked(
    n: ArrayLike, error: ArrayLike, sigma: ArrayLike | None
) -> tuple[Floats, Floats, Floats | None]:
    size, y = np.asarray(n, dtype=np.float64), np.asarray(error, dtype=np.float64)
    if size.ndim != 1 or size.shape != y.shape:
        raise ValueError(f"n has shape {size.shape}, error {y.shape}: both must be (K,)")
    return (
        size,
        y,
        None if sigma is None else np.broadcast_to(np.asarray(sigma, dtype=np.float64), y.shape),
    )


def _fit_without(
    k: int, size: Floats, y: Floats, spread: Floats | None, **kwargs: Any
) -> tuple[Any, Floats]:
    """The fit without the largest k sizes, and these."""
    rest = np.unique(size)
    kept = np.isin(size, rest[:-k])
    return fit_scaling(
        size[kept], y[kept], sigma=None if spread is None else spread[kept], **kwargs
    ), rest[-k:]


def _fits(size: Floats, y: Floats, spread: Floats | None, form: str, **kwargs: Any) -> bool:
    try:
        fit_scaling(size, y, sigma=spread, form=form, **kwargs)
    except ValueError:
        return False
    return True


def _chosen(size: Floats, y: Floats, spread: Floats | None, **kwargs: Any) -> str:
    found = choose_form(size, y, spread, **kwargs)
    if not found["chosen"].any():
        fit_scaling(size, y, sigma=spread, form=FORMS[0], **kwargs)  # says why
    return str(found.loc[found["chosen"], "form"].iloc[0])


def _naive(method: str, size: Floats, y: Floats, at: Floats) -> Floats:
    if not len(size):
        raise ValueError("no size is left to guess from")
    if method == "last value":
        return np.full(len(at), y[size == size.max()].mean())
    if len(np.unique(size)) < 2:
        raise ValueError("a straight line needs at least 2 distinct n, got 1")
    slope, start = np.polyfit(np.log(size), y, 1)
    return start + slope * np.log(at)


def _deviation(size: Floats, y: Floats, spread: Floats | None) -> Floats:
    """Standard deviation (K,) of each run: as given, else between seeds; 0 where neither is known."""
    if spread is not None:
        return spread
    sizes = [y[size == n] for n in np.unique(size)]
    dof = len(y) - len(sizes)
    if dof == 0:
        return np.zeros(len(y))
    apart = [(own - own.mean()) / np.sqrt(own.mean()) for own in sizes]
    return np.sqrt(np.sum(np.concatenate(apart) ** 2) / dof) * np.sqrt(y)


def _rms(values: Any) -> float:
    every = np.array(list(values), dtype=float)
    return float(np.sqrt(np.mean(every**2))) if len(every) else np.nan
