"""Cards of joined tables: keys, patterns, lists, readers, reports in files, splits, boxes."""

import gzip
import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cxrstudy.data.cardfile import Card, serves
from cxrstudy.data.cards import CardError, load_manifest, read_card
from cxrstudy.data.joins import join, one_row_an_image
from cxrstudy.data.manifest import ManifestError
from cxrstudy.data.tables import Rows, read_tables
from cxrstudy.study import digest

ROOT = Path(__file__).resolve().parents[2]
OPENI = ROOT.parent / "shared" / "data" / "openi_reports" / "reports.tar.gz"


def write_card(folder, table, **more):
    facts = {
        "name": "held", "title": "Held", "kind": "real", "licence": "own", "access": "ask",
        "citation": "none", "images": ["images/*.png"],
    }  # fmt: skip
    base = {"path": "t.csv", "image_id": "image", "patient_id": "patient", "study_id": ["study"]}
    facts |= {"table": base | table} | more
    (folder / "held.md").write_text(f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n")
    return folder / "held.md"


def write(folder, name, text, images=()):
    (folder / "images").mkdir(exist_ok=True)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    for image in images:
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "images" / f"{image}.png")
    return folder


MAIN = "image,patient,study\na,p1,s1\nb,p1,s2\nc,p2,s3\n"


@pytest.fixture
def root(tmp_path):
    return write(tmp_path, "t.csv", MAIN, "abc")


def refused(card, root, *said, error=(CardError, ManifestError)):
    with pytest.raises(error) as caught:
        load_manifest(card, root=root)
    for part in said:
        assert part in str(caught.value), str(caught.value)


LABELS = {"encoding": "columns", "names": {"edema": "Edema"}, "values": {"1": 1, "0": 0}}
LABELS["missing"] = "unknown"


# ---- joins ---------------------------------------------------------------------------------------
def test_a_second_table_gives_columns_by_keys_of_either_name_and_the_match_rate_is_told(root):
    write(root, "more.csv", "accession,Edema,sex\ns3,1,F\ns1,0,M\ns9,1,M\n")
    part = {"path": "more.csv", "on": {"study": "accession"}}
    card = write_card(root, {"sex": "sex"}, tables=[part], labels=LABELS)
    manifest = load_manifest(card, root=root)
    assert manifest["label:edema"].fillna(-1).tolist() == [0, -1, 1]
    assert manifest["sex"].fillna("").tolist() == ["M", "", "F"]
    assert manifest.attrs["notes"] == ["more.csv: 2 of 3 rows (66.7%) matched by study = accession"]


def test_keys_that_differ_in_spelling_match_unless_that_is_ambiguous(tmp_path):
    write(tmp_path, "t.csv", "image,patient,study\na,p1,007\nb,p2,8\nc,p3,9\n", "abc")
    write(tmp_path, "more.csv", "study,sex\n7.0,F\n08,M\n8.0,F\n9,M\n")
    card = write_card(tmp_path, {"sex": "sex"}, tables=[{"path": "more.csv", "on": ["study"]}])
    assert load_manifest(card, root=tmp_path)["sex"].fillna("").tolist() == ["F", "", "M"]
    card = write_card(
        tmp_path, {"sex": "sex", "ids": "exact"}, tables=[{"path": "more.csv", "on": ["study"]}]
    )
    assert load_manifest(card, root=tmp_path)["sex"].fillna("").tolist() == ["", "", "M"]


def test_faults_of_a_joined_table_name_its_own_file_and_line(root):
    write(root, "more.csv", "study,Edema\ns1,0\ns2,maybe\n")
    part = {"path": "more.csv", "on": ["study"]}
    card = write_card(root, {}, tables=[part], labels=LABELS)
    refused(card, root, "more.csv, line 3", "'Edema'", "'maybe'")
    write(root, "more.csv", "study,Edema\ns1,0\ns1,1\n")
    refused(card, root, "more.csv, line 2", "line 3", "rows: first")
    write(root, "more.csv", "study,Edema\nS-1,0\n")
    refused(card, root, "no row matches by study", "'s1'", "'S-1'")
    write(root, "more.csv", "exam,Edema\ns1,0\n")
    refused(card, root, "more.csv has no column 'study'")
    write(root, "more.csv", "study,Oedema\ns1,0\n")
    refused(card, root, "t.csv, more.csv: no column 'Edema'", "near it: 'Oedema'")
    (root / "more.csv").unlink()
    refused(card, root, "no table more.csv under")
    card = write_card(root, {}, tables=[part | {"on": ["exam"]}], labels=LABELS)
    write(root, "more.csv", "exam,Edema\ns1,0\n")
    refused(card, root, "t.csv has no column 'exam'")


