"""Which runs are compared with which: base models, data, budgets, seeds, tasks and labels."""

import made_ladders
import numpy as np
import pandas as pd
import pytest
from made_ladders import IMAGES, LABELS, base, judge, ladder
from sklearn.metrics import average_precision_score, roc_auc_score

from cxrstudy.results import kept_scores, load_records
from cxrstudy.scaling import contrasts, laws
from cxrstudy.scaling.cells import LOG_ERROR, OUT_OF_DOMAIN, read_cells
from cxrstudy.scaling.verdicts import UNTOLD


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path))
    return tmp_path


def cells_of(runs, **how):
    return read_cells(load_records(runs), **{"resamples": 20} | how)


def macro(folder, task, measure):
    scores = kept_scores(folder)
    each = [measure(scores[f"truth:{k}"], scores[f"score:{k}"]) for k in LABELS[task]]
    return np.mean(each)


def rows_of(build, cells):
    """Weights of the contrasts of AUROC on findings."""
    found = [weights for _, _, weights in build(cells)]
    return [w for w in found if (c := next(iter(w))).task == "findings" and c.metric == "auroc"]


@pytest.mark.parametrize(
    ("metric", "measure"), [("auroc", roc_auc_score), ("auprc", average_precision_score)]
)
def test_gains_are_differences_of_macro_values_by_scikit_learn_in_their_interval(
    runs, metric, measure
):
    before = base(0.8)
    after = ladder("clip", {200: 1.0, 1000: 1.5})
    cells = cells_of(runs, resamples=200)
    found = [w for _, _, w in contrasts.gains(cells) if next(iter(w)).metric == metric]
    assert len(found) == 4
    for weights in found:
        own = next(iter(weights))
        gain = contrasts.contrast(weights, cells)
        folder = after[[200, 1000].index(own.n_images)]
        expected = macro(folder, own.task, measure) - macro(before, own.task, measure)
        assert gain.effect == pytest.approx(expected, abs=1e-9)
        assert 0 < gain.low < gain.effect < gain.high


def test_a_gain_over_seeds_is_that_of_their_mean(runs):
    before = base(0.8)
    after = ladder("clip", {200: 1.0}, seeds=3, jitter=0.2)
    cells = cells_of(runs)
    (weights,) = rows_of(contrasts.gains, cells)
    gain = contrasts.contrast(weights, cells)
    each = [macro(folder, "findings", roc_auc_score) for folder in after]
    assert gain.effect == pytest.approx(np.mean(each) - macro(before, "findings", roc_auc_score))
    assert gain.seeds == 3


def test_the_same_scores_have_no_difference_and_no_width(runs):
    scores = kept_scores(base())
    folder = judge("clip-n200-s0-bbbbbb", 2.0, n_images=200)
    scores.to_parquet(folder / "scores.parquet")
    cells = cells_of(runs)
    (weights,) = rows_of(contrasts.gains, cells)
    gain = contrasts.contrast(weights, cells)
    assert (gain.effect, gain.low, gain.high) == (0, 0, 0)
    assert contrasts.verdict(gain, 0.005) == UNTOLD


def test_resamples_depend_on_their_seed_alone(runs):
    base()
    ladder("clip", {200: 1.5})
    one, again, other = (cells_of(runs, seed=seed) for seed in (0, 0, 1))
    for cell in one:
        np.testing.assert_array_equal(one[cell].draws, again[cell].draws)
        np.testing.assert_array_equal(one[cell].values, other[cell].values)
        assert (one[cell].draws != other[cell].draws).any()


def test_each_run_is_compared_with_its_own_base_model_on_the_same_data(runs):
    before = base(1.0)
    base(3.0, "clip-other")
    judge("base-clip-cnn-cccccc", 2.0, base="", data="large-1")
    after = judge("clip-n200-s0-bbbbbb", 1.5, n_images=200)
    judge("unicl-n200-s0-bbbbbb", 1.5, n_images=200, paradigm="unicl", base="clip-absent")
    cells = cells_of(runs)
    (weights,) = rows_of(contrasts.gains, cells)  # none of the base model that was not evaluated
    expected = macro(after, "findings", roc_auc_score) - macro(before, "findings", roc_auc_score)
    assert contrasts.contrast(weights, cells).effect == pytest.approx(expected)


