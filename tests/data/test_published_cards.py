"""Cards of published sets read their documented layout, and refuse what is damaged, by its line."""

import itertools
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import layouts
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from cxrstudy import bookpages, cli, grid, preflight
from cxrstudy.data.cardfile import read_card
from cxrstudy.data.cards import SEVERAL, CardError, load_manifest
from cxrstudy.data.images import read_image
from cxrstudy.data.manifest import ManifestError, assign_splits, label_names
from cxrstudy.data.shapes import draw

ROOT = Path(__file__).resolve().parents[2]
FRACTIONS = {"pretrain": 0.5, "train": 0.3, "validation": 0.1, "test": 0.1}
CHEXPERT = {"cardiomegaly": "Cardiomegaly", "nodule_mass": "Lung Lesion", "edema": "Edema"}


def padchest(root: Path, n: int = 7) -> Path:
    """PadChest, whose first image has all labels that the card names."""
    named = read_card("padchest").labels.theirs.values()
    return layouts.padchest(root, list(dict.fromkeys(n for names in named for n in names)), n)


BUILDERS: dict[str, Callable[..., Path]] = {
    name: padchest if name == "padchest" else getattr(layouts, name)
    for name in (
        "mimic_cxr_jpg", "mimic_cxr", "chexpert", "chexpert_plus", "padchest", "vindr_cxr", "brax",
        "ranzcr_clip", "siim_acr", "candid_ptx", "openi", "rsna_pneumonia", "chestx_det",
        "rexgradient",
    )
}  # fmt: skip


def made(name: str, folder: Path, **options: int) -> pd.DataFrame:
    """Return the manifest of a set's fixture."""
    return load_manifest(name, root=BUILDERS[name](folder, **options))


def plain(values: pd.Series) -> list:
    """Return a column with None for missing."""
    return [None if pd.isna(value) else value for value in values]


def told(states: list[str], names: str = layouts.CHEXPERT) -> dict[str, float | None]:
    """Return what a row in CheXpert's scheme says of the labels in ``CHEXPERT``."""
    value = {"1.0": 1.0, "0.0": 0.0, "-1.0": None, "": 0.0}
    by_name = dict(zip(names.split(","), states, strict=True))
    return {ours: value[by_name[theirs]] for ours, theirs in CHEXPERT.items()}


def labels(manifest: pd.DataFrame, row: int, names=CHEXPERT) -> dict[str, float | None]:
    return {name: plain(manifest[f"label:{name}"])[row] for name in names}


# ---- all -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", BUILDERS)
def test_every_set_is_read_with_its_images(name, tmp_path):
    manifest = made(name, tmp_path)
    assert len(manifest) >= 3
    assert manifest["image_id"].is_unique
    assert manifest["patient_id"].str.len().min() > 0
    for path in manifest["path"]:
        assert read_image(path, 16).std() > 0
    split = assign_splits(manifest, fractions=FRACTIONS)["split"]
    assert (pd.crosstab(manifest["patient_id"], split) > 0).sum(axis=1).max() == 1


def test_every_card_that_says_how_it_was_verified_has_a_fixture_or_real_files():
    held = {"kermany", "rsna_normal", "nih_64px", "nih_chestxray14", "covid_notes", "openi"}
    stems = [path.stem for path in (ROOT / "data_cards").glob("*.md")]
    verified = {stem: read_card(stem).verified for stem in stems}
    assert {stem for stem, how in verified.items() if how == "real"} == held
    assert {stem for stem, how in verified.items() if how == "layout"} == set(BUILDERS) - held


SERVED = {  # findings, tubes present, placed, drawn, reports
    "mimic_cxr_jpg": "f", "mimic_cxr": "fr", "chexpert": "f", "chexpert_plus": "fr",
    "padchest": "fp", "vindr_cxr": "f", "brax": "f", "ranzcr_clip": "pld", "siim_acr": "f",
    "candid_ptx": "fpdr", "openi": "fr", "rsna_pneumonia": "f", "chestx_det": "f",
    "rexgradient": "fpr", "rsna_normal": "", "kermany": "f",
}  # fmt: skip


