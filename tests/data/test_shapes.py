"""Masks as run lengths and polylines: as published code reads them, in the pixels of the image."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from cxrstudy import study
from cxrstudy.data import shapes
from cxrstudy.data.cards import CardError, load_manifest
from cxrstudy.data.images import open_prepared, relative_to_root
from cxrstudy.data.sets import content_digest, prepare_data
from cxrstudy.data.vocabulary import DEVICES
from cxrstudy.evaluate.maps import known_devices, load_masks

masks = arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def encode(mask, relative, transposed, first):
    """Write run lengths by the definition: one pair a run of ones."""
    flat = (mask.T if transposed else mask).ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int), [0]])))
    starts, ends = edges[::2], edges[1::2]
    begin = starts - np.concatenate([[0], ends[:-1]]) if relative else starts.copy()
    begin[: 1 if relative else None] += first
    return " ".join(f"{a} {b - c}" for a, b, c in zip(begin, ends, starts, strict=True))


@settings(deadline=None)
@given(masks, st.booleans(), st.booleans(), st.sampled_from([0, 1]))
def test_run_lengths_give_the_mask_that_was_written(mask, relative, transposed, first):
    text = encode(mask, relative, transposed, first)
    if not mask.any():
        with pytest.raises(ValueError, match="pairs"):
            shapes.run_lengths("", mask.shape, relative=relative, transposed=transposed, first=0)
        return
    flags = {"relative": relative, "transposed": transposed, "first": first}
    reference = shapes.run_lengths(text, mask.shape, **flags)
    np.testing.assert_array_equal(shapes.draw(reference, "no file"), mask)


def siim_rle2mask(rle, width, height):
    """The reader that SIIM-ACR published with its data (mask_functions.py)."""
    mask = np.zeros(width * height)
    array = np.asarray([int(x) for x in rle.split()])
    starts, lengths = array[0::2], array[1::2]
    position = 0
    for index, start in enumerate(starts):
        position += start
        mask[position : position + lengths[index]] = 255
        position += lengths[index]
    return mask.reshape(width, height)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=6))
def test_relative_transposed_runs_are_read_as_siim_reads_them(runs):
    text = " ".join(f"{a} {b}" for a, b in runs)
    flags = {"relative": True, "transposed": True, "first": 0}
    reference = shapes.run_lengths(text, (11, 13), **flags)
    wanted = siim_rle2mask(text, 13, 11).T > 0  # rows, columns
    np.testing.assert_array_equal(shapes.draw(reference, ""), wanted)


def test_a_polyline_is_drawn_as_wide_as_asked_for_along_its_points():
    reference = shapes.polyline("[[10, 5], [10, 45], [30.5, 45]]", (60, 50), 5)
    mask = shapes.draw(reference, "")
    assert mask.shape == (60, 50)
    assert mask[20].sum() == 5
    assert mask[20, 8:13].all()
    assert mask[:, 25].sum() == 5
    assert not mask[50:].any()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 5 9", "pairs"), ("1 x", "whole numbers"), ("90 20", "ends at pixel 109"),
        ("0 3", "before the first pixel"), ("1 -3", "negative length"), ("1.5 2", "whole"),
    ],
)  # fmt: skip
def test_what_is_no_run_length_of_this_size_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        shapes.run_lengths(text, (10, 10), relative=False, transposed=False, first=1)


@pytest.mark.parametrize("text", ["[[1, 2]]", "[]", "[[1, 2, 3], [1, 2, 3]]", "[1, 2]", "{}", "x"])
def test_what_is_no_polyline_is_refused(text):
    with pytest.raises((ValueError, TypeError)):
        shapes.polyline(text, (10, 10), 3)


def dicom(path, rows, columns):
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = DigitalXRayImageStorageForPresentation, "1.2.3"
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = rows, columns, 8, 8, 7
    ds.SamplesPerPixel, ds.PixelRepresentation = 1, 0
    ds.PhotometricInterpretation, ds.PixelData = "MONOCHROME2", bytes(rows * columns)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.save_as(path, enforce_file_format=True)


def test_the_size_of_an_image_is_that_of_its_upright_pixels(tmp_path):
    dicom(tmp_path / "a", 6, 9)
    image = Image.fromarray(np.zeros((6, 9), np.uint8))
    image.save(tmp_path / "b.png")
    exif = Image.Exif()
    exif[shapes.ORIENTATION] = 6
    image.save(tmp_path / "c.jpg", exif=exif)
    found = [shapes.image_shape(tmp_path / name) for name in ("a", "b.png", "c.jpg")]
    assert found == [(6, 9), (6, 9), (9, 6)]


# ---- from a card to the masks of `segment` -------------------------------------------------------
@pytest.fixture
def held(tmp_path):
    """Three films of 120 x 80 px, with a tube as run lengths, as two polylines, and none."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in "abc":
        pixels = rng.integers(0, 256, (120, 80), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
    tube = np.zeros((120, 80), bool)
    tube[30:90, 38:44] = True
    own = np.zeros((120, 80), bool)
    own[:10] = True  # above the crop
    rows = [["a", "p1", "s1", encode(tube, True, True, 0), 1, 0.5]]
    rows += [["a", "p1", "s1", encode(own, True, True, 0), 1, 0.5]]
    rows += [["b", "p2", "s2", "-1", 1, 0.5], ["c", "p3", "s3", "-1", 0, 0.5]]
    columns = ["image", "patient", "study", "rle", "picc", "mm"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "t.csv", index=False)
    lines = [["b", "PICC - Normal", json.dumps([[40, 30], [40, 90]])]]
    lines += [["b", "PICC - Abnormal", json.dumps([[10, 30], [10, 90]])]]
    lines += [["c", "other", json.dumps([[10, 30], [10, 90]])]]
    pd.DataFrame(lines, columns=["image", "label", "data"]).to_csv(root / "lines.csv", index=False)
    facts = {
        "name": "held", "title": "Held", "kind": "real", "licence": "x", "access": "x",
        "citation": "x", "images": ["images/*.png"],
        "table": {
            "path": "t.csv", "image_id": "image", "patient_id": "patient", "study_id": ["study"],
            "rows": "any", "pixel_spacing": "mm",
            "masks": {"chest_tube": {"column": "rle", "relative": True, "transposed": True}},
        },
        "polylines": {
            "path": "lines.csv", "on": ["image"], "label": "label", "points": "data", "width": 4,
            "names": {"picc": ["PICC - Normal", "PICC - Abnormal"]},
        },
        "labels": {
            "encoding": "columns", "names": {"picc": "picc", "chest_tube": "rle"},
            "values": {"-1": 0, "0": 0, "1": 1, "*": 1}, "missing": "unknown",
        },
    }  # fmt: skip
    card = tmp_path / "held.md"

    def write(**changes):
        card.write_text(f"---\n{yaml.safe_dump(facts | changes, sort_keys=False)}---\n")
        return str(card)

    return write, root, tube


def test_run_lengths_and_polylines_of_a_card_reach_segment_in_the_pixels_of_its_images(
    held, tmp_path
):
    write, root, tube = held
    card = write()
    manifest = load_manifest(card, root=root)
    assert manifest["mask:chest_tube"].str.count("\n").tolist() == [1, 0, 0]
    p = study.Data(
        card=card, root=str(root), n_images=0, size=40, out=str(tmp_path / "run"),
        fractions={"test": 1.0},
    )  # fmt: skip
    prepare_data(p)
    prepared = open_prepared(tmp_path / "run")
    stored = pd.read_parquet(tmp_path / "run" / "manifest.parquet")
    assert stored["mask:picc"].tolist()[1].startswith("line:0x0:4:40,30 40,90\nline:0x0:4:10,30")
    assert prepared.manifest["mask:picc"].tolist() == stored["mask:picc"].tolist()
    found = load_masks(prepared, np.arange(3))
    chest, picc = DEVICES.index("chest_tube"), DEVICES.index("picc")
    known = known_devices(prepared.manifest)
    assert known[:, chest].tolist() == [True, True, True]  # -1: known to be absent
    assert known[:, picc].tolist() == [False, True, True]
    # 120 x 80 -> 60 x 40, rows 10 to 49 of it
    wanted = tube.reshape(60, 2, 40, 2).any((1, 3))[10:50]
    np.testing.assert_array_equal(found.masks[0, chest], wanted)
    assert not found.masks[1:, chest].any()
    columns = np.flatnonzero(found.masks[1, picc].any(0))
    assert set(columns) == {4, 5, 6, 19, 20, 21}  # 9 to 12 and 39 to 42 of 80 px
    assert found.spacing[:2].tolist() == [1.0, 1.0]
    assert relative_to_root(manifest, root)["path"].tolist() == [f"images/{n}.png" for n in "abc"]


def test_a_mask_changes_the_name_of_a_data_run_and_a_broken_one_is_refused_by_its_line(held):
    write, root, _ = held
    card = write()
    name = content_digest(card, root=str(root), n_images=0, seed=0)
    table = (root / "lines.csv").read_text()
    (root / "lines.csv").write_text(table.replace("[40, 30]", "[41, 30]"))
    assert content_digest(card, root=str(root), n_images=0, seed=0) != name
    (root / "lines.csv").write_text(table.replace("[[40, 30], ", "["))
    with pytest.raises(CardError, match=r"lines.csv, line 2: column 'data' holds .* two points"):
        load_manifest(card, root=root)
    (root / "lines.csv").write_text(table)
    rows = (root / "t.csv").read_text()
    (root / "t.csv").write_text(rows.replace("b,p2,s2,-1", "b,p2,s2,none"))
    with pytest.raises(CardError, match=r"t.csv, line 4: column 'rle' holds 'none'.*under `none`"):
        load_manifest(card, root=root)


def test_runs_that_leave_the_image_are_refused_when_they_are_drawn(held, tmp_path):
    write, root, _ = held
    rows = (root / "t.csv").read_text()
    (root / "t.csv").write_text(rows.replace("b,p2,s2,-1", "b,p2,s2,9599 2"))
    p = study.Data(
        card=write(), root=str(root), n_images=0, size=40, out=str(tmp_path / "run"),
        fractions={"test": 1.0},
    )  # fmt: skip
    prepare_data(p)
    with pytest.raises(
        ValueError, match=r"image b\), column 'mask:chest_tube'.*ends at pixel 9,60"
    ):
        load_masks(open_prepared(tmp_path / "run"), np.arange(3))
