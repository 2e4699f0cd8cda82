"""Hostile inputs: a small seeded sample of every reader, and each fault that fuzzing has found."""

import base64
import gzip
import json
import lzma
import struct
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydicom import encaps, uid

sys.path.insert(0, str(Path(__file__).parent))

import corpora
import fuzz

from cxrstudy import grid, presets, results, study
from cxrstudy.data import cards, shapes
from cxrstudy.data.dicom import UnreadableImage, read_dicom
from cxrstudy.data.images import read_image
from cxrstudy.data.labels import listed_names
from cxrstudy.data.manifest import ManifestError, read_manifest
from cxrstudy.data.reports import extract_mentions
from cxrstudy.data.tables import CardError, read_tables
from cxrstudy.ingest.tablefiles import read_source
from cxrstudy.weights import TornFile, read

SAMPLE = {"dicom": 400, "reports": 300, "pictures": 200, "presets": 60, "cards": 60}
ABORTS = zlib.decompress(  # a frame in JPEG Lossless on which gdcm 3.0 aborts its process
    base64.b64decode(
        b"eNr7f+P/AwYBLzdPNwZGRgYGRiBk+H+bwZmBg42NnY2Vg52dnZOTg4tHhJeHm5tHUkiYX0RWSl5KVkpGRkFF"
        b"T11BSUdZRkbDXFPHwNDExERe3dLWwshGz9jE6P8BBm4OBgUGBUZGQYb/RxjkgYazMoIBAxQwMjGzsLKxc3By"
        b"cf+/wrBVgIGJkZmZiYWZlZWFBShbC5RnYBFkFVI0dGQTDkxkVyoUMWqcuJBD2WnjQdGgix9UjJOKmji5xMQl"
        b"JKVU1dQ1NLVMTM3MLSqtnF1c3dw9TnoFh4SGhUdERiWnpKalZ2RmFZeUlpVXVFY1t7S2tXd0dk2aPGXqtOkz"
        b"Zs5atHjJ0mXLV6zs2rR5y9Zt23fs3HXo8JGjx46fOHnq0uUrV69dv3Hz1sNHj588ffb8xctXHz99/vL12/cf"
        b"P3/9v8XAAfKPPcPH3dp6c8Kd09Mvd73IefOrMJZ37nw/7fMI5sLNm18eLTErq7VYbwtnrms7d3656IWbN788"
        b"2vMNztwlbW0HNCs19XLX/5sMAPuemwE="
    )
)


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_hostile_inputs_are_read_or_refused_by_the_error_promised(target: str) -> None:
    if target == "whole":
        pytest.skip("real files of full size: see tests/README.md")
    count = fuzz.fuzz(target, SAMPLE.get(target, 100), seed=10**6)
    assert count.faults == {}
    assert count.tried == SAMPLE.get(target, 100)
    assert count.outcomes["read"] > 0
    assert target == "reports" or count.outcomes["refused"] > 0


# ---- x-rays
def save(path: Path, ds: object) -> Path:
    path.write_bytes(corpora._bytes(ds))
    return path


def test_a_file_that_aborts_its_decoder_is_refused_and_the_next_one_is_read(tmp_path: Path) -> None:
    bad = corpora._made(8)
    bad.PixelData = encaps.encapsulate([ABORTS])
    bad["PixelData"].VR, bad["PixelData"].is_undefined_length = "OB", True
    bad.file_meta.TransferSyntaxUID = uid.JPEGLosslessSV1
    for _ in range(2):
        with pytest.raises(UnreadableImage, match="its decoder ended with code -6"):
            read_dicom(save(tmp_path / "bad.dcm", bad))
    good = tmp_path / "good.dcm"
    good.write_bytes(corpora._jpeg_lossless(corpora._made(8), tmp_path))
    plain = read_dicom(save(tmp_path / "plain.dcm", corpora._made(8)))
    np.testing.assert_array_equal(read_dicom(good), plain)


@pytest.mark.parametrize("length", [0, 1, 7])
def test_an_endless_jp2_box_is_refused(tmp_path: Path, length: int) -> None:
    box = struct.pack(">I4s", 12, b"jP  ") + b"\r\n\x87\n" + struct.pack(">I4s", length, b"jp2h")
    ds = corpora._made(8)
    ds.PixelData = encaps.encapsulate([box + bytes(300)])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
    with pytest.raises(UnreadableImage, match=f"a JP2 box of {length} bytes"):
        read_dicom(save(tmp_path / "x.dcm", ds))


def peak(read_it: object, *args: object) -> int:
    """The largest memory that reading allocates, in bytes, whatever its end."""
    tracemalloc.start()
    try:
        read_it(*args)  # type: ignore[operator]
    except (UnreadableImage, CardError):
        pass
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return most


def test_lengths_and_positions_that_lie_take_no_memory(tmp_path: Path) -> None:
    path = save(tmp_path / "x.dcm", corpora._made())
    whole = path.read_bytes()
    long = corpora.element(0x00280020, b"UN", b"abcd", 2**32 - 2)
    path.write_bytes(whole[:-2100] + long + whole[-2100:])
    assert peak(read_dicom, path) < 10**7
    ds = corpora._made()
    ds.add_new(0x60000102, "US", 0)
    at = whole.index(struct.pack("<HH", 0x28, 0x101))
    overlay = corpora.element(0x60000102, b"UL", struct.pack("<I", 2**32 - 1), 4)
    path.write_bytes(
        whole[:at] + whole[at:].replace(b"\xe0\x7f\x10\0", overlay + b"\xe0\x7f\x10\0")
    )
    assert peak(read_dicom, path) < 10**7
    png = corpora.pictures()[0]
    at = png.index(b"IDAT")
    (tmp_path / "x.png").write_bytes(png[: at - 4] + struct.pack(">I", 2**31 - 1) + png[at:])
    assert peak(lambda p: read_image(p, 32), tmp_path / "x.png") < 10**7


