"""Numbers keep their type from the command line or a preset through papermill to a notebook."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, clone
from hypothesis import given, settings
from hypothesis import strategies as st
from papermill.iorw import NoDatesSafeLoader, read_yaml_file
from papermill.translators import PythonTranslator

from cxrstudy import grid, recorded, run, study
from cxrstudy.numbers import typed
from cxrstudy.parameterfile import to_yaml
from cxrstudy.study import StudyError, validated

quick = settings(deadline=None, max_examples=200)


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types at any depth."""
    return repr(one) == repr(other)


def through_papermill(values: dict[str, Any]) -> dict[str, Any]:
    """Return what a notebook gets: the file as papermill reads it and writes it into a cell."""
    read = yaml.load(to_yaml(values), Loader=NoDatesSafeLoader)
    bound: dict[str, Any] = {}
    exec(PythonTranslator.codify({f"v{k}": value for k, value in enumerate(read.values())}), bound)
    return dict(zip(read, (bound[f"v{k}"] for k in range(len(read))), strict=True))


# ---- the file ----------------------------------------------------------------------------------
TRICKY = [
    "1e-4",
    "1E5",
    "+1e3",
    "1_000",
    "1:30",
    "yes",
    "on",
    "No",
    "~",
    "null",
    "",
    " ",
    "=",
    "<<",
    "0x1F",
    "010",
]
TRICKY += [
    ".inf",
    "nan",
    "2020-01-01",
    "- a",
    "a: b",
    "# no",
    "line\nbreak\r\n",
    "\ttab",
    "é\u2028\x85\ufeff",
    "'\"\\",
]
texts = st.one_of(st.sampled_from(TRICKY), st.text(max_size=20), st.text("ab \n", max_size=300))
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), texts)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4)
)


@quick
@given(st.dictionaries(texts, values, max_size=5))
def test_any_value_comes_through_papermill_as_it_was(some):
    ordered = json.loads(json.dumps(some, sort_keys=True))
    assert same(through_papermill(some), ordered)


@pytest.mark.parametrize(
    "number", [5e-6, 1e-5, 1e22, 1e16, 123456789.0, 0.1 + 0.2, -0.0, 5e-324, math.inf, 10**30, 0]
)
def test_every_number_comes_through_papermill_as_it_was(number):
    told = {"alone": number, "list": [number, [number]], "dict": {"in": {"it": number}}}
    got = through_papermill(told)
    assert {key: repr(got[key]) for key in told} == {
        key: repr(value) for key, value in told.items()
    }


def test_a_tuple_comes_as_the_list_that_json_makes_of_it_and_a_list_that_stands_twice_as_two():
    twice = [1, 2]
    text = to_yaml({"a": (1e-5, "x"), "b": twice, "c": twice})
    assert yaml.safe_load(text) == {"a": [1e-5, "x"], "b": [1, 2], "c": [1, 2]}
    assert "&" not in text and "*" not in text


@pytest.mark.parametrize("name", grid.preset_names())
def test_parameters_of_every_preset_come_through_the_real_file_as_they_were(name, tmp_path):
    described = grid.load_preset(name)
    read = set()
    for chosen in [{}, *(own for own in described.variants.values() if own)]:
        runs = grid.plan(name, chosen, "/some/data" if described.needs_root else "")
        plan = run.write_plan(tmp_path / "plan.json", name, runs)
        for one in [r for r in runs if r.name not in read]:
            read.add(one.name)
            file = tmp_path / "parameters.yml"
            stored = next(r for r in json.loads(plan.read_text())["runs"] if r["name"] == one.name)
            file.write_text(to_yaml(stored["parameters"]))
            got = read_yaml_file(str(file))
            assert json.dumps(got, sort_keys=True) == json.dumps(
                one.parameters, sort_keys=True
            )  # types and values, at any depth
            bound: dict[str, Any] = {}
            cell = PythonTranslator.codify(got)
            exec(cell, bound)
            assert study.from_notebook(one.stage, bound).model_dump() == one.parameters
    assert read


