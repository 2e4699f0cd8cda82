"""A preset for own x-rays fits its card: it loads, passes preflight and explains every line."""

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from conftest import ROOT, Walk
from hospitals import hospital
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy import grid, new, preflight, study

REAL = ROOT.parent / "shared" / "data"


def written(walk: Walk, root: Path, name: str = "own") -> dict:
    return yaml.safe_load(write("own", root, name, force=True).read_text(encoding="utf-8"))


def write(card: str, root: Path, name: str = "", force: bool = False) -> Path:
    text, _, path = new.draft(card, str(root), name, force=force)
    path.write_text(text, encoding="utf-8")
    return path


def check(name: str, root: Path) -> list[preflight.Problem]:
    return preflight.check(grid.load_preset(name), str(root))


def unused(root: Path) -> list[preflight.Problem]:
    return [problem for problem in check("own", root) if "does not use" in problem.message]


@pytest.mark.parametrize(("n", "folds"), [(24, 5), (200, 5), (1499, 5), (1500, 0), (4000, 0)])
@pytest.mark.parametrize("reports", [True, False])
@pytest.mark.parametrize("labels", [True, False])
def test_it_asks_for_what_the_card_holds_and_passes_preflight(
    walk: Walk, n: int, folds: int, reports: bool, labels: bool
) -> None:
    root = hospital(walk, n, reports=reports, labels=labels, masks=n == 4000)
    made = written(walk, root)
    found = check("own", root)
    assert [str(problem) for problem in found if problem.level == "error"] == []
    enough = labels
    folds = (
        0 if reports and not labels else folds
    )  # nothing to probe: reports are written, which needs fixed splits
    paradigms = {curve["paradigm"] for curve in made["curves"]}

    assert ("clip" in paradigms, "unicl" in paradigms, "dinov2" in paradigms) == (
        reports,
        enough,
        True,
    )
    assert ({"shuffled", "supervised:hybrid_mini"} <= set(made["baselines"])) == enough
    assert ("segment" in made, "report" in made) == (n == 4000, reports and not folds)
    assert made.get("folds", 0) == folds
    assert "synthetic" not in made["title"]
    assert made["title"] == "One hospital's x-rays: a # test"
    assert made["needs_root"] is True
    assert made["data"]["own"]["n_images"] == 0
    if enough:
        assert made["classify"]["labels"] == ["covid"]  # of `picc` there are two
        assert not [problem for problem in found if problem.level == "warning"]
    for curve in made["curves"]:
        assert curve["n_images"] == sorted(set(curve["n_images"]))
        assert len(curve["n_images"]) == 3
        assert curve["batch_size"] <= curve["n_images"][0]
        assert curve["samples_seen"] >= curve["n_images"][-1]
        assert curve["samples_seen"] % curve["batch_size"] == 0


def test_every_line_is_block_yaml_and_explained(walk: Walk) -> None:
    root = hospital(walk, 4000, masks=True)
    path = write("own", root, "explained")
    for line in path.read_text(encoding="utf-8").splitlines():
        assert re.search(r"(^|  )# +\S.{3,}", line), line
        assert not re.match(r"\s*[\w-]+: *[{\[]", line), line
    with path.open("a", encoding="utf-8") as file:
        file.write("variants:\n  seed=1:\n    curves.seed: 1\n")  # keys may be appended
    assert grid.load_preset("explained").variants


@settings(max_examples=30, deadline=None)
@given(pool=st.integers(10, 10**6))
def test_sizes_are_nested_and_leave_some_for_files_that_cannot_be_read(pool: int) -> None:
    class Fixed(new.Sized):
        def pool(self, paradigm: str) -> int:
            return pool

    sized = Fixed(None, None, 5)  # type: ignore[arg-type]
    sizes = sized.sizes("clip")
    assert sizes == sorted(set(sizes))
    assert sizes[0] >= 2 and 0.8 * pool < sizes[-1] * 1.1 and sizes[-1] <= pool
    assert 2 <= sized.batch("clip") <= sizes[0]
    assert sized.seen("clip") >= sizes[-1]


def test_it_writes_over_nothing_without_force(walk: Walk) -> None:
    root = hospital(walk, 200)
    path = write("own", root)
    before = path.read_text() + "# mine\n"
    path.write_text(before)
    with pytest.raises(study.StudyError, match="--force"):
        new.draft("own", str(root))
    assert path.read_text() == before
    with pytest.raises(study.StudyError, match="--force"):
        new.draft("own", str(root), "mini")
    write("own", root, force=True)
    assert path.read_text() != before


