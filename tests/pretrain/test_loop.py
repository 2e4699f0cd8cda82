"""The loop shows exactly what it says, remembers whom it saw, and resumes to the bit."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from cxrstudy import encoders, study
from cxrstudy.data import cards, images
from cxrstudy.data.manifest import assign_splits, nested_subset
from cxrstudy.data.sets import prepare_data
from cxrstudy.data.synthetic import VERSION
from cxrstudy.data.vocabulary import LABELS
from cxrstudy.pretrain import checkpoint
from cxrstudy.pretrain.augment import augment
from cxrstudy.pretrain.distil import SETTLE, configure
from cxrstudy.pretrain.loop import (
    batch_positions,
    learning_rate,
    positions,
    precision,
    pretrain,
    seen_patients,
    subset_rows,
)
from cxrstudy.pretrain.monitor import Collapsed, Monitor, effective_rank
from cxrstudy.results import window

torch.set_num_threads(1)
quick = settings(deadline=None, max_examples=30)
SPLITS = {"pretrain": 0.7, "other": 0.3}


# ---- the order, the rate, the precision ----------------------------------------------------------------------------
@quick
@given(n=st.integers(1, 40), epochs=st.integers(1, 5), seed=st.integers(0, 2**32), data=st.data())
def test_each_epoch_is_a_permutation_and_any_slice_is_that_of_the_whole(n, epochs, seed, data):
    whole = positions(n, 0, n * epochs, seed)
    for epoch in whole.reshape(epochs, n):
        assert sorted(epoch) == list(range(n))
    start = data.draw(st.integers(0, n * epochs - 1))
    stop = data.draw(st.integers(start + 1, n * epochs))
    np.testing.assert_array_equal(positions(n, start, stop, seed), whole[start:stop])


@quick
@given(
    n=st.integers(4, 60),
    share=st.floats(0.3, 1.0),
    seed=st.integers(0, 99),
    start=st.integers(0, 300),
)
def test_no_batch_holds_an_image_twice(n, share, seed, start):
    size = max(2, int(share * n))
    take = batch_positions(n, start, start + size, seed)
    assert len(set(take)) == size
    assert np.array_equal(take, batch_positions(n, start, start + size, seed))
    kept = positions(n, start, start + size, seed)
    assert (take != kept).sum() == size - len(set(kept))  # no more is changed than must be


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {
        tuple(positions(50, 50 * epoch, 50 * epoch + 50, seed))
        for epoch in range(4)
        for seed in range(4)
    }
    assert len(orders) == 16


@quick
@given(steps=st.integers(1, 3000), peak=st.floats(1e-6, 1.0), warmup=st.floats(0, 0.99))
def test_the_rate_rises_to_its_peak_and_falls_to_nothing(steps, peak, warmup):
    rates = np.array([learning_rate(step, steps, peak, warmup) for step in range(steps)])
    ramp = max(1, round(warmup * steps))
    np.testing.assert_allclose(rates[:ramp], peak * np.arange(1, ramp + 1) / ramp)
    assert rates.max() == pytest.approx(peak)
    assert (np.diff(rates[ramp:]) <= 0).all()
    assert (rates > 0).all()
    assert learning_rate(steps, steps, peak, warmup) == pytest.approx(
        0 if steps > ramp else peak, abs=1e-12
    )


def test_the_precision_asked_for_is_the_one_used(monkeypatch):
    cpu = torch.device("cpu")
    assert precision("fp32", cpu) == torch.float32
    assert precision("bf16", cpu) == torch.bfloat16
    for amx, avx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert (precision("auto", cpu) == torch.bfloat16) == (amx or avx)
    for has, kind in (
        (True, torch.bfloat16),
        (False, torch.float32),
    ):  # an old card emulates it, slowly
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has
        )
        assert precision("auto", torch.device("cuda")) == kind


# ---- augmentation --------------------------------------------------------------------------------------------------
STILL = {"shift": 0.0, "scale": 0.0, "degrees": 0.0, "brightness": 0.0, "contrast": 0.0}


def drawn(seed):
    return torch.Generator().manual_seed(seed)


def test_augmentation_is_a_pure_function_of_its_generator_and_each_image_has_its_own_draw():
    x = torch.rand(1, 1, 16, 16).expand(6, -1, -1, -1).contiguous()
    one = augment(x, drawn(1))
    assert one.shape == x.shape
    assert torch.equal(one, augment(x, drawn(1)))
    assert not torch.equal(one, augment(x, drawn(2)))
    assert (torch.cdist(one.flatten(1), one.flatten(1)) + torch.eye(6) > 1e-3).all()
    torch.testing.assert_close(augment(x, drawn(1), **STILL), x)


def test_what_is_on_the_left_stays_on_the_left():
    x = torch.zeros(200, 1, 32, 32)
    x[:, :, 12:20, 4:12] = 1.0
    moved = augment(x, drawn(0), **STILL | {"shift": 0.06, "scale": 0.1, "degrees": 6.0})
    assert (moved[..., :16].sum((1, 2, 3)) > 10 * moved[..., 16:].sum((1, 2, 3))).all()
    down = (moved.sum((1, 3)) * torch.arange(32)).sum(1) / moved.sum((1, 2, 3))
    assert down.std() > 0.3  # it does move
    assert (down - 15.5).abs().max() < 6


def test_brightness_and_contrast_stay_within_what_is_said():
    x = torch.ones(500, 1, 4, 4)
    lit = augment(x, drawn(0), **STILL | {"brightness": 0.2})[:, 0, 0, 0] - 1
    stretched = augment(x, drawn(0), **STILL | {"contrast": 0.3})[:, 0, 0, 0] - 1
    for change, most in ((lit, 0.2), (stretched, 0.3)):
        assert 0.95 * most < change.abs().max() <= most + 1e-6
        assert abs(float(change.mean())) < 0.1 * most


# ---- runs ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "study-abc"
    prepare_data(study.Data(n_images=120, size=32, fractions=SPLITS, out=str(folder)))
    return folder


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    """Images of which one in three has no report."""
    folder = tmp_path_factory.mktemp("data") / "silent"
    manifest = assign_splits(
        cards.load_manifest("synthetic", n_images=60), fractions={"pretrain": 1.0}
    )
    recorded = [column for column in manifest if column.startswith("label:")]
    manifest[recorded] = manifest[recorded].fillna(0.0)
    manifest["report"] = [
        None if k % 3 == 0 else report for k, report in enumerate(manifest["report"])
    ]
    images.prepare(
        manifest, folder, size=32, info={"kind": "synthetic", "institution": "synthetic:study"}
    )
    return folder


def parameters(data, out, **changes):
    own = {
        "n_images": 64,
        "samples_seen": 96,
        "batch_size": 16,
        "precision": "fp32",
        "checkpoint_seconds": 1000.0,
    }
    return study.validated("pretrain", own | {"data": str(data), "out": str(out)} | changes)


def go(data, out, progress=iter, **changes):
    return pretrain(parameters(data, out, **changes), data, progress=progress)


def weights(out):
    return [(out / "encoder" / f"{name}.safetensors").read_bytes() for name in ("model", "text")]


def patients(out):
    return (out / "encoder" / "patients.txt").read_text().split("\n")


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    """A finished run from random weights, on the other split: the folder and what it gave back."""
    out = tmp_path_factory.mktemp("runs") / "clip-base-123abc"
    return out, go(data, out, splits=["other"], n_images=20)


def test_a_run_gives_back_and_leaves_what_it_says(data, tmp_path):
    shown = []

    def progress(steps):
        shown.append(steps)
        yield from steps

    result = go(data, tmp_path / "run", progress)
    assert shown == [range(6)]
    assert result["samples_seen"] == 96
    assert result["unique_images"] == 64
    assert result["epochs"] == 1.5
    assert result["precision"] == "float32"
    assert result["flops"] > 96 * 1e6
    assert result["images_per_second"] == pytest.approx(96 / result["seconds_training"])
    curve = result["curve"]
    assert list(curve["samples_seen"]) == [16, 96]
    assert result["loss"] == curve["loss"].iloc[-1]  # of few points the last; see the next test
    assert {"contrastive", "logit_scale"} <= set(curve)
    assert 0.01 < result["moved"] < 1
    assert list(result["checks"]["samples_seen"]) == [0, 16, 32, 48, 64, 80, 96]
    assert (result["checks"]["effective_rank"] > 1).all()
    assert 1 < curve["loss"].iloc[0] < 6  # log(16) is 2.8
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "run" / "curve.csv"), curve)
    told = {
        "paradigm": "clip",
        "n_images": 64,
        "samples_seen": 96,
        "seed": 0,
        "data": "study-abc",
        "base": "",
    }
    told |= {"encoder": "cnn_mini", "kind": "synthetic", "institution": "synthetic:study"}
    told |= {"generator": VERSION}
    assert result["subject"] == told
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {
        "checks.csv",
        "curve.csv",
        "encoder",
        "checkpoint.pt",
        "checkpoint-6.safetensors",
    }
    encoder = encoders.load_encoder(tmp_path / "run" / "encoder")
    spent = {
        name: result[name] for name in ("unique_images", "epochs", "flops", "seconds_training")
    }
    assert encoder.info == told | spent | {"precision": "float32", "processes": 1}
    card = (tmp_path / "run" / "encoder" / "README.md").read_text()
    assert "samples_seen: 96" in card
    assert "not for clinical use" in card.lower()
    info = images.open_prepared(data).info
    assert (encoder.input_size, encoder.mean, encoder.std) == (32, info["mean"], info["std"])
    assert encoders.load_text(tmp_path / "run" / "encoder", encoder.channels) is not None


@pytest.mark.parametrize(
    ("points", "averaged"), [(1, 1), (2, 1), (8, 2), (11, 2), (40, 10), (500, 10)]
)
def test_a_runs_loss_is_that_of_its_last_quarter_ten_points_at_most(points, averaged):
    assert window(points) == averaged


def test_patients_seen_are_the_subsets_and_its_bases(data, base, tmp_path):
    prepared = images.open_prepared(data)
    manifest = prepared.manifest
    pool = manifest[manifest["split"] == "pretrain"]
    own = set(nested_subset(pool, 64, seed=3)["patient_id"])
    bases = set(nested_subset(manifest[manifest["split"] == "other"], 20, seed=0)["patient_id"])
    assert patients(base[0]) == sorted(bases)
    go(data, tmp_path / "alone", seed=3)
    assert patients(tmp_path / "alone") == sorted(own)
    for where in (base[0] / "encoder", base[0]):  # the run's folder serves as well as its encoder's
        result = go(data, tmp_path / "continued", seed=3, base=str(where))
        assert result["subject"]["base"] == "clip-base-123abc"
        assert patients(tmp_path / "continued") == sorted(own | bases)
    assert own.isdisjoint(bases)
    assert seen_patients(str(tmp_path / "continued")) == sorted(own | bases)
    assert seen_patients("") == seen_patients("random:cnn_mini") == []


def test_a_continued_run_starts_from_its_base(data, base, tmp_path):
    go(data, tmp_path / "run", base=str(base[0] / "encoder"), lr=1e-12)
    started, ended = (encoders.load_encoder(out / "encoder") for out in (base[0], tmp_path / "run"))
    assert (ended.mean, ended.std, ended.architecture) == (
        started.mean,
        started.std,
        started.architecture,
    )
    for a, b in zip(started.parameters(), ended.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    texts = [
        encoders.load_text(out / "encoder", started.channels) for out in (base[0], tmp_path / "run")
    ]
    assert texts[0].tokenizer.to_str() == texts[1].tokenizer.to_str()
    torch.testing.assert_close(texts[0].image_projection.weight, texts[1].image_projection.weight)


@pytest.mark.parametrize("paradigm", ["clip", "unicl"])
def test_the_same_seed_gives_the_same_weights_to_the_bit_and_another_does_not(
    data, tmp_path, paradigm
):
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        torch.manual_seed(
            np.random.default_rng().integers(2**31)
        )  # whatever the caller's random state is
        go(data, tmp_path / name, seed=seed, paradigm=paradigm)
    assert weights(tmp_path / "one") == weights(tmp_path / "again")
    assert all(
        a != b for a, b in zip(weights(tmp_path / "one"), weights(tmp_path / "other"), strict=True)
    )


class Killed(Exception):
    pass


def killed_after(k):
    def progress(steps):
        for step in steps:
            if step == k:
                raise Killed
            yield step

    return progress


def start_of(found):
    def progress(steps):
        found.append(steps.start)
        yield from steps

    return progress


@pytest.mark.parametrize(("paradigm", "k"), [("clip", 1), ("unicl", 4)])
def test_a_killed_run_resumes_to_the_same_weights_to_the_bit(data, tmp_path, paradigm, k):
    whole = go(data, tmp_path / "whole", paradigm=paradigm)
    cut = tmp_path / "cut"
    with pytest.raises(Killed):
        go(data, cut, killed_after(k), paradigm=paradigm, checkpoint_seconds=1e-9)
    assert not (cut / "encoder").exists()
    starts = []
    resumed = go(data, cut, start_of(starts), paradigm=paradigm)
    assert starts == [k]
    assert weights(cut) == weights(tmp_path / "whole")
    pd.testing.assert_frame_equal(resumed["curve"], whole["curve"])
    assert resumed["flops"] == whole["flops"]
    assert (resumed["samples_seen"], resumed["resumed_from"]) == (96, k)


def test_an_optimiser_comes_back_from_a_checkpoint_in_the_types_it_had(tmp_path):
    """Of a parameter without dimensions, too: a GPU's fused step reads its count of steps as float32 whatever it is."""
    made = []
    for _ in range(2):
        model = torch.nn.ParameterDict(
            {"scale": torch.tensor(2.0, dtype=torch.float64), "weight": torch.ones(4, 3, 2, 2)}
        ).to(memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(model.parameters(), fused=True)
        (model["scale"] * model["weight"].square().sum()).backward()
        optimiser.step()
        made.append((model, optimiser))
    checkpoint.save(tmp_path, *made[0], {"key": "this", "step": 1})
    assert checkpoint.load(tmp_path, "this", *made[1])
    for before, after in zip(
        *(list(optimiser.state.values()) for _, optimiser in made), strict=True
    ):
        for name, tensor in before.items():
            assert (after[name].dtype, after[name].stride()) == (tensor.dtype, tensor.stride()), (
                name
            )
            torch.testing.assert_close(after[name], tensor, rtol=0, atol=0)


def test_a_run_killed_between_its_end_and_its_record_is_not_trained_anew(data, tmp_path):
    first, starts = go(data, tmp_path), []
    again = go(data, tmp_path, start_of(starts))
    assert starts == [6]
    assert again["seconds_training"] - first["seconds_training"] < first["seconds_training"]
    assert {n: again[n] for n in ("loss", "flops", "moved")} == {
        n: first[n] for n in ("loss", "flops", "moved")
    }
    for table in ("curve", "checks"):
        pd.testing.assert_frame_equal(again[table], first[table])
    checkpoint.remove(tmp_path)
    assert not list(tmp_path.glob("*checkpoint*"))
    go(data, tmp_path, start_of(starts))
    assert starts == [6, 0]


def test_a_share_of_the_base_is_mixed_into_what_is_kept(data, base, tmp_path):
    own = {"base": str(base[0] / "encoder"), "lr": 1e-3}
    far = go(data, tmp_path / "far", **own)
    near = go(data, tmp_path / "near", **own, base_share=0.75)
    for file in ("model", "text"):
        began, ended, mixed = (
            load_file(out / "encoder" / f"{file}.safetensors")
            for out in (base[0], tmp_path / "far", tmp_path / "near")
        )
        for name in (n for n in began if began[n].is_floating_point()):
            torch.testing.assert_close(
                mixed[name], began[name] + 0.25 * (ended[name] - began[name])
            )
    assert near["moved"] == pytest.approx(far["moved"] / 4, rel=1e-3)


@pytest.mark.parametrize("paradigm", ["clip", "dinov2"])
def test_batch_norms_keep_the_bases_statistics_whatever_is_trained(data, base, tmp_path, paradigm):
    whence, own = base[0], {}
    if paradigm == "dinov2":
        whence, own = tmp_path / "base", DINO | {"encoder": "cnn_mini"}
        go(data, whence, **own)
    go(data, tmp_path / "run", **own | {"base": str(whence / "encoder"), "lr": 1e-3})
    began, ended = (
        load_file(out / "encoder" / "model.safetensors") for out in (whence, tmp_path / "run")
    )
    statistics = [name for name in began if "running" in name or "num_batches" in name]
    assert len(statistics) > 6
    assert all(torch.equal(began[name], ended[name]) for name in statistics)
    assert any(not torch.equal(began[name], ended[name]) for name in began)


@pytest.mark.parametrize("encoder", ["cnn_mini", "hybrid_mini", "davit_mini"])
def test_samples_skip_branches_while_training_alone(encoder):
    model = encoders.build_encoder(encoder, 32)
    for (
        weight
    ) in model.parameters():  # a residual branch that starts as nothing could not be missed
        weight.data += 0.1 * (weight == 0)
    x = model.normalise(torch.rand(4, 1, 32, 32, generator=drawn(0)))
    plain = model.eval()(x)
    encoders.drop_paths(model.trunk, 0.5)
    torch.testing.assert_close(model(x), plain)
    model.train()
    assert not torch.equal(model(x), model(x))


def test_drop_path_takes_part_in_a_run_and_is_refused_where_there_is_none_to_drop(data, tmp_path):
    for name, rate in (("one", 0.5), ("again", 0.5), ("none", 0.0)):
        go(data, tmp_path / name, drop_path=rate, samples_seen=64)
    assert weights(tmp_path / "one") == weights(tmp_path / "again") != weights(tmp_path / "none")
    with pytest.raises(ValueError, match="drop_path: VGG"):
        go(data, tmp_path / "vgg", drop_path=0.1, encoder="vgg11", samples_seen=64)


def test_how_many_reports_the_context_cuts_is_told():
    text = encoders.build_text(
        ["one two three"] * 9, 8, shape=encoders.TextShape(vocabulary=40, context=6)
    )
    assert text.cut(["o", "", "one two three one two three"]) == 0.5


def test_a_checkpoint_of_another_run_or_of_other_data_is_not_resumed(data, silent, tmp_path):
    with pytest.raises(Killed):
        go(data, tmp_path / "run", killed_after(3), checkpoint_seconds=1e-9)
    kept, starts = {f: f.read_bytes() for f in (tmp_path / "run").glob("checkpoint*")}, []
    assert sorted(f.name for f in kept) == ["checkpoint-3.safetensors", "checkpoint.pt"]
    go(data, tmp_path / "run", start_of(starts), lr=2e-3)
    for file, content in kept.items():
        file.write_bytes(content)
    own = parameters(data, tmp_path / "run", paradigm="unicl", n_images=60, samples_seen=96)
    pretrain(own, silent, progress=start_of(starts))
    assert starts == [0, 0]


def test_it_learns(data, tmp_path):
    result = go(data, tmp_path / "run", n_images=32, samples_seen=640, lr=3e-3)
    assert result["curve"]["loss"].iloc[0] > 0.8 * math.log(16)
    assert result["curve"]["loss"].iloc[-1] < 0.6 * math.log(16)


def test_a_last_batch_that_is_not_full_is_shown_and_counted(data, tmp_path):
    result = go(data, tmp_path / "run", samples_seen=70)
    assert result["samples_seen"] == 70
    assert result["epochs"] == pytest.approx(70 / 64)
    assert list(result["curve"]["step"]) == [0, 4]
    assert list(result["curve"]["samples_seen"]) == [16, 70]


def test_a_last_sample_that_is_alone_is_shown_or_not_counted(data, tmp_path):
    result = go(data, tmp_path / "run", samples_seen=65)
    assert result["curve"]["samples_seen"].iloc[-1] == result["samples_seen"]


def test_half_precision_runs_and_says_so(data, tmp_path):
    result = go(data, tmp_path / "run", samples_seen=64, precision="bf16")
    assert result["precision"] == "bfloat16"
    assert math.isfinite(result["loss"])
    encoder = encoders.load_encoder(tmp_path / "run" / "encoder")
    assert all(weight.dtype == torch.float32 for weight in encoder.parameters())


# ---- which images --------------------------------------------------------------------------------------------------
def test_subsets_are_nested_and_drawn_from_the_splits_asked_for(data):
    prepared = images.open_prepared(data)
    small, large = (subset_rows(prepared, parameters(data, "", n_images=n)) for n in (32, 64))
    np.testing.assert_array_equal(large[:32], small)
    assert set(prepared.manifest["split"].iloc[large]) == {"pretrain"}
    both = parameters(data, "", n_images=120, samples_seen=120, splits=["pretrain", "other"])
    assert sorted(subset_rows(prepared, both)) == list(range(120))
    assert list(subset_rows(prepared, parameters(data, "", seed=1))) != list(large)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_images": 119, "samples_seen": 200}, ["n_images is 119", "['pretrain']", "hold "]),
        ({"splits": ["pretrian"]}, ["splits", "'pretrian'", "['other', 'pretrain']"]),
        ({"splits": ["pretrain", "fold7"]}, ["splits", "'fold7'"]),
        ({"batch_size": 65}, ["batch_size 65", "n_images 64"]),
    ],
)
def test_a_subset_that_cannot_be_had_is_refused_by_name(data, tmp_path, changes, said):
    with pytest.raises(ValueError, match=r"images|split") as caught:
        go(data, tmp_path / "run", **changes)
    assert all(part in str(caught.value) for part in said)
    assert not (tmp_path / "run" / "encoder").exists()


