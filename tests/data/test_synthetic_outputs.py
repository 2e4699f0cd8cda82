"""Pin what the synthetic institution renders, by hashes of its outputs."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from cxrstudy.data import synthetic

PINNED = json.loads((Path(__file__).parent / "synthetic_outputs.json").read_text(encoding="utf-8"))


def short_hash(value: np.ndarray | str) -> str:
    content = value.encode() if isinstance(value, str) else np.ascontiguousarray(value).tobytes()
    return hashlib.sha256(content).hexdigest()[:12]


@pytest.mark.parametrize("drawn", PINNED)
def test_outputs_are_those_that_recorded_studies_used(drawn):
    institution, size = drawn.split()
    batch = synthetic.sample(range(24), institution=institution, size=int(size), seed=0)
    pixels = np.rint(np.asarray(batch.image)[:, 0] * 255).astype(np.uint8)
    found = {
        "image": short_hash(pixels),
        "labels": short_hash(np.asarray(batch.labels)),
        "reported": short_hash(np.nan_to_num(np.asarray(batch.reported), nan=-1)),
        "masks": short_hash(np.asarray(batch.masks)),
        "report": short_hash("\n".join(batch.report)),
        "ids": short_hash("\n".join([*batch.patient_id, *batch.study_id, *batch.view])),
    }
    assert found == PINNED[drawn], (
        "outputs changed: recorded studies no longer match this code; raise generator.VERSION"
    )
