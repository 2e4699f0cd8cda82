"""The protocol: no leaks, every test image is scored once, and scores give the metrics back."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from cxrstudy import encoders, plots, study
from cxrstudy.data import synthetic
from cxrstudy.data.images import Prepared
from cxrstudy.data.manifest import ManifestError, assign_splits, label_array, patients_hash
from cxrstudy.data.sets import prepare_data
from cxrstudy.data.vocabulary import DEVICES, FINDINGS, LABELS
from cxrstudy.evaluate import cohort, protocol, reidentification
from cxrstudy.evaluate.calibration import reliability
from cxrstudy.evaluate.features import covariates, encode, pool_tokens
from cxrstudy.evaluate.scores import save, save_scores, score_table, task_metrics
from cxrstudy.evaluate.subjects import LeakError

torch.set_num_threads(1)
COMMON = ["cardiomegaly", "pleural_effusion", "picc", "chest_tube"]
IMAGES = 700
FOLDS = ["fold0", "fold1", "fold2", "fold3"]
NEXT = dict(zip(FOLDS, FOLDS[1:] + FOLDS[:1], strict=True))  # the held fold: that which validates


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    shares = {"pretrain": 0.1, "train": 0.4, "validation": 0.2, "test": 0.3}
    return prepare_data(
        study.Data(
            n_images=IMAGES, size=32, fractions=shares, out=str(tmp_path_factory.mktemp("data"))
        )
    )


@pytest.fixture(scope="module")
def folded(prepared):
    manifest = assign_splits(prepared.manifest, fractions=dict.fromkeys(FOLDS, 0.25), seed=1)
    return Prepared(manifest, prepared.images, prepared.info)


def parameters(**changes):
    own = {
        "encoder": "pixels",
        "labels": COMMON,
        "resamples": 40,
        "strengths": [0.1, 10.0],
        "data": "runs/x/study-1",
    }
    own["tasks"] = ["findings", "lines_tubes"]
    return study.validated("classify", own | changes)


def run(prepared, **changes):
    return protocol.run(parameters(**changes), prepared)


def of(prepared, *splits):
    return sorted(set(prepared.manifest.loc[prepared.manifest["split"].isin(splits), "patient_id"]))


def write_encoder(folder, patients, seed=0):
    """A run folder with an encoder that says whom it was pretrained on."""
    encoder = encoders.build_encoder("cnn_mini", 32, seed=seed)
    encoder.info |= {
        "paradigm": "clip",
        "n_images": 64,
        "samples_seen": 96,
        "seed": seed,
        "base": "b-1",
    }
    encoders.save_encoder(encoder, folder / "encoder")
    (folder / "encoder" / "patients.txt").write_text("\n".join(patients))
    return folder


def flipped(prepared, *splits):
    """The same data, but every label of some splits is recorded the other way round."""
    manifest = prepared.manifest.copy()
    rows = manifest["split"].isin(splits)
    for column in manifest.columns[manifest.columns.str.match("(label|truth):")]:
        manifest.loc[rows, column] = 1 - manifest.loc[rows, column]
    return Prepared(manifest, prepared.images, prepared.info)


# ---- leaks -------------------------------------------------------------------------------------
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_labelled_patient_who_was_pretrained_on_is_refused_with_encoder_and_patient(
    prepared, tmp_path, split
):
    patient = of(prepared, split)[-1]
    folder = write_encoder(tmp_path / "run", [*of(prepared, "pretrain"), patient])
    for name in (folder, folder / "encoder"):
        with pytest.raises(LeakError) as caught:
            run(prepared, encoder=str(name))
        assert str(name) in str(caught.value)
        assert patient in str(caught.value)
        assert "1 patients" in str(caught.value)


def test_patients_who_are_not_judged_may_have_been_pretrained_on(prepared, tmp_path):
    folder = write_encoder(tmp_path / "run", [*of(prepared, "pretrain"), "a stranger"])
    result = run(prepared, encoder=str(folder))
    assert result.subject["paradigm"] == "clip"
    assert result.subject["n_images"] == 64
    view = prepared.manifest.groupby("patient_id")["view"].agg(set)
    only_pa = [name for name in of(prepared, "train", "test") if view[name] == {"PA"}]
    folder = write_encoder(tmp_path / "other", only_pa)
    run(prepared, encoder=str(folder), within="view == 'AP'")  # outside the query nobody is judged


def test_a_leak_is_found_before_anything_is_computed(prepared, tmp_path):
    folder, encoded = write_encoder(tmp_path / "run", of(prepared, "test")), []

    def progress(batches):
        encoded.append(batches)
        yield from batches

    with pytest.raises(LeakError):
        protocol.run(parameters(encoder=str(folder)), prepared, progress=progress)
    assert not encoded


def test_in_cross_fitting_only_patients_of_the_held_fold_matter(folded, tmp_path):
    names = []
    for k, held in enumerate(FOLDS):
        others = of(folded, *[fold for fold in FOLDS if fold != held])
        names.append(str(write_encoder(tmp_path / f"{held}", others, seed=k)))
    result = run(folded, encoder="", fold_encoders=names, folds=FOLDS, pooling="mean")
    assert len(result.fitted) == 4
    with pytest.raises(LeakError) as caught:
        run(folded, encoder="", fold_encoders=[names[1], *names[1:]], folds=FOLDS)
    assert names[1] in str(caught.value)
    assert of(folded, "fold0")[0] in str(caught.value)


def test_a_patient_on_whom_the_probe_is_fitted_or_chosen_is_refused_as_a_test_patient(
    prepared, folded, tmp_path
):
    for splits in ({"train": ["train", "test"]}, {"validation": ["test"]}, {"test": ["train"]}):
        with pytest.raises(
            LeakError, match="test patients are training or validation patients too"
        ) as caught:
            run(prepared, **splits)
        met = of(prepared, "train" if splits == {"test": ["train"]} else "test")
        assert f"{len(met)} test patients" in str(caught.value) and met[0] in str(caught.value)
    same = study.Data(
        n_images=IMAGES, size=32, fractions={"train": 0.5, "test": 0.5}, out=str(tmp_path / "same")
    )
    prepare_data(same)
    for data, changes in (
        (prepared, {}),
        (folded, {"folds": FOLDS, "test": ["nowhere"]}),
    ):  # nowhere: all its rows
        with pytest.raises(
            LeakError, match="test patients are training or validation patients too"
        ):
            run(data, also=[same.out], **changes)


# ---- who is scored, and by what ----------------------------------------------------------------
def test_fixed_splits_score_the_test_rows_and_know_nothing_of_their_labels(prepared):
    result = run(prepared)
    test = prepared.manifest[prepared.manifest["split"] == "test"]
    pd.testing.assert_frame_equal(result.test.drop(columns="row"), test)
    assert result.scores.shape == result.truth.shape == (len(test), 4)
    np.testing.assert_array_equal(result.truth, label_array(test, COMMON, truth=True))
    other = run(flipped(prepared, "test", "pretrain"))
    np.testing.assert_array_equal(other.scores, result.scores)
    assert not np.array_equal(run(flipped(prepared, "train")).scores, result.scores)


def test_cross_fitted_scores_cover_every_row_once_and_know_nothing_of_its_own_fold(folded):
    result = run(folded, folds=FOLDS)
    assert sorted(result.test["row"]) == list(range(IMAGES))
    assert list(result.test["image_id"]) == list(
        folded.manifest["image_id"].iloc[result.test["row"]]
    )
    np.testing.assert_array_equal(result.truth, label_array(result.test, COMMON, truth=True))
    for fold in ("fold0", "fold2"):
        held = (result.test["split"] == fold).to_numpy()
        other = run(flipped(folded, fold), folds=FOLDS)
        np.testing.assert_array_equal(other.test["row"], result.test["row"])
        np.testing.assert_array_equal(other.scores[held], result.scores[held])
        assert not np.array_equal(other.scores[~held], result.scores[~held])


def test_each_fold_is_scored_by_its_own_encoder(folded, tmp_path):
    names = [
        str(write_encoder(tmp_path / fold, ["a stranger"], seed=k)) for k, fold in enumerate(FOLDS)
    ]
    whole = run(folded, encoder="", fold_encoders=names, folds=FOLDS, pooling="mean")
    for name, fold in zip(names[1:3], FOLDS[1:3], strict=True):
        alone = run(folded, encoder=name, folds=FOLDS, pooling="mean")
        held = (whole.test["split"] == fold).to_numpy()
        np.testing.assert_allclose(whole.scores[held], alone.scores[held], rtol=1e-4, atol=1e-4)
        assert not np.allclose(whole.scores[~held], alone.scores[~held], rtol=1e-2)


def test_as_many_encoders_as_folds_are_asked_for(folded):
    with pytest.raises(ValueError, match=r"fold_encoders: 2 encoders for 4 folds"):
        run(folded, fold_encoders=["pixels", "pixels"], folds=FOLDS)


def test_within_judges_only_rows_that_meet_the_query(prepared):
    result = run(prepared, within="view == 'AP' and `truth:picc` == 0", labels=COMMON[:2])
    chosen = prepared.manifest.query("split == 'test' and view == 'AP' and `truth:picc` == 0")
    assert list(result.test["image_id"]) == list(chosen["image_id"])
    assert 0 < len(chosen) < (prepared.manifest["split"] == "test").sum()
    assert result.subject["patients"] != run(prepared).subject["patients"]


@pytest.mark.parametrize(
    "query", ["vieww == 'PA'", "view ==", "view = 'PA'", "age.nonsense()", "age + 1"]
)
def test_a_query_that_does_not_hold_is_refused_by_its_text(prepared, query):
    with pytest.raises(ValueError, match="within") as caught:
        run(prepared, within=query)
    assert repr(query) in str(caught.value)


def test_a_query_that_no_row_meets_is_refused_by_its_text(prepared):
    with pytest.raises(ValueError, match="no row") as caught:
        run(prepared, within="age > 200")
    assert "'age > 200'" in str(caught.value)


@pytest.mark.parametrize("which", ["train", "validation", "test"])
def test_a_split_that_is_not_there_is_refused_beside_those_that_are(prepared, which):
    with pytest.raises(ValueError, match="no labelled image in splits") as caught:
        run(prepared, **{which: ["tset"]})
    assert all(
        name in str(caught.value) for name in ("tset", "pretrain", "train", "validation", "test")
    )


def test_a_label_that_is_not_there_is_refused_by_its_name(prepared):
    with pytest.raises(ManifestError, match="'cardiomegali'"):
        run(prepared, labels=["cardiomegali"])


def test_without_labels_asked_for_all_of_the_vocabulary_that_have_both_classes_are_probed(prepared):
    manifest = prepared.manifest.assign(
        **{"label:hernia": 1.0, "label:edema": 0.0, "truth:edema": 0.0}
    )
    result = run(Prepared(manifest, prepared.images, prepared.info), labels=[])
    array = label_array(manifest, LABELS, truth=True)
    both = (array == 1).any(0) & (array == 0).any(0)
    assert result.names == [name for name, ok in zip(LABELS, both, strict=True) if ok]
    assert "edema" not in result.names


# ---- numbers -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def by_subject(prepared):
    return {
        name: run(prepared, encoder=name) for name in ("pixels", "covariates", "random:cnn_mini")
    }


subjects = pytest.mark.parametrize("name", ["pixels", "covariates", "random:cnn_mini"])


def check_saved(result, path):
    save_scores(result, path)
    kept = pd.read_parquet(path).sample(frac=1, random_state=0)
    assert sorted(kept["image_id"]) == sorted(result.test["image_id"])
    scores, truth = (
        kept[[f"{what}:{n}" for n in COMMON]].to_numpy(float) for what in ("score", "truth")
    )
    calls, chances = (
        kept[[f"{what}:{n}" for n in COMMON]].to_numpy(float) for what in ("call", "probability")
    )
    patients = kept["patient_id"].to_numpy()
    how = {"resamples": parameters().resamples, "seed": parameters().seed}
    again = task_metrics(
        COMMON, scores, truth, patients, predictions=calls, probabilities=chances, **how
    )
    recorded = pd.DataFrame(result.metrics)
    own = recorded[recorded["task"] != reidentification.TASK]  # from features, not from scores
    assert len(own) + 1 == len(recorded)
    pd.testing.assert_frame_equal(
        pd.DataFrame(again), own.reindex(columns=pd.DataFrame(again).columns), rtol=0, atol=1e-12
    )


@subjects
def test_saved_scores_give_the_metrics_back_exactly(by_subject, tmp_path, name):
    check_saved(by_subject[name], tmp_path / "scores.parquet")


def test_saved_scores_that_lie_close_give_the_metrics_back_exactly(prepared, tmp_path):
    check_saved(run(prepared, strengths=[1e7]), tmp_path / "scores.parquet")


@subjects
def test_metrics_are_scikit_learns_and_macro_is_their_mean(by_subject, name):
    result = by_subject[name]
    table = pd.DataFrame(result.metrics).set_index(["task", "label", "metric"])
    for metric, reference in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        for task, labels in (("findings", COMMON[:2]), ("lines_tubes", COMMON[2:])):
            values = []
            for label in labels:
                k = COMMON.index(label)
                values.append(reference(result.truth[:, k], result.scores[:, k]))
                row = table.loc[(task, label, metric)]
                assert row["value"] == pytest.approx(values[-1])
                assert row["low"] <= row["value"] <= row["high"]
                assert row["positives"] == result.truth[:, k].sum()
            assert table.loc[(task, "macro", metric), "value"] == pytest.approx(np.mean(values))
    tasks = table.reset_index().groupby("task")["label"].agg(set)
    assert tasks["findings"] - {"macro"} <= set(FINDINGS)
    assert tasks["lines_tubes"] - {"macro"} <= set(DEVICES)


def test_subjects_say_what_they_are_and_are_judged_on_the_same_patients(by_subject, prepared):
    told = {name: result.subject for name, result in by_subject.items()}
    judged = prepared.manifest[prepared.manifest["split"] != "pretrain"]
    for name, subject in told.items():
        assert subject["encoder"] == name
        assert subject["paradigm"] == "control"
        assert (subject["n_images"], subject["samples_seen"]) == (0, 0)
        assert subject["patients"] == patients_hash(judged)
        assert (subject["kind"], subject["institution"], subject["data"]) == (
            "synthetic",
            "synthetic:study",
            "study-1",
        )


def test_features_are_those_of_the_subject(by_subject, prepared):
    features = {name: result.info["features"] for name, result in by_subject.items()}
    assert features == {"pixels": 32 * 32, "covariates": 5, "random:cnn_mini": 128 * (1 + 1 + 16)}
    result = by_subject["covariates"]
    x = covariates(prepared.manifest)[result.test["row"]]
    np.testing.assert_allclose(result.fitted[0].probe.decision_function(x), result.scores)


def test_a_random_encoder_is_drawn_from_the_seed(prepared, by_subject):
    again, other = (run(prepared, encoder="random:cnn_mini", seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(again.scores, by_subject["random:cnn_mini"].scores)
    assert not np.allclose(other.scores, again.scores)
    assert other.subject["seed"] == 1


def test_an_encoder_that_is_nowhere_is_refused_by_its_name(prepared):
    with pytest.raises(encoders.MissingWeights, match="runs/gone/encoder"):
        run(prepared, encoder="runs/gone/encoder")


def test_pixels_of_a_marked_label_are_found(prepared):
    """A label that is written into the image is told from it; one that is drawn by lot is not."""
    images, rng = np.array(prepared.images), np.random.default_rng(0)
    mark = rng.integers(0, 2, len(images)).astype(float)
    images[mark == 1, :8, :8] = 255
    columns = {"truth:picc": mark, "truth:edema": rng.integers(0, 2, len(images)).astype(float)}
    marked = Prepared(prepared.manifest.assign(**columns), images, prepared.info)
    table = pd.DataFrame(run(marked, labels=["edema", "picc"]).metrics).set_index(
        ["label", "metric"]
    )["value"]
    assert table["picc", "auroc"] > 0.99
    assert 0.25 < table["edema", "auroc"] < 0.75


# ---- features ----------------------------------------------------------------------------------
@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 3),
    side=st.integers(2, 5),
    channels=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_pooled_parts_stand_side_by_side(n, side, channels, seed):
    tokens = torch.randn(n, side * side, channels, generator=torch.Generator().manual_seed(seed))
    parts = {"mean": tokens.mean(1), "max": tokens.amax(1), "grid1": tokens.mean(1)}
    parts[f"grid{side}"] = tokens.transpose(1, 2).flatten(1)
    for names in (["mean"], ["max", "mean"], ["grid1"], [f"grid{side}", "max"]):
        torch.testing.assert_close(
            pool_tokens(tokens, "+".join(names)), torch.cat([parts[k] for k in names], 1)
        )
    assert torch.equal(pool_tokens(tokens[:, :1], "mean+max"), tokens[:, 0])


def test_a_grid_keeps_place():
    tokens = torch.zeros(1, 16, 1)
    tokens[0, 4 * 0 + 3] = 4.0  # the upper right corner of 4 x 4
    assert pool_tokens(tokens, "grid2").tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize("pooling", ["median", "mean+grid", "", "gridx", "mean,max"])
def test_an_unknown_part_is_refused_by_its_name(pooling):
    part = next(part for part in pooling.split("+") if part not in ("mean", "max"))
    with pytest.raises(ValueError, match="unknown part") as caught:
        pool_tokens(torch.zeros(2, 4, 3), pooling)
    assert repr(part) in str(caught.value)


def test_a_grid_of_patches_that_are_not_square_is_refused():
    with pytest.raises(ValueError, match=r"'grid2' needs a square grid of patches, not 12"):
        pool_tokens(torch.zeros(2, 12, 3), "mean+grid2")


def test_features_follow_the_rows_asked_for_whatever_their_order_and_batch(prepared):
    encoder = encoders.load_encoder("random:cnn_mini", size=32)
    rows = np.array([17, 3, 3, 239, 0, 100, 42])
    found = encode(encoder, prepared, rows, pooling="mean+grid2", batch=3)
    assert found.dtype == np.float32
    for row, feature in zip(rows, found, strict=True):
        x = encoder.normalise(np.array(prepared.images[row])[None])
        alone = pool_tokens(encoder.forward_features(x), "mean+grid2")[0]
        np.testing.assert_allclose(feature, alone, rtol=1e-4, atol=1e-5)


def test_an_encoder_of_another_size_sees_the_images_at_its_own(prepared):
    encoder = encoders.load_encoder("random:vit_tiny_patch16_224", size=64)
    assert encode(encoder, prepared, np.arange(3), pooling="grid4").shape == (3, 16 * 192)
    flat = Prepared(prepared.manifest, np.full_like(prepared.images, 90), prepared.info)
    small, large = np.arange(1), np.full((1, 64, 64), 90, np.uint8)
    expected = pool_tokens(encoder.forward_features(encoder.normalise(large)), "mean")
    np.testing.assert_allclose(
        encode(encoder, flat, small, pooling="mean"), expected, rtol=1e-3, atol=1e-4
    )


def test_covariates_are_view_sex_and_age_and_need_none_of_them():
    table = pd.DataFrame(
        {
            "view": ["AP", "LATERAL", "PA", None],
            "sex": ["M", "F", None, "M"],
            "age": [50, 75, None, 0],
        }
    )
    expected = [
        [1, 0, 1, 1, 1],
        [0, 1, 0, 1.5, 2.25],
        [0, 0, 0, 1, 1],
        [0, 0, 1, 0, 0],
    ]  # the median stands in
    np.testing.assert_allclose(covariates(table), expected)
    assert not covariates(table[[]]).any()
    assert math.isfinite(covariates(table.assign(age=None)).sum())


# ---- malposition, laterality, subgroups --------------------------------------------------------
def test_metadata_of_drawn_images_are_the_institutions_truth(prepared):
    told = cohort.row_metadata(prepared, ["train", "test"])
    truth = synthetic.describe(np.arange(IMAGES))
    inside = prepared.manifest["split"].isin(["train", "test"]).to_numpy()
    for k, name in enumerate(DEVICES):
        held = truth.labels[:, len(FINDINGS) + k] == 1
        wrong = told[f"malposition:{name}"].to_numpy()
        np.testing.assert_array_equal(wrong[inside & held], truth.malpositioned[inside & held, k])
        assert np.isnan(wrong[~inside]).all() and np.isnan(wrong[~held]).all()
    right = told["right:pleural_effusion"].to_numpy()
    side = truth.side[:, FINDINGS.index("pleural_effusion")]
    assert set(side[inside & (right == 1)]) == {"right"} and set(side[inside & (right == 0)]) == {
        "left"
    }
    assert not {"right", "left"} & set(side[inside & np.isnan(right)])
    np.testing.assert_array_equal(told["scanner"][inside], truth.scanner[inside])
    for patient, rows in prepared.manifest.groupby("patient_id"):
        exams = told["exam"].loc[rows.index]
        assert (
            exams.min() == 0 and exams.nunique() == rows["study_id"].nunique() == exams.max() + 1
        ), patient


def test_metadata_of_other_data_are_their_own_columns():
    table = pd.DataFrame(
        {
            "image_id": list("abcd"), "path": list("wxyz"), "patient_id": ["p", "p", "p", "q"],
            "study_id": ["p-10", "p-9", "p-10", "q-1"],
            "side:edema": ["right", "left", "bilateral", None], "malposition:picc": [1, 0, None, 1],
        }
    )  # fmt: skip
    told = cohort.row_metadata(Prepared(table, np.zeros((4, 2, 2), np.uint8), {}), [])
    assert told["exam"].tolist() == [1, 0, 1, 0]  # 9 comes before 10
    np.testing.assert_array_equal(told["right:edema"], [1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(told["malposition:picc"], [1, 0, np.nan, 1])
    assert "scanner" not in told


def test_another_generator_tells_no_malposition(prepared):
    other = Prepared(prepared.manifest, prepared.images, prepared.info | {"generator": "0"})
    with pytest.warns(UserWarning, match="another version of the generator"):
        told = cohort.row_metadata(other, ["test"])
    assert not any(column.startswith("malposition:") for column in told)


def test_malposition_and_laterality_are_judged_among_those_who_have_the_thing(
    prepared, monkeypatch
):
    monkeypatch.setattr(cohort, "LEAST", 1)
    result = run(
        prepared, labels=[], tasks=["findings", "lines_tubes", "malposition", "laterality"]
    )
    extra = [name for name in result.names if ":" in name]
    assert {name.split(":")[0] for name in extra} == {"malposition", "right"}
    tasks = {row["label"]: row["task"] for row in result.metrics}
    for name in extra:
        k, base = result.names.index(name), result.names.index(name.split(":")[1])
        known = ~np.isnan(result.truth[:, k])
        assert (result.truth[known, base] == 1).all() and known.any()
        assert (
            tasks[name] == {"malposition": "malposition", "right": "laterality"}[name.split(":")[0]]
        )
    plain = run(prepared, labels=[])
    assert plain.names + extra == result.names
    np.testing.assert_allclose(
        result.scores[:, : len(plain.names)], plain.scores, rtol=1e-2, atol=1e-2
    )
    monkeypatch.setattr(cohort, "LEAST", 1000)
    assert run(prepared, tasks=["findings", "malposition"]).names == COMMON[:2]
    with pytest.raises(ValueError, match="tasks: nothing of"):
        run(prepared, tasks=["malposition"])


def test_subgroups_are_the_rows_of_the_group_alone(prepared):
    result = run(prepared)
    table = result.subgroups.set_index(["by", "group", "label", "metric"])
    assert set(result.subgroups["by"]) == {"view", "sex", "age", "scanner", "exam"}
    here = (result.test["view"] == "AP").to_numpy()
    row = table.loc[("view", "AP", "picc", "auroc")]
    k = COMMON.index("picc")
    assert row["value"] == pytest.approx(
        roc_auc_score(result.truth[here, k], result.scores[here, k])
    )
    assert row["n"] == here.sum()
    ages = table.loc["age"].index.get_level_values("group")
    assert set(ages) <= {"0-39", "40-59", "60-79", "80-130"} and len(set(ages)) > 1


# ---- thresholds, few labels, controls, other data ----------------------------------------------
def test_thresholds_and_probabilities_come_from_validation_alone(prepared):
    result = run(prepared)
    test_flipped = run(flipped(prepared, "test"))
    np.testing.assert_array_equal(test_flipped.predictions, result.predictions)
    np.testing.assert_array_equal(test_flipped.probabilities, result.probabilities)
    assert not np.array_equal(
        run(flipped(prepared, "validation")).probabilities, result.probabilities
    )
    judge = result.fitted[0]
    np.testing.assert_array_equal(result.predictions, result.scores >= judge.threshold)
    for k in range(4):
        order = np.argsort(result.scores[:, k])
        slope = judge.sigmoid[k, 0]
        assert (np.diff(result.probabilities[order, k]) * np.sign(slope) >= 0).all()


def test_the_label_efficiency_curve_is_nested_and_ends_at_the_whole_probe(prepared):
    result = run(prepared, label_counts=[10, 0], label_seeds=2)
    curve = result.curve.set_index(["task", "patients", "seed"])["auroc"]
    whole = len(of(prepared, "train"))
    table = pd.DataFrame(result.metrics).set_index(["task", "label", "metric"])["value"]
    for task in ("findings", "lines_tubes"):
        for seed in (0, 1):
            assert curve[task, whole, seed] == pytest.approx(
                table[task, "macro", "auroc"], abs=1e-4
            )
    assert curve["findings", 10, 0] != curve["findings", 10, 1]
    assert run(prepared).curve.empty


def test_the_label_efficiency_curve_names_the_patients_that_it_used(prepared, folded):
    whole = len(of(prepared, "train"))
    curve = run(prepared, label_counts=[5000, whole, 10, 0], label_seeds=1).curve
    assert curve[curve["task"] == "findings"]["patients"].tolist() == [10, whole]  # each once
    sizes = [
        len(of(folded, *(f for f in FOLDS if f not in (held, after))))
        for held, after in NEXT.items()
    ]
    assert len(set(sizes)) > 1
    result = run(folded, folds=FOLDS, label_counts=[20, 0], label_seeds=1)
    curve = result.curve.set_index(["task", "patients"])["auroc"]
    table = pd.DataFrame(result.metrics).set_index(["task", "label", "metric"])["value"]
    assert set(curve["findings"].index) == {20, round(np.mean(sizes))}
    whole = curve["findings", round(np.mean(sizes))]
    assert whole == pytest.approx(table["findings", "macro", "auroc"], abs=1e-4)


def test_a_probe_of_shuffled_labels_sits_at_a_half_and_says_so(prepared):
    """Pixels have a mark for one label: a probe finds it, one of shuffled labels does not."""
    images, rng = np.array(prepared.images), np.random.default_rng(0)
    mark = rng.integers(0, 2, len(images)).astype(float)
    images[mark == 1, :8, :8] = 255
    marked = Prepared(prepared.manifest.assign(**{"truth:picc": mark}), images, prepared.info)
    values, rows = [], []
    for seed in range(8):
        result = run(marked, labels=["picc"], shuffle_labels=True, seed=seed, strengths=[10.0])
        values.append(result.metrics[0]["value"])
        rows.append(result.subject)
    assert 0.35 < np.mean(values) < 0.65
    assert run(marked, labels=["picc"], strengths=[10.0]).metrics[0]["value"] > 0.99
    assert rows[0]["paradigm"] == "control" and rows[0]["encoder"] == "shuffled labels, pixels"


def test_a_supervised_encoder_is_each_folds_own_and_never_meets_its_test_patients(folded, prepared):
    settings_ = {"supervised_samples": 256, "pooling": "mean", "encoder": "supervised:cnn_mini"}
    result = run(prepared, **settings_)
    other = run(flipped(prepared, "test", "validation"), **settings_)
    again = run(prepared, **settings_)
    np.testing.assert_array_equal(again.scores, result.scores)
    judges = [r.fitted[0].encoder.state_dict() for r in (result, other)]
    assert all(torch.equal(judges[0][name], judges[1][name]) for name in judges[0])
    assert not np.allclose(
        result.scores, run(prepared, encoder="random:cnn_mini", pooling="mean").scores
    )
    assert (result.subject["paradigm"], result.subject["samples_seen"]) == ("control", 256)
    folds = run(folded, folds=FOLDS, **settings_).fitted
    first, second = (judge.encoder.state_dict() for judge in folds[:2])
    assert not all(torch.equal(first[name], second[name]) for name in first)


def test_a_supervised_encoder_that_goes_on_from_another_minds_whom_that_one_knew(
    prepared, tmp_path
):
    folder = write_encoder(tmp_path / "run", of(prepared, "test"))
    with pytest.raises(LeakError):
        run(prepared, encoder=f"supervised:{folder}", supervised_samples=64)
    folder = write_encoder(tmp_path / "other", of(prepared, "pretrain"))
    assert (
        run(prepared, encoder=f"supervised:{folder}", supervised_samples=64).subject["paradigm"]
        == "control"
    )


def test_the_same_probe_is_judged_on_another_data_set(prepared, tmp_path):
    out = tmp_path / "public"
    prepare_data(
        study.Data(
            n_images=80, size=32, institution="public-0", fractions={"test": 1.0}, out=str(out)
        )
    )
    result = run(prepared, also=[str(out)], also_within="row >= 16")
    there = result.external["public"]
    assert list(there.test["row"]) == list(range(16, 80))
    tasks = [row["task"] for row in result.metrics]
    assert {"findings@public", "lines_tubes@public"} <= set(tasks)
    np.testing.assert_array_equal(result.scores, run(prepared).scores)
    rows = pd.DataFrame(result.metrics).set_index(["task", "label", "metric"])["value"]
    k = COMMON.index("cardiomegaly")
    assert rows["findings@public", "cardiomegaly", "auroc"] == pytest.approx(
        roc_auc_score(there.truth[:, k], there.scores[:, k])
    )
    assert save(result, tmp_path / "run")[:2] == [
        "scores.parquet",
        "scores@public.parquet",
    ]
    assert len(pd.read_parquet(tmp_path / "run" / "scores@public.parquet")) == 64
    late = tmp_path / "late"  # of the same institution
    shares = {"pretrain": 0.5, "test": 0.5}
    halved = prepare_data(
        study.Data(n_images=80, size=32, institution="public-0", fractions=shares, out=str(late))
    )
    both = run(prepared, also=[str(out), str(late)])
    assert [len(both.external[name].test) for name in ("public", "late")] == [
        80,
        (halved.manifest["split"] == "test").sum(),
    ]
    assert {"scores@public.parquet", "scores@late.parquet"} <= set(save(both, tmp_path / "both"))
    with pytest.raises(ValueError, match="also: two folders of one name"):
        run(prepared, also=[str(out), str(out)])
    folder = write_encoder(
        tmp_path / "leaky", [*of(prepared, "pretrain"), there.test["patient_id"].iloc[-1]]
    )
    run(prepared, encoder=str(folder), pooling="mean")
    with pytest.raises(LeakError):
        run(prepared, encoder=str(folder), also=[str(out)])
    with pytest.raises(ValueError, match="also_within"):
        run(prepared, also=[str(out)], also_within="row > 1000")


def test_an_image_that_was_not_looked_at_cannot_be_scored(prepared):
    x, _ = protocol.extract_features(
        parameters(), encoders.load_encoder("pixels"), None, prepared, np.arange(9), iter
    )
    with pytest.raises(ValueError, match="not finite in row 1"):
        run(prepared).fitted[0].predict(x, np.array([8, 9]))


@pytest.mark.parametrize("name", ["cnn_mini", "davit_mini", "hybrid_mini"])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_text_side_changes_nothing_of_what_a_probe_sees(prepared, name, layers):
    """Stages of a hierarchical trunk differ in width, also of what the text tower reads."""
    encoder, rows = encoders.load_encoder(f"random:{name}", size=32), np.arange(5)
    text = encoders.build_text(["a report"], encoder.channels)
    p = parameters(layers=layers, pooling="mean+grid2")
    plain, none = protocol.extract_features(p, encoder, None, prepared, rows, iter)
    told, mean = protocol.extract_features(p, encoder, text, prepared, rows, iter)
    np.testing.assert_array_equal(told, plain)
    assert none.shape == (IMAGES, 0)
    x = encoder.normalise(np.array(prepared.images[rows]))
    np.testing.assert_allclose(mean[rows], encoder.pool(x), rtol=1e-3, atol=1e-4)


def test_a_feature_of_one_patch_is_probed_beside_a_text_side(prepared):
    encoder = encoders.load_encoder("pixels")
    text = encoders.build_text(["a report"], encoder.channels)
    found, mean = protocol.extract_features(
        parameters(), encoder, text, prepared, np.arange(5), iter
    )
    np.testing.assert_array_equal(found[:5], mean[:5])
    assert found.shape == (IMAGES, 1024)


def test_figures_of_a_result_say_what_they_show(by_subject):
    result = by_subject["pixels"]
    scores = score_table(result)
    shown = plots.roc_and_pr(scores, COMMON)
    assert "pleural effusion, PICC line" in shown.alt and shown.markup.count("<img") == 1
    empty = scores.assign(**{"truth:picc": 0.0})
    assert "PICC" not in plots.roc_and_pr(empty, COMMON).alt
    tables = {
        name: reliability(scores[f"truth:{name}"], scores[f"probability:{name}"])
        for name in COMMON[:2]
    }
    metrics = pd.DataFrame(result.metrics).set_index(["label", "metric"])["value"]
    assert f"cardiomegaly {metrics['cardiomegaly', 'ece']:.3f}" in plots.reliability(tables).alt
    curve = pd.DataFrame(
        {"task": "findings", "patients": [10, 10, 90], "seed": [0, 1, 0], "auroc": [0.5, 0.7, 0.8]}
    )
    assert "findings from 0.600 with 10 to 0.800 with 90" in plots.efficiency(curve).alt