def test_clip_leaves_out_images_without_a_report_and_more_than_are_left_are_refused_and_unicl_takes_all(
    silent, tmp_path
):
    with pytest.raises(
        ValueError, match=r"n_images is 60, .* hold 40 images that clip can show \(20 of 60 lack"
    ):
        go(silent, tmp_path / "run", n_images=60, samples_seen=64)
    with pytest.warns(UserWarning, match="hold 40 images that clip can show"):
        result = go(silent, tmp_path / "run", n_images=40, samples_seen=64)
    assert (result["without_report"], result["left_out"]) == (20, 20)
    result = go(
        silent, tmp_path / "run", paradigm="unicl", label_share=0.0, n_images=60, samples_seen=64
    )
    assert math.isfinite(result["loss"])
    assert (result["without_report"], result["left_out"]) == (20, 0)


@pytest.mark.parametrize("seen", [96, 65])
def test_a_loss_that_is_no_longer_finite_stops_the_run_at_its_step(data, tmp_path, seen):
    with pytest.raises(FloatingPointError) as caught:
        go(data, tmp_path / "run", lr=1e30, warmup=0.0, samples_seen=seen)
    assert "at step 1 " in str(caught.value)
    assert "no checkpoint was kept yet" in str(caught.value)
    assert "study-" in str(caught.value)
    assert "lower lr" in str(caught.value)
    assert not (tmp_path / "run" / "encoder").exists()


