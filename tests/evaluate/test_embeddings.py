"""Tables of embeddings: an id, a label or a fold beside the vector is never a feature."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy import study
from cxrstudy.data.images import open_prepared
from cxrstudy.data.manifest import label_array
from cxrstudy.data.sets import prepare_data
from cxrstudy.evaluate import protocol
from cxrstudy.evaluate.embeddings import read_embeddings
from cxrstudy.evaluate.subjects import open_subject

IDS = [f"im{k}" for k in range(6)]
X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
NUMBERED = {f"e{k}": X[:, k] for k in range(4)}
EXTRA = {
    "label": [0, 1, 0, 1, 0, 1],
    "fold": [0, 1, 2, 0, 1, 2],
    "age": [50.5] * 6,
    "patient_id": range(6),
}


def write(folder, columns, ids=IDS, **how):
    path = folder / "table.parquet"
    pd.DataFrame({"image_id": ids, **columns}).to_parquet(path, **how)
    return path


def quiet(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_embeddings(path)


# ---- which columns are the vector --------------------------------------------------------------
@pytest.mark.parametrize(
    "kind", [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int64, list]
)
@pytest.mark.parametrize("name", ["embedding", "vector", "x", "Unnamed: 0", "feature_12"])
def test_one_list_column_of_any_name_and_number_type_is_the_vector(tmp_path, name, kind):
    x = (X * 10).round() if kind is list else (X * 10).round().astype(kind)
    rows = [list(map(float, row)) for row in x] if kind is list else list(x)
    found = quiet(write(tmp_path, {name: rows}))
    np.testing.assert_array_equal(found.vectors, x.astype(np.float32))
    assert found.vectors.dtype == np.float32


@pytest.mark.parametrize(
    "extra", [*[{name: column} for name, column in EXTRA.items()], EXTRA, {"Unnamed: 0": range(6)}]
)
@pytest.mark.parametrize("form", ["list", "numbered"])
def test_what_stands_beside_the_vector_is_named_and_no_feature(tmp_path, extra, form):
    columns = {"embedding": list(X)} if form == "list" else NUMBERED
    for order in (columns | extra, extra | columns):
        with pytest.warns(UserWarning, match="not used: " + ", ".join(extra)):
            found = read_embeddings(write(tmp_path, order))
        np.testing.assert_array_equal(found.vectors, X)


def test_words_lists_of_words_and_few_numbered_labels_beside_a_list_column_are_no_features(
    tmp_path,
):
    labels = {"label_0": [0, 1] * 3, "label_1": [1, 0] * 3}
    words = {"names": [["a", "b"]] * 6, "site": ["ward"] * 6, "seen": [True] * 6}
    with pytest.warns(UserWarning, match="not used: label_0, label_1, names, site, seen"):
        found = read_embeddings(write(tmp_path, labels | {"embedding": list(X)} | words))
    np.testing.assert_array_equal(found.vectors, X)


@settings(deadline=None, max_examples=40)
@given(
    prefix=st.sampled_from(["", "e", "feature_", "PC", "dim 1.", "layer2_"]),
    first=st.sampled_from([0, 1]),
    width=st.integers(0, 4),
    n=st.integers(2, 30),
    seed=st.integers(0, 99),
)
def test_numbered_columns_come_in_the_order_of_their_numbers(
    tmp_path_factory, prefix, first, width, n, seed
):
    names = [f"{prefix}{k:0{width}d}" for k in range(first, first + n)]
    columns = {
        names[k]: np.full(6, float(k)) + np.arange(6) / 10
        for k in np.random.default_rng(seed).permutation(n)
    }
    found = quiet(write(tmp_path_factory.mktemp("t"), columns))
    np.testing.assert_allclose(found.vectors, np.arange(n) + np.arange(6)[:, None] / 10, rtol=1e-6)


def test_columns_named_by_numbers_alone_and_one_with_holes_in_its_integers(tmp_path):
    table = pd.DataFrame(X, columns=list("0123")).assign(image_id=IDS)
    table.to_parquet(tmp_path / "numbers.parquet")
    np.testing.assert_array_equal(quiet(tmp_path / "numbers.parquet").vectors, X)
    holes = pd.Series([1, None, 3, 4, 5, 6], dtype="Int64")
    with pytest.raises(ValueError, match=r"row 1 \(im1\) is not finite \(1 such rows\)"):
        read_embeddings(write(tmp_path, {"e0": holes, "e1": X[:, 0]}))


REFUSED = {
    "no numbers in their names": (
        {"alpha": X[:, 0], "beta": X[:, 1]},
        r"none of its columns.*alpha \(float\), beta",
    ),
    "labels alone": (EXTRA, r"none of its columns is a vector \(columns: label"),
    "one numbered column": (
        {"e0": X[:, 0], "label": EXTRA["label"]},
        r"none of its columns.*e0 \(float\), label",
    ),
    "an index": ({"Unnamed: 0": range(6)}, "none of its columns.*Unnamed: 0"),
    "nothing": ({}, "none of its columns"),
    "two prefixes": (
        NUMBERED | {"label_0": [0, 1] * 3, "label_1": [1, 0] * 3},
        "more than one.*e0, e1.*label_0, label_1",
    ),
    "two lists": ({"a": list(X), "b": list(X)}, "more than one could be the vector: 'a'; 'b'"),
    "a list beside as many numbered": ({"box": list(X)} | NUMBERED, "more than one.*'box'; e0, e1"),
    "a gap": (
        {f"e{k}": X[:, 0] for k in (0, 1, 3)},
        "e0 to e3 are no complete run; missing numbers: 2",
    ),
    "a late start": (
        {f"fold{k}": X[:, 0] for k in (3, 4)},
        "fold3 to fold4 are no complete run; missing.*: 1, 2",
    ),
    "a number twice": (
        {n: X[:, 0] for n in ("e0", "e1", "e01")},
        "no complete run; a number appears twice",
    ),
    "words among them": (
        NUMBERED | {"e2": ["a"] * 6},
        "column e2 among the numbered ones holds .*string",
    ),
    "words": ({f"e{k}": ["0.5"] * 6 for k in range(3)}, r"none of its columns.*e0 \(.*string\)"),
    "lists of words": ({"embedding": [["0.1", "0.2"]] * 6}, "none of its columns.*embedding"),
    "lists as words": ({"embedding": ["[0.1, 0.2]"] * 6}, "none of its columns.*embedding"),
    "lists of lists": ({"embedding": [[[0.1, 0.2], [0.3]]] * 6}, "none of its columns.*embedding"),
    "unequal lists": (
        {"embedding": [[1.0], [1.0, 2.0]] * 3},
        "all of one length: 1 in row 0, 2 in row 1",
    ),
    "no list": (
        {"embedding": [[1.0], None, [1.0]] * 2},
        r"embedding: no list in row 1 \(2 such rows\)",
    ),
    "none in a list": (
        {"embedding": [[1.0, 2.0], [None, 1.0]] * 3},
        r"row 1 \(im1\) is not finite \(3 such rows\)",
    ),
    "too large": ({"embedding": [[1.0, 1e300]] * 6}, "row 0 .*not finite"),
    "empty lists": (
        {"embedding": [[]] * 6},
        "none of its columns|6 image ids but vectors of shape",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_vector_for_sure_is_refused_with_its_columns_and_the_remedy(tmp_path, what):
    columns, said = REFUSED[what]
    with pytest.raises(ValueError, match=said) as caught:
        read_embeddings(write(tmp_path, columns))
    assert "table.parquet" in str(caught.value)


def test_noise_beside_an_integer_label_does_not_tell_the_label(tmp_path):
    folder = tmp_path / "data"
    prepare_data(study.Data(n_images=240, size=32, out=str(folder)))
    prepared = open_prepared(folder)
    truth = label_array(prepared.manifest, ["cardiomegaly"], truth=True)[:, 0].astype(int)
    noise = np.random.default_rng(1).standard_normal((240, 8))
    path = write(
        tmp_path, {"embedding": list(noise), "label": truth}, ids=prepared.manifest["image_id"]
    )
    values = {"encoder": str(path), "data": str(folder), "resamples": 20, "tasks": ["findings"]}
    with pytest.warns(UserWarning, match="the vector is 'embedding'; not used: label"):
        result = protocol.run(
            study.validated("classify", values | {"labels": ["cardiomegaly"]}), prepared
        )
    assert result.info["features"] == 8
    row = next(m for m in result.metrics if (m["label"], m["metric"]) == ("cardiomegaly", "auroc"))
    assert row["low"] < 0.6


# ---- which row is which image ------------------------------------------------------------------
@pytest.mark.parametrize(
    "ids", [[5, 6, 7], np.array([5.0, 6.0, 7.0]), ["5", "6", "7"], np.int16([5, 6, 7])]
)
@pytest.mark.parametrize("where", ["column", "index", "npz", "category"])
def test_ids_are_the_same_whatever_type_they_were_kept_in(tmp_path, ids, where):
    table = pd.DataFrame({"image_id": ids, "v": list(X[:3])})
    path = tmp_path / "table.parquet"
    if where == "npz":
        path = path.with_suffix(".npz")
        np.savez(path, more=np.ones(2), vectors=X[:3], image_id=np.array(ids))
    elif where == "index":
        table.set_index("image_id").to_parquet(path)
    else:
        table.astype({"image_id": "category"} if where == "category" else {}).to_parquet(path)
    found = quiet(path).of(pd.Series(["7", "5"]))
    np.testing.assert_array_equal(found, X[[2, 0]])


@pytest.mark.parametrize(
    ("theirs", "hint"),
    [
        ("im{}.png", True),
        (" im{}", True),
        ("IM{}", True),
        ("a/b/im{}.dcm", True),
        ("other{}", False),
        ("im0{}", False),
    ],
)
def test_ids_that_do_not_meet_are_shown_from_both_sides(tmp_path, theirs, hint):
    path = write(tmp_path, {"v": list(X)}, ids=[theirs.format(k) for k in range(6)])
    with pytest.raises(ValueError, match="lacks 6 of 6 images; first: im0") as caught:
        read_embeddings(path).of(pd.Series(IDS))
    message = str(caught.value)
    assert repr("im0") in message and repr(theirs.format(0)) in message
    assert ("write both alike" in message) == hint


def test_ids_that_are_missing_twice_or_have_lost_digits_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no image_id in row 2 \(1 such rows\)"):
        read_embeddings(write(tmp_path, {"v": list(X)}, ids=["a", "b", None, "d", "e", "f"]))
    with pytest.raises(ValueError, match="1 image ids appear again; first: 5"):
        read_embeddings(write(tmp_path, {"v": list(X)}, ids=["5", "6", "7", "8", "9", "5"]))
    with pytest.raises(ValueError, match="lost its last digits"):
        read_embeddings(write(tmp_path, {"v": list(X)}, ids=np.arange(6) * 1e18))
    pd.DataFrame({"name": IDS, "v": list(X)}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="needs one column image_id; it has name, v"):
        read_embeddings(tmp_path / "other.parquet")


# ---- other files -------------------------------------------------------------------------------
def test_npz_of_other_arrays_and_files_of_another_kind_are_refused_with_the_way(tmp_path):
    for arrays, said in [
        ({"ids": IDS, "vectors": X}, "holds ids, vectors, where image_id and vectors are needed"),
        ({"image_id": IDS, "vectors": X.astype(str)}, "not numbers"),
        ({"image_id": IDS, "vectors": X * 1j}, "not numbers"),
        ({"image_id": IDS, "vectors": np.zeros((6, 2, 2))}, r"vectors of shape \(6, 2, 2\)"),
        ({"image_id": np.array(IDS, object), "vectors": X}, "no table of embeddings"),
    ]:
        np.savez(tmp_path / "a.npz", **{name: np.asarray(array) for name, array in arrays.items()})
        with pytest.raises(ValueError, match=said):
            read_embeddings(tmp_path / "a.npz")
    pd.DataFrame({"image_id": IDS, **NUMBERED}).to_csv(tmp_path / "a.csv")
    for call in (read_embeddings, lambda path: open_subject(str(path), 32, 0)):
        with pytest.raises(
            ValueError, match=r"a\.csv.*only Parquet and npz.*to_parquet\('a\.parquet'\)"
        ):
            call(tmp_path / "a.csv")


def test_vectors_that_tell_nothing_are_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="all 6 vectors are equal"):
        read_embeddings(write(tmp_path, {"v": list(np.ones((6, 3)))}))
    some = X.copy()
    some[[2, 4]] = 0
    with pytest.warns(UserWarning, match=r"2 vectors are all zeros \(first: im2\)"):
        read_embeddings(write(tmp_path, {"v": list(some)}))


@pytest.mark.parametrize("values", [[0, 1], [0.0, 1.0], [-1, 0, 1]])
def test_numbered_labels_are_no_vector(tmp_path, values):
    drawn = np.random.default_rng(0).choice(values, size=(40, 3))
    table = pd.DataFrame(drawn, columns=[f"label_{k}" for k in range(3)]).assign(
        image_id=[f"i{k}" for k in range(40)]
    )
    table.to_parquet(tmp_path / "e.parquet")
    with pytest.raises(ValueError, match="label_0 to label_2 hold 0, 1 and -1 alone"):
        read_embeddings(tmp_path / "e.parquet")
