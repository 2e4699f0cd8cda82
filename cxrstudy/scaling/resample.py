"""The bootstrap over test patients and runs together: what a ladder's curve would be for other patients, other seeds.

Beside it stands the profile likelihood of `fit.ScalingFit`, which takes the test patients as given: sampling other ones
moves a curve as a whole, which no scatter about it can show. The two answer two questions, and how often each holds is
measured (``book/recorded/coverage.csv``, "other patients"). The book quotes the profile interval for **exponents**,
which a shift of the whole curve hardly touches, and for curves **on these test patients**: there it holds as it says
and is the narrower. For the height of a curve **in the population that the patients come from** it quotes
this bootstrap, because there the profile band holds too seldom.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from cxrstudy.evaluate.metrics import interval
from cxrstudy.memo import remembered
from cxrstudy.scaling import ladders
from cxrstudy.scaling.fit import fit_scaling
from cxrstudy.scaling.forms import FREE, Floats, Runs, within_bounds

KEY = ["task", "paradigm", "base", "data"]
HELD = ("encoder", "samples_seen")  # beside KEY, what all runs of a ladder share
FORMS = ("power", "power_floor")  # with one exponent to search
_GRID = 400


@remembered
def resample_ladders(
    table: pd.DataFrame,
    *,
    n_images: ArrayLike | None = None,
    metric: str = "auroc",
    form: str = "power",
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Exponents and curves of every ladder of the tidy table with both kinds of intervals: (fits, bands).

    ``fits``: a row a ladder: task, paradigm, base, data, form, sizes, seeds (the most at a size), runs, exponent,
    profile_low, profile_high, low, high (this bootstrap's) and ``refused``, the reason why there is no fit. ``bands``:
    a row a (ladder, n): n_images, value of the fitted metric, profile_low, profile_high, low, high. ``n_images`` are
    the sizes asked for (default: 40 from the ladder's first to four times its last).

    In each resample the test patients are drawn (`ladders.resampled`: the same ones for all runs of a task), then runs
    (`draw_runs`), and all curves are fitted again (`refit`). ValueError: a form that is not in ``FORMS``; runs judged
    on different patients.
    """
    if form not in FORMS:
        raise ValueError(
            f"form must be one of {', '.join(FORMS)} to be resampled, got {form!r}: use fit_scaling"
        )
    ladders.same_patients(table)
    fits: list[dict[str, Any]] = []
    bands: list[pd.DataFrame] = []
    for key, ladder in ladders.points(table, metric).groupby([*KEY, *HELD], dropna=False):
        n, rng = ladder["n_images"].to_numpy(float), np.random.default_rng(seed)
        row = dict(zip(KEY, key[: len(KEY)], strict=True)) | {
            "form": form,
            "sizes": len(np.unique(n)),
        }
        row |= {"seeds": int(ladder["n_images"].value_counts().max()), "runs": len(ladder)}
        try:
            folders = ladder["folder"].astype(str)
            names = ladders.judged_labels(table, key[0])
            kept = [ladders.resampled(folder, names, metric, resamples, seed) for folder in folders]
            error, draws = (
                1 - np.array([value for value, _ in kept]),
                1 - np.stack([d for _, d in kept], axis=1),
            )
            fit = fit_scaling(n, error, form=form, **ladders.noise_of(table, ladder, metric))
            many = refit(fit.runs, draw_runs(n, error, draws, rng, form=form))
        except (ValueError, FileNotFoundError) as reason:
            fits.append(row | {"refused": str(reason)})
            continue
        asked = (
            np.geomspace(n.min(), n.max() * 4, 40)
            if n_images is None
            else np.atleast_1d(n_images).astype(float)
        )
        ends = (fit.exponent_interval(level), interval(many[0], level))
        names = ("profile_low", "profile_high", "low", "high")
        row |= dict(zip(names, (float(v) for pair in ends for v in pair), strict=True))
        fits.append(row | {"exponent": fit.exponent, "refused": ""})
        curves = fit.runs.curve([v[:, None] for v in many], asked)
        pairs = [pair[::-1] for pair in (fit.interval(asked, level), interval(curves, level))]
        band = {"n_images": asked, "value": 1 - fit.predict(asked)}
        band |= {
            name: 1 - v for name, v in zip(names, (v for pair in pairs for v in pair), strict=True)
        }
        bands.append(pd.DataFrame({name: row[name] for name in KEY} | band))
    columns = [
        *KEY,
        "form",
        "sizes",
        "seeds",
        "runs",
        "exponent",
        "profile_low",
        "profile_high",
        "low",
        "high",
    ]
    none = pd.DataFrame(
        columns=[*KEY, "n_images", "value", "profile_low", "profile_high", "low", "high"]
    )
    return pd.DataFrame(fits).reindex(columns=[*columns, "refused"]), pd.concat(
        bands
    ) if bands else none


