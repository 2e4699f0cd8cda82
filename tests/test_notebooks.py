import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

from cxrstudy import study, templates

TEMPLATES = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMMITTED = [*TEMPLATES, *sorted((ROOT / "book").glob("*.ipynb"))]


def test_there_is_a_template_for_every_stage() -> None:
    assert {path.stem for path in TEMPLATES} == set(study.STAGES)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_without_outputs(path: Path) -> None:
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("stage", study.STAGES)
def test_parameters_cells_are_those_of_the_models(stage: str) -> None:
    """If this fails: make templates."""
    text = (ROOT / "notebooks" / f"{stage}.ipynb").read_text(encoding="utf-8")
    assert text == templates.with_parameters(text, stage)


@pytest.mark.parametrize("stage", study.STAGES)
def test_a_parameters_cell_gives_defaults_types_and_explanations(stage: str) -> None:
    source, model = templates.parameters_cell(stage), study.STAGES[stage]
    body = ast.parse(source).body
    given = {
        node.target.id: ast.literal_eval(node.value)
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value
    }
    assert len(given) == len(body)  # --help-notebook shows the types
    assert given == {name: getattr(model(), name) for name in model.model_fields}
    comments = " ".join(re.findall(r"# (.*)", source))
    assert source.startswith("# Parameters\n")
    for name, field in model.model_fields.items():
        assert field.description and field.description in comments, name
    assert all(len(line) <= templates.WIDTH for line in source.splitlines())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["-p", "n_imagess", "5"], "n_imagess"),
        (["-p", "lr", "high"], "lr"),
        (["-p", "n_images", "5000"], "samples_seen"),
    ],
)
def test_papermill_with_a_wrong_parameter_stops_before_anything_runs(
    tmp_path: Path, values: list[str], said: str
) -> None:
    out = tmp_path / "out.ipynb"
    template = str(ROOT / "notebooks" / "pretrain.ipynb")
    command = [sys.executable, "-m", "papermill", template, str(out), *values]
    command += ["-p", "out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "StudyError" in done.stderr
    assert said in done.stderr
    assert not (tmp_path / "run").exists()
