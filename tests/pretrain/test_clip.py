"""The contrastive losses keep their laws, and every sample is paired with the text it should be."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from cxrstudy.data.vocabulary import FINDINGS
from cxrstudy.pretrain import clip
from cxrstudy.pretrain.clip import (
    captions,
    choose_prompts,
    clip_loss,
    label_loss,
    overlap_rows,
    prompt,
    target_ids,
    unicl_loss,
)

torch.set_num_threads(1)
quick = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**31)
scales = st.floats(0.5, 100)


def rows_of(n, dim, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, n, dim, generator=generator, dtype=dtype)
    return normalize(image, dim=1), normalize(text, dim=1)


def naive(image, text, positive, scale):
    """UniCL as in the paper: the mean over anchors, then over positives, in both directions."""
    n = len(image)
    total = 0.0
    for anchors, others in ((image, text), (text, image)):
        for i in range(n):
            logits = torch.stack([scale * (anchors[i] * others[j]).sum() for j in range(n)])
            log_all = (
                torch.log(torch.exp(logits - logits.max().detach()).sum()) + logits.max().detach()
            )
            own = [log_all - logits[j] for j in range(n) if positive[i][j]]
            total = total + torch.stack(own).mean() / n
    return total / 2


ids = st.lists(st.integers(-3, 3), min_size=2, max_size=9)


# ---- losses ------------------------------------------------------------------------------------
@quick
@given(n=st.integers(2, 12), dim=st.integers(1, 8), seed=seeds, scale=scales)
def test_where_all_ids_differ_unicl_is_clip(n, dim, seed, scale):
    image, text = rows_of(n, dim, seed)
    distinct = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[:n]
    torch.testing.assert_close(
        unicl_loss(image, text, distinct, scale), clip_loss(image, text, scale)
    )


@settings(deadline=None, max_examples=25)
@given(targets=ids, dim=st.integers(1, 6), seed=seeds, scale=scales)
def test_value_and_gradients_are_those_of_a_naive_reference(targets, dim, seed, scale):
    n = len(targets)
    image, text = rows_of(n, dim, seed)
    log_scale = torch.tensor(math.log(scale), dtype=torch.float64)
    leaves = [tensor.clone().requires_grad_() for tensor in (image, text, log_scale)]
    expected = naive(
        leaves[0], leaves[1], [[a == b for b in targets] for a in targets], leaves[2].exp()
    )
    wanted = torch.autograd.grad(expected, leaves)
    loss = unicl_loss(leaves[0], leaves[1], torch.tensor(targets), leaves[2].exp())
    torch.testing.assert_close(loss, expected)
    for found, reference in zip(torch.autograd.grad(loss, leaves), wanted, strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-7, atol=1e-9)
    single = unicl_loss(image.float(), text.float(), torch.tensor(targets), scale)
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-4)


@quick
@given(n=st.integers(2, 10), seed=seeds, scale=scales)
def test_clips_value_is_that_of_the_same_reference(n, seed, scale):
    image, text = rows_of(n, 4, seed)
    torch.testing.assert_close(clip_loss(image, text, scale), naive(image, text, np.eye(n), scale))


@quick
@given(targets=ids, seed=seeds, scale=scales, data=st.data())
def test_the_order_of_a_batch_changes_nothing(targets, seed, scale, data):
    image, text = rows_of(len(targets), 5, seed)
    targets = torch.tensor(targets)
    order = torch.tensor(data.draw(st.permutations(range(len(targets)))))
    moved = unicl_loss(image[order], text[order], targets[order], scale)
    torch.testing.assert_close(moved, unicl_loss(image, text, targets, scale))


@quick
@given(targets=ids, seed=seeds, scale=scales)
def test_image_and_text_have_equal_parts(targets, seed, scale):
    image, text = rows_of(len(targets), 5, seed)
    targets = torch.tensor(targets)
    torch.testing.assert_close(
        unicl_loss(text, image, targets, scale), unicl_loss(image, text, targets, scale)
    )


@quick
@given(targets=ids, seed=seeds, scale=scales)
def test_the_loss_is_at_least_the_mean_log_of_the_positives(targets, seed, scale):
    image, text = rows_of(len(targets), 5, seed)
    least = np.mean([math.log(targets.count(t)) for t in targets])
    assert unicl_loss(image, text, torch.tensor(targets), scale) >= least - 1e-9


def test_the_least_loss_is_reached_where_each_class_has_a_direction_of_its_own():
    targets = torch.tensor([0, 0, 0, 1, 1, 2])
    rows = torch.eye(3, dtype=torch.float64)[targets]
    least = (3 * math.log(3) + 2 * math.log(2)) / 6
    assert float(unicl_loss(rows, rows, targets, 100.0)) == pytest.approx(least, abs=1e-9)


label_rows = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        st.lists(st.sampled_from([0.0, 1.0, math.nan]), min_size=width, max_size=width),
        min_size=2,
        max_size=8,
    )
)


@quick
@given(rows=label_rows, seed=seeds, scale=scales)
def test_label_rows_agree_with_ids_and_a_row_with_nan_is_positive_of_itself_alone(
    rows, seed, scale
):
    image, text = rows_of(len(rows), 5, seed)
    known = sorted({tuple(row) for row in rows if not any(map(math.isnan, row))})
    own = [
        known.index(tuple(row)) if tuple(row) in known else 100 + k for k, row in enumerate(rows)
    ]
    loss = unicl_loss(image, text, torch.tensor(rows), scale)
    assert torch.isfinite(loss)
    torch.testing.assert_close(loss, unicl_loss(image, text, torch.tensor(own), scale))


@pytest.mark.parametrize(
    ("image", "text", "targets"),
    [((4, 3), (4, 3), (3,)), ((4, 3), (5, 3), (4,)), ((4, 3), (4, 2), (4,))],
)
def test_shapes_that_do_not_fit_are_refused(image, text, targets):
    with pytest.raises(ValueError, match="targets") as caught:
        unicl_loss(torch.ones(image), torch.ones(text), torch.zeros(targets, dtype=torch.long), 1.0)
    assert all(str(shape) in str(caught.value) for shape in (image, text, targets))


# ---- texts -------------------------------------------------------------------------------------
def labelled(**columns):
    return pd.DataFrame({f"label:{name}": values for name, values in columns.items()})


def test_captions_are_the_report_and_the_prompt_of_what_is_recorded_as_present():
    nan = math.nan
    own = labelled(
        picc=[1, 0, nan, 1, 0], edema=[1, 0, 0, 1, nan], hernia=[0, 0, 0, 0, 1]
    )  # the third: who knows?
    told = captions(own.assign(report=["a", None, "b", "", "c"]))
    assert told.reports == ["a", "", "b", "", "c"]
    assert len(told.prompts) == len(set(told.prompts)) == 3
    assert told.prompt_ids[2] == -1
    assert [told.prompts[k] for k in np.delete(told.prompt_ids, 2)] == [
        "x-ray chest pulmonary edema, PICC line",
        "x-ray chest no finding, no device",
        "x-ray chest pulmonary edema, PICC line",
        "x-ray chest hernia",
    ]
    assert captions(own).reports == [""] * 5
    np.testing.assert_array_equal(
        told.labels, [[1, 1, 0], [0, 0, 0], [0, nan, 0], [1, 1, 0], [nan, 0, 1]]
    )


def test_a_prompt_names_the_side_of_a_label_where_it_is_recorded():
    own = labelled(edema=[1, 0, 1], nodule_mass=[1, 0, 0])
    texts = captions(own.assign(**{"side:nodule_mass": ["left", None, None]}))
    assert texts.prompts == [
        "x-ray chest pulmonary edema, left nodule or mass",
        "x-ray chest no finding, no device",
        "x-ray chest pulmonary edema",
    ]
    assert texts.prompt_labels.tolist() == [[True, True], [False, False], [True, False]]


def test_parts_of_a_report_are_its_sections_or_all_of_it_where_it_has_none():
    text = "FINDINGS: The heart is large. IMPRESSION: Cardiomegaly."
    own = pd.DataFrame({"report": [text, "Nothing new."]})
    by = {part: captions(own, part=part).reports for part in ("joined", "findings", "impression")}
    assert by["joined"] == [text, "Nothing new."]
    assert by["findings"][0].strip() == "The heart is large."
    assert by["impression"][0].strip() == "Cardiomegaly."
    assert by["impression"][1] == "Nothing new."


@quick
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, math.nan])] * 3), min_size=1, max_size=20))
def test_images_share_a_label_set_exactly_where_the_same_labels_are_present(rows):
    columns = dict(zip(FINDINGS[:3], np.array(rows).T, strict=True))
    told = captions(labelled(**columns))
    assert len(told.prompt_ids) == len(rows)
    present = [tuple(value == 1 for value in row) for row in rows]
    for row, chosen in zip(rows, told.prompt_ids, strict=True):
        assert (chosen < 0) == (1 not in row and any(math.isnan(value) for value in row))
    kept = [(p, k) for p, k in zip(present, told.prompt_ids, strict=True) if k >= 0]
    present, label_set = [p for p, _ in kept], [o for _, o in kept]
    for a, one in zip(present, label_set, strict=True):
        for b, other in zip(present, label_set, strict=True):
            assert (one == other) == (a == b)


def test_without_any_label_nothing_is_said_to_be_absent():
    told = captions(pd.DataFrame({"report": ["a", "b"]}))
    assert told.prompts == []
    assert told.prompt_ids.tolist() == [-1, -1]
    assert captions(labelled(edema=[0, 0])).prompts == [prompt([])]


@quick
@given(has=st.lists(st.booleans(), min_size=1, max_size=30), share=st.floats(0, 1), seed=seeds)
def test_whoever_has_no_report_takes_the_prompt_and_shares_0_and_1_are_exact(has, share, seed):
    has = np.array(has)
    for s in (0.0, share, 1.0):
        chosen = choose_prompts(has, np.ones(len(has), bool), s, np.random.default_rng(seed))
        assert not choose_prompts(
            has, np.zeros(len(has), bool), s, np.random.default_rng(seed)
        ).any()
        assert chosen.dtype == bool
        assert chosen.shape == has.shape
        assert chosen[~has].all()
        if s in (0.0, 1.0):
            assert (chosen[has] == bool(s)).all()


def test_the_share_is_met_among_those_with_a_report():
    n = 20000
    has = np.arange(n) % 2 == 0
    chosen = choose_prompts(has, np.ones(n, bool), 0.3, np.random.default_rng(0))
    assert chosen[has].mean() == pytest.approx(0.3, abs=0.02)


@quick
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=20))
def test_prompts_of_one_label_set_are_positives_and_a_report_is_of_its_image_alone(pairs):
    label_set, as_prompt = np.array([k for k, _ in pairs]), np.array([p for _, p in pairs])
    ids = target_ids(label_set, as_prompt, np.arange(len(pairs)))
    assert ids.dtype == torch.int64
    for i, (one, is_prompt) in enumerate(pairs):
        for j, (other, is_other) in enumerate(pairs):
            assert bool(ids[i] == ids[j]) == (i == j or (is_prompt and is_other and one == other))


@quick
@given(rows=label_rows, seed=seeds, scale=scales)
def test_overlap_counts_pairs_that_share_a_label_and_equals_a_naive_reference(rows, seed, scale):
    image, text = rows_of(len(rows), 5, seed)
    shared = [
        [i == j or any(a == b == 1 for a, b in zip(r, s, strict=True)) for j, s in enumerate(rows)]
        for i, r in enumerate(rows)
    ]
    loss = unicl_loss(image, text, torch.tensor(rows), scale, "overlap")
    torch.testing.assert_close(loss, naive(image, text, shared, scale))


def test_overlap_needs_label_rows():
    image, text = rows_of(3, 4, 0)
    with pytest.raises(ValueError, match="label rows"):
        unicl_loss(image, text, torch.arange(3), 1.0, "overlap")


def test_a_report_overlaps_with_nothing_and_prompts_of_none_with_each_other():
    says = np.array([[1, 0], [1, 1], [0, 0], [0, 0], [1, 0]], bool)
    rows = overlap_rows(says, np.array([True, True, True, True, False]))
    shared = (rows @ rows.T > 0).int().tolist()
    assert shared == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0],
    ]


@quick
@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 1.0, math.nan]), min_size=3, max_size=3),
        min_size=1,
        max_size=8,
    ),
    seeds,
)
def test_the_label_loss_is_the_mean_over_what_is_known(rows, seed):
    scores = torch.randn(
        len(rows), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    known = [
        (s, y)
        for ss, yy in zip(scores.tolist(), rows, strict=True)
        for s, y in zip(ss, yy, strict=True)
        if y == y
    ]
    wanted = np.mean([math.log1p(math.exp(-s if y else s)) for s, y in known]) if known else 0.0
    assert float(label_loss(scores, torch.tensor(rows, dtype=torch.float64))) == pytest.approx(
        wanted
    )


def test_a_report_shown_twice_matches_itself():
    take, as_prompt = np.array([4, 7, 4]), np.zeros(3, bool)
    ids = target_ids(np.zeros(3, int), as_prompt, take)
    assert ids[0] == ids[2] != ids[1]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["bacterial pneumonia"], "x-ray chest no bacterial pneumonia"),
        (["bacterial", "viral"], "x-ray chest no bacterial, no viral"),
        (["edema", "hernia"], f"x-ray chest {clip.NORMAL}"),
    ],
)
def test_labels_of_the_cards_own_do_not_say_that_nothing_is_there(names, expected):
    manifest = pd.DataFrame({f"label:{name}": [0.0, 1.0] for name in names})
    found = clip.captions(manifest)
    assert found.prompts[0] == expected
    assert found.prompt_ids[0] == 0
    assert not found.prompt_labels[0].any()
