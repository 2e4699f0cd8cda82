"""Read tables that are not rows of cells: JSON, JSON lines, and Open-i's report XML."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

RECORDS = (".json", ".jsonl", ".ndjson")
KEY = "@key"  # column with the key of each record of a JSON object
Read = tuple[list[str], list[list[str | None]], list[int], str]  # columns, rows, places, their unit


def is_records(path: Path) -> bool:
    """Return whether a file's name says that it is JSON or XML, packed or not."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return bool(suffixes) and (
        suffixes[-1] in (*RECORDS, ".xml")
        or (suffixes[-1] == ".gz" and suffixes[0] in (*RECORDS, ".xml"))
    )


def read_records(path: Path, text: str) -> Read:
    """Return the columns and rows of a file as text, and the line or number of each row.

    JSON is a list of records, or an object of records by key, which is column ``@key``. Without
    either it is JSON lines. What is nested stays JSON.

    Raises:
        ValueError: it is neither; the message says where.
    """
    if ".xml" in (suffix.lower() for suffix in path.suffixes[-2:]):
        columns, rows = _openi(text)
        return columns, rows, list(range(1, len(rows) + 1)), "image"
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        records, places = _lines(text, error)
        return *_table(records), places, "line"
    if isinstance(whole, dict) and whole and all(isinstance(v, dict) for v in whole.values()):
        whole = [{KEY: key} | record for key, record in whole.items()]
    records = whole if isinstance(whole, list) else [whole]
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise ValueError(f"record {number}: expected an object of names and values")
    return *_table(records), list(range(1, len(records) + 1)), "record"


def _lines(text: str, error: json.JSONDecodeError) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the records of JSON lines and the line of each."""
    records: list[dict[str, Any]] = []
    places = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as own:
            first = f"line {error.lineno}: {error.msg}" if not records else f"line {number}: {own}"
            raise ValueError(f"{first}; neither JSON nor JSON lines") from None
        if not isinstance(record, dict):
            raise ValueError(f"line {number}: expected an object of names and values")
        records.append(record)
        places.append(number)
    return records, places


def _table(records: list[dict[str, Any]]) -> tuple[list[str], list[list[str | None]]]:
    columns = list(dict.fromkeys(name for record in records for name in record))
    return columns, [[cell(record.get(name)) for name in columns] for record in records]


def cell(value: Any) -> str | None:
    """Return a value of JSON as a cell of text; None if it is null."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)


def _openi(text: str) -> tuple[list[str], list[list[str | None]]]:
    """Return a row an image of one report of Open-i (Indiana University)."""
    try:
        tree = ElementTree.fromstring(text.encode())
    except ElementTree.ParseError as error:
        raise ValueError(f"not XML ({error})") from None
    if tree.find("MedlineCitation") is None or tree.find("uId") is None:
        raise ValueError("no report of Open-i: it has no uId and MedlineCitation")
    report: dict[str, str | None] = {"uid": _attribute(tree.find("uId"), "id")}
    for part in tree.iter("AbstractText"):
        report[part.get("Label", "").lower()] = "".join(part.itertext()).strip() or None
    names = ("indication", "comparison", "findings", "impression")
    codes = [code.text.strip() for code in tree.findall(".//MeSH/major") if code.text]
    automatic = [code.text.strip() for code in tree.findall(".//MeSH/automatic") if code.text]
    problems = [problem for code in codes for problem in _problems(code)]
    facts = [report["uid"], *(report.get(name) for name in names)]
    facts += ["|".join(dict.fromkeys(each)) or None for each in (codes, problems, automatic)]
    images = [
        [_attribute(image, "id"), (image.findtext("caption") or "").strip() or None]
        for image in tree.iter("parentImage")
    ]
    columns = ["uid", *names, "mesh", "problems", "automatic", "image", "caption"]
    return columns, [[*facts, *image] for image in images or [[None, None]]]


def _problems(code: str) -> list[str]:
    """Return ``a``, ``a: b`` and ``a: c`` of a code ``a/b/c``: a problem and its qualifiers."""
    problem, *qualifiers = (part.strip() for part in code.split("/"))
    return [problem, *(f"{problem}: {each}" for each in qualifiers)]


def _attribute(element: Any, name: str) -> str | None:
    return None if element is None else element.get(name)
