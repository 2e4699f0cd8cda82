"""From an archive as a PACS gives it to card, preset and counts, and once more as it grows."""

import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
from click.testing import CliRunner
from conftest import Walk, clone
from PIL import Image

from cxrstudy import cli, grid, preflight, quality_page, study
from cxrstudy.data.cards import load_manifest, read_card
from cxrstudy.data.pacs import export_as_pacs
from cxrstudy.data.sets import prepare_data
from cxrstudy.ingest import card, check, pixels, write
from cxrstudy.study import StudyError

N = 90


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pacs") / "export"
    return export_as_pacs(place, n=N, size=96, plant=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Any:
    """A clone with one ingest of the archive and its tables: (clone, folder, what was said)."""
    place = tmp_path_factory.mktemp("hospital")
    with pytest.MonkeyPatch.context() as patch:
        walk = clone(place / "clone")
        patch.setenv("CXRSTUDY_ROOT", str(walk.root))
        patch.setenv("HOME", str(place / "home"))
        said: list[str] = []
        tables = [str(path) for path in sorted((archive / "tables").iterdir())]
        folder = write.ingest([str(archive / "archive")], "own", tables=tables, say=said.append)
        card.write_preset("own", folder, said.append)
        yield walk, folder, said


@pytest.fixture
def copy(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Walk, Path]:
    """A copy of that clone, whose ingest may be repeated."""
    walk, folder, _ = made
    shutil.copytree(walk.root, tmp_path / "clone", symlinks=True)
    monkeypatch.setenv("CXRSTUDY_ROOT", str(tmp_path / "clone"))
    monkeypatch.setenv("HOME", str(walk.root.parent / "home"))
    new = Walk(tmp_path / "clone", tmp_path / "runs")
    return new, new.root / folder.relative_to(walk.root)


def again(archive: Path, **how: Any) -> list[str]:
    said: list[str] = []
    write.ingest([str(archive / "archive")], "own", say=said.append, **how)
    return said


def rows(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "images.parquet").set_index("image_id")


def test_the_card_is_read_and_each_guess_bears_its_evidence(made: Any, archive: Path) -> None:
    walk, folder, _ = made
    manifest = load_manifest("own", root=folder)
    assert len(manifest) > N / 2
    assert manifest["patient_id"].str.fullmatch("[0-9a-f]{16}").all()
    assert manifest["label:pleural_effusion"].notna().any()
    assert manifest["report"].str.contains("FINDINGS").sum() > N / 3
    text = (walk.root / "data_cards" / "own.md").read_text(encoding="utf-8")
    front = text.split("---")[1]
    guessed = re.findall(
        r"^  (?:image_id|patient_id|study_id|view|age|sex|report|\w+_spacing):.*$",
        front,
        re.MULTILINE,
    )
    assert len(guessed) == 8
    for line in guessed:
        assert re.search(r"  # \w.{8,}", line), line
    assert re.search(r"^  view: view  # ViewPosition \d+%.*unknown \d+%", front, re.MULTILINE)
    assert re.search(r"two headers differ in \d+ images", front)
    assert read_card("own").show_images is False
    truth = pd.read_csv(archive / "tables" / "demographics.csv", dtype=str, encoding="utf-8-sig")
    column = "Endotracheal Tube position"
    both = set(truth[column].dropna()) >= {"correct", "malpositioned"}
    assert both == ("malposition:endotracheal_tube" in manifest)


def test_its_preset_loads_without_a_data_root_and_passes_the_checks(made: Any) -> None:
    preset = grid.load_preset("own")
    assert not preset.needs_root
    found = preflight.check(preset, "")
    assert [str(problem) for problem in found if problem.level == "error"] == []
    assert grid.plan("own")


def test_counts_of_the_flow_add_up_and_are_true(made: Any, archive: Path) -> None:
    _, folder, _ = made
    quality = json.loads((folder / "quality.json").read_text())
    files = sum(1 for path in (archive / "archive").rglob("*") if path.is_file())
    assert quality["flow"][0]["left"] == files
    left = files
    for step in quality["flow"]:
        left -= sum(step["dropped"].values())
        assert step["left"] == left
    assert left == quality["images"] == len(rows(folder))
    dropped = pd.read_csv(folder / "dropped.csv")
    assert dropped["files"].sum() == files - left
    truth = pd.read_csv(archive / "truth" / "files.csv", dtype=str, keep_default_na=False)
    kinds = truth.set_index(truth.columns[0])["kind"]
    kept = [os.readlink(folder / path) for path in rows(folder)["path"]]
    kept_kinds = {kinds[os.path.relpath(path, archive / "archive")] for path in kept}
    assert not kept_kinds & {"sr", "pr", "pdf", "hand", "empty", "truncated", "foreign", "dicomdir"}


def test_no_planted_identifier_is_in_what_it_leaves(made: Any, archive: Path) -> None:
    walk, folder, _ = made
    planted = json.loads((archive / "truth" / "planted.json").read_text())
    values = {each["value"] for each in planted if len(each["value"]) > 4}
    assert len(values) > 100
    files = [walk.root / "data_cards" / "own.md", walk.root / "notebooks" / "presets" / "own.yml"]
    files += [p for p in folder.iterdir() if p.is_file() and p.suffix != ".parquet"]
    texts = [path.read_text(encoding="utf-8") for path in files] + [rows(folder).to_csv()]
    found = {value for value in values for text in texts if value in text}
    assert found == set()
    names = [path.name for path in folder.rglob("images/*/*")]
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name in names)


