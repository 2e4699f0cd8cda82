"""Zero-shot scores and retrieval: properties of any embeddings, and a shipped text tower."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy import encoders, study
from cxrstudy.data.images import Prepared
from cxrstudy.data.sets import prepare_data
from cxrstudy.evaluate import protocol, zeroshot
from cxrstudy.evaluate.metrics import auroc
from cxrstudy.evaluate.scores import save_scores

torch.set_num_threads(1)
quick = settings(deadline=None, max_examples=30)


def unit(seed, n, d=8):
    return torch.nn.functional.normalize(
        torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1
    )


@pytest.fixture(scope="module")
def text():
    corpus = [
        "x-ray chest edema",
        "There is a pleural effusion.",
        "No pneumothorax.",
        "PICC line in place.",
    ]
    return encoders.build_text(corpus * 3, 16).eval()


@quick
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), same=st.integers(0, 5))
def test_recall_grows_with_k_and_every_rank_lies_in_the_gallery(seed, n, same):
    reports = [f"report {max(0, k - same)}" for k in range(n)]
    found = zeroshot.ranks(unit(seed, n), unit(seed + 1, n), reports, block=7)
    assert (
        (found >= 1).all() and (found[:, 0] <= len(set(reports))).all() and (found[:, 1] <= n).all()
    )
    rows = pd.DataFrame(zeroshot.recall(found, np.arange(n), resamples=20))
    for _, of_one in rows.groupby("label"):
        assert of_one["value"].is_monotonic_increasing
        assert ((of_one["low"] <= of_one["value"]) & (of_one["value"] <= of_one["high"])).all()
    np.testing.assert_array_equal(
        zeroshot.ranks(unit(seed, n), unit(seed + 1, n), reports), found
    )  # of any block


@quick
@given(seed=st.integers(0, 10**6), n=st.integers(1, 30))
def test_identical_embeddings_find_each_other_first(seed, n):
    rows = unit(seed, n)
    found = zeroshot.ranks(rows, rows, [f"report {k}" for k in range(n)])
    assert (found == 1).all()
    assert all(row["value"] == 1 for row in zeroshot.recall(found, np.arange(n), resamples=20))


def test_ranks_by_hand():
    """Report b is nearest to both images of a; images 0 and 1 share a report: either will do."""
    images = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    texts = torch.tensor([[0.8, 0.6], [0.8, 0.6], [1.0, 0.0]])
    assert zeroshot.ranks(images, texts, ["a", "a", "b"]).tolist() == [[2, 1], [1, 1], [2, 3]]


def test_features_that_have_fallen_together_find_nothing():
    rows = torch.ones(41, 1)
    found = zeroshot.ranks(rows, rows, [f"report {k}" for k in range(41)])
    assert (found == 21).all()  # the middle
    assert all(row["value"] == 0 for row in zeroshot.recall(found, np.arange(41), resamples=20))


def test_images_without_a_report_are_in_no_gallery_and_the_others_are_ranked_without_them(text):
    """As a fold in which all, some or none have one; of a data set without reports as well."""
    images, names, n = (
        np.random.default_rng(0).normal(size=(12, 16)).astype(np.float32),
        ["edema"],
        12,
    )
    reports = [f"report {k}" for k in range(n)]
    reports[3], reports[7] = None, " "
    test = pd.DataFrame({"row": np.arange(n), "report": reports})
    found = zeroshot.text_scores(text, images, None, test, names, ["retrieval", "zero_shot"])
    told = np.array([k not in (3, 7) for k in range(n)])
    assert found["zero_shot_scores"].shape == (n, 1)
    assert np.isnan(found["ranks"][~told]).all()
    alone = zeroshot.text_scores(text, images[told], None, test[told], names, ["retrieval"])[
        "ranks"
    ]
    np.testing.assert_array_equal(found["ranks"][told], alone)
    patients = np.arange(n) // 2
    rows = zeroshot.recall(found["ranks"], patients, resamples=20)
    assert rows == zeroshot.recall(alone, patients[told], resamples=20) and rows[0]["n"] == n - 2
    for table in (test.drop(columns="report"), test.assign(report=None)):
        found = zeroshot.text_scores(text, images, None, table, names, ["retrieval"])["ranks"]
        assert found.shape == (n, 2) and np.isnan(found).all()
        assert zeroshot.recall(found, patients, resamples=20) == []


def test_in_cross_fitting_a_fold_without_reports_costs_the_others_nothing(tmp_path):
    shares = {"a": 0.34, "b": 0.33, "c": 0.33}
    prepared = prepare_data(
        study.Data(n_images=120, size=32, fractions=shares, out=str(tmp_path / "data"))
    )
    silent = prepared.manifest["split"] == "a"
    manifest = prepared.manifest.assign(report=prepared.manifest["report"].mask(silent))
    encoder = encoders.build_encoder("cnn_mini", 32)
    encoders.save_encoder(
        encoder, tmp_path / "clip", encoders.build_text(["a report"], encoder.channels)
    )
    values = {
        "encoder": str(tmp_path / "clip"),
        "folds": list(shares),
        "resamples": 20,
        "strengths": [1.0],
    }
    p = study.validated(
        "classify", values | {"tasks": ["findings", "retrieval"], "labels": ["cardiomegaly"]}
    )
    result = protocol.run(p, Prepared(manifest, prepared.images, prepared.info))
    np.testing.assert_array_equal(np.isnan(result.ranks).all(1), result.test["split"] == "a")
    assert next(row["n"] for row in result.metrics if row["task"] == "retrieval") == (~silent).sum()
    result = protocol.run(p, Prepared(manifest.assign(report=None), prepared.images, prepared.info))
    tasks = {row["task"] for row in result.metrics}
    assert result.ranks is None and tasks - {"same_patient"} == {"findings"}


def test_label_scores_do_not_depend_on_the_order_of_prompts_and_turn_with_their_sides(text):
    images, names = unit(0, 9, text.shape["dim"]), ["edema", "picc", "pleural_effusion"]
    present, absent = zeroshot.PRESENT, zeroshot.ABSENT
    scores = zeroshot.zero_shot_scores(text, images, names)
    assert scores.shape == (9, 3) and (np.abs(scores) <= 2).all() and np.ptp(scores) > 1e-3
    moved = zeroshot.zero_shot_scores(
        text, images, names, present=present[::-1], absent=absent[2:] + absent[:2]
    )
    np.testing.assert_allclose(moved, scores, atol=1e-6)
    turned = zeroshot.zero_shot_scores(text, images, names, present=absent, absent=present)
    np.testing.assert_allclose(turned, -scores, atol=1e-6)
    np.testing.assert_allclose(
        zeroshot.zero_shot_scores(text, images, names[::-1])[:, ::-1], scores, atol=1e-6
    )


def test_only_encoders_with_a_text_tower_have_one(tmp_path, text):
    encoder = encoders.build_encoder("cnn_mini", 32)
    encoders.save_encoder(encoder, tmp_path / "plain")
    encoders.save_encoder(
        encoder, tmp_path / "both", encoders.build_text(["a report"], encoder.channels)
    )
    assert zeroshot.open_text_tower(str(tmp_path / "plain"), encoder) is None
    assert zeroshot.open_text_tower("random:cnn_mini", encoder) is None
    text = zeroshot.open_text_tower(str(tmp_path / "both"), encoder)
    assert text.embed_text(torch.zeros(1, 96, dtype=int)).shape == (1, 128)


def test_a_shipped_clip_encoder_knows_findings_unlabelled_and_its_scores_are_kept(tmp_path):
    shares = {"train": 0.3, "validation": 0.2, "test": 0.5}
    prepared = prepare_data(
        study.Data(n_images=500, size=64, fractions=shares, out=str(tmp_path / "data"))
    )
    p = study.validated(
        "classify",
        {"encoder": "book/recorded/bases/clip-hybrid", "resamples": 40, "strengths": [1.0]},
    )
    result = protocol.run(p, prepared)
    table = pd.DataFrame(result.metrics).set_index(["task", "label", "metric"])["value"]
    assert table["zero_shot", "zero_shot:pleural_effusion", "auroc"] > 0.75
    assert not {"f1", "ece"} & set(table["zero_shot"].index.get_level_values("metric"))
    chance = 10 / result.test["report"].nunique()
    assert table["retrieval", "image_to_text", "recall@10"] > 2 * chance
    save_scores(result, tmp_path / "scores.parquet")
    kept = pd.read_parquet(tmp_path / "scores.parquet")
    ranks = kept[["rank:image_to_text", "rank:text_to_image"]].to_numpy()
    again = zeroshot.recall(ranks, kept["patient_id"].to_numpy(), resamples=40)
    assert again == [row for row in result.metrics if row["task"] == "retrieval"]
    cells = [kept[[f"{what}:zero_shot:edema"]].to_numpy(float) for what in ("truth", "score")]
    assert auroc(*cells)[0] == table["zero_shot", "zero_shot:edema", "auroc"]
    alone = protocol.run(p.model_copy(update={"tasks": ["findings"]}), prepared)
    np.testing.assert_allclose(
        alone.scores, result.scores[:, : len(alone.names)], rtol=1e-3, atol=1e-3
    )
