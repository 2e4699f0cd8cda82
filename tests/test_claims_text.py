"""The text, tables and figures of the pages on claims, sensitivity, laws and the planner."""

import json

import numpy as np
import pandas as pd
import pytest
from made_ladders import base, judge

from cxrstudy import claims_text, figures_claims, laws_text, sources, text
from cxrstudy.results import load_records
from cxrstudy.scaling import planner, verdicts
from cxrstudy.scaling.cells import read_cells
from cxrstudy.scaling.contrasts import all_contrasts
from cxrstudy.scaling.verdicts import CONTRADICTED, INCONCLUSIVE, ONE_BASE, SUPPORTED, UNTESTABLE

RECORDED = ["recorded:study-gpu", "recorded:study-cpu"]


def claim(name, verdict=INCONCLUSIVE, effect=0.004, half=0.003, p=0.01, why="", **more):
    row = {"id": name, "claim": f"Claim {name}", "source": "paper", "effect": effect, "p": p}
    row |= {"low": effect - half, "high": effect + half, "verdict": verdict, "why": why}
    return row | {"threshold": 0.005, "seeds": 3} | more


def ledger(*rows):
    return pd.DataFrame(rows)


@pytest.fixture
def two():
    missing = {"effect": np.nan, "p": np.nan, "verdict": UNTESTABLE}
    weak = "clip has not learned the task: its base model b is only +0.001 [0, 0.002] over random:b"
    open_ = "the whole interval is above 0; no control at equal compute was run"
    first = ledger(
        claim("a", SUPPORTED + ONE_BASE, 0.2, 0.01, 0.002),
        claim("b", CONTRADICTED, 0.0, 0.002, 0.04),
        claim("c", why=open_),
        claim("d", why=weak, **missing),
    )
    second = ledger(
        claim("a", p=0.5, half=0.01),
        claim("b", p=np.nan),
        claim("c", why="missing: runs of clip", **missing),
        claim("d", why=weak, **missing),
    )
    studies = {"one": {"claims": first}, "two": {"claims": second}}
    return claims_text.ledgers(studies)


def test_p_is_corrected_over_all_studies_of_the_page(two):
    assert two["one"]["p_holm"].iloc[0] == pytest.approx(4 * 0.002)
    assert two["one"]["p_holm"].iloc[1] == pytest.approx(2 * 0.04)


def test_verdicts_are_counted_and_what_remains_is_named(two):
    said = claims_text.counted(two)
    assert said.startswith("4 claims in 2 studies give 8 verdicts: 1 supported (one base), 1 contr")
    assert "No claim is supported on more than one base an arm." in said
    assert "Of the 2 decided verdicts, 1 remain after Holm's correction over all 4 p values" in said
    assert said.endswith("a in one.")


def test_side_by_side_has_verdict_effect_interval_and_corrected_p(two):
    table = claims_text.side_by_side(two)
    assert table.index.tolist() == ["a: Claim a", "b: Claim b", "c: Claim c", "d: Claim d"]
    assert table["one"].iloc[0].replace("\u00a0", " ") == (
        "supported (one base): +0.200 [+0.190, +0.210]; p 0.008 after Holm"
    )
    assert table["two"].iloc[1].startswith("inconclusive: +0.004")
    assert table.loc["d: Claim d"].eq(UNTESTABLE).all()


def test_what_is_not_testable_and_what_stays_open_is_said_in_short(two):
    table = claims_text.untestable(two)
    assert table.loc["one"].tolist() == ["d", "none"] and table.loc["two"].tolist() == ["d", "c"]
    (said,) = claims_text.above_but_open(two["one"])
    assert said.endswith("no control at equal compute was run")


def test_a_study_is_called_recorded_only_beside_one_of_this_machine():
    names = claims_text.study_names(["recorded:mini", "mini", "recorded:nih"])
    assert list(names.values()) == ["mini, recorded", "mini, run on this machine", "nih"]


def settings():
    rows = []
    for value, verdict, effect in (("1", INCONCLUSIVE, -0.02), ("4", SUPPORTED, 0.02)):
        shared = {"factor": "noise", "setting": value, "reference": value == "1"}
        rows.append(claim("a", verdict, effect, 0.005) | shared)
        rows.append(claim("b", UNTESTABLE, np.nan, p=np.nan) | shared)
    return pd.DataFrame(rows)