def test_the_private_part_is_closed_and_the_key_lies_elsewhere(made: Any) -> None:
    walk, folder, _ = made
    assert stat.S_IMODE((folder / "private").stat().st_mode) == 0o700
    key = walk.root.parent / "home" / ".config" / "cxrstudy" / "own.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_grown_archive_adds_rows_and_changes_none(
    copy: tuple[Walk, Path], archive: Path, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    shutil.copytree(archive, part)
    files = sorted(path for path in (part / "archive").rglob("*") if path.is_file())
    for path in files[::3]:
        path.rename(tmp_path / f"aside{files.index(path)}")
    tables = [str(path) for path in sorted((part / "tables").iterdir())]
    said: list[str] = []
    key = str(tmp_path / "k.key")
    how = {"tables": tables, "key": key, "say": said.append}
    folder = write.ingest([str(part / "archive")], "grown", **how)
    before = rows(folder)
    for path in files[::3]:
        (tmp_path / f"aside{files.index(path)}").rename(path)
    write.ingest([str(part / "archive")], "grown", key=key, say=said.append)  # tables are known
    after = rows(folder)
    pd.testing.assert_frame_equal(after.iloc[: len(before)], before)
    new = after.iloc[len(before) :]
    assert len(new) > 10 and new["report"].notna().any()
    both = set(new["patient_id"]) & set(before["patient_id"])
    assert both  # patients who were there have the ids that they had
    counts = json.loads((folder / "quality.json").read_text())["new"]
    assert counts["images"] == len(new)
    assert counts["patients"] == new["patient_id"].nunique() - len(both)
    assert any(f"{len(new)} images and" in line for line in said)
    assert len(load_manifest("grown", root=folder)) == len(after)


def test_what_was_seen_is_not_looked_at_again(
    copy: tuple[Walk, Path], archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(path: str) -> dict:
        raise AssertionError(path)

    monkeypatch.setattr(pixels, "_look_at", never)
    before = rows(copy[1])
    again(archive)
    pd.testing.assert_frame_equal(rows(copy[1]), before)


def test_an_interrupted_look_goes_on(
    copy: tuple[Walk, Path], archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = copy[1] / "private" / "pixels"
    parts = sorted(store.iterdir())
    parts[0].unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:100])  # a full disk
    looked: list[str] = []
    look = pixels._look_at
    monkeypatch.setattr(pixels, "_look_at", lambda path: looked.append(path) or look(path))
    before = rows(copy[1])
    again(archive)
    assert 0 < len(looked) <= 2 * pixels.BATCH
    pd.testing.assert_frame_equal(rows(copy[1]), before)


def test_an_edited_card_and_preset_are_kept(copy: tuple[Walk, Path], archive: Path) -> None:
    walk, folder = copy
    path = walk.root / "data_cards" / "own.md"
    edited = path.read_text().replace("licence: your own", "licence: of the hospital,")
    path.write_text(edited)
    said = again(archive)
    assert path.read_text() == edited
    assert (folder / "own.new.md").is_file()  # beside the card it would be one
    assert any("own.md was edited and is kept" in line for line in said)
    preset = walk.root / "notebooks" / "presets" / "own.yml"
    preset.write_text(preset.read_text().replace("title: own", "title: mine"))
    assert card.write_preset("own", folder, said.append) == preset
    assert "title: mine" in preset.read_text()
    assert (folder / "own.new.yml").is_file()
    assert grid.preset_names().count("own.new") == 0


@pytest.mark.parametrize("inside", [True, False])
def test_another_key_is_refused(
    copy: tuple[Walk, Path], archive: Path, tmp_path: Path, inside: bool
) -> None:
    key = copy[1] / "k.key" if inside else tmp_path / "other.key"
    key.write_text("0" * 64 + "\n")
    key.chmod(0o600)
    with pytest.raises(StudyError, match="inside" if inside else "made with another key"):
        again(archive, key=str(key))


