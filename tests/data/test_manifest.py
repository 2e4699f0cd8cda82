"""Manifests: laws of nested subsets and splits; a broken table is refused by row and column."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from cxrstudy.data.manifest import (
    ManifestError,
    assign_splits,
    label_array,
    label_names,
    nested_subset,
    patients_hash,
    read_manifest,
    usable,
    validate,
    write_manifest,
)
from cxrstudy.data.vocabulary import LABELS

quick = settings(deadline=None, max_examples=30)
ids = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)
seeds = st.integers(0, 2**32)


def table(patients, **columns):
    """A manifest with one image an entry of ``patients``."""
    n = range(len(patients))
    own = {
        "image_id": [f"i{k}" for k in n],
        "patient_id": list(patients),
        "study_id": [f"s{k}" for k in n],
    }
    return pd.DataFrame(own | {"path": [f"{k}.png" for k in n]} | columns)


manifests = st.lists(ids, min_size=1, max_size=12, unique=True).flatmap(
    lambda people: st.lists(st.sampled_from(people), min_size=1, max_size=40).map(table)
)


# ---- nested subsets ----------------------------------------------------------------------------
@quick
@given(manifest=manifests, seed=seeds, data=st.data())
def test_subsets_are_exact_nested_and_hold_whole_patients_but_for_the_last(manifest, seed, data):
    small, large = sorted(data.draw(st.integers(1, len(manifest))) for _ in range(2))
    first, second = (nested_subset(manifest, n, seed=seed) for n in (small, large))
    assert (len(first), len(second)) == (small, large)
    pd.testing.assert_frame_equal(first, second.iloc[:small])
    assert len(second.merge(manifest, on=list(manifest.columns))) == large  # rows as they were
    whole = manifest["patient_id"].value_counts()
    taken = second["patient_id"].value_counts()
    part = [patient for patient, count in taken.items() if count < whole[patient]]
    assert part in ([], [second["patient_id"].iloc[-1]])
    change = second["patient_id"].ne(second["patient_id"].shift()).sum()
    assert change == second["patient_id"].nunique()


@quick
@given(manifest=manifests, seed=seeds, data=st.data())
def test_a_subset_does_not_hang_on_the_order_of_the_rows(manifest, seed, data):
    n = data.draw(st.integers(1, len(manifest)))
    mixed = manifest.iloc[data.draw(st.permutations(range(len(manifest))))]
    pd.testing.assert_frame_equal(
        nested_subset(manifest, n, seed=seed), nested_subset(mixed, n, seed=seed)
    )


def test_another_seed_gives_another_subset():
    manifest = table([f"p{k // 2}" for k in range(400)])
    subsets = [set(nested_subset(manifest, 100, seed=seed)["image_id"]) for seed in range(20)]
    shared = [len(a & b) for k, a in enumerate(subsets) for b in subsets[:k]]
    assert 20 < np.mean(shared) < 30  # a quarter, by chance
    assert max(shared) < 50


def test_patients_added_to_the_data_do_not_reorder_those_that_were_there():
    people = [f"p{k // 3}" for k in range(300)]
    old, new = table(people[:150]), table(people)
    order = nested_subset(new, 300)["image_id"]
    assert list(order[order.isin(old["image_id"])]) == list(nested_subset(old, 150)["image_id"])


@pytest.mark.parametrize("n", [0, -1, 5])
def test_a_subset_that_cannot_be_had_is_refused_with_both_numbers(n):
    with pytest.raises(ValueError, match=f"n_images is {n}, but there are 4 images"):
        nested_subset(table("abca"), n)


def test_the_error_of_a_subset_says_what_can_be_had():
    with pytest.raises(
        ValueError,
        match=r"n_images is 3000, but there are 54 images.*1 to 54.*n_images: 0 .* for all",
    ):
        nested_subset(table([f"p{k}" for k in range(54)]), 3000)


# ---- splits ------------------------------------------------------------------------------------
weights = st.lists(st.integers(0, 10), min_size=1, max_size=5).filter(sum)


def fractions_of(parts):
    return {f"part{k}": w / sum(parts) for k, w in enumerate(parts)}


@quick
@given(manifest=manifests, parts=weights, seed=seeds)
def test_no_patient_is_in_two_splits_and_no_row_is_lost(manifest, parts, seed):
    fractions = fractions_of(parts)
    split = assign_splits(manifest, fractions=fractions, seed=seed)
    assert split.groupby("patient_id")["split"].nunique().max() == 1
    pd.testing.assert_frame_equal(split.drop(columns="split"), manifest)
    assert set(split["split"]) <= {name for name, share in fractions.items() if share}


@quick
@given(manifest=manifests, more=manifests, parts=weights, seed=seeds)
def test_rows_added_change_no_patients_split(manifest, more, parts, seed):
    fractions = fractions_of(parts)
    more = more.assign(image_id="new " + more["image_id"])
    before = assign_splits(manifest, fractions=fractions, seed=seed)
    after = assign_splits(
        pd.concat([more, manifest], ignore_index=True), fractions=fractions, seed=seed
    )
    known = dict(zip(before["patient_id"], before["split"], strict=True))
    old = after[after["patient_id"].isin(known)]
    assert (old["split"] == old["patient_id"].map(known)).all()


@settings(deadline=None, max_examples=25)
@given(parts=weights, seed=seeds)
def test_fractions_of_patients_are_met_within_their_binomial_error(parts, seed):
    fractions, n = fractions_of(parts), 3000
    split = assign_splits(table([f"p{k}" for k in range(n)]), fractions=fractions, seed=seed)
    for name, share in fractions.items():
        low, high = stats.binom.interval(1 - 1e-7, n, share)
        assert low <= (split["split"] == name).sum() <= high


def test_another_seed_gives_other_splits_and_splits_tell_nothing_of_subsets():
    manifest = table([f"p{k}" for k in range(2000)])
    one, two = (
        assign_splits(manifest, fractions={"a": 0.5, "b": 0.5}, seed=seed) for seed in (0, 1)
    )
    assert 0.4 < (one["split"] == two["split"]).mean() < 0.6
    first = nested_subset(one, 500)
    assert 0.4 < (first["split"] == "a").mean() < 0.6


@pytest.mark.parametrize(
    "fractions",
    [
        {}, {"a": 0.5}, {"a": 0.7, "b": 0.4}, {"a": 1.5, "b": -0.5}, {"a": float("nan"), "b": 1.0},
        {"a": 0.0},
    ],
)  # fmt: skip
def test_fractions_that_do_not_sum_to_one_are_refused(fractions):
    with pytest.raises(ValueError, match="fractions must be at least 0 and sum to 1") as caught:
        assign_splits(table("ab"), fractions=fractions)
    assert all(repr(name) in str(caught.value) for name in fractions)
    assert f"which sum to {sum(fractions.values()):g}" in str(caught.value)


# ---- validation --------------------------------------------------------------------------------
def sound():
    extra = {
        "view": ["PA", None, "LATERAL", "AP"],
        "sex": ["F", "M", None, "F"],
        "age": [50, 0.5, None, 130],
    }
    extra |= {"report": ["words", None, "", "x"], "label:edema": [1.0, 0.0, None, 1.0]}
    return table("aabc", **extra, **{"truth:edema": [1, 0, 0, 1]})


def test_a_sound_manifest_is_given_back_as_it_is():
    manifest = sound()
    assert validate(manifest) is manifest


VIOLATIONS = [
    ("image_id", 2, ""), ("image_id", 2, None), ("image_id", 3, "i1"), ("patient_id", 1, 7),
    ("study_id", 3, float("nan")), ("path", 2, ""), ("view", 2, "OBLIQUE"), ("sex", 1, "female"),
    ("age", 3, 131), ("age", 1, -1), ("age", 2, "old"), ("label:edema", 3, 0.5),
    ("label:edema", 3, -1.0), ("label:edema", 1, "1"), ("truth:edema", 2, 2),
]  # fmt: skip


@pytest.mark.parametrize(("column", "row", "value"), VIOLATIONS)
def test_a_violation_is_refused_with_file_row_and_column(tmp_path, column, row, value):
    manifest = sound().astype({column: object})
    manifest.loc[row, column] = value
    with pytest.raises(ManifestError) as caught:
        validate(manifest, "hospital.parquet")
    assert str(caught.value).startswith(f"hospital.parquet, row {row}, column {column!r}: ")
    if value is not None and value == value:
        assert repr(value) in str(caught.value)
    path = tmp_path / "m.parquet"
    with pytest.raises(ManifestError, match=rf"m\.parquet, row {row}, column '{column}'"):
        write_manifest(manifest, path)
    assert not path.exists()


@pytest.mark.parametrize("column", ["image_id", "patient_id", "study_id", "path"])
def test_a_missing_column_is_refused_by_its_name(column):
    with pytest.raises(ManifestError, match=rf"here: column '{column}' is missing"):
        validate(sound().drop(columns=column), "here")


def test_a_row_is_named_by_where_it_came_from_if_that_is_known():
    manifest = sound()
    manifest.loc[2, "view"] = "OBLIQUE"
    with pytest.raises(ManifestError, match=r"^rows.csv, line 4, column 'view': 'OBLIQUE'"):
        validate(manifest, place=lambda row: f"rows.csv, line {row + 2}")


def test_a_data_set_without_labels_says_so():
    with pytest.raises(
        ManifestError,
        match=r"no label 'edema'; this data set has none \(its card has no `labels`\)",
    ):
        label_array(table("ab"), ["edema"])


def test_no_rows_are_refused():
    with pytest.raises(ManifestError, match="here: holds no rows"):
        validate(sound().iloc[:0], "here")


def test_the_first_bad_row_is_named_with_how_many_there_are():
    manifest = sound()
    manifest.loc[[1, 3], "view"] = "OBLIQUE"
    with pytest.raises(ManifestError, match=r"row 1, .* \(2 such rows\)"):
        validate(manifest)


# ---- files -------------------------------------------------------------------------------------
texts = st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=20))


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_a_manifest_survives_its_file(tmp_path_factory, data):
    n = data.draw(st.integers(1, 6))
    drawn = {
        name: data.draw(st.lists(values, min_size=n, max_size=n))
        for name, values in {
            "report": texts, "view": st.sampled_from(["PA", "AP", None]),
            "age": st.one_of(st.none(), st.floats(0, 130)),
            "label:edema": st.sampled_from([0.0, 1.0, None]),
        }.items()
    }  # fmt: skip
    manifest = assign_splits(table([f"p{k}" for k in range(n)], **drawn), fractions={"a": 1.0})
    path = tmp_path_factory.mktemp("m") / "deep" / "manifest.parquet"
    write_manifest(manifest, path)
    back = read_manifest(path)
    assert list(back.columns) == list(manifest.columns)
    for column in manifest:
        told = [None if pd.isna(v) else v for v in manifest[column]]
        assert [None if pd.isna(v) else v for v in back[column]] == told
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_that_is_no_manifest_is_refused_by_its_name(tmp_path):
    garbage, strange = tmp_path / "garbage.parquet", tmp_path / "strange.parquet"
    garbage.write_bytes(b"PAR1 and then nothing")
    pd.DataFrame({"hello": [1]}).to_parquet(strange)
    for path, why in (
        (garbage, "not a readable"),
        (strange, "'image_id' is missing"),
        (tmp_path / "no", "not a read"),
    ):
        with pytest.raises(ManifestError, match=why) as caught:
            read_manifest(path)
        assert str(path) in str(caught.value)


# ---- labels ------------------------------------------------------------------------------------
@quick
@given(names=st.permutations([*LABELS[:4], "hernia", "emphysema"]), data=st.data())
def test_label_arrays_have_the_columns_asked_for_in_their_order_and_nan_for_unknown(names, data):
    values = {
        name: data.draw(st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=3, max_size=3))
        for name in names
    }
    manifest = table("abc", **{f"label:{name}": column for name, column in values.items()})
    others = [name for name in names if name not in LABELS]
    assert label_names(manifest) == [*LABELS[:4], *others]
    asked = data.draw(st.permutations(names))[:3]
    array = label_array(manifest, asked)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, np.array([values[name] for name in asked]).T)


def test_labels_of_every_storage_give_the_same_array():
    values = [1, 0, None, 1]
    kinds = [
        values,
        pd.array(values, dtype="Int64"),
        pd.array([True, False, None, True], dtype="boolean"),
    ]
    kinds.append(np.array([1, 0, np.nan, 1], np.float32))
    for kind in kinds:
        array = label_array(table("abcd", **{"label:edema": kind}), ["edema"])
        np.testing.assert_array_equal(array, np.array([[1], [0], [np.nan], [1]]))


def test_truth_is_preferred_where_it_is_known_and_asked_for():
    manifest = table(
        "ab", **{"label:edema": [0, None], "truth:edema": [1, 1], "label:picc": [1, 0]}
    )
    np.testing.assert_array_equal(
        label_array(manifest, ["picc", "edema"], truth=True), [[1, 1], [0, 1]]
    )
    np.testing.assert_array_equal(label_array(manifest, ["edema"]), [[0], [np.nan]])
    assert label_names(manifest, "truth") == ["edema"]
    assert label_array(manifest, []).shape == (2, 0)


def test_a_label_that_is_not_there_is_refused_beside_those_that_are():
    with pytest.raises(ManifestError, match=r"no label 'fracture'; this data set has edema"):
        label_array(sound(), ["edema", "fracture"])


@quick
@given(manifest=manifests, data=st.data())
def test_the_hash_of_patients_is_that_of_their_set(manifest, data):
    order = data.draw(st.permutations(range(len(manifest))))
    assert patients_hash(manifest.iloc[[*order, *order]]) == patients_hash(manifest)
    fewer = manifest[manifest["patient_id"] != manifest["patient_id"].iloc[0]]
    assume(len(fewer))
    assert patients_hash(fewer) != patients_hash(manifest)


def test_the_order_in_which_splits_are_named_plays_no_part():
    manifest = pd.DataFrame({"patient_id": [f"p{k}" for k in range(300)]})
    one = assign_splits(manifest, fractions={"train": 0.5, "test": 0.3, "a": 0.2})
    other = assign_splits(manifest, fractions={"a": 0.2, "test": 0.3, "train": 0.5})
    assert one["split"].tolist() == other["split"].tolist()
    assert set(one["split"]) == {"train", "test", "a"}


@pytest.mark.parametrize(
    ("paradigm", "wanted"),
    [
        ("dinov2", [True] * 5),
        ("clip", [True, False, False, False, False]),
        ("clip+labels", [True, False, False, False, False]),
        ("unicl", [True, False, True, True, False]),  # one label present, all absent, one unknown
    ],
)
def test_images_that_a_paradigm_can_use_have_a_report_or_a_prompt(paradigm, wanted):
    labels = {"label:edema": [np.nan, np.nan, 1, 0, 0], "label:picc": [np.nan] * 3 + [0, np.nan]}
    manifest = table("abcde", report=["Edema.", " ", None, "", "\n"], **labels)
    assert usable(manifest, paradigm).tolist() == wanted
    bare = manifest.drop(columns=["report", *labels])
    assert usable(bare, paradigm).tolist() == [paradigm == "dinov2"] * 5


# ---- official splits ---------------------------------------------------------------------------
FRACTIONS = {"pretrain": 0.5, "train": 0.2, "validation": 0.1, "test": 0.2}


def officially(patients, splits):
    frame = pd.DataFrame({"patient_id": patients, "official_split": splits})
    return assign_splits(frame, fractions=FRACTIONS, seed=3)


@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from("ab")), min_size=1, max_size=60))
def test_an_official_split_is_respected_and_divided_by_patients(rows):
    split = {"a": "pretrain+train", "b": "test"}
    patients = [f"{part}{k}" for k, part in rows]
    found = officially(patients, [split[part] for _, part in rows])
    assert found.groupby("patient_id")["split"].nunique().max() == 1
    for own, name in zip(found["official_split"], found["split"], strict=True):
        assert name in own.split("+")


def test_shares_within_an_official_split_are_those_of_the_fractions():
    found = officially([f"p{k}" for k in range(20_000)], ["pretrain+train"] * 20_000)
    assert found["split"].value_counts(normalize=True)["train"] == pytest.approx(2 / 7, abs=0.01)


def test_a_patient_in_two_official_splits_and_a_split_without_a_share_are_refused():
    with pytest.raises(ManifestError, match=r"1 patients.*'p1' \(test, train\).*override"):
        officially(["p1", "p1", "p2"], ["train", "test", "test"])
    with pytest.raises(ManifestError, match=r"'dev' has no share in fractions \(pretrain 0.5"):
        officially(["p1"], ["dev"])
