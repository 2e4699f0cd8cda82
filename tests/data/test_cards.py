"""Data cards: the map from a data set's own tables to a manifest, and errors that name faults."""

import csv
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy.data import synthetic
from cxrstudy.data.cards import CardError, load_manifest, read_card
from cxrstudy.data.locate import find_images
from cxrstudy.data.manifest import ManifestError, label_array, label_names, nested_subset, validate
from cxrstudy.data.tables import Rows
from cxrstudy.data.vocabulary import LABELS

ROOT = Path(__file__).resolve().parents[2]
CARDS = sorted(path.stem for path in (ROOT / "data_cards").glob("*.md"))
NIH = ROOT.parent / "shared" / "data" / "nih_subset"


def write_card(folder, **changes):
    """Write a hospital's card with a column a label; ``table`` and ``labels`` are merged."""
    facts = {
        "name": "hospital", "title": "A hospital", "kind": "real", "licence": "own",
        "access": "ask the archive",
    }  # fmt: skip
    facts |= {"citation": "none", "images": ["images/*.png"]}
    table = {
        "path": "rows*.csv", "image_id": "file", "patient_id": "pid", "study_id": ["pid", "exam"],
    }  # fmt: skip
    values = {"1.0": 1, "0.0": 0, "-1.0": None}
    labels = {
        "encoding": "columns", "names": {"edema": "Edema"}, "values": values, "missing": "absent",
    }  # fmt: skip
    facts |= {
        "table": table | changes.pop("table", {}),
        "labels": labels | changes.pop("labels", {}),
    } | changes
    path = folder / "hospital.md"
    path.write_text(
        f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n\n# A hospital\n", encoding="utf-8"
    )
    return path