def test_doctor_says_what_an_ingest_lacks(
    copy: tuple[Walk, Path], archive: Path, tmp_path: Path
) -> None:
    walk, folder = copy
    assert check.lacks(folder) == []
    links = sorted(path for path in folder.rglob("images/*/*") if path.is_symlink())
    links[0].unlink()
    links[0].symlink_to(tmp_path / "nowhere")
    call = json.loads((folder / "private" / "call.json").read_text())
    key = tmp_path / "k.key"
    more = tmp_path / "more"
    more.mkdir()
    shutil.copy(links[1].resolve(), more / "new")
    call |= {"key": [str(key)], "folders": [*call["folders"], str(more)]}
    (folder / "private" / "call.json").write_text(json.dumps(call))
    (folder / "quality.json").unlink()
    for text, mode, said in (
        (None, 0, f"key file {key} is gone"),
        ("0" * 64, 0o644, "has mode 644"),
        ("1" * 63, 0o600, "is not 64 hexadecimal digits"),
        ("0" * 64, 0o600, "holds another key"),
    ):
        if text:
            key.write_text(f"{text}\n")
            key.chmod(mode)
        ended, of_key, broken, new = check.lacks(folder)
        assert said in of_key and "did not end" in ended
        assert f"1 of {len(links)} images are not where they were" in broken
        assert new.startswith("1 files are new or changed") and "--name own adds them" in new
    shutil.rmtree(more)
    assert any(f"{more} is gone: mount it" in line for line in check.lacks(folder))
    (folder / "private" / "call.json").unlink()
    (lines,) = check.lacks(folder)
    assert "cannot be read (FileNotFoundError): ingest again" in lines
    said = walk.call("doctor").stdout
    assert re.search(
        r"^ingest own: see below\n    what it was made from cannot", said, re.MULTILINE
    )


def test_the_name_of_a_card_that_is_there_is_refused(
    copy: tuple[Walk, Path], archive: Path
) -> None:
    with pytest.raises(StudyError, match=r"site\.md is there and was not written by an ingest"):
        write.ingest([str(archive / "archive")], "site", say=[].append)


def test_without_labels_they_are_mined_and_without_reports_it_is_said(
    copy: tuple[Walk, Path], archive: Path
) -> None:
    walk, _ = copy
    (reports,) = (archive / "tables").glob("report*")
    folder = write.ingest([str(archive / "archive")], "mined", tables=[str(reports)], say=[].append)
    assert read_card("mined").labels.encoding == "reports"
    manifest = load_manifest("mined", root=folder)
    assert (manifest["label:pleural_effusion"] == 1).any()
    assert json.loads((folder / "quality.json").read_text())["mined"]["reports"] > 10
    write.ingest([str(archive / "archive")], "bare", say=[].append)
    assert read_card("bare").labels is None
    assert "there are no reports" in (walk.root / "data_cards" / "bare.md").read_text()


def test_the_command_says_what_comes_next(copy: tuple[Walk, Path], archive: Path) -> None:
    done = CliRunner().invoke(
        cli.main, ["ingest", str(archive / "archive"), "--name", "own", "--workers", "1"]
    )
    assert done.exit_code == 0, done.output
    for words in ("make study PRESET=own", "data_cards/own.md"):
        assert words in done.output
    assert "cxrstudy audit own" not in done.output  # labels are of a table
    (reports,) = (archive / "tables").glob("report*")
    mined = ["ingest", str(archive / "archive"), "--name", "mined", "--table", str(reports)]
    assert "cxrstudy audit mined" in CliRunner().invoke(cli.main, mined).output
    wrong = CliRunner().invoke(cli.main, ["ingest", str(archive / "archive"), "--name", "../x"])
    assert wrong.exit_code == 2


