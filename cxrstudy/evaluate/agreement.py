"""How far labels and readers agree: precision and recall of a stratified sample, and kappa.

Each of n reports read in a stratum of N counts N / n times. Intervals are exact (Clopper-Pearson)
in each stratum, joined by simulation. So a stratum where readers found nothing still widens them,
and one that was read whole does not. A bootstrap has no width there; Jeffreys' prior held rare
errors too rarely. Patients are not resampled: reports were drawn, not patients.
"""

import numpy as np
import pandas as pd

MARKS = ("present", "absent", "uncertain", "cannot tell")
METRICS = ("precision", "recall", "specificity", "f1", "npv")
DRAWS = 4_000  # of each simulation


def estimate(
    sample: pd.DataFrame, is_present: np.ndarray, values: np.ndarray, seed: int = 0
) -> dict[str, float]:
    """Return ``METRICS`` of one label for the whole data set, each with ``_low`` and ``_high``.

    Args:
        sample: rows of the label: ``status``, ``N``, ``n``.
        is_present: bool (rows,), what the reader says.
        values: (4,), the label's value of each status: 1, 0 or NaN.
        seed: of the simulation.
    """
    sizes, read, found = np.zeros((3, 4))
    for code, rows in sample.groupby("status"):
        sizes[code], read[code] = rows["N"].iloc[0], len(rows)
        found[code] = is_present[sample["status"].to_numpy() == code].sum()
    rng, said = np.random.default_rng(seed), values == 1
    fewest = rng.beta(np.maximum(found, 1e-9), read - found + 1, (DRAWS, 4))
    most = rng.beta(found + 1, np.maximum(read - found, 1e-9), (DRAWS, 4))
    unread = (sizes - read).astype(int)
    # every metric rises with positives among those mined as present, and falls with the others
    worst = found + rng.binomial(unread, np.where(said, fewest, most))
    best = found + rng.binomial(unread, np.where(said, most, fewest))
    low, high = _metrics(worst, sizes, values), _metrics(best, sizes, values)
    out: dict[str, float] = {}
    for name, value in _metrics(found * sizes / np.maximum(read, 1), sizes, values).items():
        ends = [np.nan, np.nan]
        if np.isfinite(value):
            ends = [np.nanquantile(low[name], 0.025), np.nanquantile(high[name], 0.975)]
        out |= {name: float(value), f"{name}_low": float(ends[0]), f"{name}_high": float(ends[1])}
    return out


def _metrics(found: np.ndarray, sizes: np.ndarray, values: np.ndarray) -> dict[str, np.ndarray]:
    """Return ``METRICS`` from reports that a reader calls present (..., 4), of sizes (4,)."""
    said, denied = values == 1, values == 0
    true, positive = found[..., said].sum(-1), found.sum(-1)
    mined, absent = sizes[said].sum(), sizes[denied].sum()
    negative = sizes.sum() - positive
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = (
            true / mined,
            true / positive,
            (negative - (mined - true)) / negative,
            2 * true / (mined + positive),
            (absent - found[..., denied].sum(-1)) / absent,
        )
    return dict(zip(METRICS, ratios, strict=True))


def cohens_kappa(counts: np.ndarray) -> np.ndarray:
    """Return Cohen's kappa (...) of tables (..., K, K); NaN where chance agrees everywhere."""
    shares = counts / counts.sum((-2, -1), keepdims=True)
    agreed = np.trace(shares, axis1=-2, axis2=-1)
    chance = (shares.sum(-2) * shares.sum(-1)).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance < 1 - 1e-12, (agreed - chance) / (1 - chance), np.nan)


def kappa(one: pd.Series, two: pd.Series, seed: int = 0) -> dict[str, float]:
    """Return Cohen's kappa of two readers over the four marks, plain, not weighted by the design.

    The interval is of the posterior of the 16 cells (Dirichlet, prior mass 1): it has a width also
    where the readers agree everywhere.
    """
    code = [series.map(MARKS.index).to_numpy() for series in (one, two)]
    table = np.bincount(code[0] * 4 + code[1], minlength=16).astype(float)
    drawn = np.random.default_rng(seed).dirichlet(table + 1 / 16, DRAWS).reshape(-1, 4, 4)
    value = float(cohens_kappa(table.reshape(4, 4)))
    ends = np.nanquantile(cohens_kappa(drawn), [0.025, 0.975])
    low, high = (min(ends[0], value), max(ends[1], value)) if value == value else (np.nan,) * 2
    agreed = float(table.reshape(4, 4).trace() / table.sum())
    return {"kappa": value, "kappa_low": low, "kappa_high": high, "agreement": agreed}
