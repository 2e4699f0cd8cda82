"""The linear probe by which pretraining chooses the step that it keeps, and its optimism."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cxrstudy import encoders, study
from cxrstudy.data.images import Prepared
from cxrstudy.data.probed import has_both, probed_images
from cxrstudy.evaluate.classification import Probe, fit_probe
from cxrstudy.evaluate.metrics import auroc

STRENGTHS = (0.01, 0.1, 1.0)


def probe_auroc(x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray) -> float:
    """Return the macro AUROC on validation images of a probe fitted on training images.

    Args:
        x, x_val: features (N, C) and (M, C).
        y, y_val: labels (N, L) and (M, L) in {0, 1, NaN}; those of one class only are left out.
    """
    return _fitted(x, y, x_val, y_val)[1](x_val, y_val)


def optimism(encoder: str, prepared: Prepared, folder: str | Path) -> dict[str, Any]:
    """Return the validation score of an encoder's kept step, and the same probe's on test patients.

    Their difference is what choosing the best step on validation patients flattered. Empty if the
    last step was kept, or if the step was chosen on another data run than ``folder``.
    """
    where = encoders.encoder_folder(study.resolve(encoder)) if encoder else None
    info = encoders.facts_of(where)["info"] if where else {}
    if "kept_step" not in info or info["data"] != Path(folder).name:
        return {}
    model = encoders.load_encoder(encoder)

    def features(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            batches = torch.from_numpy(images).split(128)
            return torch.cat([model.pool(model.normalise(x)).float() for x in batches]).numpy()

    train, validation = (probed_images(prepared, name) for name in ("train", "validation"))
    test = probed_images(prepared, "test", most=4 * len(validation[0]))
    found = _fitted(features(train[0]), train[1], features(validation[0]), validation[1])
    score, chosen = found[1](features(test[0]), test[1]), info["validation_auroc"]
    return {
        "kept_step": info["kept_step"],
        "kept_validation_auroc": chosen,
        "kept_test_auroc": score,
        "kept_optimism": chosen - score,
    }


def _fitted(
    x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray
) -> tuple[Probe, Callable[[np.ndarray, np.ndarray], float]]:
    """Return a probe, and the macro AUROC that it has on features and labels of other images."""
    both = has_both(y, y_val)
    probe = fit_probe(x, y[:, both], strengths=STRENGTHS, x_val=x_val, y_val=y_val[:, both])

    def score(features: np.ndarray, labels: np.ndarray) -> float:
        return float(np.nanmean(auroc(labels[:, both], probe.decision_function(features))))

    return probe, score
