"""Mask metrics: properties on any mask, skeletons compared with scikit-image's, tips of lines."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from skimage.draw import line
from skimage.morphology import skeletonize

from cxrstudy.data.images import Prepared
from cxrstudy.evaluate import metrics
from cxrstudy.evaluate.maps import load_masks
from cxrstudy.evaluate.masks import cl_dice, dice, iou, num_components, skeletons, tip_error, tips

many = settings(deadline=None, max_examples=60)
METRICS = pytest.mark.parametrize("metric", [dice, iou, cl_dice])


@st.composite
def blobs(draw, n=3):
    """(n,H,W) masks from empty to full: smoothed noise above a level, as thick or thin as comes."""
    shape = draw(st.integers(2, 40)), draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = ndimage.gaussian_filter(
        rng.normal(size=(n, *shape)), (0, *[draw(st.sampled_from([0, 0.7, 2]))] * 2)
    )
    return noise > np.quantile(noise, draw(st.sampled_from([0, 0.3, 0.8, 0.97, 1])))


def drawn(start, end, shape=(60, 70)):
    mask = np.zeros(shape, bool)
    mask[line(*start, *end)] = True
    return mask


def of_file(mask, path, size):
    """A mask file as `load_masks` brings it to ``size``."""
    Image.fromarray(np.uint8(mask)).save(path)
    one = pd.DataFrame(
        {"image_id": ["a"], "patient_id": ["a"], "path": ["a.png"], "mask:picc": [str(path)]}
    )
    found = load_masks(
        Prepared(one, np.zeros((1, size, size), np.uint8), {"size": size}), np.arange(1)
    )
    return found.masks[0].any(0)


# ---- files -------------------------------------------------------------------------------------
def test_a_thin_line_of_a_large_file_stays_whole(tmp_path):
    mask = np.zeros((2048, 2048), bool)
    rows, columns = line(100, 1030, 1900, 700)
    for across in range(8):  # 8 px wide, a quarter of a pixel of ours
        mask[rows, columns + across] = True
    found = of_file(mask, tmp_path / "mask.png", 64)
    np.testing.assert_array_equal(found, mask.reshape(64, 32, 64, 32).any((1, 3)))
    assert num_components(found) == 1


@pytest.mark.parametrize("side", [40, 57, 95, 131])
def test_no_pixel_of_a_file_is_lost_whatever_the_factor(tmp_path, side):
    rng = np.random.default_rng(side)
    for row, column in [(0, 0), (side - 1, side - 1), *rng.integers(side, size=(40, 2))]:
        mask = np.zeros((side, side), bool)
        mask[row, column] = True
        found = of_file(mask, tmp_path / "mask.png", 40)
        assert found.sum() == 1
        place = (
            np.ceil((np.array([row, column]) + 0.5) * 40 / side).astype(int) - 1
        )  # its centre; on a border, before
        assert found[tuple(place)]


# ---- overlap -----------------------------------------------------------------------------------
@many
@given(p=blobs(), data=st.data())
def test_dice_and_iou_are_the_sets_own(p, data):
    t = np.roll(p, data.draw(st.integers(-3, 3)), axis=1) & (data.draw(st.booleans()) | p)
    for n in range(len(p)):
        a, b = (set(map(tuple, np.argwhere(m[n]))) for m in (p, t))
        assert dice(p, t)[n] == pytest.approx(
            2 * len(a & b) / (len(a) + len(b)) if a | b else np.nan, nan_ok=True
        )
        assert iou(p, t)[n] == pytest.approx(
            len(a & b) / len(a | b) if a | b else np.nan, nan_ok=True
        )
    np.testing.assert_allclose(dice(p, t), 2 * iou(p, t) / (1 + iou(p, t)))


@METRICS
@many
@given(p=blobs())
def test_symmetric_and_one_on_equal_masks_and_the_same_in_a_mirror(metric, p):
    t = np.roll(p, 1, axis=0)
    np.testing.assert_allclose(metric(p, t), metric(t, p))
    np.testing.assert_array_equal(metric(p, p), np.where(p.any((1, 2)), 1.0, np.nan))
    between = metric(p, t)
    assert ((between >= 0) & (between <= 1) | np.isnan(between)).all()
    assert metric(p[0], t[0]) == pytest.approx(between[0], nan_ok=True)
    if (
        metric is not cl_dice
    ):  # Zhang and Suen's thinning has a direction: a mirrored skeleton may differ by a pixel
        for axis in (1, 2):
            np.testing.assert_array_equal(metric(np.flip(p, axis), np.flip(t, axis)), between)


@many
@given(ends=st.tuples(*[st.integers(0, 59)] * 8))
def test_centre_lines_of_lines_a_pixel_wide_are_the_same_in_a_mirror(ends):
    p, t = drawn(ends[:2], ends[2:4]), drawn(ends[4:6], ends[6:])
    p[5], t[5] = True, True  # so that they share something
    p[[4, 6]] = t[[4, 6]] = False
    for axis in (0, 1):
        assert cl_dice(np.flip(p, axis), np.flip(t, axis)) == pytest.approx(cl_dice(p, t))


@many
@given(p=blobs(), seed=st.integers(0, 99))
def test_a_found_pixel_never_costs_and_a_false_one_always_does(p, seed):
    rng = np.random.default_rng(seed)
    truth, pred = p[0], p[0] & p[1]
    missing, free = np.argwhere(truth & ~pred), np.argwhere(~truth & ~pred)
    for places, better in ((missing, True), (free, False)):
        if len(places) and truth.any():
            changed = pred.copy()
            changed[tuple(places[rng.integers(len(places))])] = True
            for metric in (dice, iou):
                before, after = metric(pred, truth), metric(changed, truth)
                assert after > before if better else after <= before


def test_what_is_empty_is_said_and_not_averaged_in():
    empty, full = np.zeros((2, 8, 8), bool), np.zeros((2, 8, 8), bool)
    full[:, 2:5, 3] = True
    for metric in (dice, iou, cl_dice):
        assert np.isnan(metric(empty, empty)).all()
        assert metric(empty, full).tolist() == metric(full, empty).tolist() == [0, 0]
    assert np.isnan(num_components(empty, full)).all()
    assert num_components(full, empty).tolist() == [1, 1]
    assert num_components(empty, empty).tolist() == num_components(empty).tolist() == [0, 0]
    assert np.isnan(tip_error(empty, full)).all()
    assert np.isnan(tip_error(full, empty)).all()
    assert np.isnan(tip_error(full, np.full((2, 2), np.nan))).all()
    assert (
        dice(full[:0], full[:0]).shape
        == cl_dice(full[:0], full[:0]).shape
        == tip_error(full[:0], full[:0]).shape
    )


@pytest.mark.parametrize(
    ("pred", "truth", "said"),
    [
        (np.zeros((4, 4)), np.zeros((4, 4), bool), "pred must be bool, got float64"),
        (np.zeros((4, 4), bool), np.zeros((4, 5), bool), r"\(4, 4\), truth has \(4, 5\)"),
        (np.zeros((1, 4, 4), bool), np.zeros((4, 4), bool), "they must be equal"),
        (np.zeros(4, bool), np.zeros(4, bool), r"pred must be \(N,H,W\) or \(H,W\)"),
    ],
)
@METRICS
def test_masks_that_do_not_fit_are_refused(metric, pred, truth, said):
    with pytest.raises(ValueError, match=said):
        metric(pred, truth)


# ---- centre lines ------------------------------------------------------------------------------
@many
@given(p=blobs())
def test_skeletons_are_those_of_the_whole_image(p):
    for found, mask in zip(skeletons(np.pad(p, ((0, 0), (3, 9), (5, 0)))), p, strict=True):
        whole = np.pad(mask, ((3, 9), (5, 0)))
        np.testing.assert_array_equal(found, np.argwhere(skeletonize(whole)))


@many
@given(p=blobs())
def test_cl_dice_is_the_papers_formula_and_takes_skeletons_that_stand(p):
    t = np.roll(p, 1, axis=1)
    expected = []
    for a, b in zip(p, t, strict=True):
        line_a, line_b = skeletonize(a), skeletonize(b)
        if not a.any():
            expected.append(np.nan)
            continue
        precision, recall = (line_a & b).sum() / line_a.sum(), (line_b & a).sum() / line_b.sum()
        expected.append(
            2 * precision * recall / (precision + recall) if precision + recall else 0.0
        )
    np.testing.assert_allclose(cl_dice(p, t), expected)
    np.testing.assert_array_equal(
        cl_dice(p, t, skeletons=(skeletons(p), skeletons(t))), cl_dice(p, t)
    )


def test_a_gap_costs_cl_dice_by_its_length_and_a_thicker_line_nothing():
    truth = np.zeros((60, 60), bool)
    truth[5:55, 29:32] = True
    thick, gap = ndimage.binary_dilation(truth, iterations=3), truth.copy()
    gap[20:30] = False
    assert cl_dice(thick, truth) > 0.93 > dice(thick, truth) + 0.3
    assert dice(gap, truth) == pytest.approx(cl_dice(gap, truth), abs=0.03)
    assert num_components(gap, truth) == 1
    assert num_components(truth, gap) == -1


@many
@given(p=blobs())
def test_pieces_are_counted_across_corners(p):
    for mask, found in zip(p, num_components(p), strict=True):
        left, count = {tuple(px) for px in np.argwhere(mask)}, 0
        while left:
            count, edge = count + 1, [left.pop()]
            while edge:
                r, c = edge.pop()
                near = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
                left -= near
                edge += near
        assert found == count


# ---- tips --------------------------------------------------------------------------------------
@many
@given(
    column=st.integers(0, 69),
    tip=st.tuples(st.integers(25, 45), st.integers(30, 40)),
    move=st.tuples(st.integers(-6, 6), st.integers(-6, 6)),
    mm=st.floats(0.1, 6),
)
def test_the_tip_of_a_line_from_above_is_its_lower_end_and_its_error_a_distance(
    column, tip, move, mm
):
    mask, truth = drawn((0, column), tip), np.array([tip[1] + move[1], tip[0] + move[0]], float)
    assert tips(mask).tolist() == [tip[1], tip[0]]
    assert tip_error(mask, truth, mm) == pytest.approx(np.hypot(*move) * mm)
    other = drawn((0, column), (tip[0] + move[0], tip[1] + move[1]))
    both = np.stack([mask, other])
    np.testing.assert_allclose(
        tip_error(both, both[::-1], [mm, 2 * mm]), np.hypot(*move) * mm * np.array([1, 2])
    )
    np.testing.assert_allclose(
        tip_error(both, np.stack([truth] * 2), mm, skeletons=skeletons(both)),
        tip_error(both, np.stack([truth] * 2), mm),
    )


@pytest.mark.parametrize(
    ("start", "end"),
    [((30, 0), (20, 30)), ((30, 69), (40, 35)), ((5, 20), (50, 30))],
    ids=["right", "left", "neck"],
)
def test_devices_enter_over_arm_chest_wall_and_neck(start, end):
    assert tips(drawn(start, end)).tolist() == [end[1], end[0]]


def test_a_tip_is_found_across_a_gap_and_on_what_has_no_end():
    gap = drawn((0, 30), (50, 30))
    gap[20:24] = False
    assert tips(gap).tolist() == [30, 50]
    dot, ring = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    dot[7, 4] = True
    ring[4:15, 4:15], ring[5:14, 5:14] = True, False
    assert tips(dot).tolist() == [4, 7]
    assert ring[tuple(tips(ring).astype(int)[::-1])]


def test_tips_and_spacings_that_do_not_fit_are_refused():
    masks = np.zeros((3, 8, 8), bool)
    for truth, spacing in (
        (np.zeros((2, 2)), 1.0),
        (np.zeros((3, 2)), [1.0, 2.0]),
        (np.zeros((3, 3)), 1.0),
    ):
        with pytest.raises(ValueError, match="3 masks need as many tips and spacings"):
            tip_error(masks, truth, spacing)


def test_they_are_found_where_others_look():
    assert (metrics.dice, metrics.cl_dice, metrics.tip_error) == (dice, cl_dice, tip_error)
