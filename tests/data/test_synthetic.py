"""The synthetic institution: samples depend on their index only, and agree with what is stated."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from cxrstudy.data.reports import extract_labels
from cxrstudy.data.synthetic import describe, devices, institution, isolate_label, render, sample
from cxrstudy.data.synthetic.findings import LEFT, RIGHT
from cxrstudy.data.synthetic.projection import ALL, Geometry, Projector, Scene
from cxrstudy.data.vocabulary import DEVICES, FINDINGS, LABELS, VIEWS

INDEX = st.one_of(st.integers(0, 60), st.integers(3_499_900, 3_499_999), st.integers(0, 2**40))
PLAIN = ("patient_id", "study_id", "view", "sex", "scanner", "side")
NUMBERS = ("labels", "reported", "age", "severity", "malpositioned")
STUDY = institution.institution("study")


def same(a, b, rows, numbers) -> None:
    """These fields of `a` equal these rows of `b`, to the bit."""
    assert a.report == [b.report[k] for k in rows]
    for name in numbers:
        assert np.array_equal(getattr(a, name), getattr(b, name)[rows], equal_nan=True), name
    for name in PLAIN:
        assert (getattr(a, name) == getattr(b, name)[rows]).all(), name


@settings(max_examples=12, deadline=None)
@given(
    index=st.lists(INDEX, min_size=2, max_size=24),
    size=st.integers(32, 96),
    threads=st.integers(1, 3),
    seed=st.integers(-(2**70), 2**70),
    site=st.sampled_from(["study", "study-faint", "public-3", "public"]),
    data=st.data(),
)
def test_a_sample_depends_on_seed_institution_and_index_alone(
    index, size, threads, seed, site, data
) -> None:
    before = torch.get_num_threads()
    whole = sample(index, institution=site, size=size, seed=seed)
    rows = data.draw(st.permutations(range(len(index))))[: data.draw(st.integers(1, len(index)))]
    try:
        torch.set_num_threads(threads)
        part = sample([index[k] for k in rows], institution=site, size=size, seed=seed)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(part.image, whole.image[rows])
    same(part, whole, rows, (*NUMBERS, "masks", "tips", "pixel_spacing"))
    same(describe([index[k] for k in rows], institution=site, seed=seed), whole, rows, NUMBERS)


@pytest.fixture(scope="module")
def many():
    return sample(range(1000), size=64)


def test_shapes_and_ranges(many) -> None:
    n = len(many.report)
    assert many.image.shape == (n, 1, 64, 64)
    assert many.image.dtype == torch.float32
    assert many.image.min() >= 0.0
    assert many.image.max() <= 1.0
    assert many.labels.shape == many.reported.shape == (n, len(LABELS))
    assert many.labels.dtype == many.reported.dtype == np.float32
    assert many.masks.shape == (n, len(DEVICES), 64, 64)
    assert many.masks.dtype == bool
    assert set(np.unique(many.labels)) == {0.0, 1.0}
    assert set(np.unique(many.reported[~np.isnan(many.reported)])) == {0.0, 1.0}
    assert set(many.view) == set(VIEWS)
    assert all(many.report)


def test_every_label_occurs_and_its_record_errs_a_little(many) -> None:
    share = many.labels.mean(0)
    assert ((share > 0.01) & (share < 0.35)).all(), dict(zip(LABELS, share, strict=True))
    blank = np.isnan(many.reported)
    wrong = (many.reported != many.labels) & ~blank
    assert 0.05 < blank.mean() < 0.25
    assert 0.01 < wrong[~blank].mean() < 0.08


def test_a_mask_stands_where_its_device_is_and_differs_from_its_surroundings(many) -> None:
    present = many.labels[:, -len(DEVICES) :] > 0
    assert (many.masks.any((2, 3)) == present).all()
    assert (np.isnan(many.tips[..., 0]) == ~present).all()
    assert not (many.malpositioned & ~present).any()
    image = many.image[:, 0].numpy()
    for k, name in enumerate(DEVICES):
        mask = torch.from_numpy(many.masks[present[:, k], k]).float()
        ring = (torch.nn.functional.max_pool2d(mask, 5, 1, 2) - mask).numpy() > 0
        shown, inside = image[present[:, k]], mask.numpy() > 0
        brighter = [p[m].mean() - p[r].mean() for p, m, r in zip(shown, inside, ring, strict=True)]
        assert np.mean(brighter) > 0.01, name


def test_a_tip_is_the_end_of_its_mask(many) -> None:
    for k in (devices.ETT, devices.PICC, devices.CHEST):
        for row in np.flatnonzero(many.labels[:, len(FINDINGS) + k]):
            tip = np.floor(many.tips[row, k] + 0.5).astype(int)
            if ((tip > 0) & (tip < 63)).all():
                assert many.masks[row, k, tip[1] - 1 : tip[1] + 2, tip[0] - 1 : tip[0] + 2].any()


@pytest.mark.parametrize("word", ["mention5", "mention95", "mislabel4", "shift2"])
def test_a_word_after_the_name_changes_one_factor_of_the_same_patients(many, word) -> None:
    other = sample(range(200), institution=f"study-{word}", size=64)
    assert other.patient_id.tolist() == many.patient_id[:200].tolist()
    assert np.array_equal(other.labels, many.labels[:200]) and np.array_equal(
        other.masks, many.masks[:200]
    )
    assert torch.equal(other.image, many.image[:200]) == (not word.startswith("shift"))
    assert np.array_equal(other.reported, many.reported[:200], equal_nan=True) == (
        word != "mislabel4"
    )
    assert (other.report == many.report[:200]) == (not word.startswith("mention"))
    devices_of = ("tube", "catheter", "line", "pacemaker")
    said = [
        sum(text.lower().count(w) for w in devices_of for text in batch)
        for batch in (other.report, many.report[:200])
    ]
    assert word != "mention5" or said[0] < 0.5 * said[1]
    assert word != "mention95" or said[0] > 1.5 * said[1]


def test_a_distant_institution_leaves_the_pools_in_scanner_case_mix_and_wording() -> None:
    near = describe(np.arange(4000), institution="study")
    same = describe(np.arange(4000), institution="study-distant0")
    assert np.array_equal(near.labels, same.labels) and near.report == same.report
    sites = [institution.institution(f"study-distant{k}") for k in range(3)]
    pool = [institution.institution(f"public-{k}") for k in range(2 * institution.POOL)]
    ends = [(min(values), max(values)) for values in zip(*map(_habits, pool), strict=True)]
    inside = [
        sum(low <= value <= high for value, (low, high) in zip(_habits(site), ends, strict=True))
        for site in sites
    ]
    assert inside[0] == len(ends) and inside[2] == 0
    for steps in (1, 2):
        far = describe(np.arange(4000), institution=f"study-distant{steps}")
        assert np.array_equal(far.patient_id, near.patient_id)
        ratio = far.labels.mean(0) / near.labels.mean(0)
        assert ratio.min() < 0.75**steps and ratio.max() > 1.2**steps


def _habits(site: institution.Institution) -> list[float]:
    """Return numbers that describe an institution: scanner, rates, wording."""
    return [
        site.fixed[0].gain,
        site.fixed[0].noise,
        *(rates[1] for rates in site.finding_rates.values()),
        *(rates[1] for rates in site.device_rates.values()),
        site.device_mention,
        site.negation,
    ]


def test_the_unseen_pool_shares_no_institution_with_the_public_pool() -> None:
    public, unseen = (
        {p.split("-p")[0] for p in describe(np.arange(400), institution=name).patient_id}
        for name in ("public", "unseen")
    )
    assert public == {f"public-{k}" for k in range(institution.POOL)}
    assert unseen == {f"public-{k}" for k in range(institution.POOL, 2 * institution.POOL)}
    image = sample([16 * 5], institution="public-9", size=32).image
    assert torch.equal(image, sample([16 * (5 * 8 + 1)], institution="unseen", size=32).image)


def test_a_word_that_names_no_factor_is_refused_by_name() -> None:
    for name in ("study-foo", "study-shift", "public-3-mention"):
        with pytest.raises(ValueError, match=name.rsplit("-", 1)[-1]):
            sample([0], institution=name, size=64)
    both = sample(range(16), institution="public-mention90-faint", size=64)
    assert both.patient_id[0].startswith("public-0-")


def test_faint_devices_are_the_same_patients_with_less_contrast(many) -> None:
    faint = sample(range(200), institution="study-faint", size=64)
    assert np.array_equal(faint.masks, many.masks[:200])
    assert faint.report == many.report[:200]
    drop = (many.image[:200] - faint.image)[:, 0].numpy()
    assert drop[faint.masks.any(1)].mean() > 0.01
    bare = ~faint.masks.any((1, 2, 3))
    assert (drop[bare] == 0).all()


def test_patients_own_runs_and_institutions_share_none(many) -> None:
    change = np.flatnonzero(many.patient_id[1:] != many.patient_id[:-1])
    assert len(np.unique(many.patient_id)) == len(change) + 1
    runs = np.diff(change)
    assert (runs.min(), runs.max()) == (1, 4)
    pool = sample(range(200), institution="public", size=32)
    assert {p.split("-p")[0] for p in pool.patient_id} == {f"public-{k}" for k in range(8)}
    assert not set(pool.patient_id) & set(many.patient_id)
    own = sample([16 * 5], institution="public-1", size=32)
    assert torch.equal(own.image, sample([16 * (5 * 8 + 1)], institution="public", size=32).image)


def test_a_lateral_belongs_to_the_frontal_before_it(many) -> None:
    side = np.flatnonzero(many.view == "LATERAL")
    assert len(side) > 10
    for name in ("study_id", "labels", "reported", "severity", "scanner"):
        assert np.array_equal(
            getattr(many, name)[side], getattr(many, name)[side - 1], equal_nan=name in NUMBERS
        )
    assert [many.report[k] for k in side] == [many.report[k - 1] for k in side]
    assert set(many.view[side - 1]) == {"PA"}


def test_reports_mention_no_absent_device_and_compare_only_with_a_prior() -> None:
    told = describe(range(4000))
    words = {
        "swan_ganz_catheter": "Swan-Ganz",
        "picc": "PICC",
        "chest_tube": "chest tube",
        "pacemaker": "pacemaker",
    }
    followed = 0
    for row, text in enumerate(told.report):
        for name, word in words.items():
            if re.search(
                rf"{word}(?! has been removed)",
                re.sub(rf"Interval removal of the {word}[^.]*", "", text),
            ):
                assert told.labels[row, LABELS.index(name)], text
        compared = re.search(
            r"Unchanged|unchanged|Interval|interval|Stable|New |removed|resolved", text
        )
        followed += bool(compared)
        assert not (compared and told.study_id[row].endswith("s0")), text
    assert followed > 200


def test_states_last_from_exam_to_exam() -> None:
    told = describe(range(6000))
    again = (told.patient_id[1:] == told.patient_id[:-1]) & (
        told.study_id[1:] != told.study_id[:-1]
    )
    before, after = told.labels[:-1][again], told.labels[1:][again]
    for k, name in enumerate(LABELS):
        assert after[before[:, k] > 0, k].mean() > 2 * told.labels[:, k].mean(), name


def test_malposition_is_what_the_rules_say_of_the_tip() -> None:
    case, _ = render.exam_states(np.arange(3000), STUDY, 0)
    body = render.build_patient(case, STUDY, 64)
    lm, draws = body.lm, case.who.exam_draws
    placed = (body.scene, lm, case.found, body.geometry, 64, "clear")
    tip = devices.place_devices(case.held, draws, *placed)[1]
    x, y, _ = np.moveaxis(tip, -1, 0)
    deep = y - lm["carina"][:, None]
    inwards = 134.0 * lm["wide"][:, None] - np.abs(x)
    below, left = y - lm["dome.left"][:, None], x - lm["shift"][:, None]
    reach = np.stack(
        [-deep[:, 0], deep[:, 1], deep[:, 2], -x[:, 3], below[:, 4], inwards[:, 5], left[:, 6]],
        axis=1,
    )
    for k, name in enumerate(DEVICES):
        here = case.held.present[:, k]
        ok = (reach[here, k] >= devices.TIP_RULES[k][1]) & (
            reach[here, k] <= devices.TIP_RULES[k][2]
        )
        assert np.array_equal(ok, ~case.held.malpositioned[here, k]), name
        assert 0.05 < 1 - ok.mean() < 0.30, name


def shadow(case, name: str, side: int) -> tuple[torch.Tensor, Geometry]:
    """Return what a finding on a side adds to the images of some exams, and their geometry."""
    k, images = FINDINGS.index(name), []
    case.found.side[:, k], case.found.severity[:, k] = side, 0.7
    for there in (False, True):
        case.found.present[:, k] = there
        images.append(render.render(case, STUDY, 96)[0][:, 0])
    return images[1] - images[0], render.build_patient(case, STUDY, 96).geometry


@pytest.mark.parametrize(
    ("name", "mm"),  # what is wide or crossed by other shadows has no definite height
    [
        ("nodule_mass", 8),
        ("consolidation", 12),
        ("fracture", 20),
        ("pleural_effusion", 25),
        ("pneumothorax", 40),
    ],
)
def test_right_is_on_the_left_of_a_frontal_image_and_views_agree_on_height(name, mm, many) -> None:
    lateral = np.flatnonzero(many.view == "LATERAL")[:6]
    case, _ = render.exam_states(np.sort(np.concatenate([lateral - 1, lateral])), STUDY, 0)
    case.found.present[:] = False
    case.held.present[:] = False
    for side in (RIGHT, LEFT):
        change, view = shadow(case, name, side)
        change = change.abs() * (change.abs() > 0.02)
        mass = change.sum((1, 2)).numpy()
        v, u = (
            ((change.sum(3 - k) * (torch.arange(96) - 47.5)).sum(1)).numpy() / mass * view.spacing
            for k in (1, 2)
        )
        frontal = u[0::2] - view.shift_u[0::2]
        assert ((frontal < 0) == (side == RIGHT)).all()
        height = (v - view.shift_v) / view.magnification(np.zeros(len(v)))
        assert np.abs(height[0::2] - height[1::2]).max() < mm


def test_a_mirrored_patient_gives_a_mirrored_image() -> None:
    rng = np.random.default_rng(0)
    scene = Scene({"a": rng.uniform(5, 60, (4, 7)) * np.array([1, 1, 1, 1, 1, 1, 0.02])}, 4)
    turned = {
        "cos": np.full(4, 0.99),
        "sin": np.full(4, 0.14),
        "roll": np.full(4, 0.05),
        "shift_u": np.full(4, 7.0),
    }
    rest = {
        "detector": np.ones(4),
        "source": np.full(4, 1800.0),
        "shift_v": np.full(4, 3.0),
        "spacing": np.full(4, 6.0),
    }
    there = Projector.of(scene, Geometry(**turned, **rest), 64)
    turned = {k: v if k == "cos" else -v for k, v in turned.items()}
    mirrored = Scene({"a": scene.shapes["a"] * np.array([-1, 1, 1, 1, 1, 1, -1])}, 4)
    back = Projector.of(mirrored, Geometry(**turned, **rest), 64)
    assert there.half_chord("a", ALL)[0].max() > 1.0
    assert torch.equal(there.half_chord("a", ALL)[0], back.half_chord("a", ALL)[0].flip(-1))


def test_every_plane_is_computed_on_the_device_asked_for() -> None:
    """Fake tensors need no GPU; an operand that is left on the CPU raises."""
    case, _ = render.exam_states(np.arange(64), STUDY, 0)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        ((rows, image, masks, _, _),) = render.render_chunks(case, STUDY, 64, "cuda")
    assert rows == slice(0, 64)
    assert image.device.type == masks.device.type == "cuda"
    assert masks.shape == (64, len(DEVICES), 64, 64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_draws_the_same_to_a_thousandth() -> None:
    here, there = sample(range(200), size=64), sample(range(200), size=64, device="cuda")
    assert there.image.device.type == "cuda"
    assert (here.image - there.image.cpu()).abs().max() < 1e-3
    assert (here.masks != there.masks).mean() < 1e-4


@pytest.mark.parametrize("label", ["nodule_mass", "edema", "picc", "chest_tube"])
def test_an_isolated_label_changes_the_image_and_nothing_else_is_there(label) -> None:
    image, bare, masks, extent = isolate_label(range(8), label, size=64)
    assert ((image - bare).abs().amax((1, 2, 3)) > 0.02).all()
    shown = masks.any((2, 3))
    assert np.array_equal(shown, np.tile(np.array(DEVICES) == label, (8, 1)))
    assert (extent.max((1, 2)) > 0.02).all() == (label in FINDINGS)


@pytest.mark.parametrize("site", ["study", "public-0", "public-5"])
def test_reports_state_what_report_labels_say(site) -> None:
    said = describe(range(3000), institution=site)
    present = said.report_labels == 1
    assert (said.labels[present] == 1).all()  # nothing is asserted that is not there
    assert (said.labels[said.report_labels == 0] == 0).all()
    read = np.zeros_like(present)
    for row, text in enumerate(said.report):
        for name, status in extract_labels(text).items():
            if status == "present" and name in LABELS:
                read[row, LABELS.index(name)] = True
    hits = (present & read).sum(0)
    f1 = 2 * hits / (present.sum(0) + read.sum(0))
    assert (f1 >= 0.98).all(), dict(zip(LABELS, f1.round(3), strict=True))


def test_large_indices_and_other_seeds_give_other_images() -> None:
    index = [0, 3_499_998, 3_499_999, 10**12]
    a = sample(index, size=64)
    flat = a.image.flatten(1)
    assert (torch.cdist(flat, flat) + torch.eye(4) > 0.5).all()
    assert not torch.equal(a.image, sample(index, size=64, seed=1).image)


def test_bad_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="size 16"):
        sample([0], size=16)
    with pytest.raises(ValueError, match="start at 0"):
        sample([-1], size=64)
    for name in ("elsewhere", "public-x"):
        with pytest.raises(ValueError, match=name.rpartition("-")[2]):
            sample([0], size=64, institution=name)
    for name in ("study", "public"):
        assert sample([], size=64, institution=name).image.shape == (0, 1, 64, 64)
