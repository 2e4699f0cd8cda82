"""Make up the patients and exams of an exported archive, and note where their ids were written."""

import json
import zlib
from collections import defaultdict
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom.uid import generate_uid

from cxrstudy.data.lexicon import read_lexicon
from cxrstudy.data.synthetic import Batch

LANGUAGES = read_lexicon("pacs")
PHYSICIANS = ("Fotheringwell", "Zweigelmannhof", "Castelbrandoni")

STAFF = {  # tags of staff; the last has two names
    "OperatorsName": ("Quillfeatherby", "Wolkenstaubner"),
    "PerformingPhysicianName": ("Nachtigallski", "Oberhummelbach"),
    "RequestingPhysician": ("Pflaumengarten", "Ravensbournely"),
    "NameOfPhysiciansReadingStudy": ("Drachenfelsky\\Tintagelworth", "Immenstadlin\\Yarborneau"),
}


class Person(NamedTuple):
    """A made-up patient: ids and names as headers and tables write them."""

    language: str
    family: str  # in Latin letters, as tables and reports have it
    given: str
    name: str  # PatientName, in the country's letters
    mrn: str  # eight digits, the first a zero
    phone: str


class Exam(NamedTuple):
    """One exam of a person."""

    person: Person
    accession: str
    day: date
    birth: date
    physician: str
    study: str
    folder: str


class Planted:
    """Identifiers and where they were written, for a search of what an ingest leaves behind."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], set[str]] = defaultdict(set)

    def add(self, where: str, exam: Exam, what: str) -> None:
        """Note that a place has these of an exam; dates are listed in three ways of writing."""
        who = exam.person
        days = {name: getattr(exam, name) for name in ("day", "birth")}
        values = {
            key: [f"{day:%Y%m%d}", f"{day:%Y-%m-%d}", f"{day:%d.%m.%Y}"]
            for key, day in days.items()
        }
        values |= {"mrn": [who.mrn], "short_mrn": [who.mrn.lstrip("0")], "phone": [who.phone]}
        values |= {"accession": [exam.accession], "physician": [exam.physician]}
        values |= {"staff": [word for name in staff_of(exam).values() for word in name.split("\\")]}
        values |= {
            "name": [who.family, who.given],
            "own_name": who.name.replace("=", "^").split("^"),
        }
        kinds = {
            "day": "date",
            "birth": "date",
            "short_mrn": "mrn",
            "physician": "name",
            "staff": "name",
            "own_name": "name",
        }
        for key in what.split():
            for value in values[key]:
                self.found[kinds.get(key, key), value].add(where)

    def write(self, path: Path) -> None:
        """Write the list as JSON."""
        rows = [
            {"kind": kind, "value": value, "where": sorted(where)}
            for (kind, value), where in sorted(self.found.items())
        ]
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")


def staff_of(exam: Exam) -> dict[str, str]:
    """Return tag -> family name, or names, of those who took, asked for and read an exam."""
    turn = zlib.crc32(exam.accession.encode()) % 2
    return {tag: names[turn] for tag, names in STAFF.items()}


def random(seed: int, *words: str) -> np.random.Generator:
    """Return the generator of one thing, so that files do not depend on those before them."""
    return np.random.default_rng([seed, *(zlib.crc32(word.encode()) for word in words)])


def person_of(patient: str, seed: int) -> Person:
    """Return the made-up person behind a synthetic patient id."""
    rng, number = random(seed, "person", patient), int(patient.rsplit("p", 1)[1])
    language = str(rng.choice(list(LANGUAGES)))
    words = LANGUAGES[language]
    picked = [str(rng.choice(words[key].split(" | "))) for key in ("families", "given")]
    family, given = (word.split("=")[0] for word in picked)
    own = [word.split("=")[-1] for word in picked]
    groups = [f"{family}^{given}"]
    if own != [family, given]:
        is_ideographic = words["charset"].startswith(("\\", "GB"))
        groups = [*groups, "^".join(own)] if is_ideographic else ["^".join(own)]
    mrn = (number * 7919 + 1_234_567 * (seed + 1)) % 10**7  # one to one: 7919 is prime to ten
    phone = f"+49 6221 555{rng.integers(10**3, 10**4)}"
    return Person(language, family, given, "=".join(groups), f"{mrn:08d}", phone)


def exam_of(batch: Batch, row: int, seed: int) -> Exam:
    """Return the exam of one image of a batch: the same for all images of a study."""
    patient, study = str(batch.patient_id[row]), str(batch.study_id[row])
    who, rng = person_of(patient, seed), random(seed, "exam", study)
    number = sum(map(int, study.rsplit("p", 1)[1].split("-s")))  # the exam's first image
    accession = f"{(number * 104_729 + 77_777_777 * (seed + 1)) % 10**8:010d}"
    if random(seed, "letters", patient).random() < 0.3:
        accession = f"RX{accession}"
    birth = date(2010, 1, 1) - timedelta(days=round(float(batch.age[row]) * 365.25))
    day = date(2010, 1, 1) + timedelta(days=int(rng.integers(0, 300)))
    scheme = int(rng.integers(3))
    folder = (
        f"{day:%Y/%m/%d}/{who.mrn}/{accession}",
        f"{who.mrn}/{generate_uid(entropy_srcs=['study', str(seed), study])}",
        f"{day:%Y%m}/{accession}/SE{int(rng.integers(1, 9)):05d}",
    )[scheme]
    return Exam(who, accession, day, birth, str(rng.choice(PHYSICIANS)), study, folder)
