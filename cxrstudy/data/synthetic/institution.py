"""Institutions: who comes, with what, how it is imaged and written down; and index -> patient, exam, image."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cxrstudy.data.synthetic.draws import Array, Draws
from cxrstudy.data.synthetic.projection import Rows

Rate = tuple[float, float, float]
POOL = 8  # institutions behind "public"
BLOCK = 16  # images a block; a block's patients own consecutive runs of 1 to 4 of its images
RUNS = (  # assumed; a mean of 2.1 images a patient
    (1, 2, 3, 4, 2, 1, 3),
    (4, 4, 3, 2, 1, 1, 1),
    (2, 2, 2, 2, 2, 2, 2, 2),
    (1, 3, 1, 1, 2, 4, 1, 3),
    (1, 1, 1, 1, 1, 2, 3, 4, 1, 1),
    (3, 1, 4, 1, 2, 2, 3),
    (2, 1, 1, 3, 1, 4, 2, 2),
    (1, 4, 2, 1, 1, 3, 1, 1, 2),
)
START = np.array(
    [np.repeat(np.cumsum((0, *runs[:-1])), runs) for runs in RUNS]
)  # (8, 16) first image of the patient


@dataclass(frozen=True)
class Scanner:
    """A machine and its processing; all assumed."""

    name: str
    gain: float  # contrast of the display curve, relative
    noise: float  # relative noise of the detector at 64 px
    scatter: float  # scattered light, relative to the exposure aimed at
    dark: float  # what the display shows as black
    bright: float  # and as white
    marker: float  # share of images with a burned-in side marker


FIXED = (
    Scanner("fixed-a", 1.0, 0.010, 0.03, 0.04, 0.80, 0.9),
    Scanner("fixed-b", 1.1, 0.014, 0.05, 0.06, 0.78, 0.7),
)
MOBILE = (
    Scanner("mobile-a", 0.95, 0.016, 0.09, 0.02, 0.81, 0.8),
    Scanner("mobile-b", 0.9, 0.02, 0.12, 0.03, 0.82, 0.5),
)


def rate(value: Any, what: str) -> Any:
    """A field that is a rate, and of what it is one."""
    return field(default=value, metadata={"what": what})


@dataclass(frozen=True)
class Institution:
    """Rates and habits. A rate given as three numbers is for ambulatory, ward and intensive-care patients."""

    name: str
    acuity: Rate = rate((0.40, 0.32, 0.28), "patients: ambulatory, ward, intensive care")
    ap_share: Rate = rate((0.25, 0.60, 0.90), "frontal exams taken AP, by acuity")
    lateral_share: float = rate(0.25, "ambulatory patients whose exams have a lateral image too")
    age: tuple[float, float] = rate((61.1, 16.2), "patients, in years: mean, sd")
    female: float = rate(0.504, "patients")
    finding_rates: Mapping[str, Rate] = field(default_factory=lambda: FINDING_RATES)
    device_rates: Mapping[str, Rate] = field(default_factory=lambda: DEVICE_RATES)
    malposition: float = rate(0.15, "devices whose tip lies where it should not")
    monitored: Rate = rate((0.08, 0.45, 0.75), "exams with electrodes on the chest, by acuity")
    device_contrast: str = "clear"  # of devices.CONTRAST
    # what reports say
    device_mention: float = rate(0.45, "devices that stand, mentioned in the report")
    mild_mention: float = rate(
        0.49, "findings of least severity, mentioned; rising to 1 for the worst"
    )
    negation: float = rate(0.51, "common absent findings, said to be absent")
    side_mention: float = rate(0.76, "one-sided findings, said with their side")
    hedge: float = rate(0.33, "findings said with doubt")
    overcall: float = rate(0.015, "absent findings, yet said with doubt")
    compare: float = rate(
        0.6, "findings and devices compared with the prior exam, where there is one"
    )
    dialect: int = 0  # which of the synonyms are in use: a quarter is not
    impression_only: float = rate(0.13, "reports without FINDINGS")
    # what the structured labels say
    label_miss: float = rate(0.10, "labels present but recorded as absent")
    label_false: float = rate(0.02, "labels absent but recorded as present")
    label_blank: float = rate(0.08, "labels not recorded")
    exam_blank: float = rate(0.05, "exams with no label recorded")
    # what images look like
    plate: tuple[float, float] = rate((350.0, 430.0), "side of the image in mm: 35 to 43 cm plates")
    gain: tuple[float, float] = rate((1.05, 1.35), "contrast of the display curve")
    fixed: tuple[Scanner, ...] = FIXED  # for PA and lateral images
    mobile: tuple[Scanner, ...] = MOBILE  # for AP images


OPENI = "measured by cxrstudy.data.reports on 1,938 Open-i reports"
SOURCES = {  # of rates and of where tips lie; what is not here is assumed
    "age": "Topff et al. 2024, Eur Radiol 34:5876, 21,039 patients: 61.1 (16.2)",
    "female": "Topff et al. 2024: 10,436 men of 21,039",
    "malposition": "42 of 271 endotracheal tubes ('Women are at greater risk than men for malpositioning of the "
    "endotracheal tube after emergent intubation', Crit Care Med 1994). For the others assumed, and higher than in "
    "practice (central venous catheters 3.3%, Pikwer et al. 2008), so that there are cases to learn from",
    "mild_mention": "difficult chest x-rays, Radiology 1977;123:563: 49.3% of true abnormalities reported",
    "negation": f"{OPENI}: 51%, the mean over six findings (92% cardiomegaly, 75% effusion, ... 2% fracture)",
    "side_mention": f"{OPENI}: 467 of 615 mentions of findings that have a side",
    "hedge": f"{OPENI}: 410 of 1,240 asserted findings, 57% of these in words that leave it open",
    "impression_only": f"{OPENI}: 248 of 1,938",
    "label_miss": "assumed; mining alone misses 3% (18 of 553 against the curators' codes, Open-i)",
    "label_false": "assumed; mining alone adds 0.2% (22 of 12,691, Open-i)",
    "endotracheal_tube tip": "5 +- 2 cm above the carina (Radiopaedia, Lines and tubes)",
    "central_venous_catheter tip": "1.52 (1.9) cm below the carina (Merin et al. 2022, PLoS One 17:e0277618)",
    "picc tip": "as the central venous catheter's",
}
FINDING_RATES: dict[
    str, Rate
] = {  # assumed, higher than in practice so that every label has positives in a few thousand images
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
DEVICE_RATES: dict[str, Rate] = {  # assumed; given the patient's acuity, before what findings add
    "endotracheal_tube": (0.0, 0.03, 0.28),
    "central_venous_catheter": (0.04, 0.16, 0.30),
    "picc": (0.03, 0.15, 0.16),
    "swan_ganz_catheter": (0.005, 0.04, 0.14),
    "nasogastric_tube": (0.01, 0.13, 0.20),
    "chest_tube": (0.01, 0.07, 0.10),
    "pacemaker": (0.07, 0.10, 0.09),
}


SETTINGS = (  # words after an institution's name, each one factor changed: what it matches, what it becomes
    ("faint", lambda site, k: {"device_contrast": "faint"}),
    (r"mention(\d+)", lambda site, k: {"device_mention": min(k / 100, 1.0)}),
    (
        r"mislabel(\d+)",
        lambda site, k: {"label_miss": site.label_miss * k, "label_false": site.label_false * k},
    ),
    (r"shift(\d+)", lambda site, k: _shifted(site, k)),
)


def _shifted(site: Institution, steps: int) -> dict[str, Any]:
    """Scanners that leave the pool's range, step by step: a flatter display, more noise, scatter and fog. Assumed."""
    made = (
        tuple(
            replace(m, gain=m.gain * 0.8**steps, noise=m.noise * 1.4**steps, scatter=m.scatter * 1.4**steps,
                    dark=min(m.dark + 0.05 * steps, 0.3))
            for m in kind
        )
        for kind in (site.fixed, site.mobile)
    )  # fmt: skip
    return dict(zip(("fixed", "mobile"), made, strict=True))


