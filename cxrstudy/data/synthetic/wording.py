"""Reports: FINDINGS and IMPRESSION in the habits of an institution, with what it leaves unsaid."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from cxrstudy.data.synthetic.draws import GOLDEN, Array, Draws, code, mix
from cxrstudy.data.vocabulary import DEVICES, FINDINGS, LABELS, phrase

if TYPE_CHECKING:
    from cxrstudy.data.synthetic.devices import Devices
    from cxrstudy.data.synthetic.findings import Findings
    from cxrstudy.data.synthetic.institution import Institution

GRADE = (
    ("mild", "small", "minimal"),
    ("moderate", "moderate", "moderate"),
    ("severe", "large", "extensive"),
)
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
WEAK = (
    "Possible {}",
    "Cannot exclude {}",
    "Questionable {}",
    "There may be {}",
    "{} cannot be excluded",
)
STRONG = ("Probable {}", "Likely {}", "Findings compatible with {}")  # read as present
NOUN = {  # as it stands after a hedge or before a verb; {side}, {grade} as above
    "cardiomegaly": "{grade}cardiomegaly",
    "pleural_effusion": "{size}{side}pleural effusion",
    "pneumothorax": "{size}{side}pneumothorax",
    "consolidation": "{side}lung consolidation",
    "atelectasis": "{side}basilar atelectasis",
    "edema": "{grade}pulmonary edema",
    "nodule_mass": "{side}pulmonary nodule",
    "fracture": "{side}rib fracture",
}
CHANGE = {  # what is said of a finding against the prior exam
    "more": ("{} has increased.", "Interval increase of {}.", "Worsening {}."),
    "less": ("{} has decreased.", "Interval decrease of {}.", "Improving {}."),
    "same": ("Unchanged {}.", "Stable {}.", "{} is unchanged."),
    "new": ("New {}.", "Interval development of {}."),
    "gone": (
        "{} has resolved.",
        "Interval resolution of {}.",
        "Previously seen {} is no longer present.",
    ),
}
DENIED = {
    "cardiomegaly": (
        "Heart size is normal.",
        "The cardiac silhouette is normal in size.",
        "No cardiomegaly.",
    ),
    "pleural_effusion": ("No pleural effusion.", "There is no pleural effusion."),
    "pneumothorax": (
        "No pneumothorax.",
        "There is no pneumothorax.",
        "No evidence of pneumothorax.",
    ),
    "consolidation": ("No focal consolidation.", "No airspace consolidation."),
    "edema": ("No pulmonary edema.", "No evidence of edema."),
    "fracture": ("No acute fracture.", "No displaced rib fracture."),
}
TUBES = {  # well placed; {side}, {cm}
    "endotracheal_tube": (
        "Endotracheal tube tip {cm} cm above the carina.", "The patient is intubated, ET tube in place.",
        "Endotracheal tube in standard position.", "ETT terminates {cm} cm above the carina.",
    ),
    "central_venous_catheter": (
        "{side}central venous catheter with tip in the SVC.", "{side}central line terminates in the SVC.",
        "{side}internal jugular central venous catheter in place.", "{side}CVC tip at the cavoatrial junction.",
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
        "{side}chest wall pacemaker with leads in place.", "Cardiac pacemaker in place.", "{side}pacemaker is present.",
    ),
}  # fmt: skip
WRONG = {  # misplaced
    "endotracheal_tube": (
        "Endotracheal tube is malpositioned, tip {cm} cm above the carina.",
        "ET tube needs repositioning.",
    ),
    "central_venous_catheter": ("{side}central venous catheter tip is malpositioned.",),
    "picc": ("{side}PICC tip is malpositioned.", "{side}PICC line should be repositioned."),
    "swan_ganz_catheter": ("Swan-Ganz catheter tip is too far peripheral.",),
    "nasogastric_tube": (
        "NG tube tip is in the esophagus.",
        "Nasogastric tube is too high and should be advanced.",
    ),
    "chest_tube": (
        "{side}chest tube lies outside the pleural space.",
        "{side}chest tube is malpositioned.",
    ),
    "pacemaker": ("Pacemaker lead appears dislodged.",),
}
LOW = (
    "Endotracheal tube tip in the right main bronchus.",
    "Right mainstem intubation, endotracheal tube to be withdrawn.",
)
REMOVED = ("Interval removal of the {}.", "The {} has been removed.")
FILLER = (
    "The mediastinal contours are unremarkable.", "The osseous structures are intact.", "The lungs are well expanded.",
    "Degenerative changes of the spine.", "The trachea is midline.", "Soft tissues are unremarkable.",
    "The aorta is tortuous.", "Low lung volumes.",
)  # fmt: skip
NORMAL = (
    "No acute cardiopulmonary process.",
    "No acute cardiopulmonary abnormality.",
    "Normal chest radiograph.",
)


class Voice:
    """A report's own random numbers, one after the other, and the synonyms its institution uses."""

    def __init__(self, units: list[float], dialect: int) -> None:
        self.units, self.at, self.dialect = units, 0, dialect

    def unit(self) -> float:
        """The next number in [0, 1)."""
        self.at += 1
        return self.units[self.at - 1]

    def one(self, options: tuple[str, ...]) -> str:
        """One of some phrases, but for those that the institution never uses."""
        return (used := spoken(options, self.dialect))[int(self.unit() * len(used))]


@cache
def spoken(options: tuple[str, ...], dialect: int) -> tuple[str, ...]:
    """The phrases that a dialect uses: three in four, at least one."""
    return tuple(o for o in options if (int(code(o)) + dialect) % 4) or options[:1]


def sentence(text: str) -> str:
    """Single blanks, a capital and a full stop."""
    text = " ".join(text.split()).rstrip(".")
    return text[0].upper() + text[1:] + "."