def test_a_picture_whose_pixels_take_too_much_memory_is_refused_unread(tmp_path: Path) -> None:
    head = struct.pack(">IIBBBBB", 6000, 6000, 16, 6, 0, 0, 0)  # 36 million pixels of RGBA

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    with pytest.raises(UnreadableImage, match="absurd dimensions"):
        read_image(tmp_path / "x.png", 32)


# ---- reports
@pytest.mark.parametrize("piece", ["\t", "\\", ":", "<UiD\t", "[a ", "x: ", "a", "(", "effusion "])
def test_no_report_takes_the_square_of_its_length(piece: str) -> None:
    text = "<p " + piece * (20_000 // len(piece)) + ":"
    began = time.process_time()
    extract_mentions(text)
    assert time.process_time() - began < 3


# ---- cards, presets, tables
BOMBS = {
    "lists": "a0: &a0 [x, x]\n"
    + "\n".join(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, 40)),
    "maps": "m0: &m0 {k: 1}\n"
    + "\n".join(f"m{k}: &m{k} {{<<: [*m{k - 1}, *m{k - 1}], n{k}: 1}}" for k in range(1, 40)),
    "itself": "a: &a [*a]",
    "deep": "a: " + "[" * 5000 + "]" * 5000,
    "open": "a: " + "{a: " * 5000,
    "lines": "\n".join(" " * k + "a:" for k in range(1500)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_yaml_that_means_too_much_is_refused_unbuilt(tmp_path: Path, name: str) -> None:
    began = time.process_time()
    (tmp_path / "c.md").write_text(f"---\n{BOMBS[name]}\n---\n")
    with pytest.raises(CardError, match="not YAML"):
        cards.read_card(tmp_path / "c.md")
    with pytest.raises(study.StudyError, match="not YAML"):
        presets.read_preset(BOMBS[name], "made")
    assert time.process_time() - began < 3


def test_anchors_that_mean_little_are_read_as_before() -> None:
    text = presets.preset_path("smoke").read_text("utf-8")
    shared = text.replace("fractions:", "fractions: &f", 1).replace(
        "    fractions:\n      pretrain: 1.0", "    fractions: {<<: *f, pretrain: 0.4}"
    )
    assert shared.count("*f") == 1
    both = [presets.read_preset(each, "smoke") for each in (text, shared)]
    assert both[1].data["public"]["fractions"] == both[0].data["study"]["fractions"]
    assert grid.expand(both[0])


def test_json_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    deep = "[" * 100_000
    (tmp_path / "t.json").write_text(deep)
    with pytest.raises(CardError, match=r"t\.json"):
        read_tables([tmp_path / "t.json"], used=["image"])
    (tmp_path / "record.json").write_text(deep)
    with pytest.raises(ValueError, match="not a run record"):
        results.read_record(tmp_path)
    assert listed_names(f"{deep}]", "|")
    for text in (deep, '{"x": 1}', "[[null, 1], [2, 3]]"):
        with pytest.raises(ValueError, match="points"):
            shapes.polyline(text, (8, 8), 1)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_torn_archive_of_a_hospital_is_refused(tmp_path: Path, pack: object) -> None:
    data = bytearray(pack(b"image,patient\n" + bytes(range(256)) * 40))  # type: ignore[operator]
    data[len(data) // 2 : len(data) // 2 + 30] = bytes(30)
    (tmp_path / "t.csv.gz").write_bytes(bytes(data))
    with pytest.raises(study.StudyError, match="cannot be unpacked"):
        read_source(str(tmp_path / "t.csv.gz"))


def test_weights_with_a_place_before_their_start_are_torn(tmp_path: Path, monkeypatch) -> None:
    import torch

    def fails(*_: object, **__: object) -> None:
        raise OSError(22, "Invalid argument")

    torch.save({"a": torch.ones(1)}, tmp_path / "w.pt")
    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(TornFile, match="cut short or damaged"):
        read(tmp_path / "w.pt")


def test_a_torch_file_that_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    import torch

    torch.save("state_dict", tmp_path / "w.pt")
    with pytest.raises(TornFile, match="holds no tensors"):
        read(tmp_path / "w.pt")


def test_a_manifest_whose_text_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    table = pq.read_table(pa.BufferReader(corpora.manifests()[0]))
    bad = pa.array([b"i\xff", *(b"%d" % k for k in range(7))], pa.binary()).view(pa.string())
    table = table.set_column(0, "image_id", bad)
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="not a readable Parquet table"):
        read_manifest(tmp_path / "m.parquet")


# ---- records
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "newer"),
        ({"schema": "1"}, "not a run record"),
        ({"schema": None}, "not a run record"),
        ({"parameters": {"clip": 1.0}}, "earlier version: clip is now called grad_clip_norm"),
    ],
)
def test_a_record_of_another_version_is_named_with_the_remedy(tmp_path, change, said) -> None:
    record = {"schema": 1, "run": "a", "stage": "data", "preset": "p", "parameters": {}}
    record |= {"subject": {}, "metrics": [], "info": {"seconds": 1}, "environment": {}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert results.read_record(tmp_path)["run"] == "a"
    (tmp_path / "record.json").write_text(json.dumps(record | change))
    with pytest.raises(ValueError, match=said):
        results.read_record(tmp_path)
