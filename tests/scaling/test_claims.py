"""The ledger on records whose scores know as much as we put into them, and the settings at which a verdict turns."""

import math
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cxrstudy import plots_claims
from cxrstudy.evaluate import compare
from cxrstudy.results import load_records
from cxrstudy.scaling import claims
from cxrstudy.scaling.evidence import find_rungs, seed_spread
from cxrstudy.scaling.hypotheses import CLAIMS, Claim

BY_ID = {claim.id: claim for claim in CLAIMS}
GROWTH, LABELS, EVERY = BY_ID["findings-growth"], BY_ID["labels-findings"], BY_ID["findings-scale"]


# ---- records -------------------------------------------------------------------------------------------------------
NAMES = {"findings": ["edema", "atelectasis"], "lines_tubes": ["picc", "chest_tube"]}
IMAGES = 240
PATIENTS = np.array([f"p{k // 2:03}" for k in range(IMAGES)])
IDS = np.array([f"i{k:03}" for k in range(IMAGES)])
TRUTH = {
    name: np.random.default_rng(k).integers(0, 2, IMAGES)
    for k, name in enumerate([*NAMES["findings"], *NAMES["lines_tubes"]])
}


class Grid:
    """Runs as `results.load_records` gives them, whose kept scores know as much as ``skill`` says."""

    def __init__(self, home: Path):
        self.home, self.rows, self.macro = home, [], {}

    def table(self):
        return pd.DataFrame(self.rows, columns=load_records([]).columns)

    def classify(self, paradigm, n, skill, seed=0, noise=None, **subject):
        """``skill``: how much scores of findings and of tubes know, a number or a pair."""
        rng = np.random.default_rng(
            zlib.crc32(repr((paradigm, n, seed)).encode()) if noise is None else noise
        )
        skills = dict(zip(NAMES, np.broadcast_to(skill, 2), strict=True))
        own = self._subject("classify", paradigm, n, seed, subject)
        scores, rows = {"image_id": IDS, "patient_id": PATIENTS}, []
        for task, names in NAMES.items():
            values = []
            for name in names:
                score = skills[task] * TRUTH[name] + rng.normal(size=IMAGES)
                scores |= {f"score:{name}": score, f"truth:{name}": TRUTH[name].astype(float)}
                values.append(roc_auc_score(TRUTH[name], score))
                rows.append({"task": task, "label": name, "metric": "auroc", "value": values[-1]})
            rows.append(
                {"task": task, "label": "macro", "metric": "auroc", "value": np.mean(values)}
            )
            self.macro[task, paradigm, n, seed] = np.mean(values)
        self._keep(own, rows, pd.DataFrame(scores).sample(frac=1, random_state=seed))

    def segment(self, paradigm, n, level, seed=0, **subject):
        rng = np.random.default_rng(n + seed)
        own = self._subject("segment", paradigm, n, seed, subject)
        table = pd.DataFrame({"image_id": IDS, "patient_id": PATIENTS}).merge(
            pd.DataFrame({"device": NAMES["lines_tubes"]}), how="cross"
        )
        shown = rng.random(len(table)) < 0.4
        for metric in ("dice", "cl_dice"):
            table[metric] = np.where(
                shown, np.clip(level + rng.normal(0, 0.1, len(table)), 0, 1), np.nan
            )
        rows = []
        for metric in ("dice", "cl_dice"):
            means = table.groupby("device")[metric].mean()
            values = [*means.items(), ("macro", means.mean())]
            rows += [
                {"task": "segmentation", "label": k, "metric": metric, "value": v}
                for k, v in values
            ]
            self.macro[metric, paradigm, n, seed] = means.mean()
        self._keep(own, rows, table)

    def _subject(self, stage, paradigm, n, seed, subject):
        base = "dino-cnn" if paradigm == "dinov2" else "clip-cnn"
        is_base = n == 0
        own = {
            "stage": stage,
            "paradigm": paradigm,
            "n_images": float(n or 20000),
            "seed": float(seed),
        }
        own |= {
            "base": "" if is_base else base,
            "encoder": "cnn_mini",
            "data": "study-1",
            "kind": "synthetic",
        }
        own |= {
            "samples_seen": 24000.0,
            "patients": f"{stage}-1",
            "preset": "mini",
            "hardware": "a machine",
        }
        own |= {
            "run": f"base-{base}-{len(self.rows):06x}"
            if is_base
            else f"{paradigm}-n{n}-s{seed}-{len(self.rows)}"
        }
        return own | subject

    def _keep(self, own, rows, scores):
        folder = self.home / own["preset"] / own["stage"] / own["run"]
        folder.mkdir(parents=True)
        scores.to_parquet(folder / "scores.parquet")
        self.rows += [row | own | {"folder": str(folder)} for row in rows]


