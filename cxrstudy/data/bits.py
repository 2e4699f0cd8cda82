"""Read the stored values of a DICOM image: which bits of its words hold them."""

import struct
from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder, pixel_array

from cxrstudy.data import apart

# pydicom would take gdcm first, which aborts the process on some damaged files: use it last, apart
CODECS = dict.fromkeys((uid.JPEGBaseline8Bit, uid.JPEG2000Lossless, uid.JPEG2000), "pillow")
CODECS |= dict.fromkeys(uid.JPEGLSTransferSyntaxes, "pyjpegls")
FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # JPEG and JPEG-LS: start of frame
WIDER = "values beyond BitsStored"  # note: the words hold more bits than the tags say


class UnfitTags(ValueError):
    """The tags that describe how pixels are stored do not fit the pixel data."""


class NoCodec(ValueError):
    """No decoder for the transfer syntax is installed."""


@dataclass(frozen=True)
class Stream:
    """The header of a JPEG, JPEG-LS or JPEG 2000 stream."""

    precision: int
    rows: int
    columns: int
    samples: int
    signed: bool = False


def stored_values(ds: pydicom.Dataset) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the stored values (H, W) as int32, and notes on how they were found.

    Absent tags take the usual values: BitsStored = all bits allocated, HighBit = BitsStored - 1,
    PixelRepresentation = unsigned. A value is ``word >> (HighBit + 1 - BitsStored)``, cut to
    BitsStored bits. If a JPEG stream's own precision is no larger than BitsStored, its samples
    already are the values.

    Bits above the value may belong to overlays, may repeat its sign (in all words or in some), or
    may be set by mistake. In the last case all bits are used if that gives the smoothest image of
    all widths: a 14-bit ramp under BitsStored 12 is smooth, its lower 12 bits jump back. If a
    narrower cut is smoother, as with an overlay without tags, the image bits are unknown.

    Raises:
        UnfitTags: the image bits are unknown, or a signed image is much smoother as unsigned.
        NoCodec: no decoder is installed.
        Exception: whatever pydicom and the codecs raise on damaged pixel data.
    """
    words, have, stream_is_signed = _words(ds)
    stored = int(have if ds.get("BitsStored") is None else ds.BitsStored)
    if not 1 <= stored <= int(ds.BitsAllocated):
        raise UnfitTags(
            f"its tags are damaged: BitsStored {stored} of BitsAllocated {ds.BitsAllocated}"
        )
    signed = int(ds.get("PixelRepresentation") or 0)
    if signed not in (0, 1):
        raise UnfitTags(f"its tags are damaged: PixelRepresentation {signed}, not 0 or 1")
    if stream_is_signed and not signed and int(words.max()) >> (have - 1):
        raise UnfitTags("its pixel data hold negative values, but PixelRepresentation is unsigned")
    high = int(stored - 1 if ds.get("HighBit") is None else ds.HighBit)
    if have <= stored:
        stored, high = have, have - 1
    shift = high + 1 - stored
    overlays = _overlay_bits(ds)
    fits_low_bits = int(words.max()) >> stored == 0
    below = (1 << max(shift, 0)) - 1 & ~overlays
    if shift < 0 or high >= have or (fits_low_bits and (words & below).any()):
        if not fits_low_bits:
            raise UnfitTags(
                f"its tags are damaged: HighBit {high} with {stored} bits stored of {have}"
            )
        shift = 0  # right-justified, whatever HighBit says
    padding = _padding_outside(words, ds, ((1 << stored) - 1) << shift) if shift == 0 else None
    if padding is None:
        return _cut(words, (have, stored, shift), overlays, signed)
    inside = np.where(padding, words[~padding].min(), words)
    values, notes = _cut(inside, (have, stored, shift), overlays, signed)
    return np.where(padding, _extend(words, 16, signed), values), notes


def _cut(
    words: np.ndarray, layout: tuple[int, int, int], overlays: int, signed: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Cut the values out of words of ``have`` bits: ``stored`` bits, ``shift`` above the lowest."""
    have, stored, shift = layout
    high = stored + shift - 1
    if (words & (overlays & (((1 << stored) - 1) << shift))).any():
        raise UnfitTags(
            f"an overlay uses bits that also hold the image (BitsStored {stored}, HighBit {high})"
        )
    full = (words & ~np.uint32(overlays)) >> shift
    narrow = full & ((1 << stored) - 1)
    room = np.uint32(((1 << (have - shift)) - 1) & ~(overlays >> shift))
    sign_repeated = _extend(narrow, stored, signed).astype(np.uint32) & room
    if not (full >> stored).any() or np.array_equal(full & room, sign_repeated):
        return _check_sign(narrow, stored, signed), ()
    roughness = {
        width: _roughness(_extend(full & ((1 << width) - 1), width, signed))
        for width in range(stored, have - shift + 1)
    }
    smoothest = min(roughness.values())
    in_some_words = signed and ((full & room == sign_repeated) | (full == narrow)).all()
    if in_some_words and roughness[stored] <= smoothest:
        return _extend(narrow, stored, signed), ()
    if roughness[have - shift] > smoothest:
        raise UnfitTags(
            f"bits above HighBit {high} are set in some pixels, and no overlay explains them"
        )
    return _extend(full, have - shift, signed), (WIDER,)


