"""What is left of identifiers in reports is replaced and counted; numbers of a report stay."""

import tarfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy.data.reports import extract_labels
from cxrstudy.data.synthetic import describe
from cxrstudy.ingest.identifiers import clean_report

OPENI = Path(__file__).parents[3] / "shared/data/openi_reports/reports.tar.gz"

FOUND = {
    "date": """2019-03-14|2019/3/14|2019.03.14|2019-03-14T10:33:00|20190314|14/03/2019|3/14/2019
        3/14/19|03-14-2019|14.03.2019|14.03.19|14. 3. 2019|March 14, 2019|March 14 2019
        Mar. 14, 2019|14 March 2019|14th of March 2019|14-Mar-2019|14-MAR-19|14MAR2019|March 2019
        Sept 2019|March 14|14 March|14th March|May 5|5 May 2019|May 2019|7 Dec|03/2019|3-2019
        14. März 2019|14 de marzo de 2019|14 mars 2019|14 février 2019|2 de março de 2020""",
    "time": """10:33|10:33:05|10:33 AM|9:05 p.m.|22:15|14h30|5 PM|11 a.m.|1030 hours|0830 hrs
        14.30 Uhr""",
    "phone": """317-555-0142|(317) 555-0142|317.555.0142|317 555 0142|+1 317 555 0142|1-317-555-0142
        555-0142|+49 89 4140-2222|089/4140-2222|+44 20 7946 0958|0171 1234567""",
    "id": """123-45-6789|00123456|A1234567|CR19-004512|XR2019031499|RAD-2019-004512|#12345
        1.2.840.113619.2.55.3.604688119|12-34-56|3f2504e0-4f89-11d3-9a0c-0305e82c3301|E00123456X""",
    "email": """jane.doe@hospital.org|j_doe+rad@klinik.uni-muenchen.de
        https://pacs.local/view?acc=123|www.hospital.org/7""",
    "address": """12 Main Street|1040 N. Meridian St|7 Old Mill Lane|Indianapolis, IN 46202
        P.O. Box 42|Ismaninger Straße 22|Hauptstr. 5""",
    "age": "92-year-old|97 year old|101 yo|94 y/o|90 years old|93 jährig|95yoF|age 92|aged 99",
}
FOUND_WITH = {  # what stays before it
    "date": "compared to 3/14|dated 12/3|comparison: 11/7|since 4/2",
    "phone": "Tel: 4140 2222|pager 4455|fax no. 4140-2222|ext. 44 55",
    "id": """MRN: 4711|MRN 12345|medical record number 88123|Accession: 1234567|Acc. no. 4711/19
        accession # X77|patient ID: 4711|Study no. 12|order number 815|ID: A77|Fallnummer: 4712
        hospital number 991""",
    "time": "notified at 1033",
}
KEPT = """5 cm|2 x 3 mm|1.5 x 2.0 x 1.2 cm|T12|L4-5|C5-C7|T9, T11|3 mm nodule|6th and 7th ribs
    compared to 2 days ago|2 weeks ago|1. No acute disease. 2. Heart normal.|grade 3/6 murmur
    2 views|x1 day|12 Fr|8 French catheter|1-2 cm above the carina|rib 4 may represent a nodule
    may 5 mm or more|786.2|V58.69|,491.21|1500 mL|98%|89 year old|60-year-old|42y|34yof|POD#1
    rib 3 of 12|T4-T5 level|30 degrees|1:2|1-1/2 inches|0.9|10lb|between 3 and 4 cm|2/3 of the lung
    in 2012|over 20 years|100 years ago|95%|100 mL|120/80|march of time|the second mass
    MR chest|MS patient|DR chest|PA and lateral|Dr. XXXX|XXXX/11
    lead 2 of 3|3.0 x 2.5|1 to 2 mm|less than 1 cm|4 to 6 weeks|11-12 mm|SpO2 92|heart rate 110
    hgb 9.2|age indeterminate|of indeterminate age|5 lumbar-type|2nd intercostal space"""


def split(text: str) -> list[str]:
    return [part.strip() for line in text.split("\n") for part in line.split("|")]


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, all_ in FOUND.items() for text in split(all_)]
)
def test_each_spelling_is_replaced_whole(kind, text):
    for before, after in (("Seen ", " today."), ("(", ")."), ("COMPARISON: ", ""), ("", ", again")):
        cleaned, counts = clean_report(f"{before}{text}{after}")
        assert f"[{kind}]" in cleaned, cleaned
        digits = [sign for sign in cleaned if sign.isdigit()]
        assert not digits and counts[kind] == 1, cleaned


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, all_ in FOUND_WITH.items() for text in split(all_)]
)
def test_a_label_stays_and_what_it_names_goes(kind, text):
    cleaned, counts = clean_report(f"Findings. {text}. Normal heart.")
    assert counts == {kind: 1}
    assert not any(sign.isdigit() for sign in cleaned), cleaned
    assert cleaned.startswith(f"Findings. {text.split()[0].rstrip(':.')}")