@pytest.mark.parametrize(
    ("card", "name", "said"),
    [
        ("nosuch", "x", "no data card 'nosuch'"),
        ("synthetic", "x", "mini"),
        ("own", "a/b", "--name"),
        ("own", "..", "--name"),
    ],
)
def test_it_refuses_what_it_cannot_size(walk: Walk, card: str, name: str, said: str) -> None:
    root = hospital(walk, 200)
    with pytest.raises(study.StudyError, match=re.escape(said)):
        new.draft(card, str(root), name)
    assert not list((walk.root / "notebooks" / "presets").glob("x.yml"))


def test_it_refuses_a_card_that_does_not_load_with_its_message_and_line(walk: Walk) -> None:
    root = hospital(walk, 200)
    card = walk.root / "data_cards" / "own.md"
    card.write_text(card.read_text().replace("image_id: image", "image_id: picture"))
    with pytest.raises(study.StudyError, match=r"own\.md:.*picture"):
        new.draft("own", str(root))
    with pytest.raises(study.StudyError, match="--data-root"):
        new.draft("own", "")
    hospital(walk, 8)
    with pytest.raises(study.StudyError, match="too few"):
        new.draft("own", str(root))


def test_the_command_line_says_what_to_type_next(walk: Walk) -> None:
    root = hospital(walk, 60)
    done = walk.call("new", "--card", "own", "--data-root", str(root), "--name", "first")
    assert done.returncode == 0, done.stderr
    assert "cxrstudy run --preset first -n --data-root" in done.stdout
    shown = walk.call("run", "--preset", "first", "-n", "--data-root", str(root))
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"(\d+) of \1 runs to do", shown.stdout)
    alone = walk.call("run", "--preset", "first", "-n", "--only", "data", "--data-root", str(root))
    assert "1 of 1 runs to do" in alone.stdout
    again = walk.call("new", "--card", "own", "--data-root", str(root), "--name", "first")
    assert again.returncode == 2
    assert "--force" in again.stderr


@pytest.mark.skipif(
    not (REAL / "covid_notes").is_dir(),
    reason="../shared/data is absent: the real sample is not here",
)
@pytest.mark.parametrize(
    ("card", "folder"), [("covid_notes", "covid_notes"), ("nih_chestxray14", "nih_subset")]
)
def test_real_samples_get_a_preset_that_passes_preflight(
    walk: Walk, card: str, folder: str
) -> None:
    path = write(card, REAL / folder, "real")
    found = check("real", REAL / folder)
    assert [str(problem) for problem in found if problem.level == "error"] == []
    made = yaml.safe_load(path.read_text())
    assert made["folds"] == 5
    assert {curve["paradigm"] for curve in made["curves"]} == {"unicl", "dinov2"} | (
        {"clip"} if card == "covid_notes" else set()
    )


def test_what_could_not_be_run_is_not_written(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    root = hospital(walk, 200)
    from cxrstudy import cli
    from cxrstudy.preflight import steps

    path = walk.root / "notebooks" / "presets" / "own.yml"
    monkeypatch.setattr(steps, "free_gb", lambda: 0.0)
    done = CliRunner().invoke(cli.main, ["new", "--card", "own", "--data-root", str(root)])
    assert done.exit_code == 2
    assert "no preset was written" in done.output and "disk are free" in done.output
    assert not path.exists()
    path.write_text("title: mine\n")
    done = CliRunner().invoke(
        cli.main, ["new", "--card", "own", "--data-root", str(root), "--force"]
    )
    assert done.exit_code == 2
    assert path.read_text() == "title: mine\n"


@pytest.mark.parametrize("what", [["labels"], ["reports"], ["reports", "labels"]])
def test_what_the_card_has_come_to_have_is_told(walk: Walk, what: list[str]) -> None:
    root = hospital(walk, 200, reports="reports" not in what, labels="labels" not in what)
    path = write("own", root)
    assert not unused(root)
    hospital(walk, 200)
    (told,) = unused(root)
    assert told.level == "warning"
    assert f"card own has {' and '.join(what)} that this preset does not use" in told.message
    assert "cxrstudy new --card own --name own --force" in told.message
    path.write_text(path.read_text().partition("\n")[2])
    assert not unused(root)