def _words(ds: pydicom.Dataset) -> tuple[np.ndarray, int, bool]:
    """Return the words as stored (uint32), their bits, and whether the stream is signed."""
    syntax = ds.file_meta.TransferSyntaxUID
    stream = _checked_stream(ds, syntax) if syntax.is_encapsulated else None
    precision = stream.precision if stream else int(ds.BitsAllocated)
    bare = pydicom.Dataset()
    bare.file_meta = ds.file_meta
    bare.Rows, bare.Columns, bare.SamplesPerPixel = ds.Rows, ds.Columns, 1
    bare.PhotometricInterpretation = "MONOCHROME2"
    bare.BitsAllocated = (8 if precision <= 8 else 16) if stream else ds.BitsAllocated
    bare.BitsStored, bare.HighBit, bare.PixelRepresentation = precision, precision - 1, 0
    bare["PixelData"] = ds["PixelData"]
    if syntax.is_encapsulated and syntax not in CODECS:
        words = apart.decoded(bare).astype(np.uint32)
    else:
        words = pixel_array(
            bare,
            decoding_plugin=CODECS.get(syntax, ""),
            raw=True,
            correct_unused_bits=False,
            apply_j2k_sign_correction=False,
        ).astype(np.uint32)
    signed = bool(stream and stream.signed)
    if signed:  # Pillow returns a signed stream as value + half its range
        words ^= np.uint32(1 << (precision - 1))
    return words, precision, signed


def _checked_stream(ds: pydicom.Dataset, syntax: uid.UID) -> Stream | None:
    """Return the header of compressed pixel data if there is one; refuse one of another shape."""
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise NoCodec(f"no codec for {syntax.name}") from None
    if syntax == uid.RLELossless:
        return None
    frame = next(generate_frames(ds.PixelData, number_of_frames=1), b"")
    _refuse_endless(frame)
    stream = _stream(frame)
    if stream and (stream.rows, stream.columns, stream.samples) != (ds.Rows, ds.Columns, 1):
        raise UnfitTags(
            f"its pixel data are damaged, or from another image: {stream.rows} rows, "
            f"{stream.columns} columns, {stream.samples} samples where its tags say {ds.Rows}, "
            f"{ds.Columns}, 1"
        )
    return stream


def _refuse_endless(frame: bytes) -> None:
    """Refuse a JP2 box shorter than its own head: pydicom would never come to the next."""
    at = 12
    while frame.startswith(b"\0\0\0\x0cjP  ") and at < len(frame):
        length, name = int.from_bytes(frame[at : at + 4], "big"), frame[at + 4 : at + 8]
        if name == b"jp2c":
            return
        if length < 8:
            raise UnfitTags(f"its pixel data are damaged: a JP2 box of {length} bytes")
        at += length


def _stream(data: bytes) -> Stream | None:
    """Parse the header of a JPEG, JPEG-LS or JPEG 2000 stream."""
    size = data.find(b"\xff\x4f\xff\x51")
    if 0 <= size < 256:  # JPEG 2000, bare or in a JP2 box: SOC, then SIZ
        x1, y1, x0, y0 = struct.unpack_from(">4I", data, size + 8)
        samples, depth = struct.unpack_from(">HB", data, size + 40)
        return Stream((depth & 0x7F) + 1, y1 - y0, x1 - x0, samples, bool(depth & 0x80))
    at = 2
    while data[:2] == b"\xff\xd8" and at + 10 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in FRAME_MARKERS:
            return Stream(*struct.unpack_from(">BHHB", data, at + 4))
        at += 1 if marker == 0xFF else 2 + length
    return None


def _overlay_bits(ds: pydicom.Dataset) -> int:
    """Return a mask of the bits used by overlay planes inside the words (retired 60xx,0102)."""
    bits = 0
    for group in range(0x6000, 0x6020, 2):
        allocated, position = ds.get((group, 0x0100)), ds.get((group, 0x0102))
        if (group, 0x3000) in ds or position is None or position.value is None:
            continue  # the overlay has its own data, or there is none
        if int(position.value) > 0 or (allocated is not None and allocated.value not in (None, 1)):
            bits |= 1 << min(int(position.value), 16)
    return bits & 0xFFFF


def _padding_outside(words: np.ndarray, ds: pydicom.Dataset, value: int) -> np.ndarray | None:
    """Mark padding outside the bits stored, as -2000 in 16 bits is; None if there is none."""
    names = ("PixelPaddingValue", "PixelPaddingRangeLimit")
    ends = [int(v) & 0xFFFF for name in names if (v := ds.get(name)) is not None]
    if not ends:
        return None
    where = (words >= min(ends)) & (words <= max(ends)) & ((words & ~np.uint32(value)) != 0)
    return where if where.any() and not where.all() else None


def _extend(values: np.ndarray, bits: int, signed: int) -> np.ndarray:
    """Return unsigned numbers of ``bits`` bits as int32: two's complement if signed."""
    values = values.astype(np.int32)
    return (values ^ (1 << (bits - 1))) - (1 << (bits - 1)) if signed else values


def _check_sign(words: np.ndarray, bits: int, signed: int) -> np.ndarray:
    """Return words as values; refuse signed ones that are much smoother as unsigned."""
    values = _extend(words, bits, signed)
    if signed and words.size >= 1024:
        inside = values > values.min()  # the smallest value may be a frame around the image
        inside |= inside.mean() > 0.95
        if 2 * _roughness(_extend(words, bits, 0), inside) < _roughness(values, inside):
            raise UnfitTags(
                "PixelRepresentation says signed, but its values are smooth only as unsigned"
            )
    return values


def _roughness(values: np.ndarray, inside: np.ndarray | None = None) -> int:
    """Return the summed difference of neighbours, both of which must be ``inside``."""
    total = 0
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        steps = np.abs(values[one] - values[other])
        chosen = steps if inside is None else steps[inside[one] & inside[other]]
        total += int(chosen.sum(dtype=np.int64))
    return total
