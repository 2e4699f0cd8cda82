"""DINOv2's head, losses, masks and schedules agree with the reference code and keep their laws.

``dinov2_pins.json`` holds the results of the reference's own code (PyPI dinov2 0.0.1.dev2, which is
CC-BY-NC: an oracle, never a dependency), written by

    pip install --no-deps --target /tmp/oracle dinov2==0.0.1.dev2
    PYTHONPATH=/tmp/oracle python tests/pretrain/test_dinov2_losses.py > dinov2_pins.json

``PYTHONPATH=/tmp/oracle pytest tests/pretrain/test_dinov2_losses.py`` compares the same live.
"""

import hashlib
import json
import math
import multiprocessing
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_dinov2 import small_encoder
from torch import distributed as dist
from torch import nn

from cxrstudy.pretrain.dinov2 import DinoConfig, DINOv2
from cxrstudy.pretrain.dinov2_losses import (
    Centring,
    Head,
    block_masks,
    dino_loss,
    ibot_loss,
    koleo,
    sinkhorn,
)
from cxrstudy.pretrain.schedules import cosine_schedule, learning_rate, linear_warmup

torch.set_num_threads(1)
quick = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**31)
PINS = Path(__file__).with_name("dinov2_pins.json")
MASKS = [((4, 4), 8), ((8, 8), 64), ((16, 12), 10), ((37, 37), 12)]
STEPS = 40  # of the pinned schedules; 100 epochs of the reference are 40 steps


def wave(*shape, at=0.0):
    """Return numbers that are the same on every machine."""
    n = math.prod(shape)
    return torch.tensor([math.sin(1.7 * k + at + 0.01 * k * k) for k in range(n)]).reshape(shape)


# ---- the same calls of the reference's code and of ours: each returns {name: numbers} ----------
SIZES = {"channels": 5, "prototypes": 6, "hidden": 8, "bottleneck": 4}
MLP = ["mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias", "mlp.4.weight", "mlp.4.bias"]


def weights_of_head():
    shapes = [(8, 5), (8,), (8, 8), (8,), (4, 8), (4,), (6, 4), (6, 1)]
    values = [wave(*shape, at=k) for k, shape in enumerate(shapes)]
    return dict(zip([*MLP, "prototypes", "gain"], values, strict=True))


def grad(loss, *leaves):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)])


def assignments(*shape, at=0.0):
    return torch.softmax(4 * wave(*shape, at=at), -1)


def of_head(head, names, dtype=torch.float32):
    weights, x = weights_of_head(), wave(7, 5).to(dtype).requires_grad_()
    head = head.to(dtype)
    head.load_state_dict({names.get(name, name): value for name, value in weights.items()})
    leaves = dict(head.named_parameters())
    scores = head(x)
    grads = grad(
        (scores * wave(7, 6, at=3).to(dtype)).sum(),
        x,
        *[leaves[names.get(name, name)] for name in weights],
    )
    return {"head": scores, "head, gradients": grads}


# the third image has no masked patch
MASKED = (np.arange(20).reshape(4, 5) % 3 == 0) & (np.arange(4) != 2)[:, None]
WEIGHTS = torch.tensor((1 / MASKED.sum(1).clip(1))[np.nonzero(MASKED)[0]], dtype=torch.float32)
PATCHES = len(WEIGHTS)


def ours():
    # float64: with AVX-512, our float32 gradients have an error of 2e-6, the pinned ones of 4e-7
    out = of_head(Head(**SIZES, learn_gain=True), {}, torch.float64)
    out["sinkhorn"] = sinkhorn(wave(9, 6), 0.05)
    out["sinkhorn, patches"] = sinkhorn(wave(PATCHES, 6, at=1), 0.07)
    for name, rows in (("centring", 9), ("centring, patches", PATCHES)):
        centre = Centring(6)
        out[name] = torch.stack([centre(wave(rows, 6, at=k), 0.04) for k in range(3)])
    for local in (2, 8):
        student, teacher = wave(2 + local, 3, 6).requires_grad_(), assignments(2, 3, 6, at=2)
        loss = dino_loss(student, teacher)
        out |= {f"dino, {local} local": loss}
        out |= {f"dino, {local} local, gradients": grad(loss, student)}
    student, teacher = wave(PATCHES, 6).requires_grad_(), assignments(PATCHES, 6, at=2)
    loss = ibot_loss(student, teacher, WEIGHTS, 4)
    out["ibot"], out["ibot, gradients"] = loss, grad(loss, student)
    x = wave(8, 4).requires_grad_()
    out["koleo"], out["koleo, gradients"] = koleo(x), grad(koleo(x), x)
    out["koleo, duplicates"] = koleo(wave(3, 4).repeat(2, 1))
    return out | schedules()


