"""Does an encoder recognise patients? Retrieval of other studies of the same patient.

Features of x-rays can identify a patient without any name. The record of every probe says how well:
features are not anonymous.
"""

from typing import Any

import numpy as np
import pandas as pd

TASK, LABEL = "same_patient", "other studies"
LEAST = 20  # patients with two studies; with fewer no value is given
MOST, BLOCK = 5000, 512  # test images that are compared; queries at a time


def patient_aurocs(x: np.ndarray, patients: np.ndarray, studies: np.ndarray) -> pd.Series:
    """Return one AUROC a patient with two studies: are own images nearer than those of others?

    Each image of such a patient is a query. Its positives are the patient's images of other
    studies, its negatives all images of other patients; images of its own study do not count.
    Images are ranked by the cosine of standardised features. The value of a patient is the mean
    over queries; 0.5 is chance.

    Args:
        x: Features (N,F) of test images.
        patients, studies: Ids (N,); studies need only be unique within a patient.

    Returns:
        Values by patient; empty if none has two studies.
    """
    if not x.shape[1]:
        return pd.Series(dtype=float)
    whole = pd.unique(np.asarray(patients))
    if len(x) > MOST:  # of very large test sets the first patients, in a fixed random order
        whole = np.random.default_rng(0).permutation(np.sort(whole))
        sizes = pd.Series(patients).value_counts()[whole].to_numpy().cumsum()
        rows = np.isin(patients, whole[sizes <= MOST])
        x, patients, studies = x[rows], patients[rows], studies[rows]
    spread = x.std(0)
    z = ((x - x.mean(0)) / np.where(spread > 0, spread, 1)).astype(np.float32)
    z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    names, whose = np.unique(patients, return_inverse=True)  # numbers are compared faster
    exams = pd.factorize(studies)[0]
    values: dict[Any, list[float]] = {}
    for start in range(0, len(z), BLOCK):
        for row, near in enumerate(z[start : start + BLOCK] @ z.T, start):  # (N,) each
            own = whose == whose[row]
            positives = near[own & (exams != exams[row])]
            negatives = np.sort(near[~own])
            if len(positives) and len(negatives):
                below = np.searchsorted(negatives, positives, "left")
                ties = np.searchsorted(negatives, positives, "right") - below
                auroc = ((below + ties / 2) / len(negatives)).mean()
                values.setdefault(names[whose[row]], []).append(float(auroc))
    return pd.Series({name: np.mean(each) for name, each in values.items()}, dtype=float)


def metric_row(by_patient: pd.Series, n_images: int, *, resamples: int, seed: int) -> list[dict]:
    """Return the row of the record, or none with fewer than ``LEAST`` patients of two studies.

    The interval resamples the patients that are looked for; ``positives`` counts them too.
    """
    n = len(by_patient)
    if n < LEAST:
        return []
    draws = np.random.default_rng(seed).integers(n, size=(resamples, n))
    means = by_patient.to_numpy()[draws].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return [
        {"task": TASK, "label": LABEL, "metric": "auroc", "value": float(by_patient.mean())}
        | {"low": float(low), "high": float(high), "n": n_images, "positives": n, "n_patients": n}
    ]