def test_only_claims_that_were_tested_are_listed_with_the_verdicts_that_differ():
    table = claims_text.setting_table(settings())
    assert table.index.tolist() == ["a"]
    assert table["the same verdict"].iloc[0] == "0 of 1 settings, 0 not testable"
    assert table["another verdict"].iloc[0].startswith("noise 4: supported +0.020")
    first, last = claims_text.changed_verdicts(settings())
    assert first == "With noise at 4, `a` is supported; in the reference it is inconclusive."
    assert last == "Effects with opposite signs, both intervals without 0: `a`."


# ---- what the pages say in fixed words, against the recorded tables ----------------------------
def test_the_second_reading_of_tubes_is_what_the_recorded_sensitivity_analysis_shows():
    contrasts = sources.sensitivity()["settings_contrasts"]
    rows = contrasts[(contrasts["kind"] == verdicts.GROWTH) & (contrasts["metric"] == "auroc")]
    rows = rows[(rows["task"] == "lines_tubes") & (rows["one"] == "clip")]
    reports = rows[rows["factor"].str.startswith("devices that reports name")]
    assert ((reports["low"] < 0) & (reports["high"] > 0)).all() and len(reports) == 3
    base = rows[rows["factor"].str.startswith("training of the text-supervised base")]
    base = base.set_index("setting")
    assert base.loc["1", "effect"] < 0 < base.loc["6", "low"]
    assert len(claims_text.tube_readings(contrasts)) == 2


def test_labels_with_errors_change_nothing_for_clip_and_the_figure_has_every_setting():
    contrasts = sources.sensitivity()["settings_contrasts"]
    control = contrasts[contrasts["kind"].isin(claims_text.CONTROLS)]
    control = control[control["task"].isin(claims_text.TASKS) & (control["metric"] == "auroc")]
    errors = control[control["factor"].str.startswith("errors in labels")]
    assert errors.groupby("task")["effect"].nunique().eq(1).all()
    first = "scanners beyond the pool (steps)"
    shown = figures_claims.by_setting(control, first, claims_text.TASKS, title="t")
    counts = control.groupby("factor")["setting"].nunique()
    for row in control[control["factor"].isin(counts.index[counts > 1])].itertuples():
        what = f"{claims_text.TASKS[row.task]}, {row.factor} {row.setting}"
        assert f"{what}: {row.effect:+.4f} {row.verdict}" in shown.alt


@pytest.mark.parametrize("source", RECORDED)
def test_pages_of_recorded_studies_say_what_the_analysis_found(source):
    tables = sources.analysis(source)
    values = tables["values"]
    said = claims_text.tested(values)
    row = values[(values["task"] == "findings") & (values["metric"] == "auroc")].iloc[0]
    assert f"findings, {row['n']:,} test images of {row['n_patients']:,} patients" in said
    shown = figures_claims.forest(tables["claims"], title="t")
    tested = tables["claims"][tables["claims"]["effect"].notna()]
    for row in tested.itertuples():
        assert f"{row.id} {row.effect:+.4f}, {row.verdict}" in shown.alt
    laws, fitted = tables["laws"], (tables["laws"]["form"] != "").sum()
    assert len(laws_text.law_table(laws, {})) == fitted
    assert laws_text.no_law(laws, {}).count(" on ") == len(laws) - fitted
    tried = laws[laws["law_error"].notna() & laws["last_error"].notna()]
    better = int(tried["extrapolates"].sum())
    assert f"in {better} of {len(tried)} curves" in laws_text.trial_sentence(laws)
    drawn = figures_claims.laws(tables, {}, claims_text.TASKS, title="t")
    assert drawn.alt.count("a law from") == len(
        laws[(laws["form"] != "") & laws["task"].isin(claims_text.TASKS)]
    )


@pytest.mark.parametrize("source", RECORDED)
def test_the_planners_table_and_its_sentences_have_the_same_numbers(source):
    grid = sources.planner(source)
    table = claims_text.planner_table(grid).reset_index()
    for row in table.itertuples():
        gain = row[4].replace("\u00a0", " ")
        n = float(row.images.replace(",", ""))
        answers = planner.consult(grid, n)
        answers = answers[answers["task"].map(grid["titles"]) == row.task]
        (status,) = answers.loc[answers["name"] == row.paradigm, "status"]
        assert f"that is {gain}" in status and row[5].replace("\u00a0", " ") in status
    markup = claims_text.embedded(grid)
    data = markup.partition('id="planner-grid">')[2].partition("</script>")[0]
    assert json.loads(data) == grid and "<" not in data