def test_the_workflow_writes_that_very_file(tmp_path):
    runs = grid.plan("site", {}, "/some/data")
    plan = run.write_plan(tmp_path / "plan.json", "site", runs)
    one = next(r for r in runs if r.parameters.get("lr") == 5e-6)
    command = [sys.executable, "-m", "cxrstudy.parameterfile", str(plan), one.name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == to_yaml(one.parameters)
    assert yaml.load(done.stdout, Loader=NoDatesSafeLoader)["lr"] == 5e-6
    assert "-m cxrstudy.parameterfile" in (ROOT / "notebooks" / "Snakefile").read_text()


# ---- what a person types -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("stage", "given_", "expected"),
    [
        ("pretrain", {"lr": "1e-4"}, {"lr": 1e-4}),
        ("pretrain", {"lr": "1E-4"}, {"lr": 1e-4}),
        ("pretrain", {"lr": "+1e-3"}, {"lr": 1e-3}),
        ("pretrain", {"lr": ".5e-3"}, {"lr": 5e-4}),
        ("pretrain", {"lr": "1.5e0"}, {"lr": 1.5}),
        (
            "pretrain",
            {"n_images": "1e2", "samples_seen": "1_0e3"},
            {"n_images": 100, "samples_seen": 10_000},
        ),
        ("pretrain", {"n_images": 400.0}, {"n_images": 400}),
        ("classify", {"strengths": ["1e-5", 1, 2.0]}, {"strengths": [1e-5, 1.0, 2.0]}),
        ("classify", {"label_counts": ["1e2", 5.0, 7]}, {"label_counts": [100, 5, 7]}),
        (
            "data",
            {"fractions": {"train": "5e-1", "test": 0.5}},
            {"fractions": {"train": 0.5, "test": 0.5}},
        ),
        (
            "pretrain",
            {
                "dino": {
                    "koleo_weight": "1e-1",
                    "teacher_temperature": ["4e-2", "7e-2"],
                    "prototypes": "1e4",
                }
            },
            {
                "dino": {
                    "koleo_weight": 0.1,
                    "teacher_temperature": [0.04, 0.07],
                    "prototypes": 10_000,
                }
            },
        ),
        ("pretrain", {"dino": {"centring": "sinkhorn", "learn_gain": True}}, None),
        (
            "classify",
            {"encoder": "1e-4", "within": "1e4", "labels": ["1e4"]},
            None,
        ),  # text stays text
    ],
)
def test_a_number_with_an_exponent_is_one_where_a_number_is_asked_for(stage, given_, expected):
    got = validated(stage, given_)
    for name, value in (expected or given_).items():
        assert same(getattr(got, name), value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_images", "1.5e0"),
        ("n_images", "1e-1"),
        ("n_images", 1.5),
        ("n_images", "100"),  # quoted on purpose: YAML reads 100 as a number
        ("n_images", True),
        ("lr", True),
        ("lr", "1e400"),
        ("lr", math.inf),
        ("lr", math.nan),
        ("lr", "e-4"),
        ("lr", "1e"),
        ("lr", "1e-4 "),
        ("lr", "1,5e-4"),
        ("splits", "1e4"),
    ],
)
def test_what_is_no_number_of_the_kind_is_refused_by_name(name, value):
    with pytest.raises(StudyError, match=rf"{name}: "):
        validated("pretrain", {name: value})


@quick
@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["{!r}", "{:e}", "{:E}", "{:.17e}"]),
)
def test_however_a_number_is_written_it_is_the_same_number(number, form):
    text = form.format(number)
    assert typed(yaml.safe_load(text), float) == float(text)


@quick
@given(st.text(max_size=8) | st.booleans() | st.none())
def test_what_is_not_a_number_is_left_as_it_is(value):
    for annotation in (str, bool, float, int, list[float], dict[str, float], Any):
        got = typed(value, annotation)
        assert got is value or (
            isinstance(value, str) and "e" in value.lower() and annotation in (float, int, Any)
        )


