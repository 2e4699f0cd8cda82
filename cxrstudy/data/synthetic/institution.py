"""Describe institutions (patients, imaging, reports, labels) and map indices to exams."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cxrstudy.data.synthetic.draws import Array, Draws
from cxrstudy.data.synthetic.projection import PerRow

Rate = tuple[float, float, float]
POOL = 8  # institutions of a pool
POOLS = {"public": 0, "unseen": POOL}  # name of a pool -> its first institution, public-K
BLOCK = 16  # images per block; each patient has 1 to 4 consecutive images of one block
RUNS = (  # images per patient, one pattern per block; assumed, with a mean of 2.1
    (1, 2, 3, 4, 2, 1, 3),
    (4, 4, 3, 2, 1, 1, 1),
    (2, 2, 2, 2, 2, 2, 2, 2),
    (1, 3, 1, 1, 2, 4, 1, 3),
    (1, 1, 1, 1, 1, 2, 3, 4, 1, 1),
    (3, 1, 4, 1, 2, 2, 3),
    (2, 1, 1, 3, 1, 4, 2, 2),
    (1, 4, 2, 1, 1, 3, 1, 1, 2),
)
# First image of the patient, by pattern and image of the block: (8, 16)
START = np.array([np.repeat(np.cumsum((0, *runs[:-1])), runs) for runs in RUNS])


@dataclass(frozen=True)
class Scanner:
    """An x-ray machine and its image processing; all values are assumed."""

    name: str
    gain: float  # relative contrast of the display curve
    noise: float  # relative noise of the detector at 64 px
    scatter: float  # scattered radiation, relative to the target exposure
    dark: float  # value that the display shows as black
    bright: float  # value that the display shows as white
    marker: float  # share of images with a burned-in side marker


FIXED = (
    Scanner("fixed-a", 1.0, 0.010, 0.03, 0.04, 0.80, 0.9),
    Scanner("fixed-b", 1.1, 0.014, 0.05, 0.06, 0.78, 0.7),
)
MOBILE = (
    Scanner("mobile-a", 0.95, 0.016, 0.09, 0.02, 0.81, 0.8),
    Scanner("mobile-b", 0.9, 0.02, 0.12, 0.03, 0.82, 0.5),
)


def rate(value: Any, unit: str) -> Any:
    """Return a dataclass field for a rate; `unit` says what it is a rate of."""
    return field(default=value, metadata={"unit": unit})


@dataclass(frozen=True)
class Institution:
    """Rates and habits. Three numbers are for ambulatory, ward and intensive-care patients."""

    name: str
    acuity: Rate = rate((0.40, 0.32, 0.28), "patients: ambulatory, ward, intensive care")
    ap_share: Rate = rate((0.25, 0.60, 0.90), "frontal exams that are AP, by acuity")
    lateral_share: float = rate(0.25, "ambulatory patients whose exams have a lateral image too")
    age: tuple[float, float] = rate((61.1, 16.2), "patients, in years: mean, sd")
    female: float = rate(0.504, "patients")
    finding_rates: Mapping[str, Rate] = field(default_factory=lambda: FINDING_RATES)
    device_rates: Mapping[str, Rate] = field(default_factory=lambda: DEVICE_RATES)
    malposition: float = rate(0.15, "devices whose tip is outside the correct range")
    monitored: Rate = rate((0.08, 0.45, 0.75), "exams with electrodes on the chest, by acuity")
    device_contrast: str = "clear"  # a key of devices.CONTRAST
    # Reports
    device_mention: float = rate(0.45, "correctly placed devices, mentioned in the report")
    mild_mention: float = rate(0.49, "mildest findings, mentioned; increases to 1 with severity")
    negation: float = rate(0.51, "common absent findings, reported as absent")
    side_mention: float = rate(0.76, "one-sided findings, reported with their side")
    hedge: float = rate(0.33, "findings, reported as uncertain")
    overcall: float = rate(0.015, "absent findings, reported as uncertain")
    compare: float = rate(0.6, "findings and devices, compared with a prior exam if there is one")
    dialect: int = 0  # selects the synonyms in use: three in four
    impression_only: float = rate(0.13, "reports without FINDINGS")
    # Structured labels
    label_miss: float = rate(0.10, "labels present but recorded as absent")
    label_false: float = rate(0.02, "labels absent but recorded as present")
    label_blank: float = rate(0.08, "labels not recorded")
    exam_blank: float = rate(0.05, "exams with no label recorded")
    # Images
    plate: tuple[float, float] = rate((350.0, 430.0), "side of the image in mm: 35 to 43 cm plates")
    gain: tuple[float, float] = rate((1.05, 1.35), "contrast of the display curve")
    fixed: tuple[Scanner, ...] = FIXED  # for PA and lateral images
    mobile: tuple[Scanner, ...] = MOBILE  # for AP images


OPENI = "measured by cxrstudy.data.reports on 1,938 Open-i reports"
SOURCES = {  # of rates and of tip positions; what is not listed is assumed
    "age": "Topff et al. 2024, Eur Radiol 34:5876, 21,039 patients: 61.1 (16.2)",
    "female": "Topff et al. 2024: 10,436 men of 21,039",
    "malposition": "42 of 271 endotracheal tubes ('Women are at greater risk than men for "
    "malpositioning of the endotracheal tube after emergent intubation', Crit Care Med 1994). "
    "For the others assumed, and higher than in practice (central venous catheters 3.3%, Pikwer "
    "et al. 2008), so that there are cases to learn from",
    "mild_mention": "difficult chest x-rays, Radiology 1977;123:563: 49.3% of true abnormalities "
    "reported",
    "negation": f"{OPENI}: 51%, the mean over six findings (92% cardiomegaly, 75% effusion, ... "
    "2% fracture)",
    "side_mention": f"{OPENI}: 467 of 615 mentions of findings that have a side",
    "hedge": f"{OPENI}: 410 of 1,240 asserted findings, 57% of these in words that leave it open",
    "impression_only": f"{OPENI}: 248 of 1,938",
    "label_miss": "assumed; mining alone misses 3% (18 of 553 against the curators' codes, Open-i)",
    "label_false": "assumed; mining alone adds 0.2% (22 of 12,691, Open-i)",
    "endotracheal_tube tip": "5 +- 2 cm above the carina (Radiopaedia, Lines and tubes)",
    "central_venous_catheter tip": "1.52 (1.9) cm below the carina (Merin et al. 2022, PLoS One "
    "17:e0277618)",
    "picc tip": "as the central venous catheter's",
}
# Assumed. Higher than in practice, so that a few thousand images have positives of every label
FINDING_RATES: dict[str, Rate] = {
    "heart_failure": (0.10, 0.25, 0.35),
    "cardiomegaly": (0.06, 0.10, 0.12),
    "pleural_effusion": (0.03, 0.14, 0.20),
    "pneumothorax": (0.04, 0.07, 0.08),
    "consolidation": (0.06, 0.15, 0.20),
    "atelectasis": (0.05, 0.16, 0.22),
    "edema": (0.01, 0.03, 0.06),
    "nodule_mass": (0.09, 0.08, 0.06),
    "fracture": (0.06, 0.08, 0.08),
}
DEVICE_RATES: dict[str, Rate] = {  # assumed; by acuity, before what findings add
    "endotracheal_tube": (0.0, 0.03, 0.28),
    "central_venous_catheter": (0.04, 0.16, 0.30),
    "picc": (0.03, 0.15, 0.16),
    "swan_ganz_catheter": (0.005, 0.04, 0.14),
    "nasogastric_tube": (0.01, 0.13, 0.20),
    "chest_tube": (0.01, 0.07, 0.10),
    "pacemaker": (0.07, 0.10, 0.09),
}


def _shifted_scanners(site: Institution, steps: int) -> dict[str, Any]:
    """Return scanners outside the pool's range: flatter display, more noise. Assumed."""
    return {
        kind: tuple(
            replace(m, gain=m.gain * 0.8**steps, noise=m.noise * 1.4**steps,
                    scatter=m.scatter * 1.4**steps, dark=min(m.dark + 0.05 * steps, 0.3))
            for m in getattr(site, kind)
        )
        for kind in ("fixed", "mobile")
    }  # fmt: skip


