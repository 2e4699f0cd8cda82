"""Views from headers in many languages, from real headers, and by the classifier."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

from cxrstudy.ingest import views

REAL = ROOT.parent / "shared" / "data"
HEADERS = REAL / "openi_images" / "nlmcxr_dicom_metadata.csv.gz"
SMALL = REAL / "nih_64px"
TEXTS = {
    "PA": "CHEST PA UPRIGHT|Thorax p.a. stehend|Poumons face PA|Tórax posteroanterior|PA|Chest_PA"
    "|Torace postero-anteriore|X-thorax achter-voorwaarts|胸部正面 立位 P→A|胸部后前位|CHEST,PA"
    "|ОГК прямая задняя проекция|postero-anterior|Θώρακας PA όρθια|W033 Thorax pa",
    "AP": "AP CHEST SUPINE|Thorax a.p. liegend|Thorax au lit AP|Tórax ântero-posterior"
    "|X-thorax voor-achterwaarts|胸部前后位 床边|ОГК прямая передняя проекция лежа"
    "|AP_horizontal|CHEST (PORTABLE AP)",
    "LATERAL": "LL|RL|LAT|Thorax seitlich|Thorax de profil|Tórax perfil izquierdo|Torace LL"
    "|Klatka piersiowa boczne|Akciğer yan|ОГК боковая проекция|Θώρακας πλάγια|胸部側面"
    "|흉부 측면|LARGE LATERAL|left lateral|Thorax dwars",
    "OTHER": "LLD|RPO|left lateral decubitus|Apical lordotic AP|Tórax oblicua|COSTAL|Thorax schräg",
    "": "Xray Chest PA and Lateral|CHEST 2V FRONTAL/LATERAL|Thorax 2 Ebenen|chest|Pat. lies"
    "|胸部正侧位|Tórax PA y lateral|Thorax pa/lat|Tórax en decúbito supino|frontal|xyz",
}


@pytest.mark.parametrize("view", TEXTS)
def test_a_view_is_read_in_the_words_of_headers(view: str) -> None:
    for text in TEXTS[view].split("|"):
        assert views.view_of_text(text) == view, text


def frame(**tags: list[str]) -> pd.DataFrame:
    n = len(next(iter(tags.values())))
    return pd.DataFrame({"StudyInstanceUID": [f"1.{k}" for k in range(n)]} | tags)


def test_the_best_tag_counts_and_contradictions_are_counted() -> None:
    table = frame(
        ViewPosition=["PA", "", "", "PA", "XX"],
        ViewCodeMeaning=["", "left lateral", "", "", ""],
        SeriesDescription=["AP", "", "Thorax a.p.", "Thorax PA", ""],
    )
    view, where, clash = views.guess_views(table)
    assert view.tolist() == ["PA", "LATERAL", "AP", "PA", ""]
    assert where.tolist() == [
        *("ViewPosition", "ViewCodeMeaning", "SeriesDescription", "ViewPosition", "")
    ]
    assert clash.tolist() == ["ViewPosition PA, SeriesDescription AP", "", "", "", ""]


def test_texts_on_a_study_count_only_where_it_has_one_image() -> None:
    table = frame(StudyDescription=["XR CHEST PA"] * 3)
    table["StudyInstanceUID"] = ["1", "1", "2"]
    assert views.guess_views(table)[0].tolist() == ["", "", "PA"]


def test_the_direction_of_rows_and_words_of_the_bed_are_the_last_to_be_asked() -> None:
    table = frame(
        PatientOrientation=["A\\F", "L\\F", "L\\F", "P\\F"],
        SeriesDescription=["", "portable chest", "portable, lateral", "Thorax pa"],
    )
    view, where, clash = views.guess_views(table)
    assert view.tolist() == ["LATERAL", "AP", "LATERAL", "PA"]
    assert where.tolist() == ["PatientOrientation", "bedside", *["SeriesDescription"] * 2]
    assert clash.tolist() == ["", "", "", "SeriesDescription PA, PatientOrientation LATERAL"]


def test_a_column_of_a_table_fills_what_tags_leave_open() -> None:
    table = frame(ViewPosition=["", "AP"], Projektion=["seitlich", "pa"])
    view, where, clash = views.guess_views(table, "Projektion")
    assert view.tolist() == ["LATERAL", "AP"]
    assert where.tolist() == ["Projektion", "ViewPosition"]
    assert clash.tolist() == ["", "ViewPosition AP, Projektion PA"]


@pytest.mark.skipif(not HEADERS.is_file(), reason="needs ../shared/data/openi_images")
def test_real_headers_agree_with_the_direction_of_their_rows() -> None:
    table = pd.read_csv(HEADERS, dtype=str, keep_default_na=False)
    tags = pd.DataFrame({"StudyInstanceUID": table["Study Instance UID"]})
    tags["ViewPosition"] = table["View Position"]
    tags["ViewCodeMeaning"] = table["Code Meaning"]
    tags["PatientOrientation"] = table["Patient Orientation"].str.extract(r"'(\w)'")[0].fillna("")
    view, where, clash = views.guess_views(tags)
    given = table["View Position"] != ""
    assert (view[given] != "").all()
    lateral = table["View Position"].isin(["LL", "RL", "LATERAL", "LARGE LATERAL"])
    assert (view[given].eq("LATERAL") == lateral[given]).all()
    assert not clash.str.contains("PatientOrientation").any()
    assert (where == "PatientOrientation").sum() == 0  # where rows say it, ViewPosition does too


def clusters(n: int, classes: dict[str, int], far: float) -> tuple[np.ndarray, list[str], list]:
    view = [name for name in classes for _ in range(n)]
    noise = np.random.default_rng(0).normal(0, 1, (len(view), 4))
    centre = far * np.eye(4)[[classes[name] for name in view]]
    return (centre + noise).astype(np.float32), view, [f"p{k // 2}" for k in range(len(view))]


def test_the_classifier_decides_what_it_has_learned_and_abstains_where_it_is_unsure() -> None:
    known, view, patient = clusters(100, {"PA": 0, "AP": 1, "LATERAL": 2}, 5)
    asked = 5 * np.eye(4, dtype=np.float32)[:3]
    found, facts = views.classify_views(asked, known, view, patient)
    assert found.tolist() == ["PA", "AP", "LATERAL"]
    assert facts["accuracy"] > 0.95
    close, view, patient = clusters(100, {"PA": 0, "AP": 1}, 0.05)
    found, facts = views.classify_views(asked, close, view, patient)
    assert facts["accuracy"] < 0.7 and facts["decided"] < 0.2


def test_it_decides_nothing_where_a_view_that_occurs_cannot_be_learned() -> None:
    known, view, patient = clusters(60, {"PA": 0, "AP": 1}, 5)
    view[0] = "LATERAL"
    found, facts = views.classify_views(known[:5], known, view, patient)
    assert found.tolist() == [""] * 5
    assert "fewer than" in facts["unused"]


@pytest.mark.skipif(not SMALL.is_dir(), reason="needs ../shared/data/nih_64px")
def test_pa_and_ap_of_real_x_rays_are_told_apart() -> None:
    table = pd.read_csv(SMALL / "table.csv").iloc[::2]
    pictures = [
        np.asarray(Image.open(SMALL / Path(file)).convert("L").resize((64, 64)))
        for file in table["file"]
    ]
    rows = views.features(np.stack(pictures))
    patients = table["patient_id"].astype(str).tolist()
    _, facts = views.classify_views(rows[:0], rows, table["view_position"].tolist(), patients)
    assert facts["accuracy"] > 0.9  # .96 of all 1,000
    assert facts["accuracy_decided"] >= views.WANTED