@pytest.mark.parametrize("typed_", ["lr=1e-4", "lr=0.0001", "lr=1.0e-4", "curves.lr=1E-4"])
def test_set_takes_a_rate_however_it_is_written(typed_):
    key, value = typed_.split("=")
    runs = grid.plan("smoke", {key: yaml.safe_load(value)})
    assert {r.parameters["lr"] for r in runs if r.stage == "pretrain"} == {1e-3, 1e-4}
    assert {r.name for r in runs} == {r.name for r in grid.plan("smoke", {"lr": 1e-4})}
    assert run.variant_name({key: yaml.safe_load(value)}) == f"{key}=0.0001"


def test_set_takes_lists_of_them_and_orders_sizes_by_number():
    runs = grid.plan(
        "smoke", {"n_images": ["1e2", 64, "2e2"], "classify.strengths": ["1e-5", "1e0"]}
    )
    sizes = [
        r.parameters["n_images"]
        for r in runs
        if r.name.startswith("clip-n") and r.stage == "pretrain"
    ]
    assert sizes == [100, 64, 200]
    assert {r.name for r in runs} == {
        r.name
        for r in grid.plan("smoke", {"n_images": [100, 64, 200], "classify.strengths": [1e-5, 1.0]})
    }
    assert (
        run.variant_name({"classify.strengths": ["1e-5", "1e0"]})
        == "classify.strengths=[1e-05,1.0]"
    )


def test_a_preset_may_write_its_rates_with_exponents(tmp_path, monkeypatch):
    clone(tmp_path)
    path = tmp_path / "notebooks" / "presets" / "smoke.yml"
    text = path.read_text()
    before = {r.name for r in grid.plan("smoke", {"lr": 5e-6, "dino": {"koleo_weight": 0.1}})}
    path.write_text(
        text.replace(
            "    samples_seen: 512\n",
            "    samples_seen: 512\n    lr: 5e-6\n    dino: {koleo_weight: 1e-1}\n",
        )
    )
    monkeypatch.setenv("CXRSTUDY_ROOT", str(tmp_path))
    assert {r.name for r in grid.plan("smoke")} == before


@pytest.mark.parametrize("words", [["-y", "lr: 1e-4"], ["-p", "lr", "1e-4"], ["-r", "lr", "1e-4"]])
def test_papermill_by_hand_takes_a_rate_however_it_is_written(words, tmp_path):
    out = tmp_path / "out.ipynb"
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "notebooks" / "pretrain.ipynb"),
        str(out),
    ]
    subprocess.run([*command, "--prepare-only", *words], check=True, capture_output=True)
    cells = json.loads(out.read_text())["cells"]
    cell = next(
        "".join(c["source"])
        for c in cells
        if "injected-parameters" in c["metadata"].get("tags", [])
    )
    bound: dict[str, Any] = {}
    exec(cell, bound)
    assert study.from_notebook("pretrain", bound).lr == 1e-4


# ---- names -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["study-gpu", "study-cpu", "ablation", "ablation-base", "ablation-own"]
)
def test_runs_that_were_recorded_are_still_called_the_same(name):
    if not Path(recorded.place(name), "runs.csv").is_file():
        pytest.skip(f"nothing of {name} is recorded here")
    chosen = [{}, *(own for own in grid.load_preset(name).variants.values() if own)]
    assert recorded.run_names(name) <= {r.name for own in chosen for r in grid.plan(name, own)}


def test_a_run_at_a_tiny_rate_ends(tmp_path):
    walk = clone(tmp_path)
    preset = yaml.safe_load((walk.root / "notebooks" / "presets" / "smoke.yml").read_text())
    own = preset | {"curves": [], "baselines": []}
    own["data"] = {"public": preset["data"]["public"] | {"n_images": 64}}
    own["base"]["clip-base"] |= {"n_images": 64, "samples_seen": 64, "lr": 0.000005}
    (walk.root / "notebooks" / "presets" / "smoke.yml").write_text(yaml.safe_dump(own))
    done = walk.call("run", "--preset", "smoke", "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(next(walk.runs.glob("smoke/pretrain/*/record.json")).read_text())
    assert record["parameters"]["lr"] == 5e-6
