import json
from pathlib import Path

import nbformat
import pytest

from cxrstudy import book, pages
from cxrstudy.pages import Page, PageError


def told() -> dict[str, str]:
    """Each page's name and the hash of what it tells of."""
    rows = book._told(book.presets_run(), book.sources())
    return {page: book._digest(*files) for _, page, _, files in rows}


def test_a_new_run_has_only_pages_that_tell_of_it_executed_again(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path))
    for preset in ("mini", "smoke"):
        (tmp_path / preset).mkdir()
        (tmp_path / preset / "plan.json").write_text(
            json.dumps({"preset": preset, "variant": "", "runs": []})
        )

    def changed(stage: str) -> set[str]:
        before = told()
        run = tmp_path / "smoke" / stage / "run-000000"
        run.mkdir(parents=True)
        (run / "record.json").write_text("{}")
        return {page for page, inputs in told().items() if inputs != before[page]}

    every = {*book.CHAPTERS, "flips", "results-smoke"}
    assert changed("classify") == every
    assert changed("data") == every | {"data", "gallery"}


def template(folder: Path, name: str, source: str) -> Path:
    path = folder / f"{name}.ipynb"
    cells = [nbformat.v4.new_code_cell("word = 'none'"), nbformat.v4.new_code_cell(source)]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), str(path))
    return path


def test_pages_share_a_kernel_but_no_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pages, "KERNELS", 1)
    first = template(tmp_path, "first", "import os; left = os.getpid(); print(word, left)")
    second = template(
        tmp_path, "second", "import os; print(word, os.getpid(), 'left' in globals())"
    )
    made = [
        Page(path, tmp_path / "out" / path.name, {"word": path.stem}, "")
        for path in (first, second)
    ]
    pages.execute(made)
    one, other = (nbformat.read(page.target, as_version=4).cells[-1] for page in made)
    assert one.outputs[0].text.split()[0] == "first"
    assert other.outputs[0].text.split() == ["second", one.outputs[0].text.split()[1], "False"]
    assert one.execution_count == other.execution_count
    assert all(page.stands() for page in made)
    assert not Page(first, made[0].target, {"word": "another"}, "").stands()
    assert not Page(first, made[0].target, {"word": "first"}, "changed").stands()


def test_a_failing_page_is_named_with_its_error(tmp_path: Path) -> None:
    wrong = template(tmp_path, "wrong", "1 / 0")
    with pytest.raises(
        PageError, match=r"wrong\.ipynb: ZeroDivisionError: division by zero \(see "
    ):
        pages.execute([Page(wrong, tmp_path / "out" / "wrong.ipynb", {}, "")])
