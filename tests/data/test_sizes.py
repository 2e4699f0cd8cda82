"""Files that unpack to absurd sizes are refused in clear words and little memory."""

import bz2
import gzip
import io
import lzma
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image
from pydicom import uid

from cxrstudy.data import tables
from cxrstudy.data.dicom import UnreadableImage, read_dicom
from cxrstudy.data.images import read_image
from cxrstudy.data.tables import CardError, read_tables
from cxrstudy.evaluate.embeddings import read_embeddings

MB = 2**20


def zeros(opened, mb: int) -> None:
    for _ in range(mb):
        opened.write(bytes(MB))


def bomb(path: Path, kind: str, mb: int = 400) -> Path:
    """A packed table, as its name says, that is some kB long."""
    head = b"image,patient\n"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed, packed.open("t", "w") as t:
            t.write(head)
            zeros(t, mb)
        return path
    opener = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}[kind]
    with opener(path, "wb") as file:
        file.write(head)
        zeros(file, mb)
    return path


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zip"])
def test_a_packed_table_that_unpacks_to_an_absurd_size_is_refused(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(tables, "SMALL", 8 * MB)
    path = bomb(tmp_path / f"table.csv.{kind}", kind, 20)
    assert path.stat().st_size < 100_000
    with pytest.raises(CardError, match=r"table.csv.* unpacked more than .* copy it again"):
        read_tables([path], used=["image"])


def test_little_memory_is_used_for_that(tmp_path):
    path = bomb(tmp_path / "table.csv.gz", "gz", 3000)
    code = (
        "import resource; from pathlib import Path; from cxrstudy.data.tables import *\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try: read_tables([Path({str(path)!r})], used=['image'])\n"
        "except CardError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1_000_000  # kB


def test_a_packed_table_of_usual_size_is_read(tmp_path):
    rows = "".join(f"{k},p{k // 3}\n" for k in range(20_000))
    for kind, opener in (("gz", gzip.open), ("bz2", bz2.open), ("xz", lzma.open)):
        with opener(tmp_path / f"t.csv.{kind}", "wt") as file:
            file.write(f"image,patient\n{rows}")
        assert len(read_tables([tmp_path / f"t.csv.{kind}"], used=["image"]).frame) == 20_000


def test_a_parquet_table_with_an_absurd_number_of_rows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MOST_ROWS", 10**5)
    path = tmp_path / "table.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(200_000, np.int32)), ["a"])
    pq.write_table(pa.table({"image": column}), path)
    assert path.stat().st_size < 5000
    with pytest.raises(CardError, match=r"table.parquet says that it has 200,000 rows"):
        read_tables([path], used=["image"])


def chunk(name: bytes, data: bytes) -> bytes:
    check = zlib.crc32(name + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + name + data + check


def test_a_picture_that_says_absurd_dimensions_is_refused_unread(tmp_path):
    for name, (width, height) in {"a.png": (60_000, 60_000), "b.png": (12_000, 12_000)}.items():
        head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
        data = zlib.compress(bytes(10 * MB), 9)
        parts = (chunk(b"IHDR", head), chunk(b"IDAT", data), chunk(b"IEND", b""))
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
        with pytest.raises(UnreadableImage, match=r"png: absurd dimensions"):
            read_image(tmp_path / name, 64)


def dicom(pixels: bytes, shape: tuple[int, int], syntax: uid.UID) -> pydicom.Dataset:
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.ComputedRadiographyImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid.generate_uid()
    ds.Rows, ds.Columns, ds.SamplesPerPixel = *shape, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = pixels
    ds["PixelData"].VR = "OB"
    return ds


@pytest.mark.parametrize("shape", [(9000, 9000), (65_535, 65_535)])
def test_a_compressed_x_ray_far_larger_than_its_file_is_refused(tmp_path, shape):
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 90).save(buffer, "JPEG2000")
    packed = pydicom.encaps.encapsulate([buffer.getvalue()])
    path = tmp_path / "x.dcm"
    dicom(packed, shape, uid.JPEG2000Lossless).save_as(path, enforce_file_format=True)
    with pytest.raises(UnreadableImage, match=rf"absurd dimensions: {shape[0]} rows"):
        read_dicom(path)


def test_a_deflated_data_set_of_absurd_size_is_refused_and_a_usual_one_is_read(tmp_path):
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    path = tmp_path / "good.dcm"
    syntax = uid.DeflatedExplicitVRLittleEndian
    dicom(ramp.tobytes(), (64, 64), syntax).save_as(path, enforce_file_format=True)
    assert np.allclose(read_dicom(path), ramp / ramp.max())
    whole = path.read_bytes()
    end = 144 + int.from_bytes(whole[140:144], "little")
    pack = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    with (tmp_path / "bomb.dcm").open("wb") as file:
        file.write(whole[:end])
        for _ in range(300):
            file.write(pack.compress(bytes(MB)))
        file.write(pack.flush())
    with pytest.raises(UnreadableImage, match=r"bomb.dcm: absurd size: unpacked more than"):
        read_dicom(tmp_path / "bomb.dcm")


def test_embeddings_that_unpack_to_an_absurd_size_are_refused(tmp_path):
    path = tmp_path / "e.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in ("image_id.npy", "vectors.npy"):
            with packed.open(name, "w") as file:
                zeros(file, 200)
    with pytest.raises(ValueError, match=r"e.npz: .* an absurd size"):
        read_embeddings(path)
