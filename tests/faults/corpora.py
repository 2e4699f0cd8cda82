"""What is mutated: small files of every kind that a reader takes, and real ones where there are."""

import bz2
import functools
import gzip
import io
import json
import lzma
import random
import re
import struct
import tarfile
import zipfile
from pathlib import Path

import gdcm
import numpy as np
import pandas as pd
import pydicom
import torch
from PIL import Image
from pydicom import encaps, uid
from safetensors.torch import save

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
ROOT = Path(__file__).resolve().parents[2]
LOSSLESS = uid.JPEGLosslessSV1
PACKED = (uid.JPEGLSLossless, uid.JPEGLSNearLossless, uid.JPEG2000Lossless, uid.JPEG2000)
REPORTS = (
    "FINDINGS: Heart size is normal. No pleural effusion or pneumothorax.\nIMPRESSION: Normal.",
    "Indication: cough\r\nThe endotracheal tube tip is 4 cm above the carina; PICC in the SVC.",
    "<p>Possible right lower lobe consolidation &amp; small effusion, cannot exclude edema.</p>",
    "1) Cardiomegaly.\n2) Fracture of the 3rd left rib\\.br\\HISTORY: nodule?\nLungs: clear",
    "Radiographie du thorax: pas d'épanchement pleural. Cœur de taille normale.",
)
WORDS = (
    *("FINDINGS:", "IMPRESSION:", "no ", "not ", "without ", " and ", " or ", "possible ", "tube"),
    *("effusion", "right ", "left ", "<br>", "&amp;", "&#55296;", "&#x110000;", "\\.br\\", "(("),
    *("_x000D_", "**", "__", "[", "<b>", "1.", "- ", "%0a", "\\u000a", " of the ", "catheter "),
    *("pneumothorax ", "a/b", "cannot exclude ", "</td>", "lungs: ", "a.b.c. ", "{\\rtf1 ", "|"),
)
YAML = (
    *(
        "  ",
        "- ",
        ": ",
        "!!python/object:os.system ",
        "&a ",
        "*a",
        "<<: ",
        "|\n",
        "null",
        "[[",
        "}",
    ),
    *(
        "1e400",
        "2020-13-45",
        "!!binary ",
        "!!set ",
        "? ",
        "~",
        "---\n",
        "%YAML 9.9\n",
        "0b1",
        "1:90",
    ),
    *(
        ".inf",
        "{}",
        "[]",
        "'",
        '"',
        "!!float x",
        "!!timestamp x",
        "!!int x",
        "9" * 5000,
        "=",
        "../",
    ),
)


# ---- x-rays ----------------------------------------------------------------------------------
def _made(bits: int = 12, signed: int = 0, photometric: str = "MONOCHROME2") -> pydicom.Dataset:
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.ComputedRadiographyImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3"
    ramp = np.add.outer(np.arange(32), np.arange(32)) * (2**bits - 1) // 62
    ds.Rows = ds.Columns = 32
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, photometric
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = (16 if bits > 8 else 8), bits, bits - 1
    ds.PixelRepresentation, ds.WindowCenter, ds.WindowWidth = signed, 2 ** (bits - 1), 2**bits
    ds.RescaleSlope, ds.RescaleIntercept, ds.PatientID = 1, 0, "p"
    ds.PixelData = ramp.astype("<u2" if bits > 8 else "u1").tobytes()
    ds["PixelData"].VR = "OW" if bits > 8 else "OB"
    return ds


