"""Test the walk of an archive: what is kept, why the rest is not, and how it goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pydicom
import pytest
from headers_made import ROOT, header, save
from PIL import Image
from pydicom.uid import (
    BasicTextSRStorage,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForProcessing,
    EncapsulatedPDFStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    MediaStorageDirectoryStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from cxrstudy.ingest import walk as walking
from cxrstudy.ingest.walk import COPY, TWIN, TWO_PATIENTS, walk
from cxrstudy.study import StudyError

REAL = Path(__file__).parents[3] / "shared/data"
NO_IMAGE = dict.fromkeys(("Rows", "Columns", "PixelData"))


def walked(root, private=None, **more) -> pd.DataFrame:
    """Rows of a walk by their path below ``root``."""
    frame = walk([root], private or root.parent / "private", **more)
    return frame.set_index(frame["path"].map(lambda path: os.path.relpath(path, root)))


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({}, ""),
        ({"Modality": "CR", "SOPClassUID": ComputedRadiographyImageStorage}, ""),
        ({"Modality": "RX", "PhotometricInterpretation": "MONOCHROME1"}, ""),
        ({"BodyPartExamined": "HAND"}, ""),  # the series says Thorax: kept, with a note
        ({"SOPClassUID": BasicTextSRStorage, "Modality": "SR", **NO_IMAGE}, "structured report"),
        ({"SOPClassUID": GrayscaleSoftcopyPresentationStateStorage}, "presentation state"),
        ({"SOPClassUID": KeyObjectSelectionDocumentStorage}, "key object selection"),
        ({"SOPClassUID": EncapsulatedPDFStorage, **NO_IMAGE}, "encapsulated document"),
        ({"SOPClassUID": MediaStorageDirectoryStorage, **NO_IMAGE}, "DICOMDIR"),
        ({"SOPClassUID": CTImageStorage, "Modality": "CT"}, "other modality"),
        ({"Modality": "MG"}, "other modality"),
        ({"SOPClassUID": SecondaryCaptureImageStorage, "Modality": "CR"}, ""),
        ({"SOPClassUID": SecondaryCaptureImageStorage, "Modality": "OT"}, ""),  # of a chest
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "colour"),
        ({"NumberOfFrames": "8"}, "several frames"),
        (NO_IMAGE, "no image"),
        ({"Rows": 8}, "under 32 px"),
        ({"Rows": 3000}, "pixel data cut short"),
        ({"PatientID": None, "ViewPosition": ["PA", "AP"], "PatientAge": None}, ""),
    ],
)
def test_what_is_kept(tmp_path, tags, reason):
    save(header(**tags), tmp_path / "in" / "a")
    assert walked(tmp_path / "in").loc["a", "drop_reason"] == reason


SILENT = dict.fromkeys(
    ("SeriesDescription", "StudyDescription", "ProtocolName", "AnatomicRegionSequence")
) | dict.fromkeys(
    ("AcquisitionDeviceProcessingDescription", "PerformedProcedureStepDescription"), None
)


@pytest.mark.parametrize(
    ("tags", "reason", "note"),
    [
        ({"BodyPartExamined": "KNEE"}, "not the chest", ""),
        ({"BodyPartExamined": None, "StudyDescription": "Rx rodilla izda"}, "not the chest", ""),
        ({"BodyPartExamined": None}, "", "part of the body unknown"),
        ({"BodyPartExamined": "CHEST", "SeriesDescription": "Abdomen"}, "", "contradictory"),
        ({"SOPClassUID": SecondaryCaptureImageStorage, "Modality": "OT"}, "", "secondary capture"),
        (
            {
                "SOPClassUID": SecondaryCaptureImageStorage,
                "Modality": "OT",
                "BodyPartExamined": None,
            },
            "secondary capture",
            "",
        ),
    ],
)
def test_parts_of_the_body(tmp_path, tags, reason, note):
    save(header(**(SILENT | tags)), tmp_path / "in" / "a")
    row = walked(tmp_path / "in").loc["a"]
    assert row["drop_reason"] == reason
    assert note in row["note"]


def test_every_entry_of_a_tree_has_a_row(tmp_path):
    root = tmp_path / "in"
    save(header(), root / "deep" / "er" / "IM0001.foo")
    save(header(2), root / "UPPER.DCM")
    Image.new("L", (64, 48)).save(root / "p", format="PNG")
    Image.new("RGB", (64, 48)).save(root / "p.JPG")
    (root / "empty").touch()
    (root / "zeros").write_bytes(bytes(600))
    (root / "list.txt").write_text("a list")
    (root / ".hidden").write_text("x")
    (root / ".git").mkdir()
    (root / ".git" / "x").touch()
    (root / "@eaDir").mkdir()
    (root / "broken").symlink_to(root / "absent")
    (root / "circle").symlink_to(root / "circle")
    (root / "again").symlink_to(root / "deep")
    (root / "out").symlink_to(REAL.parent.parent)
    (root / os.fsdecode(b"b\xe4d")).write_bytes((root / "UPPER.DCM").read_bytes())
    os.mkfifo(root / "pipe")
    reasons = walked(root)["drop_reason"].to_dict()
    assert reasons == {
        "deep/er/IM0001.foo": "",
        "UPPER.DCM": "",
        "p": "",
        "p.JPG": "",
        "empty": "empty file",
        "zeros": "no image",
        "list.txt": "no image",
        ".hidden": "hidden file",
        ".git": "hidden folder",
        "@eaDir": "hidden folder",
        "broken": "broken link",
        "circle": "broken link",
        "again": "link to what is walked already",
        "out": "link to what is walked not: name its target",
        "b\\xe4d": "name that is not UTF-8: rename it",
        "pipe": "no ordinary file",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_read_once_it_may(tmp_path):
    root = tmp_path / "in"
    save(header(), root / "a")
    save(header(2), root / "closed" / "b")
    (root / "a").chmod(0)
    (root / "closed").chmod(0)
    try:
        found = walked(root)["drop_reason"]
        assert found["a"].startswith("cannot be opened")
        assert found["closed"] == "folder that cannot be opened"
    finally:
        (root / "closed").chmod(0o700)
    (root / "a").chmod(0o600)
    assert list(walked(root)["drop_reason"]) == ["", ""]


def test_twins_and_copies(tmp_path):
    root = tmp_path / "in"
    raw = {
        "PresentationIntentType": "FOR PROCESSING",
        "SOPClassUID": DigitalXRayImageStorageForProcessing,
    }
    study = {"StudyInstanceUID": "1.5"}
    save(header(0, IrradiationEventUID="9.1", **study), root / "shown")
    save(header(1, IrradiationEventUID="9.1", **study, **raw), root / "twin")
    save(header(2, IrradiationEventUID="9.2", **study, **raw), root / "repeated")
    save(header(3, AcquisitionTime="08", ViewPosition="LL", **study, **raw), root / "lateral")
    save(header(4, AcquisitionTime="09", **study, **raw), root / "same view")
    save(header(5, **raw), root / "alone")
    save(header(6), root / "original")
    save(header(6), root / "z" / "copy")
    save(header(8), root / "one")
    save(header(8, PatientID="another"), root / "two")
    rows = walked(root)
    assert rows["drop_reason"].to_dict() == {
        "shown": "",
        "twin": TWIN,
        "repeated": "",
        "lateral": "",
        "same view": TWIN,
        "alone": "",
        "original": "",
        "z/copy": COPY,
        "one": TWO_PATIENTS,
        "two": TWO_PATIENTS,
    }
    assert "for processing" in rows.loc["alone", "note"]


def test_a_second_walk_reads_what_is_new_or_changed(tmp_path, monkeypatch):
    root, read = tmp_path / "in", []
    for k in range(5):
        save(header(k), root / f"{k}")
    header_of = walking.read_header
    monkeypatch.setattr(walking, "read_header", lambda p: read.append(Path(p).name) or header_of(p))
    first = walked(root)
    assert sorted(read) == list("01234")
    read.clear()
    pd.testing.assert_frame_equal(walked(root), first)
    assert read == []
    save(header(9), root / "9")
    save(header(1, ViewPosition="AP"), root / "1")
    (root / "2").unlink()
    second = walked(root)
    assert sorted(read) == ["1", "9"]
    assert list(second.index) == list("01349")
    assert second.loc["1", "ViewPosition"] == "AP"
    (tmp_path / "private/inventory/damaged.parquet").write_text("x")
    pd.testing.assert_frame_equal(walked(root), second)
    assert [p.name.split("-")[1] for p in (tmp_path / "private/inventory").iterdir()] == [
        "whole.parquet"
    ]
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o700


def test_an_inventory_with_other_columns_is_read_anew(tmp_path):
    save(header(), tmp_path / "in" / "a")
    private = tmp_path / "private"
    first = walk([tmp_path / "in"], private)
    (store,) = (private / "inventory").iterdir()
    older = pd.read_parquet(store).drop(columns="PatientName")  # as an earlier version wrote it
    older.to_parquet(store.with_name("0a0a0a0a-whole.parquet"))
    store.unlink()
    pd.testing.assert_frame_equal(walk([tmp_path / "in"], private), first)
    assert (first["drop_reason"] == "").all()


def test_a_walk_that_is_killed_goes_on(tmp_path, monkeypatch):
    root, private = tmp_path / "in", tmp_path / "private"
    save(header(), root / "0")
    data = (root / "0").read_bytes()
    for k in range(1, 60):
        (root / f"{k}").write_bytes(data)
    slow = (
        "import sys, time\n"
        "from cxrstudy.ingest import walk as w\n"
        "read = w.read_header\n"
        "w.BATCH, w.read_header = 5, lambda p: time.sleep(0.05) or read(p)\n"
        "w.walk([sys.argv[1]], sys.argv[2])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", slow, str(root), str(private)])
    until = time.monotonic() + 60
    while time.monotonic() < until and len(list(private.glob("inventory/*.parquet"))) < 3:
        time.sleep(0.05)
    with pytest.raises(StudyError, match="another ingest works"):
        walk([root], private)
    process.send_signal(signal.SIGKILL)
    process.wait()
    read = []
    header_of = walking.read_header
    monkeypatch.setattr(walking, "read_header", lambda p: read.append(p) or header_of(p))
    rows = walked(root)
    assert len(rows) == 60
    assert 10 <= 60 - len(read) < 60
    assert (rows["PatientID"] == "P0000000").all()


def test_several_folders_and_processes(tmp_path):
    for k in range(4):
        save(header(k), tmp_path / f"in{k % 2}" / f"{k}")
    frame = walk([tmp_path / "in1", tmp_path / "in0", tmp_path], tmp_path / "private", workers=2)
    assert [Path(path).name for path in frame["path"]] == ["0", "2", "1", "3"]
    assert (frame["drop_reason"] == "").all()
    again = walk([tmp_path / "in1"], tmp_path / "other")
    assert [Path(path).name for path in again["path"]] == ["1", "3"]


def test_its_own_files_are_not_walked(tmp_path):
    save(header(), tmp_path / "in" / "a")
    (tmp_path / "in" / "made").mkdir()
    (tmp_path / "in" / "made" / "ingest.json").write_text("{}")
    rows = walked(tmp_path / "in", tmp_path / "in" / "private")
    assert rows["drop_reason"].to_dict() == {"a": "", "made": "folder that an ingest has made"}


def test_a_wrong_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for folder, what in (("absent", "is not there"), ("file", "is no folder")):
        with pytest.raises(StudyError, match=what):
            walk([tmp_path / folder], tmp_path / "private")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudyError, match="no file"):
        walk([tmp_path / "empty"], tmp_path / "private")


def test_compressed_pixels_are_not_measured(tmp_path):
    ds = header(size=64)
    ds.compress(RLELossless)
    save(ds, tmp_path / "in" / "a")
    assert walked(tmp_path / "in").loc["a", "drop_reason"] == ""


@pytest.mark.skipif(not REAL.is_dir(), reason=f"real files are not part of the project: no {REAL}")
def test_real_files(tmp_path):
    shutil.copytree(REAL / "dicom", tmp_path / "in" / "dicom")
    shutil.copytree(REAL / "openi_images", tmp_path / "in" / "openi")
    rows = walked(tmp_path / "in")
    reasons = rows["drop_reason"].to_dict()
    assert reasons["dicom/CR-MONO1-10-chest"] == ""
    assert reasons["dicom/RG3_RLE"] == "not the chest"
    assert reasons["dicom/CR-ModalitySequenceLUT.dcm"] == "not the chest"  # teeth
    assert reasons["dicom/vlut_04.dcm"] == "secondary capture"
    assert reasons["dicom/files.csv"] == "no image"
    pictures = rows[rows.index.str.endswith(".png")]
    assert len(pictures) == 6
    assert (pictures["drop_reason"] == "").all()
    assert pydicom.uid.UID(rows.loc["dicom/RG3_RLE", "SOPClassUID"]).name.startswith("Computed")


def test_ids_are_those_of_the_files(tmp_path):
    save(header(5), tmp_path / "in" / "a")
    row = walked(tmp_path / "in").loc["a"]
    assert (row["SOPInstanceUID"], row["StudyInstanceUID"]) == (f"{ROOT}.5.1", f"{ROOT}.2")
    assert (row["AccessionNumber"], row["PatientName"]) == ("A00000002", "Schäfer^Anna1")
    assert (row["ViewCodeMeaning"], row["Rows"]) == ("postero-anterior", 32)
    assert row["kind"] == "DICOM: Digital X-Ray Image - For Presentation"
