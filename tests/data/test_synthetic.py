"""The synthetic institution keeps its contract: pure in the index, to the bit, and true to what it says of itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy.data.synthetic import FINGERPRINT, describe, sample
from cxrstudy.data.vocabulary import DEVICES, LABELS, VIEWS

INDEX = st.one_of(st.integers(0, 60), st.integers(3_499_900, 3_499_999), st.integers(0, 2**40))


def same(a, b, rows) -> None:
    """Every field of `a` equals these rows of `b`, to the bit."""
    assert torch.equal(a.image, b.image[rows])
    assert a.report == [b.report[k] for k in rows]
    for name in ("labels", "reported", "masks", "age", "tips", "pixel_spacing"):
        assert np.array_equal(getattr(a, name), getattr(b, name)[rows], equal_nan=True), name
    for name in ("patient_id", "study_id", "view", "sex"):
        assert (getattr(a, name) == getattr(b, name)[rows]).all(), name


@settings(max_examples=25, deadline=None)
@given(
    index=st.lists(INDEX, min_size=2, max_size=40), size=st.integers(32, 96), threads=st.integers(1, 3),
    seed=st.integers(-(2**70), 2**70), site=st.sampled_from(["study", "public-0", "public-3", "public"]), data=st.data(),
)  # fmt: skip
def test_a_sample_depends_on_seed_institution_and_index_alone(index, size, threads, seed, site, data) -> None:
    before = torch.get_num_threads()
    whole = sample(index, institution=site, size=size, seed=seed)
    rows = data.draw(st.permutations(range(len(index))))[: data.draw(st.integers(1, len(index)))]
    try:
        torch.set_num_threads(threads)
        same(sample([index[k] for k in rows], institution=site, size=size, seed=seed), whole, rows)
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def many():
    return sample(range(1000), size=64)


def test_shapes_and_ranges(many) -> None:
    n = len(many.report)
    assert many.image.shape == (n, 1, 64, 64) and many.image.dtype == torch.float32
    assert 0.0 <= many.image.min() and many.image.max() <= 1.0
    assert many.labels.shape == many.reported.shape == (n, len(LABELS)) and many.labels.dtype == np.float32
    assert many.masks.shape == (n, len(DEVICES), 64, 64) and many.masks.dtype == bool
    assert set(np.unique(many.labels)) == {0.0, 1.0}
    assert set(np.unique(many.reported[~np.isnan(many.reported)])) == {0.0, 1.0}
    assert set(many.view) <= set(VIEWS) and all(many.report)


def test_every_label_occurs_and_its_record_errs_a_little(many) -> None:
    share = many.labels.mean(0)
    assert (share > 0.01).all() and (share < 0.35).all(), dict(zip(LABELS, share, strict=True))
    blank = np.isnan(many.reported)
    wrong = (many.reported != many.labels) & ~blank
    assert 0.05 < blank.mean() < 0.25 and 0.01 < wrong[~blank].mean() < 0.08


def test_a_mask_stands_where_its_device_is_and_differs_from_its_surroundings(many) -> None:
    present = many.labels[:, -len(DEVICES) :] > 0
    assert (many.masks.any((2, 3)) == present).all()
    assert (np.isnan(many.tips[..., 0]) == ~present).all()
    image = many.image[:, 0].numpy()
    for k, name in enumerate(DEVICES):
        mask = torch.from_numpy(many.masks[present[:, k], k]).float()
        ring = (torch.nn.functional.max_pool2d(mask, 5, 1, 2) - mask).numpy() > 0
        shown, inside = image[present[:, k]], mask.numpy() > 0
        brighter = [p[m].mean() - p[r].mean() for p, m, r in zip(shown, inside, ring, strict=True)]
        assert np.mean(brighter) > 0.01, name


def test_patients_own_runs_and_institutions_share_none(many) -> None:
    change = np.flatnonzero(many.patient_id[1:] != many.patient_id[:-1])
    assert len(np.unique(many.patient_id)) == len(change) + 1
    runs = np.diff(change)
    assert runs.min() == 1 and runs.max() == 4
    pool = sample(range(200), institution="public", size=32)
    assert {p.split("-p")[0] for p in pool.patient_id} == {f"public-{k}" for k in range(8)}
    assert not set(pool.patient_id) & set(many.patient_id)
    alone = sample([16 * 5], institution="public-1", size=32)
    assert torch.equal(alone.image, sample([16 * (5 * 8 + 1)], institution="public", size=32).image)


def test_large_indices_and_other_seeds_give_other_images() -> None:
    a = sample([0, 3_499_998, 3_499_999, 10**12], size=64)
    flat = a.image.flatten(1)
    assert (torch.cdist(flat, flat) + torch.eye(4) > 0.5).all()
    assert not torch.equal(a.image, sample([0, 3_499_998, 3_499_999, 10**12], size=64, seed=1).image)


def test_bad_calls_are_refused() -> None:
    for call in ({"size": 16}, {"size": 64, "institution": "elsewhere"}, {"size": 64, "institution": "public-x"}):
        with pytest.raises(ValueError):
            sample([0], **call)
    with pytest.raises(ValueError):
        sample([-1], size=64)
    assert sample([], size=64).image.shape == (0, 1, 64, 64)


def test_describe_is_sample_without_rendering() -> None:
    for site in ("study", "public"):
        told, drawn = describe(range(60), institution=site), sample(range(60), institution=site, size=32)
        assert told.image is None
        assert told.masks is None
        assert told.report == drawn.report
        for name in ("labels", "reported", "patient_id", "study_id", "view", "age", "sex"):
            assert np.array_equal(getattr(told, name), getattr(drawn, name), equal_nan=name == "reported")
    assert len(FINGERPRINT) == 12
