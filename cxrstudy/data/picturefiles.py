"""Read picture files (PNG, JPEG, TIFF, BMP, JPEG 2000, WebP, GIF, PGM) as grey, upright images."""

import os
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "JPEG2000", "WEBP", "GIF", "PPM")
DEPTHS = (8, 10, 12, 14, 16)  # bits that detectors and exports use
TINT = 8  # of 256: channels of a grey picture differ by no more, whatever a JPEG does to them
TINTED = 5e-4  # of the pixels: a small mark in colour
COLOUR, CLEAR, OWN = "colour", "transparent", "scaled to its own range"
FEWER = "fewer bits used than the file has"
TORN = "lower rows of one grey"  # as in a JPEG that was cut short and closed again
CELLS = {"1": 1, "L": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "LA": 2, "RGB": 3}  # others: 4
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a tag of TIFF, and one of its values


class UnfitPicture(ValueError):
    """A picture that is no x-ray: ``.kind`` for counts, ``.what`` it is, ``.remedy``."""

    def __init__(self, kind: str, what: str, remedy: str) -> None:
        super().__init__(kind, what, remedy)
        self.kind, self.what, self.remedy = kind, what, remedy


def read_picture(path: str | Path, max_pixels: int) -> tuple[Image.Image, tuple[str, ...]]:
    """Return a picture in mode L, or F if deep, in [0, 255], upright by its EXIF tag, and notes.

    White of a deep picture (16 bits) is the end of its bits. These are the bits of a PNG's sBIT
    chunk if no value is larger, else the fewest of 8, 10, 12, 14 or 16 that hold the largest
    value, since 12-bit images are often stored in 16-bit files. Deeper pictures (32 bits, floats)
    are scaled to their own range. Transparent pixels are black. Colour becomes luma, with a note.

    Raises:
        UnfitPicture: it is no single x-ray of usable size.
        Exception: whatever Pillow raises on damaged files.
    """
    with open(path, "rb") as opened:  # in memory, where a chunk of 4 GB ends with the file
        data = opened.read(min(os.fstat(opened.fileno()).st_size, max_pixels * 4) + 1)
    if len(data) > max_pixels * 4:
        raise UnfitPicture("absurd size", f"more than {max_pixels * 4:,} bytes", "export it again")
    try:
        file = Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UnfitPicture("absurd dimensions", str(error), "export the image again") from None
    with file:
        cells = file.width * file.height * CELLS.get(file.mode, 4)  # bounds what decoding takes
        if not 0 < cells <= max_pixels:
            what = f"{file.height} rows, {file.width} columns"
            raise UnfitPicture("absurd dimensions", what, "export the image again")
        frames = getattr(file, "n_frames", 1)
        if file.format != "MPO" and frames != 1:  # MPO: a JPEG followed by a preview
            raise UnfitPicture("several frames", f"{frames} frames, not one", "export one of them")
        depth, significant = _png_depth(path) if file.format == "PNG" else (0, 0)
        inverted = file.format == "TIFF" and file.getexif().get(PHOTOMETRIC) == WHITE_IS_ZERO
        file.load()
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith(("I", "F")):
        return _deep(image, significant, inverted)
    grey, notes = _grey(image)
    if depth == 16 and np.asarray(grey).max() < 64:  # Pillow keeps only the upper 8 bits
        what = "few of its 16 bits are used"
        raise UnfitPicture("16-bit colour", what, "save it as a grey 16-bit PNG")
    lowest = np.asarray(grey)[-max(8, grey.height // 20) :]
    if file.format == "JPEG" and lowest.min() == lowest.max() and 8 < lowest.min() < 248:
        notes = (*notes, TORN)
    return grey, notes


def _deep(
    image: Image.Image, significant: int, inverted: bool
) -> tuple[Image.Image, tuple[str, ...]]:
    """Return a picture of more than 8 bits as mode F in [0, 255]."""
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        remedy = "export it again as a 16-bit PNG"
        raise UnfitPicture("no numbers", "it holds infinities or NaN", remedy)
    if image.mode == "F" or low < 0 or high >= 2**16:
        scaled = (values - low) / ((high - low) or 1)
        scaled = 1 - scaled if inverted else scaled
        return Image.fromarray((scaled * 255).astype(np.float32)), (OWN,)
    used = next(bits for bits in DEPTHS if high < 2**bits)
    if 0 < significant < 16 and high < 2**significant:
        used = significant
    if inverted:
        values = 2**used - 1 - values
    grey = values * (255 / (2**used - 1))
    return Image.fromarray(grey.astype(np.float32)), (FEWER,) if used < 16 else ()


def _grey(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Return a picture of 8 bits a channel, or of 1 bit, as mode L."""
    notes: tuple[str, ...] = ()
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            black = Image.new("RGBA", image.size, (0, 0, 0, 255))
            image, notes = Image.alpha_composite(black, image), (CLEAR,)
    if image.mode in ("1", "L"):
        return image.convert("L"), notes
    rgb = image.convert("RGB")
    if (np.ptp(np.asarray(rgb), axis=2) > TINT).mean() > TINTED:
        notes = (*notes, COLOUR)
    return (image if image.mode in ("RGB", "P") else rgb).convert("L"), notes


def _png_depth(path: str | Path) -> tuple[int, int]:
    """Return the bits a sample of a PNG, and the significant bits by sBIT (0: not given)."""
    depth = significant = 0
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            if name in (b"IDAT", b"IEND") or length > 2**24:
                break
            data = file.read(length)
            file.seek(4, 1)
            if name == b"IHDR" and length >= 9:
                depth = data[8]
            elif name == b"sBIT" and data:
                significant = max(data)
    return depth, significant
