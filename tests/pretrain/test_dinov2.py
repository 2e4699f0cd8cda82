"""DINOv2: student and teacher learn together with any encoder, in steps and in runs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_dinov2 import blobs, hybrid_encoder, small_encoder
from made_runs import DINO, Killed, go, killed_after, parameters
from safetensors.torch import load_file
from torch import nn

from cxrstudy.encoders import build_encoder, load_encoder, save_encoder
from cxrstudy.pretrain.dinov2 import HEAD_WARMUP, DinoConfig, DINOv2, _tokens, configure
from cxrstudy.pretrain.schedules import learning_rate

torch.set_num_threads(1)
FEW = DinoConfig(
    dino_weight=0.3,
    ibot_weight=1.0,
    koleo_weight=0.1,
    prototypes=64,
    hidden=64,
    bottleneck=16,
    global_scale=(0.85, 1.0),
    teacher_temperature=(0.03, 0.03),
)


def step_loss(model, x, step=0, steps=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = model.prepare(x, np.arange(len(x)), 0, None, generator)
    return model(batch, step, steps)


def train(model, steps, batch=16):
    images, losses = blobs(128), []
    optimiser = torch.optim.AdamW(model.param_groups())
    for step in range(steps):
        lr = learning_rate(step, steps, 2e-3, 0.1, **model.lr_schedule)
        model.set_learning_rates(optimiser, lr, step, steps)
        drawn = torch.randperm(128, generator=torch.Generator().manual_seed(step))
        loss, parts = step_loss(model, images[drawn[:batch]], step, steps, seed=step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.on_step_end(step, steps)
        losses.append({name: float(part) for name, part in parts.items()})
    return losses


# ---- steps -------------------------------------------------------------------------------------
def test_a_few_dozen_steps_learn_and_do_not_collapse():
    curve = train(DINOv2(small_encoder(), FEW), 120)
    last = {part: np.mean([c[part] for c in curve[-20:]]) for part in curve[0]}
    # the lowest loss of a student that gives every image the same logits, as teachers balance
    blind = math.log(FEW.prototypes)
    assert curve[0]["dino"] > blind + 0.5
    assert last["dino"] < blind - 0.05
    assert last["ibot"] < curve[0]["ibot"] - 0.5
    assert last["teacher_spread"] > 0.7
    assert 0.3 < last["teacher_entropy"] < 0.95


@pytest.mark.parametrize(
    "name", ["vit", "vit without class token", "registers", "cnn_mini", "davit_mini"]
)
def test_any_encoder_takes_the_step_with_every_part_learning_and_the_teacher_not(name):
    no_class_token = {"class_token": False, "global_pool": "avg"}
    changes = {"vit without class token": no_class_token, "registers": {"reg_tokens": 2}}
    encoder = (
        build_encoder(name, 32) if name.endswith("mini") else small_encoder(**changes.get(name, {}))
    )
    model = DINOv2(encoder, replace(FEW, local_crops=2, patch_head=True))
    x = blobs(8)
    loss, parts = step_loss(model, x, 3)
    again, _ = step_loss(model, x, 3)
    assert loss.isfinite()
    if not name.endswith("mini"):
        assert torch.equal(loss, again)  # batch norms change
    loss.backward()
    weighted = 0.3 * parts["dino"] + parts["ibot"] + 0.1 * parts["koleo"]
    torch.testing.assert_close(loss.detach(), weighted)
    idle = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert all("fc_norm" in n or "trunk.head" in n for n in idle)  # timm applies it after pooling
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    assert not any(part.requires_grad for part in parts.values())


def test_masked_patches_reach_the_student_only_through_the_mask_token():
    model = DINOv2(small_encoder(), replace(FEW, dino_weight=0.0, koleo_weight=0.0)).eval()
    x = blobs(2).requires_grad_()
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 5] = True  # row 1, column 1 of the 4 x 4 patches
    for encoder, token in (
        (model.student["trunk"], model.mask_token),
        (build_encoder("davit_mini", 32), torch.zeros(1)),
    ):
        own = encoder is model.student["trunk"]
        hidden = mask if own else torch.tensor([[True, False, False, False]] * 2)
        cls_tokens, patch_tokens = _tokens(encoder, x, (hidden, token))
        total = cls_tokens.square().sum() + patch_tokens.square().sum()
        (slope,) = torch.autograd.grad(total, x)
        unseen = (slice(8, 16),) * 2 if own else (slice(0, 16),) * 2
        assert (slope[..., *unseen] == 0).all()
        assert (slope[..., 16:, 16:] != 0).any()
    bare = model.encoder
    torch.testing.assert_close(_tokens(bare, x)[1], bare.forward_features(x))


def test_the_teacher_is_the_students_moving_average_and_is_what_is_saved(tmp_path):
    model = DINOv2(small_encoder(drop_path_rate=0.5), replace(FEW, momentum=(0.9, 1.0)))
    for a, b in zip(model.student.parameters(), model.teacher.parameters(), strict=True):
        assert torch.equal(a, b)
    assert model.student.training and not model.teacher.training
    before = model.encoder.trunk.norm.weight.clone()
    with torch.no_grad():
        model.student["trunk"].trunk.norm.weight.add_(1.0)
    model.on_step_end(0, 10)
    torch.testing.assert_close(model.encoder.trunk.norm.weight, before + 0.1)
    model.on_step_end(10, 10)  # momentum 1
    torch.testing.assert_close(model.encoder.trunk.norm.weight, before + 0.1)
    save_encoder(model.encoder, tmp_path)
    x = blobs(2)
    torch.testing.assert_close(load_encoder(tmp_path).pool(x), model.encoder.pool(x))


def test_a_teachers_batch_norm_follows_the_whole_images_it_sees():
    model = DINOv2(build_encoder("cnn_mini", 32), FEW)
    norm = next(m for m in model.teacher.modules() if isinstance(m, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    step_loss(model, blobs(8))
    assert not torch.equal(norm.running_mean, before)
    model.eval()
    assert not norm.training


def test_checkpointed_blocks_give_the_same_gradients_and_bfloat16_nearly_the_same_loss():
    found = []
    for checkpointed in (False, True):
        model = DINOv2(small_encoder(), FEW)
        model.student["trunk"].trunk.set_grad_checkpointing(checkpointed)
        loss, _ = step_loss(model, blobs(8))
        weight = model.student["trunk"].trunk.blocks[0].mlp.fc1.weight
        found.append(torch.autograd.grad(loss, weight)[0])
    torch.testing.assert_close(*found)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = step_loss(model, blobs(8))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, loss, rtol=0.02, atol=0)


def test_softmax_centring_and_no_masks_are_options():
    centred = DINOv2(small_encoder(), replace(FEW, centring="softmax"))
    loss, parts = step_loss(centred, blobs(8))
    assert loss.isfinite() and parts["ibot"] > 0
    bare = DINOv2(small_encoder(), replace(FEW, ibot_weight=0.0))
    loss, parts = step_loss(bare, blobs(8))
    assert loss.isfinite() and parts["ibot"] == 0
    loss.backward()


def test_the_hybrid_of_a_small_study_gives_8_pixel_patches_and_comes_back_from_its_folder(tmp_path):
    encoder = hybrid_encoder(64, embed_dim=128, depth=2, num_heads=4)
    assert DINOv2(encoder, FEW).side == 8
    save_encoder(encoder.eval(), tmp_path)
    x = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(load_encoder(tmp_path).pool(x), encoder.pool(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for")
def test_no_step_waits_for_the_device():
    model = DINOv2(small_encoder(), replace(FEW, local_crops=2)).cuda()
    x = blobs(8).cuda()
    step_loss(model, x)[0].backward()  # the first step sets libraries up
    torch.cuda.set_sync_debug_mode("error")
    try:
        step_loss(model, x, 1)[0].backward()
        model.on_step_end(1, 10)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- runs --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def distilled(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "dino-base"
    return out, go(data, out, **DINO)


def test_dinov2_runs_in_the_same_loop_and_keeps_its_heads(distilled):
    out, result = distilled
    assert {"dino", "ibot", "koleo", "teacher_entropy", "teacher_spread"} <= set(result["curve"])
    assert {"teacher_entropy", "effective_rank"} <= set(result["checks"])
    assert result["relative_weight_change"] > 0
    files = sorted(path.name for path in (out / "encoder").glob("*.safetensors"))
    assert files == ["dino.safetensors", "model.safetensors"]
    encoder = load_encoder(out / "encoder")
    assert encoder.info["paradigm"] == "dinov2"
    assert encoder.pool(torch.zeros(1, 1, 32, 32)).shape == (1, 128)


def test_dinov2_continues_its_own_heads_and_trains_new_ones_alone_first(
    data, distilled, base, tmp_path
):
    kept = load_file(distilled[0] / "encoder" / "dino.safetensors")
    go(data, tmp_path / "on", **DINO | {"base": str(distilled[0]), "lr": 1e-12})
    for name, tensor in load_file(tmp_path / "on" / "encoder" / "dino.safetensors").items():
        torch.testing.assert_close(tensor, kept[name], atol=1e-5, rtol=1e-4)
    own = parameters(data, tmp_path / "x", **DINO | {"base": str(distilled[0])})
    assert configure(own, new_heads=False).freeze_trunk == 0
    assert configure(own, new_heads=True).freeze_trunk == HEAD_WARMUP
    given = own.model_copy(update={"dino": {"freeze_trunk": 0.3}})
    assert configure(given, new_heads=True).freeze_trunk == 0.3
    # a base without heads
    result = go(data, tmp_path / "from-clip", **DINO | {"base": str(base)})
    assert result["subject"]["encoder"] == "cnn_mini"


def test_heads_of_another_shape_and_constants_that_there_are_not_are_refused(
    data, distilled, tmp_path
):
    with pytest.raises(ValueError, match="other shapes"):
        go(data, tmp_path / "run", **DINO | {"base": str(distilled[0]), "dino": {"prototypes": 64}})
    with pytest.raises(ValueError, match="no constant 'protoypes'"):
        go(data, tmp_path / "run", **DINO | {"dino": {"protoypes": 64}})


@pytest.mark.parametrize("encoder", ["hybrid_mini", "cnn_mini"])
def test_a_killed_dinov2_run_resumes_to_the_bit(data, tmp_path, encoder):
    own = DINO | {"encoder": encoder, "batch_size": 8}
    own |= {"dino": {"prototypes": 32, "centring": "softmax"}}
    go(data, tmp_path / "whole", **own)
    with pytest.raises(Killed):
        go(data, tmp_path / "cut", killed_after(5), **own | {"checkpoint_steps": 1})
    go(data, tmp_path / "cut", **own)
    for name in ("model", "dino"):
        files = [tmp_path / out / "encoder" / f"{name}.safetensors" for out in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes()
    kept = load_file(tmp_path / "cut" / "encoder" / "model.safetensors")
    counts = [count for name, count in kept.items() if "num_batches" in name]
    assert all(count > 0 for count in counts)  # batch norms were updated
