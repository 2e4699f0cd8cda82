"""A run shows exactly what it says, records its patients, and resumes to the bit."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from made_runs import DINO, Killed, go, killed_after, parameters, start_of, weights
from safetensors.torch import load_file

from cxrstudy import encoders, study
from cxrstudy.data import cards, images
from cxrstudy.data.manifest import assign_splits, nested_subset
from cxrstudy.data.sets import prepare_data
from cxrstudy.data.synthetic import VERSION
from cxrstudy.data.vocabulary import LABELS
from cxrstudy.pretrain import checkpoint
from cxrstudy.pretrain.build import precision, seen_patients
from cxrstudy.pretrain.loop import pretrain
from cxrstudy.results import window

torch.set_num_threads(1)
INFO = {"kind": "synthetic", "institution": "synthetic:study"}


# ---- parts -------------------------------------------------------------------------------------
def test_the_precision_asked_for_is_the_one_used(monkeypatch):
    cpu = torch.device("cpu")
    assert precision("fp32", cpu) == torch.float32
    assert precision("bf16", cpu) == torch.bfloat16
    for amx, avx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert (precision("auto", cpu) == torch.bfloat16) == (amx or avx)
    for has, kind in ((True, torch.bfloat16), (False, torch.float32)):  # an old card emulates it
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, h=has: h)
        assert precision("auto", torch.device("cuda")) == kind


@pytest.mark.parametrize("encoder", ["cnn_mini", "hybrid_mini", "davit_mini"])
def test_samples_skip_branches_while_training_alone(encoder):
    model = encoders.build_encoder(encoder, 32)
    for weight in model.parameters():  # a residual branch that starts at 0 would have no effect
        weight.data += 0.1 * (weight == 0)
    x = model.normalise(torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    plain = model.eval()(x)
    encoders.drop_paths(model.trunk, 0.5)
    torch.testing.assert_close(model(x), plain)
    model.train()
    assert not torch.equal(model(x), model(x))


def test_the_share_of_reports_that_the_context_cuts():
    shape = encoders.TextShape(vocabulary=40, context=6)
    text = encoders.build_text(["one two three"] * 9, 8, shape=shape)
    assert text.cut(["o", "", "one two three one two three"]) == 0.5


# ---- runs --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    """Prepare images of which a third have no report."""
    folder = tmp_path_factory.mktemp("data") / "silent"
    manifest = cards.load_manifest("synthetic", n_images=60)
    manifest = assign_splits(manifest, fractions={"pretrain": 1.0})
    recorded = [column for column in manifest if column.startswith("label:")]
    manifest[recorded] = manifest[recorded].fillna(0.0)
    reports = manifest["report"]
    manifest["report"] = [None if k % 3 == 0 else text for k, text in enumerate(reports)]
    images.prepare(manifest, folder, size=32, info=INFO)
    return folder


def patients(out):
    return (out / "encoder" / "patients.txt").read_text().split("\n")


def test_what_a_run_returns_and_leaves(data, tmp_path):
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
    assert result["loss"] == curve["loss"].iloc[-1]  # with few points the last
    assert {"contrastive", "logit_scale"} <= set(curve)
    assert 0.01 < result["relative_weight_change"] < 1
    assert list(result["checks"]["samples_seen"]) == [0, 16, 32, 48, 64, 80, 96]
    assert (result["checks"]["effective_rank"] > 1).all()
    assert 1 < curve["loss"].iloc[0] < 6  # log(16) is 2.8
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "run" / "curve.csv"), curve)
    subject = {"paradigm": "clip", "n_images": 64, "samples_seen": 96, "seed": 0}
    subject |= {"data": "study-abc", "base": "", "encoder": "cnn_mini", "generator": VERSION} | INFO
    assert result["subject"] == subject
    left = {"checks.csv", "curve.csv", "encoder", "checkpoint.pt", "checkpoint-6.safetensors"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == left
    encoder = encoders.load_encoder(tmp_path / "run" / "encoder")
    names = ("unique_images", "epochs", "flops", "seconds_training")
    spent = {name: result[name] for name in names}
    assert encoder.info == subject | spent | {"precision": "float32", "processes": 1}
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
    assert patients(base) == sorted(bases)
    go(data, tmp_path / "alone", seed=3)
    assert patients(tmp_path / "alone") == sorted(own)
    for where in (base / "encoder", base):  # the run's folder or its encoder's
        result = go(data, tmp_path / "continued", seed=3, base=str(where))
        assert result["subject"]["base"] == "clip-base-123abc"
        assert patients(tmp_path / "continued") == sorted(own | bases)
    assert own.isdisjoint(bases)
    assert seen_patients(str(tmp_path / "continued")) == sorted(own | bases)
    assert seen_patients("") == seen_patients("random:cnn_mini") == []


def test_a_continued_run_starts_from_its_base(data, base, tmp_path):
    go(data, tmp_path / "run", base=str(base / "encoder"), lr=1e-12)
    started, ended = (encoders.load_encoder(out / "encoder") for out in (base, tmp_path / "run"))
    for name in ("mean", "std", "architecture"):
        assert getattr(ended, name) == getattr(started, name)
    for a, b in zip(started.parameters(), ended.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    texts = [
        encoders.load_text(out / "encoder", started.channels) for out in (base, tmp_path / "run")
    ]
    assert texts[0].tokenizer.to_str() == texts[1].tokenizer.to_str()
    torch.testing.assert_close(texts[0].image_projection.weight, texts[1].image_projection.weight)


@pytest.mark.parametrize("paradigm", ["clip", "unicl"])
def test_the_same_seed_gives_the_same_weights_to_the_bit_and_another_does_not(
    data, tmp_path, paradigm
):
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        torch.manual_seed(np.random.default_rng().integers(2**31))  # any state of the caller
        go(data, tmp_path / name, seed=seed, paradigm=paradigm)
    assert weights(tmp_path / "one") == weights(tmp_path / "again")
    assert all(
        a != b for a, b in zip(weights(tmp_path / "one"), weights(tmp_path / "other"), strict=True)
    )


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


def test_a_run_killed_between_its_end_and_its_record_is_not_trained_again(data, tmp_path):
    first, starts = go(data, tmp_path), []
    again = go(data, tmp_path, start_of(starts))
    assert starts == [6]
    assert again["seconds_training"] - first["seconds_training"] < first["seconds_training"]
    for name in ("loss", "flops", "relative_weight_change"):
        assert again[name] == first[name]
    for table in ("curve", "checks"):
        pd.testing.assert_frame_equal(again[table], first[table])
    checkpoint.remove(tmp_path)
    assert not list(tmp_path.glob("*checkpoint*"))
    go(data, tmp_path, start_of(starts))
    assert starts == [6, 0]


def test_a_share_of_the_base_is_mixed_into_what_is_kept(data, base, tmp_path):
    own = {"base": str(base / "encoder"), "lr": 1e-3}
    far = go(data, tmp_path / "far", **own)
    near = go(data, tmp_path / "near", **own, wise_ft_alpha=0.25)
    for file in ("model", "text"):
        started, ended, mixed = (
            load_file(out / "encoder" / f"{file}.safetensors")
            for out in (base, tmp_path / "far", tmp_path / "near")
        )
        for name in (n for n in started if started[n].is_floating_point()):
            torch.testing.assert_close(
                mixed[name], started[name] + 0.25 * (ended[name] - started[name])
            )
    assert near["relative_weight_change"] == pytest.approx(
        far["relative_weight_change"] / 4, rel=1e-3
    )


@pytest.mark.parametrize("paradigm", ["clip", "dinov2"])
def test_batch_norms_keep_the_bases_statistics_whatever_is_trained(data, base, tmp_path, paradigm):
    source, own = base, {}
    if paradigm == "dinov2":
        source, own = tmp_path / "base", DINO | {"encoder": "cnn_mini"}
        go(data, source, **own)
    go(data, tmp_path / "run", **own | {"base": str(source / "encoder"), "lr": 1e-3})
    started, ended = (
        load_file(out / "encoder" / "model.safetensors") for out in (source, tmp_path / "run")
    )
    statistics = [name for name in started if "running" in name or "num_batches" in name]
    assert len(statistics) > 6
    assert all(torch.equal(started[name], ended[name]) for name in statistics)
    assert any(not torch.equal(started[name], ended[name]) for name in started)


def test_drop_path_takes_part_in_a_run_and_is_refused_where_there_is_none_to_drop(data, tmp_path):
    for name, rate in (("one", 0.5), ("again", 0.5), ("none", 0.0)):
        go(data, tmp_path / name, drop_path=rate, samples_seen=64)
    assert weights(tmp_path / "one") == weights(tmp_path / "again") != weights(tmp_path / "none")
    with pytest.raises(ValueError, match="drop_path: VGG"):
        go(data, tmp_path / "vgg", drop_path=0.1, encoder="vgg11", samples_seen=64)


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


# ---- refused -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_images": 119, "samples_seen": 200}, ["n_images is 119", "['pretrain']", "hold "]),
        ({"splits": ["pretrian"]}, ["splits", "'pretrian'", "['other', 'pretrain']"]),
        ({"splits": ["pretrain", "fold7"]}, ["splits", "'fold7'"]),
        ({"batch_size": 65}, ["batch_size 65", "n_images 64"]),
    ],
)
def test_a_subset_that_cannot_be_had_is_refused_by_name(data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=r"images|split") as caught:
        go(data, tmp_path / "run", **changes)
    assert all(part in str(caught.value) for part in message)
    assert not (tmp_path / "run" / "encoder").exists()


def test_clip_leaves_out_images_without_a_report_and_unicl_takes_all(silent, tmp_path):
    with pytest.raises(
        ValueError, match=r"n_images is 60, .* hold 40 images that clip can use \(20 of 60 lack"
    ):
        go(silent, tmp_path / "run", n_images=60, samples_seen=64)
    with pytest.warns(UserWarning, match="hold 40 images that clip can use"):
        result = go(silent, tmp_path / "run", n_images=40, samples_seen=64)
    assert (result["without_report"], result["left_out"]) == (20, 20)
    result = go(
        silent, tmp_path / "run", paradigm="unicl", label_share=0.0, n_images=60, samples_seen=64
    )
    assert math.isfinite(result["loss"])
    assert (result["without_report"], result["left_out"]) == (20, 0)


def test_data_that_is_not_prepared_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.ipynb") as caught:
        go(tmp_path / "nothing", tmp_path / "run")
    assert str(tmp_path / "nothing") in str(caught.value)


def test_a_base_of_another_size_and_data_without_labels_are_refused(data, base, silent, tmp_path):
    large = {"n_images": 100, "size": 48, "fractions": {"pretrain": 0.7, "other": 0.3}}
    prepare_data(study.Data(out=str(tmp_path / "large"), **large))
    with pytest.raises(ValueError, match=r"32 px.*48 px"):
        go(tmp_path / "large", tmp_path / "run", base=str(base), n_images=32)
    columns = [f"label:{n}" for n in LABELS]
    bare = cards.load_manifest("synthetic", n_images=60).drop(columns=columns)
    bare = assign_splits(bare, fractions={"pretrain": 1.0})
    images.prepare(bare, tmp_path / "bare", size=32, info=INFO)
    for paradigm in ("unicl", "clip+labels"):
        with pytest.raises(ValueError, match="needs structured labels"):
            go(tmp_path / "bare", tmp_path / "run", paradigm=paradigm, n_images=40, samples_seen=64)


def test_published_weights_that_are_not_here_are_refused_with_where_they_go(
    data, tmp_path, monkeypatch
):
    monkeypatch.setenv("CXRSTUDY_WEIGHTS", str(tmp_path))
    with pytest.raises(encoders.MissingWeights, match="rad-dino"):
        go(data, tmp_path / "run", base="rad-dino")


@pytest.mark.parametrize("seen", [96, 65])
def test_a_loss_that_is_no_longer_finite_stops_the_run_at_its_step(data, tmp_path, seen):
    with pytest.raises(FloatingPointError) as caught:
        go(data, tmp_path / "run", lr=1e30, warmup=0.0, samples_seen=seen)
    assert "at step 1 " in str(caught.value)
    assert "there is no checkpoint yet" in str(caught.value)
    assert "study-" in str(caught.value)
    assert "lower lr" in str(caught.value)
    assert not (tmp_path / "run" / "encoder").exists()
