"""What a run leaves: an encoder with the patients it has seen, what it is, and how far its weights went."""

import math
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cxrstudy import modelcard, study
from cxrstudy.data import images as stores
from cxrstudy.files import write_text


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
    far, long = (sum(float(v.square().sum()) for v in vs) for vs in ([a - b for b, a in pairs], before))
    return math.sqrt(far / max(long, 1e-12))
