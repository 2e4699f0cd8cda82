"""``keep="best"``: the step that a probe on validation patients scores best, and what is said."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from made_runs import DINO, Killed, killed_after, parameters
from safetensors.torch import load_file

from cxrstudy import encoders, study
from cxrstudy.data import images
from cxrstudy.data.manifest import read_manifest, write_manifest
from cxrstudy.data.probed import probed_images
from cxrstudy.data.sets import prepare_data
from cxrstudy.evaluate.kept import optimism, probe_auroc
from cxrstudy.pretrain.build import build_run
from cxrstudy.pretrain.kept import SHARE, Chooser
from cxrstudy.pretrain.loop import pretrain

torch.set_num_threads(1)
PARADIGMS = {
    "clip": {"ema": 0.9},
    "unicl": {"paradigm": "unicl"},
    "dinov2": DINO | {"samples_seen": 96},
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Prepare data with a labelled split of training, validation and test patients."""
    folder = tmp_path_factory.mktemp("data") / "study-lab"
    fractions = {"pretrain": 0.3, "train": 0.3, "validation": 0.2, "test": 0.2}
    prepare_data(study.Data(n_images=300, size=32, fractions=fractions, out=str(folder)))
    return folder


def go(data, out, progress=iter, probe=probe_auroc, **own):
    p = parameters(data, out, keep="best", **{"probe_steps": 2} | own)
    return pretrain(p, data, progress=progress, probe=probe)


def saved(out):
    return load_file(out / "encoder" / "model.safetensors")


def scripted(scores):
    left = iter(scores)
    return lambda *_: next(left)


def trunk(checkpoint, prefix):
    found = load_file(checkpoint)
    start = f"model.{prefix}"
    return {n.removeprefix(start): w for n, w in found.items() if n.startswith(start)}


def test_names_of_runs_do_not_change():
    assert not {"keep", "probe_steps"} & study.Pretrain().model_dump().keys()
    assert study.Pretrain(keep="best", probe_steps=3).model_dump()["keep"] == "best"
    with pytest.raises(study.StudyError, match="probe_steps needs keep='best'"):
        study.validated("pretrain", {"probe_steps": 3})


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_a_killed_run_probes_and_keeps_what_an_undisturbed_one_does(labelled, tmp_path, paradigm):
    own = PARADIGMS[paradigm] | {"checkpoint_steps": 1}
    whole = go(labelled, tmp_path / "whole", **own)
    assert list(whole["probes"]["step"]) == [2, 4, 6]
    assert list(whole["probes"]["samples_seen"]) == [32, 64, 96]
    assert whole["validation_auroc"] == whole["probes"]["score"].max()
    assert 0 < whole["probe_time_share"] < 1
    assert "optimistic" in whole["kept_by"]
    for k in (2, 3, 5):
        with pytest.raises(Killed):
            go(labelled, tmp_path / "cut", killed_after(k), **own)
    cut = go(labelled, tmp_path / "cut", **own)
    assert cut["resumed_from"] == 5
    same = ["step", "samples_seen", "score"]
    pd.testing.assert_frame_equal(cut["probes"][same], whole["probes"][same])
    assert cut["kept_step"] == whole["kept_step"]
    one, other = saved(tmp_path / "whole"), saved(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "cut" / "probes.csv"), cut["probes"])


@pytest.mark.parametrize(
    ("own", "prefix"),
    [
        ({}, "objective.encoder.trunk."),
        ({"ema": 0.9}, "ema_model.module.encoder.trunk."),
        (DINO | {"samples_seen": 96}, "objective.teacher.trunk.trunk."),
    ],
)
def test_the_weights_of_the_best_step_are_saved_and_training_goes_on_unchanged(
    labelled, tmp_path, own, prefix
):
    best = go(labelled, tmp_path / "best", probe=scripted([0.6, 0.9, 0.7]), **own)
    assert (best["kept_step"], best["validation_auroc"]) == (4, 0.9)
    assert best["last_validation_auroc"] == 0.7
    plain = parameters(labelled, tmp_path / "last", **own)
    stops = plain.model_copy(update={"checkpoint_steps": 4})
    with pytest.raises(Killed):
        pretrain(stops, labelled, progress=killed_after(4))
    at_four = trunk(tmp_path / "last" / "checkpoint-4.safetensors", prefix)
    kept = saved(tmp_path / "best")
    assert kept.keys() == at_four.keys()
    assert all(torch.equal(kept[name], at_four[name]) for name in kept)
    last = pretrain(plain, labelled)
    assert "kept_step" not in last
    pd.testing.assert_frame_equal(last["curve"], best["curve"])
    ended = saved(tmp_path / "last")
    assert any(not torch.equal(kept[name], ended[name]) for name in kept)
    equal = go(labelled, tmp_path / "tie", probe=scripted([0.5, 0.5, 0.5]), **own)
    assert equal["kept_step"] == 2  # the earliest of equal ones


