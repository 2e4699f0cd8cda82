"""The training loop of small heads, and the supervised baseline that uses it."""

import numpy as np
import pytest
import torch
from torch import nn

from cxrstudy import encoders, study
from cxrstudy.data.images import Prepared
from cxrstudy.data.manifest import label_array
from cxrstudy.data.sets import prepare_data
from cxrstudy.evaluate.features import encode
from cxrstudy.evaluate.heads import fit, shuffled_batches, train_supervised

torch.set_num_threads(1)


def fit_line(steps, lr=0.1, **how):
    """Fit y = 2x by gradient descent from weight 0; return the module and the history."""
    module, x = nn.Linear(1, 1, bias=False), torch.linspace(-1, 1, 8)[:, None]
    nn.init.zeros_(module.weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def loss(index):
        return (module(x[index]) - 2 * x[index]).square().mean()

    batches = shuffled_batches(8, 8, np.random.default_rng(0))
    history = fit(
        module, batches, loss, optimizer, scheduler, steps=steps,
        **{name: make(module) if name == "validate" else make for name, make in how.items()},
    )  # fmt: skip
    return module, history


def test_without_validation_the_last_state_is_kept():
    module, history = fit_line(40)
    assert history["step"].tolist() == list(range(1, 41))
    assert history["loss"].is_monotonic_decreasing and history["score"].isna().all()
    assert history["lr"].iloc[0] == 0.1 and history["lr"].is_monotonic_decreasing
    assert 1 < module.weight.item() < 2


def test_the_state_with_the_best_validation_score_is_kept():
    weights = []

    def validate(module):
        return lambda: weights.append(module.weight.item()) or -abs(module.weight.item() - 0.5)

    module, history = fit_line(40, validate=validate, checks=range(5, 41, 5))
    checked = history["score"].dropna()
    assert [k + 1 for k in checked.index] == list(range(5, 41, 5))
    assert module.weight.item() == weights[checked.argmax()] != weights[-1]


def test_a_gradient_is_clipped_to_the_largest_norm():
    module, _ = fit_line(1, max_norm=0.01)
    assert module.weight.item() == pytest.approx(0.1 * 0.01)


@pytest.mark.parametrize(
    ("lr", "how"),
    [(1e30, {}), (0.1, {"validate": lambda _: lambda: np.nan, "checks": [3]})],
)
def test_what_is_not_finite_stops_the_training_with_the_remedy(lr, how):
    with pytest.raises(FloatingPointError, match=r"not finite at step [23] .*lower lr"):
        fit_line(5, lr, **how)


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (6, 3), (3, 8)])
def test_every_epoch_has_every_index_once(n, batch_size):
    batches = shuffled_batches(n, batch_size, np.random.default_rng(0))
    order = np.concatenate([next(batches) for _ in range(4 * n)])
    for start in range(0, 3 * n, n):
        assert sorted(order[start : start + n]) == list(range(n))


def test_a_supervised_encoder_learns_its_labels_and_is_the_same_each_time(tmp_path):
    shares = {"train": 0.5, "validation": 0.2, "test": 0.3}
    data = study.Data(n_images=120, size=32, fractions=shares, out=str(tmp_path / "data"))
    prepared, rows = prepare_data(data), np.arange(100)
    y = label_array(prepared.manifest.iloc[rows], ["cardiomegaly"], truth=True)
    images = np.array(prepared.images)
    images[np.flatnonzero(y[:, 0] == 1), 4:12, 4:12] = 255
    marked = Prepared(prepared.manifest, images, prepared.info)

    def encoder():
        return encoders.load_encoder("random:cnn_mini", size=32, seed=0)

    def gap(one):
        x = encode(one, marked, rows, pooling="max")
        classes = [x[y[:, 0] == kind] for kind in (0, 1)]
        spread = np.sqrt(sum(part.var(0) for part in classes) / 2) + 1e-6
        return (np.abs(classes[1].mean(0) - classes[0].mean(0)) / spread).max(), x

    def trained(seed=0):
        return train_supervised(encoder(), marked, rows, y, samples_seen=1500, seed=seed)

    before, (after, x) = gap(encoder())[0], gap(trained())
    assert after > 1.5 * before
    np.testing.assert_array_equal(gap(trained())[1], x)
    assert not np.allclose(gap(trained(1))[1], x)
    assert not any(weight.requires_grad for weight in trained().parameters())
