"""Cards of the small real samples: what is read, what is left out, and what must not be."""

import collections
import csv
import re
import shutil
import tarfile
from pathlib import Path

import pandas as pd
import pytest

from cxrstudy.data.cards import load_manifest
from cxrstudy.data.images import read_image
from cxrstudy.data.manifest import label_names

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def real(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"the real x-rays are not part of the project: no {REAL / name}")
    return REAL / name


def rows(name: str) -> dict[str, dict[str, str]]:
    with (real(name) / "table.csv").open(newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def kermany() -> pd.DataFrame:
    return load_manifest("kermany", root=real("kermany"))


def test_pneumonia_of_children_is_bacterial_or_viral_and_normal_films_are_no_negatives(kermany):
    listed = rows("kermany")
    assert label_names(kermany) == ["bacterial"]
    expected = {"bacteria": 1.0, "virus": 0.0, "normal": None}
    for row in kermany.itertuples():
        own = listed[row.image_id]
        assert row.patient_id == own["patient_id"]
        assert Path(row.path) == REAL / "kermany" / row.image_id
    found = (
        kermany["label:bacterial"].astype(object).where(kermany["label:bacterial"].notna(), None)
    )
    assert list(found) == [expected[listed[i]["label"]] for i in kermany["image_id"]]


def test_copies_of_an_image_of_a_child_are_left_out_and_counted(kermany):
    listed = rows("kermany")
    copies = [file for file, row in listed.items() if row["same_image_as"]]
    assert len(copies) == 26
    assert kermany.attrs["left_out"] == {"not kept by query": len(copies)}
    assert len(kermany) == 5232 - len(copies)
    assert not set(copies) & set(kermany["image_id"])
    kinds = kermany["image_id"].map({file: row["label"] for file, row in listed.items()})
    assert dict(kermany.groupby(kinds)["patient_id"].nunique()) == {
        "bacteria": 1360,
        "virus": 1090,
        "normal": 1219,
    }


def test_a_number_means_two_children_in_two_types(kermany):
    numbers = collections.defaultdict(set)
    for patient in kermany["patient_id"]:
        kind, number = patient.split("_")
        numbers[number].add(kind)
    assert any({"bacteria", "virus"} <= kinds for kinds in numbers.values())


def test_the_pool_without_patients_has_no_labels_and_leaves_out_films_that_are_evaluated():
    pool = load_manifest("rsna_normal", root=real("rsna_normal"))
    listed = rows("rsna_normal")
    shared = {row["same_film_in_nih_64px"] for row in listed.values()} - {""}
    assert len(shared) == 54
    assert pool.attrs["left_out"] == {"not kept by query": 54}
    assert len(pool) == pool["patient_id"].nunique() == 8757 - 54
    assert label_names(pool) == []
    tested = load_manifest("nih_64px", root=real("nih_64px"))
    assert shared <= {Path(path).name for path in tested["path"]}


def test_the_small_films_have_the_labels_of_their_table():
    manifest, listed = load_manifest("nih_64px", root=real("nih_64px")), rows("nih_64px")
    assert len(manifest) == 1000
    assert manifest["patient_id"].nunique() == 264
    assert manifest["study_id"].nunique() == 1000
    assert manifest.attrs["left_out"] == manifest.attrs["not_understood"] == {}
    counts = {"pleural_effusion": 170, "infiltration": 162, "atelectasis": 95, "cardiomegaly": 83}
    for name, count in counts.items():
        assert int(manifest[f"label:{name}"].sum()) == count
    for row in manifest.itertuples():
        own = listed[row.image_id]
        facts = (own["patient_id"], own["view_position"], own["patient_gender"])
        assert (row.patient_id, row.view, row.sex) == facts
        assert row.age == float(own["patient_age"])


@pytest.fixture(scope="module")
def openi(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """Real reports and attributes of Open-i below one root; all but three images are empty."""
    root = tmp_path_factory.mktemp("openi")
    with tarfile.open(real("openi_reports") / "reports.tar.gz") as packed:
        packed.extractall(root, filter="data")
    for file in ("nlmcxr_dicom_metadata.csv.gz", *(f"{image}.png" for image in OPENED)):
        shutil.copy(real("openi_images") / file, root)
    text = {path.stem: path.read_text("utf-8") for path in root.glob("ecgen-radiology/*.xml")}
    for image in re.findall(r'<parentImage id="([^"]+)"', "".join(text.values())):
        if image not in OPENED:
            (root / f"{image}.png").touch()
    return root, load_manifest("openi", root=root)


OPENED = ("CXR54_IM-2145-1001", "CXR54_IM-2145-1002", "CXR303_IM-1404-1001")


def test_openi_has_the_reports_codes_and_views_of_its_files(openi):
    root, manifest = openi
    indexed = 0
    by_study = dict(list(manifest.groupby("study_id")))
    for path in sorted(root.glob("ecgen-radiology/*.xml")):
        text = path.read_text("utf-8")
        codes = re.findall("<major>(.*?)</major>", text)
        images = re.findall(r'<parentImage id="([^"]+)"', text)
        if not images or any(code.startswith("No Indexing") for code in codes):
            continue
        indexed += len(images)
        own = by_study[f"CXR{path.stem}"]
        assert sorted(own["image_id"]) == sorted(images)
        heads = {code.split("/")[0].strip() for code in codes}
        large = any(re.match("Cardiac Shadow/(.*/)?enlarged", code) for code in codes)
        told = {"pleural_effusion": "Pleural Effusion" in heads}
        told |= {"cardiomegaly": "Cardiomegaly" in heads or large}
        told |= {"nodule_mass": bool({"Nodule", "Mass"} & heads)}
        for name, there in told.items():
            assert set(own[f"label:{name}"]) == {float(there)}, (path.stem, name)
        found = re.search(r'Label="IMPRESSION">([^<]+)<', text)
        if found and "&" not in found[1]:
            assert found[1].strip() in own["report"].iloc[0]
    assert len(manifest) == indexed
    assert manifest["label:pleural_effusion"].sum() > 100
    table = pd.read_csv(root / "nlmcxr_dicom_metadata.csv.gz", dtype=str).set_index("imageid")
    view = {"PA": "PA", "AP": "AP"} | dict.fromkeys(("LL", "RL", "LATERAL"), "LATERAL")
    for row in manifest.itertuples():
        written = table["View Position"].get(row.image_id)
        assert (None if pd.isna(row.view) else row.view) == view.get(written), row.image_id


def test_images_of_openi_are_read(openi):
    _, manifest = openi
    for path in manifest.set_index("image_id").loc[list(OPENED), "path"]:
        assert read_image(path, 32).std() > 0


@pytest.mark.parametrize("name", ["kermany", "rsna_normal", "nih_64px"])
def test_an_image_of_each_is_read(name):
    manifest = load_manifest(name, root=real(name), n_images=3)
    for path in manifest["path"]:
        assert read_image(path, 32).std() > 0
