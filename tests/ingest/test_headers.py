"""Test the reader of headers against pydicom, on files of each transfer syntax and on damage."""

import io
from pathlib import Path

import pydicom
import pytest
from headers_made import code, header, save
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from cxrstudy.ingest.bodyparts import body_part
from cxrstudy.ingest.headers import CODES, KEYWORDS, LONGEST, WINDOW, read_header

REAL = Path(__file__).parents[3] / "shared/data/dicom"
SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)


def by_pydicom(path) -> dict[str, str]:
    """The wanted tags as pydicom reads them."""
    ds = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    found = {name: ds.get(name) for name in KEYWORDS}
    for sequence, name in CODES.items():
        items = ds.get(sequence)
        found[name] = items[0].get("CodeMeaning") if items else None
    return {
        name: "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
        for name, value in found.items()
        if value is not None and str(value)
    }


def check(path) -> None:
    found = read_header(path)
    expected = by_pydicom(path)
    assert found.pop("kind") == "a DICOM file"
    assert found.pop("fault") == ""
    syntax = found.pop("TransferSyntaxUID", None)
    meta = getattr(pydicom.dcmread(path, stop_before_pixels=True, force=True), "file_meta", {})
    assert syntax == meta.get("TransferSyntaxUID")
    assert found == {name: value.strip() for name, value in expected.items()}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_same_tags_as_pydicom(tmp_path, syntax):
    ds = header(7, syntax=syntax, ViewPosition=["PA", "AP"], NumberOfFrames="1")
    save(ds, tmp_path / "a")
    check(tmp_path / "a")


def test_a_bare_data_set_and_private_sequences(tmp_path):
    inner = Dataset()
    inner.add_new(0x00191020, "UN", b"\x01\x02")
    inner.ViewCodeSequence = code("not of the image")
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        ds = header(1, syntax=syntax)
        ds.add_new(0x00291010, "SQ", Sequence([inner]))
        ds["ViewCodeSequence"].is_undefined_length = True
        path = tmp_path / syntax
        save(ds, path)
        path.write_bytes(path.read_bytes()[path.read_bytes().index(b"\x08\x00\x05\x00") :])
        found = read_header(path)
        assert (found["fault"], found["ViewCodeMeaning"]) == ("", "postero-anterior")
        assert found["Rows"] == "32"


@pytest.mark.skipif(
    not REAL.is_dir(), reason=f"real DICOM files are not part of the project: {REAL}"
)
def test_real_files():
    files = [path for path in sorted(REAL.iterdir()) if path.suffix != ".csv"]
    assert len(files) > 10
    for path in files:
        check(path)


