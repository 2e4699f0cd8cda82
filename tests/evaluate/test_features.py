"""Features of one forward pass, pooled or memory-mapped, and tables of vectors."""

import weakref
from collections import deque

import numpy as np
import pandas as pd
import pytest
import torch

from cxrstudy import encoders, study
from cxrstudy.data.images import open_prepared
from cxrstudy.data.sets import prepare_data
from cxrstudy.evaluate import features, maps, protocol
from cxrstudy.evaluate.embeddings import read_embeddings
from cxrstudy.evaluate.features import encode, encode_batches, encode_each, extract
from cxrstudy.evaluate.maps import encode_maps
from cxrstudy.evaluate.subjects import LeakError, open_subject

torch.set_num_threads(1)
ROWS, ROWS20 = np.array([7, 3, 30, 3, 59, 0]), np.arange(20)


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


# ---- one pass ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["cnn_mini", "davit_mini", "hybrid_mini", "vit_tiny_patch16_224"])
def test_the_last_layer_is_that_of_forward_features_and_others_follow_it(name):
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


def test_several_poolings_of_one_pass_are_those_of_several(prepared, passes):
    one, poolings = encoder(), ["max+grid2", "mean"]
    alone = [encode(one, prepared, ROWS, pooling=pooling) for pooling in poolings]
    twice = len(passes)
    passes.clear()
    both = encode_each(one, prepared, ROWS, poolings)
    assert len(passes) == twice / 2
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


@pytest.mark.parametrize(
    ("module", "function", "run"),
    [
        (features, "extract", lambda p, _: deque(encode_batches(encoder(), p, ROWS20, batch=4), 0)),
        (maps, "feature_maps", lambda p, home: encode_maps(encoder(), p, ROWS20, 1, home=home)),
    ],
)
def test_no_more_than_a_batch_is_held_in_memory(
    prepared, tmp_path, monkeypatch, module, function, run
):
    alive, own = [], getattr(module, function)

    def watched(*call):
        assert not any(tensor() is not None for tensor in alive[:-1])
        found = own(*call)
        alive.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(module, function, watched)
    monkeypatch.setattr(maps, "CHUNK", 4)
    run(prepared, tmp_path)
    assert len(alive) == 5


# ---- memory-mapped maps ------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["random:cnn_mini", "random:hybrid_mini"])
def test_mapped_maps_fill_the_rows_asked_for_keep_their_layout_and_leave_no_file(
    prepared, tmp_path, name
):
    found = encode_maps(encoder(name), prepared, ROWS, 2, home=tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
    mapped, own = found.of(ROWS, 2)[-1], maps.maps_of(encoder(name), prepared, ROWS, 2)[-1]
    torch.testing.assert_close(mapped, own, rtol=2e-3, atol=2e-3)
    assert found.maps[-1].shape == (120, *own.shape[1:]) and not found.maps[-1][1].any()
    assert (mapped.stride(1) == 1) == (own.stride(1) == 1) == ("hybrid" in name)


def test_maps_beyond_half_precision_are_clipped_and_those_that_are_no_numbers_refused_by_image(
    prepared, tmp_path, monkeypatch
):
    one, x = encoder(), torch.full((4, 4, 8), 1e6)
    monkeypatch.setattr(one, "intermediates", lambda *_: [(x, x[:, 0])])
    found = encode_maps(one, prepared, np.arange(4), 1, home=tmp_path)
    assert (found.maps[0][:4] == 65504).all()
    x[2, 1, 1] = torch.nan
    with pytest.raises(ValueError, match="feature maps of image study-2 are not finite"):
        encode_maps(one, prepared, np.arange(4), 1, home=tmp_path)


# ---- others' vectors ---------------------------------------------------------------------------
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
def test_a_table_of_vectors_is_evaluated_like_the_encoder_that_made_it(
    prepared, folder, tmp_path, form, passes
):
    path = vectors(prepared, tmp_path, form)
    passes.clear()
    result = classify(prepared, folder, path)
    assert not passes
    own = classify(prepared, folder, "random:cnn_mini")
    np.testing.assert_allclose(result.scores, own.scores, rtol=1e-3, atol=1e-3)
    assert (result.subject["paradigm"], result.subject["encoder"]) == ("embeddings", path.name)
    assert result.subject["patients"] == own.subject["patients"]


def test_only_the_images_of_the_evaluation_must_be_in_the_table(prepared, folder, tmp_path):
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


def test_patients_listed_beside_a_table_are_refused_as_a_leak(prepared, folder, tmp_path):
    path = vectors(prepared, tmp_path, "npz")
    (tmp_path / "patients.txt").write_text(prepared.manifest["patient_id"].iloc[0])
    with pytest.raises(LeakError, match="1 patients of the evaluation of encoder"):
        classify(prepared, folder, path)


def test_damaged_tables_are_refused_with_row_and_count(prepared, tmp_path):
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
        open_subject(str(tmp_path / "gone.npz"), 32, 0)
