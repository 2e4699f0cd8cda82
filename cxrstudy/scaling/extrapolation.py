"""Hold-out extrapolation: which form of law predicts subset sizes that it was not fitted to.

A law that describes a curve need not continue it. As Alabdulmohsin et al. 2022 evaluate their
estimators, a form is evaluated by its error on the largest sizes, fitted without them, beside naive
guesses.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from cxrstudy.scaling.fit import ScalingFit, fit_scaling
from cxrstudy.scaling.forms import FORMS, Floats

NAIVE = ("last value", "log-linear")
_COLUMNS = ["left_out", "method", "form", "n_images", "value", "predicted", "low", "high"]
_COLUMNS += ["held", "off", "refused"]


def choose_form(
    n: ArrayLike,
    error: ArrayLike,
    sigma: ArrayLike | None = None,
    *,
    forms: Sequence[str] = FORMS,
    left_out: Sequence[int] = (1, 2),
    **options: Any,
) -> pd.DataFrame:
    """Choose the form that best predicts the mean errors of the largest sizes, fitted without them.

    A form replaces a simpler one only where its error is lower by more than ``tie``, the noise of
    the means. Where no size can be left out, the simplest form that all runs allow is chosen.
    Where no form can be fitted, none is chosen.

    Args:
        n, error, sigma: as ``fit_scaling`` takes them.
        forms: the forms to try, the simpler first.
        left_out: how many of the largest sizes to leave out, each in turn.
        options: further arguments of ``fit_scaling``.

    Returns:
        One row a form.

        - form, chosen, and refused: why it could not be fitted.
        - held_out: the root mean square error of its predictions; predicted: of how many sizes.
        - best_so_far: held_out of the form chosen before it, on the sizes that both predict.
        - tie: the root mean square standard error of the means of these sizes.

    Raises:
        ValueError: shapes that differ.
    """
    size, y, sd = _checked(n, error, sigma)
    means = {m: float(y[size == m].mean()) for m in np.unique(size)}
    run_sd = _run_sd(size, y, sd)
    rows: list[dict[str, Any]] = []
    misses: dict[str, dict[tuple[int, float], float]] = {}  # form: (left out, size): error
    chosen: str | None = None
    for form in forms:
        found: dict[tuple[int, float], float] = {}
        refused = ""
        for k in left_out:
            try:
                fit, rest = _fit_without(k, size, y, sd, form=form, **options)
            except ValueError as reason:
                refused = refused or str(reason)
                continue
            found |= {(k, m): float(fit.predict(m)) - means[m] for m in rest}
        misses[form] = found
        both = [key for key in found if chosen and key in misses[chosen]]
        row = {"form": form, "predicted": len(found), "held_out": _rms(found.values())}
        best = _rms([misses[chosen][key] for key in both]) if chosen else np.nan
        tie = _rms([run_sd[size == m].mean() / np.sqrt((size == m).sum()) for _, m in both])
        if found and (not chosen or _rms([found[key] for key in both]) < best - tie):
            chosen = form
        rows.append(row | {"best_so_far": best, "tie": tie, "refused": "" if found else refused})
    table = pd.DataFrame(rows)
    if chosen is None:
        chosen = next((form for form in forms if _fits(size, y, sd, form, **options)), None)
    table["chosen"] = table["form"] == chosen
    return table[["form", "held_out", "predicted", "best_so_far", "tie", "chosen", "refused"]]


def extrapolate(
    n: ArrayLike,
    error: ArrayLike,
    sigma: ArrayLike | None = None,
    *,
    left_out: Sequence[int] = (1, 2),
    forms: Sequence[str] = ("power", "power_floor"),
    **options: Any,
) -> pd.DataFrame:
    """Fit without the largest sizes and predict every run there, beside naive guesses.

    Beside each of ``forms`` there are three methods:

    - chosen: the form that ``choose_form`` chooses from the runs that are left.
    - last value: the mean at the largest size left.
    - log-linear: a straight line through error and log n.

    Args:
        n, error, sigma: as ``fit_scaling`` takes them.
        left_out: how many of the largest sizes to leave out, each in turn.
        forms: the forms to try.
        options: further arguments of ``fit_scaling``.

    Returns:
        One row a (left_out, method, held-out run).

        - form, n_images; value: the run's error; off: predicted minus value.
        - predicted, with the 95% interval of one new run, low and high.
        - held: whether that interval covers the value; NaN for naive guesses.
        - refused: why the method cannot be fitted. It then has one row.

    Raises:
        ValueError: shapes that differ.
    """
    size, y, sd = _checked(n, error, sigma)
    rows: list[dict[str, Any]] = []
    for k in left_out:
        held = np.isin(size, np.unique(size)[-k:])
        kept_sd = None if sd is None else sd[~held]
        for method in (*forms, "chosen", *NAIVE):
            row = {"left_out": k, "method": method, "form": method if method in forms else ""}
            low: Any = np.nan
            high: Any = np.nan
            try:
                if method in NAIVE:
                    predicted = _naive(method, size[~held], y[~held], size[held])
                else:
                    if method == "chosen":
                        row["form"] = _chosen(size[~held], y[~held], kept_sd, **options)
                    fit, _ = _fit_without(k, size, y, sd, form=row["form"], **options)
                    predicted = fit.predict(size[held])
                    low, high = fit.interval(size[held], noise=True)
            except ValueError as reason:
                rows.append(row | {"refused": str(reason)})
                continue
            new = pd.DataFrame({"n_images": size[held], "value": y[held], "predicted": predicted})
            new = new.assign(low=low, high=high, refused="", off=new["predicted"] - new["value"])
            inside = (new["low"] <= new["value"]) & (new["value"] <= new["high"])
            new["held"] = inside.astype(float).where(new["low"].notna())
            rows += [row | record for record in new.to_dict("records")]
    return pd.DataFrame(rows).reindex(columns=_COLUMNS).fillna({"refused": ""})


# ---- steps ---------------------------------------------------------------------------------------
def _checked(
    n: ArrayLike, error: ArrayLike, sigma: ArrayLike | None
) -> tuple[Floats, Floats, Floats | None]:
    size, y = np.asarray(n, dtype=np.float64), np.asarray(error, dtype=np.float64)
    if size.ndim != 1 or size.shape != y.shape:
        raise ValueError(f"n has shape {size.shape}, error {y.shape}: both must be (K,)")
    if sigma is None:
        return size, y, None
    return size, y, np.broadcast_to(np.asarray(sigma, dtype=np.float64), y.shape)


def _fit_without(
    k: int, size: Floats, y: Floats, sd: Floats | None, **options: Any
) -> tuple[ScalingFit, Floats]:
    """The fit without the largest k sizes, and these sizes."""
    sizes = np.unique(size)
    kept = np.isin(size, sizes[:-k])
    kept_sd = None if sd is None else sd[kept]
    return fit_scaling(size[kept], y[kept], sigma=kept_sd, **options), sizes[-k:]


def _fits(size: Floats, y: Floats, sd: Floats | None, form: str, **options: Any) -> bool:
    try:
        fit_scaling(size, y, sigma=sd, form=form, **options)
    except ValueError:
        return False
    return True


def _chosen(size: Floats, y: Floats, sd: Floats | None, **options: Any) -> str:
    found = choose_form(size, y, sd, **options)
    if not found["chosen"].any():
        fit_scaling(size, y, sigma=sd, form=FORMS[0], **options)  # raises with the reason
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


def _run_sd(size: Floats, y: Floats, sd: Floats | None) -> Floats:
    """Return the standard deviation (K,) of runs: as given, else between seeds, else 0."""
    if sd is not None:
        return sd
    sizes = [y[size == n] for n in np.unique(size)]
    dof = len(y) - len(sizes)
    if dof == 0:
        return np.zeros(len(y))
    residuals = np.concatenate([(own - own.mean()) / np.sqrt(own.mean()) for own in sizes])
    return np.sqrt(np.sum(residuals**2) / dof) * np.sqrt(y)


def _rms(values: Iterable[float]) -> float:
    every = np.array(list(values), dtype=float)
    return float(np.sqrt(np.mean(every**2))) if len(every) else np.nan
