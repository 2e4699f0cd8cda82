"""Presets and parameters: wrong ones are refused by name; a plan changes where its preset does."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy import grid, study
from cxrstudy.study import STAGES, StudyError, validated

ROOT = Path(__file__).resolve().parents[1]
PRESETS = sorted(path.stem for path in (ROOT / "notebooks" / "presets").glob("*.yml"))
stages = pytest.mark.parametrize("stage", STAGES)
quick = settings(deadline=None, max_examples=25)


def preset(**changes):
    whole = {
        "title": "A test's own",
        "minutes": 1,
        "hardware": "any",
        "data": {
            "study": {"n_images": 400, "size": 32},
            "public": {
                "institution": "public",
                "n_images": 100,
                "size": 32,
                "fractions": {"pretrain": 1.0},
            },
        },
        "base": {"clip-base": {"data": "public", "n_images": 64, "samples_seen": 128}},
        "curves": [curve()],
        "baselines": ["pixels"],
    }
    return whole | changes


def curve(**changes):
    grid = {
        "paradigm": ["clip", "unicl"],
        "n_images": [16, 32],
        "samples_seen": 64,
        "batch_size": 16,
    }
    return {"data": "study", "base": "clip-base"} | grid | changes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("repository")
    (place / "notebooks" / "presets").mkdir(parents=True)
    return place


def plan(folder, content, changed=None, data_root=""):
    """The plan of a preset written as YAML (or as the text given) into a repository of its own."""
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    (folder / "notebooks" / "presets" / "one.yml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXRSTUDY_ROOT", str(folder))
        return grid.plan("one", changed, data_root)


def names(runs):
    return {run.name for run in runs}


def slugs(some):
    return {name.rsplit("-", 1)[0] for name in some}


def refused(folder, content, *said, changed=None):
    with pytest.raises(StudyError) as caught:
        plan(folder, content, changed)
    for part in said:
        assert part in str(caught.value)


# ---- parameters --------------------------------------------------------------------------------
@stages
@quick
@given(name=st.from_regex(r"[a-z][a-z_]{0,11}", fullmatch=True))
def test_an_unknown_parameter_is_refused_by_name_beside_the_known_ones(stage, name):
    known = list(STAGES[stage].model_fields)
    if name in known:
        return
    with pytest.raises(StudyError) as caught:
        validated(stage, {name: 1})
    assert repr(name) in str(caught.value)
    assert stage in str(caught.value)
    assert all(other in str(caught.value) for other in known)


WRONG = {
    str: [5, None, ["a"]],
    bool: ["yes", 1, None],
    int: ["5", 1.5, True, None],
    float: ["high", None, [0.1]],
    list: ["train", 5],
    dict: [[]],
}
ILL = [
    (stage, name, value)
    for stage, model in STAGES.items()
    for name, default in model().model_dump().items()
    for value in WRONG[type(default)]
]


@pytest.mark.parametrize(("stage", "name", "value"), ILL)
def test_an_ill_typed_parameter_is_refused_by_name(stage, name, value):
    with pytest.raises(StudyError, match=rf"{stage} parameters: {name}: "):
        validated(stage, {name: value})


@pytest.mark.parametrize(
    ("stage", "name", "value"),
    [
        ("data", "size", 16),
        ("data", "n_images", -1),
        ("pretrain", "lr", 0.0),
        ("pretrain", "warmup", 1.0),
        ("pretrain", "label_share", 1.01),
        ("pretrain", "batch_size", 1),
        ("pretrain", "paradigm", "dino"),
        ("classify", "resamples", 19),
        ("analyse", "resamples", 19),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(stage, name, value):
    with pytest.raises(StudyError, match=rf"{name}: .*{value}"):
        validated(stage, {name: value})


def test_every_fault_is_named_at_once_and_where_it_stands():
    with pytest.raises(StudyError) as caught:
        validated("pretrain", {"lr": "high", "n_imagess": 5, "seed": -1}, "here")
    assert str(caught.value).startswith("here: ")
    assert all(name in str(caught.value) for name in ("lr", "'n_imagess'", "seed"))


@quick
@given(n=st.integers(2, 10**7), seen=st.integers(1, 10**7))
def test_more_images_than_samples_seen_is_refused_with_a_remedy(n, seen):
    values = {"n_images": n, "samples_seen": seen}
    if n <= seen:
        p = validated("pretrain", values)
        assert (p.n_images, p.samples_seen) == (n, seen)
        return
    with pytest.raises(StudyError) as caught:
        validated("pretrain", values)
    for part in (
        f"n_images ({n})",
        f"samples_seen ({seen})",
        "Lower n_images or raise samples_seen",
    ):
        assert part in str(caught.value)


def test_checked_parameters_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        validated("data", {}).size = 128


# ---- paths -------------------------------------------------------------------------------------
def test_a_relative_path_lies_in_the_repository_and_runs_where_they_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_ROOT", str(tmp_path / "clone"))
    monkeypatch.delenv("CXRSTUDY_RUNS", raising=False)
    assert study.resolve("data_cards/x.md") == tmp_path / "clone" / "data_cards" / "x.md"
    assert study.resolve("runs/a/b") == tmp_path / "clone" / "runs" / "a" / "b"
    assert study.resolve(tmp_path / "elsewhere") == tmp_path / "elsewhere"
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "big disk"))
    assert study.resolve("runs/a/b") == tmp_path / "big disk" / "a" / "b"
    assert study.resolve("runsheet/a") == tmp_path / "clone" / "runsheet" / "a"


def test_the_root_is_found_upwards_from_here(tmp_path, monkeypatch):
    monkeypatch.delenv("CXRSTUDY_ROOT", raising=False)
    (tmp_path / "notebooks" / "presets").mkdir(parents=True)
    deep = tmp_path / "book" / "pages"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert study.root() == tmp_path


@quick
@given(
    st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5)), min_size=2)
)
def test_a_digest_hangs_on_the_values_and_not_on_their_order(values):
    assert study.digest(values) == study.digest(dict(reversed(values.items())))
    first = next(iter(values))
    assert study.digest(values, 12) != study.digest(values | {first: "another value"}, 12)


# ---- a plan's shape ----------------------------------------------------------------------------
def check_shape(runs):
    """Every run comes after those it needs, reads only their folders, and has its own folder."""
    assert len(names(runs)) == len(runs)
    done = {}
    for run in runs:
        values = [v for k, v in run.parameters.items() if k != "out"]
        read = {
            item
            for v in values
            for item in (v if isinstance(v, list) else [v])
            if str(item).startswith("runs/")
        }
        read.discard("runs/")
        assert set(run.needs) <= set(done)
        assert read == {done[need].folder for need in run.needs}
        assert run.parameters["out"] == run.folder == f"runs/{run.preset}/{run.stage}/{run.name}"
        assert validated(run.stage, run.parameters).model_dump() == run.parameters
        done[run.name] = run


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_of_the_repository_plans(name, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_ROOT", str(ROOT))
    runs = grid.plan(name, {}, "/some/data")
    check_shape(runs)
    needed = (
        {"data", "pretrain"} if name == "bases" else set(STAGES) - {"segment", "report", "plan"}
    )
    assert {run.stage for run in runs} - {"segment", "report"} == needed
    assert name in grid.preset_names()
    real = grid.load_preset(name).needs_root
    below = (str(run.parameters.get("root")).startswith("/some/data") for run in runs)
    assert any(below) == real
    if real:
        with pytest.raises(StudyError, match="DATA_ROOT"):
            grid.plan(name)


def test_the_repository_has_the_presets_that_newcomers_and_ci_run():
    assert {"smoke", "mini", "nih"} <= set(PRESETS)


grids = st.lists(st.integers(2, 64), min_size=1, max_size=4, unique=True)


@quick
@given(
    n=grids,
    paradigms=st.sampled_from([["clip"], ["unicl"], ["clip", "unicl"]]),
    seeds=st.integers(1, 3),
)
def test_a_curve_has_a_run_for_every_combination(folder, n, paradigms, seeds):
    own = curve(n_images=n, paradigm=paradigms, seed=list(range(seeds)))
    runs = plan(folder, preset(curves=[own]))
    check_shape(runs)
    told = [
        (r.parameters["paradigm"], r.parameters["n_images"], r.parameters["seed"])
        for r in runs
        if in_curve(r)
    ]
    assert sorted(told) == sorted((p, k, s) for p in paradigms for k in n for s in range(seeds))
    evaluated = [run for run in runs if run.stage == "classify"]
    assert len(evaluated) == len(told) + 2  # the base and the baseline
    assert len({run.parameters["encoder"] for run in evaluated}) == len(evaluated)
    assert set(runs[-1].needs) == names(evaluated)


@pytest.mark.parametrize(
    ("sizes", "evaluated"), [("all", 3), ("ends", 2), ("largest", 1), ("none", 0)]
)
@pytest.mark.parametrize("stage", ["segment", "report"])
def test_downstream_tasks_evaluate_base_baselines_and_the_sizes_asked_for(
    folder, sizes, evaluated, stage
):
    own = curve(n_images=[16, 32, 24], paradigm="clip")
    runs = plan(folder, preset(curves=[own], **{stage: {"sizes": sizes, "n_train": 77}}))
    check_shape(runs)
    found = [run for run in runs if run.stage == stage]
    assert len(found) == evaluated + 1 + (stage == "report")  # pixels have no feature maps
    assert all(run.parameters["n_train"] == 77 for run in found)
    assert (
        slugs(run.name for run in found) - {"pixels"}
        == {"base-clip-base"}
        | (
            {
                "all": {"clip-n16-s0", "clip-n24-s0", "clip-n32-s0"},
                "ends": {"clip-n16-s0", "clip-n32-s0"},
            }
            | {"largest": {"clip-n32-s0"}, "none": set()}
        )[sizes]
    )
    assert {run.stage for run in plan(folder, preset(curves=[own]))}.isdisjoint({stage})


def test_curves_of_a_higher_priority_number_come_later_and_share_their_ends(folder):
    pieces = [
        curve(n_images=[24], paradigm="clip", priority=1),
        curve(n_images=[16, 32], paradigm="clip", seed=[0, 1]),
    ]
    runs = plan(folder, preset(curves=pieces, segment={"sizes": "ends", "seeds": [1]}))
    check_shape(runs)
    assert {run.name for run in runs if run.priority == 1 and run.stage != "analyse"} == {
        run.name for run in runs if "n24" in run.name
    }
    assert runs[-1].stage == "analyse" and runs[-1].priority == 1
    drawn = slugs(run.name for run in runs if run.stage == "segment")
    assert drawn == {"base-clip-base", "clip-n16-s1", "clip-n32-s1"}
    whole = [
        curve(n_images=[16, 24, 32], paradigm="clip", seed=0),
        curve(n_images=[16, 32], paradigm="clip", seed=1),
    ]
    assert names(runs) >= names(
        r for r in plan(folder, preset(curves=whole)) if r.stage != "analyse"
    )


def test_set_of_one_entry_leaves_the_others_as_they_are(folder):
    before = {run.name for run in plan(folder, preset())}
    (one, *_), given = preset()["data"], preset()
    given["data"] = given["data"] | {"other": given["data"][one]}
    runs = grid.override(grid.Preset(**given), {f"data.{one}.size": 96})
    assert [runs.data[name]["size"] for name in (one, "other")] == [
        96,
        given["data"][one].get("size"),
    ]
    with pytest.raises(StudyError, match=r"no entry data\.nobody; there are: data\."):
        grid.override(grid.Preset(**given), {"data.nobody.size": 96})
    with pytest.raises(StudyError, match="no such parameter"):
        grid.override(grid.Preset(**given), {f"data.{one}.sizes": 96})
    assert before == {run.name for run in plan(folder, preset())}


def test_baselines_shuffle_labels_and_evaluate_bases_that_no_curve_starts_from(folder):
    more = preset()["base"]["clip-base"] | {"paradigm": "unicl"}
    own = preset(
        base=preset()["base"] | {"longer": more},
        curves=[curve(n_images=[16], paradigm="clip")],
        baselines=["pixels", "shuffled", "base:longer"],
        segment={"sizes": "none"},
    )
    runs = plan(folder, own)
    check_shape(runs)
    evaluated = {grid.slug(run.name): run for run in runs if run.stage == "classify"}
    assert set(evaluated) == {
        "base-clip-base",
        "clip-n16-s0",
        "pixels",
        "shuffled-clip-base",
        "longer",
    }
    assert [name for name, run in evaluated.items() if run.parameters["shuffle_labels"]] == [
        "shuffled-clip-base"
    ]
    same = ("base-clip-base", "shuffled-clip-base")
    assert len({evaluated[name].parameters["encoder"] for name in same}) == 1
    trained = next(
        run for run in runs if run.stage == "pretrain" and grid.slug(run.name) == "longer"
    )
    assert evaluated["longer"].parameters["encoder"] == trained.folder
    assert trained.name in evaluated["longer"].needs
    assert "longer" in slugs(run.name for run in runs if run.stage == "segment")
    with pytest.raises(StudyError, match="baselines: base 'nobody'"):
        plan(folder, preset(baselines=["base:nobody"]))


def test_a_base_can_go_on_from_another_base_of_its_preset(folder):
    one = preset()["base"]["clip-base"]
    runs = plan(folder, preset(base={"clip-base": one, "longer": one | {"base": "clip-base"}}))
    check_shape(runs)
    first, longer = (
        next(run for run in runs if grid.slug(run.name) == name) for name in ("clip-base", "longer")
    )
    assert longer.parameters["base"] == first.folder
    assert first.name in longer.needs
    with pytest.raises(StudyError, match="base longer: base 'clip-base' is not among"):
        plan(folder, preset(base={"longer": one | {"base": "clip-base"}, "clip-base": one}))


@quick
@given(st.sets(st.integers(0, 40)))
def test_what_stands_elsewhere_is_left_out_with_what_only_it_needs(folder, some):
    runs = plan(folder, preset(curves=[curve(n_images=[16, 24, 32], paradigm=["clip", "unicl"])]))
    stand = {runs[k % len(runs)].name for k in some}
    rest = grid.without(runs, stand)
    wanted = {run.name for run in runs if run.stage == "classify"} - stand
    assert names(run for run in rest if run.stage == "classify") == wanted
    assert all(set(run.needs) <= names(rest) for run in rest)
    assert all(run.name in wanted or any(run.name in other.needs for other in rest) for run in rest)


def test_other_families_are_refused_on_folds_and_where_a_preset_has_none(folder):
    fractions = {f"fold{k}": 0.25 for k in range(4)}
    data = {name: values | {"fractions": fractions} for name, values in preset()["data"].items()}
    with pytest.raises(StudyError, match="segment needs fixed splits, but folds is 4"):
        plan(folder, preset(folds=4, data=data, segment={}))
    with pytest.raises(StudyError, match=r"report\.n_train: this preset has no report"):
        grid.override(grid.Preset(**preset()), {"report.n_train": 5})
    with pytest.raises(StudyError, match="segment clip-n16-s0: unknown parameter 'epochs'"):
        plan(folder, preset(segment={"epochs": 3}))


def test_also_names_data_of_the_preset_and_waits_for_it(folder):
    runs = plan(folder, preset(classify={"also": ["public"]}))
    check_shape(runs)
    public = next(run for run in runs if run.name.startswith("public-"))
    evaluated = [run for run in runs if run.stage == "classify"]
    assert all(
        run.parameters["also"] == [public.folder] and public.name in run.needs for run in evaluated
    )


def in_curve(run):
    return run.stage == "pretrain" and bool(run.parameters["base"])


@quick
@given(n=grids, more=st.integers(2, 64))
def test_one_more_grid_value_adds_its_runs_and_those_that_read_them(folder, n, more):
    before = plan(folder, preset(curves=[curve(n_images=n)]))
    after = plan(folder, preset(curves=[curve(n_images=[*n, more])]))
    if more in n:
        assert names(before) == names(after)
        return
    added, gone = names(after) - names(before), names(before) - names(after)
    assert slugs(gone) == {"analyse"}
    stages = sorted(r.stage for r in after if r.name in added)
    assert stages == ["analyse", *["classify"] * 2, *["pretrain"] * 2]
    assert slugs(added) == {f"clip-n{more}-s0", f"unicl-n{more}-s0", "analyse"}


CURVE = {f"{p}-n{n}-s0" for p in ("clip", "unicl") for n in (16, 32)}
DATA, BASE, JUDGED = {"study", "public"}, {"clip-base"}, CURVE | {"base-clip-base", "pixels"}


@pytest.mark.parametrize(
    ("changed", "data", "pretrain", "classify"),
    [
        ({"lr": 0.01}, set(), CURVE, CURVE),
        ({"curves.lr": 0.01}, set(), CURVE, CURVE),
        ({"precision": "fp32"}, set(), CURVE, CURVE),
        ({"base.lr": 0.01}, set(), CURVE | BASE, CURVE | {"base-clip-base"}),
        ({"data.seed": 3}, DATA, CURVE | BASE, JUDGED),
        ({"size": 48}, DATA, CURVE | BASE, JUDGED),
        ({"pooling": "mean"}, set(), set(), JUDGED),
        ({"classify.seed": 1}, set(), set(), JUDGED),
        ({"resamples": 50}, set(), set(), JUDGED),
        ({"analyse.resamples": 50}, set(), set(), set()),
        ({"analyse.seed": 1}, set(), set(), set()),
    ],
)
def test_set_renames_exactly_the_runs_it_reaches(folder, changed, data, pretrain, classify):
    before, after = plan(folder, preset()), plan(folder, preset(), changed)
    check_shape(after)
    for stage, expected in (
        ("data", data),
        ("pretrain", pretrain),
        ("classify", classify),
        ("analyse", {"analyse"}),
    ):
        old, new = (names(run for run in runs if run.stage == stage) for runs in (before, after))
        assert slugs(new - old) == slugs(old - new) == expected
        assert slugs(new) == slugs(old)
    known = names(before)
    for run in after:
        if (
            run.name not in known and set(run.needs) <= known
        ):  # reached itself, not by what it reads
            assert all(
                run.parameters[key.rpartition(".")[2]] == value for key, value in changed.items()
            )


def test_set_of_a_grid_value_takes_the_place_of_the_grid(folder):
    before, after = plan(folder, preset()), plan(folder, preset(), {"n_images": [32, 48]})
    assert slugs(names(after) - names(before)) == {"clip-n48-s0", "unicl-n48-s0", "analyse"}
    assert slugs(names(before) - names(after)) == {"clip-n16-s0", "unicl-n16-s0", "analyse"}


def test_a_default_that_is_spelled_out_renames_nothing(folder):
    told = curve(weight_decay=0.05, seed=0, label_share=0.5)
    assert plan(
        folder, preset(curves=[told], classify={"resamples": study.Classify().resamples})
    ) == plan(folder, preset())


def test_set_to_the_value_that_stands_already_changes_nothing(folder):
    assert plan(folder, preset(), {"samples_seen": 64, "base.samples_seen": 128}) == plan(
        folder, preset()
    )


@pytest.mark.parametrize(
    "key", ["n_imagess", "curves.n_imagess", "steps.lr", "classify.lr", "data.base", "out", "base"]
)
def test_set_of_an_unknown_name_is_refused_beside_the_known_ones(folder, key):
    refused(
        folder, preset(), f"--set {key}", "n_images", "samples_seen", "resamples", changed={key: 1}
    )


def test_set_of_an_ill_typed_value_is_refused(folder):
    refused(folder, preset(), "lr", "high", changed={"lr": "high"})


# ---- folds -------------------------------------------------------------------------------------
def folds_of(k):
    data = preset()["data"]
    data["study"]["fractions"] = {f"fold{i}": 1 / k for i in range(k)}
    return data


@settings(deadline=None, max_examples=10)
@given(k=st.integers(3, 6), n=grids)
def test_the_held_fold_is_never_pretrained_on(folder, k, n):
    runs = plan(folder, preset(folds=k, data=folds_of(k), curves=[curve(n_images=n)]))
    check_shape(runs)
    by_folder = {run.folder: run for run in runs}
    folds = [f"fold{i}" for i in range(k)]
    continued = 0
    for run in (run for run in runs if run.stage == "classify"):
        assert run.parameters["folds"] == folds
        encoders = run.parameters["fold_encoders"]
        continued += bool(encoders)
        assert len(encoders) in (0, k)
        for held, encoder in zip(folds, encoders, strict=False):
            trained = by_folder[encoder].parameters
            assert sorted([*trained["splits"], held]) == folds
            assert trained["n_images"] in n
    assert continued == 2 * len(n)
    assert sum(in_curve(run) for run in runs) == 2 * len(n) * k


def test_a_control_trains_on_other_data_once_and_is_evaluated_on_the_study_s_folds(folder):
    data = folds_of(3)
    data["others"] = data["study"] | {"fractions": {"pool": 0.5, "control": 0.5}}
    own = curve(n_images=[16])
    control = own | {"data": "others", "evaluate_on": "study", "splits": ["control"]}
    runs = plan(folder, preset(folds=3, data=data, curves=[own, control]))
    check_shape(runs)
    prepared = {run.name.rpartition("-")[0]: run.folder for run in runs if run.stage == "data"}
    trained = [r for r in runs if in_curve(r) and r.parameters["data"] == prepared["others"]]
    assert trained
    for run in trained:
        assert run.parameters["splits"] == ["control"]
        (reader,) = (r for r in runs if r.parameters.get("encoder") == run.folder)
        assert reader.parameters["data"] == prepared["study"]
        assert reader.parameters["folds"] == ["fold0", "fold1", "fold2"]
    assert not any(
        r.parameters.get("data") == prepared["others"] for r in runs if r.stage == "classify"
    )


# ---- what a plan refuses -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("key", "value", "other"),
    [("samples_seen", 64, 128), ("batch_size", 16, 8), ("lr", 0.001, 0.01), ("warmup", 0.1, 0.2)],
)
def test_unequal_budgets_are_refused_within_a_curve_and_allowed_between_paradigms(
    folder, key, value, other
):
    first, second = (
        curve(paradigm="clip", n_images=n, **{key: v}) for n, v in ((16, value), (32, other))
    )
    refused(
        folder,
        preset(curves=[first, second]),
        "clip curve",
        key,
        "clip-n16-s0",
        "clip-n32-s0",
        str(other),
    )
    refused(folder, preset(curves=[first | {key: [value, other]}]), "clip curve", key)
    check_shape(plan(folder, preset(curves=[first, second | {"paradigm": "unicl"}])))


def test_unequal_budgets_are_allowed_between_bases_and_between_sizes(folder):
    base = preset()["base"]["clip-base"]
    first, second = curve(n_images=16), curve(samples_seen=128)
    bases = {"clip-base": base, "other": base | {"seed": 1}}
    check_shape(plan(folder, preset(base=bases, curves=[first, second | {"base": "other"}])))
    data = preset()["data"]
    data["large"] = data["study"] | {"size": 64}
    check_shape(plan(folder, preset(data=data, curves=[first, second | {"data": "large"}])))
    refused(folder, preset(curves=[first, second]), "samples_seen")


def test_unequal_budgets_are_refused_in_a_curve_without_a_base(folder):
    refused(
        folder,
        preset(curves=[curve(base=""), curve(base="", n_images=48, samples_seen=128)]),
        "samples_seen",
    )


def test_folds_that_the_data_does_not_have_are_refused(folder):
    refused(folder, preset(folds=4), "fold", "study")


def test_a_preset_whose_subset_exceeds_its_budget_is_refused_with_the_remedy(folder):
    refused(
        folder,
        preset(curves=[curve(n_images=[16, 65])]),
        "clip-n65-s0",
        "n_images (65)",
        "raise samples_seen",
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"curves": [curve(base="dino-base")]}, ["curve", "base 'dino-base'", "clip-base"]),
        ({"curves": [curve(data="hospital")]}, ["curve", "data 'hospital'", "study, public"]),
        (
            {"base": {"clip-base": {"data": "nowhere"}}},
            ["base clip-base", "data 'nowhere'", "study, public"],
        ),
        ({"base": {"clip-base": {"n_images": 2}}}, ["base clip-base", "data None"]),
        ({"curves": [curve(n_imagess=5)]}, ["'n_imagess'", "known", "samples_seen"]),
        ({"classify": {"resample": 5}}, ["'resample'", "known", "resamples"]),
        ({"analyse": {"shape": "power"}}, ["'shape'", "known", "resamples"]),
        ({"data": {"study": {"institute": "study"}}}, ["'institute'", "known", "institution"]),
        ({"curve": []}, ["one.yml", "'curve'", "known", "curves"]),
        ({"minutes": "ten"}, ["one.yml", "minutes"]),
        ({"curves": [{"paradigm": "clip"}]}, ["one.yml", "curves.0.data"]),
    ],
)
def test_a_preset_that_does_not_hold_is_refused_where_it_does_not(folder, changes, said):
    refused(folder, preset() | changes, *said)


@pytest.mark.parametrize("key", ["title", "hardware", "minutes", "data"])
def test_a_preset_that_lacks_a_key_is_refused_by_its_name(folder, key):
    refused(
        folder, {k: v for k, v in preset().items() if k != key}, "one.yml", f"{key}: Field required"
    )


@pytest.mark.parametrize("text", ["title: [unclosed", "a: b: c", "", "- a\n- list\n", "only words"])
def test_a_file_that_is_no_preset_is_refused_by_its_name(folder, text):
    refused(folder, text, "one.yml")


def test_a_preset_that_is_not_there_is_refused_beside_those_that_are(folder, monkeypatch):
    plan(folder, preset())
    monkeypatch.setenv("CXRSTUDY_ROOT", str(folder))
    with pytest.raises(StudyError, match=r"no preset 'two'; there are: one"):
        grid.plan("two")


# ---- names of earlier versions -----------------------------------------------------------------
OLD = [
    ({"controls": ["pixels"]}, "'controls'; it is now called baselines"),
    ({"ladders": []}, "'ladders'; it is now called curves"),
    ({"curves": [curve(base_share=0.5)]}, "now called wise_ft_alpha (= 1 - base_share)"),
    ({"curves": [curve(clip=1.0)]}, "'clip'; it is now called grad_clip_norm"),
    ({"curves": [curve(collapse=0.1)]}, "'collapse'; it is now called max_score_drop"),
    ({"curves": [curve(piece=1)]}, "'piece'; it is now called priority"),
    ({"segment": {"rungs": "all"}}, "'rungs'; it is now called sizes"),
    ({"base": {"clip-base": {"shipped": "x"}}}, "'shipped'; it is now called checkpoint"),
]


@pytest.mark.parametrize(("changes", "said"), OLD)
def test_an_old_name_in_a_preset_is_refused_with_the_new_one(folder, changes, said):
    if "base" in changes:
        changes["base"]["clip-base"]["data"] = "public"
    refused(folder, preset() | changes, said)


@pytest.mark.parametrize(
    ("key", "new"),
    [("base_share", "wise_ft_alpha"), ("curves.clip", "grad_clip_norm"), ("ladders.lr", "curves")],
)
def test_an_old_name_in_set_is_refused_with_the_new_one(folder, key, new):
    refused(folder, preset(), f"it is now called {new}", changed={key: 0.5})


# ---- from a notebook ---------------------------------------------------------------------------
def namespace(*cells):
    """The names that the cells of a notebook have bound."""
    bound = {"In": ["", *cells], "Out": {}, "_i1": "x", "__name__": "__main__"}
    for cell in cells:
        exec(cell, bound)
    return bound


DEFAULTS = (
    "# Parameters\nn_images = 500  # size of the nested subset\nlr: float = 0.001\nout = ''\n"
)


def test_values_that_papermill_injects_win_over_the_defaults():
    own = "# Parameters\nn_images = 64\nout = '/tmp/somewhere'\n"
    p = study.from_notebook("pretrain", namespace("import os\nlr = 5.0", DEFAULTS, own))
    assert (p.n_images, p.lr, p.out) == (64, 0.001, "/tmp/somewhere")
    assert p == validated("pretrain", {"n_images": 64, "lr": 0.001, "out": "/tmp/somewhere"})


@pytest.mark.parametrize(
    ("injected", "said"),
    [
        ("n_imagess = 5", "'n_imagess'"),
        ("lr = 'high'", "lr: "),
        ("anything = []", "'anything'"),
        ("clip = 1.0", "it is now called grad_clip_norm"),
        ("_seed = 1\nsed = 1", "'sed'"),
    ],
)
def test_a_wrong_name_or_type_that_papermill_injects_is_refused(injected, said):
    with pytest.raises(StudyError) as caught:
        study.from_notebook("pretrain", namespace(DEFAULTS, f"# Parameters\n{injected}\n"))
    assert said in str(caught.value)
    assert "pretrain.ipynb" in str(caught.value)


def test_what_imports_bind_is_no_parameter():
    imports = "import time\nfrom pathlib import Path\nfrom cxrstudy.data.vocabulary import LABELS"
    p = study.from_notebook("pretrain", namespace(imports, DEFAULTS, "def f(): pass"))
    assert p.n_images == 500


def test_by_hand_the_parameters_cell_is_run_again_among_variables_of_later_cells():
    bound = namespace(DEFAULTS)
    study.from_notebook("pretrain", bound)
    exec("title = 'x'\nrows = [1]", bound)
    exec("n_images = 32\nsamples_seen = 64", bound)
    p = study.from_notebook("pretrain", bound)
    assert (p.n_images, p.samples_seen) == (32, 64)


def test_without_a_parameters_cell_it_says_which_to_run():
    with pytest.raises(StudyError, match=r"analyse\.ipynb.*# Parameters"):
        study.from_notebook("analyse", namespace("x = 1"))


def test_without_an_out_a_scratch_folder_is_named_after_the_parameters():
    plain, again, other = (
        study.from_notebook("pretrain", namespace(f"n_images = {n}")).out for n in (64, 64, 32)
    )
    assert plain == again
    assert plain != other
    assert plain.startswith("runs/scratch/pretrain/pretrain-")
