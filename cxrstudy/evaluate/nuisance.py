"""What else do frozen features hold? Linear probes of patient and acquisition factors.

A factor that is easy to read from the features is no fault of its own. It is a possible shortcut,
and beside the labels it says what the encoder has learned instead.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxrstudy.data.synthetic.sampling import acquisition
from cxrstudy.evaluate.classification import fit_probe
from cxrstudy.evaluate.metrics import auroc, bootstrap, interval, resampled_sums

Floats = NDArray[np.float64]
Decomposed = tuple[list[Floats], Floats, Floats, Floats]  # features of each part; U, S, Vh
TASK = "nuisance"
MEASURED = ("age", "habitus", "inspiration", "rotation", "exposure")  # R2; all others AUROC
LEAST = 20  # images of either class, in training and in test


def factors(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the known factors of the images of a manifest: numbers, or 0 and 1, or NaN.

    Age, sex and view are the manifest's. Synthetic images add what only their maker knows.
    Laterals are left out (NaN): their factors have other meanings.
    """
    view = manifest.get("view", pd.Series("", manifest.index)).fillna("")
    found = pd.DataFrame(index=manifest.index)
    if "age" in manifest:
        found["age"] = pd.to_numeric(manifest["age"], errors="coerce")
    if "sex" in manifest:
        found["male"] = manifest["sex"].map({"M": 1.0, "F": 0.0})
    found["AP"] = view.map({"AP": 1.0, "PA": 0.0})
    made = manifest["path"].str.extract(r"^synthetic:(?P<site>[^:]+):(?P<seed>\d+):(?P<index>\d+)$")
    for (site, seed), rows in made.dropna().groupby(["site", "seed"]):
        if site.startswith(("public-", "study")):  # a pool is many institutions
            known = acquisition(rows["index"].astype(int), institution=site, seed=int(seed))
            scanner = known.pop("scanner")
            for name, values in known.items():
                found.loc[rows.index, name] = values
            for name in np.unique(scanner):
                found.loc[rows.index, f"scanner {name}"] = (scanner == name).astype(float)
    return found.mask(view == "LATERAL").dropna(axis=1, how="all")


def metric_rows(
    x: Floats,
    known: pd.DataFrame,
    split: list[NDArray[np.int64]],
    patients: NDArray[Any],
    *,
    strengths: list[float],
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return rows of the record: R2 of numbers, AUROC of classes, on test images.

    Args:
        x: Features (N,F) of all images.
        known: Factors (N,K), as `factors` returns them.
        split: Rows of training, validation, where the L2 penalty is chosen, and test.
        patients: Ids (n,) of the test rows, which are resampled whole.
        strengths: L2 penalties, relative to the mean variance of the features.
    """
    rows, decomposed = [], dict[bytes, Decomposed]()
    for name in known:
        y = known[name].to_numpy(np.float64)
        parts = [part[~np.isnan(y[part])] for part in split]
        here = patients[~np.isnan(y[split[2]])]
        few = min((y[part] == v).sum() for part in (parts[0], parts[2]) for v in (0, 1))
        if name in MEASURED and len(parts[2]) >= LEAST and np.ptp(y[parts[2]]) > 0:
            same = b"".join(part.tobytes() for part in parts)
            if same not in decomposed:  # mostly all factors are known of the same images
                decomposed[same] = _decompose(x, parts)
            targets = [y[part] for part in parts]
            found = _r2(decomposed[same], targets, here, strengths, resamples, seed)
            metric, value, draws = "r2", *found
        elif name not in MEASURED and few >= LEAST:
            own = [y[part][:, None] for part in parts]
            how: dict[str, Any] = {"x_val": x[parts[1]], "y_val": own[1], "strengths": strengths}
            score = fit_probe(x[parts[0]], own[0], **how).decision_function(x[parts[2]])
            draw: dict[str, Any] = {"groups": here, "resamples": resamples, "seed": seed}
            metric, value = "auroc", float(auroc(own[2], score)[0])
            draws = bootstrap(auroc, own[2], score, **draw)[:, 0]
        else:
            continue
        low, high = (float(end) for end in interval(draws))
        row = {"task": TASK, "label": name, "metric": metric, "value": value}
        counts = {"n": len(here), "n_patients": len(np.unique(here))}
        positives = int((y[parts[2]] == 1).sum()) if metric == "auroc" else len(here)
        rows.append(row | {"low": low, "high": high, "positives": positives} | counts)
    return rows


def _decompose(x: Floats, parts: list[NDArray[np.int64]]) -> Decomposed:
    """Return the standardised features of each part, and the training part's SVD."""
    mean, spread = x[parts[0]].mean(0), x[parts[0]].std(0)
    z = [(x[part] - mean) / np.where(spread > 0, spread, 1) for part in parts]  # (n, F) each
    return z, *np.linalg.svd(z[0], full_matrices=False)


def _r2(
    decomposed: Decomposed,
    targets: list[Floats],
    patients: NDArray[Any],
    strengths: list[float],
    resamples: int,
    seed: int,
) -> tuple[float, Floats]:
    """Return the R2 of a ridge regression on test rows, and that of each resample (R,)."""
    (z, left, values, right), (train, validation, test) = decomposed, targets
    centre = train.mean()
    within = left.T @ (train - centre)  # (min(n, F),)

    def predict(strength: float, features: Floats) -> Floats:
        shrunk = values / (values**2 + strength * len(train)) * within
        return centre + features @ (right.T @ shrunk)

    errors = [((validation - predict(s, z[1])) ** 2).mean() for s in strengths]
    residual = test - predict(strengths[int(np.argmin(errors))], z[2])
    cells = np.stack([np.ones(len(test)), test, test**2, residual**2], axis=1)
    sums = resampled_sums(cells, groups=patients, resamples=resamples, seed=seed)  # (R, 4)
    whole = np.concatenate([cells.sum(0)[None], sums])
    values_of = 1 - whole[:, 3] / (whole[:, 2] - whole[:, 1] ** 2 / whole[:, 0])
    return float(values_of[0]), values_of[1:]
