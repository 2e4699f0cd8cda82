"""Facts of each image from its tags and from columns of tables, with what they rest on."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from cxrstudy.data.columns import parse_age, parse_sex, parse_spacing, plain
from cxrstudy.data.ids import normal_id
from cxrstudy.data.language import not_english
from cxrstudy.data.vocabulary import DEVICES
from cxrstudy.ingest.columnkinds import KEYS, Column, label_of, names_of
from cxrstudy.ingest.headers import PERSONS
from cxrstudy.ingest.identifiers import clean_report
from cxrstudy.numbers import few

CHUNK = 2000  # reports that a process cleans at a time
OLDEST = 90  # years: higher ages are written as this, because they may identify a patient
NAMED = re.compile(  # columns of tables with such names
    "(?i)name|nombre|apellido|^nom|cognome|sobrenome|naam|nazwisko|physician|referr|radiolog"
    "|arzt|medico|reader|author"
)
OWN = (  # of images.parquet; other columns are labels
    *("image_id", "patient_id", "study_id", "path", "view", "view_from", "age", "sex", "report"),
    "pixel_spacing",
)
STATES = {  # of a device's tip, in cells of tables
    "malpositioned": "(?i)mal ?posi|abnormal|misplac|wrong|incorrect|too (deep|high|low)|fehl",
    "correct": "(?i)correct|normal|adequate|satisf|good|ok$|korrekt|regelrecht|in situ|bien",
}
Parts = dict[str, int]  # where values come from -> images


def first_of(sources: dict[str, pd.Series]) -> tuple[pd.Series, Parts]:
    """Return the first known value of each row, and how many come from each source."""
    value = pd.Series(np.nan, next(iter(sources.values())).index, dtype=object)
    counts: Parts = {}
    for name, found in sources.items():
        new = value.isna() & found.notna()
        value = value.where(~new, found)
        counts[name] = int(new.sum())
    counts["unknown"] = int(value.isna().sum())
    return value, {name: n for name, n in counts.items() if n}


def evidence(counts: Parts) -> str:
    """Return where values come from in percent, most first: "ViewPosition 81%, unknown 2%"."""
    total, said = sum(counts.values()), []
    for name, n in sorted(counts.items(), key=lambda item: (item[0] == "unknown", -item[1])):
        share = 100 * n / total
        said.append(f"{name} {share:.0f}%" if share >= 1 else f"{name} under 1%")
    return ", ".join(said)


def ids(frame: pd.DataFrame, what: str, columns: Sequence[Column]) -> tuple[pd.Series, Parts, int]:
    """Return the patient or study of each row in one spelling, the sources, and how many respelled.

    Tags come first, then columns of tables that are called so, then the accession number.
    """
    named = [c.name for c in columns if c.kind in ("id", "") and what in names_of(c.column, KEYS)]
    tags = {"patient": ["PatientID"], "study": ["StudyInstanceUID"]}[what]
    last = ["AccessionNumber"] if what == "study" else []
    sources = {}
    for name in (*tags, *named, *last):
        text = frame[name].fillna("").astype(str).str.strip()
        sources[name if name not in named else f"column {name}"] = text.where(text != "")
    value, counts = first_of(sources)
    one = value.map({text: normal_id(text) for text in value.dropna().unique()})
    return one, counts, value.nunique() - one.nunique()


def ages(frame: pd.DataFrame, columns: Sequence[str]) -> tuple[pd.Series, Parts]:
    """Return age in years, at most ``OLDEST``: from PatientAge, dates, or columns of tables."""
    taken, born = (
        pd.to_datetime(frame[name].str[:8], format="%Y%m%d", errors="coerce")
        for name in ("StudyDate", "PatientBirthDate")
    )
    years = (taken - born).dt.days / 365.25
    dates = {"PatientBirthDate and StudyDate": years.where(years.between(0, 130))}
    value, counts = first_of(_parsed(frame, parse_age, ["PatientAge"], columns, dates))
    return value.astype(float).clip(upper=OLDEST).round(1), counts


def sexes(frame: pd.DataFrame, columns: Sequence[str]) -> tuple[pd.Series, Parts]:
    """Return F, M or missing: from PatientSex, or columns of tables."""
    return first_of(_parsed(frame, parse_sex, ["PatientSex"], columns))


def spacings(frame: pd.DataFrame, columns: Sequence[str]) -> tuple[pd.Series, Parts]:
    """Return mm a pixel: from PixelSpacing, ImagerPixelSpacing, or columns of tables."""
    tags = ["PixelSpacing", "ImagerPixelSpacing"]
    value, counts = first_of(_parsed(frame, parse_spacing, tags, columns))
    return value.astype(float), counts


def _parsed(
    frame: pd.DataFrame,
    parse: Any,
    tags: Sequence[str],
    columns: Sequence[str],
    more: dict[str, pd.Series] | None = None,
) -> dict[str, pd.Series]:
    """Return source -> what ``parse`` makes of its cells: tags, then ``more``, then columns."""

    def read(name: str) -> pd.Series:
        text = frame[name].fillna("").astype(str)
        return text.map({each: parse(each) if each.strip() else None for each in text.unique()})

    found = {name: read(name) for name in tags} | (more or {})
    return found | {f"column {name}": read(name) for name in columns}


# ---- reports and labels --------------------------------------------------------------------------
def reports(
    frame: pd.DataFrame, given: Sequence[Column], workers: int = 1
) -> tuple[pd.Series, str, Parts]:
    """Return reports without what is left of identifiers, their columns, and these by kind.

    Findings and impression are joined, under these headers. Of other texts the longest is taken.
    """
    columns = [each for each in given if each.kind == "report"]
    text = {each.name: frame[each.name].fillna("").astype(str).str.strip() for each in columns}
    longest = sorted(columns, key=lambda each: -text[each.name].str.len().mean())
    parts = {each.label: each.name for each in reversed(longest) if each.label}
    chosen = [each.name for each in longest[:1]]
    whole = text[chosen[0]] if chosen else pd.Series("", frame.index, dtype=object)
    if {"findings", "impression"} <= parts.keys():
        chosen = [parts["findings"], parts["impression"]]
        heads = zip(("FINDINGS", "IMPRESSION"), (text[name] for name in chosen), strict=True)
        each = [part.where(part == "", f"{head}: " + part + "\n") for head, part in heads]
        whole = (each[0] + each[1]).str.strip()
    columns = [c for c in given if c.kind in ("id", "") and NAMED.search(c.column)]
    persons = frame[[*PERSONS, *(c.name for c in columns)]].fillna("").agg(tuple, axis=1)
    all_of = persons.groupby(frame["patient"]).agg(lambda each: tuple(sorted(set().union(*each))))
    pairs = list(zip(whole, frame["patient"].map(all_of), strict=True))
    each_once = list(dict.fromkeys(pairs))
    starts = range(0, len(each_once), CHUNK)
    jobs = workers if len(starts) > 1 else 1  # processes take a second to start
    cleaned = Parallel(n_jobs=jobs)(delayed(_clean)(each_once[k : k + CHUNK]) for k in starts)
    texts = [text for part, _ in cleaned for text in part]
    clean = dict(zip(each_once, texts, strict=True))
    counts: Counter[str] = sum((found for _, found in cleaned), Counter())
    said = " and ".join(f"column {name}" for name in chosen)
    return pd.Series([clean[p] for p in pairs], frame.index, dtype=object), said, dict(counts)


def _clean(pairs: Sequence[tuple[str, Sequence[str]]]) -> tuple[list[str | None], Counter[str]]:
    """Return reports without identifiers, None for empty ones, and how many of each kind."""
    texts: list[str | None] = []
    counts: Counter[str] = Counter()
    for text, names in pairs:
        clean, found = clean_report(text, names) if text else (None, {})
        texts.append(clean)
        counts.update(found)
    return texts, counts


def labels(
    frame: pd.DataFrame, columns: Sequence[Column], texts: pd.Series
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return columns of labels as written, and what ``card.label_lines`` says of them.

    Cells of no known meaning become missing, and are counted.
    """
    found: dict[str, Any] = {"names": {}, "rest": [], "values": {}, "counts": {}, "list": None}
    made: dict[str, pd.Series] = {}
    cells: Counter[str] = Counter()
    means: dict[str, Any] = {}
    for each in (each for each in columns if each.kind == "label"):
        name = each.name if each.name not in OWN else f"{each.name} (label)"
        text = frame[each.name].map(plain, na_action="ignore")
        made[name] = text.where(text.isin(list(each.values)))
        value = made[name].map(each.values)
        said = f"{few(int((value == 1).sum()))} yes, {few(int((value == 0).sum()))} no"
        if odd := int((text.notna() & made[name].isna()).sum()):
            said += f", {few(odd)} not understood"
        found["counts"][name] = said
        if each.label:
            found["names"].setdefault(each.label, []).append(name)
            cells.update(made[name].dropna().tolist())
            means |= each.values
        else:
            found["rest"].append(name)
    found["values"] = {cell: (means[cell], n) for cell, n in cells.most_common()}
    if not found["names"] and (lists := [each for each in columns if each.kind == "list"]):
        made[lists[0].name] = frame[lists[0].name]
        theirs: dict[str, list[str]] = {}
        for name, ours in lists[0].values.items():
            theirs.setdefault(str(ours), []).append(name)
        found["list"] = {"column": lists[0].name, "names": theirs}
        found["list"] |= {"separator": lists[0].separator, "evidence": lists[0].evidence}
    if len(there := texts.dropna()):
        other = not_english(there)
        found["english"] = 1 - sum(other.values()) / len(there)
        found["languages"] = ", ".join(f"{name} {n:,}" for name, n in other.items())
    return pd.DataFrame(made, index=frame.index), found


def positions(
    frame: pd.DataFrame, columns: Sequence[Column]
) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """Return columns of tables on where devices' tips are, and device -> what the card says of it.

    All cells must name a state, and both states must occur.
    """
    made, found = {}, {}
    for each in (each for each in columns if not each.kind and label_of(each.column) in DEVICES):
        cells = frame[each.name].map(plain, na_action="ignore")
        counts = cells[cells != ""].value_counts()
        named: dict[str, list[str]] = {state: [] for state in STATES}
        for cell in counts.index[:20]:
            state = next((s for s, words in STATES.items() if re.match(words, cell)), None)
            if state:
                named[state].append(cell)
        if len(counts) == sum(map(len, named.values())) and all(named.values()):
            made[each.name] = cells
            said = ", ".join(f"{few(int(counts[cells_].sum()))} {s}" for s, cells_ in named.items())
            found[label_of(each.column)] = {"column": each.name, **named, "said": said}
    return pd.DataFrame(made, index=frame.index), found
