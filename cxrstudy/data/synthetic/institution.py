"""Institutions: who comes, with what, how it is imaged and written down; and index -> patient, exam, image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

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
START = np.array([np.repeat(np.cumsum((0, *runs[:-1])), runs) for runs in RUNS])  # (8, 16) first image of the patient


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


FIXED = (Scanner("fixed-a", 1.0, 0.010, 0.03, 0.10, 0.80, 0.9), Scanner("fixed-b", 1.1, 0.014, 0.05, 0.12, 0.78, 0.7))
MOBILE = (
    Scanner("mobile-a", 0.95, 0.016, 0.09, 0.11, 0.81, 0.8),
    Scanner("mobile-b", 0.9, 0.02, 0.12, 0.09, 0.82, 0.5),
)


@dataclass(frozen=True)
class Institution:
    """Rates and habits. A rate given as three numbers is for ambulatory, ward and intensive-care patients."""

    name: str
    acuity: tuple[float, float, float] = (0.40, 0.32, 0.28)  # assumed
    ap_share: tuple[float, float, float] = (0.25, 0.60, 0.90)  # assumed; intensive care is imaged at the bedside
    lateral_share: float = 0.25  # of ambulatory patients whose exams have a lateral image too; assumed
    age: tuple[float, float] = (58.0, 17.0)  # mean, sd; assumed
    female: float = 0.46  # assumed
    finding_rates: Mapping[str, Rate] = field(default_factory=lambda: FINDING_RATES)
    device_rates: Mapping[str, Rate] = field(default_factory=lambda: DEVICE_RATES)
    malposition: float = 0.15  # of devices; assumed
    monitored: tuple[float, float, float] = (0.08, 0.45, 0.75)  # electrodes on the chest; assumed
    device_contrast: str = "clear"  # of devices.CONTRAST
    # what reports say
    device_mention: float = 0.45  # of devices that stand; assumed
    mild_mention: float = 0.55  # of findings of least severity, rising to 1 for the worst; assumed
    negation: float = 0.5  # of the common absent findings said to be absent; assumed
    side_mention: float = 0.85  # of one-sided findings; assumed
    hedge: float = 0.12  # of findings said with doubt; assumed
    overcall: float = 0.015  # of absent findings yet said with doubt; assumed
    compare: float = 0.6  # of findings and devices compared with the prior exam, where there is one; assumed
    dialect: int = 0  # which of the synonyms are in use: a quarter is not
    impression_only: float = 0.15  # of reports without FINDINGS; assumed
    # what the structured labels say
    label_miss: float = 0.10  # present but recorded as 0; assumed
    label_false: float = 0.02  # absent but recorded as 1; assumed
    label_blank: float = 0.08  # a label not recorded; assumed
    exam_blank: float = 0.05  # no label of the exam recorded; assumed
    # what images look like
    plate: tuple[float, float] = (350.0, 430.0)  # side of the image in mm, 35 to 43 cm plates; assumed
    gain: tuple[float, float] = (1.05, 1.35)  # contrast of the display curve; assumed
    fixed: tuple[Scanner, ...] = FIXED  # for PA and lateral images
    mobile: tuple[Scanner, ...] = MOBILE  # for AP images


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


def institution(name: str) -> Institution:
    """The institution of a name: "study", or "public-k" for k from 0, each with its own mixture of patients and habits;
    with "-faint" after it, the same patients with faint devices."""
    stem = name.removesuffix("-faint")
    kind, _, number = stem.partition("-")
    contrast = "faint" if stem != name else "clear"
    if stem == "study":
        return Institution(stem, device_contrast=contrast)
    if kind != "public" or not number.isdecimal():
        raise ValueError(f'no institution {name!r}: there are "study", "public" and "public-0", "public-1", ...')
    d = Draws.start(0, "institution", [int(number)])
    u = lambda what, low, high: float(d.uniform(what, low, high)[0])  # noqa: E731
    ward, intensive = u("ward", 0.2, 0.4), u("intensive", 0.1, 0.35)
    rates = [
        {k: (u(k, 0.6, 1.4) * v[0], u(k, 0.6, 1.4) * v[1], u(k, 0.6, 1.4) * v[2]) for k, v in table.items()}
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
        finding_rates=rates[0], device_rates=rates[1], device_contrast=contrast, device_mention=u("device", 0.2, 0.8),
        mild_mention=u("mild", 0.4, 0.75), negation=u("negation", 0.2, 0.8), hedge=u("hedge", 0.05, 0.2),
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
    pattern = (Draws.start(seed, f"block/{site.name}", block).bits("runs") % np.uint64(len(RUNS))).astype(np.int64)
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
    return Roster(number, exam, ap, lateral, acuity, patient, visit, prior, visit.child("image", place))
