"""Write reports with FINDINGS and IMPRESSION, as an institution's habits have it.

A report leaves out some findings and devices, and may call some uncertain. Texts are part of the
output: synonyms are chosen by a hash of their words, so changing one changes the choice.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from cxrstudy.data.synthetic.draws import GOLDEN, Array, hash_name, splitmix64
from cxrstudy.data.vocabulary import DEVICES, FINDINGS, LABELS, phrase

if TYPE_CHECKING:
    from cxrstudy.data.synthetic.institution import Institution
    from cxrstudy.data.synthetic.render import ExamState

GRADE = (
    ("mild", "small", "minimal"),
    ("moderate", "moderate", "moderate"),
    ("severe", "large", "extensive"),
)
SIDES = ("right", "left", "bilateral")
PRESENT = {  # {side}, {grade} and {size} are a word and a blank, or nothing
    "cardiomegaly": (
        "{grade}cardiomegaly.", "The heart is {grade}enlarged.",
        "The cardiac silhouette is enlarged.", "{grade}enlargement of the cardiac silhouette.",
    ),
    "pleural_effusion": (
        "{size}{side}pleural effusion.", "There is a {size}{side}pleural effusion.",
        "Blunting of the {side}costophrenic angle, consistent with {size}effusion.",
        "{size}{side}effusion.",
    ),
    "pneumothorax": (
        "{size}{side}pneumothorax.", "There is a {size}{side}pneumothorax.",
        "{side}apical pneumothorax.",
    ),
    "consolidation": (
        "{side}lung consolidation.", "There is {side}airspace consolidation.",
        "Focal consolidation in the {side}lung.",
        "{grade}{side}consolidation compatible with pneumonia.",
    ),
    "atelectasis": (
        "{side}basilar atelectasis.", "{grade}{side}basal atelectasis.",
        "Linear atelectasis at the {side}base.", "Subsegmental atelectasis at the {side}lung base.",
    ),
    "edema": (
        "{grade}pulmonary edema.", "{grade}interstitial edema.",
        "Findings of {grade}pulmonary edema.", "{grade}pulmonary vascular congestion with edema.",
    ),
    "nodule_mass": (
        "{side}pulmonary nodule.", "There is a nodule in the {side}lung.", "{side}lung mass.",
        "A rounded nodular opacity projects over the {side}lung.",
    ),
    "fracture": (
        "{side}rib fractures.", "Displaced {side}rib fractures.",
        "Fractures of several {side}ribs.",
    ),
}  # fmt: skip
WEAK = (
    "Possible {}", "Cannot exclude {}", "Questionable {}", "There may be {}",
    "{} cannot be excluded",
)  # fmt: skip
STRONG = ("Probable {}", "Likely {}", "Findings compatible with {}")  # read as present
NOUN = {  # after a hedge or before a verb; {side}, {grade} and {size} as above
    "cardiomegaly": "{grade}cardiomegaly",
    "pleural_effusion": "{size}{side}pleural effusion",
    "pneumothorax": "{size}{side}pneumothorax",
    "consolidation": "{side}lung consolidation",
    "atelectasis": "{side}basilar atelectasis",
    "edema": "{grade}pulmonary edema",
    "nodule_mass": "{side}pulmonary nodule",
    "fracture": "{side}rib fracture",
}
CHANGE = {  # compared with the prior exam
    "more": ("{} has increased.", "Interval increase of {}.", "Worsening {}."),
    "less": ("{} has decreased.", "Interval decrease of {}.", "Improving {}."),
    "same": ("Unchanged {}.", "Stable {}.", "{} is unchanged."),
    "new": ("New {}.", "Interval development of {}."),
    "gone": (
        "{} has resolved.", "Interval resolution of {}.",
        "Previously seen {} is no longer present.",
    ),
}  # fmt: skip
ABSENT = {
    "cardiomegaly": (
        "Heart size is normal.", "The cardiac silhouette is normal in size.", "No cardiomegaly.",
    ),
    "pleural_effusion": ("No pleural effusion.", "There is no pleural effusion."),
    "pneumothorax": (
        "No pneumothorax.", "There is no pneumothorax.", "No evidence of pneumothorax.",
    ),
    "consolidation": ("No focal consolidation.", "No airspace consolidation."),
    "edema": ("No pulmonary edema.", "No evidence of edema."),
    "fracture": ("No acute fracture.", "No displaced rib fracture."),
}  # fmt: skip
DEVICE = {  # correctly placed; {side}, {cm}
    "endotracheal_tube": (
        "Endotracheal tube tip {cm} cm above the carina.",
        "The patient is intubated, ET tube in place.", "Endotracheal tube in standard position.",
        "ETT terminates {cm} cm above the carina.",
    ),
    "central_venous_catheter": (
        "{side}central venous catheter with tip in the SVC.",
        "{side}central line terminates in the SVC.",
        "{side}internal jugular central venous catheter in place.",
        "{side}CVC tip at the cavoatrial junction.",
    ),
    "picc": (
        "{side}PICC with tip in the SVC.", "{side}PICC line in place.",
        "A {side}PICC terminates in the SVC.",
    ),
    "swan_ganz_catheter": (
        "Swan-Ganz catheter in place.",
        "{side}Swan-Ganz catheter with tip in the pulmonary artery.",
        "Pulmonary artery catheter tip projects over the hilum.",
    ),
    "nasogastric_tube": (
        "Nasogastric tube courses below the diaphragm.", "NG tube with tip in the stomach.",
        "Enteric tube in place.",
    ),
    "chest_tube": (
        "{side}chest tube in place.", "{side}pleural drain remains.",
        "A {side}chest tube is present.",
    ),
    "pacemaker": (
        "{side}chest wall pacemaker with leads in place.", "Cardiac pacemaker in place.",
        "{side}pacemaker is present.",
    ),
}  # fmt: skip
MALPOSITIONED = {
    "endotracheal_tube": (
        "Endotracheal tube is malpositioned, tip {cm} cm above the carina.",
        "ET tube needs repositioning.",
    ),
    "central_venous_catheter": ("{side}central venous catheter tip is malpositioned.",),
    "picc": ("{side}PICC tip is malpositioned.", "{side}PICC line should be repositioned."),
    "swan_ganz_catheter": ("Swan-Ganz catheter tip is too far peripheral.",),
    "nasogastric_tube": (
        "NG tube tip is in the esophagus.", "Nasogastric tube is too high and should be advanced.",
    ),
    "chest_tube": (
        "{side}chest tube lies outside the pleural space.", "{side}chest tube is malpositioned.",
    ),
    "pacemaker": ("Pacemaker lead appears dislodged.",),
}  # fmt: skip
BRONCHIAL = (
    "Endotracheal tube tip in the right main bronchus.",
    "Right mainstem intubation, endotracheal tube to be withdrawn.",
)  # fmt: skip
REMOVED = ("Interval removal of the {}.", "The {} has been removed.")
FILLER = (
    "The mediastinal contours are unremarkable.", "The osseous structures are intact.",
    "The lungs are well expanded.", "Degenerative changes of the spine.", "The trachea is midline.",
    "Soft tissues are unremarkable.", "The aorta is tortuous.", "Low lung volumes.",
)  # fmt: skip
NORMAL = (
    "No acute cardiopulmonary process.", "No acute cardiopulmonary abnormality.",
    "Normal chest radiograph.",
)  # fmt: skip


@cache
def synonyms(options: tuple[str, ...], dialect: int) -> tuple[str, ...]:
    """Return the phrases that a dialect uses: three in four, at least one."""
    return tuple(o for o in options if (int(hash_name(o)) + dialect) % 4) or options[:1]


def to_sentence(text: str) -> str:
    """Return a text with single blanks, a capital and a full stop."""
    text = " ".join(text.split()).rstrip(".")
    return text[0].upper() + text[1:] + "."


def write_reports(site: Institution, now: ExamState, prior: ExamState) -> tuple[list[str], Array]:
    """Return the reports of some exams, and what each report states.

    Args:
        site: the institution.
        now: the exams.
        prior: the exams before, used for those that are not their patient's first.

    Returns:
        N texts, and float32 (N, L): 1 present, 0 absent, 0.5 uncertain, NaN not mentioned.
    """
    steps = np.arange(160, dtype=np.uint64) * GOLDEN
    found = [a.tolist() for a in (now.found.present, now.found.severity, now.found.side)]
    found += [a.tolist() for a in (prior.found.present, prior.found.severity)]
    held = [a.tolist() for a in (now.held.present, now.held.side, now.held.tip)]
    held += [a.tolist() for a in (now.held.malpositioned, prior.held.present)]
    by_exam = zip(zip(*found, strict=True), zip(*held, strict=True), strict=True)
    keys, follow = now.who.exam_draws.bits("report"), (now.who.exam > 0).tolist()
    texts, stated = [], []
    for key, has_prior, (ill, worn) in zip(keys, follow, by_exam, strict=True):
        units = ((splitmix64(key + steps) >> np.uint64(11)) * 2.0**-53).tolist()
        report = Report(site, units, has_prior)
        for device in zip(DEVICES, *worn, strict=True):
            report.add_device(*device)
        for finding in zip(FINDINGS, *ill, strict=True):
            report.add_finding(*finding)
        texts.append(report.text())
        stated.append([report.stated.get(name, np.nan) for name in LABELS])
    return texts, np.array(stated, dtype=np.float32).reshape(-1, len(LABELS))


class Report:
    """A report while it is written. Random numbers are used in the order of the calls.

    Args:
        site: the institution.
        units: the report's random numbers in [0, 1).
        prior: whether there is a prior exam to compare with.
    """

    def __init__(self, site: Institution, units: list[float], prior: bool) -> None:
        self.site, self.prior, self._units = site, prior, iter(units)
        self.devices: list[str] = []  # sentences
        self.present: list[str] = []
        self.absent: list[str] = []
        self.impression: list[str] = []
        self.stated: dict[str, float] = {}
        self.stated_absent: dict[str, float] = {}  # in FINDINGS only

    def _unit(self) -> float:
        return next(self._units)

    def _choose(self, options: tuple[str, ...]) -> str:
        """Return one of some phrases that the institution uses."""
        used = synonyms(options, self.site.dialect)
        return used[int(self._unit() * len(used))]

    def add_device(
        self, name: str, present: bool, side: int, tip: float, wrong: bool, before: bool
    ) -> None:
        """Mention a device or its removal, or leave it out; `tip` is in mm."""
        mention, compare, site = self._unit(), self._unit(), self.site
        p_mention = (site.device_mention + 1.0) / 2.0 if wrong else site.device_mention
        if present and mention < p_mention:
            options = (MALPOSITIONED if wrong else DEVICE)[name]
            if name == "endotracheal_tube" and wrong and tip < 0:
                options = BRONCHIAL
            words = {"side": f"{SIDES[side]} ", "cm": max(round(tip / 10), 0)}
            self.devices.append(to_sentence(self._choose(options).format(**words)))
            self.stated[name] = 1.0
            if wrong:
                self.impression.append(self.devices[-1])
            return
        compared = self.prior and mention < site.device_mention and compare < site.compare
        if before and not present and compared:
            self.devices.append(self._choose(REMOVED).format(phrase(name)))
            self.stated[name] = 0.0

    def add_finding(
        self, name: str, present: bool, severity: float, side: int, before: bool, old: float
    ) -> None:
        """Report a finding as present, uncertain or absent, or leave it out.

        `before` and `old` are presence and severity at the prior exam.
        """
        site, mention = self.site, self._unit()
        compare = self.prior and self._unit() < site.compare
        p_mention = site.mild_mention + (1.0 - site.mild_mention) * min(1.5 * severity, 1.0)
        bare = NOUN[name].format(side="", grade="", size="")
        if present and mention < p_mention:
            text = self._positive(name, side, severity, compare, old if before else -1.0)
            self.present.append(text)
            if severity > 0.3:
                self.impression.append(text)
        elif present:
            return
        elif before and compare:
            self.present.append(to_sentence(self._choose(CHANGE["gone"]).format(bare)))
            self.stated[name] = 0.0
        elif self._unit() < site.overcall:
            self.present.append(to_sentence(self._choose(WEAK).format(bare)))
            self.stated[name] = 0.5
        elif name in ABSENT and mention < site.negation:
            self.absent.append(self._choose(ABSENT[name]))
            self.stated_absent[name] = 0.0

    def _positive(self, name: str, side: int, severity: float, compare: bool, old: float) -> str:
        """Return the sentence of a finding; `old` is its severity before, -1 if it was absent."""
        site, (grade, size, _) = self.site, GRADE[min(int(severity * 3.0), 2)]
        words = {
            "side": f"{SIDES[side]} " if self._unit() < site.side_mention else "",
            "grade": f"{grade} " if self._unit() < 0.6 else "",
            "size": f"{size} " if self._unit() < 0.6 else "",
        }
        noun, hedge = NOUN[name].format(**words), self._unit()
        self.stated[name] = 1.0
        if hedge < site.hedge * (1.5 - severity):
            weak = self._unit() < 0.6
            if weak:
                self.stated[name] = 0.5
            return to_sentence(self._choose(WEAK if weak else STRONG).format(noun))
        if compare:
            change = (
                "more" if severity - old > 0.12 else "less" if old - severity > 0.12 else "same"
            )
            options = CHANGE["new" if old < 0 else change]
            return to_sentence(self._choose(options).format(noun))
        text = self._choose(PRESENT[name]).format(**words)
        return to_sentence(text.replace(f"is {grade} enlarged", f"is {grade}ly enlarged"))

    def text(self) -> str:
        """Return the report: devices, findings, negations, filler, and an impression."""
        filler = [self._choose(FILLER)] if self._unit() < 0.6 else []
        found = [*self.devices, *self.present, *self.absent, *filler]
        if self._unit() >= 0.7:
            found = [*self.absent, *filler, *self.present, *self.devices]
        normal = "Lines and tubes as above." if self.devices else None
        closing = self.impression or self.present or [normal or self._choose(NORMAL)]
        if self._unit() < self.site.impression_only:
            return "IMPRESSION: " + " ".join([*self.devices, *self.present] or closing)
        self.stated |= self.stated_absent
        findings = " ".join(found or ["The lungs are clear."])
        return f"FINDINGS: {findings} IMPRESSION: {' '.join(dict.fromkeys(closing))}"
