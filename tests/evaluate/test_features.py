"""Features: what a forward pass gives, kept once, found again, made anew where they are spoilt; and others' vectors."""

import multiprocessing
import os
import sys
import weakref

import numpy as np
import pandas as pd
import pytest
import torch

from cxrstudy import encoders, study
from cxrstudy.data.images import Prepared, open_prepared
from cxrstudy.data.manifest import label_array
from cxrstudy.data.sets import prepare_data
from cxrstudy.evaluate import features, protocol
from cxrstudy.evaluate.features import (
    encode,
    encode_batches,
    encode_each,
    extract,
    features_folder,
    keep,
    patches,
    pool_tokens,
    read_embeddings,
)

torch.set_num_threads(1)
ROWS = np.array([7, 3, 30, 3, 59, 0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("data")
    shares = {"train": 0.5, "validation": 0.2, "test": 0.3}
    prepare_data(study.Data(n_images=120, size=32, fractions=shares, out=str(where)))
    return where


@pytest.fixture
def prepared(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    return open_prepared(folder)


@pytest.fixture
def passes():
    """Counts every module that is called, whoever calls it."""
    called = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: called.append(module)
    )
    yield called
    hook.remove()


def encoder(name="random:cnn_mini", seed=0):
    return encoders.load_encoder(name, size=32, seed=seed)


# ---- one pass ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["cnn_mini", "davit_mini", "hybrid_mini", "vit_tiny_patch16_224"])
def test_the_last_layer_is_what_forward_features_gives_and_more_layers_stand_behind_it(name):
    one, x = encoder(f"random:{name}"), torch.randn(2, 1, 32, 32)
    last, classes = extract(one, x)
    torch.testing.assert_close(last, one.forward_features(x))
    vit = name.startswith(("vit", "hybrid"))
    assert classes.shape == (2, one.channels if vit else 0)
    if vit:
        torch.testing.assert_close(
            classes, one.trunk.forward_features(x.expand(-1, one.in_chans, -1, -1))[:, 0]
        )
    both, of_both = extract(one, x, layers=2)
    assert both.shape[:2] == last.shape[:2] and both.shape[2] > last.shape[2]
    torch.testing.assert_close(both[..., : one.channels], last)
    assert of_both.shape[1] == 2 * classes.shape[1]


def test_stages_of_another_grid_are_averaged_onto_the_last_ones():
    one, x = encoder("random:davit_mini"), torch.randn(2, 1, 64, 64)
    inner = one.trunk.forward_intermediates(x, indices=2, intermediates_only=True)[0]
    found = extract(one, x, layers=2)[0][..., one.channels :]
    assert inner.shape[-1] == 2 * int(found.shape[1] ** 0.5)
    torch.testing.assert_close(
        found, torch.nn.functional.avg_pool2d(inner, 2).flatten(2).transpose(1, 2)
    )


@pytest.mark.parametrize("kept", [False, True])
def test_several_poolings_of_one_pass_are_those_of_several(prepared, passes, kept):
    one = encoder()
    alone = [
        encode(one, prepared, ROWS, pooling=pooling, kept=kept) for pooling in ("max+grid2", "mean")
    ]
    passes.clear()
    encode(one, prepared, ROWS, pooling="mean")
    once = len(passes)
    passes.clear()
    both = encode_each(one, prepared, ROWS, ["max+grid2", "mean"], kept=kept)
    assert len(passes) == (0 if kept else once)
    for found, expected in zip(both, alone, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_class_tokens_pool_only_where_there_are_any(prepared):
    assert encode(
        encoder("random:vit_tiny_patch16_224"), prepared, ROWS, pooling="class+mean"
    ).shape == (6, 2 * 192)
    with pytest.raises(ValueError, match="'class' needs an encoder with a class token"):
        encode(encoder(), prepared, ROWS, pooling="class")
    with pytest.raises(ValueError, match="layers=2"):
        encode(encoders.load_encoder("pixels"), prepared, ROWS, pooling="mean", layers=2)


# ---- kept ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pooling", ["mean+max+grid2", "class"])
def test_kept_features_are_those_of_a_fresh_pass_in_half_precision(prepared, pooling):
    one = encoder("random:hybrid_mini")
    fresh = encode(one, prepared, ROWS, pooling=pooling)
    found = encode(one, prepared, ROWS, pooling=pooling, kept=True, batch=2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, fresh, rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(
        encode(one, prepared, ROWS[::-1], pooling=pooling, kept=True), found[::-1]
    )


def test_a_second_look_at_the_same_rows_runs_no_encoder_and_new_rows_cost_themselves_alone(
    prepared, passes
):
    encode(encoder(), prepared, ROWS, pooling="mean", kept=True)
    assert passes
    passes.clear()
    again = encode(
        encoder(), prepared, ROWS, pooling="max+grid2", kept=True
    )  # other parts, another object
    assert not passes
    kept = keep(encoder(), prepared, ROWS, features_folder(encoder(), prepared))
    assert kept.stands(np.arange(120)).sum() == len(set(ROWS))
    assert again.shape == (6, 128 * 5)
    sizes = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda _, args: sizes.append(len(args[0]))
    )
    encode(encoder(), prepared, np.array([7, 80, 81]), pooling="mean", kept=True)
    hook.remove()
    assert set(sizes) == {2}


def test_a_second_evaluation_of_an_encoder_does_no_forward_pass(prepared, folder, passes):
    values = {
        "data": str(folder),
        "keep_features": True,
        "resamples": 20,
        "strengths": [1.0],
        "tasks": ["findings"],
    }
    p = study.validated("classify", values)
    first = protocol.run(p, prepared)
    assert passes
    passes.clear()
    second = protocol.run(p, prepared)
    np.testing.assert_array_equal(second["scores"], first["scores"])
    attention = protocol.run(p.model_copy(update={"probe": "attention"}), prepared)
    assert not passes
    assert attention["scores"].shape == first["scores"].shape
    protocol.run(p.model_copy(update={"keep_features": False}), prepared)
    assert passes


def test_another_encoder_data_set_or_depth_has_another_place(prepared):
    vit = encoder("random:vit_tiny_patch16_224")
    other = Prepared(prepared.manifest, 255 - np.array(prepared.images), prepared.info)
    renamed = prepared.manifest.assign(image_id=prepared.manifest["image_id"] + "x")
    fewer = Prepared(renamed, prepared.images, prepared.info)
    sites = [
        (encoder(), prepared, 1),
        (encoder(seed=1), prepared, 1),
        (vit, prepared, 1),
        (vit, prepared, 2),
    ]
    pixel = np.array(prepared.images)
    pixel[2, 5, 5] ^= 1  # of one image among many
    sites += [(encoder(), Prepared(prepared.manifest, pixel, prepared.info), 1)]
    sites += [
        (encoder(), other, 1),
        (encoder(), fewer, 1),
        (encoders.load_encoder("pixels"), prepared, 1),
    ]
    assert len({features_folder(*site) for site in sites}) == len(sites)
    assert features_folder(encoder(), prepared) == features_folder(encoder(), prepared)
    assert features_folder(encoder(), prepared).parent == study.runs_root() / "features"


@pytest.mark.parametrize("harm", ["bytes", "cut", "shape", "no sum", "rubbish"])
def test_spoilt_features_are_made_anew(prepared, harm):
    one = encoder()
    right = encode(one, prepared, ROWS, pooling="mean", kept=True)
    where = features_folder(one, prepared)
    file = where / "patches.npy"
    if harm == "bytes":
        np.load(file, mmap_mode="r+")[3, 0, :9] = 9
    elif harm == "cut":
        os.truncate(file, file.stat().st_size // 2)
    elif harm == "shape":
        np.save(file, np.zeros((120, 2, 128), np.float16))
    elif harm == "no sum":  # a crash between the features of a row and its checksum
        np.load(where / "sums.npy", mmap_mode="r+")[7] = 0
    else:
        (where / "shapes.json").write_text("{not json")
    np.testing.assert_array_equal(encode(one, prepared, ROWS, pooling="mean", kept=True), right)


def _encode_beside(folder, runs, rows, found):
    os.environ["CXRSTUDY_RUNS"] = runs
    torch.set_num_threads(1)
    found.put(encode(encoder(), open_prepared(folder), rows, pooling="mean", kept=True, batch=4))


def test_two_processes_at_once_share_one_set_of_features(prepared, folder, tmp_path):
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    found = context.SimpleQueue()
    call = (_encode_beside, (str(folder), str(tmp_path / "runs"), np.arange(60), found))
    workers = [context.Process(target=call[0], args=call[1]) for _ in range(2)]
    for worker in workers:
        worker.start()
    values = [found.get() for _ in workers]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    fresh = encode(encoder(), prepared, np.arange(60), pooling="mean")
    for value in values:
        np.testing.assert_allclose(value, fresh, rtol=2e-3, atol=2e-3)
    kept = keep(encoder(), prepared, np.arange(60), features_folder(encoder(), prepared))
    assert kept.stands(np.arange(120)).sum() == 60


def test_features_that_half_precision_cannot_hold_are_refused_by_image(prepared, monkeypatch):
    one = encoder()
    monkeypatch.setattr(one, "forward_features", lambda x: x.flatten(2).transpose(1, 2) * 1e6)
    with pytest.raises(ValueError, match=r"image study-0 .*keep_features=False"):
        keep(one, prepared, np.arange(4), features_folder(one, prepared))


@pytest.mark.parametrize("kept", [False, True])
def test_no_more_than_a_batch_is_held_in_memory(prepared, monkeypatch, kept):
    alive, own = [], features._forward

    def watched(*call, **how):
        assert not any(tensor() is not None for tensor in alive[:-1])
        found = own(*call, **how)
        alive.append(weakref.ref(found["patches"]))
        return found

    monkeypatch.setattr(features, "_forward", watched)
    sizes = [
        len(part)
        for part, _ in encode_batches(encoder(), prepared, np.arange(40), kept=kept, batch=8)
    ]
    assert sizes == [8] * 5
    assert len(alive) == 5


def test_what_was_encoded_before_a_failure_is_not_encoded_again(prepared, monkeypatch):
    own, sizes = features._forward, []

    def fails(encoder, prepared, rows, layers):
        if rows[0] >= 16:
            raise KeyboardInterrupt
        return own(encoder, prepared, rows, layers)

    monkeypatch.setattr(features, "_forward", fails)
    with pytest.raises(KeyboardInterrupt):
        patches(encoder(), prepared, np.arange(40), kept=True, batch=8)
    monkeypatch.setattr(
        features, "_forward", lambda *call, **how: sizes.append(len(call[2])) or own(*call, **how)
    )
    patches(encoder(), prepared, np.arange(40), kept=True, batch=8)
    assert sizes == [8] * 3


def test_patches_that_are_not_kept_leave_nothing_behind(prepared):
    found = patches(encoder(), prepared, ROWS)
    pooled = pool_tokens(torch.from_numpy(found[ROWS]).float(), "mean")
    np.testing.assert_allclose(
        pooled, encode(encoder(), prepared, ROWS, pooling="mean"), rtol=2e-3, atol=2e-3
    )
    assert not list((study.runs_root() / "features").iterdir())


# ---- labels as the only teacher ------------------------------------------------------------------------------------
def test_a_supervised_encoder_learns_its_labels_and_is_the_same_each_time(prepared):
    rows = np.arange(100)
    y = label_array(prepared.manifest.iloc[rows], ["cardiomegaly"], truth=True)
    images = np.array(prepared.images)
    images[np.flatnonzero(y[:, 0] == 1), 4:12, 4:12] = 255
    marked = Prepared(prepared.manifest, images, prepared.info)

    def gap(one):
        x = encode(one, marked, rows, pooling="max")
        classes = [x[y[:, 0] == kind] for kind in (0, 1)]
        spread = np.sqrt(sum(part.var(0) for part in classes) / 2) + 1e-6
        return (np.abs(classes[1].mean(0) - classes[0].mean(0)) / spread).max(), x

    def trained(seed=0):
        return features.train_supervised(encoder(), marked, rows, y, samples_seen=1500, seed=seed)

    before, (after, x) = gap(encoder())[0], gap(trained())
    assert after > 1.5 * before
    np.testing.assert_array_equal(gap(trained())[1], x)
    assert not np.allclose(gap(trained(1))[1], x)
    assert not any(w.requires_grad for w in trained().parameters())


# ---- others' vectors -----------------------------------------------------------------------------------------------
def vectors(prepared, tmp_path, form, change=None):
    ids = prepared.manifest["image_id"].to_numpy(str)
    x = encode(encoder(), prepared, np.arange(len(ids)), pooling="mean")
    order = np.random.default_rng(0).permutation(len(ids))
    ids, x = ids[order], x[order].copy()
    if change is not None:
        ids, x = change(ids, x)
    path = tmp_path / f"table.{'npz' if form == 'npz' else 'parquet'}"
    if form == "npz":
        np.savez(path, image_id=ids, vectors=x)
    elif form == "vector":
        pd.DataFrame({"image_id": ids, "vector": list(x)}).to_parquet(path)
    else:
        pd.DataFrame(x, columns=[f"f{k}" for k in range(x.shape[1])]).assign(
            image_id=ids, site="ward"
        ).to_parquet(path)
    return path


def classify(prepared, folder, path, **changes):
    values = {
        "encoder": str(path),
        "data": str(folder),
        "pooling": "mean",
        "resamples": 20,
        "strengths": [1.0],
    }
    values |= {"tasks": ["findings", "lines_tubes"]} | changes
    return protocol.run(study.validated("classify", values), prepared)


@pytest.mark.parametrize("form", ["npz", "vector", "columns"])
def test_a_table_of_vectors_is_judged_as_the_encoder_that_made_it(
    prepared, folder, tmp_path, form, passes
):
    path = vectors(prepared, tmp_path, form)
    passes.clear()
    result = classify(prepared, folder, path)
    assert not passes
    own = classify(prepared, folder, "random:cnn_mini")
    np.testing.assert_allclose(result["scores"], own["scores"], rtol=1e-3, atol=1e-3)
    assert (result["subject"]["paradigm"], result["subject"]["encoder"]) == (
        "embeddings",
        path.name,
    )
    assert result["subject"]["patients"] == own["subject"]["patients"]


def test_only_the_images_that_are_judged_must_be_in_the_table(prepared, folder, tmp_path):
    test = set(prepared.manifest.loc[prepared.manifest["split"] == "test", "image_id"])
    path = vectors(
        prepared,
        tmp_path,
        "npz",
        lambda ids, x: (ids[[i not in test for i in ids]], x[: 120 - len(test)]),
    )
    with pytest.raises(
        ValueError, match=rf"table.npz lacks {len(test)} of 120 images; first: study-"
    ):
        classify(prepared, folder, path)
    assert read_embeddings(path).vectors.shape == (120 - len(test), 128)


def test_a_list_of_patients_beside_a_table_is_minded(prepared, folder, tmp_path):
    path = vectors(prepared, tmp_path, "npz")
    (tmp_path / "patients.txt").write_text(prepared.manifest["patient_id"].iloc[0])
    with pytest.raises(protocol.LeakError, match="1 patients who judge encoder"):
        classify(prepared, folder, path)


def test_tables_that_do_not_hold_are_refused_with_row_and_count(prepared, tmp_path):
    def twice(ids, x):
        return np.append(ids, ids[:3]), np.concatenate([x, x[:3]])

    def broken(ids, x):
        x[5, 2], x[9] = np.nan, np.inf
        return ids, x

    for form, change, said in [
        ("npz", twice, "3 image ids appear again; first: study-"),
        ("columns", broken, r"the vector in row 5 \(study-\d+\) is not finite \(2 such rows\)"),
        (
            "vector",
            lambda ids, x: (ids, [row[: 3 + k % 2] for k, row in enumerate(x)]),
            "all of one length",
        ),
        ("npz", lambda ids, x: (ids, x[:-1]), "120 image ids but vectors of shape"),
    ]:
        with pytest.raises(ValueError, match=said) as caught:
            read_embeddings(vectors(prepared, tmp_path, form, change))
        assert str(tmp_path) in str(caught.value)
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(ValueError, match="no table of embeddings"):
        read_embeddings(tmp_path / "text.parquet")
    with pytest.raises(encoders.MissingWeights, match=r"no table of embeddings at .*gone.npz"):
        protocol.open_subject(str(tmp_path / "gone.npz"), 32, 0)
