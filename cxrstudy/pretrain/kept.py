"""Which weights a run keeps: of its last step, or of the best one by a linear probe.

RAD-DINO's public weights are step 35,000 of 100,000, chosen by linear probing (its model card).
The probe is fitted on training patients and scored on validation patients, never on test patients.
The best of several scores is optimistic, so a test score must judge the step that is kept.
"""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from cxrstudy import study
from cxrstudy.data.images import Prepared
from cxrstudy.data.probed import has_both, probed_images
from cxrstudy.pretrain.build import Run
from cxrstudy.pretrain.monitor import pooled_features

SHARE = 0.03  # of the run's time, at most
PROBES = 20  # in a run, at most, if their interval is not given
# features (N, C) and labels (N, L) of training images, then of validation images -> a number
Probe = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], float]


def choose_weights(run: Run) -> None:
    """Put the weights of this step into the model as they would be kept.

    They are averaged if ``ema``, and mixed with the base's if asked. The mix is WiSE-FT (Wortsman
    et al., CVPR 2022), which keeps what narrow training would lose.
    """
    model = run.objective.modules_to_save()
    if run.ema_model is not None:
        model.load_state_dict(run.ema_model.module.state_dict())
    if run.base_state:
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(run.base_state[name].to(tensor.device), 1 - run.p.wise_ft_alpha)


class Chooser:
    """Probe the encoder during a run with ``keep="best"``, and hold the best weights.

    Its results are in ``run.probes`` and ``run.best``, which are saved with every checkpoint. Which
    steps are probed depends on the parameters and the data alone, so a resumed run probes the same.

    Raises:
        study.StudyError: the data cannot tell which step is best.
    """

    def __init__(self, run: Run, probe: Probe | None):
        if probe is None:
            raise study.StudyError("keep: 'best' needs a probe, as notebooks/pretrain.ipynb gives")
        self.run, self.probe = run, probe
        self.train, self.validation = _images(run.p, run.prepared, run.patients)
        images = len(self.train[0]) + len(self.validation[0])
        # an image costs a step three times what it costs a probe; the fit costs the probe as much
        # again, and the rest is a margin
        least = math.ceil(2.5 * images / (3 * SHARE * run.p.batch_size))
        self.every = run.p.probe_steps or max(least, math.ceil(run.steps / PROBES))

    def due(self, step: int) -> bool:
        """Return whether the weights after ``step`` steps are probed; the last ones always are."""
        return step % self.every == 0 or step == self.run.steps

    def check(self, step: int) -> None:
        """Probe the weights after ``step`` steps, and hold them if they are the best so far."""
        run, started = self.run, time.monotonic()
        model = run.objective.modules_to_save()
        live = {name: w.detach().clone() for name, w in model.state_dict().items()}
        choose_weights(run)
        (images, y), (images_val, y_val) = self.train, self.validation
        x, x_val = (
            pooled_features(run.objective.encoder, part).numpy() for part in (images, images_val)
        )
        if np.isfinite(x).all() and np.isfinite(x_val).all():  # otherwise the run ends soon
            score = self.probe(x, y, x_val, y_val)
            if score > max((found["score"] for found in run.probes), default=-math.inf):
                run.best = {
                    name: w.detach().cpu().clone() for name, w in model.state_dict().items()
                }
            point = {"step": step, "samples_seen": run.edges[step], "score": score}
            run.probes.append(point | {"seconds": time.monotonic() - started})
        model.load_state_dict(live)

    def keep(self, seconds: float) -> dict[str, Any]:
        """Put the best weights into the model; return what the record says of the choice.

        Args:
            seconds: of the whole run.
        """
        run = self.run
        if not run.best:  # no features were finite, which the monitor reports
            return {}
        run.objective.modules_to_save().load_state_dict(run.best)
        best = max(run.probes, key=lambda point: point["score"])
        spent = sum(point["seconds"] for point in run.probes)
        if len(run.probes) == 1 and run.steps > 1:
            warnings.warn(
                f"keep: only the last step was probed, because more than one probe in {run.steps} "
                f"steps would take over {SHARE:.0%} of the time; give probe_steps",
                stacklevel=2,
            )
        return {
            "kept_step": best["step"],
            "validation_auroc": best["score"],
            "last_validation_auroc": run.probes[-1]["score"],
            "probe_steps": self.every,
            "probe_images": [len(self.train[0]), len(self.validation[0])],
            "probe_time_share": spent / seconds,
            "kept_by": f"largest of {len(run.probes)} macro AUROCs of a linear probe on validation "
            "patients: optimistic, so the test score of classify judges it",
        }


def _images(p: study.Pretrain, prepared: Prepared, patients: set[str]) -> tuple[Any, Any]:
    """Return images and labels of the probe: of training patients, and of validation patients."""
    splits, remedy = set(prepared.manifest["split"]), "or set keep='last'"
    for split in ("train", "validation"):
        if split not in splits:
            raise study.StudyError(
                "keep: 'best' fits a probe on split 'train' and scores it on 'validation'; "
                f"{p.data} has no {split!r}, only {sorted(splits)}: prepare it with both, {remedy}"
            )
    if "validation" in p.splits:
        raise study.StudyError(
            "keep: 'best' chooses on the validation patients, so they cannot be in splits too: "
            f"leave 'validation' out of splits={p.splits}, {remedy}"
        )
    train = probed_images(prepared, "train")
    validation = probed_images(prepared, "validation", without=patients)
    if not has_both(train[1], validation[1]).any():
        raise study.StudyError(
            f"keep: 'best' needs a label with positives and negatives in 'train' and 'validation'; "
            f"{p.data} has none among {len(train[0])} and {len(validation[0])} images of patients "
            f"that the encoder was not trained on: prepare it with labels, {remedy}"
        )
    return train, validation