def institution(name: str) -> Institution:
    """The institution of a name: "study", or "public-k" for k from 0, each with its own mixture of patients and habits.

    Words after it change one factor each, for the same patients: "-faint" devices; "-mentionP", of P% of the devices in
    reports; "-mislabelK", K times the errors in structured labels; "-shiftK", scanners K steps beyond the pool's.
    """
    base, *words = re.split(r"-(?=[a-z])", name)
    site = _named(base, name)
    for word in words:
        found = [(re.fullmatch(pattern, word), change) for pattern, change in SETTINGS]
        match, change = next(((m, change) for m, change in found if m), (None, None))
        if match is None or change is None:
            raise ValueError(
                f"no institution {name!r}: {word!r} is none of faint, mentionP, mislabelK, shiftK"
            )
        site = replace(site, **change(site, int(match[1]) if match.groups() else 0))
    return site


def _named(stem: str, name: str) -> Institution:
    kind, _, number = stem.partition("-")
    if stem == "study":
        return Institution(stem)
    if kind != "public" or not number.isdecimal():
        raise ValueError(
            f'no institution {name!r}: there are "study", "public" and "public-0", "public-1", ...'
        )
    d = Draws.start(0, "institution", [int(number)])
    u = lambda what, low, high: float(d.uniform(what, low, high)[0])  # noqa: E731
    ward, intensive = u("ward", 0.2, 0.4), u("intensive", 0.1, 0.35)
    rates = [
        {
            k: (u(k, 0.6, 1.4) * v[0], u(k, 0.6, 1.4) * v[1], u(k, 0.6, 1.4) * v[2])
            for k, v in table.items()
        }
        for table in (FINDING_RATES, DEVICE_RATES)
    ]
    machines = [
        tuple(
            replace(m, name=f"{stem}-{m.name}", gain=m.gain * u(m.name + "g", 0.85, 1.15),
                    noise=m.noise * u(m.name + "n", 0.7, 1.5), dark=m.dark * u(m.name + "d", 0.6, 1.5))
            for m in kind
        )
        for kind in (FIXED, MOBILE)
    ]  # fmt: skip
    return Institution(
        stem, acuity=(1.0 - ward - intensive, ward, intensive), age=(u("age", 48, 66), u("age.sd", 14, 19)),
        finding_rates=rates[0], device_rates=rates[1], device_mention=u("device", 0.2, 0.8),
        mild_mention=u("mild", 0.4, 0.75), negation=u("negation", 0.2, 0.8), hedge=u("hedge", 0.15, 0.45),
        compare=u("compare", 0.3, 0.8), dialect=1 + int(number), fixed=machines[0], mobile=machines[1],
    )  # fmt: skip