def _cropped(path: Path) -> pydicom.Dataset:
    """Return a real x-ray with all its tags and 32 x 32 of its pixels, not compressed."""
    ds = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in ds.file_meta:
        ds.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    pixels = ds.pixel_array
    middle = pixels[tuple(slice(n // 2 - 16, n // 2 + 16) for n in pixels.shape)]
    ds.Rows, ds.Columns = middle.shape
    ds.PixelData = middle.tobytes()
    ds["PixelData"].VR = "OW"
    ds["PixelData"].is_undefined_length = False
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return ds


def _bytes(ds: pydicom.Dataset, enforce: bool = True) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=enforce)
    return buffer.getvalue()


def _compressed(ds: pydicom.Dataset, syntax: uid.UID) -> pydicom.Dataset:
    other = pydicom.dcmread(io.BytesIO(_bytes(ds)))
    if syntax == uid.RLELossless:
        other.compress(syntax)
        return other
    pixels, buffer = other.pixel_array, io.BytesIO()
    if syntax == uid.JPEGBaseline8Bit:
        small = (pixels / max(1, pixels.max()) * 255).astype(np.uint8)
        other.BitsAllocated, other.BitsStored, other.HighBit = 8, 8, 7
        Image.fromarray(small).save(buffer, "JPEG")
    elif syntax in uid.JPEG2000TransferSyntaxes:
        Image.fromarray(pixels).save(buffer, "JPEG2000", irreversible=syntax == uid.JPEG2000)
    else:
        other.compress(syntax, encoding_plugin="pyjpegls")
        return other
    other.PixelData = encaps.encapsulate([buffer.getvalue()])
    other["PixelData"].VR, other["PixelData"].is_undefined_length = "OB", True
    other.file_meta.TransferSyntaxUID = syntax
    return other


def _jpeg_lossless(ds: pydicom.Dataset, folder: Path) -> bytes:
    """Return the file in JPEG Lossless, which gdcm alone writes."""
    source, target = str(folder / "from.dcm"), str(folder / "to.dcm")
    Path(source).write_bytes(_bytes(ds))
    reader = gdcm.ImageReader()
    reader.SetFileName(source)
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(target)
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return Path(target).read_bytes()


def x_rays(folder: Path) -> list[bytes]:
    """Return small DICOM files: made ones, and real ones cropped, in every way of compression."""
    made = [_made(), _made(8), _made(16, 1), _made(10, 0, "MONOCHROME1")]
    real = [
        _cropped(path)
        for path in sorted((SHARED / "dicom").glob("*"))
        if path.suffix != ".csv" and path.stat().st_size < 2_000_000
    ]
    whole = [*made, *real]
    files = [_bytes(ds) for ds in whole] + [_jpeg_lossless(ds, folder) for ds in made[:2]]
    for k, ds in enumerate(whole):
        syntaxes = (uid.RLELossless, uid.JPEGBaseline8Bit, uid.JPEGLSLossless, uid.JPEG2000Lossless)
        for syntax in syntaxes if k < 2 else syntaxes[k % 4 : k % 4 + 1]:
            if ds.PixelRepresentation == 0:
                files.append(_bytes(_compressed(ds, syntax)))
    bare = whole[-1]
    for implicit, little in ((True, True), (False, False)):
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, pydicom.Dataset(bare), implicit_vr=implicit, little_endian=little)
        files.append(buffer.getvalue())
    packed = pydicom.dcmread(io.BytesIO(_bytes(made[0])))
    packed.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    return [*files, _bytes(packed)]


VALUES: tuple[bytes, ...] = (
    *(b"", b"\0\0", b"0 ", b"-1", b"1\\2\\3", b"nan ", b"inf ", b"1e400 ", b"1e-400", b"\xff" * 8),
    *(b"9" * 16, b"\xe9\xe8", b"MONOCHROME1 ", b"RGB ", b"PALETTE COLOR ", b"LINEAR", b"SIGMOID "),
    *(b"\\" * 400, b"1.5 ", b"0x10", b"A" * 5000, b"\0" * 4, b"\x01\0", b"\xff\xff", b"\0\x80"),
)
TAGS = (
    *(0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280100, 0x00280101),
    *(0x00280102, 0x00280103, 0x00280120, 0x00280121, 0x00281050, 0x00281051, 0x00281052),
    *(0x00281053, 0x00281056, 0x00283000, 0x00283010, 0x00283002, 0x00283006, 0x60000010),
    *(0x60000011, 0x60000100, 0x60000102, 0x60003000, 0x00080005, 0x7FE00001, 0x7FE00010),
    *(0x00020010, 0x00080016, 0x20500020),
)
VRS = (b"US", b"SS", b"DS", b"IS", b"CS", b"LO", b"OW", b"OB", b"UN", b"SQ", b"UI", b"FD", b"ZZ")
LONG = {b"OW", b"OB", b"UN", b"SQ"}


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """Return one element in explicit little endian; ``length`` may lie."""
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    size = len(value) if length is None else length
    return (
        head
        + (struct.pack("<xxI", size) if vr in LONG else struct.pack("<H", size & 0xFFFF))
        + value
    )


def nested(depth: int, closed: bool) -> bytes:
    """Return sequences in sequences."""
    opened = element(0x00283000, b"SQ", struct.pack("<HHI", 0xFFFE, 0xE000, 2**32 - 1), 2**32 - 1)
    end = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return opened * depth + (end * depth if closed else b"")


def hostile_tags(data: bytes, rng: random.Random) -> bytes:
    """Return a Part 10 file with elements put in: odd values, false lengths."""
    at = data.find(struct.pack("<HH", 0x0028, rng.choice((0x2, 0x4, 0x10, 0x100))))
    at = at if at > 0 else 132
    put = b""
    for _ in range(rng.choice((1, 1, 2, 5))):
        vr, value = rng.choice(VRS), rng.choice(VALUES)
        if rng.random() < 0.3:
            value = rng.randbytes(rng.choice((2, 4, 8)))
        length = rng.choice((None, None, None, 0, 1, 2**16 - 1, 2**31, 2**32 - 2, 2**32 - 1))
        put += element(rng.choice(TAGS), vr, value, length)
    if rng.random() < 0.05:
        put += nested(rng.choice((1, 50, 900, 3000, 20_000)), rng.random() < 0.5)
    return data[:at] + put + (data[at:] if rng.random() < 0.9 else b"")


# ---- pictures --------------------------------------------------------------------------------
def pictures() -> list[bytes]:
    """Return small pictures of every format that is read, in several modes."""
    ramp = (np.add.outer(np.arange(24) * 5, np.arange(24) * 5)).astype(np.uint8)
    deep = ramp.astype(np.uint16) * 16
    files = []
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "JPEG2000", "WEBP", "GIF", "PPM"):
        for mode in ("L", "RGB", "I;16", "P", "LA", "RGBA", "CMYK", "1", "F"):
            picture = Image.fromarray(deep if mode == "I;16" else ramp)
            picture = (
                picture
                if mode == "I;16"
                else picture.convert("L").convert(mode)
                if mode not in ("CMYK",)
                else picture.convert("RGB").convert(mode)
            )
            buffer = io.BytesIO()
            try:
                picture.save(buffer, kind)
            except (OSError, ValueError, KeyError):
                continue
            files.append(buffer.getvalue())
    for how in ("tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate", "group4", "zstd"):
        buffer = io.BytesIO()
        Image.fromarray(ramp).convert("1" if how == "group4" else "L").save(
            buffer, "TIFF", compression=how
        )
        files.append(buffer.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG"):
        buffer = io.BytesIO()
        Image.fromarray(ramp).save(buffer, kind, exif=exif, progressive=True)
        files.append(buffer.getvalue())
    return files


# ---- tables ----------------------------------------------------------------------------------
def tables() -> list[tuple[str, bytes]]:
    """Return small tables with the ending of their name."""
    text = "image,patient,label,report\n" + "".join(
        f'x{k}.png,p{k // 2},a|b,"No effusion, {k}"\n' for k in range(9)
    )
    frame = pd.read_csv(io.StringIO(text))
    other = frame.assign(when=pd.Timestamp("2020-01-01"), lists=[[1, 2]] * 9, x=1.5)
    records = frame.to_dict("records")
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as packed:
        packed.writestr("t.csv", text)
    xml = "<eCitation><uId id='CXR1'/><MedlineCitation><AbstractText Label='FINDINGS'>ok"
    xml += "</AbstractText></MedlineCitation><MeSH><major>a/b</major></MeSH>"
    xml += "<parentImage id='x'><caption>c</caption></parentImage></eCitation>"
    return [
        (".csv", text.encode()),
        (".csv", text.replace(",", ";").encode("cp1252")),
        (".csv", text.encode("utf-16")),
        (".tsv", b"\xef\xbb\xbf" + text.replace(",", "\t").encode()),
        (".csv.gz", gzip.compress(text.encode())),
        (".csv.bz2", bz2.compress(text.encode())),
        (".csv.xz", lzma.compress(text.encode())),
        (".csv.zip", zipped.getvalue()),
        (".json", json.dumps(records).encode()),
        (".json", json.dumps({str(k): r for k, r in enumerate(records)}).encode()),
        (".jsonl", "\n".join(map(json.dumps, records)).encode()),
        (".xml", xml.encode()),
        (".parquet", frame.to_parquet()),
        (".parquet", other.to_parquet(compression="zstd")),
    ]


def manifests() -> list[bytes]:
    """Return small manifests as Parquet."""
    made = pd.DataFrame(
        {
            "image_id": [f"i{k}" for k in range(8)],
            "patient_id": [f"p{k // 2}" for k in range(8)],
            "study_id": [f"s{k}" for k in range(8)],
            "path": [f"{k}.png" for k in range(8)],
            "view": ["PA", None] * 4,
            "age": [1.0, np.nan] * 4,
            "label:edema": [1.0, 0.0] * 4,
            "side:edema": ["right", ""] * 4,
        }
    )
    odd = made.assign(image_id=range(8), age=["x"] * 8, path=[[1]] * 8)
    return [made.to_parquet(), made.to_parquet(compression="gzip"), odd.to_parquet()]


def weights() -> list[tuple[str, bytes]]:
    """Return small files of weights, and of embeddings, with their ending."""
    tensors = {"a.weight": torch.ones(3, 4), "b": torch.zeros(2, dtype=torch.float16)}
    buffer = io.BytesIO()
    torch.save({"state_dict": tensors, "step": 3, "names": ["a"]}, buffer)
    packed = io.BytesIO()
    np.savez(packed, image_id=np.array(["a", "b"]), vectors=np.ones((2, 4), np.float32))
    table = pd.DataFrame({"image_id": ["a", "b"], "e0": [1.0, 2.0], "e1": [0.5, 0.1]})
    return [
        (".safetensors", save(tensors)),
        (".pt", buffer.getvalue()),
        (".npz", packed.getvalue()),
        (".parquet", table.to_parquet()),
    ]


# ---- texts -----------------------------------------------------------------------------------
@functools.cache
def reports() -> list[str]:
    """Return reports: a few made ones, and 300 of Open-i where these are."""
    found = list(REPORTS)
    path = SHARED / "openi_reports" / "reports.tar.gz"
    if path.is_file():
        with tarfile.open(path) as packed:
            for member in packed:
                file = packed.extractfile(member) if member.isfile() else None
                text = file.read().decode(errors="replace") if file and len(found) < 300 else ""
                parts = re.findall(r'Label="(\w+)">([^<]+)', text)
                found += ["\n".join(f"{name}: {said}" for name, said in parts)] * bool(parts)
    return found


def cards() -> list[str]:
    """Return the repository's data cards."""
    return [path.read_text("utf-8") for path in sorted((ROOT / "data_cards").glob("*.md"))]


def presets() -> list[str]:
    """Return the repository's presets."""
    folder = ROOT / "notebooks" / "presets"
    return [path.read_text("utf-8") for path in sorted(folder.glob("*.yml"))]


def laughs(rng: random.Random) -> str:
    """Return YAML that is small and means very much: anchors, merges, depth."""
    width, depth = rng.choice((2, 9)), rng.choice((3, 9, 30))
    lines = ["a0: &a0 [x, x]"] + [
        f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * width)}]" for k in range(1, depth)
    ]
    maps = ["m0: &m0 {k: 1}"] + [
        f"m{k}: &m{k} {{<<: [{', '.join([f'*m{k - 1}'] * width)}], n{k}: 1}}"
        for k in range(1, depth)
    ]
    deep = rng.choice((20, 500, 20_000))
    return rng.choice(
        (
            "\n".join(lines),
            "\n".join(maps),
            f"title: &t [*t, {rng.random()}]",
            "counts: " + "[" * deep + "]" * rng.choice((0, deep)),
            "counts: " + "{a: " * deep,
            "\n".join(" " * k + "a:" for k in range(min(deep, 2000))),
            "- " * deep + "x",
            "title: " + "x" * 2_000_000,
            f"minutes: {'9' * 5000}",
        )
    )
