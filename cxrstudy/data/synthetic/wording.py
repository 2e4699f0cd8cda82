"""Reports: FINDINGS and IMPRESSION in the habits of an institution, with what it leaves unsaid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cxrstudy.data.synthetic.draws import GOLDEN, Draws, mix
from cxrstudy.data.synthetic.findings import BOTH, RIGHT
from cxrstudy.data.vocabulary import DEVICES, FINDINGS

if TYPE_CHECKING:
    from cxrstudy.data.synthetic.devices import Devices
    from cxrstudy.data.synthetic.findings import Findings
    from cxrstudy.data.synthetic.institution import Institution

GRADE = (("mild", "small", "minimal"), ("moderate", "moderate", "moderate"), ("severe", "large", "extensive"))
SIDES = ("right", "left", "bilateral")
SAID = {  # {side} and {grade}, {size}: words with their blank, or nothing
    "cardiomegaly": (
        "{grade}cardiomegaly.", "The heart is {grade}enlarged.", "The cardiac silhouette is enlarged.",
        "{grade}enlargement of the cardiac silhouette.",
    ),
    "pleural_effusion": (
        "{size}{side}pleural effusion.", "There is a {size}{side}pleural effusion.",
        "Blunting of the {side}costophrenic angle, consistent with {size}effusion.", "{size}{side}effusion.",
    ),
    "pneumothorax": ("{size}{side}pneumothorax.", "There is a {size}{side}pneumothorax.", "{side}apical pneumothorax."),
    "consolidation": (
        "{side}lung consolidation.", "There is {side}airspace consolidation.", "Focal consolidation in the {side}lung.",
        "{grade}{side}consolidation compatible with pneumonia.",
    ),
    "atelectasis": (
        "{side}basilar atelectasis.", "{grade}{side}basal atelectasis.", "Linear atelectasis at the {side}base.",
        "Subsegmental atelectasis at the {side}lung base.",
    ),
    "edema": (
        "{grade}pulmonary edema.", "{grade}interstitial edema.", "Findings of {grade}pulmonary edema.",
        "{grade}pulmonary vascular congestion with edema.",
    ),
    "nodule_mass": (
        "{side}pulmonary nodule.", "There is a nodule in the {side}lung.", "{side}lung mass.",
        "A rounded nodular opacity projects over the {side}lung.",
    ),
    "fracture": ("{side}rib fractures.", "Displaced {side}rib fractures.", "Fractures of several {side}ribs."),
}  # fmt: skip
HEDGES = ("Possible {}", "Cannot exclude {}", "Questionable {}")
DENIED = {
    "cardiomegaly": ("Heart size is normal.", "The cardiac silhouette is normal in size.", "No cardiomegaly."),
    "pleural_effusion": ("No pleural effusion.", "There is no pleural effusion."),
    "pneumothorax": ("No pneumothorax.", "There is no pneumothorax.", "No evidence of pneumothorax."),
    "consolidation": ("No focal consolidation.", "No airspace consolidation."),
    "edema": ("No pulmonary edema.", "No evidence of edema."),
    "fracture": ("No acute fracture.", "No displaced rib fracture."),
}
TUBES = {
    "endotracheal_tube": (
        "Endotracheal tube tip projects above the carina.", "The patient is intubated, ET tube in place.",
        "Endotracheal tube in standard position.",
    ),
    "central_venous_catheter": (
        "{side}central venous catheter with tip in the SVC.", "{side}central line terminates in the superior vena cava.",
        "{side}internal jugular central venous catheter in place.",
    ),
    "picc": ("{side}PICC with tip in the SVC.", "{side}PICC line in place.", "A {side}PICC terminates in the SVC."),
    "swan_ganz_catheter": (
        "Swan-Ganz catheter in place.", "{side}Swan-Ganz catheter with tip in the pulmonary artery.",
        "Pulmonary artery catheter tip projects over the hilum.",
    ),
    "nasogastric_tube": (
        "Nasogastric tube courses below the diaphragm.", "NG tube with tip in the stomach.", "Enteric tube in place.",
    ),
    "chest_tube": ("{side}chest tube in place.", "{side}pleural drain remains.", "A {side}chest tube is present."),
    "pacemaker": (
        "{side}chest wall pacemaker with leads in place.", "Dual-lead pacemaker in place.", "Cardiac pacing device.",
    ),
}  # fmt: skip
FILLER = (
    "The mediastinal contours are unremarkable.", "The osseous structures are intact.", "The lungs are well expanded.",
    "Degenerative changes of the spine.", "The trachea is midline.", "Soft tissues are unremarkable.",
    "The aorta is tortuous.", "Low lung volumes.",
)  # fmt: skip
NORMAL = ("No acute cardiopulmonary process.", "No acute cardiopulmonary abnormality.", "Normal chest radiograph.")


class Voice:
    """A report's own random numbers, one after the other."""

    def __init__(self, units: list[float]) -> None:
        self.units, self.at = units, 0

    def unit(self) -> float:
        """The next number in [0, 1)."""
        self.at += 1
        return self.units[self.at - 1]

    def one(self, options: tuple[str, ...]) -> str:
        """One of some phrases."""
        return options[int(self.unit() * len(options))]


