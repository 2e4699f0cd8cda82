"""Runs on real data are named by the content of the data; a data root is required and used."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, Walk, clone
from PIL import Image

from cxrstudy import grid, presetdata
from cxrstudy.study import StudyError

CARD = """---
name: mine
title: A test's own
kind: real
licence: none
access: made by a test
citation: none
table:
  path: table.csv
  image_id: image
  patient_id: patient
  study_id: [image]
images: ["images/*.png"]
labels:
  encoding: columns
  names: {edema: Edema}
  values: {"1": 1, "0": 0}
  missing: unknown
---
"""
PRESET = {
    "title": "A test's own",
    "minutes": 1,
    "hardware": "any",
    "data": {"mine": {"card": "mine", "size": 32, "fractions": {"train": 0.5, "test": 0.5}}},
}


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    """A clone with a card and a preset of one real data set, which lies in ``data`` beside it."""
    walk = clone(tmp_path / "clone")
    (walk.root / "data_cards" / "mine.md").write_text(CARD)
    write(walk, PRESET)
    write_data(tmp_path / "data")
    monkeypatch.setenv("CXRSTUDY_ROOT", str(walk.root))
    monkeypatch.setenv("CXRSTUDY_RUNS", str(walk.runs))
    return walk


def write(walk: Walk, preset: dict) -> None:
    (walk.root / "notebooks" / "presets" / "own.yml").write_text(yaml.safe_dump(preset))


def write_data(place: Path, n: int = 24) -> None:
    (place / "images").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (n, 40, 40)).astype(np.uint8)
    for k in range(n):
        Image.fromarray(pixels[k]).save(place / "images" / f"{k}.png")
    rows = {
        "image": [f"{k}.png" for k in range(n)],
        "patient": [f"p{k}" for k in range(n)],
        "Edema": [0, 1] * (n // 2),
    }
    pd.DataFrame(rows).to_csv(place / "table.csv", index=False)


def name(place: Path | str, **changed: object) -> str:
    """What the data run on the data in ``place`` is called."""
    (run,) = grid.plan(
        "own", {f"data.{key}": value for key, value in changed.items()}, str(place), must_read=True
    )
    assert run.parameters["root"] == str(place)
    return run.name


def test_the_same_data_anywhere_have_the_same_name_and_other_data_another(
    walk: Walk, tmp_path: Path
) -> None:
    first = tmp_path / "data"
    before = name(first)
    (tmp_path / "link").symlink_to(first)
    shutil.copytree(first, tmp_path / "other disk" / "deep" / "data")
    assert name(tmp_path / "link") == name(tmp_path / "other disk" / "deep" / "data") == before
    for k, change in enumerate([a_label, a_row, a_row_less, an_image, an_id]):
        place = tmp_path / f"changed{k}"
        shutil.copytree(first, place)
        change(place)
        assert name(place) != before, change.__name__
    assert name(first, n_images=12) != before
    assert name(first, seed=1) != before
    card = walk.root / "data_cards" / "mine.md"
    card.write_text(card.read_text().replace("missing: unknown", "missing: absent"))
    assert name(first) != before


def table(place: Path) -> pd.DataFrame:
    return pd.read_csv(place / "table.csv")


def a_label(place: Path) -> None:
    table(place).assign(Edema=[1, *table(place)["Edema"][1:]]).to_csv(
        place / "table.csv", index=False
    )


def a_row(place: Path) -> None:
    shutil.copy(place / "images" / "0.png", place / "images" / "99.png")
    more = pd.DataFrame({"image": ["99.png"], "patient": ["p99"], "Edema": [0]})
    pd.concat([table(place), more]).to_csv(place / "table.csv", index=False)


def a_row_less(place: Path) -> None:
    table(place)[:-1].to_csv(place / "table.csv", index=False)


def an_image(place: Path) -> None:
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(place / "images" / "3.png")


def an_id(place: Path) -> None:
    table(place).assign(patient=["p1", *table(place)["patient"][1:]]).to_csv(
        place / "table.csv", index=False
    )


def test_a_card_by_its_path_gives_the_same_name_wherever_it_lies(
    walk: Walk, tmp_path: Path
) -> None:
    before = name(tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(walk.root / "data_cards" / "mine.md", tmp_path / "elsewhere" / "mine.md")
    write(
        walk,
        PRESET
        | {
            "data": {
                "mine": PRESET["data"]["mine"] | {"card": str(tmp_path / "elsewhere" / "mine.md")}
            }
        },
    )
    assert name(tmp_path / "data") == before


def test_moved_data_leave_nothing_to_do_and_changed_data_are_prepared_again(
    walk: Walk, tmp_path: Path
) -> None:
    done = walk.call("run", "--preset", "own", "--data-root", str(tmp_path / "data"), "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "link").symlink_to(tmp_path / "data")
    linked = walk.call("run", "--preset", "own", "-n", "--data-root", str(tmp_path / "link"))
    assert "0 of 1 runs to do" in linked.stdout, linked.stdout + linked.stderr
    (tmp_path / "disk").mkdir()
    shutil.move(tmp_path / "data", tmp_path / "disk" / "moved")
    moved = walk.call("run", "--preset", "own", "--data-root", str(tmp_path / "disk" / "moved"))
    assert "nothing to do" in moved.stdout, moved.stdout + moved.stderr
    (
        walk.root / "data_cards" / "mine.md"
    ).touch()  # as a fresh checkout does; what it says is the same
    touched = walk.call(
        "run", "--preset", "own", "-n", "--data-root", str(tmp_path / "disk" / "moved")
    )
    assert "0 of 1 runs to do" in touched.stdout, touched.stdout + touched.stderr
    noted = next(walk.runs.glob("own/data/*/root.txt")).read_text()
    assert noted.strip() == str(tmp_path / "disk" / "moved")
    a_row(tmp_path / "disk" / "moved")
    changed = walk.call(
        "run", "--preset", "own", "-n", "--data-root", str(tmp_path / "disk" / "moved")
    )
    assert "1 of 1 runs to do" in changed.stdout


def test_a_card_of_files_asks_for_their_folder_though_the_preset_does_not(
    walk: Walk, tmp_path: Path
) -> None:
    assert grid.load_preset("own").needs_root
    with pytest.raises(StudyError, match="--data-root"):
        grid.plan("own")
    asked = walk.call("run", "--preset", "own", "-n")
    assert asked.returncode == 2
    assert "DATA_ROOT" in asked.stderr
    given = walk.call("run", "--preset", "own", "-n", DATA_ROOT=str(tmp_path / "data"))
    assert given.returncode == 0, given.stderr
    assert "1 of 1 runs to do" in given.stdout


def test_an_export_of_the_synthetic_institution_is_read_from_files_too(walk: Walk) -> None:
    assert presetdata.reads_files("synthetic_dicom")
    assert not presetdata.reads_files("synthetic")
    write(walk, PRESET | {"data": {"mine": {"card": "synthetic_dicom", "size": 32}}})
    assert grid.load_preset("own").needs_root
    (run,) = grid.plan("own", {}, "/export")
    assert (run.parameters["root"], run.parameters["n_images"]) == ("/export", 0)


def test_without_a_number_all_images_of_real_data_are_asked_for(walk: Walk, tmp_path: Path) -> None:
    (run,) = grid.plan("own", {}, str(tmp_path / "data"))
    assert run.parameters["n_images"] == 0
    (run,) = grid.plan("own", {"data.n_images": 12}, str(tmp_path / "data"))
    assert run.parameters["n_images"] == 12


def test_a_folder_that_the_preset_names_itself_is_used(walk: Walk, tmp_path: Path) -> None:
    before = name(tmp_path / "data")
    write(
        walk, PRESET | {"data": {"mine": PRESET["data"]["mine"] | {"root": str(tmp_path / "data")}}}
    )
    assert not grid.load_preset("own").needs_root
    (run,) = grid.plan("own")
    assert run.name == before


@pytest.mark.parametrize("folder", ["nowhere", "clone"])
def test_data_that_cannot_be_read_are_refused_by_name_before_anything_is_run(
    walk: Walk, tmp_path: Path, folder: str
) -> None:
    with pytest.raises(StudyError, match=re.escape(folder) + "|table.csv"):
        name(tmp_path / folder)
    wrong = walk.call("run", "--preset", "own", "--data-root", str(tmp_path / folder))
    assert wrong.returncode == 2
    assert not walk.runs.exists() or not list(walk.runs.rglob("notebook.ipynb"))
    assert grid.plan("own", {}, str(tmp_path / folder))  # looked at, it need not be here


def test_a_card_that_is_not_there_is_refused_with_the_entry(walk: Walk) -> None:
    write(walk, PRESET | {"data": {"mine": {"card": "yours"}}})
    with pytest.raises(StudyError, match=r"data mine: no data card 'yours'"):
        grid.plan("own", {}, "/data")


def test_a_data_root_that_nothing_reads_is_refused_when_given_and_noted_when_it_was_there(
    walk: Walk,
) -> None:
    given = walk.call("run", "--preset", "smoke", "-n", "--data-root", "/data")
    assert given.returncode == 2
    assert "--data-root /data" in given.stderr
    around = walk.call("run", "--preset", "smoke", "-n", DATA_ROOT="/data")
    assert around.returncode == 0
    assert "DATA_ROOT" in around.stdout + around.stderr


@pytest.mark.parametrize("name_", ["nih", "site", "paper"])
def test_shipped_presets_of_real_data_plan_for_data_that_lie_elsewhere(
    name_: str, monkeypatch
) -> None:
    monkeypatch.setenv("CXRSTUDY_ROOT", str(ROOT))
    runs = grid.plan(name_, {}, "/some/data")
    assert {run.parameters["root"] for run in runs if run.stage == "data"} == {"/some/data"}
    assert json.dumps([run.parameters for run in runs])
