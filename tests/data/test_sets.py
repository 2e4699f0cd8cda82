"""A data run of files: named after their contents, found again elsewhere, losses reported."""

import hashlib
import os
import shutil
import unicodedata
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxrstudy import study
from cxrstudy.data import cardrows, odd
from cxrstudy.data.images import open_prepared
from cxrstudy.data.sets import content_digest, note_root, prepare_data

CARD = """---
name: films
title: films
kind: real
licence: none
access: none
citation: none
table: {path: table.csv, image_id: image, patient_id: patient, study_id: [image], age: age,
  masks: {picc: mask}}
images: ["images/*"]
---
"""


@pytest.fixture
def data(tmp_path):
    """Six films of 40 px below a folder, one of which has a mask."""
    root = tmp_path / "here" / "data"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rng = np.random.default_rng(0)
    for k in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(
            root / "images" / f"ä{k}.png"
        )
    Image.fromarray(np.eye(40, dtype=np.uint8) * 255).save(root / "masks" / "0.png")
    table = {
        "image": [f"ä{k}.png" for k in range(6)],
        "patient": [f"p{k}" for k in range(6)],
        "age": [40] * 6,
    }
    pd.DataFrame(table | {"mask": ["masks/0.png", *[""] * 5]}).to_csv(
        root / "table.csv", index=False
    )
    (tmp_path / "films.md").write_text(CARD, encoding="utf-8")
    return str(tmp_path / "films.md"), root


def digest(card, root, **other):
    return content_digest(card, **{"root": str(root), "n_images": 0, "seed": 0} | other)


def asked(card, root, out, **other):
    return study.Data(
        card=card,
        root=str(root),
        n_images=0,
        size=32,
        out=str(out),
        fractions={"test": 1.0},
        **other,
    )


def test_the_name_hangs_on_what_the_files_hold_not_on_where_they_lie(data, tmp_path, monkeypatch):
    card, root = data
    name = digest(card, root)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in sorted(
        (f for f in root.rglob("*") if f.is_file()), reverse=True
    ):  # another order on disk
        (moved / file.relative_to(root)).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, moved / file.relative_to(root))
    link = tmp_path / "link"
    link.symlink_to(root)
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("HOME", str(root.parent))
    assert {
        digest(card, where)
        for where in (root, moved, link, "data", "./data/", "~/data", f"{root}/")
    } == {name}
    shutil.copyfile(card, tmp_path / "here" / "films.md")
    assert digest(str(tmp_path / "here" / "films.md"), root) == name


def test_the_name_changes_with_the_table_the_card_the_files_and_what_is_asked_for(data):
    card, root = data
    names = [
        digest(card, root),
        digest(card, root, n_images=3),
        digest(card, root, n_images=3, seed=5),
    ]
    table = pd.read_csv(root / "table.csv")
    table.assign(age=[41, *[40] * 5]).to_csv(root / "table.csv", index=False)
    names.append(digest(card, root))
    table.assign(age=[41, *[40] * 5], patient=[f"q{k}" for k in range(6)]).to_csv(
        root / "table.csv", index=False
    )
    names.append(digest(card, root))
    with open(root / "images" / "ä3.png", "ab") as file:
        file.write(b"x")
    names.append(digest(card, root))
    with open(root / "masks" / "0.png", "ab") as file:
        file.write(b"x")
    names.append(digest(card, root))
    (root / "images" / "ä5.png").unlink()
    names.append(digest(card, root))
    with open(card, "w", encoding="utf-8") as file:
        file.write(CARD.replace("title: films", "title: other films"))
    names.append(digest(card, root))
    assert len(set(names)) == len(names)


def test_the_order_of_rows_and_the_spelling_of_accents_on_disk_do_not_count(data):
    card, root = data
    name = digest(card, root)
    table = pd.read_csv(root / "table.csv")
    table.iloc[::-1].to_csv(root / "table.csv", index=False)
    for file in (root / "images").iterdir():
        file.rename(file.with_name(unicodedata.normalize("NFD", file.name)))
    try:
        assert digest(card, root) == name
    except ValueError as error:
        pytest.skip(f"the card's reader does not find decomposed names: {error}")


def test_a_card_that_draws_its_images_has_a_name_too():
    assert content_digest("synthetic", root="", n_images=0, seed=0) == content_digest(
        "synthetic", root="/anywhere", n_images=0, seed=0
    )


def test_data_found_elsewhere_are_the_same_data(data, tmp_path):
    card, root = data
    prepared = prepare_data(asked(card, root, tmp_path / "out"))
    kept = pd.read_parquet(tmp_path / "out" / "manifest.parquet")
    assert set(kept["path"]) == {f"images/ä{k}.png" for k in range(6)}
    assert set(kept["mask:picc"]) == {"masks/0.png", ""}
    assert (tmp_path / "out" / "root.txt").read_text(encoding="utf-8") == f"{root}\n"
    before = os.stat(tmp_path / "out" / "shards.json").st_mtime_ns
    moved = tmp_path / "moved"
    root.rename(moved)
    again = prepare_data(asked(card, moved, tmp_path / "out"))
    assert os.stat(tmp_path / "out" / "shards.json").st_mtime_ns == before
    assert again.info == prepared.info
    np.testing.assert_array_equal(again.images, prepared.images)
    for path in [*again.manifest["path"], *filter(None, again.manifest["mask:picc"])]:
        assert path.startswith(f"{moved}/")
        assert os.path.isfile(path)
    note_root(tmp_path / "out", "/third")
    assert open_prepared(tmp_path / "out").manifest["path"].str.startswith("/third/images/").all()