def _distant(site: Institution, steps: int) -> dict[str, Any]:
    """Return scanners, case mix and wording ``steps`` away from the pools. Assumed.

    Institutions of the pools multiply rates by .6 to 1.4, and mention .2 to .8 of the devices. One
    step puts an institution at that edge, two steps outside. Every second label becomes more
    frequent, the others rarer.
    """
    up, down = 1.4**steps, 0.6**steps

    def moved(table: Mapping[str, Rate]) -> dict[str, Rate]:
        factors = [up if k % 2 else down for k in range(len(table))]
        return {
            name: (min(a * f, 0.9), min(b * f, 0.9), min(c * f, 0.9))
            for (name, (a, b, c)), f in zip(table.items(), factors, strict=True)
        }

    words: dict[str, Any] = {
        "device_mention": 0.4 / 2**steps,  # .2 at the edge
        "mild_mention": 0.5 * 0.8**steps,  # .4
        "negation": 0.4 / 2**steps,  # .2
        "hedge": min(0.36 * 1.25**steps, 0.9),  # .45
        "dialect": 100 + steps,  # synonyms that no pool uses in this mixture
    }
    rates = {
        "finding_rates": moved(site.finding_rates),
        "device_rates": moved(site.device_rates),
    }
    return _shifted_scanners(site, steps) | rates | words if steps else {}


# Suffixes of an institution's name, and the fields that each changes
Change = Callable[[Institution, int], dict[str, Any]]
SUFFIXES: tuple[tuple[str, Change], ...] = (
    ("faint", lambda site, k: {"device_contrast": "faint"}),
    (r"mention(\d+)", lambda site, k: {"device_mention": min(k / 100, 1.0)}),
    (
        r"mislabel(\d+)",
        lambda site, k: {"label_miss": site.label_miss * k, "label_false": site.label_false * k},
    ),
    (r"shift(\d+)", _shifted_scanners),
    (r"distant(\d+)", _distant),
)