def test_the_page_of_cards_says_what_each_serves(tmp_path):
    shutil.copytree(ROOT / "data_cards", tmp_path, dirs_exist_ok=True)
    (tmp_path / "torn.md").write_text("---\nname: torn\n---\n")
    page = bookpages.data_cards(tmp_path)
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| **")]
    names = [row[0].strip("*") for row in rows]
    assert names == sorted(p.stem for p in (ROOT / "data_cards").glob("*.md"))
    head = next(line for line in page.splitlines() if line.startswith("| card"))
    assert [name.strip() for name in head.split("|")[4:9]] == list(bookpages.SERVES)
    lines = {line.split("**")[1]: line for line in reversed(page.splitlines()) if "| **" in line}
    for name, served in SERVED.items():
        told = [cell.strip() == "yes" for cell in lines[name].split("|")[4:9]]
        assert told == [letter in served for letter in "fpldr"], name
    assert "| 30,083 | unknown |" in lines["ranzcr_clip"]
    assert "documented" in lines["ranzcr_clip"]
    assert "- **torn** cannot be read: " in page
    assert [line[4:] for line in page.splitlines() if line.startswith("### ")] == names


# ---- Boston --------------------------------------------------------------------------------------
def test_mimic_has_views_labels_and_the_official_split(tmp_path):
    manifest = made("mimic_cxr_jpg", tmp_path, n=12)
    ids = [layouts.mimic_ids(k) for k in range(12)]
    columns = ["patient_id", "study_id", "image_id"]
    assert list(manifest[columns].itertuples(index=False, name=None)) == ids
    assert plain(manifest["view"]) == ["PA", "LATERAL", "AP", None] * 3
    for k in range(10):
        assert labels(manifest, k) == told(layouts.states(k // 2)), k
    assert all(value is None for value in labels(manifest, 11).values())  # no row of labels
    assert "support_devices" in label_names(manifest)
    split = assign_splits(manifest, fractions=FRACTIONS)["split"]
    assert set(split[:8]) <= {"pretrain", "train"}
    assert list(split[8:]) == ["validation"] * 2 + ["test"] * 2


def test_mimic_reports_are_findings_and_impression_of_the_study(tmp_path):
    manifest = made("mimic_cxr", tmp_path)
    first, last = manifest["report"].iloc[0], plain(manifest["report"])[-1]
    assert "Heart size is normal.\n Small left effusion." in first
    assert "Study 0." in first
    assert "cough" not in first
    assert "EXAMINATION" not in first
    assert "Lines unchanged." in last  # a report without headings
    assert list(manifest["report"][:2]) == [first] * 2
    assert "Study 1." in manifest["report"].iloc[2]


# ---- Stanford ------------------------------------------------------------------------------------
def test_chexpert_has_its_ids_from_paths_and_its_test_set_from_valid(tmp_path):
    manifest = made("chexpert", tmp_path, n=10)
    kept = [0, 2, 3, 4, 6, 7, 8]  # 1, 5 and 9 are lateral
    assert list(manifest["patient_id"]) == [f"patient{k // 2 + 1:05d}" for k in kept]
    assert manifest["study_id"].iloc[2] == "patient00002-study2"
    assert plain(manifest["view"]) == [("AP", "PA", "LATERAL")[k % 3] for k in kept]
    assert plain(manifest["sex"]) == [("F", "M", None)[k % 3] for k in kept]
    assert plain(manifest["age"]) == [(68, 0, 90)[k % 3] for k in kept]
    for row, k in enumerate(kept):
        assert labels(manifest, row) == told(
            layouts.states(k, layouts.CHEXPERT_V1), layouts.CHEXPERT_V1
        )
    assert manifest.attrs["left_out"] == {"not kept by query": 3}
    split = assign_splits(manifest, fractions=FRACTIONS)["split"]
    assert list(split == "test") == [False] * 6 + [True]


def test_chexpert_plus_has_one_report_and_one_set_of_labels_a_study(tmp_path):
    manifest = made("chexpert_plus", tmp_path)
    assert list(manifest["study_id"][:2]) == ["patient00001-study1"] * 2
    reports = plain(manifest["report"])
    assert reports[0] == reports[1]
    assert "Seen on 0-0-2001. No effusion." in reports[1]
    assert "Impression of study2." in reports[2]
    assert "FINDINGS" not in reports[2]  # it has none
    names = layouts.CHEXPERT_V1
    assert labels(manifest, 0) == labels(manifest, 1)
    for k in (0, 2, 3, 4, 5, 6, 7):
        own = told(layouts.states(k, names), names)
        both = told(layouts.states(1, names), names)
        assert labels(manifest, k) == (own if k else labels(manifest, 0)), (k, own, both)
    assert [Path(path).suffix for path in manifest["path"]] == [".png"] * 7 + [".dcm"]
    split = assign_splits(manifest, fractions=FRACTIONS)["split"]
    assert list(split == "test") == [False] * 6 + [True] * 2


# ---- Spain, Vietnam, Brazil ----------------------------------------------------------------------
def test_padchest_reads_lists_with_stray_blanks_and_leaves_out_unfit_films(tmp_path):
    manifest = made("padchest", tmp_path)
    assert [i[-7:-4] for i in manifest["image_id"]] == ["000", "001", "002", "006"]
    assert manifest.attrs["left_out"] == {"not kept by query": 3}
    assert "report" not in manifest
    assert plain(manifest["view"]) == ["PA", "LATERAL", "AP", "LATERAL"]
    assert list(manifest["sex"]) == ["M", "F", "M", "M"]
    assert all(manifest[f"label:{name}"][0] == 1 for name in label_names(manifest))
    assert not any(manifest[f"label:{name}"][1] for name in label_names(manifest))
    found = {name for name in label_names(manifest) if manifest[f"label:{name}"][2]}
    assert found == {"endotracheal_tube", "nasogastric_tube", "pneumothorax"}
    assert {n for n in label_names(manifest) if manifest[f"label:{n}"][3]} == {"pleural_effusion"}


def test_vindr_takes_the_majority_of_three_readers(tmp_path):
    manifest = made("vindr_cxr", tmp_path).set_index("image_id")
    manifest = manifest.loc[[layouts.vindr_id(k) for k in range(6)]].reset_index()
    assert list(manifest["label:cardiomegaly"]) == [0, 0, 1, 1, 1, 1]
    assert list(manifest["label:fracture"]) == [1, 0, 0, 0, 0, 0]
    assert list(manifest["label:pleural_effusion"]) == [0, 1, 0, 0, 0, 0]
    split = assign_splits(manifest, fractions=FRACTIONS)["split"]
    assert list(split == "test") == [False] * 4 + [True] * 2
    assert [Path(path).parent.name for path in manifest["path"]] == ["train"] * 4 + ["test"] * 2


def test_brax_maps_its_views_and_counts_what_becomes_missing(tmp_path):
    manifest = made("brax", tmp_path)
    assert plain(manifest["view"]) == ["AP", "PA", "LATERAL", "LATERAL", None, None, None, "PA"]
    assert plain(manifest["age"]) == [(60, None, 20)[k % 3] for k in range(8)]
    assert plain(manifest["sex"]) == [("M", "F", None)[k % 3] for k in range(8)]
    assert manifest.attrs["not_understood"]["age"] == {"85 or more": 3}
    for k in range(8):
        assert labels(manifest, k) == told(layouts.states(k)), k


# ---- lines and tubes -----------------------------------------------------------------------------
TUBES = ("endotracheal_tube", "nasogastric_tube", "central_venous_catheter", "swan_ganz_catheter")


def test_clip_knows_which_tubes_are_there_and_which_lie_wrong(tmp_path):
    manifest = made("ranzcr_clip", tmp_path, n=4)
    assert manifest["patient_id"].nunique() == 2
    present = [[1, 0, 1, 0], [1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert [[manifest[f"label:{tube}"][k] for tube in TUBES] for k in range(4)] == present
    wrong = [[0, None, 1], [0, 0, None], [1, None, None], [None, None, None]]
    found = [[plain(manifest[f"malposition:{tube}"])[k] for tube in TUBES[:3]] for k in range(4)]
    assert found == wrong


def united(cell: str, image: str) -> np.ndarray:
    """Return the union of all masks in a cell of the manifest."""
    return np.any([draw(line, image) for line in cell.split("\n")], axis=0)


def test_courses_of_clip_become_lines_of_fifteen_pixels(tmp_path):
    manifest = made("ranzcr_clip", tmp_path, n=4)
    image = manifest["path"][0]
    rows, columns = np.indices((100, 80))
    for tube, kind in (("central_venous_catheter", "CVC"), ("endotracheal_tube", "ETT")):
        mask = united(manifest[f"mask:{tube}"][0], image)
        assert mask.shape == rows.shape
        on, near = np.zeros(rows.shape, bool), np.zeros(rows.shape, bool)
        for _, points in (course for course in layouts.COURSES if course[0].startswith(kind)):
            for (x, y), (x2, y2) in itertools.pairwise(points):
                length = math.hypot(x2 - x, y2 - y)
                along = ((columns - x) * (x2 - x) + (rows - y) * (y2 - y)) / length
                across = np.abs((columns - x) * (y2 - y) - (rows - y) * (x2 - x)) / length
                on |= (across <= 6.5) & (along >= 0) & (along <= length)
                near |= (across <= 8.5) & (along >= -8.5) & (along <= length + 8.5)
        assert mask[on].all(), tube
        assert not mask[~near].any(), tube
    assert not any(manifest[f"mask:{tube}"][2] for tube in TUBES)  # not drawn, so not known
    assert manifest["mask:swan_ganz_catheter"][0] == ""


def test_runs_of_candid_fill_the_drawn_pixels_and_no_other(tmp_path):
    manifest = made("candid_ptx", tmp_path)
    for row, boxes in layouts.TUBES.items():
        expected = np.any([layouts.drawn(box) for box in boxes], axis=0)
        found = united(manifest["mask:chest_tube"][row], manifest["path"][row])
        np.testing.assert_array_equal(found, expected)
    assert list(manifest["mask:chest_tube"].eq("")) == [True, False, True, False]


def test_siim_knows_pneumothorax_by_its_masks_with_a_row_each(tmp_path):
    manifest = made("siim_acr", tmp_path)
    assert list(manifest["label:pneumothorax"]) == [0, 1, 0, 1]
    assert len(manifest) == manifest["study_id"].nunique() == 4


def test_candid_has_reports_and_labels_of_its_tables(tmp_path):
    manifest = made("candid_ptx", tmp_path)
    assert len(manifest) == 4
    assert manifest.attrs["left_out"] == {"not kept by query": 1, SEVERAL: 2}
    assert list(manifest["patient_id"]) == ["P1", "P1", "P2", "P2"]
    assert list(manifest["label:pneumothorax"]) == [0, 1, 0, 1]
    assert list(manifest["label:chest_tube"]) == [0, 1, 0, 1]
    assert list(manifest["label:fracture"]) == [0, 0, 1, 0]
    assert "Report 2, no change." in manifest["report"].iloc[2]


# ---- Indiana, NIH, three health systems ----------------------------------------------------------
def test_openi_reads_reports_and_codes_of_xml(tmp_path):
    manifest = made("openi", tmp_path)
    assert len(manifest) == 6
    assert sum(manifest.attrs["left_out"].values()) == 2  # not indexed
    assert plain(manifest["view"]) == ["PA", None, "LATERAL", "AP", "PA", None]
    assert list(manifest["label:cardiomegaly"]) == [1, 1, 0, 0, 1, 1]
    assert list(manifest["label:pleural_effusion"]) == [1, 1, 0, 0, 0, 0]
    assert list(manifest["label:edema"]) == [0, 0, 0, 0, 1, 1]  # not what a program found
    assert "Findings of 1000 < before." in manifest["report"].iloc[1]
    assert "Cough" not in manifest["report"].iloc[1]


def test_rsna_has_a_row_a_box(tmp_path):
    manifest = made("rsna_pneumonia", tmp_path, n=6)
    assert list(manifest["label:pneumonia"]) == [0, 1, 1] * 2


def test_chestx_det_reads_lists_in_json(tmp_path):
    manifest = made("chestx_det", tmp_path, n=8).sort_values("image_id", ignore_index=True)
    names = label_names(manifest)
    found = [{n for n in names if manifest[f"label:{n}"][k] == 1} for k in range(4)]
    assert found == [set(), set(names), {"pleural_effusion"}, {"nodule_mass"}]
    assert not manifest[[f"label:{name}" for name in names]].isna().any().any()
    split = assign_splits(manifest, fractions=FRACTIONS)["split"]
    assert list(split == "test") == [False] * 6 + [True] * 2


def test_rexgradient_has_a_row_an_image_of_each_study(tmp_path):
    manifest = made("rexgradient", tmp_path)
    assert len(manifest) == 7
    by_study = manifest.groupby("study_id")["image_id"].count()
    assert by_study["GRDN0000STUDY"] == 2
    one = manifest[manifest["study_id"] == "GRDN0000STUDY"]
    assert plain(one["view"]) == ["PA", "LATERAL"]
    assert list(one["age"]) == [7, 7]
    assert one["report"].nunique() == 1
    assert "Findings of study 0." in one["report"].iloc[0]
    second = manifest[manifest["study_id"] == "GRDN0001STUDY"]["report"].iloc[0]
    assert "IMPRESSION" not in second  # NaN
    assert manifest.attrs["not_understood"]["view"] == {"LAO": 1}
    split = assign_splits(manifest, fractions=FRACTIONS)["split"]
    parts = dict(zip(manifest["study_id"], split, strict=True))
    assert parts["GRDN0002STUDY"] == "validation"
    assert parts["GRDN0003STUDY"] == "test"


# ---- damage --------------------------------------------------------------------------------------
def edit(path: Path, old: str, new: str) -> None:
    """Replace text of a table, packed or not."""
    import gzip

    packed = path.suffix == ".gz"
    data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    assert old.encode() in data, (path, old)
    data = data.replace(old.encode(), new.encode(), 1)
    path.write_bytes(gzip.compress(data) if packed else data)


DAMAGE = [  # set, file, what is written, what instead, what is said
    ("mimic_cxr_jpg", "mimic-cxr-2.0.0-chexpert.csv.gz", "1.0,0.0", "2.0,0.0", "'2.0'"),
    ("mimic_cxr_jpg", "mimic-cxr-2.0.0-split.csv.gz", ",train", ",training", "training"),
    ("mimic_cxr", "cxr-record-list.csv.gz", "dicom_id", "dicom", "no column 'dicom_id'"),
    ("chexpert", "train.csv", "Frontal/Lateral", "Frontal", "no column 'Frontal/Lateral'"),
    ("chexpert", "train.csv", ",1.0,", ",1.0,,", "line 2"),
    ("chexpert_plus", "chexbert_labels/report_fixed.json", '"path', "path", "line 1"),
    ("padchest", "PADCHEST*", "Labels,Local", "Label,Local", "no column 'Labels'"),
    ("vindr_cxr", "annotations/image_labels_train.csv", ",1,", ",yes,", "'yes'"),
    ("brax", "master_spreadsheet_update.csv", "PatientID", "Patient", "no column 'PatientID'"),
    ("ranzcr_clip", "train.csv", ",1,", ",", "line 2"),
    ("ranzcr_clip", "train_annotations.csv", "[4, 60]", "[4]", "line 2"),
    ("candid_ptx", "chest_tube.csv", "mask_rle", "mask", "no column 'tube_rle'"),
    ("candid_ptx", "chest_tube.csv", "A1,", "A1,7 ", "line 2"),
    ("openi", "ecgen-radiology/1001.xml", "</eCitation>", "", "1001.xml"),
    ("rsna_pneumonia", "stage_2_train_labels.csv", ",0\n", ",2\n", "'2'"),
    ("chestx_det", "ChestX_Det_test.json", "]}", "]", "ChestX_Det_test.json"),
    ("rexgradient", "metadata/train_metadata*", '"LATERAL"', '"PA", "PA"', "train_metadata"),
]


@pytest.mark.parametrize(("name", "file", "old", "new", "said"), DAMAGE)
def test_damage_is_refused_with_its_place(name, file, old, new, said, tmp_path):
    root = BUILDERS[name](tmp_path)
    [path] = root.glob(file)
    edit(path, old, new)
    with pytest.raises((CardError, ManifestError)) as caught:
        load_manifest(name, root=root)
    assert said in str(caught.value)
    assert path.name in str(caught.value)


def test_a_set_without_its_second_table_is_refused_with_what_lies_where(tmp_path):
    root = layouts.mimic_cxr_jpg(tmp_path)
    (root / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    with pytest.raises(CardError, match=r"mimic-cxr-2\.0\.0-split\.csv\.gz"):
        load_manifest("mimic_cxr_jpg", root=root)


def test_a_label_that_padchest_does_not_list_is_refused_by_its_name(tmp_path):
    root = padchest(tmp_path)
    edit(next(root.glob("PADCHEST*")), "dual chamber device", "dual chamber devise")
    with pytest.raises(CardError, match="lists 'dual chamber device', the card's name of pacem"):
        load_manifest("padchest", root=root)


# ---- a preset of one's own -----------------------------------------------------------------------
@pytest.mark.parametrize("name", ["mimic_cxr", "ranzcr_clip", "vindr_cxr"])
def test_a_preset_is_written_for_a_card_and_passes_preflight(name, walk):
    root = BUILDERS[name](walk.root / "files", n=60)
    done = CliRunner().invoke(cli.main, ["new", "--card", name, "--data-root", str(root)])
    assert done.exit_code == 0, done.output
    found = preflight.check(grid.load_preset(name), str(root))
    assert [str(problem) for problem in found if problem.level == "error"] == []