def test_runs_of_another_budget_are_another_curve_and_no_control(runs):
    base()
    ladder("clip", {200: 1.0, 1000: 1.2})
    ladder("clip", {3000: 1.4}, samples_seen=48000)
    away = {"trained_on": "synthetic:public", "n_images": 1000}
    judge("clip-public-cccccc", 1.0, **away)
    judge("clip-public-dddddd", 1.0, samples_seen=999, **away)
    cells = cells_of(runs)
    of_task = [c for c in contrasts.curves(cells) if c[0][:2] == ("findings", "auroc")]
    assert sorted([cell.n_images for cell in curve] for curve in of_task) == [[200, 1000], [3000]]
    (weights,) = rows_of(contrasts.over_out_of_domain, cells)
    assert [(c.arm, c.n_images, c.samples_seen) for c in weights] == [
        ("clip", 1000, 24000),
        ("clip" + OUT_OF_DOMAIN, 1000, 24000),
    ]


def test_growth_is_the_largest_minus_the_smallest_subset_and_needs_two_sizes(runs):
    folders = ladder("clip", {200: 2.0, 900: 3.0, 5000: 1.0}, seeds=2)
    ladder("unicl", {200: 1.0})
    cells = cells_of(runs, resamples=200)
    (weights,) = rows_of(contrasts.growth, cells)
    each = [macro(folder, "findings", roc_auc_score) for folder in folders]
    growth = contrasts.contrast(weights, cells)
    assert growth.effect == pytest.approx(np.mean(each[-2:]) - np.mean(each[:2]))
    assert growth.high < 0  # it may be a loss


def test_the_best_baseline_is_one_that_learned_from_no_label(runs):
    ladder("clip", {200: 1.0, 900: 2.0})
    assert rows_of(contrasts.over_baseline, cells_of(runs)) == []
    skills = {"pixels": 0.5, "random:cnn": 1.5, "supervised:cnn": 4.0, "shuffled:clip": 5.0}
    for encoder, skill in skills.items():
        name = f"{encoder.replace(':', '-')}-cccccc"
        judge(name, skill, paradigm="control", base=None, encoder=encoder)
    (weights,) = rows_of(contrasts.over_baseline, cells_of(runs))
    assert [(c.start, c.n_images) for c in weights] == [("clip-cnn", 900), ("random:cnn", 0)]


def test_other_tasks_and_institutions_have_no_cells(runs):
    base()
    ladder("clip", {200: 1.0})
    table = load_records(runs)
    more = [
        table.assign(task=table["task"] + "@public-0"),
        table[table["label"] == "macro"].assign(task="malposition"),  # scores of another kind
        table.assign(metric="f1"),
    ]
    plain, all_tasks = (
        read_cells(t, resamples=5) for t in (table, pd.concat([table, *more], ignore_index=True))
    )
    assert list(all_tasks) == list(plain)
    assert {cell.metric for cell in plain} == {"auroc", "auprc", LOG_ERROR}


def test_a_label_of_one_class_counts_in_no_run(runs, monkeypatch):
    monkeypatch.setitem(made_ladders.TRUTH, "edema", np.ones(IMAGES))
    base()
    (folder,) = ladder("clip", {200: 1.0})
    table = load_records(runs)
    table.loc[table["label"] == "macro", "value"] = 0.7  # over labels of both classes
    cells = read_cells(table, resamples=5)
    (own,) = (m for c, m in cells.items() if c.n_images and c[:2] == ("findings", "auroc"))
    scores = kept_scores(folder)
    only = roc_auc_score(scores["truth:atelectasis"], scores["score:atelectasis"])
    assert own.values == pytest.approx(only)


# ---- laws, from records ------------------------------------------------------------------------
def test_a_curve_that_cannot_be_fitted_has_a_reason_and_the_others_are_fitted(runs):
    base(0.2)
    ladder("clip", {n: 0.2 + 0.5 * np.log10(n / 50) for n in (100, 400, 1600, 6400, 25600)})
    ladder("unicl", {200: 1.0, 1000: 1.4})
    cells = {c: m for c, m in cells_of(runs).items() if c[:2] == ("findings", "auroc")}
    fits, bands, _ = laws.laws(cells)
    fits = fits.set_index("one")
    assert fits.loc["clip", "refused"] == "" and fits.loc["clip", "sizes"] == 5
    assert "distinct n" in fits.loc["unicl", "refused"]
    assert np.isnan(fits.loc["unicl", "exponent"])
    assert set(bands["one"]) == {"clip"}
    low, value, high = (1 - bands[name] for name in ("high", "value", "low"))
    assert ((low <= value) & (value <= high)).all()


def test_without_a_curve_there_is_no_law_and_no_error(runs):
    base()
    for cells in (cells_of(runs), {}):
        fits, bands, trials = laws.laws(cells)
        assert fits.empty and {"task", "one", "exponent", "refused"} <= set(fits)
        assert bands.empty and {"n_images", "value", "low", "high"} <= set(bands)
        assert trials.empty
