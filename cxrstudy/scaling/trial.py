"""Laws on trial: which form foretells the sizes it was not shown, and how well, beside naive guesses.

A law that describes a ladder need not continue it. As Alabdulmohsin et al. 2022 judge their estimators, a form is
judged here by its error on the largest sizes, fitted without them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from cxrstudy.memo import remembered
from cxrstudy.scaling import ladders
from cxrstudy.scaling.fit import fit_scaling
from cxrstudy.scaling.forms import FORMS, Floats
from cxrstudy.scaling.resample import spread_of_seeds

METRICS = (  # task, label, metric: larger is better, 1 the best
    ("findings", "macro", "auroc"),
    ("lines_tubes", "macro", "auroc"),
    ("segmentation", "macro", "dice"),
    ("reports", "findings", "f1_micro"),
    ("reports", "lines_tubes", "f1_micro"),
)
NAIVE = ("last value", "log-linear")
LADDER = ["task", "label", "metric", "paradigm", "base", "data", "encoder", "samples_seen"]
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


@remembered
def extrapolations(
    table: pd.DataFrame, metrics: Sequence[tuple[str, str, str]] = METRICS, **kwargs: Any
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`extrapolate` (which takes ``kwargs``) for every ladder of the tidy table: (trials, summary).

    How noise is treated: `ladders.noise_of`.

    A ladder is the continued runs of one (task, label, metric, paradigm, base, data, encoder, samples_seen) over sizes
    and seeds; its error is 1 - value. ``trials`` has these columns before those of `extrapolate`. ``summary``: a row a
    (left_out, method): ``runs`` predicted, ``ladders`` they belong to, median_abs_error, ``coverage`` (share of runs
    that the interval held) and ``refused`` (ladders without a prediction). The runs of a ladder share its fit, so that
    coverage over few ladders is rough.
    """
    found = [
        extrapolate(n, error, **(noise | kwargs)).assign(**key)[[*LADDER, *_TRIED]]
        for key, n, error, noise in _ladders(table, metrics)
    ]
    columns = ["left_out", "method", "runs", "ladders", "median_abs_error", "coverage", "refused"]
    if not found:
        return pd.DataFrame(columns=[*LADDER, *_TRIED]), pd.DataFrame(columns=columns)
    trials, rows = pd.concat(found, ignore_index=True), []
    for (k, method), tried in trials.groupby(["left_out", "method"], sort=False):
        done = tried[tried["refused"] == ""]
        row = {
            "left_out": k,
            "method": method,
            "runs": len(done),
            "ladders": len(done.groupby(LADDER, dropna=False)),
        }
        row |= {"median_abs_error": done["off"].abs().median(), "coverage": done["held"].mean()}
        rows.append(row | {"refused": int((tried["refused"] != "").sum())})
    return trials, pd.DataFrame(rows, columns=columns).sort_values(
        "left_out", kind="stable", ignore_index=True
    )


@remembered
def choices(
    table: pd.DataFrame, metrics: Sequence[tuple[str, str, str]] = METRICS, **kwargs: Any
) -> pd.DataFrame:
    """`choose_form` (which takes ``kwargs``) for every ladder of the tidy table: its rows, a ladder's columns first."""
    found = [
        choose_form(n, error, **(noise | kwargs)).assign(**key)
        for key, n, error, noise in _ladders(table, metrics)
    ]
    columns = ["form", "held_out", "predicted", "rival", "tie", "chosen", "refused"]
    return (
        pd.concat(found, ignore_index=True)[[*LADDER, *columns]]
        if found
        else pd.DataFrame(columns=LADDER + columns)
    )


# ---- the parts -----------------------------------------------------------------------------------------------------
def _ladders(
    table: pd.DataFrame, metrics: Sequence[tuple[str, str, str]]
) -> Iterator[tuple[dict[str, Any], Floats, Floats, dict[str, Any]]]:
    """Every ladder: what names it, n, error and what a fit is told of its noise."""
    continued = ladders.continued(table) & table["value"].notna()
    for task, label, metric in metrics:
        rows = table[
            continued
            & (table["task"] == task)
            & (table["label"] == label)
            & (table["metric"] == metric)
        ]
        for key, ladder in rows.sort_values(["n_images", "seed"]).groupby(LADDER, dropna=False):
            n, error = ladder["n_images"].to_numpy(float), 1 - ladder["value"].to_numpy(float)
            yield (
                dict(zip(LADDER, key, strict=True)),
                n,
                error,
                ladders.noise_of(table, ladder, metric),
            )


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
    """Deviation (K,) of each run: as given, else as seeds or residuals show; 0 where nothing does."""
    if spread is not None:
        return spread
    try:
        return spread_of_seeds(size, y)[0] * np.sqrt(y)
    except ValueError:
        return np.zeros(len(y))


def _rms(values: Any) -> float:
    every = np.array(list(values), dtype=float)
    return float(np.sqrt(np.mean(every**2))) if len(every) else np.nan