def write_rows(folder, rows, name="rows.csv", images=True):
    """The hospital's table and an (empty) image file a row."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(folder / name, index=False)
    for file in frame["file"] if images else ():
        (folder / "images" / (file if file.endswith(".png") else f"{file}.png")).touch()
    return folder


def rows(**columns):
    n = len(next(iter(columns.values()))) if columns else 2
    own = {"file": [f"x{k}.png" for k in range(n)], "pid": [f"0{k // 2}" for k in range(n)]}
    return own | {"exam": [f"{k}" for k in range(n)], "Edema": ["1.0"] * n} | columns


def no_rows(n):
    """Places of rows of no file."""
    return Rows(
        pd.DataFrame(index=range(n)),
        [Path("rows.csv")],
        np.zeros(n, int),
        ["line"],
        np.arange(n) + 2,
    )


# ---- the repository's own ----------------------------------------------------------------------
@pytest.mark.parametrize("name", CARDS)
def test_every_card_of_the_repository_parses_and_is_complete(name):
    card = read_card(name)
    assert card.name == name
    assert all((card.title, card.licence, card.access, card.citation, card.contamination))
    if card.kind == "real" or name == "synthetic_dicom":
        assert card.table is not None
        assert card.images
        if card.labels is None:
            assert name in ("rsna_normal", "rexgradient")  # published without labels
        else:
            other = {"kermany": {"bacterial"}, "rsna_pneumonia": {"pneumonia"}}
            assert set(card.labels.names) & (set(LABELS) | other.get(name, set()))
    else:
        assert card.counts["default_images"] > 0


@pytest.fixture(scope="module")
def nih():
    if not NIH.is_dir():
        pytest.skip(f"the real x-rays are not part of the project: no {NIH}")
    return load_manifest("nih_chestxray14", root=NIH)


def test_the_nih_card_reads_the_real_table(nih):
    assert len(nih) == 1000
    assert nih["patient_id"].nunique() == 682
    assert nih["study_id"].nunique() == 1000
    assert nih.attrs["left_out"] == nih.attrs["not_understood"] == {}
    assert all(Path(path).is_file() for path in nih["path"])
    assert validate(nih) is nih


def test_the_nih_card_counts_labels_as_the_csv_module_does(nih):
    with (NIH / "Data_Entry_2017_v2020.csv").open(newline="") as file:
        listed = {row["Image Index"]: row for row in csv.DictReader(file)}
    theirs = {"pleural_effusion": {"Effusion"}, "nodule_mass": {"Nodule", "Mass"}}
    names = label_names(nih)
    assert {"cardiomegaly", "edema", "nodule_mass", "infiltration", "pneumonia", "hernia"} <= set(
        names
    )
    array = label_array(nih, names)
    assert not np.isnan(array).any()
    for k, name in enumerate(names):
        wanted = theirs.get(name, {name.capitalize() if "_" not in name else "Pleural_Thickening"})
        told = [bool(wanted & set(listed[i]["Finding Labels"].split("|"))) for i in nih["image_id"]]
        assert (array[:, k] == told).all(), name
        if name != "hernia":
            assert sum(told) > 0, name
    for row in nih.itertuples():
        own = listed[row.image_id]
        assert (row.patient_id, row.view, row.sex) == (
            own["Patient ID"],
            own["View Position"],
            own["Patient Gender"],
        )
        assert row.age == float(own["Patient Age"])
        assert Path(row.path).name == row.image_id


def test_a_real_data_set_is_cut_to_a_nested_subset(nih):
    few = load_manifest("nih_chestxray14", root=NIH, n_images=50, seed=3)
    pd.testing.assert_frame_equal(few, nested_subset(nih, 50, seed=3))


def test_the_synthetic_card_gives_the_rows_of_describe():
    told = synthetic.describe(np.arange(40), institution="public-1", seed=5)
    manifest = load_manifest("synthetic", institution="public-1", n_images=40, seed=5)
    for column in ("patient_id", "study_id", "view", "sex", "report"):
        assert list(manifest[column]) == list(getattr(told, column)), column
    np.testing.assert_array_equal(manifest["age"], told.age)
    np.testing.assert_array_equal(label_array(manifest, LABELS), told.reported)
    np.testing.assert_array_equal(label_array(manifest, LABELS, truth=True), told.labels)
    assert list(manifest["path"]) == [f"synthetic:public-1:5:{k}" for k in range(40)]
    assert len(load_manifest("synthetic")) == read_card("synthetic").counts["default_images"]


# ---- the reader --------------------------------------------------------------------------------
@pytest.mark.parametrize(("missing", "blank"), [("absent", 0.0), ("unknown", math.nan)])
def test_values_of_label_columns_become_ours(tmp_path, missing, blank):
    write_rows(tmp_path, rows(Edema=["1.0", "0.0", "-1.0", ""]))
    manifest = load_manifest(write_card(tmp_path, labels={"missing": missing}), root=tmp_path)
    np.testing.assert_array_equal(manifest["label:edema"], [1.0, 0.0, math.nan, blank])


@pytest.mark.parametrize(("missing", "blank"), [("absent", 0.0), ("unknown", math.nan)])
def test_a_list_of_labels_becomes_ours_by_whole_names(tmp_path, missing, blank):
    given_ = ["Mass", "Edema; Nodule", "Massive", "", "edema"]
    write_rows(tmp_path, rows(found=given_))
    labels = {
        "encoding": "list", "column": "found", "separator": "; ", "values": {}, "missing": missing,
    }  # fmt: skip
    labels["names"] = {"nodule_mass": ["Nodule", "Mass"], "edema": "Edema"}
    manifest = load_manifest(write_card(tmp_path, labels=labels), root=tmp_path)
    np.testing.assert_array_equal(manifest["label:nodule_mass"], [1, 1, blank, blank, blank])
    np.testing.assert_array_equal(
        manifest["label:edema"], [blank, 1, blank, blank, 1]
    )  # whatever its case


values = st.sampled_from(["1.0", "0.0", "-1.0", ""])


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(values, values), min_size=1, max_size=8))
def test_one_label_from_several_columns_is_present_where_any_is(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("several")
    write_rows(folder, rows(Nodule=[a for a, _ in pairs], Mass=[b for _, b in pairs]))
    labels = {"names": {"nodule_mass": ["Nodule", "Mass"]}, "missing": "unknown"}
    found = load_manifest(write_card(folder, labels=labels), root=folder)["label:nodule_mass"]
    for value, pair in zip(found, pairs, strict=True):
        assert (value == 1) == ("1.0" in pair)
        assert math.isnan(value) == (not {"1.0", "0.0"} & set(pair))


def test_every_column_is_mapped(tmp_path):
    table = {
        "view": "pos", "age": "years", "sex": "gender", "report": "text", "query": "keep == 'yes'",
    }  # fmt: skip
    table |= {"views": {"PostAnt": "PA", "side": "LATERAL"}, "sexes": {"w": "F", "m": "M"}}
    own = rows(
        pos=["PostAnt", "side", "oblique", "", "PostAnt"],
        years=["058Y", "414", "", "7", "50"],
        gender=["w", "m", "x", "", "w"],
        text=["No edema.", "", "Edema, mild.", "x", "y"],
        keep=["yes", "yes", "yes", "yes", "no"],
    )
    manifest = load_manifest(write_card(tmp_path, table=table), root=write_rows(tmp_path, own))
    assert list(manifest["image_id"]) == ["x0.png", "x1.png", "x2.png", "x3.png"]
    assert list(manifest["patient_id"]) == ["00", "00", "01", "01"]  # text, zeros kept
    assert list(manifest["study_id"]) == ["00-0", "00-1", "01-2", "01-3"]
    assert [Path(path).name for path in manifest["path"]] == list(manifest["image_id"])
    plain = {
        column: [None if pd.isna(v) else v for v in manifest[column]]
        for column in ("view", "age", "sex")
    }
    assert plain["view"] == ["PA", "LATERAL", None, None]
    assert plain["age"] == [58, None, None, 7]
    assert plain["sex"] == ["F", "M", None, None]
    assert manifest.attrs["left_out"] == {"not kept by query": 1}
    assert manifest.attrs["not_understood"] == {
        "view": {"oblique": 1},
        "age": {"414": 1},
        "sex": {"x": 1},
    }
    assert manifest["report"].fillna("").tolist() == ["No edema.", "", "Edema, mild.", "x"]


def test_sides_masks_malposition_and_spacing_are_read_where_a_card_maps_them(tmp_path):
    table = {
        "sides": {"edema": "which"},
        "masks": {"picc": "drawn"},
        "malposition": {"picc": "wrong"},
    }
    table |= {"pixel_spacing": "mm"}
    own = rows(which=["left", ""], drawn=["masks/a.png", ""], wrong=["1", ""], mm=["0.14", "?"])
    write_rows(tmp_path, own)
    card = write_card(tmp_path, table=table)
    with pytest.raises(
        CardError, match=r"column 'drawn' names a mask 'masks/a.png' that is not under"
    ):
        load_manifest(card, root=tmp_path)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").touch()
    manifest = load_manifest(card, root=tmp_path)
    assert manifest["side:edema"].tolist() == ["left", ""]
    assert manifest["mask:picc"].tolist() == [str(tmp_path / "masks" / "a.png"), ""]
    assert manifest["malposition:picc"].fillna(-1).tolist() == [1, -1]
    assert manifest["pixel_spacing"].fillna(-1).tolist() == [0.14, -1]
    assert manifest.attrs["not_understood"] == {"pixel_spacing": {"?": 1}}
    write_rows(tmp_path, own | {"which": ["links", ""]})
    with pytest.raises(
        ManifestError, match=r"rows.csv, line 2, column 'side:edema': 'links' is not right, left"
    ):
        load_manifest(card, root=tmp_path)
    with pytest.raises(CardError, match="has no column 'size'"):
        load_manifest(write_card(tmp_path, table=table | {"pixel_spacing": "size"}), root=tmp_path)


def test_a_study_is_named_by_one_column_or_by_several(tmp_path):
    write_rows(tmp_path, rows(day=["mon", "tue"]))
    for columns, told in (
        (["exam"], ["0", "1"]),
        (["day", "pid", "exam"], ["mon-00-0", "tue-00-1"]),
    ):
        manifest = load_manifest(write_card(tmp_path, table={"study_id": columns}), root=tmp_path)
        assert list(manifest["study_id"]) == told


def test_tables_are_joined_and_images_found_by_name_or_stem_wherever_the_globs_say(tmp_path):
    folder = tmp_path / "scan [1]"  # brackets mean something to a glob
    write_rows(folder, rows() | {"file": ["a", "b"]}, "rows1.csv")
    write_rows(folder, rows() | {"file": ["c.png", "gone.png"]}, "rows2.csv", images=False)
    (folder / "more").mkdir()
    (folder / "more" / "c.png").touch()
    card = write_card(tmp_path, images=["images/*.png", "mo*/*.png"])
    manifest = load_manifest(card, root=folder)
    assert list(manifest["image_id"]) == ["a", "b", "c.png"]
    found = [str(Path(path).relative_to(folder)) for path in manifest["path"]]
    assert found == ["images/a.png", "images/b.png", "more/c.png"]
    assert manifest.attrs["left_out"] == {"no image file": 1}


def test_a_parquet_table_gives_what_the_same_table_in_csv_gives(tmp_path):
    own = {
        "file": ["a.png", "b.png"], "pid": [7, 8], "exam": [1, 2], "Edema": [1.0, None],
        "years": [50, 60],
    }  # fmt: skip
    table = {"age": "years"}
    from_csv = load_manifest(write_card(tmp_path, table=table), root=write_rows(tmp_path, own))
    pd.DataFrame(own).to_parquet(tmp_path / "rows.parquet")
    card = write_card(tmp_path, table=table | {"path": "rows.parquet"})
    pd.testing.assert_frame_equal(load_manifest(card, root=tmp_path), from_csv, check_dtype=False)


# ---- what is refused ---------------------------------------------------------------------------
def refused(card, root, *said, error=CardError):
    with pytest.raises(error) as caught:
        load_manifest(card, root=root)
    for part in said:
        assert part in str(caught.value)


def test_a_card_that_is_not_there_is_refused_beside_those_that_are(tmp_path):
    refused("nih_chestxray15", tmp_path, "'nih_chestxray15'", *CARDS)
    refused(tmp_path / "own.md", tmp_path, "own.md", *CARDS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# No front matter\n", "front matter"),
        ("words first\n---\nname: x\n---\n", "front matter"),
        ("---\nname: [unclosed\n---\n", "front matter"),
        ("---\n- a\n- list\n---\n", "front matter"),
        ("---\n---\n", "front matter"),
        ("---\nname: x\n---\n", "title"),
    ],
)
def test_a_file_that_is_no_card_is_refused_by_its_name(tmp_path, text, said):
    path = tmp_path / "own.md"
    path.write_text(text)
    refused(path, tmp_path, str(path), said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"licens": "own"}, "licens"), ({"kind": "imagined"}, "kind"),
        ({"table": {"imageid": "file"}}, "table.imageid"),
        ({"table": {"study_id": "exam"}}, "table.study_id"),
        ({"labels": {"encoding": "wide"}}, "labels.encoding"),
        ({"labels": {"missing": "perhaps"}}, "labels.missing"),
        ({"labels": {"values": {"1.0": "yes"}}}, "labels.values"),
    ],
)  # fmt: skip
def test_a_card_with_a_wrong_key_or_value_is_refused_by_its_name(tmp_path, changes, said):
    refused(write_card(tmp_path, **changes), tmp_path, "hospital.md", said)


SITE = (ROOT / "data_cards" / "site.md").read_text(encoding="utf-8")
TYPOS = [  # what is written, what instead, the sign by which its line is found, what is said
    (
        "  path: images.csv", '  path: images.csv\n  seperator: ";"', "seperator",
        "table.seperator: unknown name 'seperator'; near it: 'separator'",
    ),
    (
        "show_images: false", "show_images: ja", "show_images",
        "show_images: expected true or false (got 'ja')",
    ),
    (
        "encoding: columns", "encodin: columns", "encodin:",
        "labels.encodin: unknown name 'encodin'; near it: 'encoding'",
    ),
    (
        "missing: unknown", "missing: unkown", "unkown",
        "labels.missing: expected 'absent' or 'unknown' (got 'unkown')",
    ),
    (
        "chest_tube: chest_tube", "chest_tube: 7", "chest_tube: 7",
        "labels.names.chest_tube: expected text",
    ),
    ("    - study_id", "    study", "  study_id:", "table.study_id: expected a list"),
    ('"-1": null', '"-1": 7', "  values:", "labels.values: '-1' must become 1"),
    (
        "title: Your", "title: Children's hospital: Your", "title:",
        "put the value in double quotes, `title: \"Children's",
    ),
    (
        "title: Your own hospital (a template)", "title: 'Children's'", "title:",
        'put the value in double quotes, `title: "C',
    ),
    (
        "citation: none", "citation: @none", "citation:",
        'put the value in double quotes, `citation: "@none"`',
    ),
    ("name: site", "name: site\nname: again", "name: again", "'name' is given twice"),
    ("  view: view", "\tview: view", "\tview", "by blanks, not by tabs"),
    ("  view: view", "   view: view", "   view", "indent it as its neighbours"),
]  # fmt: skip


@pytest.mark.parametrize("head", ["", "\n\n"])
@pytest.mark.parametrize(("old", "new", "sign", "said"), TYPOS)
def test_a_typo_is_told_with_its_line_in_the_file_and_the_remedy(
    tmp_path, old, new, sign, said, head
):
    path = tmp_path / "own.md"
    text = head + SITE.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")
    number = next(k for k, line in enumerate(text.splitlines(), 1) if sign in line)
    with pytest.raises(CardError) as caught:
        read_card(path)
    assert re.search(rf"(own\.md:|line ){number}: ", str(caught.value))
    assert said in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_all_typos_of_a_card_are_told_in_the_order_of_their_lines(tmp_path):
    path = tmp_path / "own.md"
    path.write_text(
        SITE.replace("show_images: false", "show_images: ja").replace(
            "  report: report", "  reprot: report"
        )
    )
    with pytest.raises(
        CardError, match=r"own\.md:9: show_images: .*; line 19: table\.reprot: .*near it: 'report'"
    ):
        read_card(path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_name_with_one_letter_wrong_is_told_beside_the_right_one(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "typo.md"
    lines = SITE.splitlines()
    known = [
        k
        for k, line in enumerate(lines[: lines.index("---", 1)])  # not the examples below it
        if line.startswith(("  image_id:", "  patient_id:", "licence:", "access:"))
    ]
    k = data.draw(st.sampled_from(known))
    name = lines[k].split(":")[0].strip()
    at = data.draw(st.integers(0, len(name) - 1))
    wrong = name[:at] + name[at + 1 :]
    path.write_text(
        "\n".join([*lines[:k], lines[k].replace(name, wrong, 1), *lines[k + 1 :]]), encoding="utf-8"
    )
    with pytest.raises(CardError) as caught:
        read_card(path)
    assert re.search(
        rf"(:|line ){k + 1}: [a-z_.]*{wrong}: unknown name '{wrong}'; near it: [^;]*'{name}'",
        str(caught.value),
    )


def test_a_real_card_without_a_table_is_refused(tmp_path):
    path = write_card(tmp_path)
    facts = yaml.safe_load(path.read_text().split("---\n")[1])
    path.write_text(f"---\n{yaml.safe_dump(facts | {'table': None})}---\n")
    refused(path, tmp_path, "hospital", "table")


@pytest.mark.parametrize("root", ["", "/no/such/folder"])
def test_a_root_that_is_no_folder_is_refused_with_where_to_get_the_data(tmp_path, root):
    refused(write_card(tmp_path), root, "hospital", repr(root), "ask the archive")


def test_a_table_that_is_not_there_is_refused_by_its_pattern(tmp_path):
    refused(
        write_card(tmp_path), tmp_path, "hospital", "rows*.csv", str(tmp_path), "ask the archive"
    )


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("table", "image_id", "SOPInstanceUID"), ("table", "patient_id", "mrn"),
        ("table", "study_id", ["pid", "accession"]), ("table", "view", "position"),
        ("table", "age", "years"), ("table", "sex", "gender"), ("table", "report", "text"),
        ("labels", "names", {"edema": "Oedema"}),
        ("labels", "names", {"edema": ["Edema", "Oedema"]}), ("labels", "column", "found"),
    ],
)  # fmt: skip
def test_a_column_that_is_not_there_is_refused_by_its_name_and_file(tmp_path, place, key, value):
    write_rows(tmp_path, rows())
    column = value["edema"] if isinstance(value, dict) else value
    column = column[-1] if isinstance(column, list) else column
    card = write_card(
        tmp_path, **{place: {key: value} | ({"encoding": "list"} if key == "column" else {})}
    )
    refused(card, tmp_path, "hospital", "rows.csv", repr(column), "it has file, pid, exam, Edema")


def test_images_that_are_not_there_are_refused_by_their_pattern(tmp_path):
    write_rows(tmp_path, rows(), images=False)
    refused(
        write_card(tmp_path),
        tmp_path,
        "hospital",
        "none of 2 images",
        str(tmp_path),
        "images/*.png",
    )


def test_a_label_value_that_the_card_does_not_map_is_refused_by_column_and_value(tmp_path):
    write_rows(tmp_path, rows(Edema=["1.0", "maybe"]))
    refused(write_card(tmp_path), tmp_path, "'Edema'", "'maybe'", "labels.values")


@pytest.mark.parametrize("query", ["view == 'PA'", "pid ==", "pid + exam"])
def test_a_query_that_does_not_hold_is_refused_by_its_text(tmp_path, query):
    write_rows(tmp_path, rows())
    refused(write_card(tmp_path, table={"query": query}), tmp_path, "hospital", query)


def test_an_image_id_that_appears_twice_is_refused_by_file_and_lines(tmp_path):
    write_rows(tmp_path, rows() | {"file": ["x0.png", "x0.png"]})
    said = (
        "hospital", "rows.csv, line 2", "rows.csv, line 3",
        "'image_id': 'x0.png' appears a second time",
    )  # fmt: skip
    refused(write_card(tmp_path), tmp_path, *said, error=ManifestError)


@pytest.mark.parametrize(
    ("column", "what"), [("file", "image"), ("pid", "patient"), ("exam", "study")]
)
@pytest.mark.parametrize("nothing", ["", "  ", "nan", "NULL", "N/A"])
def test_a_row_without_an_id_is_set_aside_and_counted_and_all_rows_are_refused(
    tmp_path, column, what, nothing
):
    own = rows(file=["a.png", "b.png", "c.png"])
    write_rows(tmp_path, own)
    own[column] = [own[column][0], nothing, own[column][2]]
    write_rows(tmp_path, own, images=False)
    card = write_card(tmp_path, table={"study_id": ["exam"]})
    manifest = load_manifest(card, root=tmp_path)
    assert list(manifest["image_id"]) == ["a.png", "c.png"]
    assert manifest.attrs["left_out"] == {f"no {what} id": 1}
    write_rows(tmp_path, own | {column: [nothing] * 3}, images=False)
    refused(card, tmp_path, f"no row has a {what} id", repr(column), "rows.csv")


def test_an_image_id_that_fits_several_files_is_refused_and_a_path_below_root_tells_them_apart(
    tmp_path,
):
    table = rows()
    write_rows(tmp_path, table)
    path = write_card(tmp_path)
    first = load_manifest(path, root=tmp_path)["path"].iloc[0]
    twin = tmp_path / "images_2" / Path(first).name
    twin.parent.mkdir(exist_ok=True)
    twin.write_bytes(Path(first).read_bytes())
    facts = yaml.safe_load(path.read_text().split("---\n")[1])
    facts["images"] = ["**/*.png", *facts["images"], "images_2/*"]
    path.write_text(f"---\n{yaml.safe_dump(facts)}---\n")
    refused(path, tmp_path, "hospital", Path(first).name, "path below root")


def test_an_exact_file_name_comes_before_one_without_its_suffix(tmp_path):
    names = ["1.2.3", "1.2.3.1", "a", "a.png", "b"]
    for name in names[:-1]:
        (tmp_path / name).touch()
    found = find_images(tmp_path, ["*"], pd.Series(names), no_rows(len(names)))
    assert [None if pd.isna(f) else Path(f).name for f in found] == [
        "1.2.3", "1.2.3.1", "a", "a.png", None,
    ]  # fmt: skip


COVID = ROOT.parent / "shared" / "data" / "covid_notes"


@pytest.mark.skipif(
    not COVID.is_dir(), reason="needs the real x-rays and notes of ../shared/data/covid_notes"
)
def test_real_notes_stand_beside_their_images():
    manifest = load_manifest("covid_notes", root=COVID)
    assert len(manifest) == 164
    assert manifest["report"].str.len().min() > 10
    assert (manifest["label:endotracheal_tube"] == 1).sum() == 23
    assert set(manifest["view"].dropna()) == {"PA", "AP"}
