"""The words of the analysis: kinds of contrasts, verdicts, margins; and selections of its tables.

Nothing here resamples. The book's pages import this module and no other of ``scaling``.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

# arms: what an encoder is; the last two come after the name of a paradigm
BASE, BASELINE = "base model", "baseline"
SEEN, OUT_OF_DOMAIN = " on images already seen", " out-of-domain"
# kinds of contrasts
GAIN, GROWTH, SLOPE = "gain over base model", "largest - smallest subset", "per 10x data"
OVER_SEEN = "gain over more steps on images already seen"
OVER_OTHERS = "gain over out-of-domain images"
OVER_BASELINE, PARADIGMS = "gain over best baseline", "difference of paradigms"
OVER_RANDOM = "base model - random weights"
# verdicts on a contrast
BETTER, WORSE, EQUIVALENT, UNTOLD = "better", "worse", "equivalent", "undecided"
ONE_SEED, UNTESTABLE = "undecided (one seed)", "not testable"
# verdicts on a claim
SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
ONE_BASE = " (one base)"
VERDICTS: tuple[str, ...] = (SUPPORTED, SUPPORTED + ONE_BASE, CONTRADICTED, CONTRADICTED + ONE_BASE)
VERDICTS += (INCONCLUSIVE, UNTESTABLE)
# what an interval includes
BOTH, PATIENTS = "patients and seeds", "patients only"
BORROWED = "patients, and seeds by the variance of the paradigm's other runs"
# smallest effect of interest, and bounds of equivalence, in a metric's units
MARGIN = {"auroc": 0.005, "auprc": 0.005, "dice": 0.01, "cl_dice": 0.01}


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Return p values after Holm's step-down correction (1979); NaN stays NaN, not counted."""
    raw = np.asarray(p, dtype=np.float64)
    out = np.full(raw.shape, np.nan)
    order = np.argsort(raw, kind="stable")[: int((~np.isnan(raw)).sum())]
    steps = raw[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return out


def with_holm(ledgers: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return ledgers of claims with ``p_holm``, corrected over all of their claims together."""
    if not ledgers:
        return {}
    p = [rows["p"].to_numpy(float) for rows in ledgers.values()]
    parts = np.split(holm(np.concatenate(p)), np.cumsum([len(own) for own in p])[:-1])
    return {
        name: rows.assign(p_holm=own)
        for (name, rows), own in zip(ledgers.items(), parts, strict=True)
    }


def changes(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the claims of every setting beside the reference setting.

    Args:
        ledger: as ``sensitivity.by_setting`` returns it.

    Returns:
        Columns id, claim, factor, setting, effect, low, high, verdict, reference_verdict, differs
        (both were tested and the verdicts differ) and reverses (the effects have opposite signs and
        neither interval includes 0).
    """
    base = ledger[ledger["reference"]].drop_duplicates("id")
    base = base[["id", "low", "high", "verdict"]].rename(
        columns={"low": "base_low", "high": "base_high", "verdict": "reference_verdict"}
    )
    rows = ledger[~ledger["reference"]].merge(base, on="id", how="left")
    tested = ~(rows[["verdict", "reference_verdict"]] == UNTESTABLE).any(axis=1)
    rows["differs"] = tested & (rows["verdict"] != rows["reference_verdict"])
    rows["reverses"] = ((rows["low"] > 0) & (rows["base_high"] < 0)) | (
        (rows["high"] < 0) & (rows["base_low"] > 0)
    )
    kept = ["id", "claim", "factor", "setting", "effect", "low", "high", "verdict"]
    return rows[[*kept, "reference_verdict", "differs", "reverses"]]


def crossovers(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the subset size from which each curve is better than its base model.

    Args:
        rows: as ``contrasts.all_contrasts`` returns them.

    Returns:
        Columns task, metric, data, start, one (paradigm), smallest, largest, sizes, ``first`` (the
        smallest size with verdict better) and ``holds`` (the smallest from which every larger size
        is better); NaN if there is no such size.
    """
    return _turning(rows[rows["kind"] == GAIN], ["task", "metric", "data", "start", "one"])


def overtakes(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the same as ``crossovers`` for paradigms: where ``one`` is better than ``other``."""
    ahead = rows[rows["kind"] == PARADIGMS]
    swapped = {BETTER: WORSE, WORSE: BETTER}
    other_way = ahead.assign(
        one=ahead["other"], other=ahead["one"], verdict=ahead["verdict"].replace(swapped)
    )
    both = pd.concat([ahead, other_way], ignore_index=True)
    return _turning(both, ["task", "metric", "data", "one", "other"])


def _turning(rows: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    found = []
    for names, own in rows.sort_values("n_images").groupby(key, sort=False):
        sizes, better = own["n_images"].to_numpy(float), (own["verdict"] == BETTER).to_numpy()
        stays = np.logical_and.accumulate(better[::-1])[::-1]
        row = dict(zip(key, names, strict=True))
        row |= {"smallest": sizes[0], "largest": sizes[-1], "sizes": len(sizes)}
        for name, which in (("first", better), ("holds", stays)):
            row[name] = float(sizes[which][0]) if which.any() else np.nan
        found.append(row)
    return pd.DataFrame(found, columns=[*key, "smallest", "largest", "sizes", "first", "holds"])
