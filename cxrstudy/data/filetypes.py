"""Tell what a file is by its first bytes, since names and suffixes may be wrong."""

from pathlib import Path

DICOM = "a DICOM file"
BARE = (b"\x08\x00", b"\x02\x00", b"\x00\x08")  # DICOM without preamble: its first group
STARTS: tuple[tuple[int, bytes, str], ...] = (  # offset, bytes, kind; the first match counts
    (128, b"DICM", DICOM),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"II*\0", "a TIFF picture"),
    (0, b"MM\0*", "a TIFF picture"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (0, b"GIF8", "a GIF picture"),
    (8, b"WEBP", "a WebP picture"),
    (0, b"P5", "a PGM picture"),
    (0, b"P6", "a PPM picture"),
    (4, b"ftypavif", "an AVIF file"),
    (4, b"ftyphei", "a HEIC file"),
    (4, b"ftypmif1", "a HEIC file"),
    (4, b"ftyp", "a film (MP4 or MOV)"),
    (0, b"BM", "a BMP picture"),
    (0, b"\xff\x0a", "a JPEG XL file"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL file"),
    (344, b"n+1\0", "a NIfTI file"),
    (344, b"ni1\0", "a NIfTI header"),
    (0, b"\x5c\x01\0\0", "a NIfTI or Analyze file"),
    (0, b"NRRD", "an NRRD file"),
    (0, b"ObjectType", "a MetaImage header"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"PAR1", "a Parquet table"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"\xd0\xcf\x11\xe0", "an old Office document"),
    (0, b"PK\x03\x04", "a zip archive (or an Office document)"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (0, b"\x1f\x8b", "a gzip archive (or .nii.gz)"),
    (0, b"7z\xbc\xaf", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ", "an xz archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\0\x05\x16\x07", "a note of macOS on another file (AppleDouble), not that file"),
    (0, b"\0\x05\x16\0", "a note of macOS on another file (AppleSingle), not that file"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
)


def what_is(path: str | Path) -> str:
    """Return in a few words what a file is; OSError if it cannot be read.

    What Pillow opens ends in "picture": "a PNG picture".
    """
    with open(path, "rb") as file:
        return kind_of(file.read(1024))


def kind_of(start: bytes) -> str:
    """Return what a file is by its first 1,024 bytes, in the words of ``what_is``."""
    if not start:
        return "an empty file"
    for offset, magic, kind in STARTS:
        if start.startswith(magic, offset):
            return kind
    if start[:2] in BARE:
        return DICOM
    if not start.strip(b"\0"):
        return "nothing but zeros (an unfinished copy)"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page (a failed download?)"
    if text.startswith((b"<?xml", b"<svg")):
        return "an XML file"
    printable = sum(32 <= byte < 127 or byte in b"\t\n\r\f" for byte in start)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or printable >= 0.7 * len(start):
        return "text"
    return f"of an unknown kind (its first bytes: {start[:8].hex(' ')})"