def test_a_used_column_of_both_tables_with_other_cells_is_refused_until_it_is_renamed(root):
    write(root, "t.csv", MAIN.replace("study", "study,Edema").replace(",s", ",s,1").replace(
        ",s,1tudy", ",study").replace("s,11", "s1,1").replace("s,12", "s2,1").replace(
        "s,13", "s3,1"))  # fmt: skip
    write(root, "more.csv", "study,Edema\ns1,0\ns2,1\n")
    part = {"path": "more.csv", "on": ["study"]}
    refused(write_card(root, {}, tables=[part], labels=LABELS), root, "rename: {Edema: ...}")
    part["rename"] = {"Edema": "Reader 2"}
    labels = LABELS | {"names": {"edema": "Reader 2"}}
    manifest = load_manifest(write_card(root, {}, tables=[part], labels=labels), root=root)
    assert manifest["label:edema"].fillna(-1).tolist() == [0, 1, -1]


cell = st.sampled_from(["a", "b", "c", "", "d"])


@settings(deadline=None, max_examples=60)
@given(st.lists(cell, min_size=1, max_size=6), st.lists(cell, min_size=1, max_size=6))
def test_a_join_gives_the_pairs_that_pandas_gives(ours, theirs):
    def rows(key, name, keys):
        frame = pd.DataFrame({key: keys, name: [f"{name}{k}" for k in range(len(keys))]}, dtype=str)
        frame = frame.replace("", np.nan)
        return Rows(frame, [Path(name)], np.zeros(len(keys), int), ["line"], np.arange(len(keys)))

    left, right = rows("k", "x", ours), rows("k2", "y", theirs)
    wanted = left.frame.merge(
        right.frame.dropna(), left_on="k", right_on="k2", how="left"
    )[["x", "y"]]  # fmt: skip
    if not wanted["y"].notna().any():
        with pytest.raises(CardError, match="no row matches"):
            join(left, right, {"k": "k2"}, "any", notes=[])
        return
    found = join(left, right, {"k": "k2"}, "any", notes=[])
    pd.testing.assert_frame_equal(found.frame[["x", "y"]], wanted)
    for row, (x, y) in enumerate(found.frame[["x", "y"]].fillna("").to_numpy()):
        assert found.place(row, "x") == f"x, line {x[1:]}"
        assert not y or found.place(row, "y") == f"y, line {y[1:]}"


# ---- patterns, lists, JSON -----------------------------------------------------------------------
def test_ids_come_out_of_a_path_a_file_name_or_the_folder_of_the_image(tmp_path):
    for name in ("train/s7/a", "train/s8/b"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / f"{name}.png")
    write(tmp_path, "labels_train.csv", "Path\nset/patient1/a\nset/patient2/b\n")
    table = {
        "path": "labels_*.csv", "patient_id": "patient", "study_id": ["exam"],
        "extract": {
            "Path": r"(?P<patient>patient\d+)/(?P<image>\w+)$",
            "@image": r"/(?P<exam>s\d+)/",
            "@table": r"labels_(?P<part>\w+)\.csv",
        },
        "split": {"column": "part", "names": {"train": "train"}},
    }  # fmt: skip
    card = write_card(tmp_path, table, images=["images/**/*.png"])
    manifest = load_manifest(card, root=tmp_path)
    assert manifest["patient_id"].tolist() == ["patient1", "patient2"]
    assert manifest["study_id"].tolist() == ["s7", "s8"]
    assert set(manifest["official_split"]) == {"train"}
    table["extract"]["Path"] = r"(?P<patient>subject\d+)/(?P<image>\w+)$"
    card = write_card(tmp_path, table, images=["images/**/*.png"])
    refused(card, tmp_path, "labels_train.csv, line 2", "'Path'", "'set/patient1/a'", "subject")
    table["extract"]["Path"] = r"(?P<patient>patient"
    refused(write_card(tmp_path, table), tmp_path, "held.md:", "is no pattern")


