"""Pages written by hand have short sentences and agree with presets, tables and commands.

Files and functions of the package are short too.
"""

import ast
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from conftest import ROOT

from cxrstudy import alone, cli, grid, sources, text
from cxrstudy.pretrain.dinov2 import DinoConfig
from cxrstudy.scaling import verdicts

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
import sentences

BOOK = ROOT / "book"
PAGES = sorted([*BOOK.glob("*.md"), BOOK / "objectives.ipynb", ROOT / "README.md"])
BY_NAME = {path.name: path.read_text(encoding="utf-8") for path in PAGES}
WRITTEN = {"runs", "recorded", "cards"}  # by the build, and a page for each source: results-NAME


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", BY_NAME[page], re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", BY_NAME)
def test_sentences_are_short(page: str) -> None:
    path = next(path for path in PAGES if path.name == page)
    counts = np.array([*sentences.sentences(sentences.texts(path))])
    assert counts.mean() <= 20
    assert (counts > sentences.LONG).mean() <= 0.05


@pytest.mark.parametrize("page", BY_NAME)
def test_links_and_files_exist(page: str) -> None:
    parts = yaml.safe_load((BOOK / "_toc.yml").read_text())["parts"]
    chapters = {c["file"] for part in parts for c in part["chapters"]} | {"index"}
    assert all(
        (BOOK / f"{c}.md").is_file() or (BOOK / f"{c}.ipynb").is_file() for c in chapters - WRITTEN
    )
    for target in re.findall(r"\]\(([^)\s]+)\)", BY_NAME[page]):
        if not target.startswith(("http", "#")):
            assert target in chapters or (ROOT / target).exists(), target
    named = r"`((?:cxrstudy|notebooks|book|data_cards|tests)/[\w/.-]+)`"
    made = {"data_cards/yours.md", "notebooks/presets/yours.yml", "notebooks/presets/cross.yml"}
    for path in set(re.findall(named, BY_NAME[page])) - made:
        if "NAME" not in path and "PRESET" not in path:
            assert (ROOT / path).exists(), path


def commands(page: str) -> list[list[str]]:
    """Every call of cxrstudy in a page's shell blocks, without variable parts."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    calls = [shlex.split(line, comments=True) for line in lines]
    return [call[1:] for call in calls if call and call[0].endswith("cxrstudy")]


def test_commands_have_options_that_exist() -> None:
    called = [call for page in BY_NAME if page.endswith(".md") for call in commands(page)]
    assert len(called) > 15
    for name, *words in called:
        command = cli.main.commands[name]
        known = {o for p in command.params for o in p.opts}
        assert {word for word in words if word.startswith("-")} <= known, (name, words)


def test_settings_of_the_pages_are_understood() -> None:
    for page in ("rerun.md", "exercises.md"):
        for name, *words in commands(page):
            pairs = tuple(words[k + 1] for k, word in enumerate(words) if word == "--set")
            if name == "run" and pairs:
                assert grid.plan("mini", cli._settings(pairs)), words


def test_parameters_of_notebooks_exist() -> None:
    for page in BY_NAME:
        calls = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
        for call in re.findall(r"papermill .*", calls):
            template = re.search(r"(notebooks|book)/\w+\.ipynb", call)
            assert template
            source = (ROOT / template[0]).read_text()
            for name in re.findall(r"-p (\w+)|-y '(\w+):", call):
                assert re.search(rf'"{"".join(name)}(: [^=]+)? = ', source), (call, name)


# ---- reading.md: from a number back ------------------------------------------------------------
def test_a_recorded_number_is_found_again_as_typed(monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    names: dict = {}
    for block in blocks("reading.md", "python"):
        exec(compile(block, "reading.md", "exec"), names)
    stored = names["stored"]
    assert names["auroc"] == pytest.approx(stored["value"], abs=1e-9)
    found = np.ravel(names["measures"].interval(names["draws"]))
    assert found == pytest.approx([stored["low"], stored["high"]], abs=1e-9)
    rows = sources.analysis("recorded:study-gpu")["contrasts"]
    row = rows.query(
        "kind == @verdicts.GAIN and task == 'findings' and metric == 'auroc' and one == 'clip' "
        "and n_images == 32000"
    ).squeeze()
    for key in ("effect", "low", "high", "p", "variance_sources"):
        assert getattr(names["gain"], key) == pytest.approx(row[key])
    assert "patients and seeds" in capsys.readouterr().out


def test_a_recorded_run_has_the_commands_that_repeat_it() -> None:
    named = [call for page in ("reading.md", "rerun.md") for call in commands(page)]
    named = [call[call.index("--how") + 1] for call in named if "--how" in call]
    assert len(named) == 2
    for name in named:
        lines = alone.commands(name)
        assert lines[-1].startswith("papermill notebooks/classify.ipynb")
        assert "notebooks/data.ipynb" in lines[1]


# ---- exercises.md ------------------------------------------------------------------------------
def test_growth_is_mostly_recovery_as_the_first_exercise_says() -> None:
    rows = sources.analysis("recorded:study-gpu")["contrasts"]
    rows = rows[
        (rows["task"] == "findings") & (rows["metric"] == "auroc") & (rows["one"] == "clip")
    ]
    growth = rows[rows["kind"] == verdicts.GROWTH].iloc[0]
    gain = rows[rows["kind"] == verdicts.GAIN].set_index("n_images")["effect"]
    control = rows[rows["kind"] == verdicts.OVER_SEEN].iloc[0]
    solution = " ".join(BY_NAME["exercises.md"].split("## 2.")[0].split())
    for value in (-gain.iloc[0], gain.iloc[-1], growth["effect"]):
        assert f"{value:.3f}" in solution
    assert -gain.iloc[0] / growth["effect"] == pytest.approx(0.75, abs=0.02)
    assert f"{control['effect']:+.3f}, {control['verdict']} to none" in solution


def test_the_law_of_the_last_exercise_is_refused() -> None:
    (block,) = blocks("exercises.md", "python")
    names: dict = {}
    with pytest.raises(ValueError, match="does not fall"):
        exec(block, names)
    fit = names["fit_scaling"]([200, 1000, 8000], [0.18, 0.15, 0.12], sigma=0.003, form="power")
    assert len(fit.exponent_interval()) == 2


# ---- method.md ---------------------------------------------------------------------------------
def rates(preset: str) -> tuple[set[str], set[str]]:
    """Peak learning rates of a preset's base models, and of its scaling curves."""
    asked = yaml.safe_load((ROOT / "notebooks" / "presets" / f"{preset}.yml").read_text())
    own = [values for values in asked["base"].values() if "base" not in values]
    base = {f"{values['lr']:g}" for values in own if "lr" in values}
    return base, {f"{curve['lr']:g}" for curve in asked.get("curves", []) if "lr" in curve}


