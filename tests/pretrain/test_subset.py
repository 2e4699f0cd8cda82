"""Images that a paradigm cannot use are left out, the same at every size; the order of the rest."""

import math
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import parameters

from cxrstudy import study
from cxrstudy.data.images import Prepared, open_prepared, prepare
from cxrstudy.data.manifest import assign_splits, nested_subset
from cxrstudy.data.sets import prepare_data
from cxrstudy.data.vocabulary import LABELS
from cxrstudy.evaluate.metrics import knn_auroc
from cxrstudy.pretrain.clip import captions
from cxrstudy.pretrain.loop import pretrain
from cxrstudy.pretrain.monitor import Monitor
from cxrstudy.pretrain.subset import batch_positions, positions, subset_rows, usable

torch.set_num_threads(1)
quick = settings(deadline=None, max_examples=30)
NONE = [None, float("nan"), "", "  ", "\n\t"]


def table(reports, **labels):
    n = len(reports)
    rows = {"image_id": [f"i{k}" for k in range(n)], "patient_id": [f"p{k % 7}" for k in range(n)]}
    rows |= {
        "study_id": rows["image_id"],
        "path": rows["image_id"],
        "split": ["a" if k % 3 else "b" for k in range(n)],
    }
    named = {f"label:{name}": column for name, column in labels.items()}
    return pd.DataFrame(rows | {"report": pd.Series(reports, dtype=object)} | named)


def held(manifest, **info):
    return Prepared(manifest, np.zeros((len(manifest), 32, 32), np.uint8), {"size": 32, **info})


def asked(paradigm, n_images=2, **changes):
    own = {
        "paradigm": paradigm,
        "n_images": n_images,
        "samples_seen": 1000,
        "batch_size": 2,
        "splits": ["a"],
    }
    return study.validated("pretrain", own | {"data": "yours"} | changes)


# ---- the order ---------------------------------------------------------------------------------
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
    batch = batch_positions(n, start, start + size, seed)
    assert len(set(batch)) == size
    assert np.array_equal(batch, batch_positions(n, start, start + size, seed))
    plain = positions(n, start, start + size, seed)
    assert (batch != plain).sum() == size - len(set(plain))  # only duplicates are replaced


def test_each_epoch_and_seed_has_its_own_order():
    orders = {
        tuple(positions(50, 50 * epoch, 50 * epoch + 50, seed))
        for epoch in range(4)
        for seed in range(4)
    }
    assert len(orders) == 16


# ---- which images ------------------------------------------------------------------------------
kinds = st.lists(
    st.tuples(st.sampled_from([*NONE, "a", "b"]), st.sampled_from([0.0, 1.0, math.nan])), min_size=9
)


@settings(deadline=None, max_examples=60)
@given(rows=kinds, seed=st.integers(0, 9))
def test_each_paradigm_takes_what_it_can_use_and_subsets_are_nested(rows, seed):
    manifest = table([report for report, _ in rows], cardiomegaly=[label for _, label in rows])
    has_report = np.array([isinstance(report, str) and report.strip() != "" for report, _ in rows])
    has_label = np.array([label == label for _, label in rows])
    own = manifest["split"].to_numpy() == "a"
    for paradigm, can_use in (
        ("clip", has_report),
        ("clip+labels", has_report),
        ("unicl", has_report | has_label),
        ("dinov2", has_report | ~has_report),
    ):
        if paradigm in ("unicl", "clip+labels") and not (has_label & own).any():
            with pytest.raises(ValueError, match="needs structured labels"):
                usable(held(manifest), asked(paradigm))
            continue
        if not (can_use & own).any():
            with pytest.raises(ValueError, match=f"'{re.escape(paradigm)}' needs reports"):
                usable(held(manifest), asked(paradigm))
            continue
        pool, counts = usable(held(manifest), asked(paradigm))
        assert sorted(pool["row"]) == list(np.flatnonzero(can_use & own))
        left = {
            "without_report": int((own & ~has_report).sum()),
            "left_out": int((own & ~can_use).sum()),
        }
        assert counts == ({} if paradigm == "dinov2" else left)
        if len(pool) < 2:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error" if not counts.get("left_out") else "ignore")
            every = [
                subset_rows(held(manifest), asked(paradigm, n, seed=seed))
                for n in range(2, len(pool) + 1)
            ]
        for one in every:
            np.testing.assert_array_equal(one, every[-1][: len(one)])
        with pytest.raises(
            ValueError, match=f"n_images is {len(pool) + 1}, .*hold {len(pool)} images"
        ):
            subset_rows(held(manifest), asked(paradigm, len(pool) + 1))


