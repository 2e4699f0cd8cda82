"""Write card and preset of an ingest, with the evidence of each guess; keep what users edit."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cxrstudy import study
from cxrstudy.data.columns import number
from cxrstudy.files import write_text
from cxrstudy.numbers import few

CARD = """\
---
name: {name}
title: {name}  # the heading of its pages in the book
kind: real  # synthetic, if the archive is an export of synthetic x-rays
licence: your own; state what your review board allows
access: cxrstudy ingest has made the folder {place}; give it as root
citation: none
contamination: {contamination}
show_images: false  # whether the terms allow its images in a page that is passed on
table:
  path: images.parquet  # of the ingest folder
{table}images:
  - images/*/*  # links with opaque names to the files of the archive
{labels}---

# {name}

Written by `cxrstudy ingest`. The comments of the front matter say what its lines rest on. Read
them, and correct what is wrong: an ingest never overwrites a card that was edited.

{body}
Research only; not for clinical use.
"""
MINED = """\
labels:
  encoding: reports  # no table has labels: mined from reports by rules; cxrstudy audit {name}
  # {english:.0%} of the reports are in English, others give no label
  missing: absent  # a guess: what a report does not mention is absent; or: unknown"""
NONE = "# no labels: no table has columns of yes and no, and {why} (only English ones are mined)"


def card_text(name: str, place: str, facts: Mapping[str, Any], frame: pd.DataFrame) -> str:
    """Return a card as text.

    Args:
        name: of the card.
        place: the ingest folder, as users name it.
        facts: of the ingest: ``evidence`` (column -> comment), ``labels_found`` (see
            ``facts.labels``), ``contamination``, ``flow``, ``tables``, ``contradictions``.
        frame: images.parquet.
    """
    lines = []
    for column in ("image_id", "patient_id", "study_id", "view", "age", "sex", "report"):
        if frame[column].notna().any():
            value = "[study_id]" if column == "study_id" else column
            lines.append(f"  {column}: {value}  # {facts['evidence'][column]}\n")
    if frame["pixel_spacing"].notna().any():
        lines.append(f"  pixel_spacing: pixel_spacing  # {facts['evidence']['pixel_spacing']}\n")
    lines += ["  malposition:\n"] if facts["positions"] else []
    for device, found in facts["positions"].items():
        states = {key: value for key, value in found.items() if key != "said"}
        shown = json.dumps(states, ensure_ascii=False)
        lines.append(f"    {device}: {shown}  # {found['said']}\n")
    seen = facts.get("contamination", {}).get("said")
    return CARD.format(
        name=name,
        place=place,
        table="".join(lines),
        labels="".join(f"{line}\n" for line in label_lines(name, facts["labels_found"])),
        contamination=json.dumps(
            seen or "not checked: cxrstudy ingest --public-ids FILE, --against FOLDER"
        ),
        body="".join(f"- {' '.join(line.split())}\n" for line in _body(facts)),
    )


def _body(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the card says below its front matter."""
    for step in facts["flow"]:
        dropped = "".join(f"; {why}: {few(n)}" for why, n in step["dropped"].items())
        yield f"{step['step']}: {step['left']:,}{dropped}"
    for match in facts["tables"]:
        yield (
            f"a table, by {match['level']} ({match['key']}): {match['rows_matched']:,} of "
            f"{match['rows']:,} rows and {match['images_matched']:,} of {match['images']:,} images "
            "match"
        )
    if not (found := facts["labels_found"])["names"]:
        for column in found["rest"]:
            counts = found["counts"][column]
            yield f"column {column} says yes or no, and has no name of ours: {counts}"
    for what, n in facts["contradictions"].items():
        yield f"headers contradict: {what}: {few(n)}"


def label_lines(name: str, found: Mapping[str, Any]) -> list[str]:
    """Return the lines of `labels`: given by tables, mined from reports, or why there are none."""
    if found["names"]:
        lines = [
            "labels:",
            "  encoding: columns  # of tables; all their cells mean yes, no, unsure",
        ]
        lines += [
            "  missing: unknown  # a guess; if an empty cell means absent: absent",
            "  values:",
        ]
        values: dict[Any, str] = {}
        for cell, (value, count) in found["values"].items():
            key = cell.casefold() if number(cell) is None else number(cell)
            meaning = "null" if value is None else f"{value:g}"
            values.setdefault(key, f"    {json.dumps(cell)}: {meaning}  # {few(count)} cells")
        lines += [*values.values(), "  names:"]
        for ours, columns in found["names"].items():
            note = "; ".join(found["counts"][column] for column in columns)
            lines.append(f"    {ours}: {json.dumps(columns, ensure_ascii=False)}  # {note}")
        for column in found["rest"]:
            ours = "_".join(re.findall(r"[^\W_]+", column.casefold())) or "label"
            theirs = json.dumps([column], ensure_ascii=False)
            note = f"{found['counts'][column]}; no name of ours: remove the # to use it"
            lines.append(f"#    {ours}: {theirs}  # {note}")
        return lines
    if given := found["list"]:
        lines = ["labels:", f"  encoding: list  # {given['evidence']}"]
        lines += [f"  {key}: {json.dumps(given[key])}" for key in ("column", "separator")]
        lines += ["  missing: absent  # a guess: what is not listed is absent", "  names:"]
        names = given["names"].items()
        return lines + [f"    {k}: {json.dumps(v, ensure_ascii=False)}" for k, v in names]
    if found.get("english", 0) >= 0.5:
        return MINED.format(name=name, english=found["english"]).splitlines()
    foreign = found.get("languages")
    return [NONE.format(why=f"reports are in {foreign}" if foreign else "there are no reports")]


# ---- files that users may edit -------------------------------------------------------------------
def write_unedited(path: Path, text: str, private: Path, say: Callable[[str], None]) -> Path:
    """Write a file, or NAME.new.md (.yml) in the ingest folder if it was edited; return ``path``.

    What was written last is remembered below ``private``.
    """
    known = _memory(private)
    there = path.read_text(encoding="utf-8") if path.is_file() else text
    if there not in (text,) and known.get(path.name) != _digest(there):
        new = private.parent / f"{path.stem}.new{path.suffix}"  # elsewhere it would be a card too
        say(f"{path.relative_to(study.root())} was edited and is kept; what is new is in {new}")
        write_text(new, text)
        return path
    if not path.is_file() or there != text:
        write_text(path, text)
    write_text(private / "written.json", json.dumps(known | {path.name: _digest(text)}, indent=1))
    return path


def refuse_foreign(name: str, private: Path) -> None:
    """Refuse the name of a card or preset that no ingest into this folder has written."""
    root, known = study.root(), _memory(private)
    for path in (root / "data_cards" / f"{name}.md", root / "notebooks/presets" / f"{name}.yml"):
        if path.is_file() and path.name not in known:
            raise study.StudyError(
                f"{path.relative_to(root)} is there and was not written by an ingest into this "
                "folder: give another --name, or move it away"
            )


def _memory(private: Path) -> dict[str, str]:
    file = private / "written.json"
    found: dict[str, str] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return found


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def write_preset(name: str, place: Path, say: Callable[[str], None]) -> Path:
    """Write the preset of an ingest, sized to what is there; return it. An edited one is kept.

    Raises:
        StudyError: there are too few images for a study.
    """
    from cxrstudy import new

    text, sized, path = new.draft(name, str(place), name, force=True)
    root = study.root()
    shown = str(place.relative_to(root) if place.is_relative_to(root) else place)
    text = re.sub(r"^needs_root: .*\n", "", text, flags=re.MULTILINE)
    line = f"    root: {json.dumps(shown)}  # the ingest folder\n"
    text = re.sub(r"(^    card: .*\n)", lambda found: found[1] + line, text, flags=re.MULTILINE)
    text = text.replace(f"`cxrstudy new --card {name}`", "`cxrstudy ingest`")
    text = text.replace(" --data-root PATH", "")
    if write_unedited(path, text, place / "private", say).read_text(encoding="utf-8") == text:
        say(
            f"preset {path.relative_to(root)}: {len(sized.paradigms)} scaling curves, about "
            f"{max(1, round(sized.minutes()))} minutes on this machine (an estimate)"
        )
    return path