def institution(name: str) -> Institution:
    """Return the institution of a name.

    "study" is the study's own; "public-k", k from 0, each has its own mixture of patients and
    habits. Suffixes change one factor each for the same patients: "-faint" devices, "-mentionP"
    reports that mention P% of the devices, "-mislabelK" structured labels with K times the errors,
    "-shiftK" scanners K steps outside the pool's range, "-distantK" scanners, case mix and wording
    together: 0 inside the pools' range, 1 at its edge, 2 outside.

    Raises:
        ValueError: the name or a suffix is unknown.
    """
    base, *suffixes = re.split(r"-(?=[a-z])", name)
    site = _base_institution(base, name)
    for suffix in suffixes:
        for pattern, change in SUFFIXES:
            if match := re.fullmatch(pattern, suffix):
                site = replace(site, **change(site, int(match[1]) if match.groups() else 0))
                break
        else:
            raise ValueError(
                f"unknown institution {name!r}: the suffix {suffix!r} is not faint, mentionP, "
                "mislabelK, shiftK or distantK"
            )
    return site


def _base_institution(base: str, name: str) -> Institution:
    """Return an institution without suffixes."""
    kind, _, number = base.partition("-")
    if base == "study":
        return Institution(base)
    if kind != "public" or not number.isdecimal():
        raise ValueError(
            f'unknown institution {name!r}: use "study", "public", "unseen", or "public-0", '
            '"public-1", ...'
        )
    d = Draws.start(0, "institution", [int(number)])

    def u(name: str, low: float, high: float) -> float:
        return float(d.uniform(name, low, high)[0])

    def vary(table: Mapping[str, Rate]) -> dict[str, Rate]:
        # One name for all three: all rates of a label are multiplied by the same factor
        return {
            k: (u(k, 0.6, 1.4) * a, u(k, 0.6, 1.4) * b, u(k, 0.6, 1.4) * c)
            for k, (a, b, c) in table.items()
        }

    def scanners(kind: tuple[Scanner, ...]) -> tuple[Scanner, ...]:
        return tuple(
            replace(m, name=f"{base}-{m.name}", gain=m.gain * u(m.name + "g", 0.85, 1.15),
                    noise=m.noise * u(m.name + "n", 0.7, 1.5),
                    dark=m.dark * u(m.name + "d", 0.6, 1.5))
            for m in kind
        )  # fmt: skip

    ward, intensive = u("ward", 0.2, 0.4), u("intensive", 0.1, 0.35)
    return Institution(
        base, acuity=(1.0 - ward - intensive, ward, intensive),
        age=(u("age", 48, 66), u("age.sd", 14, 19)),
        finding_rates=vary(FINDING_RATES), device_rates=vary(DEVICE_RATES),
        device_mention=u("device", 0.2, 0.8), mild_mention=u("mild", 0.4, 0.75),
        negation=u("negation", 0.2, 0.8), hedge=u("hedge", 0.15, 0.45),
        compare=u("compare", 0.3, 0.8), dialect=1 + int(number),
        fixed=scanners(FIXED), mobile=scanners(MOBILE),
    )  # fmt: skip


@dataclass
class PatientExams(PerRow):
    """The patient, exam and image of each row, all (N,), and their random streams."""

    patient: Array  # number of the patient
    exam: Array  # number of the patient's exam, from 0
    ap: Array
    lateral: Array
    acuity: Array  # 0 ambulatory, 1 ward, 2 intensive care
    patient_draws: Draws
    exam_draws: Draws
    prior_draws: Draws  # of the exam before; of the exam itself if it is the first
    image_draws: Draws


def patient_exams(index: Array, site: Institution, seed: int) -> PatientExams:
    """Return the patients, exams and images of an institution's indices (N,).

    They are computed in closed form, so no table of all images is needed.
    """
    block, slot = index // BLOCK, index % BLOCK
    runs = Draws.start(seed, f"block/{site.name}", block).bits("runs")
    start = START[(runs % np.uint64(len(RUNS))).astype(np.int64), slot]
    number, place = block * BLOCK + start, slot - start
    patient = Draws.start(seed, f"patient/{site.name}", number)
    acuity = patient.categorical("acuity", site.acuity)
    paired = (acuity == 0) & patient.bernoulli("lateral", site.lateral_share)
    exam = np.where(paired, place // 2, place)
    lateral = paired & (place % 2 == 1)
    exam_draws = patient.child("exam", exam)
    ap = ~paired & exam_draws.bernoulli("ap", np.asarray(site.ap_share)[acuity])
    prior = patient.child("exam", np.maximum(exam - 1, 0))
    image = exam_draws.child("image", place)
    return PatientExams(number, exam, ap, lateral, acuity, patient, exam_draws, prior, image)