def schedules():
    """Return what the objective sets at each step of the reference's default configuration."""
    config = DinoConfig(
        weight_decay=(0.04, 0.4), momentum=(0.992, 1.0), teacher_temperature=(0.04, 0.07)
    )
    model = DINOv2(small_encoder(), config)
    optimiser = torch.optim.AdamW(model.param_groups())
    out = {name: [] for name in ("lr", "prototypes_lr", "weight_decay")}
    for step in range(STEPS + 1):
        lr = learning_rate(step, STEPS, 4e-3, 0.1, **model.lr_schedule)
        model.set_learning_rates(optimiser, lr, step, STEPS)
        groups = {group["part"]: group for group in optimiser.param_groups if group["wd_scale"]}
        out["lr"].append(groups["head"]["lr"])
        out["prototypes_lr"].append(groups["prototypes"]["lr"])
        out["weight_decay"].append(groups["head"]["weight_decay"])
    steps = range(STEPS + 1)
    out["momentum"] = [cosine_schedule(step, STEPS, *config.momentum) for step in steps]
    warm = round(config.temperature_warmup * STEPS)
    temperature = [linear_warmup(step, warm, *config.teacher_temperature) for step in steps]
    out["teacher_temperature"] = temperature
    return {name: torch.tensor(values) for name, values in out.items()}


def theirs():
    from dinov2.layers.dino_head import DINOHead
    from dinov2.loss import DINOLoss, KoLeoLoss, iBOTPatchLoss
    from dinov2.utils.utils import CosineScheduler

    # its iBOT loss needs a process group
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    names = {"prototypes": "last_layer.weight_v", "gain": "last_layer.weight_g"}
    out = of_head(DINOHead(5, 6, hidden_dim=8, bottleneck_dim=4), names)
    out["sinkhorn"] = DINOLoss(6).sinkhorn_knopp_teacher(wave(9, 6), 0.05)
    own, count = iBOTPatchLoss(6), torch.tensor([PATCHES])
    out["sinkhorn, patches"] = own.sinkhorn_knopp_teacher(wave(PATCHES, 6, at=1), 0.07, count)
    dist.destroy_process_group()
    cases = [("centring", DINOLoss(6), 9), ("centring, patches", iBOTPatchLoss(6), PATCHES)]
    for name, loss, rows in cases:
        found = []
        for k in range(3):
            scores = wave(rows, 6, at=k)
            scores = scores[None] if rows == PATCHES else scores
            found.append(loss.softmax_center_teacher(scores, 0.04).reshape(rows, 6))
            loss.update_center(scores)
        out[name] = torch.stack(found)
    for local in (2, 8):
        student, teacher = wave(2 + local, 3, 6).requires_grad_(), assignments(2, 3, 6, at=2)
        terms = 2 + 2 * local  # as in its ssl_meta_arch.py
        cross = DINOLoss(6)([student[:2].flatten(0, 1)], [teacher.flip(0).flatten(0, 1)])
        loss = cross * 2 / terms + DINOLoss(6)(list(student[2:]), list(teacher)) / terms
        out |= {f"dino, {local} local": loss}
        out |= {f"dino, {local} local, gradients": grad(loss, student)}
    student, teacher = wave(PATCHES, 6).requires_grad_(), assignments(PATCHES, 6, at=2)
    masked = torch.from_numpy(MASKED)
    loss = iBOTPatchLoss(6).forward_masked(student, teacher, masked, PATCHES, WEIGHTS)
    out["ibot"], out["ibot, gradients"] = loss, grad(loss, student)
    x, of = wave(8, 4).requires_grad_(), KoLeoLoss()
    out["koleo"], out["koleo, gradients"] = of(x), grad(of(x), x)
    out["koleo, duplicates"] = of(wave(3, 4).repeat(2, 1))
    # of 100 epochs, 10 warm up the rate, 30 the temperature; prototypes are frozen in the first
    epochs = STEPS // 20
    lr = CosineScheduler(4e-3, 1e-6, STEPS, warmup_iters=2 * epochs)
    last = CosineScheduler(4e-3, 1e-6, STEPS, warmup_iters=2 * epochs)
    last.schedule[: round(0.01 * STEPS)] = 0
    warm = 6 * epochs
    hot = CosineScheduler(0.07, 0.07, warm, warmup_iters=warm, start_warmup_value=0.04)
    schedules = [lr, last, CosineScheduler(0.04, 0.4, STEPS), CosineScheduler(0.992, 1, STEPS), hot]
    names = ("lr", "prototypes_lr", "weight_decay", "momentum", "teacher_temperature")
    for name, schedule in zip(names, schedules, strict=True):
        out[name] = torch.tensor([float(schedule[k]) for k in range(STEPS + 1)])
    return out