def test_data_that_is_not_prepared_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.ipynb") as caught:
        go(tmp_path / "nothing", tmp_path / "run")
    assert str(tmp_path / "nothing") in str(caught.value)


# ---- images alone --------------------------------------------------------------------------------------------------
DINO = {
    "paradigm": "dinov2",
    "encoder": "hybrid_mini",
    "n_images": 32,
    "samples_seen": 64,
    "dino": {"prototypes": 32},
}


@pytest.fixture(scope="module")
def distilled(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "dino-base"
    return out, go(data, out, **DINO)


def test_dinov2_runs_in_the_same_loop_and_keeps_its_heads(distilled):
    out, result = distilled
    assert {"dino", "ibot", "koleo", "teacher_entropy", "teacher_spread"} <= set(result["curve"])
    assert {"teacher_entropy", "effective_rank"} <= set(result["checks"])
    assert result["moved"] > 0
    assert sorted(path.name for path in (out / "encoder").glob("*.safetensors")) == [
        "dino.safetensors",
        "model.safetensors",
    ]
    encoder = encoders.load_encoder(out / "encoder")
    assert encoder.info["paradigm"] == "dinov2"
    assert encoder.pool(torch.zeros(1, 1, 32, 32)).shape == (1, 128)


def test_dinov2_goes_on_from_its_own_heads_and_gives_new_ones_time_to_settle(
    data, distilled, base, tmp_path
):
    kept = load_file(distilled[0] / "encoder" / "dino.safetensors")
    go(data, tmp_path / "on", **DINO | {"base": str(distilled[0]), "lr": 1e-12})
    for name, tensor in load_file(tmp_path / "on" / "encoder" / "dino.safetensors").items():
        torch.testing.assert_close(tensor, kept[name], atol=1e-5, rtol=1e-4)
    own = parameters(data, tmp_path / "x", **DINO | {"base": str(distilled[0])})
    assert configure(own, new_heads=False).freeze_trunk == 0
    assert configure(own, new_heads=True).freeze_trunk == SETTLE
    assert (
        configure(
            own.model_copy(update={"dino": {"freeze_trunk": 0.3}}), new_heads=True
        ).freeze_trunk
        == 0.3
    )
    result = go(
        data, tmp_path / "from-clip", **DINO | {"base": str(base[0])}
    )  # whose heads there never were
    assert result["subject"]["encoder"] == "cnn_mini"


def test_heads_of_another_shape_and_constants_that_there_are_not_are_refused(
    data, distilled, tmp_path
):
    with pytest.raises(ValueError, match="another shape"):
        go(data, tmp_path / "run", **DINO | {"base": str(distilled[0]), "dino": {"prototypes": 64}})
    with pytest.raises(ValueError, match="no constant 'protoypes'"):
        go(data, tmp_path / "run", **DINO | {"dino": {"protoypes": 64}})


@pytest.mark.parametrize("encoder", ["hybrid_mini", "cnn_mini"])
def test_a_killed_dinov2_run_resumes_to_the_bit(data, tmp_path, encoder):
    own = DINO | {
        "encoder": encoder,
        "batch_size": 8,
        "dino": {"prototypes": 32, "centring": "softmax"},
    }
    go(data, tmp_path / "whole", **own)
    with pytest.raises(Killed):
        go(data, tmp_path / "cut", killed_after(5), **own | {"checkpoint_steps": 1})
    go(data, tmp_path / "cut", **own)
    for name in ("model", "dino"):
        files = [tmp_path / out / "encoder" / f"{name}.safetensors" for out in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes()
    kept = load_file(tmp_path / "cut" / "encoder" / "model.safetensors")
    assert all(
        count > 0 for n, count in kept.items() if "num_batches" in n
    )  # its batch norms saw batches


def test_a_base_of_another_size_and_data_without_labels_are_refused(data, base, silent, tmp_path):
    prepare_data(study.Data(n_images=100, size=48, fractions=SPLITS, out=str(tmp_path / "large")))
    with pytest.raises(ValueError, match=r"32 px.*48 px"):
        go(tmp_path / "large", tmp_path / "run", base=str(base[0]), n_images=32)
    bare = cards.load_manifest("synthetic", n_images=60).drop(
        columns=[f"label:{n}" for n in LABELS]
    )
    info = {"kind": "synthetic", "institution": "synthetic:study"}
    images.prepare(
        assign_splits(bare, fractions={"pretrain": 1.0}), tmp_path / "bare", size=32, info=info
    )
    for paradigm in ("unicl", "clip+labels"):
        with pytest.raises(ValueError, match="needs structured labels"):
            go(tmp_path / "bare", tmp_path / "run", paradigm=paradigm, n_images=40, samples_seen=64)


# ---- is it being destroyed? ----------------------------------------------------------------------------------------
def test_a_rate_that_destroys_a_continued_encoder_is_a_collapse_and_stops_the_run(
    data, base, tmp_path
):
    said = []

    def score(features, labels):
        assert features.shape == (len(labels), 128)
        said.append(float(np.std(features)))
        return 0.9 if len(said) == 1 else 0.7

    with pytest.raises(Collapsed, match=r"from 0\.900 to 0\.700") as caught:
        pretrain(parameters(data, tmp_path / "run", base=str(base[0])), data, score=score)
    assert "Lower lr" in str(caught.value)
    assert not (tmp_path / "run" / "encoder").exists()
    said.clear()
    own = parameters(data, tmp_path / "fresh")  # from random weights there is nothing to lose
    assert list(pretrain(own, data, score=score)["checks"]["score"])[:2] == [0.9, 0.7]


def test_features_that_fall_together_are_a_collapse(data, tmp_path):
    prepared, p = images.open_prepared(data), parameters(data, tmp_path / "run")
    monitor = Monitor(p, prepared, np.arange(4), None, [])
    encoder = encoders.build_encoder("cnn_mini", 32)
    monitor.check(encoder, 0, [])
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.mul_(0.0)
    with pytest.raises(Collapsed, match="directions"):
        monitor.check(encoder, 16, [])


@quick
@given(rank=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_the_effective_rank_is_at_most_the_rank_and_reached_where_directions_are_alike(rank, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, rank, generator=generator) @ torch.randn(rank, 12, generator=generator)
    assert 1 - 1e-4 <= effective_rank(x) <= rank + 1e-3
    even = torch.linalg.qr(torch.randn(64, rank, generator=generator, dtype=torch.float64))[0]
    apart = torch.cat([even, -even])  # centred, and every direction alike
    assert effective_rank(apart) == pytest.approx(rank, rel=1e-6)


def test_published_weights_that_are_not_here_are_refused_with_where_they_go(
    data, tmp_path, monkeypatch
):
    monkeypatch.setenv("CXRSTUDY_WEIGHTS", str(tmp_path))
    with pytest.raises(encoders.MissingWeights, match="rad-dino"):
        go(data, tmp_path / "run", base="rad-dino")