def test_dinov2_is_said_to_be_the_dino_term_alone_where_it_is():
    assert "In study-gpu, study-cpu it is the DINO term alone" in claims_text.dino_note(RECORDED)
    assert claims_text.dino_note(["recorded:nih"]) == ""  # it has no such arm


def test_the_reasons_of_the_analysis_are_read_as_it_words_them():
    ledgers = claims_text.ledgers(claims_text.analyses(RECORDED))
    weak = claims_text.untestable(ledgers)["a base model is not above random weights"]
    assert weak.str.contains("tubes-drawn").all()
    ends = claims_text.harm_and_gain(ledgers["study-gpu"])
    assert ends.startswith("clip -0.0150 with 250, +0.0048 with the largest subset; unicl ")
    told = claims_text.above_but_open(ledgers["study-gpu"])
    assert told[0].endswith("no control at equal compute was run at this subset size")
    reasons = laws_text.no_law(sources.analysis(RECORDED[0])["laws"], {})
    assert reasons.startswith("- No law, because too few sizes are above the base model: ")


def test_harm_is_counted_apart_from_gain():
    said = claims_text.harm_then_gain(sources.analysis(RECORDED[0]), {})
    assert said.startswith("6 of 36 points are worse than their base model, all with 2,000 images")
    assert "clip on findings from 12,000 images on" in said


def test_recorded_coverage_and_published_laws_are_summed_up():
    kept = sources.recorded.place("nih").parent
    coverage = pd.read_csv(kept / "coverage.csv")
    own = laws_text.relied_on(coverage)
    assert not own["runs"].eq("other patients").any() and not own["sigma"].eq("half, as all").any()
    said = laws_text.coverage_sentence(coverage)
    assert said.startswith("32 settings") and "32 of 32 settings are between 93% and 97%" in said
    published = laws_text.public_sentence(pd.read_csv(kept / "public_laws.csv"))
    assert published.startswith("17 published estimates were fitted again.")


def test_where_nothing_was_tested_or_measured_the_figures_say_so():
    none = ledger(claim("a", UNTESTABLE, np.nan, p=np.nan))
    assert "No claim could be tested." in figures_claims.forest(none, title="t").alt
    empty = pd.DataFrame(columns=["task", "metric", "arm", "factor", "setting"])
    tables = {"values": empty, "bands": empty}
    assert "No scaling curve" in figures_claims.laws(tables, {}, claims_text.TASKS).alt
    assert "No factor" in figures_claims.by_setting(empty, "x", claims_text.TASKS).alt


# ---- in-house images by the distance of the site from the pools ---------------------------------
def test_the_gain_over_unseen_images_is_told_by_site_in_the_order_of_the_preset(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path))
    for site, own in (("near", 1.02), ("far", 1.6)):
        where = {"data": f"{site}-abcdef", "institution": f"synthetic:{site}"}
        base(1.0, f"clip-{site}", trained_on="synthetic:public", **where)
        for seed in range(3):
            at = where | {"base": f"clip-{site}", "n_images": 6000, "seed": seed}
            noise = 0.01 * seed
            judge(f"clip-{site}-s{seed}-aaaaaa", own + noise, trained_on=f"synthetic:{site}", **at)
            judge(f"others-{site}-s{seed}-aaaaaa", 1.0 + noise, trained_on="synthetic:unseen", **at)
    table = load_records(tmp_path)
    found = all_contrasts(table, cells=read_cells(table, resamples=200))
    rows = claims_text.by_site({"contrasts": found}, ["near", "far"])
    rows = rows[rows["metric"] == "auroc"]
    assert list(rows["setting"].unique()) == ["near", "far"]
    assert rows.loc[rows["reference"], "setting"].eq("near").all()
    assert (rows.loc[rows["setting"] == "far", "verdict"] == verdicts.BETTER).all()
    first, last = claims_text.site_sentences(rows).splitlines()
    better = (rows.loc[rows["reference"], "verdict"] == verdicts.BETTER).sum()
    assert better < 2
    assert first.startswith(f"- *near*: better in {better} of 2 comparisons (findings, clip +0.0")
    assert last.startswith("- *far*: better in 2 of 2 comparisons")
    assert f"near {better} of 2, far 2 of 2" in text.distance_answer(rows)
    shown = figures_claims.by_setting(rows, "clip", claims_text.TASKS, title="t")
    assert "lines and tubes, clip far: +0." in shown.alt
    assert claims_text.by_site({}, ["near"]).empty
    assert "no control has used images of others" in text.distance_answer(pd.DataFrame())