def draw_runs(
    n: Floats, error: Floats, draws: Floats, rng: np.random.Generator, *, form: str = "power"
) -> Floats:
    """Errors (R, K) of K runs drawn anew in each of R resamples of the test patients.

    ``n`` (K,), ``error`` (K,) as measured, ``draws`` (R, K) on the resampled patients, which move all runs and each of
    them. Within each n the deviations of its S runs from their mean are drawn with replacement, grown by
    sqrt(S / (S - 1)), without which two or three seeds would spread too little. Where an n has one run, its deviation
    is drawn from a normal of the pooled spread of seeds at the other sizes (in proportion to the root of the error);
    where no n has two, of the residuals about the fitted curve. What sampled patients do to each run apart from all is
    part of that spread and in ``draws`` too: it is counted once. As the spread is itself uncertain, each resample draws
    its level (chi^2 of the degrees of freedom behind it). ValueError: one run an n and no degree of freedom left.
    """
    members = [np.flatnonzero(n == size) for size in np.unique(n)]
    spread, dof = spread_of_seeds(n, error, form)
    moved = draws - error
    own = (
        (moved - moved.mean(axis=1, keepdims=True)).var(axis=0).mean() * len(n) / max(len(n) - 1, 1)
    )
    total = spread**2 * error.mean()
    level = np.sqrt(
        np.maximum(dof / rng.chisquare(dof, (len(draws), 1)) - own / max(total, 1e-300), 0)
    )
    drawn = np.empty_like(draws)
    for runs in members:
        middle, shape = error[runs].mean(), (len(draws), len(runs))
        if len(runs) == 1:
            apart = spread * np.sqrt(middle) * rng.normal(size=shape)
        else:
            grown = (error[runs] - middle) * np.sqrt(len(runs) / (len(runs) - 1))
            apart = grown[rng.integers(len(runs), size=shape)]
        drawn[:, runs] = middle + moved[:, runs] + level * apart
    return np.maximum(drawn, 1e-9)


def spread_of_seeds(n: Floats, error: Floats, form: str = "power") -> tuple[float, int]:
    """Deviation of runs at one n over the root of their error, pooled over all n (K,), and its degrees of freedom.

    Where no n has two runs: of the residuals about the fitted curve of ``form``. ValueError: not even those say.
    """
    members = [np.flatnonzero(n == size) for size in np.unique(n)]
    dof = len(n) - len(members)
    if dof:
        apart = [
            (error[runs] - error[runs].mean()) / np.sqrt(error[runs].mean()) for runs in members
        ]
        return float(np.sqrt(np.sum(np.concatenate(apart) ** 2) / dof)), dof
    dof = len(n) - FREE[form]
    if dof < 1:
        raise ValueError(
            f"one run at each of {len(n)} n leaves nothing to judge the spread of seeds by: add seeds"
        )
    runs = Runs(form, 0.5, n, error, np.sqrt(error))
    curve = runs.curve([v[:, None] for v in refit(runs, error[None])], n)[0]
    return float(np.sqrt(np.sum((error - curve) ** 2 / curve) / dof)), dof


def refit(runs: Runs, errors: Floats) -> tuple[Floats, ...]:
    """The law (b, a, c, b0, d) of each of ``errors`` (R, K), measured at ``runs.n`` and weighted by ``runs.spread``.

    Variable projection for all at once: on one grid of exponents every sum of squares is a matrix product; a parabola
    through the best three nodes takes the exponent between them. Of a power law, with a floor or without.
    """
    low, high = runs.searched
    node = np.linspace(low, high, _GRID)
    best_of, _ = _solve(runs, node, errors, "rk,mk->rm")
    best = best_of.argmax(axis=1)
    row, inside = np.arange(len(errors)), np.clip(best, 1, _GRID - 2)
    before, at, after = (best_of[row, inside + k] for k in (-1, 0, 1))
    bent = 2 * at - before - after
    aside = np.where(
        (best == inside) & (bent > 0),
        (after - before) / (2 * np.where(bent > 0, bent, 1)),
        best - inside,
    )
    exact = node[inside] + aside[:, None] * (node[1] - node[0])
    return runs.parameters(exact, _solve(runs, exact, errors, "rk,rk->r")[1])


def _solve(runs: Runs, node: Floats, errors: Floats, each: str) -> tuple[Floats, list[Floats]]:
    """How much of the weighted sum of squares each node explains, and the coefficients: (R, M) where ``each`` of errors
    (R, K) meets every node, (R,) where it meets its own."""
    weight, column = runs.spread**-2, runs.columns(node, runs.n)[1][0]
    aa, ay = column**2 @ weight, np.einsum(each, errors * weight, column)
    best = [np.maximum(ay / aa, 0)]
    if runs.form == "power":
        return best[0] * (2 * ay - best[0] * aa), best
    ac, cc, cy = column @ weight, weight.sum(), (errors @ weight).reshape(-1, *[1] * (ay.ndim - 1))
    a, c = best = within_bounds([best[0], np.maximum(cy / cc, 0) + 0 * ay], (aa, ac, cc), [ay, cy])
    return a * (2 * ay - a * aa) + c * (2 * cy - c * cc) - 2 * a * c * ac, best