def finding(
    voice: Voice, site: Institution, name: str, side: int, bad: float, before: float | None
) -> tuple[str, float]:
    """A finding that is reported, and 1, or 0.5 where it is doubted; `before`: severity at the prior exam, -1 if
    absent, None: not compared."""
    grades = GRADE[min(int(bad * 3.0), 2)]
    words = {
        "side": f"{SIDES[side]} " if voice.unit() < site.side_mention else "",
        "grade": f"{grades[0]} " if voice.unit() < 0.6 else "", "size": f"{grades[1]} " if voice.unit() < 0.6 else "",
    }  # fmt: skip
    noun, doubt = NOUN[name].format(**words), voice.unit()
    if doubt < site.hedge * (1.5 - bad):
        weak = voice.unit() < 0.6
        return sentence(voice.one(WEAK if weak else STRONG).format(noun)), 0.5 if weak else 1.0
    if before is not None:
        step = (
            "new"
            if before < 0
            else "more"
            if bad - before > 0.12
            else "less"
            if before - bad > 0.12
            else "same"
        )
        return sentence(voice.one(CHANGE[step]).format(noun)), 1.0
    text = voice.one(SAID[name]).format(**words)
    for grade in GRADE:
        text = text.replace(f"is {grade[0]} enlarged", f"is {grade[0]}ly enlarged")
    return sentence(text), 1.0


def write(
    draws: Draws,
    site: Institution,
    now: tuple[Findings, Devices],
    before: tuple[Findings, Devices],
    follow: Array,
) -> tuple[list[str], Array]:
    """The reports of some exams, one a row, and what each was told to say of every label, float32 (N, L): 1 present, 0
    absent, 0.5 doubted, NaN not mentioned. `follow` (N,) says where there is a prior exam."""
    steps = np.arange(160, dtype=np.uint64) * GOLDEN
    found = [
        a.tolist()
        for a in (
            now[0].present,
            now[0].severity,
            now[0].side,
            before[0].present,
            before[0].severity,
        )
    ]
    held = [
        a.tolist()
        for a in (
            now[1].present,
            now[1].side,
            now[1].reach,
            now[1].malpositioned,
            before[1].present,
        )
    ]
    rows = zip(
        draws.bits("report"),
        follow.tolist(),
        zip(*found, strict=True),
        zip(*held, strict=True),
        strict=True,
    )
    both = [
        _report(
            Voice(((mix(key + steps) >> np.uint64(11)) * 2.0**-53).tolist(), site.dialect),
            site,
            prior,
            ill,
            worn,
        )
        for key, prior, ill, worn in rows
    ]
    told = [[words.get(name, np.nan) for name in LABELS] for _, words in both]
    return [text for text, _ in both], np.array(told, dtype=np.float32).reshape(-1, len(LABELS))


def _report(
    voice: Voice, site: Institution, prior: bool, ill: tuple, worn: tuple
) -> tuple[str, dict[str, float]]:
    """One report (tubes, findings said and denied, filler, and an impression), and what it was told to say."""
    tubes, said, denied, main = [], [], [], []
    told: dict[str, float] = {}
    unsaid: dict[str, float] = {}  # told in FINDINGS alone
    for name, there, side, reach, wrong, was in zip(DEVICES, *worn, strict=True):
        mention, compare = voice.unit(), voice.unit()
        if (
            there and mention < (site.device_mention + 1.0) / 2.0
            if wrong
            else there and mention < site.device_mention
        ):
            low = name == "endotracheal_tube" and wrong and reach < 0
            options = LOW if low else (WRONG if wrong else TUBES)[name]
            tubes.append(
                sentence(
                    voice.one(options).format(side=f"{SIDES[side]} ", cm=max(round(reach / 10), 0))
                )
            )
            told[name] = 1.0
            if wrong:
                main.append(tubes[-1])
        elif (
            was and not there and prior and mention < site.device_mention and compare < site.compare
        ):
            tubes.append(voice.one(REMOVED).format(phrase(name)))
            told[name] = 0.0
    for name, there, bad, side, was, worse in zip(FINDINGS, *ill, strict=True):
        mention, compare = voice.unit(), prior and voice.unit() < site.compare
        if there and mention < site.mild_mention + (1.0 - site.mild_mention) * min(1.5 * bad, 1.0):
            text, told[name] = finding(
                voice, site, name, side, bad, (worse if was else -1.0) if compare else None
            )
            said.append(text)
            if bad > 0.3:
                main.append(said[-1])
        elif there:
            continue
        elif was and compare:
            said.append(
                sentence(
                    voice.one(CHANGE["gone"]).format(NOUN[name].format(side="", grade="", size=""))
                )
            )
            told[name] = 0.0
        elif voice.unit() < site.overcall:
            said.append(
                sentence(voice.one(WEAK).format(NOUN[name].format(side="", grade="", size="")))
            )
            told[name] = 0.5
        elif name in DENIED and mention < site.negation:
            denied.append(voice.one(DENIED[name]))
            unsaid[name] = 0.0
    filler = [voice.one(FILLER)] if voice.unit() < 0.6 else []
    order = (
        [*tubes, *said, *denied, *filler]
        if voice.unit() < 0.7
        else [*denied, *filler, *said, *tubes]
    )
    close = main or said or [voice.one(NORMAL) if not tubes else "Lines and tubes as above."]
    if voice.unit() < site.impression_only:
        return "IMPRESSION: " + " ".join([*tubes, *said] or close), told
    text = f"FINDINGS: {' '.join(order or ['The lungs are clear.'])} IMPRESSION: {' '.join(dict.fromkeys(close))}"
    return text, told | unsaid
