"""Recipes from random weights: seeds joined, differences paired, baselines beside them."""

import pandas as pd
import pytest
from made_ladders import base, judge, ladder

from cxrstudy import recipes_page
from cxrstudy.results import load_records
from cxrstudy.scaling.recipes import recipes


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("runs")
        patch.setenv("CXRSTUDY_RUNS", str(folder))
        own = {"base": "", "samples_seen": 24000, "n_images": 100}
        baseline = {"paradigm": "control", "base": None}
        beside = [
            judge("random-hybrid_mini-aaaaaa", 0.5, encoder="random:hybrid_mini", **baseline),
            judge(
                "supervised-hybrid_mini-aaaaaa", 1.5, encoder="supervised:hybrid_mini", **baseline
            ),
            judge("pixels-aaaaaa", 0.2, encoder="pixels", **baseline),
        ]
        plain, whole = [], []
        for seed in range(3):
            name = f"dinov2-n100-s{seed}"
            of = {"seed": seed, "paradigm": "dinov2", "encoder": "hybrid_mini"} | own
            plain.append(judge(f"{name}-bbbbbb", 0.5, **of))
            whole.append(judge(f"{name}-cccccc", 1.2, **of | {"samples_seen": 96000}))
        tables = {"": load_records([*plain, *beside]), "dino={}": load_records([*whole, *beside])}
    return recipes(tables, resamples=200)


def rows(table, task="findings"):
    found = table[(table["task"] == task) & (table["metric"] == "auroc")]
    return found.set_index(found["recipe"] + found["arm"])


def test_seeds_of_a_recipe_are_joined_and_budgets_told(table):
    own = rows(table)
    assert set(own.index) == {
        "dinov2",
        "dino={}dinov2",
        "random:hybrid_mini",
        "supervised:hybrid_mini",
        "pixels",
    }
    assert own.loc["dinov2", "seeds"] == own.loc["dino={}dinov2", "seeds"] == 3
    assert own.loc["dinov2", "samples_seen"] == 24000
    assert own.loc["dino={}dinov2", "samples_seen"] == 96000


def test_differences_are_of_the_values_and_hold_what_is_true(table):
    own = rows(table)
    whole, plain = own.loc["dino={}dinov2"], own.loc["dinov2"]
    for name, other in (("random", "random:hybrid_mini"), ("pixels", "pixels"), ("base", "dinov2")):
        assert whole[f"over_{name}"] == pytest.approx(whole["value"] - own.loc[other, "value"])
        assert whole[f"over_{name}_low"] > 0
        assert whole[f"over_{name}_p"] < 0.05
    assert whole["over_supervised_high"] < 0
    assert plain["over_random_low"] < 0 < plain["over_random_high"]
    assert pd.isna(plain["over_base"])


def test_studies_that_start_from_base_models_have_no_recipes(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path))
    base()
    ladder("clip", {200: 1.0, 1000: 1.4})
    assert recipes({"": load_records(tmp_path)}, resamples=20).empty


def test_the_page_names_recipes_in_order_and_says_which_learned(table):
    named = recipes_page.named(table, {"dino={}": "all terms"}, "plain")
    own = named[named["task"] == "findings"]
    assert list(own["name"]) == [
        "plain",
        "all terms",
        "trained on labels",
        "random weights",
        "pixels",
    ]
    told = recipes_page.tested(named, {"dino={}": "all terms", "lr=1": "fast"})
    assert told.endswith("Intervals hold patients and seeds. Not recorded: fast.")
    text = recipes_page.sentences(named)
    assert "1 of 2 recipes are above random weights. The best is all terms" in text
    assert "0 are better, 2 worse" in text.splitlines()[0]
    shown = recipes_page.table(named, {"": 2e12, "dino={}": 8e12}).markup
    assert ">96k<" in shown and ">8<" in shown
    assert "all terms +0." in recipes_page.figure(named, title="A figure.").alt
