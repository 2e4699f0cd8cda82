"""A run that has hardly trained says so: its scores are its base's, whatever the images are."""

import math

import pytest

from cxrstudy import run, study
from cxrstudy.pretrain import outcome


@pytest.mark.parametrize(
    ("paradigm", "loss", "far", "said"),
    [
        ("unicl", 0.999 * math.log(32), 0.05, "that of guessing"),
        ("clip", 1.2 * math.log(32), 0.05, "that of guessing"),
        ("clip", 0.9 * math.log(32), 0.001, ""),
        ("dinov2", 6.0, 0.008, "moved by 0.8%"),
        ("dinov2", 6.0, 0.05, ""),
        ("clip+labels", 9.0, 0.001, ""),  # its loss has two parts, and no such mark
    ],
)
def test_hardly_trained(paradigm, loss, far, said):
    p = study.Pretrain(paradigm=paradigm, batch_size=32, base="some/base", n_images=100)
    why = outcome.hardly_trained(p, loss, far)
    assert (said in why) if said else why == ""
    if said:
        with pytest.warns(UserWarning, match="hardly trained"):
            facts = outcome.how_far(p, loss, far)
        record = {"stage": "pretrain", "metrics": [], "info": facts | {"seconds": 3.0}}
        assert "WARNING hardly trained" in run.headline_of(record)
    else:
        assert "hardly_trained" not in outcome.how_far(p, loss, far)


def test_a_dinov2_from_random_weights_has_no_base_to_leave():
    p = study.Pretrain(paradigm="dinov2", batch_size=32, n_images=100)
    assert outcome.hardly_trained(p, 6.0, 0.001) == ""
