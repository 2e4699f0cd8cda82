"""Only English is read, telegraphic and de-identified English too; other languages are counted."""

import csv
import time
import warnings
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrstudy.data import synthetic
from cxrstudy.data.language import keep_english, language, not_english
from cxrstudy.data.reports import extract_labels, extract_mentions

SHARED = Path(__file__).parents[3] / "shared/data"
FOREIGN = """
Kein Pneumothorax | Kein Pneumothorax. | KEIN PNEUMOTHORAX | Keine Infiltrate. | Keine Stauung
Pneumothorax rechts | Pleuraerguss rechts | Herz normal groß, kein Erguss. | Herzgröße normal
Lungenödem
ohne Pneumothorax | Ausschluss Pneumothorax | Normal. Kein Erguss. | BEFUND: Kein Pneumothorax
Kein<br>Pneumothorax | Kein\\nPneumothorax | Pas de pneumothorax | Pas de pneumothorax.
Pas d'épanchement pleural. | Aucun pneumothorax | Absence de pneumothorax | sans pneumothorax
Épanchement pleural gauche | Pneumothorax droit | Oedème pulmonaire | Opacité basale | Cardiomégalie
Sin derrame pleural | Sin neumotórax. | SIN DERRAME PLEURAL | No neumotorax | No hay derrame
No se observa consolidacion | Cardiomegalia leve | Derrame pleural derecho | Atelectasias laminares
Consolidación basal izquierda | Edema pulmonar | sin hallazgos
cardiomegali . derram pleural bilateral
infiltr intersticial bilateral | Nessun pneumotorace | Non versamento pleurico | senza pneumotorace
Edema polmonare | Consolidazione basale destra | Sem derrame pleural | Ausência de derrame pleural
Consolidação no lobo inferior direito | Geen pneumothorax | Geen pleuravocht.
Consolidatie rechts onder
zonder pneumothorax | Ingen pneumothorax | utan pneumothorax | Bez odmy opłucnowej
Bez pneumotoraxu
Pnömotoraks yok | Fără pneumotorace | Nincs pneumothorax | Ei pneumothoraxia | Nema pneumotoraksa
Tidak ada pneumothorax | Không có tràn khí màng phổi | 未见气胸 | 気胸なし | 기흉 없음
Нет пневмоторакса
Χωρίς πνευμοθώρακα | لا يوجد استرواح الصدر | אין חזה אוויר | न्यूमोथोरैक्स नहीं
FINDINGS: Kein Pneumothorax. IMPRESSION: Kein Erguss.
INDICATION: toux. RESULTATS: pas de pneumothorax
"""
ENGLISH = """
Clear lungs. NAD. | NAD | XXXX XXXX XXXX | Cardiomegaly. | Edema | PICC | No PTX. | ETT in situ
CXR: NAD
Lungs clear | AP CXR. Nil acute. | Normal | Bibasilar atelectasis. Cardiomegaly. | Pneumothorax
Consolidation
Port-a-cath | Enlarged PAs. | Sjögren syndrome | s/p CABG | COPD | 1.2 cm | Effusion | Infiltrates
ET tube
AF | s/p AVR, LIJ CVL | ___ | NGT OK | Pulmonary edema | Interstitial edema
Lines and tubes: none | Stable.
Unremarkable | Old TB | Small PTX L | Port à cath in place
Trachea is midline. Normal cardiomediastinal silhouette. No pneumothorax, pleural fluid.
Nodule \u03b1
PA and lateral | fracture | Cannot exclude pulmonary nodule | De novo effusion
Pneumothorax: none | Edema (-)
"""


def texts(table: str) -> list[str]:
    return [text.strip() for line in table.strip().splitlines() for text in line.split(" | ")]


@pytest.mark.parametrize("text", texts(FOREIGN))
def test_other_languages_give_no_labels(text):
    assert language(text) != "English"
    assert extract_labels(text) == {} and extract_mentions(text) == []


@pytest.mark.parametrize("text", [*texts(ENGLISH), "", " \n"])
def test_short_english_is_english(text):
    assert language(text) == "English"


@given(
    st.lists(
        st.sampled_from([t for t in texts(FOREIGN) if "FINDINGS" not in t]), min_size=1, max_size=5
    )
)
def test_foreign_sentences_together_are_foreign(parts):
    assert extract_labels(". ".join(parts)) == {}


def test_of_a_mixed_report_the_english_is_read():
    assert extract_labels("Kein Pneumothorax. No pleural effusion is seen.") == {
        "pleural_effusion": "absent"
    }
    assert extract_labels("Small left effusion is stable. Sin neumotórax.") == {
        "pleural_effusion": "present"
    }


@pytest.mark.parametrize(
    ("text", "name"),
    [("Kein Erguss", "German"), ("Pas de foyer", "French"), ("Sin derrame", "Spanish"),
        ("Geen vocht", "Dutch"),
     ("未见气胸", "Chinese"), ("気胸なし", "Japanese"), ("Lungs clear", "English")],
)  # fmt: skip
def test_the_language_is_named(text, name):
    assert language(text) == name


def test_reports_that_are_not_english_are_counted_and_warned_of_once():
    reports = ["Kein Pneumothorax.", "Keine Stauung", "Lungs clear.", "", "Sin derrame"]
    with pytest.warns(
        UserWarning, match=r"3 of 4 reports are not in English \(German 2, Spanish 1\)"
    ) as caught:
        assert keep_english(reports) == ["", "", "Lungs clear.", "", ""]
    assert len(caught) == 1
    assert not_english(pd.Series([*reports, None, float("nan")])) == {"German": 2, "Spanish": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert keep_english(["Lungs clear.", ""]) == ["Lungs clear.", ""]
    assert not_english(pd.Series(["Lungs clear.", None])) == {}


@pytest.mark.parametrize("institution", ["study", "public-0", "public-5"])
def test_synthetic_reports_are_english(institution):
    assert not_english(synthetic.describe(range(400), institution=institution).report) == {}


def test_a_hundred_thousand_reports_take_seconds():
    findings = "FINDINGS: The heart is normal in size. No effusion or pneumothorax. "
    reports = [f"{findings}IMPRESSION: Small nodule."] * 5000
    start = time.process_time()
    assert set(map(language, reports)) == {"English"}
    assert time.process_time() - start < 1.5


ROCO = SHARED / "text_formats/roco_chest_captions.tsv"


@pytest.mark.skipif(
    not ROCO.is_file(), reason="needs the real captions of ../shared/data/text_formats"
)
def test_of_real_captions_the_french_alone_are_foreign():
    captions = pd.read_csv(ROCO, sep="\t", quoting=csv.QUOTE_NONE).caption.dropna()
    found = captions[[language(text) != "English" for text in captions]]
    assert len(found) == 8 and found.str.startswith("Radiographie d").all()


NOTES = SHARED / "covid_notes/metadata.csv"


@pytest.mark.skipif(
    not NOTES.is_file(), reason="needs the real notes of ../shared/data/covid_notes"
)
def test_real_clinical_notes_are_english():
    notes = pd.read_csv(NOTES)[["clinical_notes", "other_notes"]].stack().dropna()
    assert not_english(notes) == {}
