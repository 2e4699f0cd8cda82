"""Same-patient retrieval: what the value is, and that the record has it."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cxrstudy.evaluate.reidentification import LEAST, metric_row, patient_aurocs


def _made(n: int, strength: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features of n patients with two studies each, whose own part has a strength."""
    rng = np.random.default_rng(seed)
    patients = np.repeat([f"p{k}" for k in range(n)], 2)
    studies = np.tile(["a", "b"], n)
    own = np.repeat(rng.normal(size=(n, 8)), 2, axis=0)
    return strength * own + rng.normal(size=(2 * n, 8)), patients, studies


def test_features_without_the_patient_give_chance_and_copies_give_one() -> None:
    chance = patient_aurocs(*_made(300, 0.0)).mean()
    assert abs(chance - 0.5) < 0.03
    x, patients, studies = _made(50, 1.0)
    assert patient_aurocs(np.repeat(x[::2], 2, axis=0), patients, studies).eq(1).all()
    weak, strong = (patient_aurocs(*_made(200, s)).mean() for s in (0.5, 2.0))
    assert chance < weak < strong


def test_a_value_is_the_auroc_of_own_images_against_those_of_others() -> None:
    x, patients, studies = _made(12, 1.0)
    z = (x - x.mean(0)) / x.std(0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    expected = []
    for row in (0, 1):
        keep = (patients != "p0") | (studies != studies[row])
        expected.append(roc_auc_score(patients[keep] == "p0", (z @ z[row])[keep]))
    assert patient_aurocs(x, patients, studies)["p0"] == pytest.approx(np.mean(expected))


def test_images_of_the_same_study_do_not_count_and_one_study_is_no_query() -> None:
    x, patients, studies = _made(30, 1.0)
    assert patient_aurocs(x, patients, np.full(len(x), "a")).empty
    again = patient_aurocs(
        np.concatenate([x, x[:1]]), np.append(patients, "p0"), np.append(studies, "a")
    )
    assert len(again) == 30


def test_few_patients_have_no_row_and_the_interval_holds_the_value() -> None:
    found = patient_aurocs(*_made(LEAST, 1.0))
    (row,) = metric_row(found, 40, resamples=200, seed=0)
    assert row["low"] < row["value"] < row["high"] and row["n_patients"] == LEAST
    assert metric_row(found[1:], 38, resamples=200, seed=0) == []
    assert (
        metric_row(patient_aurocs(np.zeros((9, 0)), *[np.arange(9)] * 2), 9, resamples=9, seed=0)
        == []
    )