@dataclass
class Roster(Rows):
    """Who is on each image: patient number, exam of the patient, AP, lateral, acuity (N,); the streams of the patient,
    the exam, the exam before (the exam's own where it is the first) and the image."""

    number: Array
    exam: Array
    ap: Array
    lateral: Array
    acuity: Array
    patient_draws: Draws
    exam_draws: Draws
    prior_draws: Draws
    image_draws: Draws


def roster(index: Array, site: Institution, seed: int) -> Roster:
    """Indices (N,) of one institution to patients, exams and images, in closed form: no table over images is kept."""
    block, slot = index // BLOCK, index % BLOCK
    pattern = (
        Draws.start(seed, f"block/{site.name}", block).bits("runs") % np.uint64(len(RUNS))
    ).astype(np.int64)
    start = START[pattern, slot]
    number, place = block * BLOCK + start, slot - start
    patient = Draws.start(seed, f"patient/{site.name}", number)
    acuity = patient.pick("acuity", site.acuity)
    paired = (acuity == 0) & patient.chance("lateral", site.lateral_share)
    exam = np.where(paired, place // 2, place)
    lateral = paired & (place % 2 == 1)
    visit = patient.child("exam", exam)
    ap = ~paired & visit.chance("ap", np.asarray(site.ap_share)[acuity])
    prior = patient.child("exam", np.maximum(exam - 1, 0))
    return Roster(
        number, exam, ap, lateral, acuity, patient, visit, prior, visit.child("image", place)
    )
