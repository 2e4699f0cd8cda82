"""Write the three tables that a hospital has beside its archive, each by accession number."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy.data.pacspeople import Exam, Planted, random, staff_of
from cxrstudy.data.vocabulary import DEVICES, LABELS

POSITIONS = [name for name in DEVICES if name not in ("chest_tube", "pacemaker")]
UNMATCHED = 0.05  # share of exams that a table lacks, and of rows without an exam
NAMED = {  # what each table has of the list in Planted.add
    "reports": "name mrn birth phone accession physician staff day",
    "labels": "",
    "demographics": "name short_mrn birth phone accession physician",
}
Exams = dict[str, tuple[Exam, dict[str, Any]]]


def write_tables(out: Path, exams: Exams, seed: int, planted: Planted | None) -> pd.DataFrame:
    """Write reports, labels and demographics into ``out``; return what each holds of each study.

    ``reports.csv``: semicolons, cp1252, CRLF, line breaks in cells; accession numbers without
    their leading zeros; repeated rows, and addenda under the same number. ``labels.txt``: UTF-16,
    tabs; accession numbers with blanks, in lower case or as 4711.0. ``demographics.csv``: UTF-8
    with a byte order mark; patient ids without leading zeros; positions of tubes. Each lacks some
    exams, and has rows of exams that are not there, one of them with a number that differs from
    another by a letter at its end.

    Args:
        out: a new folder.
        exams: study -> (exam, report, reported and true labels, malposition, sex, age).
        seed: of the institution.
        planted: where identifiers are noted that reports and tables then name; None: they do not.

    Returns:
        One row a study: study_id, accession, the number of rows in each table, and the report.
    """
    out.mkdir()
    rng = random(seed, "tables")
    studies = pd.DataFrame(
        {"study_id": list(exams), "accession": [exam.accession for exam, _ in exams.values()]}
    )
    made = {
        "reports": [_report(exam, facts, planted is not None) for exam, facts in exams.values()],
        "labels": [_labels(exam, facts, rng) for exam, facts in exams.values()],
        "demographics": [
            _demographics(exam, facts, planted is not None) for exam, facts in exams.values()
        ],
    }
    studies["report"] = [str(facts["report"]) for _, facts in exams.values()]
    for name, rows in made.items():
        table, held = pd.DataFrame(rows), rng.random(len(rows)) >= UNMATCHED
        again = held & (rng.random(len(rows)) < 0.03)
        again[np.flatnonzero(held)[:1]] = True  # at least one
        key = table.columns[0]
        strange = table[held].sample(
            max(2, round(UNMATCHED * len(rows))), replace=True, random_state=1
        )
        numbers = rng.integers(2 * 10**9, 9 * 10**9, len(strange)).astype(str)
        numbers[0] = f"{strange[key].iloc[0]}A".strip()
        parts = [table[held], table[again], strange.assign(**{key: numbers})]
        if name == "reports":  # later, under the same number
            parts.append(table[again].assign(Report="ADDENDUM: The above was discussed."))
        rows_of = held.astype(int) + again * (2 if name == "reports" else 1)
        for (exam, _), is_held in zip(exams.values(), held, strict=True):
            if planted is not None and is_held:
                planted.add("reports" if name == "reports" else "tables", exam, NAMED[name])
        studies[f"{name}_rows"] = rows_of
        whole = pd.concat(parts)
        head, tail = whole.iloc[: held.sum()], whole.iloc[held.sum() :]
        head = head.sample(frac=1, random_state=int(rng.integers(2**31)))
        _write(pd.concat([head, tail]), out, name)
    return studies


def _write(table: pd.DataFrame, out: Path, name: str) -> None:
    if name == "reports":
        text = table.to_csv(index=False, sep=";", lineterminator="\r\n")
        (out / "reports.csv").write_bytes(text.encode("cp1252"))
    elif name == "labels":
        table.to_csv(out / "labels.txt", index=False, sep="\t", encoding="utf-16")
    else:
        table.to_csv(out / "demographics.csv", index=False, encoding="utf-8-sig")


def _report(exam: Exam, facts: dict[str, Any], planted: bool) -> dict[str, str]:
    """Return a row of reports: the text as typed, with what was planted."""
    text = str(facts["report"]).replace(" IMPRESSION:", "\r\nIMPRESSION:")
    text = text.replace(" - ", " \u2013 ").replace("'", "\u2019")  # as word processors do
    if planted:
        who = exam.person
        head = f"Patient: {who.given} {who.family}, MRN {who.mrn}, born {exam.birth:%d.%m.%Y}, "
        head += f"phone {who.phone}. Accession {exam.accession}."
        end = f"Discussed with Dr. {exam.physician} on {exam.day:%Y-%m-%d}."
        taken, shown, asked, read = (name.split("\\") for name in staff_of(exam).values())
        end += f" Taken by {taken[0]}, shown to {shown[0]} for {asked[0]}; "
        end += f"{read[0]} and {read[1]} agree."
        text = f"{head}\r\n{text}\r\n{end}"
    return {
        "Accession No": _no_zeros(exam.accession),
        "Procedure": "XR CHEST",
        "Report date": f"{exam.day:%d.%m.%Y}",
        "Report": text,
    }


def _labels(exam: Exam, facts: dict[str, Any], rng: np.random.Generator) -> dict[str, str]:
    """Return a row of labels as recorded; the number as three programs have changed it."""
    number = (
        f" {exam.accession} ",
        exam.accession.lower(),
        f"{_no_zeros(exam.accession)}.0" if exam.accession.isdigit() else exam.accession,
    )[int(rng.integers(3))]
    row = {"ACCESSION": number}
    for name, value in zip(LABELS, facts["reported"], strict=True):
        row[name.replace("_", " ").title()] = "" if np.isnan(value) else str(int(value))
    return row


def _demographics(exam: Exam, facts: dict[str, Any], planted: bool) -> dict[str, str]:
    """Return a row of age, sex and positions of tubes."""
    who = exam.person
    row = {"Accession": exam.accession, "Patient ID": who.mrn.lstrip("0")}
    if planted:
        row |= {"Name": f"{who.family}, {who.given}", "Date of birth": f"{exam.birth:%Y-%m-%d}"}
        row |= {"Phone": who.phone, "Referring": exam.physician}
    row |= {"Age": f"{facts['age']} years", "Sex": {"F": "female", "M": "male"}[facts["sex"]]}
    for name in POSITIONS:
        k, word = DEVICES.index(name), ""
        if facts["labels"][LABELS.index(name)]:
            word = "malpositioned" if facts["malpositioned"][k] else "correct"
        row[f"{name.replace('_', ' ').title()} position"] = word
    return row


def _no_zeros(accession: str) -> str:
    """Return a number as a spreadsheet leaves it."""
    return accession.lstrip("0") if accession.isdigit() else accession
