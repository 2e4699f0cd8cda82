"""What a run leaves: an encoder with the patients it has seen, what it is, and how far its weights went."""

import math
import shutil
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cxrstudy import modelcard, study
from cxrstudy.data import images as stores
from cxrstudy.files import write_text
from cxrstudy.results import CHANCE, LEAST_MOVED


def finish(objective: Any, out: Path, patients: set[str]) -> None:
    """Save the encoder; patients first, as an encoder without them would pass every check for leaks."""
    shutil.rmtree(out / "encoder", ignore_errors=True)  # nothing of another run may stay beside it
    (out / "encoder").mkdir()
    write_text(out / "encoder" / "patients.txt", "\n".join(sorted(patients)))
    objective.save(out / "encoder")
    modelcard.model_card(out / "encoder")


def subject_of(p: study.Pretrain, prepared: stores.Prepared, encoder: str) -> dict[str, Any]:
    """What a record's numbers are about."""
    return {
        "paradigm": p.paradigm,
        "n_images": p.n_images,
        "samples_seen": p.samples_seen,
        "seed": p.seed,
        "institution": prepared.info["institution"],
        "generator": prepared.info.get("generator"),
        "kind": prepared.info["kind"],
        "data": Path(p.data).name,
        "encoder": encoder,
        "base": Path(p.base).parent.name if Path(p.base).name == "encoder" else Path(p.base).name,
    }


def moved(before: list[Tensor], encoder: nn.Module) -> float:
    """How far the weights went, as a share of their length."""
    after = [w.detach().cpu() for w in encoder.parameters()]
    pairs = list(zip(before, after, strict=True))
    far, long = (
        sum(float(v.square().sum()) for v in vs) for vs in ([a - b for b, a in pairs], before)
    )
    return math.sqrt(far / max(long, 1e-12))


def how_far(p: study.Pretrain, loss: float, far: float) -> dict[str, Any]:
    """Return what a record says of how far a run has come, and warn where that is hardly at all."""
    facts: dict[str, Any] = {}
    if p.paradigm in ("clip", "unicl"):
        facts["loss_over_chance"] = loss_over_chance(p, loss)
    if why := hardly_trained(p, loss, far):
        warnings.warn(f"hardly trained: {why}", stacklevel=3)
        facts["hardly_trained"] = why
    return facts


def loss_over_chance(p: study.Pretrain, loss: float) -> float:
    """Return a contrastive loss as a share of that of guessing, log(batch size): 1 means that nothing was learned."""
    return loss / math.log(p.batch_size)


def hardly_trained(p: study.Pretrain, loss: float, far: float) -> str:
    """Return why a run has hardly trained, in words for whoever reads its scores; empty where it has.

    ``clip`` and ``unicl`` end near the loss of guessing; ``dinov2``, whose loss has no such mark, hardly leaves its
    base (``far``: see ``moved``).
    """
    if p.paradigm in ("clip", "unicl") and loss_over_chance(p, loss) > CHANCE:
        return (
            f"its loss, {loss:.2f}, is that of guessing, log(batch_size) = {math.log(p.batch_size):.2f}: images and "
            "texts are not matched. Raise samples_seen or lr"
        )
    if p.paradigm == "dinov2" and p.base and far < LEAST_MOVED:
        return f"its weights moved by {far:.1%} of the base's. Raise samples_seen or lr"
    return ""
