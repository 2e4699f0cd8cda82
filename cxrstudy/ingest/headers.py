"""Read what an ingest needs to know of one file: tags of DICOM, dimensions of a picture."""

import os
import struct
import warnings
import zlib
from contextlib import suppress

from PIL import Image
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR, tag_for_keyword

from cxrstudy.data.filetypes import DICOM, kind_of
from cxrstudy.data.lexicon import read_lexicon
from cxrstudy.data.picturefiles import FORMATS

WINDOW, LONGEST = 2**16, 2**23  # bytes read at first (most headers have 2 to 20 kB), and at most
_LEXICON = read_lexicon("dicomtags")["read"]
CODES = {name: name.replace("Sequence", "Meaning") for name in _LEXICON["sequences"].split()}
PERSONS = _LEXICON["persons"].split()  # tags with names that a report may repeat
KEYWORDS = [*_LEXICON["tags"].split(), *PERSONS]
COLUMNS = (*KEYWORDS, *CODES.values(), "TransferSyntaxUID")
TAGS = {int(tag_for_keyword(name) or 0): name for name in (*KEYWORDS, *CODES)}
COUNTS = {tag for tag in TAGS if dictionary_VR(tag) == "US"}
META = {0x00020002: "SOPClassUID", 0x00020003: "SOPInstanceUID", 0x00020010: "TransferSyntaxUID"}
CHARSET, MEANING = 0x00080005, {0x00080104: "CodeMeaning"}
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
NUMBERS = {b"US": "H", b"SS": "h", b"UL": "L", b"SL": "l", b"FL": "f", b"FD": "d"}
ITEM, SEQUENCE_END, UNDEFINED = 0xFFFEE000, 0xFFFEE0DD, 0xFFFFFFFF
DEFLATED = "1.2.840.10008.1.2.1.99"
SHORT, DAMAGED, CLOSED = "header cut short", "header damaged", "cannot be opened"
Found = dict[int, tuple[bytes, bytes]]  # tag -> VR (empty if implicit) and value


