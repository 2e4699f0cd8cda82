"""What a page of the book computed once is used again only where nothing that it rests on differs."""

import os
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from cxrstudy import memo, pages, study


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(memo.PLACE, str(tmp_path / "memo"))
    return tmp_path / "memo"


def counted() -> tuple[list[str], object]:
    """A function that is remembered, and what it was called for."""
    calls = []

    @memo.remembered
    def total(table: pd.DataFrame, more: float = 0.0) -> pd.DataFrame:
        calls.append("")
        return table.assign(total=table["value"].sum() + more)

    return calls, total


def a_table(folder: Path, value: float = 1.0) -> pd.DataFrame:
    return pd.DataFrame(
        {"run": ["a", "b"], "value": [value, 2.0], "folder": [str(folder), str(folder)]}
    )


def test_a_result_is_used_again_where_arguments_scores_and_code_are_equal(
    place, tmp_path, monkeypatch
) -> None:
    calls, total = counted()
    (tmp_path / "scores.parquet").write_bytes(b"1")
    first, again = total(a_table(tmp_path)), total(a_table(tmp_path).copy())
    pd.testing.assert_frame_equal(first, again)
    assert len(calls) == 1
    total(a_table(tmp_path, value=1.5))
    total(a_table(tmp_path), 1.0)
    total(a_table(tmp_path).rename(columns={"run": "name"}))
    total(a_table(tmp_path).astype({"value": "float32"}))
    assert len(calls) == 5
    (tmp_path / "scores.parquet").write_bytes(b"2")
    for table in ({"table": a_table(tmp_path)}, {"table": a_table(tmp_path)}):
        total(**table)
    assert len(calls) == 6
    for kept in place.iterdir():
        kept.write_bytes(b"")  # as a full disk leaves one
    assert len(total(table=a_table(tmp_path))) == 2
    assert len(calls) == 7
    monkeypatch.setattr(memo, "_code", lambda: "other")
    total(a_table(tmp_path))
    assert len(calls) == 8
    monkeypatch.delenv(memo.PLACE)
    total(a_table(tmp_path))
    assert len(calls) == 9
    assert len(list(place.iterdir())) == 7  # and no scratch file


def test_what_was_not_asked_for_the_longest_is_forgotten(place, tmp_path) -> None:
    calls, total = counted()
    for value in (1.0, 2.0, 3.0):
        total(a_table(tmp_path, value))
    for age, path in enumerate(sorted(place.iterdir(), key=lambda path: path.stat().st_mtime_ns)):
        os.utime(path, (1000.0 + age, 1000.0 + age))
    total(a_table(tmp_path, 1.0))
    memo.forget(place, 2)
    for value in (1.0, 3.0):
        total(a_table(tmp_path, value))
    assert len(calls) == 3
    total(a_table(tmp_path, 2.0))
    assert len(calls) == 4


def test_pages_are_the_same_with_and_without_what_was_computed_before(
    tmp_path, monkeypatch
) -> None:
    def made(name: str) -> list[object]:
        values = {"presets": ["recorded:nih-small"]}
        told = [
            pages.Page(
                study.root() / "book" / f"{page}.ipynb",
                tmp_path / name / f"{page}.ipynb",
                values,
                "",
            )
            for page in ("claims", "findings")
        ]
        pages.execute(told)
        cells = [nbformat.read(page.target, as_version=4).cells for page in told]
        return [cell.get("outputs", cell.source) for page in cells for cell in page]

    first = made("first")
    stored = {path.name for path in (tmp_path / "memo").iterdir()}
    assert len(stored) > 5
    assert made("again") == first
    assert {path.name for path in (tmp_path / "memo").iterdir()} == stored
    monkeypatch.setattr(memo, "PLACE", "NOT_READ")
    assert made("without") == first