def test_a_table_that_does_not_fit_is_refused_once_and_not_remembered(
    copy: tuple[Walk, Path], archive: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("id,x\nnobody,1\nno one,2\n")
    with pytest.raises(StudyError, match=r"wrong\.csv"):
        write.ingest([str(archive / "archive")], "new", tables=[str(wrong)], say=[].append)
    write.ingest([str(archive / "archive")], "new", say=[].append)
    assert len(load_manifest("new", root=copy[0].root / "ingested" / "new")) > N / 2


def test_public_images_are_counted_in_the_card(
    copy: tuple[Walk, Path], archive: Path, tmp_path: Path
) -> None:
    walk, folder = copy
    first = [os.readlink(folder / path) for path in rows(folder)["path"].head(3)]
    uids = [pydicom.dcmread(path, force=True).SOPInstanceUID for path in first]
    public = tmp_path / "training_images.csv"
    public.write_text("\n".join(["dicom_id", *uids, "1.2.3.99999"]) + "\n")
    again(archive, public_ids=str(public))
    facts = json.loads((folder / "quality.json").read_text())["contamination"]
    assert sorted(facts["public"]["listed"]) == sorted(rows(folder).index[:3])
    text = (walk.root / "data_cards" / "own.md").read_text(encoding="utf-8")
    assert "3 are in training_images.csv" in text


def test_images_of_another_ingest_and_of_a_data_run_are_counted(
    copy: tuple[Walk, Path], archive: Path, tmp_path: Path
) -> None:
    """Some files of the archive and one of another institution, as a second archive."""
    walk, folder = copy
    files = [os.readlink(folder / path) for path in rows(folder)["path"].head(12)]
    part = tmp_path / "part"
    part.mkdir()
    for k, file in enumerate(files):
        shutil.copy(file, part / f"f{k}")
    new = export_as_pacs(tmp_path / "elsewhere", n=3, size=96, institution="public-1")
    shutil.copytree(new / "archive", part / "new")
    run = walk.root / "runs" / "own" / "data" / "own-1"
    own = study.Data(card="own", root=str(folder), n_images=0, size=64, out=str(run))
    prepare_data(own)
    call = ["ingest", str(part), "--name", "second", "--workers", "1"]
    both = ["--against", str(folder), "--against", str(run)]
    done = CliRunner().invoke(cli.main, [*call, *both])
    place = walk.root / "ingested" / "second"
    facts = json.loads((place / "quality.json").read_text())
    kept = {os.readlink(place / path) for path in rows(place)["path"]}
    ours = sum(Path(path).parent == part for path in kept)
    assert 6 < ours < facts["images"], done.output
    ingested, prepared = facts["contamination"]["others"]
    assert ingested["alike"] == ingested["same_pixels"] == prepared["alike"] == ours
    assert prepared["same_pixels"] == ours and prepared["images"] == len(rows(folder))
    assert set(rows(folder).index) >= {pair[1] for pair in ingested["listed"]}
    said = f"{ours} of {facts['images']} resemble images of own (" in done.output
    assert said, done.output
    again = CliRunner().invoke(cli.main, call)  # what was named is remembered
    assert "resemble images of own-1" in again.output, again.output
    text = (walk.root / "data_cards" / "second.md").read_text(encoding="utf-8")
    assert "resemble images of own (" in text and f"{ours} with equal pixels" in text
    assert "resemble images of own (" in quality_page.summary(facts)
    for wrong, why in ((place, "of this ingest itself"), (part, "neither a data run nor")):
        refused = CliRunner().invoke(cli.main, [*call, "--against", str(wrong)])
        assert refused.exit_code == 2 and why in refused.output


def test_pictures_without_tags_are_joined_by_their_names_and_need_a_patient(
    copy: tuple[Walk, Path], tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    (tmp_path / "bilder").mkdir()
    lines = ["Bild;Patient;Geschlecht;Alter;Befund;Projektion"]
    for k in range(30):
        small = draw.integers(0, 255, (6, 6)).astype(np.uint8)
        picture = Image.fromarray(small).resize((90, 100), Image.Resampling.BICUBIC)
        picture.save(tmp_path / "bilder" / f"b{k:03d}", format="PNG")
        text = "Pleuraerguss rechts, Herz nicht verbreitert, Tubus regelrecht." + f" Nr {k}"
        lines.append(f"b{k:03d};P{k // 2:05d};weiblich;5{k % 10};{text};{'p.a.' if k % 2 else ''}")
    table = tmp_path / "liste.csv"
    table.write_bytes("\n".join(lines).encode("cp1252"))
    how: dict[str, Any] = {"say": [].append, "keep_burned_in": True}
    with pytest.raises(StudyError, match=r"no patient id 30\. Give a table"):
        write.ingest([str(tmp_path / "bilder")], "german", **how)
    with pytest.raises(StudyError, match=r"nowhere\.csv: there is no such file"):
        write.ingest([str(tmp_path / "bilder")], "german", tables=["nowhere.csv"], **how)
    folder = write.ingest([str(tmp_path / "bilder")], "german", tables=[str(table)], **how)
    manifest = load_manifest("german", root=folder)
    assert manifest["patient_id"].nunique() == 15
    assert manifest["sex"].eq("F").all() and manifest["age"].between(50, 59).all()
    assert manifest["view"].eq("PA").sum() == 15
    text = (copy[0].root / "data_cards" / "german.md").read_text(encoding="utf-8")
    assert "no labels" in text and "German" in text
    assert "no study ids" in text