def test_where_every_image_has_a_report_the_subset_is_what_it_was(tmp_path):
    prepare_data(
        study.Data(n_images=60, size=32, fractions={"a": 0.7, "b": 0.3}, out=str(tmp_path))
    )
    prepared = open_prepared(tmp_path)
    pool = prepared.manifest.assign(row=range(60))[prepared.manifest["split"] == "a"]
    expected = nested_subset(pool, 20, seed=3)["row"].to_numpy()
    for paradigm in ("clip", "unicl", "clip+labels", "dinov2"):
        np.testing.assert_array_equal(subset_rows(prepared, asked(paradigm, 20, seed=3)), expected)


def test_subsets_are_nested_and_drawn_from_the_splits_asked_for(data):
    prepared = open_prepared(data)
    small, large = (subset_rows(prepared, parameters(data, "", n_images=n)) for n in (32, 64))
    np.testing.assert_array_equal(large[:32], small)
    assert set(prepared.manifest["split"].iloc[large]) == {"pretrain"}
    both = parameters(data, "", n_images=120, samples_seen=120, splits=["pretrain", "other"])
    assert sorted(subset_rows(prepared, both)) == list(range(120))
    assert list(subset_rows(prepared, parameters(data, "", seed=1))) != list(large)


def test_counts_warning_and_batch_size_are_stated():
    manifest = table(["a", None, " "] * 10)
    with pytest.raises(
        ValueError, match=r"'clip' needs reports; the card 'ward' .*report: COLUMN.*'dinov2'"
    ):
        subset_rows(held(manifest, card="ward"), asked("clip", 15))
    manifest["split"] = "a"
    with pytest.raises(
        ValueError,
        match=r"n_images is 15, but .* hold 10 images that clip can use \(20 of 30 lack a",
    ):
        subset_rows(held(manifest), asked("clip", 15))
    with pytest.warns(
        UserWarning,
        match=r"hold 10 images that clip can use \(20 of 30 lack a report\); the others are",
    ):
        assert len(subset_rows(held(manifest), asked("clip", 10))) == 10
    with pytest.raises(
        ValueError, match=r"batch_size 9 exceeds n_images 8.*lower batch_size or raise n_images"
    ):
        subset_rows(held(manifest), asked("dinov2", 8, batch_size=9))


# ---- labels ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "labels",
    [{}, {"covid": [math.nan] * 12}, {"covid": [0.0, math.nan] * 6, "tb": [math.nan] * 12}],
)
def test_unicl_without_a_label_for_a_prompt_is_refused_with_card_and_remedy(labels):
    manifest = table(["a"] * 12, **labels)
    with pytest.raises(
        ValueError, match=r"'unicl' needs structured labels; the card 'ward'.*set paradigm='clip'"
    ):
        subset_rows(held(manifest, card="ward"), asked("unicl"))
    assert len(subset_rows(held(manifest, card="ward"), asked("clip"))) == 2


def test_labels_under_ones_own_name_are_in_prompts():
    texts = captions(
        table(["a", "b", None], covid=[1.0, 0.0, 1.0], lung_opacity=[1.0, 0.0, math.nan])
    )
    assert texts.prompts == [
        "x-ray chest covid, lung opacity",
        "x-ray chest no covid, no lung opacity",
        "x-ray chest covid",
    ]
    assert texts.prompt_ids.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(texts.prompt_labels, [[1, 1], [0, 0], [1, 0]])


