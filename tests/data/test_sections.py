"""Sections: any line end, headers as people write them, and places in the original text."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy.data.plaintext import plain
from cxrstudy.data.reports import extract_labels, extract_mentions, sections
from cxrstudy.data.sections import section_of

ENDS = [
    "\n", "\r\n", "\r", "\r\r\n", "\v", "\f", "\x1e", "\x85", "\u2028", "\u2029", "<br>", "<br/>",
    "<BR />", "<br>\n",
    '<br clear="all">', "<p>", "</p><p>", "</p>\n<p>", "<div>", "<li>", "&lt;br&gt;", "\\.br\\",
    "\\.sp\\", "\\X0D\\",
    "\\X0D0A\\", "~", "_x000D_", "_x000D_\n", "_x000d_\r\n", "\\n", "\\r\\n", "\\r", "\\\\n",
    "\\u2028", "\\par ",
    "&#10;",
    "&#13;&#10;", "&#xA;", "&nbsp;\n", "%0D%0A", "<CR>", "^M\n", "\n\n", "<br><br>", "\\n\\n",
    "\u2028\u2028",
]  # fmt: skip
ALONE = ["HISTORY", "Pneumonia, edema", "atelectasis last year", "COMPARISON",
    "Chest film with pleural effusion",
         "FINDINGS", "Right pneumothorax", "No fracture", "IMPRESSION",
         "PICC in place"]  # fmt: skip
COLONS = [f"{line}:" if line.isupper() else line for line in ALONE]
INLINE = ["HISTORY: Pneumonia, edema", "COMPARISON: film with effusion",
    "FINDINGS: Right pneumothorax", "No fracture",
          "IMPRESSION: PICC in place"]  # fmt: skip
SAID = {"pneumothorax": "present", "fracture": "absent", "picc": "present"}


@pytest.mark.parametrize("lines", [ALONE, COLONS, INLINE], ids=["alone", "colon", "inline"])
@pytest.mark.parametrize("end", ENDS, ids=repr)
def test_history_and_comparison_are_not_read_whatever_the_line_end(end, lines):
    text = end.join(lines)
    assert extract_labels(text) == SAID
    assert sorted(text[slice(*m.span)] for m in extract_mentions(text)) == [
        "PICC",
        "fracture",
        "pneumothorax",
    ]
    assert list(sections(text)) == ["indication", "comparison", "findings", "impression"]


@given(
    st.lists(st.sampled_from(ALONE + COLONS + INLINE + ["Pneumothorax: none"]), max_size=12),
    st.data(),
)
def test_any_mixture_of_line_ends_reads_as_newlines_do(lines, data):
    ends = [e for e in ENDS if "\n\n" not in plain(e)[0]]
    text = "".join(line + data.draw(st.sampled_from(ends)) for line in lines)
    assert extract_labels(text) == extract_labels("\n".join([*lines, ""]))


@given(
    st.text(
        alphabet=st.sampled_from("<>br/p&;#1nx\\.~_0d:*[] \r\n\u2028\u00adab") | st.characters()
    )
)
def test_every_plain_character_has_its_place(text):
    out, places = plain(text)
    assert out == text if places is None else len(places) == len(out)
    for k, (start, end) in enumerate(places or []):
        assert 0 <= start < end <= len(text) and (not k or start >= places[k - 1][0])
        assert out[k] == text[start] or end - start >= 1


def test_places_pass_over_markup_and_entities():
    text = "A&nbsp;pleural&nbsp;effusion &lt; 2 cm<br>**No** <b>pneumothorax</b> in "
    text += "\u200bpneu\u00admothorax"
    found = extract_mentions(text)
    assert [text[slice(*m.span)] for m in found][:2] == ["pleural&nbsp;effusion", "pneumothorax"]
    assert [m.status for m in found][:2] == ["present", "absent"]


NOT_READ = """
Indication(s): | Comparison Study(ies): | Reason For Exam -> | Clinical history (from referrer):
Smoking history: | Prior CT: | Comparison CT: | Referral diagnosis: | HISTORY & PHYSICAL:
Reason for Exam (Clinical): | Recommended action: | Study indication: | clinical details
reason for referral
Compared to | Hx | Clin. details: | Cl. history: | Prior CXR: | Priors available: | INDICATION:
INDICATON:
INDICATIN: | INDCIATION: | NDICATION: | CLINICAL DETAILS: | Clnical details: | CLINCAL HISTORY:
HSITORY:
History/Indication | History/Indication: | Indication / Clinical History:
CLINICAL HISTORY & INDICATION:
HISTORY AND INDICATION: | Reason for referral | Reason for referral: | Reason for Exam:
REASON FOR THIS EXAMINATION: | Reason for request: | Reason for visit: | Clinical background:
Request:
REQUEST DETAILS: | Clinical information: | HX: | Clin Hx: | Clinical Indication
Presenting complaint:
Chief complaint: | Clinical question: | Patient history: | PMH: | Past medical history: | H.P.I.:
Clinical notes: | Signs and symptoms: | Clinical summary: | Clinical findings: | CLINICAL
ADMITTING DIAGNOSIS:
Order comments: | Medical condition: | INDICATION FOR EXAM: | Brief history: | Clinical impression:
**INDICATION** | **Indication:** | **Indication** : | *Indication:* | ***INDICATION***
__INDICATION__
_Indication_: | <b>Indication</b> | <b>Indication:</b> | <strong>Clinical history</strong>:
<u>INDICATION:</u>
<h3>Indication</h3> | &lt;b&gt;Indication&lt;/b&gt;:
<span style="font-weight:bold">Indication</span>:
## Indication | # INDICATION # | === INDICATION === | [INDICATION] | {INDICATION} | <INDICATION>
(INDICATION)
> Indication: | - Indication: | 1. INDICATION: | a) Indication: | A. INDICATION: | INDICATION -
INDICATION \u2013 | INDICATION \u2014 | Indication \uff1a | Indication\uff1a | Indication =
indication:
INDICATION  : | \u2022 Indication: | Compared to: | Compared with: | COMPARISION: | COMPARSION:
COMPARISON
Comparison studies: | PRIOR STUDY: | Prior exams: | Previous imaging: | Old films: | Last exam:
Comparison -
Comparison is made with: | Relevant prior imaging: | Most recent prior: | **Comparison**
COMPARISON AND TECHNIQUE: | PRIORS: | TECHNIQUE: | TECHINQUE: | Technic: | PROCEDURE: | Views:
Number of views: | Technical factors: | Exam: | STUDY DATE: | DATE OF EXAM: | TYPE OF EXAM:
RECOMMENDATION:
RECOMENDATION: | Recommendation(s): | Plan: | Advice: | Suggestion: | Follow-up recommendations:
NOTIFICATION:
"""
IS_READ = """
Lung findings: | Incidental findings: | Radiologist's impression: | Reading:
FINDINGS (PRELIMINARY):
In conclusion: | IMPRESION | FINDINGS: | FINDNGS: | FIDNINGS: | FINDIGS: | Findings | 1. FINDINGS:
FINDINGS -
[FINDINGS] | **FINDINGS** | <b>Findings</b> | CHEST X-RAY FINDINGS: | XRAY FINDINGS:
Chest findings:
Radiological findings: | FINDINGS AND IMPRESSION: | Result: | RESULTS: | Findings/Impression:
Report:
Observations: | Description: | Interpretation: | CHEST: | CHEST X-RAY: | CXR: | Findings\uff1a
CHEST, TWO VIEWS: | PA view: | Body of report: | IMPRESSION: | IMPRESION: | IMPRSSION: | MIPRESSION:
Impressions | IMPRESSION - | IMPRESSIONS AND RECOMMENDATIONS: | IMPRESSION AND RECOMMENDATION:
Impression/Plan: | Impression & Recommendations: | Conclusion: | CONCLUTION:
Conclusions and recommendations:
Opinion: | Summary: | Summary of findings: | Comment: | Assessment and plan: | FINAL IMPRESSION:
IMPRESSION (FINAL): | Radiological diagnosis: | Diagnosis: | ADDENDUM: | Key findings:
"""


def rows(table: str) -> list[str]:
    return [head.strip() for line in table.strip().splitlines() for head in line.split(" | ")]


BODIES = ("\npneumothorax.", "\nPneumothorax", " right pneumothorax")


def with_bodies(table: str) -> list[tuple[str, str]]:
    """Return every header with every text below or after it; unmarked words need a line."""
    marks = ":*_<>[]=-\u2013\u2014{\uff1a"
    return [
        (head, body)
        for head in rows(table)
        for body in BODIES
        if body[0] != " " or set(head) & set(marks)
    ]


@pytest.mark.parametrize(("head", "body"), with_bodies(NOT_READ))
def test_headers_of_what_is_not_read(head, body):
    text = f"{head}{body}\nFINDINGS:\nSmall effusion.\nIMPRESSION:\nEdema."
    assert extract_labels(text) == {"pleural_effusion": "present", "edema": "present"}


@pytest.mark.parametrize(("head", "body"), with_bodies(IS_READ))
def test_headers_of_what_is_read(head, body):
    text = f"HISTORY:\nEdema\n{head}{body}\nRECOMMENDATIONS:\nCT of the nodule."
    assert extract_labels(text) == {"pneumothorax": "present"}


WORDS = st.sampled_from(
    ["indication", "comparison", "technique", "findings", "impression", "conclusion", "history"]
)


@settings(deadline=None)
@given(WORDS, st.sampled_from(["lose", "swap", "double", "change"]), st.integers(1, 20))
def test_one_slip_of_spelling_names_the_same_section(word, slip, at):
    at = at % (len(word) - 1) + (slip == "change")
    new = {
        "lose": word[:at] + word[at + 1 :], "double": word[:at] + word[at] + word[at:],
        "swap": word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
        "change": word[:at] + "q" + word[at + 1 :],
    }[slip]  # fmt: skip
    assert section_of(new) == section_of(word) is not None


@pytest.mark.parametrize(
    "phrase",
    rows(
        "Findings suggest pneumonia | Chest tube | Heart | Lungs | Pleural effusion | "
        "Pneumothorax | Impression of edema | History of pneumonia | Comparison shows edema | "
        "Prior effusion | Report of effusion | Compression | Induration | Chest pain | "
        "Right chest wall port | Study limited by rotation | No comparison | Old fracture | "
        "Recent pneumonia | Findings consistent with edema | Study quality | Right | Present | "
        "Note | Depression"
    ),
)
def test_words_that_are_no_header(phrase):
    assert section_of(phrase) is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("HISTORY: cough\nHeart: enlarged.\nLungs: clear.", {"indication": "cough",
         "findings": "Heart: enlarged.\nLungs: clear."}),
        ("IMPRESSION:\nHeart: enlarged.\nChest tube: right.",
            {"impression": "Heart: enlarged.\nChest tube: right."}),
        ("INDICATION: Lines: check.\nFINDINGS: A", {"indication": "Lines: check.",
            "findings": "A"}),
        ("HISTORY:\n\nedema\n\neffusion\n\nFINDINGS:\nA", {"indication": "edema\n\neffusion",
            "findings": "A"}),
        ("FINDINGS:\nTechnique: rotated.\nB.", {"technique": "rotated.", "findings": "B."}),
        ("FINDINGS: A. Compared to prior: larger.", {"findings": "A. Compared to prior: larger."}),
        ("History: a Comparison: b Findings: c", {"indication": "a", "comparison": "b",
            "findings": "c"}),
        ("COMPARISON: PRIOR FINDINGS: clear", {"comparison": "PRIOR", "findings": "clear"}),
        ("FINDINGS Lungs are clear\nIMPRESSION No edema", {"findings": "Lungs are clear",
            "impression": "No edema"}),
        ("The lungs were compared to the last\nexamination\nof May.", {"findings":
         "The lungs were compared to the last\nexamination\nof May."}),
        ("REPORT:\nClinical history: edema. The heart is large.", {"indication": "edema.",
         "findings": "The heart is large."}),
        ("FINDINGS AND IMPRESSION: A", {"findings": "A"}),
        ("IMPRESSIONS AND RECOMMENDATIONS: A", {"impression": "A"}),
    ],
)  # fmt: skip
def test_where_sections_begin_and_end(text, parts):
    assert sections(text) == parts


@pytest.mark.parametrize(
    "unit", ["_", "*", ".", "-", "=", "[", "<", "|", "\t", "Aa ", "FINDINGS", "<b>", "[ ] ", " \n"]
)
@pytest.mark.parametrize("before", ["", "Pneumothorax ", "**"])
def test_long_runs_take_no_time(unit, before):
    start = time.process_time()
    extract_labels(before + unit * (4000 // len(unit)))
    assert time.process_time() - start < 3