@pytest.mark.parametrize("kind", ["list", "object", "lines", "lines.gz"])
def test_json_tables_of_lists_are_read_an_entry_a_row(tmp_path, kind):
    records = {
        "s1": {"image": ["a", "b"], "view": ["PA", None], "patient": "p1", "age": 7.0},
        "s2": {"image": ["c"], "view": ["LATERAL"], "patient": "p2", "age": None},
    }
    listed = [{"study": key} | record for key, record in records.items()]
    write(tmp_path, "x", "", "abc")
    lines = "\n".join(map(json.dumps, listed))
    path, text = {
        "list": ("t.json", json.dumps(listed)), "object": ("t.json", json.dumps(records)),
        "lines": ("t.jsonl", lines), "lines.gz": ("t.jsonl.gz", lines),
    }[kind]  # fmt: skip
    data = text.encode()
    (tmp_path / path).write_bytes(gzip.compress(data) if kind == "lines.gz" else data)
    table = {"path": path, "view": "view", "age": "age", "explode": ["image", "view"]}
    table |= {"study_id": ["@key"]} if kind == "object" else {}
    manifest = load_manifest(write_card(tmp_path, table), root=tmp_path)
    assert manifest["image_id"].tolist() == ["a", "b", "c"]
    assert manifest["study_id"].tolist() == ["s1", "s1", "s2"]
    assert manifest["view"].fillna("").tolist() == ["PA", "", "LATERAL"]
    assert manifest["age"].fillna(-1).tolist() == [7, 7, -1]
    (tmp_path / path).write_text(
        '[{"image": ["a"], "view": [], "age": 1, "patient": 1, "study": 2}]'
    )
    if kind == "list":
        refused(write_card(tmp_path, table), tmp_path, "t.json, record 1", "differ in length")
        (tmp_path / path).write_text('[{"image": "a,b"}, 7]')
        refused(write_card(tmp_path, table), tmp_path, "t.json, record 2: expected an object")


@pytest.mark.skipif(not OPENI.is_file(), reason="needs the real reports of ../shared/data")
def test_real_reports_of_openi_are_rows_an_image(tmp_path):
    with tarfile.open(OPENI) as packed:
        members = [m for m in packed.getmembers() if m.name.endswith(".xml")][:60]
        packed.extractall(tmp_path, members, filter="data")
    rows = read_tables(
        sorted((tmp_path / "ecgen-radiology").glob("*.xml")), used=["uid", "image", "mesh"]
    )
    assert rows.frame["uid"].nunique() == len(members) == 60
    assert rows.frame["image"].is_unique
    assert rows.frame["impression"].notna().mean() > 0.9
    assert rows.frame["problems"].str.contains("normal").any()
    assert rows.place(0).endswith("image 1")


# ---- several rows an image -----------------------------------------------------------------------
READERS = (
    "image,patient,study,reader,Edema,sex\n"
    "a,p1,s1,R1,1,F\na,p1,s1,R2,1,F\na,p1,s1,R3,0,F\nb,p1,s2,R1,0,F\nb,p1,s2,R2,1,M\n"
    "c,p2,s3,R1,,M\nc,p2,s3,R2,0,M\nd,p3,s4,R1,1,M\nd,p4,s4,R2,1,M\n"
)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [("any", [1, 1, 0]), ("majority", [1, -1, 0]), ("first", [1, 0, 0])],
)
def test_rows_of_readers_become_one_by_the_rule_of_the_card(tmp_path, rule, wanted):
    write(tmp_path, "t.csv", READERS, "abcd")
    refused(write_card(tmp_path, {}, labels=LABELS), tmp_path, "line 2", "rows: any")
    table = {"rows": rule, "reader": "reader", "sex": "sex"}
    manifest = load_manifest(write_card(tmp_path, table, labels=LABELS), root=tmp_path)
    assert manifest["image_id"].tolist() == ["a", "b", "c"]
    assert manifest["label:edema"].fillna(-1).tolist() == wanted
    assert manifest["sex"].tolist() == ["F", "F", "M"]
    assert manifest.attrs["left_out"] == {"of an image that rows give to several patients": 2}
    assert any("1 images have rows that differ in sex" in note for note in manifest.attrs["notes"])


def test_boxes_of_one_reader_are_one_vote(tmp_path):
    """Three boxes of one reader are no majority against two who saw nothing."""
    text = "image,patient,study,reader,class\n" + "a,p,s,R1,Edema\n" * 3
    write(tmp_path, "t.csv", text + "a,p,s,R2,none\na,p,s,R3,none\nb,p,t,R1,Edema\n", "ab")
    labels = {"encoding": "list", "column": "class", "names": {"edema": "Edema"}}
    labels |= {"missing": "absent"}
    table = {"rows": "majority", "reader": "reader"}
    manifest = load_manifest(write_card(tmp_path, table, labels=labels), root=tmp_path)
    assert manifest["label:edema"].tolist() == [0, 1]