class Plain:
    """The three calls of block_masks, answered by Python's generator, which the reference uses."""

    random = staticmethod(random.random)

    @staticmethod
    def integers(low, high):
        return random.randint(low, high - 1)

    @staticmethod
    def permutation(n):
        order = list(range(n))
        random.shuffle(order)
        return order


def our_masks(grid, n):
    return block_masks(n, grid, Plain)


def their_masks(grid, n):
    from dinov2.data.collate import collate_data_and_cast
    from dinov2.data.masking import MaskingGenerator

    height, width = grid
    blocks = MaskingGenerator(grid, max_num_patches=0.5 * height // 1 * width)  # as in its train.py
    sample = [({"global_crops": [torch.zeros(1)] * 2, "local_crops": [torch.zeros(1)]},)]
    batch = collate_data_and_cast(
        sample * (n // 2), (0.1, 0.5), 0.5, torch.float32, height * width, blocks
    )
    return batch["collated_masks"].numpy().reshape(n, height, width)


def digests(masks_of):
    found = {}
    for grid, n in MASKS:
        random.seed(7)
        masks = [masks_of(grid, n) for _ in range(4)]
        found[f"masks {grid} {n}"] = hashlib.sha256(np.packbits(masks).tobytes()).hexdigest()
    return found


def numbers(results):
    return {
        name: [float(f"{v:.9g}") for v in torch.as_tensor(t).flatten().tolist()]
        for name, t in results.items()
    }


def agree(found, wanted):
    assert set(found) == set(wanted)
    for name, values in found.items():
        expected = torch.as_tensor(wanted[name]).to(values.dtype).view_as(values)
        torch.testing.assert_close(values.detach(), expected, rtol=1e-6, atol=1e-6)


# ---- the reference -----------------------------------------------------------------------------
def test_values_and_gradients_are_those_the_reference_gave():
    pins = json.loads(PINS.read_text())
    agree(ours(), {name: torch.tensor(values) for name, values in pins["numbers"].items()})
    assert digests(our_masks) == pins["masks"]


def test_values_and_gradients_are_those_the_reference_gives():
    pytest.importorskip("dinov2.loss", reason="the reference is not installed (see the docstring)")
    agree(ours(), theirs())
    assert digests(our_masks) == digests(their_masks)


# ---- head and losses ---------------------------------------------------------------------------
def test_a_new_head_scores_by_cosine_and_its_gain_stays_one():
    torch.manual_seed(0)
    head = Head(32, 500, 300, 64)
    assert Head(32, 500, 300, 64, std=0).mlp[2].weight.detach().std() == pytest.approx(
        300**-0.5, rel=0.05
    )
    assert (head.gain == 1).all()
    assert not head.gain.requires_grad
    assert head.mlp[2].weight.detach().std() == pytest.approx(0.02, rel=0.05)
    assert head.prototypes.detach().abs().max() == pytest.approx(1 / 8, rel=0.01)
    assert not any(head.mlp[k].bias.any() for k in (0, 2, 4))
    scores = head(torch.randn(20, 32))
    assert (scores.abs() <= 1 + 1e-6).all()
    scaled = Head(32, 500, 300, 64)
    scaled.load_state_dict(head.state_dict() | {"prototypes": 7 * head.prototypes})
    x = torch.randn(3, 32)
    torch.testing.assert_close(scaled(x), head(x))


@quick
@given(n=st.integers(1, 30), k=st.integers(2, 12), seed=seeds, temperature=st.floats(0.04, 1.0))
def test_sinkhorn_rows_sum_to_one_and_enough_rounds_balance_the_prototypes(n, k, seed, temperature):
    scores = torch.rand(n, k, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    assigned = sinkhorn(scores.requires_grad_(), temperature)
    assert not assigned.requires_grad
    torch.testing.assert_close(assigned.sum(1), torch.ones(n))
    balanced = sinkhorn(scores, max(temperature, 0.3), 500)
    torch.testing.assert_close(balanced.sum(0), torch.full((k,), n / k), rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(sinkhorn(scores + 3, temperature), assigned, rtol=1e-3, atol=1e-5)


def test_sinkhorn_stays_finite_far_out_and_without_rows():
    assert sinkhorn(torch.tensor([[900.0, -900.0], [0.0, 1.0]]), 0.04).isfinite().all()
    assert sinkhorn(torch.zeros(0, 4), 0.04).shape == (0, 4)
    assert Centring(4)(torch.zeros(0, 4), 0.04).shape == (0, 4)


def _rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    centre, cut = Centring(6), slice(0, 5) if rank == 0 else slice(5, 12)  # unequal numbers of rows
    found = [sinkhorn(wave(12, 6)[cut], 0.05), centre(wave(12, 6)[cut], 0.05), centre.centre]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_assign_as_one_process_does_on_their_joined_rows(tmp_path):
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ranks = [context.Process(target=_rank, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    centre = Centring(6)
    torch.testing.assert_close(torch.cat([first[0], second[0]]), sinkhorn(wave(12, 6), 0.05))
    torch.testing.assert_close(torch.cat([first[1], second[1]]), centre(wave(12, 6), 0.05))
    for found in (first[2], second[2]):
        torch.testing.assert_close(found, centre.centre)


@quick
@given(local=st.integers(0, 9), batch=st.integers(1, 4), seed=seeds)
def test_dino_is_the_mean_of_its_cross_entropies(local, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(2 + local, batch, 5, generator=generator, dtype=torch.float64).float()
    teacher = torch.softmax(torch.randn(2, batch, 5, generator=generator), -1)
    terms = [
        nn.functional.cross_entropy(student[s] / 0.1, teacher[t])
        for s in range(2 + local)
        for t in range(2)
        if s != t
    ]
    assert len(terms) == 2 + 2 * local
    torch.testing.assert_close(dino_loss(student, teacher), torch.stack(terms).mean())


@quick
@given(n=st.integers(2, 12), seed=seeds, scale=st.floats(0.01, 100))
def test_koleo_knows_no_order_scale_or_rotation(n, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=generator)
    turned = torch.linalg.qr(torch.randn(5, 5, generator=generator)).Q
    other = scale * x[torch.randperm(n, generator=generator)] @ turned
    torch.testing.assert_close(koleo(other), koleo(x), rtol=1e-3, atol=1e-3)


def test_koleo_and_its_gradient_are_finite_for_duplicates_whatever_the_precision():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = wave(2, 4).repeat(3, 1).to(dtype).requires_grad_()
        value = koleo(x)
        value.backward()
        assert value.isfinite() and value.dtype == torch.float32
        assert x.grad.float().isfinite().all() or dtype == torch.float16


# ---- masks -------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=30)
@given(grid=st.sampled_from([(4, 4), (8, 8), (5, 9), (37, 37)]), n=st.integers(1, 12), seed=seeds)
def test_masks_are_drawn_by_their_generator_and_never_mask_more_than_asked(grid, n, seed):
    masks = block_masks(n, grid, np.random.default_rng(seed))
    assert masks.shape == (n, *grid)
    np.testing.assert_array_equal(masks, block_masks(n, grid, np.random.default_rng(seed)))
    counts = np.sort(masks.sum((1, 2)))[::-1]
    assert (counts[n // 2 :] == 0).all()
    assert (counts <= 0.5 * grid[0] * grid[1]).all()


def test_the_share_masked_spreads_evenly_and_half_the_images_have_none():
    rng = np.random.default_rng(0)
    masks = (
        np.concatenate([block_masks(64, (14, 14), rng) for _ in range(20)])
        .reshape(20, 64, -1)
        .mean(-1)
    )
    assert ((masks > 0).sum(1) == 32).all()
    ordered = np.sort(masks, 1)[:, 32:].mean(0)
    np.testing.assert_allclose(ordered, np.linspace(0.1, 0.5, 65)[1::2], atol=0.02)
    assert not np.array_equal(masks[0] > 0, masks[1] > 0)
    assert not block_masks(8, (8, 8), rng, probability=0.0).any()


if __name__ == "__main__":
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in numbers(theirs()).items()]
    masks = json.dumps(digests(their_masks), indent=0)
    print('{"numbers": {', ",\n".join(lines), "},", f'"masks": {masks}}}', sep="\n")