def read_header(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return ``kind``, ``fault`` and ``COLUMNS`` of a file as text, without those absent.

    The content decides, not the name. ``kind`` is that of ``filetypes.kind_of``. ``fault`` says
    why a file, or a part of its header, cannot be read; no error is raised. Several values of a
    tag are joined by a backslash, as DICOM does.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read(WINDOW)
            kind = kind_of(data[:1024])
            if kind == DICOM:
                values = _tags(data, len(data) == WINDOW)
                if values["fault"] and len(data) == WINDOW:
                    values = _tags(data + file.read(LONGEST), False)
                return {"kind": kind, **values}
        return {"kind": kind, **(_picture(path) if kind.endswith("picture") else {})}
    except OSError as error:
        return {"fault": f"{CLOSED} ({error.strerror or 'input or output'})"}
    except Exception as error:  # one file must never end a walk
        return {"fault": f"{DAMAGED} ({type(error).__name__})"}


def _picture(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return dimensions, depth and colour of a picture; Pillow reads no pixels for that."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            mode, (width, height) = image.mode, image.size
    except Exception as error:  # Pillow raises a dozen kinds
        return {"fault": f"{DAMAGED} ({type(error).__name__})"}
    grey = mode in ("1", "L", "LA", "F") or mode.startswith("I")
    bits = {"1": 1, "F": 32, "I": 32}.get(mode, 16 if mode.startswith("I;16") else 8)
    photometric = "MONOCHROME2" if grey else "RGB"
    sizes = {"Rows": f"{height}", "Columns": f"{width}", "BitsStored": f"{bits}"}
    return sizes | {"PhotometricInterpretation": photometric}


def _tags(data: bytes, more: bool) -> dict[str, str]:
    """Return the wanted tags of a Part 10 file or a bare data set; ``more``: the file continues.

    Whether VRs are explicit, and the byte order, is seen from the first element, since some files
    declare another transfer syntax than theirs.
    """
    at = 132 if data[128:132] == b"DICM" else 0
    meta: Found = {}
    found: Found = {}
    order, explicit, fault = "<", True, ""
    try:
        at = _elements(data, at, len(data), "<", True, META, meta, 0x0002FFFF)
        if _text(*meta.get(0x00020010, (b"", b"")), "<", "") == DEFLATED:
            data, at = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[at:], LONGEST), 0
        order = ">" if data[at : at + 1] == b"\0" else "<"
        explicit = _is_vr(data[at + 4 : at + 6])
        end = _elements(data, at, len(data), order, explicit, TAGS, found, max(TAGS))
        fault = SHORT if end > len(data) - 8 * more else ""
    except (ValueError, RecursionError, struct.error, zlib.error):
        fault = DAMAGED
    charset = _text(*found.get(CHARSET, (b"CS", b"")), order, "")
    values = {name: _text(*meta[tag], "<", "") for tag, name in META.items() if tag in meta}
    for tag, (vr, raw) in found.items():
        name = TAGS[tag]
        if name in CODES:
            first: Found = {}
            with suppress(ValueError, RecursionError, struct.error):
                _items(raw, 0, len(raw), order, explicit, first)
            name, (_, raw), vr = CODES[name], first.get(0x00080104, (b"", b"")), b"LO"
        elif vr in (b"", b"UN"):
            vr = b"US" if tag in COUNTS else b"LO"
        if text := _text(vr, raw, order, charset):
            values[name] = text
    return values | {"fault": fault}


def _is_vr(two: bytes) -> bool:
    return two.isalpha() and two.isupper()


def _elements(
    data: bytes,
    at: int,
    end: int,
    order: str,
    explicit: bool,
    wanted: dict[int, str],
    found: Found,
    last: int = ITEM,
) -> int:
    """Collect the ``wanted`` elements up to tag ``last``; return where the next one begins.

    That is beyond ``end`` if the data are cut short.
    """
    head = struct.Struct(f"{order}HH2sH").unpack_from
    long = struct.Struct(f"{order}L").unpack_from
    while at + 8 <= end:
        group, element, vr, length = head(data, at)
        tag = group << 16 | element
        if tag > last:
            return at
        if not explicit or not _is_vr(vr):  # some writers mix in implicit ones
            vr, (length,) = b"", long(data, at + 4)
            at += 8
        elif vr in LONG_VRS:
            (length,) = long(data, at + 8) if at + 12 <= end else (end,)
            at += 12
        else:
            at += 8
        start = at
        if length == UNDEFINED:
            at = _items(data, at, end, order, explicit and vr != b"UN")
        else:
            at += length
        if tag in wanted and at <= end:
            found[tag] = vr, data[start:at]
    return at if at >= end else end + 1  # less than the head of an element is left


def _items(
    data: bytes, at: int, end: int, order: str, explicit: bool, meaning: Found | None = None
) -> int:
    """Return where a sequence ends; collect its first code meaning, if asked for.

    Raises:
        ValueError: there is something other than items.
    """
    head = struct.Struct(f"{order}HHL").unpack_from
    found: Found = {} if meaning is None else meaning
    while at + 8 <= end:
        group, element, length = head(data, at)
        tag, at = group << 16 | element, at + 8
        if tag == SEQUENCE_END:
            return at
        if tag != ITEM:
            raise ValueError(tag)
        wanted = {} if meaning is None or found else MEANING
        if length == UNDEFINED:
            at = _elements(data, at, end, order, explicit, wanted, found) + 8
            continue
        if wanted:
            _elements(data, at, min(at + length, end), order, explicit, wanted, found)
        at += length
    return max(at, end) if meaning is not None else end + 1


def _text(vr: bytes, raw: bytes, order: str, charset: str) -> str:
    """Return a value as one line of text, without padding."""
    if vr in NUMBERS:
        n = len(raw) // struct.calcsize(NUMBERS[vr])
        return "\\".join(map(str, struct.unpack_from(f"{order}{n}{NUMBERS[vr]}", raw)))
    plain = raw.isascii() and b"\x1b" not in raw
    text = (raw.decode("ascii") if plain else _decode(raw, charset)).strip(" \0")
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def _decode(raw: bytes, charset: str) -> str:
    """Return text in its declared character set, or in the one that it is written in.

    Bytes beyond ASCII that are valid UTF-8 are hardly anything else. What does not fit the declared
    set is read as Western European.
    """
    if b"\x1b" not in raw and not charset.startswith(("GB", "ISO_IR 13")):
        with suppress(UnicodeDecodeError):
            return raw.decode("utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(LookupError, ValueError):
            text = decode_bytes(raw, convert_encodings(charset.split("\\")), {0x5C, 0x5E, 0x3D})
            if "\ufffd" not in text:
                return text
    return raw.decode("cp1252", errors="replace")