votes = st.lists(
    st.tuples(st.sampled_from("xyz"), st.sampled_from("RST"), st.sampled_from([0.0, 1.0, None])),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(votes)
def test_votes_count_readers_that_say_something(rows):
    frame = pd.DataFrame(rows, columns=["image_id", "reader", "label:edema"])
    frame["label:edema"] = frame["label:edema"].astype(float)
    frame["patient_id"] = frame["image_id"]
    reader = frame.pop("reader")
    found, _ = one_row_an_image(frame, "majority", reader, [])
    if not frame["image_id"].duplicated().any():
        assert found is frame
        return
    for image, value in zip(found["image_id"], found["label:edema"], strict=True):
        said = {}
        for name, who, label in rows:
            if name == image and label is not None:
                said[who] = max(label, said.get(who, 0.0))
        yes, no = sum(said.values()), len(said) - sum(said.values())
        assert (value == 1) == (yes > no)
        assert (value == 0) == (no > yes)


def test_rows_that_a_join_repeats_are_no_second_image(root):
    write(root, "more.csv", "study,reader,Edema\ns1,R1,1\ns1,R2,0\ns1,R3,1\ns2,R1,0\n")
    part = {"path": "more.csv", "on": ["study"], "rows": "majority"}
    card = write_card(root, {}, tables=[part], labels=LABELS)
    assert load_manifest(card, root=root)["label:edema"].fillna(-1).tolist() == [1, 0, -1]
    write(root, "t.csv", MAIN + "a,p1,s1\n")
    refused(card, root, "t.csv, line 2; ", "t.csv, line 5", "a second time")


# ---- paths and reports ---------------------------------------------------------------------------
def test_images_and_reports_are_found_by_paths_built_from_columns(tmp_path):
    write(tmp_path, "t.csv", "image,patient,study\na,10x,s1\nb,11x,s2\nc,11x,s3\n")
    for image, patient in (("a", "10x"), ("b", "11x"), ("c", "11x")):
        folder = tmp_path / "files" / f"p{patient[:2]}" / f"p{patient}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / f"{image}.png")
    text = "FINAL REPORT\n\nFINDINGS: Lungs are clear.\n\nIMPRESSION: No edema.\n"
    write(tmp_path, "files/p10/s1.txt", text)
    write(tmp_path, "files/p11/s2.txt", "FINDINGS: Normal.")
    pattern = "files/p{patient_id:.2}/p{patient_id}/{image_id}.png"
    reports = {"path": "files/p{patient:.2}/{study}.txt", "sections": ["impression"]}
    card = write_card(tmp_path, {}, images=[pattern], reports=reports)
    manifest = load_manifest(card, root=tmp_path)
    assert manifest["path"].tolist()[2] == f"{tmp_path}/files/p11/p11x/c.png"
    assert manifest["report"].fillna("").tolist() == ["IMPRESSION: No edema.", "", ""]
    assert "2 of 3 images have no report, 1 because theirs is empty" in manifest.attrs["notes"][0]
    del reports["sections"]
    card = write_card(tmp_path, {}, images=[pattern], reports=reports)
    assert load_manifest(card, root=tmp_path)["report"].fillna("").str.len().tolist() == [
        len(text.strip()), 17, 0,
    ]  # fmt: skip
    card = write_card(tmp_path, {}, images=["files/{study}/{image_id}.png"])
    refused(card, tmp_path, "the first would be 'files/s1/a.png'")
    write(tmp_path, "t.csv", "image,patient,study\na,10x,../s1\nb,11x,s2\nc,11x,s3\n")
    refused(card, tmp_path, "t.csv, line 2", "leads out of root")
    card = write_card(tmp_path, {}, images=[pattern], reports={"path": "../{study}.txt"})
    refused(card, tmp_path, "held.md:", "leads out of root")


@pytest.mark.parametrize(
    "report", [["findings", "section_impression"], {"FINDINGS": "findings", "IMPRESSION":
               "section_impression"}],
)  # fmt: skip
def test_a_report_of_several_columns_has_their_headers(tmp_path, report):
    text = "image,patient,study,findings,section_impression\na,p,s,Clear.,No edema.\nb,p,s,,x\n"
    write(tmp_path, "t.csv", text + "c,p,s,,\n", "abc")
    manifest = load_manifest(write_card(tmp_path, {"report": report}), root=tmp_path)
    assert manifest["report"].fillna("").tolist() == [
        "FINDINGS: Clear.\nIMPRESSION: No edema.", "IMPRESSION: x", "",
    ]  # fmt: skip


# ---- splits, positions, boxes, lists -------------------------------------------------------------
def test_an_official_split_is_mapped_and_what_is_not_is_refused(tmp_path):
    text = "image,patient,study,part\na,p1,s,train\nb,p2,s,Test\nc,p3,s,extra\nd,p4,s,\n"
    write(tmp_path, "t.csv", text, "abcd")
    names = {"train": ["pretrain", "train"], "test": "test"}
    split = {"column": "part", "names": names}
    refused(write_card(tmp_path, {"split": split}), tmp_path, "line 4", "'extra'", "train, test")
    names["extra"] = None
    manifest = load_manifest(write_card(tmp_path, {"split": split}), root=tmp_path)
    assert manifest["official_split"].tolist() == ["pretrain+train", "test"]
    assert manifest.attrs["left_out"] == {"no official split": 1, "left out by split": 1}


def test_positions_in_three_states_are_read_from_columns_or_values(tmp_path):
    text = "image,patient,study,bad,good,where\na,p,s,1,1,deep\nb,p,s,0,1,Fine\nc,p,s,0,0,\n"
    write(tmp_path, "t.csv", text, "abc")
    position = {"malpositioned": ["bad"], "correct": ["good"]}
    values = {"column": "where", "malpositioned": ["deep"], "correct": ["fine"]}
    table = {"malposition": {"picc": position, "chest_tube": values}}
    manifest = load_manifest(write_card(tmp_path, table), root=tmp_path)
    for device in ("picc", "chest_tube"):
        assert manifest[f"malposition:{device}"].fillna(-1).tolist() == [1, 0, -1]


@pytest.mark.parametrize(("missing", "other"), [("absent", 0), ("unknown", -1)])
def test_boxes_say_who_has_a_finding(root, missing, other):
    write(root, "boxes.csv", "file,class,x\na.png,Edema,1\na.png,Mass,2\nb.png,Mass,3\n")
    boxes = {
        "path": "boxes.csv", "on": {"image": "stem"}, "label": "class", "missing": missing,
        "names": {"edema": "edema", "nodule_mass": ["Mass", "Nodule"]},
        "extract": {"file": r"(?P<stem>\w+)\.png"},
    }  # fmt: skip
    refused(write_card(root, {}, boxes=boxes), root, "boxes.csv", "'Nodule'", "boxes.names")
    boxes["names"]["nodule_mass"] = "Mass"
    manifest = load_manifest(write_card(root, {}, boxes=boxes), root=root)
    assert manifest["label:edema"].fillna(-1).tolist() == [1, other, -1]
    assert manifest["label:nodule_mass"].fillna(-1).tolist() == [1, 1, -1]
    both = LABELS | {"names": {"edema": "study"}}
    refused(write_card(root, {}, boxes=boxes, labels=both), root, "'edema' is under labels.names")


def test_every_other_cell_may_be_given_a_value(tmp_path):
    text = "image,patient,study,Runs\na,p,s, -1\nb,p,s,1 5\nc,p,s,\n"
    write(tmp_path, "t.csv", text, "abc")
    labels = LABELS | {"names": {"pneumothorax": "Runs"}, "values": {"-1": 0, "*": 1}}
    manifest = load_manifest(write_card(tmp_path, {}, labels=labels), root=tmp_path)
    assert manifest["label:pneumothorax"].fillna(-1).tolist() == [0, 1, -1]


# ---- what does not change ------------------------------------------------------------------------
def test_keys_that_are_not_set_are_not_in_a_cards_dump(tmp_path):
    later = {"tables", "polylines", "boxes", "reports", "verified"}
    of_table = {"rename", "extract", "explode", "rows", "reader", "split"}
    for name in ("site", "nih_chestxray14", "covid_notes", "synthetic", "synthetic_dicom"):
        dump = read_card(name).model_dump()
        assert not later & set(dump)
        assert not of_table & set(dump["table"] or ())
    values = read_card("site").model_dump()
    values["table"] |= {"rows": "any", "reader": "r"}
    assert digest(Card(**values).model_dump()) != digest(read_card("site").model_dump())


def test_a_card_says_what_its_data_serve():
    assert serves(read_card("site")) == ["findings", "tubes present", "reports"]
    assert serves(read_card("nih_chestxray14")) == ["findings"]
    assert "tubes drawn" in serves(read_card("synthetic"))


def test_the_example_of_all_keys_in_the_template_is_a_card(tmp_path) -> None:
    text = (ROOT / "data_cards" / "site.md").read_text(encoding="utf-8")
    example = next(part for part in text.split("```")[1::2] if "polylines:" in part)
    names = ("name", "title", "licence", "access", "citation")
    front = "".join(f"{name}: example\n" for name in names) + "kind: real"
    path = tmp_path / "example.md"
    path.write_text(f"---\n{front}{example.removeprefix('yaml')}---\n# Example\n")
    card = read_card(path)
    assert card.table is not None and card.table.split is not None and card.polylines is not None
    assert card.table.groups == {"patient", "study"} and card.tables[0].keys["study"] == "study"