LADDERS = {  # skills with 200, 1,000 and 20,000 images, and of the base
    "clip": (0.8, 1.1, 1.6, 0.7),
    "unicl": (0.8, 1.2, 2.3, 0.7),
    "dinov2": (0.5, 0.5, 0.5, 0.4),
}
SIZES = (200, 1000, 20000)


def fill(grid, ladders=LADDERS, seeds=3, sizes=SIZES, bases=True):
    for paradigm, skills in ladders.items():
        for n, skill in zip((*sizes, 0), skills, strict=True):
            if n or (bases and paradigm != "unicl"):
                for seed in range(seeds if n else 1):
                    grid.classify(paradigm, n, skill, seed)
    return grid


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A grid in which MI2 scales and labels help; RAD-DINO does not scale, but draws better."""
    grid = fill(Grid(tmp_path_factory.mktemp("runs")))
    for seed in range(3):
        for paradigm, level in (("clip", 0.4), ("unicl", 0.4), ("dinov2", 0.7)):
            grid.segment(paradigm, 20000, level, seed)
    return grid


@pytest.fixture(scope="module")
def tried(study):
    return claims.ledger(study.table(), resamples=200).set_index("id")


def test_the_ledger_finds_what_was_put_into_the_scores(tried):
    assert list(tried.index) == [claim.id for claim in CLAIMS]
    expected = {
        "findings-growth": "supported",
        "findings-slope": "supported",
        "tubes-classified": "contradicted",
    }
    expected |= {
        "tubes-drawn": "supported",
        "tubes-centre-lines": "supported",
        "labels-findings": "supported",
    }
    assert tried.loc[list(expected), "verdict"].to_dict() == expected
    missing = tried[tried["verdict"] == "not testable"]
    assert set(missing.index) == {"placement-right", "frozen-drawn"}
    assert missing.loc["placement-right", "why"] == (
        "missing: runs of clip or unicl judged on malposition (macro AUROC)"
    )
    assert "base of dinov2 judged on segmentation" in missing.loc["frozen-drawn", "why"]
    assert missing[["effect", "low", "high", "p", "p_holm"]].isna().all(axis=None)


def test_effects_are_differences_of_macro_values_by_scikit_learn_seeds_averaged(study, tried):
    def mean(task, paradigm, n):
        return np.mean([study.macro[task, paradigm, n, seed] for seed in range(3)])

    mi2 = [
        mean("findings", p, SIZES[-1]) - mean("findings", p, SIZES[0]) for p in ("clip", "unicl")
    ]
    dino = mean("findings", "dinov2", SIZES[-1]) - mean("findings", "dinov2", SIZES[0])
    assert tried.loc["findings-growth", "effect"] == pytest.approx(np.mean(mi2) - dino)
    labels = mean("lines_tubes", "unicl", SIZES[-1]) - mean("lines_tubes", "clip", SIZES[-1])
    assert tried.loc["labels-tubes", "effect"] == pytest.approx(labels)
    for claim, metric in (("tubes-drawn", "dice"), ("tubes-centre-lines", "cl_dice")):
        mi2 = [mean(metric, p, SIZES[-1]) for p in ("clip", "unicl")]
        assert tried.loc[claim, "effect"] == pytest.approx(
            mean(metric, "dinov2", SIZES[-1]) - np.mean(mi2)
        )
    bases = study.macro["lines_tubes", "clip", 0, 0] - study.macro["lines_tubes", "dinov2", 0, 0]
    assert tried.loc["placement-seen", "effect"] == pytest.approx(bases)
    few = [
        mean(task, p, SIZES[0]) - study.macro[task, "dinov2" if p == "dinov2" else "clip", 0, 0]
        for task in NAMES for p in LADDERS
    ]  # fmt: skip
    assert tried.loc["few-suffice", "effect"] == pytest.approx(max(few))
    assert "the greatest of 6" in tried.loc["few-suffice", "contrast"]
    slopes = [
        np.polyfit(np.log10(SIZES), [mean("findings", p, n) for n in SIZES], 1)[0] for p in LADDERS
    ]
    assert tried.loc["findings-scale", "effect"] == pytest.approx(min(slopes))
    inside = tried[tried["effect"].notna()]
    assert ((inside["low"] < inside["effect"]) & (inside["effect"] < inside["high"])).all()


def test_scope_runs_and_multiplicity_are_told(tried):
    growth = tried.loc["findings-growth"]
    assert {f"{p}-n{n}-s{s}" for p in LADDERS for n in (SIZES[0], SIZES[-1]) for s in range(3)} == {
        run.rsplit("-", 1)[0] for run in growth["runs"]
    }
    for told in (
        "synthetic x-rays",
        "preset mini",
        "seed 0, 1, 2",
        "architecture the same",
        "base differs",
        "24,000",
    ):
        assert told in growth["scope"]
    assert "base the same (clip-cnn)" in tried.loc["labels-findings", "scope"]
    np.testing.assert_allclose(tried["p_holm"], compare.holm(tried["p"]))
    assert (tried["p_holm"].dropna() >= tried["p"].dropna()).all()
    text = claims.summary(tried.reset_index())
    assert f"{len(CLAIMS)} claims: {(tried['verdict'] == 'supported').sum()} supported" in text
    assert (
        claims.readable(tried.reset_index())["effect [95%]"].str.match(r"^$|[+-]\d\.\d{4} \[").all()
    )


def test_what_all_scopes_share_is_said_once_and_nothing_is_lost(tried):
    rows = tried[tried["verdict"] != "not testable"].reset_index()
    said = claims.common_scope(rows).split("; ")
    assert "preset mini" in said
    assert "seed 0, 1, 2" not in said  # claims on bases as they came have none
    for whole, rest in zip(rows["scope"], claims.readable(rows)["scope"], strict=True):
        assert set(whole.split("; ")) == set(said) | {part for part in rest.split("; ") if part}


def test_studies_stand_side_by_side_and_what_turns_is_told(tried):
    rows = tried.reset_index()
    yes = rows["verdict"] == "supported"
    turned = rows.assign(
        effect=-rows["effect"],
        low=-rows["high"],
        high=-rows["low"],
        verdict=rows["verdict"].mask(yes, "contradicted"),
    )
    both = claims.beside({"one": rows, "other": turned})
    assert list(both.index) == list(rows["claim"])
    for row, cell in zip(rows.itertuples(), both["one"], strict=True):
        assert cell.startswith(row.verdict)
        assert (f"{row.effect:+.4f} [" in cell) == np.isfinite(row.effect)
    told = claims.opposed({"one": rows, "other": turned})
    assert len(told) == yes.sum() > 0
    for text, claim in zip(told, rows.loc[yes, "claim"], strict=True):
        assert text.startswith(f"{claim}: supported by one (+")
        assert "the other way round in other (-" in text
    assert claims.opposed({"one": rows, "again": rows}) == []
    excluded = turned.assign(high=turned["high"].mask(yes, 0.001))  # contradicted, yet not below 0
    assert claims.opposed({"one": rows, "other": excluded}) == []


def test_of_a_change_both_ends_are_told_beside_the_bases(study, tried):
    table = study.table()
    macro = table[
        (table["task"] == "findings") & (table["label"] == "macro") & (table["metric"] == "auroc")
    ]
    came = macro["base"].fillna("") == ""
    bases = macro[came & (macro["paradigm"] != "control")].groupby("paradigm")["value"].mean()
    mean = macro[~came].groupby(["paradigm", "n_images"])["value"].mean()
    told = []
    for family in (["clip", "unicl"], ["dinov2"]):
        ends = (
            sum(mean[p, n] for p in family) / len(family) - bases[family[0]]
            for n in (SIZES[0], SIZES[-1])
        )
        told.append("/".join(f"{end:+.4f}" for end in ends))
    assert (
        f"with the fewest/the most images: {told[0]} against {told[1]}"
        in tried.loc["findings-growth", "why"]
    )
    shown = claims.beside({"one": tried.reset_index().assign(p_holm=0.2)})["one"]
    decided = tried["verdict"].isin(["supported", "contradicted"]).to_numpy()
    assert (shown.str.endswith("(not after Holm's correction)").to_numpy() == decided).all()


def test_the_ledger_hangs_on_its_seed_alone(study):
    table = study.table()
    one, again, other = (claims.ledger(table, 50, seed, claims=[GROWTH]) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, again)
    assert one["effect"].equals(other["effect"])
    assert (one["low"] != other["low"]).all()


def test_contrasts_are_paired_over_the_same_patients(tmp_path):
    """Two paradigms with the very same scores do not differ, whatever patients are drawn."""
    grid = Grid(tmp_path)
    for seed in (0, 1):
        for paradigm in ("clip", "unicl"):
            grid.classify(paradigm, 200, 1.0, seed, noise=7)
    found = claims.ledger(grid.table(), 50, claims=[LABELS]).iloc[0]
    assert (found["effect"], found["low"], found["high"]) == (0, 0, 0)
    assert found["verdict"] == "contradicted"  # a presence of nothing


def test_one_seed_leaves_a_claim_open_until_other_runs_tell_the_spread(tmp_path, study):
    grid = fill(Grid(tmp_path), seeds=1)
    alone = claims.ledger(grid.table(), 100, claims=[GROWTH]).iloc[0]
    assert (alone["verdict"], math.isnan(alone["p"])) == ("inconclusive", True)
    assert "second seed" in alone["why"]
    lent = claims.ledger(grid.table(), 100, claims=[GROWTH], repeats=[study.table()]).iloc[0]
    assert lent["verdict"] == "supported"
    assert lent["high"] - lent["low"] > alone["high"] - alone["low"]
    settings = {"mention=45": grid.table()}
    assert claims.effects(settings, 100, claims=[GROWTH])["verdict"].item() == "inconclusive"
    rows = claims.effects(
        settings | {"mention=10": study.table()}, 100, claims=[GROWTH], repeats=[study.table()]
    )
    assert set(rows["verdict"]) == set(claims.flips(rows)["verdict"]) == {"supported"}


def test_the_spread_is_pooled_within_rungs_and_grids_alone(tmp_path):
    grid = Grid(tmp_path)
    fill(grid, {"clip": LADDERS["clip"]}, seeds=3)
    (found,) = {
        k: v for k, v in seed_spread([find_rungs(grid.table())]).items() if k[0] == "findings"
    }.values()
    each = [np.var([grid.macro["findings", "clip", n, s] for s in range(3)], ddof=1) for n in SIZES]
    assert found == (pytest.approx(np.mean(each)), 6)
    other = fill(Grid(tmp_path / "other"), {"clip": LADDERS["clip"]}, seeds=1)
    assert (
        seed_spread([find_rungs(t) for t in (grid.table(), other.table())])[
            "findings", "auroc", "clip"
        ]
        == found
    )
    assert seed_spread([find_rungs(other.table())] * 2) == {}


def test_null_tables_are_rarely_supported(tmp_path):
    """Through files: both paradigms grow alike, each run with noise of its own, and patients that are drawn anew."""
    same, supported = {"clip": (0.8, 1.2, None), "dinov2": (0.8, 1.2, None)}, 0
    for k in range(16):
        grid, rng = Grid(tmp_path / str(k)), np.random.default_rng(k)
        for paradigm, skills in same.items():
            for n, skill in zip((200, 20000), skills, strict=False):
                for seed in range(3):
                    grid.classify(
                        paradigm,
                        n,
                        skill + rng.normal(0, 0.3),
                        seed,
                        noise=int(rng.integers(2**31)),
                    )
        supported += (
            claims.ledger(grid.table(), 100, claims=[GROWTH])["verdict"].iloc[0] == "supported"
        )
    assert (
        supported <= 2
    )  # 2.5% are meant: more than 2 of 16 would come by chance once in 150 times


@pytest.mark.parametrize(
    ("change", "claim", "said"),
    [
        (
            lambda t: t[t["paradigm"] != "dinov2"],
            "findings-growth",
            "runs of dinov2 judged on findings",
        ),
        (
            lambda t: t[t["paradigm"] != "unicl"],
            "labels-findings",
            "runs of unicl judged on findings",
        ),
        (
            lambda t: t[t["n_images"] != 200].replace({"n_images": {1000: 15000}}),
            "few-suffice",
            "within ten times of the paper's share",
        ),
        (
            lambda t: t[(t["n_images"] == 200) | (t["base"] == "")],
            "findings-growth",
            "2 numbers of images",
        ),
        (lambda t: t[t["base"] != ""], "placement-seen", "the base of clip"),
        (
            lambda t: t.assign(folder=t["folder"] + "-gone"),
            "findings-growth",
            "kept scores of classify clip-n200",
        ),
        (
            lambda t: t.assign(patients=t["patients"] + t["paradigm"]),
            "findings-growth",
            "the same patients",
        ),
        (
            lambda t: t.assign(data=np.where(t["seed"] == 0, "a", "b")),
            "labels-findings",
            "one longest ladder of unicl",
        ),
        (lambda t: t[:0], "findings-scale", "runs of clip judged"),
    ],
)
def test_what_is_missing_is_said(study, change, claim, said):
    found = claims.ledger(change(study.table()), 20, claims=[BY_ID[claim]]).iloc[0]
    assert found["verdict"] == "not testable"
    assert said in found["why"]
    assert found["why"].startswith("missing: ")
    assert found["contrast"]
    assert found["runs"] == []


def test_a_family_is_what_was_run_of_it(study):
    table = study.table()
    found = claims.ledger(
        table[table["paradigm"] != "unicl"], 20, claims=[GROWTH, EVERY]
    ).set_index("id")
    assert found.loc["findings-growth", "contrast"].startswith("clip minus dinov2")
    assert "left out, missing: runs of unicl" in found.loc["findings-scale", "why"]


def test_a_side_experiment_does_not_take_the_place_of_the_ladder(study, tmp_path):
    grid, table = Grid(tmp_path), study.table()
    for n in (200, 20000):
        grid.classify("clip", n, 3.0, data="study96-1", patients="others")
    both = pd.concat([table, grid.table()], ignore_index=True)
    pd.testing.assert_frame_equal(*(claims.ledger(t, 50, claims=[GROWTH]) for t in (table, both)))


def test_an_added_claim_is_one_entry(study):
    own = Claim("ours", "Labels help tubes more", "arXiv 0000.00000", (("lines_tubes", "auroc"),), "growth",
                ("unicl",), ("clip",))  # fmt: skip
    found = claims.ledger(study.table(), 50, claims=[own]).iloc[0]
    assert found["verdict"] in claims.VERDICTS[:3]
    assert found["effect"] == pytest.approx(
        sum(
            sign * np.mean([study.macro["lines_tubes", p, n, s] for s in range(3)])
            for p, n, sign in (
                ("unicl", 20000, 1),
                ("unicl", 200, -1),
                ("clip", 20000, -1),
                ("clip", 200, 1),
            )
        )
    )


# ---- what would have to be true ------------------------------------------------------------------------------------
def tables_of(home, gaps, seeds=1):
    """One grid a setting, in which clip's skill on findings is by so much above dinov2's."""
    made = {}
    for k, (key, gap) in enumerate(gaps.items()):
        grid = Grid(home / str(k))
        for seed in range(seeds if isinstance(seeds, int) else seeds[k]):
            for paradigm, skill in (("clip", 1.0 + gap), ("dinov2", 1.0)):
                grid.classify(paradigm, 20000, skill, seed, preset=f"study-{k}")
        made[key] = grid.table()
    return made


LEVEL = Claim(
    "level",
    "clip is better",
    "arXiv 0000.00000",
    (("findings", "auroc"),),
    "largest",
    ("clip",),
    ("dinov2",),
)


def test_flips_name_the_verdicts_that_differ_and_where_the_sign_changes(tmp_path):
    tables = tables_of(
        tmp_path, {"mention=50": 0.8, "mention=10": -0.8, "mention=90": 0.9}, seeds=(3, 1, 1)
    )
    tables |= {"faint=no": tables["mention=50"], "faint=yes": tables["mention=10"]}
    effects = claims.effects(tables, 200, claims=[LEVEL]).set_index(["factor", "setting"])
    assert effects["reference"].to_dict() == {
        ("mention", "50"): True, ("mention", "10"): False, ("mention", "90"): False,
        ("faint", "no"): True, ("faint", "yes"): False,
    }  # fmt: skip
    assert effects.loc["mention", "verdict"].to_dict() == {
        "50": "supported", "10": "contradicted", "90": "supported",
    }  # fmt: skip
    found = claims.flips(effects.reset_index()).set_index(["factor", "setting"])
    assert found["differs"].to_dict() == {
        ("mention", "10"): True,
        ("mention", "90"): False,
        ("faint", "yes"): True,
    }
    assert (found["reference"] == "mention=50").all()
    turn = found.loc["mention", "10"]
    low, high = effects.loc[("mention", "10"), "effect"], effects.loc[("mention", "50"), "effect"]
    assert turn["turns"] == pytest.approx(10 + 40 * low / (low - high))
    assert 10 < turn["turns_low"] < turn["turns"] < turn["turns_high"] < 50
    assert turn["towards"] == "50"
    assert found.loc[("mention", "90"), ["turns", "turns_low"]].isna().all()
    assert math.isnan(found.loc[("faint", "yes"), "turns"])
    said = claims.flip_sentences(found.reset_index())
    assert len(said) == 2
    rows = effects.reset_index()
    assert claims.untouched(rows[rows["factor"] == "mention"]) == []
    assert claims.untouched(rows[rows["setting"].isin(["50", "no"])]) == [
        "level"
    ]  # the same runs under two names
    assert said[0].startswith(
        "`level`: supported under the reference, contradicted at mention=10; the effect changes"
    )
    assert found["reverses"].to_dict() == {
        ("mention", "10"): True,
        ("mention", "90"): False,
        ("faint", "yes"): True,
    }
    assert said[1].endswith("the effect has the other sign, both intervals without 0.")
    wide = claims.readable_effects(effects.reset_index())
    assert wide.loc["clip is better", "mention=10"].endswith("contradicted")


@settings(deadline=None, max_examples=20)
@given(zero=st.floats(0.15, 0.85), steep=st.floats(0.05, 0.3))
def test_where_the_effect_is_a_straight_line_the_turn_is_its_zero(zero, steep):
    rng = np.random.default_rng(3)
    rows = [
        {
            "x": x,
            "setting": str(x),
            "effect": steep * (x - zero),
            "draws": steep * (x - zero) + rng.normal(0, 1e-4, 400),
        }
        for x in (0.0, 1.0)
    ]
    found = claims._turn(*rows)
    assert found["turns"] == pytest.approx(zero)
    assert found["turns_low"] <= zero <= found["turns_high"]
    assert found["turns_high"] - found["turns_low"] < 0.01


def test_an_effect_that_hardly_turns_has_an_interval_that_reaches_a_setting():
    rng = np.random.default_rng(3)
    rows = [
        {"x": x, "setting": str(x), "effect": e, "draws": e + rng.normal(0, 0.01, 4000)}
        for x, e in ((0, -0.001), (1, 0.1))
    ]
    found = claims._turn(*rows)
    assert found["turns_low"] == 0.0
    assert found["turns_high"] < 0.5


def test_a_setting_that_was_not_run_is_not_testable_and_no_reference(tmp_path):
    tables = tables_of(tmp_path, {"mention=50": 0.8}, seeds=4) | {"mention=10": load_records([])}
    found = claims.flips(claims.effects(tables, 50, claims=[LEVEL])).iloc[0]
    assert (found["verdict"], found["reference_verdict"]) == ("not testable", "supported")
    assert not found["differs"]  # nothing is known of it
    none = claims.effects({})
    assert none.empty and claims.flips(none).empty
    assert {"differs", "turns"} <= set(claims.flips(none).columns)


def test_keys_and_reference_are_checked(study):
    with pytest.raises(ValueError, match="'mini' is no factor=value"):
        claims.effects({"mini": study.table()})
    with pytest.raises(ValueError, match="'a=2' is not among the tables: a=1"):
        claims.effects({"a=1": study.table()}, reference="a=2")


# ---- figures -------------------------------------------------------------------------------------------------------
def test_figures_tell_every_claim_that_was_tried(study, tried, tmp_path):
    shown = plots_claims.forest(tried.reset_index(), title="A study.")
    assert shown.alt.startswith("A study.")
    for row in tried.itertuples():
        assert (f"{row.Index} {row.effect:+.4f}, {row.verdict}" in shown.alt) == (
            row.verdict != "not testable"
        )
    empty = claims.ledger(study.table()[:0])
    assert "none could be tried" in plots_claims.forest(empty).alt
    effects = claims.effects({"a=1": study.table()}, 50)
    told = plots_claims.settings(effects, "a").alt
    assert "findings-growth: +" in told and "supported at 1" in told
    with pytest.raises(ValueError, match="'b'"):
        plots_claims.settings(effects, "b")