def changed(labelled, folder, change):
    """Copy prepared data with another manifest."""
    shutil.copytree(labelled, folder)
    write_manifest(change(read_manifest(folder / "manifest.parquet")), folder / "manifest.parquet")
    return folder


def test_test_patients_are_never_looked_at(labelled, tmp_path):
    def flip(manifest):
        truth = [c for c in manifest if c.startswith(("truth:", "label:"))]
        of_test = manifest["split"] == "test"
        manifest.loc[of_test, truth] = 1 - manifest.loc[of_test, truth]
        return manifest

    other = changed(labelled, tmp_path / "study-lab", flip)
    one, two = (go(data, tmp_path / name) for name, data in (("a", labelled), ("b", other)))
    assert list(one["probes"]["score"]) == list(two["probes"]["score"])
    y, flipped = (probed_images(images.open_prepared(d), "test")[1] for d in (labelled, other))
    assert not np.array_equal(y, flipped, equal_nan=True)


@pytest.mark.parametrize(
    ("own", "change", "message"),
    [
        ({}, {"validation": "test"}, "has no 'validation', only .*'test'"),
        ({}, {"train": "test"}, "has no 'train'"),
        ({"splits": ["pretrain", "validation"]}, {}, "leave 'validation' out of splits"),
        ({"probe": None}, {}, "needs a probe"),
    ],
)
def test_data_that_cannot_tell_the_best_step_are_refused(labelled, tmp_path, own, change, message):
    def rename(manifest):
        return manifest.assign(split=manifest["split"].replace(change))

    data = changed(labelled, tmp_path / "study-lab", rename)
    with pytest.raises(study.StudyError, match=message):
        go(data, tmp_path / "run", **own)


def test_validation_patients_of_the_base_are_left_out_and_no_label_is_refused(labelled, tmp_path):
    run = build_run(
        parameters(labelled, tmp_path / "run", keep="best"),
        images.open_prepared(labelled),
        tmp_path,
    )
    manifest = run.prepared.manifest
    validation = set(manifest.loc[manifest["split"] == "validation", "patient_id"])
    whole = Chooser(run, probe_auroc)
    run.patients |= set(sorted(validation)[:10])
    assert len(Chooser(run, probe_auroc).validation[0]) < len(whole.validation[0])
    run.patients |= validation
    with pytest.raises(study.StudyError, match=r"none among .* and 0 images"):
        Chooser(run, probe_auroc)


def test_the_default_interval_follows_from_parameters_and_data_alone(labelled, tmp_path):
    p = parameters(labelled, tmp_path, keep="best", samples_seen=16 * 100_000)
    chooser = Chooser(build_run(p, images.open_prepared(labelled), tmp_path), probe_auroc)
    probes = [step for step in range(1, 100_001) if chooser.due(step)]
    assert len(probes) == 20
    assert probes[-1] == 100_000
    probed = len(probes) * (len(chooser.train[0]) + len(chooser.validation[0]))
    assert probed < SHARE * 3 * p.samples_seen
    with pytest.warns(UserWarning, match="only the last step was probed.*give probe_steps"):
        short = go(labelled, tmp_path / "short", probe_steps=0)
    assert list(short["probes"]["step"]) == [6]


def test_the_kept_steps_optimism_is_its_validation_score_minus_the_test_score(labelled, tmp_path):
    go(labelled, tmp_path / "best")
    prepared = images.open_prepared(labelled)
    found = optimism(str(tmp_path / "best" / "encoder"), prepared, labelled)
    info = encoders.facts_of(tmp_path / "best" / "encoder")["info"]
    assert found["kept_step"] == info["kept_step"]
    assert found["kept_validation_auroc"] == info["validation_auroc"]
    assert 0 < found["kept_test_auroc"] < 1
    assert found["kept_optimism"] == found["kept_validation_auroc"] - found["kept_test_auroc"]
    assert optimism(str(tmp_path / "best" / "encoder"), prepared, tmp_path / "other") == {}
    assert optimism("random:cnn_mini", prepared, labelled) == {}
    again = parameters(labelled, tmp_path / "on", base=str(tmp_path / "best" / "encoder"))
    pretrain(again, labelled)
    assert optimism(str(tmp_path / "on" / "encoder"), prepared, labelled) == {}