def test_a_data_run_made_before_paths_were_cut_still_opens(data, tmp_path):
    card, root = data
    first = prepare_data(asked(card, root, tmp_path / "out"))
    first.manifest.to_parquet(tmp_path / "out" / "manifest.parquet", index=False)
    for there in (True, False):
        if not there:
            (tmp_path / "out" / "root.txt").unlink()
        pd.testing.assert_frame_equal(open_prepared(tmp_path / "out").manifest, first.manifest)


def test_what_is_not_in_it_and_what_is_odd_is_counted_told_and_listed(data, tmp_path):
    card, root = data
    Image.fromarray(np.full((40, 40), 7, np.uint8)).save(root / "images" / "ä0.png")
    colour = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(colour).save(root / "images" / "ä1.png")
    Image.fromarray(np.full((1, 1), 7, np.uint8)).save(root / "images" / "ä2.png")
    (root / "images" / "ä3.png").write_text("<html>404</html>")
    (root / "images" / "ä4.png").unlink()
    with pytest.warns(UserWarning, match="of the table|could not be read") as caught:
        prepared = prepare_data(asked(card, root, tmp_path / "out"))
    told = [str(warning.message) for warning in caught]
    assert any(
        "1 of 5 images could not be read (20%): an HTML page 1" in sentence for sentence in told
    )
    info = prepared.info
    assert info["quarantined"] == 1
    assert info["set_aside"] == {"an HTML page": 1}
    assert info["odd"] == {"constant": 2, "colour": 1, "one pixel": 1}
    assert sum(info["left_out"].values()) == 1
    assert info["rows"] == 6
    assert any("1 of 6 rows of the table were left out (17%)" in sentence for sentence in told)
    assert odd.losses(info, 4) == told
    listed = pd.read_csv(tmp_path / "out" / "odd.csv")
    assert list(listed.columns) == ["image_id", "path", "kind"]
    assert sorted(zip(listed["image_id"], listed["kind"], strict=True)) == [
        ("ä0.png", "constant"),
        ("ä1.png", "colour"),
        ("ä2.png", "constant"),
        ("ä2.png", "one pixel"),
    ]
    table = odd.counts(info, len(prepared.manifest))["number"]
    assert table["rows of the table", ""] == 6
    assert table["images prepared", ""] == 4
    assert table["could not be read", "an HTML page"] == 1
    assert table["odd, and kept", "constant"] == 2
    oddest = odd.oddest(tmp_path / "out", prepared.manifest["image_id"])
    assert list(oddest["image_id"]) == ["ä0.png", "ä2.png", "ä1.png"]
    for row, image_id in zip(oddest["row"], oddest["image_id"], strict=True):
        assert prepared.manifest["image_id"].iloc[row] == image_id
    assert oddest["kind"].iloc[1] == "one pixel, constant"


def test_few_losses_are_counted_without_a_warning(data, tmp_path):
    card, root = data
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        prepared = prepare_data(asked(card, root, tmp_path / "out"))
    assert prepared.info["odd"] == prepared.info["set_aside"] == {}
    assert len(odd.oddest(tmp_path / "out", prepared.manifest["image_id"])) == 0
    assert odd.losses({"rows": 100, "left_out": {"no patient id": 5}, "set_aside": {}}, 95) == []
    assert (
        odd.losses({"rows": 100, "left_out": {"no patient id": 2}, "set_aside": {"cut": 2}}, 96)
        == []
    )
    assert (
        len(
            odd.losses({"rows": 100, "left_out": {"no patient id": 3}, "set_aside": {"cut": 4}}, 93)
        )
        == 2
    )
    info = {"rows": 1000, "left_out": {"no patient id": 6, odd.ASKED: 900}}
    assert odd.losses(info, 90) == [
        "6 of 100 rows of the table were left out (6%): no patient id 6."
    ]


def test_the_synthetic_institution_is_drawn_as_before(tmp_path):
    """Numbers as before data runs were named after what their files hold."""
    prepared = prepare_data(study.Data(n_images=20, size=32, out=str(tmp_path)))
    assert prepared.info["mean"] == 0.4166385186887255
    assert (
        hashlib.blake2b(np.asarray(prepared.images).tobytes(), digest_size=8).hexdigest()
        == "b4cac1be7ee52af8"
    )
    assert prepared.info["odd"] == prepared.info["left_out"] == prepared.info["set_aside"] == {}
    assert not (tmp_path / "root.txt").exists()


def test_the_notebooks_default_number_takes_all_of_a_smaller_set_and_says_so(data, tmp_path):
    card, root = data
    p = study.Data(
        card=card, root=str(root), size=32, out=str(tmp_path / "out"), fractions={"test": 1.0}
    )
    assert p.n_images > 6
    with pytest.warns(UserWarning, match="3000 by default; all 6 images are taken"):
        assert len(prepare_data(p).manifest) == 6
    with pytest.raises(ValueError, match="n_images"):  # a number that somebody chose
        prepare_data(p.model_copy(update={"n_images": 7, "out": str(tmp_path / "other")}))


@pytest.mark.parametrize("n_images", [0, 4, study.Data().n_images])
def test_a_data_run_reads_its_table_once(data, tmp_path, monkeypatch, n_images):
    card, root = data
    reads = []
    read_tables = cardrows.read_tables
    monkeypatch.setattr(
        cardrows, "read_tables", lambda *args, **how: reads.append(1) or read_tables(*args, **how)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        p = asked(card, root, tmp_path / "out").model_copy(update={"n_images": n_images})
        assert len(prepare_data(p).manifest) == (n_images if n_images == 4 else 6)
    assert len(reads) == 1
