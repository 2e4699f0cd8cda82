"""The stored values of a DICOM image: which bits of its words hold them, whatever the encoding and the tags say."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder, pixel_array

# gdcm, which pydicom would take first, aborts the whole process on some damaged files: only where there is no other
CODECS = dict.fromkeys((uid.JPEGBaseline8Bit, uid.JPEG2000Lossless, uid.JPEG2000), "pillow")
CODECS |= dict.fromkeys(uid.JPEGLSTransferSyntaxes, "pyjpegls")
FRAME = {*range(0xC0, 0xD0), 0xF7} - {
    0xC4,
    0xC8,
    0xCC,
}  # markers that start a frame of JPEG or JPEG-LS
WIDER = (
    "values beyond BitsStored"  # the note of an image whose words hold more bits than its tags say
)


class UnfitTags(ValueError):
    """The tags that say how pixels are stored do not fit the pixel data; the message says which."""


class NoCodec(ValueError):
    """No decoder for the transfer syntax is installed."""


@dataclass(frozen=True)
class Stream:
    """What the header of a JPEG, JPEG-LS or JPEG 2000 stream says."""

    precision: int
    rows: int
    columns: int
    samples: int
    signed: bool = False


def stored_values(ds: pydicom.Dataset) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the stored values (H, W), int32, and notes on how they were found.

    Tags that are absent take the values that readers take: BitsStored all bits allocated, HighBit BitsStored - 1,
    PixelRepresentation unsigned. A value is ``word >> (HighBit + 1 - BitsStored)``, cut to BitsStored bits. A JPEG
    stream has a precision of its own: where that is no larger than BitsStored, its samples are the values already.

    Bits above the value belong to overlays, repeat its sign (in all words or in some), or should not be there. In the
    last case the words are taken as they are where that gives the smoothest image of all widths: a 14-bit ramp under
    BitsStored 12 runs on, where 12 of its bits jump back. If a narrower cut is smoother, as with an overlay that no tag
    tells of, nobody can know which bits are the image: UnfitTags. So it is where a signed image is much smoother as an
    unsigned one.

    Raises UnfitTags, NoCodec, and what pydicom and the codecs raise on damaged pixel data.
    """
    words, have, signed_stream = _words(ds)
    stored = int(have if ds.get("BitsStored") is None else ds.BitsStored)
    if not 1 <= stored <= int(ds.BitsAllocated):
        raise UnfitTags(
            f"its tags are damaged: BitsStored {stored} of BitsAllocated {ds.BitsAllocated}"
        )
    signed = int(ds.get("PixelRepresentation") or 0)
    if signed not in (0, 1):
        raise UnfitTags(f"its tags are damaged: PixelRepresentation {signed}, not 0 or 1")
    if signed_stream and not signed and int(words.max()) >> (have - 1):
        raise UnfitTags(
            "its pixel data hold negative values, where PixelRepresentation says that there are none"
        )
    high = int(stored - 1 if ds.get("HighBit") is None else ds.HighBit)
    if have <= stored:
        stored, high = have, have - 1
    shift = high + 1 - stored
    overlays = _overlay_bits(ds)
    low_only = int(words.max()) >> stored == 0
    below = (1 << max(shift, 0)) - 1 & ~overlays
    if shift < 0 or high >= have or (low_only and (words & below).any()):
        if not low_only:
            raise UnfitTags(
                f"its tags are damaged: HighBit {high} with {stored} bits stored of {have}"
            )
        shift = 0  # right-justified, whatever HighBit says
    value = ((1 << stored) - 1) << shift
    words, padding = _without_padding(words, ds, value) if shift == 0 else (words, None)
    values, notes = _values(words, (have, stored, shift), overlays, signed)
    if padding is not None:
        values = np.where(padding[0], padding[1], values)
    return values, notes