@pytest.mark.parametrize("text", split(KEPT))
def test_numbers_of_a_report_stay(text):
    for written in (text, f"There is {text}.", f"FINDINGS: {text}, unchanged", text.upper()):
        assert clean_report(written) == (written, {})


NAMED = {
    "Discussed with Dr. Smith.": "Discussed with Dr. [name].",
    "Dr. Jane Smith was notified.": "Dr. [name] was notified.",
    "DR. SMITH WAS NOTIFIED": "DR. [name] WAS NOTIFIED",
    "dr. smith saw this": "dr. [name] saw this",
    "seen by Drs. Smith and O'Brien today": "seen by Drs. [name] today",
    "Mrs. Jones-Miller has pain": "Mrs. [name] has pain",
    "Jane Doe, M.D. read this": "[name], M.D. read this",
    "Signed by: John A. Smith": "Signed by: [name]",
    "Dictated by Jane Doe MD": "Dictated by [name] MD",
    "Herr Müller, Frau Weiß": "Herr [name], Frau [name]",
    "Prof. Dr. Meier": "Prof. Dr. [name]",
    "Radiologist: van der Berg": "Radiologist: [name]",
}


@pytest.mark.parametrize(("text", "cleaned"), NAMED.items())
def test_names_after_titles_and_before_degrees_go(text, cleaned):
    assert clean_report(text)[0] == cleaned


OWN = {
    "Mr. Kowalski, J., is known.": "Mr. [name], J., is known.",
    "KOWALSKI JAN 1950": "[name] 1950",
    "kowalski has cough": "[name] has cough",
    "Jan Kowalski and Kowalski": "[name] and [name]",
    "Kowalskis": "Kowalskis",
}


@pytest.mark.parametrize(("text", "cleaned"), OWN.items())
def test_names_of_the_tags_go_in_any_case(text, cleaned):
    assert clean_report(text, ["Kowalski^Jan^^Mr", "Huber^Anna"])[0] == cleaned


def test_a_name_that_is_a_word_of_reports_goes_only_beside_another_part():
    names = ["Long^Heart", "Li^Wei"]
    assert clean_report("The long line and heart.", names) == ("The long line and heart.", {})
    assert clean_report("Long, Heart: no effusion.", names)[0] == "[name]: no effusion."
    assert clean_report("Mrs. Li; li; WEI LI", names)[0] == "Mrs. [name]; li; [name]"
    assert clean_report("Muller", ["Müller^A"])[0] == "[name]"
    two = ["Quill^Ann^^Dr\\Wolkenstein^Bo^^^MD"]
    assert clean_report("Quill and Wolkenstein agree", two)[0] == "[name] and [name] agree"


# ---- laws ---------------------------------------------------------------------------------------
planted = [
    (kind, text) for kind, all_ in FOUND.items() if kind != "age" for text in split(all_) if text
]
REPORTS = [report for report in describe(range(60)).report if report]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(REPORTS), st.lists(st.sampled_from(planted), max_size=3), st.integers(0, 10**6)
)
def test_planted_ones_go_and_the_rest_stays(report, plants, seed):
    words = report.split(" ")
    places = [(seed * (k + 7)) % (len(words) + 1) for k in range(len(plants))]
    for (_, text), place in zip(plants, sorted(places, reverse=True), strict=True):
        words.insert(place, f"({text})")
    cleaned, counts = clean_report(" ".join(words))
    assert sum(counts.values()) >= len(set(places))
    assert not any(text in cleaned for _, text in plants)
    assert clean_report(cleaned) == (cleaned, {})  # nothing is left to do
    if not plants:
        assert cleaned == report


def test_synthetic_reports_have_none():
    found = Counter()
    for report in describe(range(300)).report:
        cleaned, counts = clean_report(report)
        found.update(counts)
        assert cleaned == report
    assert not found


@pytest.mark.skipif(not OPENI.is_file(), reason="../shared/data/openi_reports is not here")
def test_in_real_reports_without_identifiers_hardly_anything_is_found_and_labels_stay():
    found, reports = Counter(), 0
    with tarfile.open(OPENI) as packed:
        for member in packed:
            if not member.name.endswith(".xml"):
                continue
            parts = ElementTree.parse(packed.extractfile(member)).iter("AbstractText")
            text = "\n".join(f"{part.get('Label')}: {part.text}" for part in parts if part.text)
            cleaned, counts = clean_report(text)
            found.update(counts)
            reports += 1
            if counts:
                assert extract_labels(cleaned) == extract_labels(text)
    assert reports > 1900
    assert found.total() <= 12, found


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Isikdagli", "I\u015f\u0131kda\u011fl\u0131^\u00c7a\u011fr\u0131han"),
        ("Muehlenschroeder", "M\u00fchlenschr\u00f6der^J\u00fcrgen"),
        ("MUHLENSCHRODER", "M\u00fchlenschr\u00f6der^J\u00fcrgen"),
        ("Zolkwianski", "\u017b\u00f3\u0142kwia\u0144ski"),
    ],
)
def test_a_name_goes_that_is_typed_without_its_accents(written, name):
    assert clean_report(f"seen with {written} today", [name])[0] == "seen with [name] today"
