"""Write a data card as Croissant 1.0 (JSON-LD), by which catalogues of data sets describe them."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from cxrstudy import study
from cxrstudy.data.cardfile import Card, serves

CR = {  # terms of Croissant that are written here: name -> None, or its type
    "citeAs": None, "column": None, "containedIn": None, "extract": None, "field": None,
    "fileObject": None, "fileSet": None, "includes": None, "recordSet": None,
    "source": None, "dataType": "@vocab",
}  # fmt: skip
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
} | {
    name: {"@id": f"cr:{name}", "@type": kind} if kind else f"cr:{name}"
    for name, kind in CR.items()
}
FORMATS = {".csv": "text/csv", ".gz": "application/gzip", ".parquet": "application/x-parquet"}
FORMATS |= {".dcm": "application/dicom", ".png": "image/png", ".jpg": "image/jpeg"}
CONFORMS = ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"]
USE = "For research only, not for clinical use."
PERSONAL = "X-rays of patients under pseudonymous ids, with age and sex where the table has them."


def to_json(card: Card, root: str = "") -> str:
    """Return a card as Croissant JSON-LD.

    Args:
        card: the card.
        root: folder of the data: its table is then a file with its hash. Otherwise files are
            parts of a folder, whose required hash is that of the card, and says so.

    Raises:
        StudyError: there is no table below ``root``.
    """
    about: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS,
        "name": card.name,
        "description": _sentence(card.title, card.access, _counts(card.counts)),
        "license": card.licence,
        "citeAs": card.citation,
        "keywords": ["chest x-ray", *serves(card)],
        "rai:dataBiases": [card.caution or "None are stated in the card."],
        "rai:dataLimitations": [card.contamination or "Encoders trained on it: not known.", USE],
        "rai:personalSensitiveInformation": [PERSONAL if card.kind == "real" else "None: drawn."],
        "distribution": _files(card, root),
    }
    if fields := _fields(card, "fileObject" if root else "fileSet"):
        about["recordSet"] = [
            {"@type": "cr:RecordSet", "@id": "records", "name": "records", "field": fields}
        ]
    return json.dumps(about, indent=1, ensure_ascii=False) + "\n"


def _files(card: Card, root: str) -> list[dict[str, Any]]:
    """Return the folder, its tables and its images."""
    whole: dict[str, Any] = {"@type": "cr:FileObject", "@id": "folder", "name": "folder"}
    known = hashlib.sha256(card.model_dump_json().encode()).hexdigest()
    whole |= {"description": "The folder of the data set; sha256 is that of its card."}
    whole |= {"contentUrl": card.access, "encodingFormat": "text/directory", "sha256": known}
    patterns = {"table": [card.table.path] if card.table else []}
    patterns |= {f"table-{k}": [joined.path] for k, joined in enumerate(card.tables, 2)}
    patterns |= {"images": card.images}
    found = [whole]
    for name, paths in patterns.items():
        if not paths:
            continue
        kind = FORMATS.get(Path(paths[0]).suffix.lower(), "application/octet-stream")
        part: dict[str, Any] = {"@id": name, "name": name, "encodingFormat": kind}
        if root and name == "table":
            found.append({"@type": "cr:FileObject"} | part | _hashed(Path(root), paths[0]))
        else:
            globs = [re.sub(r"\{.*?\}", "*", path) for path in paths]  # {study_id:.2}
            below = {"containedIn": {"@id": "folder"}, "includes": globs}
            found.append({"@type": "cr:FileSet"} | part | below)
    return found


def _hashed(root: Path, pattern: str) -> dict[str, str]:
    """Return name and hash of the one table below a folder."""
    paths = sorted(root.expanduser().glob(pattern))
    if len(paths) != 1:
        raise study.StudyError(f"{root}: {len(paths)} files {pattern!r}, where the card has one")
    with paths[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"contentUrl": paths[0].relative_to(root.expanduser()).as_posix(), "sha256": digest}


def _fields(card: Card, kind: str) -> list[dict[str, Any]]:
    """Return the fields of the manifest with the columns that they are read from."""
    table, labels, columns = card.table, card.labels, []
    if table is None:
        return []
    for name in ("image_id", "patient_id", "study_id", "view", "age", "sex", "report"):
        theirs = getattr(table, name)
        columns += [
            (name, column) for column in ([theirs] if isinstance(theirs, str) else theirs or [])
        ]
    if labels and getattr(labels, "column", None):
        columns.append(("labels", str(labels.column)))
    elif labels and labels.encoding == "columns":
        columns += [
            (f"label:{our}", column) for our, own in labels.theirs.items() for column in own
        ]
    fields: list[dict[str, Any]] = []
    seen: Counter[str] = Counter()
    for name, column in columns:
        seen[name] += 1
        ident = name if seen[name] == 1 else f"{name}-{seen[name]}"  # no blanks in ids
        field = {"@type": "cr:Field", "@id": f"records/{ident}", "name": ident}
        field["description"] = f"{name}, from column {column!r} of the table or one joined to it"
        source = {kind: {"@id": "table"}, "extract": {"column": column}}
        fields.append(field | {"dataType": "sc:Text", "source": source})
    return fields


def _sentence(*parts: str) -> str:
    return " ".join(f"{part.rstrip('.')}." for part in parts if part)


def _counts(counts: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