def test_a_header_longer_than_what_is_read_at_first(tmp_path):
    for length in (WINDOW - 3000, WINDOW - 8, 4 * WINDOW, LONGEST // 2):
        ds = header(3)
        ds.private_block(0x0011, "LARGE", create=True).add_new(1, "UN", b"x" * (length // 2 * 2))
        save(ds, tmp_path / "a")
        check(tmp_path / "a")


@pytest.mark.parametrize(
    ("declared", "written", "name"),
    [
        ("ISO_IR 100", "latin-1", "Müller^Jörg"),
        ("ISO_IR 192", "utf-8", "Müller^Jörg"),
        ("ISO_IR 100", "utf-8", "Müller^Jörg"),  # a common fault
        ("ISO_IR 192", "latin-1", "Müller^Jörg"),
        (None, "latin-1", "Müller^Jörg"),
        ("ISO_IR 144", "iso8859-5", "Иванов^Иван"),
        ("nonsense", "latin-1", "Müller^Jörg"),
        ("GB18030", "gb18030", "王^小东"),
        ("\\ISO 2022 IR 87", "iso2022_jp", "山田^太郎"),
    ],
)
def test_character_sets(tmp_path, declared, written, name):
    ds = header(SpecificCharacterSet=None, PatientName="Q" * 40)
    save(ds, tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    raw = name.encode(written)
    data = data.replace(b"Q" * 40, raw.ljust(40))
    if declared:
        value = declared.encode()
        value += b" " * (len(value) % 2)
        element = b"\x08\x00\x05\x00CS" + len(value).to_bytes(2, "little") + value
        at = data.index(b"\x08\x00\x08\x00CS")
        data = data[:at] + element + data[at:]
    (tmp_path / "a").write_bytes(data)
    assert read_header(tmp_path / "a")["PatientName"] == name


def test_a_wrong_vr_is_read_as_it_is(tmp_path):
    ds = header()
    ds["Rows"].VR = "IS"
    ds["Rows"].value = "32"
    save(ds, tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    at = data.index(b"\x28\x00\x11\x00US")
    (tmp_path / "a").write_bytes(data[: at + 4] + b"UN\0\0\x02\0\0\0" + data[at + 8 :])
    found = read_header(tmp_path / "a")
    assert (found["fault"], found["Rows"], found["Columns"]) == ("", "32", "32")


@settings(max_examples=150, deadline=None, database=None)
@given(st.data())
def test_damage_is_never_an_error(data):
    stream = io.BytesIO()
    ds = header(syntax=data.draw(st.sampled_from(SYNTAXES)), size=33)
    ds.save_as(stream, enforce_file_format=True)
    raw = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(0, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    path = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") / f"damaged{id(data)}"
    try:
        path.write_bytes(raw[:cut])
        found = read_header(path)
    finally:
        path.unlink()
    assert all(isinstance(value, str) for value in found.values())
    assert "\n" not in "".join(found.values())


def test_a_cut_header_keeps_what_was_read(tmp_path):
    save(header(), tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[: data.index(b"\x28\x00\x10\x00US") + 3])
    found = read_header(tmp_path / "a")
    assert found["fault"] == "header cut short"
    assert found["PatientID"] == "P0000000"


def test_pictures_and_other_files(tmp_path):
    Image.new("I;16", (40, 30)).save(tmp_path / "deep", format="PNG")
    Image.new("RGB", (40, 30)).save(tmp_path / "colour.dcm", format="JPEG")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    (tmp_path / "page").write_text("<html>")
    deep, colour = read_header(tmp_path / "deep"), read_header(tmp_path / "colour.dcm")
    assert (deep["kind"], deep["Rows"], deep["BitsStored"]) == ("a PNG picture", "30", "16")
    assert (colour["kind"], colour["PhotometricInterpretation"]) == ("a JPEG picture", "RGB")
    assert read_header(tmp_path / "torn.png")["fault"].startswith("header damaged")
    assert read_header(tmp_path / "page")["kind"].startswith("an HTML page")
    assert read_header(tmp_path / "absent")["fault"].startswith("cannot be opened")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        *(
            (t, "chest")
            for t in ("Röntgen-Thorax in 2 Ebenen", "Liegendthorax", "RX THORAX DE FACE")
        ),
        *((t, "chest") for t in ("Radiographie pulmonaire", "poumon", "Tórax PA", "Rx torace")),
        *((t, "chest") for t in ("Tórax PA e perfil", "X-thorax", "CXR", "XR CHEST 1V", "lung")),
        *((t, "other") for t in ("BWS seitl.", "thoracic spine AP", "TSPINE", "Columna dorsal")),
        *((t, "other") for t in ("Coluna torácica", "Brustwirbelsäule", "Kniegelenk", "Épaule")),
        *((t, "other") for t in ("RX main gauche", "rodilla", "ginocchio dx", "joelho", "Bekken")),
        *(
            (t, "chest")
            for t in ("RTG klatki piersiowej", "Рентгенография ОГК", "흉부 촬영", "胸部")
        ),
        *(
            (t, "other")
            for t in ("Jama brzuszna", "Брюшная полость", "복부", "腹部", "右手", "Kar\u0131n")
        ),
        *((t, "both") for t in ("CHEST AND ABDOMEN", "Thorax und Becken")),
        *((t, "") for t in ("main room", "NG tube placement", "port", "", "AP", "Übersicht")),
    ],
)
def test_parts_of_the_body(text, part):
    assert body_part(text) == part
