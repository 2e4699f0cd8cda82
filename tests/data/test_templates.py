"""Templates, boxes and tables; and lines and tubes that were taken out, or only moved."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrstudy.data.reports import extract_labels, extract_mentions

ABSENT = [
    ": none", ": None.", " - no", " \u2013 none", " \u2014 No", "(-)", " (-)", ": (-)", " [ ]",
    "[ ]", ": [ ]",
    ": [-]", ": N",
    ": n", ": unremarkable", ": normal", " ... none", "....none", "\u2026 none", ": negative",
    ": neg", " neg",
    ": not seen",
    ": None seen", ": not identified", ": not visualised", ": not present", ": nil", "= 0", " = 0",
    ": 0", ": false",
    " | No",
    "|No", "\tNo", ": absent", ": -", ": \u2013", " -", " No", " no.", ": NO.", ": no evidence",
    ": n/a", ": (no)",
    " [no]",
    ": -ve", ' : "no"', " -> no", "? No", "? none", ": [ ] Yes [x] No", ": [x] No [ ] Yes",
    ": ( ) yes (x) no",
    ": \u2610 yes \u2611 no", "\nNo", "\nNone.", ":\nNo", ":\n  none", " (right): none",
    ", right: none", " right - no",
    ": No (previously present)", "<br>No", ": **none**", ": <b>No</b>",
]  # fmt: skip
PRESENT = [
    ": yes", "(+)", " (+)", ": +", " +", " ++", " [x]", " [X]", ": [x]", ": Y", ": present",
    ": positive", ": true",
    ": 1",
    "= 1", ": small left", " - small left", "\tYes", " | Yes", " - yes", ": [x] Yes [ ] No",
    ": [ ] No [x] Yes",
    " ... small", "? Yes", "\nYes", "\nsmall left", ":\nmoderate", " right: yes", ": increased",
    ": unchanged",
    " \u2611",
    ": \u2713", ": no change", ": not significantly changed", ": no longer large",
]  # fmt: skip
DOUBTED = [": possible", ": equivocal", " (?)", ": +/-", ": maybe", ": cannot exclude"]
NAMES = {"Pneumothorax": "pneumothorax", "Pleural effusion": "pleural_effusion", "Edema": "edema",
         "Fracture": "fracture", "Consolidation": "consolidation"}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("value", "status"),
    [
        (v, s)
        for s, values in (("absent", ABSENT), ("present", PRESENT), ("uncertain", DOUBTED))
        for v in values
    ],
)
def test_a_value_is_the_statement(name, value, status):
    assert extract_labels(name + value) == {NAMES[name]: status}


@given(
    st.lists(st.sampled_from(sorted(NAMES)), min_size=1, max_size=5, unique=True),
    st.sampled_from([(": ", "none", "small"), ("\t", "No", "Yes"), (" | ", "No", "Yes"), (" ",
        "(-)", "(+)"),
                     (": ", "N", "Y"), (" ", "[ ]", "[x]"), ("=", "0", "1"), ("\n", "None",
                         "Mild")]),
    st.data(),
)  # fmt: skip
def test_each_row_of_a_template_says_its_own(names, kind, data):
    link, no, yes = kind
    truth = {name: data.draw(st.booleans()) for name in names}
    text = "\n".join(f"{name}{link}{yes if there else no}" for name, there in truth.items())
    assert extract_labels(text) == {
        NAMES[n]: "present" if there else "absent" for n, there in truth.items()
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[ ] Pneumothorax", "ptx-"), ("[x] Pneumothorax", "ptx+"), ("[x] No pneumothorax", "ptx-"),
        ("[ ] No pneumothorax", ""), ("[X] Pneumothorax\n[ ] Effusion", "ptx+ fluid-"),
        ("( ) Effusion (x) Edema", "fluid- edema+"),
        ("[ ] Pneumothorax [x] Effusion [ ] Edema", "ptx- fluid+ edema-"),
        ("Pneumothorax [ ] Effusion [x] Edema [ ]", "ptx- fluid+ edema-"),
        ("- [ ] Pneumothorax\n- [x] Effusion", "ptx- fluid+"),
        ("\u2610 Pneumothorax\n\u2611 Effusion", "ptx- fluid+"),
        ("- Pneumothorax", "ptx+"), ("(-) pneumothorax", "ptx-"), ("(+) pneumothorax", "ptx+"),
        ("No | Pneumothorax", "ptx-"), ("N\tPneumothorax\nY\tEffusion", "ptx- fluid+"),
        ("0 | Pneumothorax", "ptx-"),
        ("Pneumothorax | No | Effusion | Yes | Edema | No", "ptx- fluid+ edema-"),
        ("| Pneumothorax | No |\n| Effusion | small |", "ptx- fluid+"),
        ("<tr><td>Pneumothorax</td><td>No</td></tr><tr><td>Edema</td><td>mild</td></tr>",
            "ptx- edema+"),
        ("Pneumothorax - no, effusion - yes, edema - no", "ptx- fluid+ edema-"),
        ("Pneumothorax: N, Effusion: Y", "ptx- fluid+"), ("pneumothorax=0, effusion=1, edema=0",
            "ptx- fluid+ edema-"),
        ("Pneumothorax (-), effusion (+)", "ptx- fluid+"), ("Pneumothorax -, effusion +",
            "ptx- fluid+"),
        ("Pneumothorax:\nEffusion:\nEdema: mild", "edema+"), ("Pneumothorax: ___\nEdema: mild",
            "edema+"),
        ("Lines and tubes: none", ""), ("Effusion / pneumothorax: No", "fluid- ptx-"),
        ("Effusion, pneumothorax, edema: none", "fluid- ptx- edema-"), ("PICC: unremarkable",
            "picc+"),
        ("ETT: none\nNG tube: in stomach\nPICC: no\nChest tube - absent", "ett- ng+ picc- drain-"),
        ("Effusion: [ ] none [x] small [ ] large", "fluid+"), ("Effusion: [x] none [ ] small",
            "fluid-"),
        ("Cardiomegaly - no edema.", "heart+ edema-"), ("Small effusion (no pneumothorax).",
            "fluid+ ptx-"),
        ("Effusion? No pneumothorax.", "fluid? ptx-"), ("Effusion (R) no pneumothorax",
            "fluid+ ptx-"),
        ("Cardiomegaly: No\nHeart: normal", "heart-"),
    ],
)  # fmt: skip
def test_boxes_tables_and_lists(text, said):
    short = {"ptx": "pneumothorax", "fluid": "pleural_effusion", "heart": "cardiomegaly",
        "ett": "endotracheal_tube",
             "ng": "nasogastric_tube", "drain": "chest_tube"}  # fmt: skip
    status = {"+": "present", "-": "absent", "?": "uncertain"}
    assert extract_labels(text) == {short.get(w[:-1], w[:-1]): status[w[-1]] for w in said.split()}


TAKEN_OUT = """
The {} has been pulled. | {} pulled. | The {} is gone | the previously seen {} is gone
The {} is no longer present | The {} was taken out | The {} has been withdrawn | {} is out.
Status post removal of {} | s/p removal of the {} | {} has been discontinued | {} was discontinued
{} d/c'd
{} has been removed in the interval | The {} has been pulled out | The {} has since been withdrawn.
{} no longer seen | Interval removal of {} | Interval withdrawal of the {} | {} is absent
There has been removal of the {} | After removal of the {} | {} is not in place
The {} is no longer in place
The {} has been pulled by the patient | {} has come out | {} had been removed
Patient pulled out {}
"""
STILL_THERE = """
{} has been pulled back 2 cm | {} has been withdrawn slightly | {} retracted by 3 cm
{} should be withdrawn
{} pulled up | {} has been withdrawn 2 cm | {} has been pulled back | {} needs to be withdrawn 3 cm
{} could be pulled back | {} has been withdrawn, tip now 3 cm above the carina
{} has been withdrawn and is now in good position | {} withdrawn from the right main bronchus
{} was partially withdrawn | {} to be withdrawn | {} may be removed
{} has been withdrawn in the interval, now 4 cm above the carina | {} should be removed
{} has not been removed | {} has been slightly withdrawn | {} has been withdrawn approximately 2 cm
Consider withdrawing the {} | {} is to be pulled back | The {} can be removed
{} has been withdrawn to 5 cm
{} has been withdrawn; tip 4 cm above the carina | {} has been advanced
The {} has been pulled back and terminates 4 cm above the carina.
{} has been withdrawn a few centimeters
Interval withdrawal of the {}, now 4 cm above the carina | Slight withdrawal of the {}
{} removal is recommended
"""
TUBES = {"NG tube": "nasogastric_tube", "ETT": "endotracheal_tube",
    "right IJ catheter": "central_venous_catheter",
         "left PICC": "picc", "chest tube": "chest_tube"}  # fmt: skip


@pytest.mark.parametrize("tube", TUBES)
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (words.strip(), status)
        for table, status in ((TAKEN_OUT, "absent"), (STILL_THERE, "present"))
        for line in table.strip().splitlines()
        for words in line.split(" | ")
    ],
)
def test_tubes_that_were_taken_out_or_moved(tube, words, status):
    assert extract_labels(words.format(tube)) == {TUBES[tube]: status}


@pytest.mark.parametrize("text", ["The patient was extubated.", "Interval extubation.",
    "Status post extubation",
                                  "Since the prior, she has been extubated",
                                  "Self-extubated"])  # fmt: skip
def test_extubated(text):
    assert extract_labels(text) == {"endotracheal_tube": "absent"}


def test_a_patient_who_is_to_be_extubated_is_not_yet():
    assert extract_labels("ETT in place, ready for extubation") == {"endotracheal_tube": "present"}
    assert extract_labels("Pacemaker has been explanted. Patient decannulated.") == {
        "pacemaker": "absent",
        "tracheostomy_tube": "absent",
    }


def test_spans_of_templates():
    text = "FINDINGS:<br>Pneumothorax: none<br>[x] Pleural effusion"
    assert [(text[slice(*m.span)], m.status) for m in extract_mentions(text)] == [
        ("Pneumothorax", "absent"),
        ("Pleural effusion", "present"),
    ]
