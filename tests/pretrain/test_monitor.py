"""A run stops if it destroys its encoder, and warns if it has hardly trained it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import parameters

from cxrstudy import encoders, run, study
from cxrstudy.data import images
from cxrstudy.pretrain.loop import pretrain
from cxrstudy.pretrain.monitor import Collapsed, Monitor, effective_rank, training_progress

torch.set_num_threads(1)
quick = settings(deadline=None, max_examples=30)


def test_a_rate_that_destroys_a_continued_encoder_is_a_collapse_and_stops_the_run(
    data, base, tmp_path
):
    called = []

    def score(features, labels):
        assert features.shape == (len(labels), 128)
        called.append(float(np.std(features)))
        return 0.9 if len(called) == 1 else 0.7

    with pytest.raises(Collapsed, match=r"from 0\.900 to 0\.700") as caught:
        pretrain(parameters(data, tmp_path / "run", base=str(base)), data, score=score)
    assert "Lower lr" in str(caught.value)
    assert not (tmp_path / "run" / "encoder").exists()
    called.clear()
    own = parameters(data, tmp_path / "fresh")  # from random weights nothing can be lost
    assert list(pretrain(own, data, score=score)["checks"]["score"])[:2] == [0.9, 0.7]


def test_features_that_fall_together_are_a_collapse(data, tmp_path):
    prepared, p = images.open_prepared(data), parameters(data, tmp_path / "run")
    monitor = Monitor(p, prepared, np.arange(4), None, [])
    encoder = encoders.build_encoder("cnn_mini", 32)
    monitor.check(encoder, 0, [])
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.mul_(0.0)
    with pytest.raises(Collapsed, match="effective rank"):
        monitor.check(encoder, 16, [])


@quick
@given(rank=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_the_effective_rank_is_at_most_the_rank_and_reached_where_directions_are_alike(rank, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, rank, generator=generator) @ torch.randn(rank, 12, generator=generator)
    assert 1 - 1e-4 <= effective_rank(x) <= rank + 1e-3
    even = torch.linalg.qr(torch.randn(64, rank, generator=generator, dtype=torch.float64))[0]
    apart = torch.cat([even, -even])  # centred, with equal singular values
    assert effective_rank(apart) == pytest.approx(rank, rel=1e-6)


@pytest.mark.parametrize(
    ("paradigm", "loss", "far", "message"),
    [
        ("unicl", 0.999 * math.log(32), 0.05, "that of guessing"),
        ("clip", 1.2 * math.log(32), 0.05, "that of guessing"),
        ("clip", 0.9 * math.log(32), 0.001, ""),
        ("dinov2", 6.0, 0.008, "changed by 0.8%"),
        ("dinov2", 6.0, 0.05, ""),
        ("clip+labels", 9.0, 0.001, ""),  # its loss has two parts and no reference
    ],
)
def test_hardly_trained(paradigm, loss, far, message):
    p = study.Pretrain(paradigm=paradigm, batch_size=32, base="some/base", n_images=100)
    if not message:
        assert "hardly_trained" not in training_progress(p, loss, far)
        return
    with pytest.warns(UserWarning, match="hardly trained"):
        facts = training_progress(p, loss, far)
    assert message in facts["hardly_trained"]
    record = {"stage": "pretrain", "metrics": [], "info": facts | {"seconds": 3.0}}
    assert "WARNING hardly trained" in run.headline_of(record)


def test_a_dinov2_from_random_weights_has_no_base_to_leave():
    p = study.Pretrain(paradigm="dinov2", batch_size=32, n_images=100)
    assert training_progress(p, 6.0, 0.001) == {}
