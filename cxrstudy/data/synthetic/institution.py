"""Institutions: who comes, with what, how it is imaged and how it is written down; and index -> patient, exam, image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cxrstudy.data.synthetic.draws import Array, Draws

POOL = 8  # institutions behind "public"
BLOCK = 16  # images a block; a block's patients own consecutive runs of 1 to 4 of its images
RUNS = (  # assumed; a mean of 2.2 images a patient, MIMIC-CXR has 5.8 (source: Johnson 2019, 377,110 of 65,379)
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
class Institution:
    """Rates and habits. A rate given as three numbers is for ambulatory, ward and intensive-care patients."""

    name: str
    acuity: tuple[float, float, float] = (0.40, 0.32, 0.28)  # assumed
    ap_share: tuple[float, float, float] = (0.25, 0.60, 0.90)  # assumed; intensive care is imaged at the bedside
    lateral_share: float = 0.0  # of ambulatory patients also imaged from the side; assumed
    age: tuple[float, float] = (58.0, 17.0)  # mean, sd; assumed
    female: float = 0.46  # assumed
    finding_rates: tuple[tuple[str, tuple[float, float, float]], ...] | dict = ()
    device_rates: tuple[tuple[str, tuple[float, float, float]], ...] | dict = ()
    monitored: tuple[float, float, float] = (0.08, 0.45, 0.75)  # electrodes on the chest; assumed
    device_contrast: str = "clear"  # of devices.CONTRAST
    # what reports say
    device_mention: float = 0.45  # of devices that stand; assumed
    mild_mention: float = 0.55  # of findings of least severity, rising to 1 for the worst; assumed
    negation: float = 0.5  # of the common absent findings said to be absent; assumed
    side_mention: float = 0.85  # of one-sided findings; assumed
    hedge: float = 0.12  # of findings said with doubt; assumed
    impression_only: float = 0.15  # of reports without FINDINGS; assumed
    # what the structured labels say
    label_miss: float = 0.10  # present but recorded as 0; assumed
    label_false: float = 0.02  # absent but recorded as 1; assumed
    label_blank: float = 0.08  # a label not recorded; assumed
    exam_blank: float = 0.05  # no label of the exam recorded; assumed
    # what images look like
    field: tuple[float, float] = (350.0, 430.0)  # side of the image in mm, 35 to 43 cm plates (source: common sizes)
    noise: float = 0.012  # relative noise of the detector at 64 px; assumed
    gain: tuple[float, float] = (1.05, 1.35)  # contrast of the display curve; assumed


FINDING_RATES = {  # assumed, higher than in practice so that every label has positives in a few thousand images
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
DEVICE_RATES = {  # assumed; given the patient's acuity, before what findings add
    "endotracheal_tube": (0.0, 0.03, 0.28),
    "central_venous_catheter": (0.04, 0.16, 0.30),
    "picc": (0.03, 0.15, 0.16),
    "swan_ganz_catheter": (0.005, 0.04, 0.14),
    "nasogastric_tube": (0.01, 0.13, 0.20),
    "chest_tube": (0.01, 0.07, 0.10),
    "pacemaker": (0.07, 0.10, 0.09),
}


def institution(name: str) -> Institution:
    """The institution of a name: "study", or "public-k" for k from 0, each with its own mixture of patients and habits."""
    base = Institution(name, finding_rates=FINDING_RATES, device_rates=DEVICE_RATES)
    if name == "study":
        return base
    kind, _, number = name.partition("-")
    if kind != "public" or not number.isdecimal():
        raise ValueError(f'no institution {name!r}: there are "study", "public" and "public-0", "public-1", ...')
    d = Draws.start(0, "institution", [int(number)])
    u = lambda what, low, high: float(d.uniform(what, low, high)[0])  # noqa: E731
    ward, intensive = u("ward", 0.2, 0.4), u("intensive", 0.1, 0.35)
    times = {k: u(f"rate.{k}", 0.6, 1.4) for k in (*FINDING_RATES, *DEVICE_RATES)}
    scaled = [{k: tuple(r * times[k] for r in v) for k, v in rates.items()} for rates in (FINDING_RATES, DEVICE_RATES)]
    return replace(
        base, acuity=(1.0 - ward - intensive, ward, intensive), age=(u("age", 48, 66), u("age.sd", 14, 19)),
        finding_rates=scaled[0], device_rates=scaled[1], device_mention=u("device", 0.2, 0.8),
        mild_mention=u("mild", 0.4, 0.75), negation=u("negation", 0.2, 0.8), noise=u("noise", 0.008, 0.02),
        gain=(u("gain", 1.0, 1.2), u("gain.high", 1.3, 1.55)), hedge=u("hedge", 0.05, 0.2),
    )  # fmt: skip


@dataclass(frozen=True)
class Roster:
    """Who is on each image: patient number, exam of the patient, AP, lateral, acuity (N,) and the streams of each."""

    number: Array
    exam: Array
    ap: Array
    lateral: Array
    acuity: Array
    patient_draws: Draws
    exam_draws: Draws
    image_draws: Draws

    def rows(self, index: Array | slice) -> Roster:
        """Some rows."""
        return Roster(*(
            v.rows(index) if isinstance(v, Draws) else v[index]  # type: ignore[arg-type]
            for v in (getattr(self, f) for f in self.__dataclass_fields__)
        ))  # fmt: skip


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
    ap = ~lateral & visit.chance("ap", np.asarray(site.ap_share)[acuity]) & ~paired
    return Roster(number, exam, ap, lateral, acuity, patient, visit, visit.child("image", place))