def sentence(text: str) -> str:
    """Single blanks and a capital."""
    text = " ".join(text.split())
    return text[0].upper() + text[1:]


def say(voice: Voice, site: Institution, name: str, side: int, severity: float) -> str:
    """A finding that is reported."""
    place = f"{SIDES[side]} " if voice.unit() < site.side_mention else ""
    grades = GRADE[min(int(severity * 3.0), 2)]
    grade = f"{grades[0]} " if voice.unit() < 0.6 else ""
    size = f"{grades[1]} " if voice.unit() < 0.6 else ""
    text = voice.one(SAID[name]).format(side=place, grade=grade, size=size)
    if voice.unit() < site.hedge and text[0].islower():
        text = voice.one(HEDGES).format(text)
    return sentence(text.replace("is mild enlarged", "is mildly enlarged").replace("is moderate enl", "is moderately enl")
                    .replace("is severe enl", "is severely enl"))  # fmt: skip


def write(draws: Draws, site: Institution, found: Findings, held: Devices) -> list[str]:
    """The reports of some exams, one a row."""
    reports = []
    present, severity, sides = found.present.tolist(), found.severity.tolist(), found.side.tolist()
    devices, device_sides = held.present.tolist(), held.side.tolist()
    steps = np.arange(160, dtype=np.uint64) * GOLDEN
    for row, key in enumerate(draws.bits("report")):
        voice = Voice(((mix(key + steps) >> np.uint64(11)) * 2.0**-53).tolist())
        tubes, said, denied, main = [], [], [], []
        for k, name in enumerate(DEVICES):
            mention, option = voice.unit(), voice.one(TUBES[name])
            if devices[row][k] and mention < site.device_mention:
                side = "right " if device_sides[row][k] == RIGHT else "left "
                tubes.append(sentence(option.format(side=side)))
        for k, name in enumerate(FINDINGS):
            mention, bad = voice.unit(), severity[row][k]
            if present[row][k]:
                if mention < site.mild_mention + (1.0 - site.mild_mention) * min(1.5 * bad, 1.0):
                    text = say(voice, site, name, sides[row][k], bad)
                    said.append(text)
                    if bad > 0.3:
                        main.append(text)
            elif name in DENIED and mention < site.negation:
                denied.append(voice.one(DENIED[name]))
        filler = [voice.one(FILLER)] if voice.unit() < 0.6 else []
        order = [*tubes, *said, *denied, *filler] if voice.unit() < 0.7 else [*denied, *filler, *said, *tubes]
        impression = main or said or [voice.one(NORMAL) if not tubes else "Lines and tubes as above."]
        findings = (
            "" if voice.unit() < site.impression_only else "FINDINGS: " + " ".join(order or ["Lungs are clear."]) + " "
        )
        if not findings:
            impression = [*tubes, *said] or impression
        reports.append(f"{findings}IMPRESSION: " + " ".join(impression))
    return reports


__all__ = ["BOTH", "write"]