# ---- runs on data of other kinds ---------------------------------------------------------------
@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare_data(
        study.Data(n_images=80, size=32, fractions={"pretrain": 1.0}, out=str(folder / "all"))
    )
    return folder, open_prepared(folder / "all").manifest


def go(drawn, name, change, out, **changes):
    folder, manifest = drawn
    kept = manifest[[c for c in manifest if not c.startswith(("label:", "truth:", "side:"))]]
    info = {"kind": "real", "institution": "ward", "card": "ward"}
    if not (folder / name).exists():
        prepare(
            assign_splits(change(kept, manifest), fractions={"pretrain": 1.0}),
            folder / name,
            size=32,
            info=info,
        )
    own = {
        "data": str(folder / name),
        "out": str(out),
        "n_images": 40,
        "samples_seen": 64,
        "batch_size": 16,
    }
    p = study.validated("pretrain", own | {"precision": "fp32"} | changes)
    return pretrain(p, folder / name, score=knn_auroc)


def bare(kept, _):
    return kept.assign(report=[None if k % 4 == 0 else r for k, r in enumerate(kept["report"])])


@pytest.mark.parametrize("paradigm", ["clip", "dinov2"])
def test_reports_without_labels_are_enough_and_the_monitor_says_what_it_cannot_measure(
    drawn, tmp_path, paradigm
):
    with pytest.warns(UserWarning, match="not measured: no labels; their effective rank is"):
        result = go(
            drawn,
            "bare",
            bare,
            tmp_path,
            paradigm=paradigm,
            dino={"prototypes": 32} if paradigm == "dinov2" else {},
        )
    assert result["heldout_score"] == "not measured: no labels"
    assert "score" not in result["checks"] and (result["checks"]["effective_rank"] > 1).all()
    assert math.isfinite(result["loss"])
    assert result.get("left_out") == (20 if paradigm == "clip" else None)
    with pytest.raises(ValueError, match="card 'ward'"):
        go(drawn, "bare", bare, tmp_path, paradigm="unicl")


def test_labels_under_ones_own_name_train_unicl_and_are_watched(drawn, tmp_path):
    def own(kept, manifest):
        return kept.assign(**{"label:covid": manifest["truth:cardiomegaly"]})

    result = go(drawn, "own", own, tmp_path, paradigm="unicl")
    assert "heldout_score" not in result
    assert result["checks"]["score"].between(0, 1).all()


@pytest.mark.parametrize("positives", ["equal", "overlap"])
def test_unicl_runs_where_no_image_of_a_small_subset_has_a_label_for_a_prompt(
    drawn, tmp_path, positives
):
    def few(kept, manifest):
        first = subset_rows(held(manifest.assign(split="a")), asked("dinov2", 40))
        return kept.assign(
            **{"label:covid": np.where(np.isin(np.arange(len(kept)), first), math.nan, 1.0)}
        )

    result = go(drawn, "few", few, tmp_path, paradigm="unicl", positives=positives)
    assert math.isfinite(result["loss"])


def test_labels_of_one_kind_alone_give_no_score(drawn, tmp_path):
    def one(kept, _):
        return kept.assign(
            **{f"label:{LABELS[0]}": 1.0, "label:covid": [1.0] + [math.nan] * (len(kept) - 1)}
        )

    with pytest.warns(UserWarning, match="no label has two positives and two negatives among"):
        result = go(drawn, "one", one, tmp_path, paradigm="unicl")
    assert "score" not in result["checks"]


def test_a_score_is_asked_for_where_it_can_be_measured_alone():
    manifest = table(["a"] * 12, covid=[0.0, 1.0] * 6)
    assert Monitor(asked("clip"), held(manifest), np.arange(4), knn_auroc, []).unmeasured == {}
    assert (
        Monitor(
            asked("clip"), held(manifest.drop(columns="label:covid")), np.arange(4), None, []
        ).unmeasured
        == {}
    )