def _values(
    words: np.ndarray, place: tuple[int, int, int], overlays: int, signed: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Values cut out of words of ``have`` bits, ``stored`` of which lie ``shift`` above the lowest, and notes."""
    have, stored, shift = place
    high, value = stored + shift - 1, ((1 << stored) - 1) << shift
    if (words & (overlays & value)).any():
        raise UnfitTags(
            f"an overlay lies in bits that also hold the image (BitsStored {stored}, HighBit {high})"
        )
    full = (words & ~np.uint32(overlays)) >> shift
    narrow = full & ((1 << stored) - 1)
    room = np.uint32(((1 << (have - shift)) - 1) & ~(overlays >> shift))
    repeated = (
        _extend(narrow, stored, signed).astype(np.uint32) & room
    )  # the sign, in all bits above
    if not (full >> stored).any() or np.array_equal(full & room, repeated):
        return _smooth_sign(narrow, stored, signed), ()
    unsure = (
        signed and ((full & room == repeated) | (full == narrow)).all()
    )  # the sign repeated in some words alone
    widths = range(stored, have - shift + 1)
    rough = {
        width: _roughness(_extend(full & ((1 << width) - 1), width, signed)) for width in widths
    }
    if unsure and rough[stored] <= min(rough.values()):
        return _extend(narrow, stored, signed), ()
    if rough[have - shift] > min(rough.values()):
        raise UnfitTags(
            f"bits above HighBit {high} are set in some pixels, and no overlay explains them"
        )
    return _extend(full, have - shift, signed), (WIDER,)


def _words(ds: pydicom.Dataset) -> tuple[np.ndarray, int, bool]:
    """Words as they are stored, uint32; how many bits each may have; whether the stream says that they are signed."""
    syntax = ds.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax) if syntax.is_encapsulated else None
    except NotImplementedError:
        raise NoCodec(f"no codec for {syntax.name}") from None
    if decoder and not decoder.is_available:
        raise NoCodec(f"no codec for {syntax.name}")
    stream = None
    if syntax.is_encapsulated and syntax != uid.RLELossless:
        frame = next(generate_frames(ds.PixelData, number_of_frames=1), b"")
        stream = _stream(frame)
        if stream and (stream.rows, stream.columns, stream.samples) != (ds.Rows, ds.Columns, 1):
            raise UnfitTags(
                f"its pixel data are damaged, or not its own: {stream.rows} rows, {stream.columns} columns, "
                f"{stream.samples} samples where its tags say {ds.Rows}, {ds.Columns}, 1"
            )
    precision = stream.precision if stream else int(ds.BitsAllocated)
    bare = pydicom.Dataset()
    bare.file_meta = ds.file_meta
    bare.Rows, bare.Columns, bare.SamplesPerPixel = ds.Rows, ds.Columns, 1
    bare.PhotometricInterpretation = "MONOCHROME2"
    bare.BitsAllocated = (8 if precision <= 8 else 16) if stream else ds.BitsAllocated
    bare.BitsStored, bare.HighBit, bare.PixelRepresentation = precision, precision - 1, 0
    bare["PixelData"] = ds["PixelData"]
    options: dict[str, Any] = {
        "raw": True,
        "correct_unused_bits": False,
        "apply_j2k_sign_correction": False,
    }
    words = pixel_array(bare, decoding_plugin=CODECS.get(syntax, ""), **options).astype(np.uint32)
    signed = bool(stream and stream.signed)
    if signed:  # Pillow gives a signed stream as value + half its range
        words ^= np.uint32(1 << (precision - 1))
    return words, precision, signed


def _stream(data: bytes) -> Stream | None:
    """The header of a JPEG, JPEG-LS or JPEG 2000 stream; None where there is none to be found."""
    size = data.find(b"\xff\x4f\xff\x51")
    if 0 <= size < 256:  # JPEG 2000, bare or in a JP2 box: SOC, then SIZ
        x1, y1, x0, y0 = struct.unpack_from(">4I", data, size + 8)
        samples, depth = struct.unpack_from(">HB", data, size + 40)
        return Stream((depth & 0x7F) + 1, y1 - y0, x1 - x0, samples, bool(depth & 0x80))
    at = 2
    while data[:2] == b"\xff\xd8" and at + 10 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in FRAME:
            precision, rows, columns, samples = struct.unpack_from(">BHHB", data, at + 4)
            return Stream(precision, rows, columns, samples)
        at += 1 if marker == 0xFF else 2 + length
    return None


def _overlay_bits(ds: pydicom.Dataset) -> int:
    """A mask of the bits that overlay planes use inside the words (retired, but met): 60xx,0100 and 60xx,0102."""
    bits = 0
    for group in range(0x6000, 0x6020, 2):
        allocated, position = ds.get((group, 0x0100)), ds.get((group, 0x0102))
        if (group, 0x3000) in ds or position is None or position.value is None:
            continue  # in a place of its own, or not there
        if int(position.value) > 0 or (allocated is not None and allocated.value not in (None, 1)):
            bits |= 1 << int(position.value)
    return bits & 0xFFFF


def _without_padding(
    words: np.ndarray, ds: pydicom.Dataset, value: int
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Words with those of padding that lies outside the bits stored (as -2000 in 16 bits does) made the smallest other;
    where they were, and their values as PixelPaddingValue gives them."""
    ends = [
        int(v) & 0xFFFF
        for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")
        if (v := ds.get(name)) is not None
    ]
    if not ends:
        return words, None
    where = (words >= min(ends)) & (words <= max(ends)) & ((words & ~np.uint32(value)) != 0)
    if not where.any() or where.all():
        return words, None
    padding = _extend(words, 16, int(ds.get("PixelRepresentation") or 0))
    return np.where(where, words[~where].min(), words), (where, padding)


def _extend(values: np.ndarray, bits: int, signed: int) -> np.ndarray:
    """Unsigned numbers of so many bits as int32: two's complement where signed."""
    values = values.astype(np.int32)
    return (values ^ (1 << (bits - 1))) - (1 << (bits - 1)) if signed else values


def _smooth_sign(words: np.ndarray, bits: int, signed: int) -> np.ndarray:
    """Words as values; UnfitTags where they are said to be signed and run on smoothly across the sign bit instead."""
    values = _extend(words, bits, signed)
    if signed and words.size >= 1024:
        inside = values > values.min()
        inside |= (
            inside.mean() > 0.95
        )  # the smallest value, where it is that of a frame around the image
        if 2 * _roughness(_extend(words, bits, 0), inside) < _roughness(values, inside):
            raise UnfitTags(
                "PixelRepresentation says signed, but its values run on beyond the largest signed one"
            )
    return values


def _roughness(values: np.ndarray, inside: np.ndarray | None = None) -> int:
    """How much neighbours differ, summed; both must lie ``inside``."""
    total = 0
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        steps = np.abs(values[one] - values[other])
        total += int(
            (steps if inside is None else steps[inside[one] & inside[other]]).sum(dtype=np.int64)
        )
    return total