def test_learning_rates_are_those_of_the_presets() -> None:
    rows = re.findall(r"^\| (`.*) \| (.*) \| (.*) \|$", BY_NAME["method.md"], re.MULTILINE)
    rows = [row for row in rows if re.fullmatch(r"[\d.]+", row[2])]
    shipped = rates("bases")[0]  # of the small base models that ship
    assert len(rows) == 3
    for names, base, continued in rows:
        for preset in re.findall(r"`([\w-]+)`", names):
            own, of_curves = rates(preset)
            assert of_curves == {continued}, preset
            assert base == "published weights" or (own or shipped) == {base}, preset


def test_recorded_studies_have_the_dino_term_alone_and_no_clip_with_labels() -> None:
    assert "**DINO term alone**" in BY_NAME["method.md"]
    whole = DinoConfig()
    assert (whole.ibot_weight, whole.koleo_weight, whole.local_crops) == (0, 0, 0)
    for source in (s for s in sources.every() if s.startswith("recorded:")):
        arms = set(sources.plan_table(source)[0]["paradigm"])
        assert "clip+labels" not in arms
        assert "dinov2" not in arms or text.names(source), source


def test_epochs_of_the_method_page_follow_from_the_preset() -> None:
    runs = [r.parameters for r in grid.plan("study-gpu") if r.stage == "pretrain"]
    clip = [p for p in runs if p["paradigm"] == "clip" and "study-1" in p["data"]]
    epochs = {p["n_images"]: p["samples_seen"] / p["n_images"] for p in clip}
    assert (epochs[250], epochs[32_000]) == (768, 6)


def test_margins_of_the_pages_are_those_of_the_analysis() -> None:
    assert (verdicts.MARGIN["auroc"], verdicts.MARGIN["dice"]) == (0.005, 0.01)
    for page in ("method.md", "glossary.md"):
        assert "±0.005 AUROC or ±0.01 Dice" in BY_NAME[page]
    for word in (verdicts.EQUIVALENT, verdicts.UNTOLD, verdicts.ONE_SEED, verdicts.UNTESTABLE):
        assert f"| {word} |" in BY_NAME["method.md"]


# ---- glossary.md, README.md, built.md ----------------------------------------------------------
def test_glossary_terms_are_in_order_and_defined_once() -> None:
    body = BY_NAME["glossary.md"].split(":sorted:")[1].split("```")[0]
    terms = re.findall(r"^(\S.*)$", body, re.MULTILINE)
    assert terms == sorted(set(terms), key=str.lower)


def test_every_preset_of_the_repository_is_in_the_readme() -> None:
    listed = re.search(r"## What runs\n(.*?)\n## ", BY_NAME["README.md"], re.DOTALL)
    assert listed
    tracked = set(grid.preset_names()) - {"yours"}
    rows = re.findall(r"^\| (`[^|]+)\|", listed[1], re.MULTILINE)
    assert tracked <= {n for row in rows for n in re.findall(r"`([\w-]+)`", row)}


def test_modules_of_the_map_exist() -> None:
    table = BY_NAME["built.md"].split("## Where things are")[1].split("## Where to add")[0]
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        for name in re.findall(r"`([\w.]+)`", row):
            path = ROOT / "cxrstudy" / name.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").is_file() or name == "cxrstudy", name


def test_help_of_every_command_works() -> None:
    for name in cli.main.commands:
        assert CliRunner().invoke(cli.main, [name, "--help"]).exit_code == 0


def test_the_recorded_tables_that_pages_name_exist() -> None:
    for name in ("metrics.parquet", "runs.csv", "analysis/contrasts.parquet"):
        path = BOOK / "recorded" / "study-gpu" / name
        assert path.is_file()
    assert len(pd.read_csv(BOOK / "recorded" / "study-gpu" / "runs.csv"))
    assert Path(BOOK / "built.md").is_file()


def test_cells_of_a_written_table_name_their_column_on_a_phone() -> None:
    sys.path.insert(0, str(BOOK / "_ext"))
    import cxrbook

    found = re.match(
        "<table.*",
        '<table tabindex="0" class="words table"><thead><tr><td></td><th>a</th><th>b</th></tr>'
        "</thead><tbody><tr><td>x</td><td>1</td><td>2</td></tr></tbody></table>",
    )
    labelled = cxrbook.label_cells(found)
    assert '<td data-label="b" role="cell">2</td>' in labelled
    assert '<td role="cell">x</td>' in labelled


# ---- the package ---------------------------------------------------------------------------------
@pytest.mark.parametrize("path", sorted((ROOT / "cxrstudy").rglob("*.py")), ids=str)
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 80, node.name
