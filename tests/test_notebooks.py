import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

from cxrstudy import study

TEMPLATES = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMMITTED = [*TEMPLATES, *sorted((ROOT / "book").glob("*.ipynb"))]


def parameters_cell(path: Path) -> str:
    cells = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1, f"{path} needs exactly one cell tagged parameters"
    return cells[0].source


def test_there_is_a_template_for_every_stage() -> None:
    assert {path.stem for path in TEMPLATES} == set(study.STAGES)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_without_outputs(path: Path) -> None:
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_parameters_are_the_models_with_the_same_defaults_and_each_is_explained(path: Path) -> None:
    source = parameters_cell(path)
    assert source.startswith("# Parameters")
    body = ast.parse(source).body
    given = {
        node.target.id: ast.literal_eval(node.value)
        for node in body
        if isinstance(node, ast.AnnAssign)
    }
    assert len(given) == len(body), (
        f"{path.name}: --help-notebook shows the types that parameters are given"
    )
    model = study.STAGES[path.stem]
    assert given == model().model_dump()
    for line in source.splitlines()[1:]:
        assert "  # " in line, f"{path.name}: {line!r} has no explanation"


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
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "notebooks" / "pretrain.ipynb"),
        str(out),
        *values,
    ]
    done = subprocess.run(
        [*command, "-p", "out", str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "StudyError" in done.stderr
    assert said in done.stderr
    assert not (tmp_path / "run").exists()
