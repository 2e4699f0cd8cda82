"""A hospital's card and tables end to end: cells are understood, refused or counted."""

import numpy as np
import pandas as pd
import pytest
import yaml
from test_cards import refused, rows, write_card, write_rows

from cxrstudy.data.cards import CardError, load_manifest, read_card
from cxrstudy.data.manifest import read_manifest, write_manifest


def hospital(folder, own=None, **changes):
    """The manifest of a hospital whose table has one more column for each of ``own``."""
    return load_manifest(
        write_card(folder, **changes), root=write_rows(folder, rows(**(own or {})))
    )


def edit(path, old, new, encoding="utf-8", ends="\n"):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_bytes(text.replace(old, new).replace("\n", ends).encode(encoding))
    return path


# ---- cards -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("told", "cells"),
    [
        ("{Yes: 1, No: 0}", ["Yes", "No"]), ("{yes: 1, no: 0}", ["YES", "no"]),
        ("{on: 1, off: 0}", ["on", "off"]), ("{Y: 1, N: 0}", ["Y", "n"]),
        ("{True: 1, False: 0}", ["True", "False"]), ("{true: 1, false: 0}", ["TRUE", "0"]),
        ("{1: 1, 0: 0}", ["1.0", "0.0"]), ("{1.0: 1, -1.0: 0}", ["1", "-1"]),
        ("{'1': 1, '-1': 0}", ["1.0", "-1.0"]), ("{0x10: 1, 010: 0}", ["0x10", "010"]),
        ("{2020-01-01: 1, 1:30: 0}", ["2020-01-01", "1:30"]),
        ("{1_000: 1, 1e3: 0}", ["1_000", "1000"]), ("{null: 1, NA: 0}", ["null", "NA"]),
        ("{~: 1, .nan: 0}", ["~", ".nan"]),
    ],
)  # fmt: skip
def test_keys_of_a_card_stay_as_they_were_written(tmp_path, told, cells):
    path = write_card(tmp_path)
    old = yaml.safe_load(path.read_text().split("---\n")[1])["labels"]["values"]
    text = "".join(
        f"    {key!r}: {'null' if value is None else value}\n" for key, value in old.items()
    )
    edit(path, f"  values:\n{text}", f"  values: {told}\n")
    write_rows(tmp_path, rows(Edema=cells))
    assert load_manifest(path, root=tmp_path)["label:edema"].tolist() == [1, 0]


def test_views_and_sexes_of_a_card_may_be_words_that_yaml_changes(tmp_path):
    path = write_card(
        tmp_path, table={"view": "pos", "sex": "sex", "views": {"QQ": "PA"}, "sexes": {"ZZ": "F"}}
    )
    edit(path, "QQ: PA", "No: PA\n    1: AP")
    edit(path, "ZZ: F", "1: F\n    0: M")
    manifest = load_manifest(path, root=write_rows(tmp_path, rows(pos=["No", "1"], sex=["1", "0"])))
    assert (manifest["view"].tolist(), manifest["sex"].tolist()) == (["PA", "AP"], ["F", "M"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_a_card_is_read_whatever_its_line_ends_and_with_a_byte_order_mark(tmp_path, encoding, ends):
    path = write_card(tmp_path, caution="three dashes end this line ---")
    told = read_card(path)
    assert read_card(edit(path, "own", "own", encoding, ends)) == told


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("title: A hospital", "title: Spital Zürich", "save the card as UTF-8"),
        ("kind: real", "kind: real\nkind: real", "'kind' is given twice"),
        ("edema: Edema", "edema: 1", "in quotes"),
        ("path: rows*.csv", "path: ../rows.csv\n  separator: ';;'", "';;' is not one sign"),
        ("path: rows*.csv", "path: rows.csv\n  encoding: cp1253x", "'cp1253x' is no encoding"),
        ("path: rows*.csv", "path: rows.csv\n  ids: same", "table.ids"),
        ("path: rows*.csv", "path: rows.csv\n  views: {x: OBLIQUE}", "table.views"),
        ("missing: absent", "missing: absent\n  separator: ''", "labels.separator"),
    ],
)
def test_a_card_that_cannot_be_meant_is_refused_by_its_file_and_key(tmp_path, old, new, said):
    path = edit(write_card(tmp_path), old, new, "cp1252" if "ü" in new else "utf-8")
    refused(path, tmp_path, "hospital.md", said)


@pytest.mark.parametrize("value", ["0.5", "2", "-1"])
def test_a_label_that_becomes_neither_1_nor_0_is_refused_when_the_card_is_read(tmp_path, value):
    refused(
        write_card(tmp_path, labels={"values": {"x": float(value)}}),
        tmp_path,
        "labels.values",
        "'x' must become",
    )
    refused(
        write_card(tmp_path, labels={"values": {" ": 1}}),
        tmp_path,
        "labels.values",
        "`missing` says",
    )


def test_a_card_without_labels_or_reports_gives_its_images(tmp_path):
    path = write_card(tmp_path, table={"report": "Edema"})
    facts = yaml.safe_load(path.read_text().split("---\n")[1])
    path.write_text(
        f"---\n{yaml.safe_dump({k: v for k, v in facts.items() if k != 'labels'})}---\n"
    )
    manifest = load_manifest(path, root=write_rows(tmp_path, rows()))
    assert list(manifest) == ["image_id", "patient_id", "study_id", "path", "report"]
    write_manifest(manifest, tmp_path / "m.parquet")
    pd.testing.assert_frame_equal(
        read_manifest(tmp_path / "m.parquet"), manifest, check_dtype=False
    )


# ---- tables ------------------------------------------------------------------------------------
def test_ages_sexes_and_views_are_understood_or_counted_by_value(tmp_path):
    own = {
        "years": ["013M", "058Y", "8 months", ">89", "40-49", "-1", "40-49", ""],
        "sex": ["Female", "m", "MALE", "F", "?", "O", "f", "N/A"],
        "pos": ["pa", "AP Supine", "LL", "Lateral", "frontal", "PA", "frontal", ""],
    }
    manifest = hospital(
        tmp_path, own, table={"age": "years", "sex": "sex", "view": "pos"}, labels={"names": {}}
    )
    np.testing.assert_allclose(manifest["age"], [13 / 12, 58, 8 / 12, *[np.nan] * 5])
    assert manifest["sex"].fillna("-").tolist() == ["F", "M", "M", "F", "-", "-", "F", "-"]
    assert manifest["view"].fillna("-").tolist() == [
        "PA", "AP", "LATERAL", "LATERAL", "-", "PA", "-", "-",
    ]  # fmt: skip
    assert manifest.attrs["not_understood"] == {
        "age": {"40-49": 2, ">89": 1, "-1": 1},
        "sex": {"?": 1, "O": 1},
        "view": {"frontal": 2},
    }


def test_a_column_of_which_nothing_is_known_makes_a_manifest(tmp_path):
    manifest = hospital(
        tmp_path, {"years": ["", ""], "sex": ["", ""]}, table={"age": "years", "sex": "sex"}
    )
    assert manifest[["age", "sex"]].isna().all(axis=None)
    assert manifest.attrs["not_understood"] == {}
    write_manifest(manifest, tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet")[["age", "sex"]].isna().all(axis=None)


def test_two_spellings_of_a_patient_end_the_reading_until_the_card_says_what_they_are(tmp_path):
    one = rows(file=["a.png", "b.png"], pid=["P1", "P2"])
    write_rows(tmp_path, one, "rows_1.csv")
    write_rows(
        tmp_path,
        one | {"file": ["c.png", "d.png"], "pid": ["P1 ", "p2"], "exam": ["3", "4"]},
        "rows_2.csv",
    )
    path = write_card(tmp_path)
    refused(
        path,
        tmp_path,
        "card hospital: 2 patient ids",
        "'P1'",
        "'P1 '",
        "rows_2.csv, line 2",
        "ids: normalised",
    )
    for spelling, people in (("exact", 4), ("normalised", 2)):
        manifest = load_manifest(write_card(tmp_path, table={"ids": spelling}), root=tmp_path)
        assert manifest["patient_id"].nunique() == people
        assert manifest["study_id"].nunique() == 4
    write_rows(tmp_path, one | {"file": ["c.png", "d.png"], "exam": ["0 ", "01"]}, "rows_2.csv")
    refused(
        write_card(tmp_path, table={"study_id": ["exam"]}),
        tmp_path,
        "2 study ids",
        "'01'",
        "ids: exact",
    )


def test_ids_of_a_row_that_the_query_leaves_out_play_no_part(tmp_path):
    own = {"pid": ["P1", "p1", "P2"], "keep": ["y", "n", "y"]}
    assert (
        len(hospital(tmp_path, own | {"Edema": ["1.0"] * 3}, table={"query": "keep == 'y'"})) == 2
    )


def test_integers_with_a_gap_in_parquet_are_no_fractions_and_no_id_nan(tmp_path):
    own = {
        "file": ["a.png", "b.png", "c.png"], "pid": [5.0, np.nan, 7.0], "exam": [1, 2, 3],
        "Edema": [1.0, 0.0, np.nan],
    }  # fmt: skip
    write_rows(tmp_path, own)
    pd.DataFrame(own).to_parquet(tmp_path / "rows.parquet")
    manifest = load_manifest(write_card(tmp_path, table={"path": "rows.parquet"}), root=tmp_path)
    assert manifest["patient_id"].tolist() == ["5", "7"]
    assert manifest["study_id"].tolist() == ["5-1", "7-3"]
    assert manifest["label:edema"].tolist() == [1, 0]
    assert manifest.attrs["left_out"] == {"no patient id": 1}


def test_every_row_that_is_left_out_is_counted_by_its_reason_a_subset_of_them_too(tmp_path):
    n = 12
    own = {
        "Edema": ["1.0"] * n,
        "file": [f"x{k}.png" for k in range(n)],
        "pid": [*[f"P{k}" for k in range(n - 1)], ""],
    }
    own["exam"] = ["", *[str(k) for k in range(1, n)]]
    own["keep"] = ["y"] * 8 + ["n"] * 3 + ["y"]
    path = write_card(tmp_path, table={"query": "keep == 'y'"})
    write_rows(tmp_path, rows(**own))
    for name in ("x1.png", "x2.png"):
        (tmp_path / "images" / name).unlink()
    told = {"not kept by query": 3, "no patient id": 1, "no study id": 1, "no image file": 2}
    assert load_manifest(path, root=tmp_path).attrs["left_out"] == told
    few = load_manifest(path, root=tmp_path, n_images=2)
    assert (len(few), few.attrs["left_out"]) == (2, told)
    with pytest.raises(
        CardError,
        match=r"n_images is 3000, but the data set has 5 images \(7 rows .*n_images: 0 for all",
    ):
        load_manifest(path, root=tmp_path, n_images=3000)


@pytest.mark.parametrize(
    ("value", "told"), [("yes", 1), ("0", 0), ("1.0", 1), ("", np.nan), ("unsure", np.nan)]
)
def test_a_malposition_is_a_yes_or_a_no_or_is_counted(tmp_path, value, told):
    manifest = hospital(tmp_path, {"wrong": [value, "1"]}, table={"malposition": {"picc": "wrong"}})
    np.testing.assert_array_equal(manifest["malposition:picc"], [told, 1])
    assert manifest.attrs["not_understood"] == (
        {"malposition:picc": {"unsure": 1}} if value == "unsure" else {}
    )


def test_sides_and_masks_are_understood_however_they_are_written(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").touch()
    table = {"sides": {"edema": "side"}, "masks": {"picc": "drawn"}}
    for name in (
        "masks\\a.png",
        "./masks/a.png",
        f"{tmp_path.name}/masks/a.png",
        str(tmp_path / "masks" / "a.png"),
    ):
        manifest = hospital(tmp_path, {"side": [" Right", "L"], "drawn": [name, ""]}, table=table)
        assert manifest["side:edema"].tolist() == ["right", "left"]
        assert manifest["mask:picc"].tolist() == [str(tmp_path / "masks" / "a.png"), ""]
    write_rows(tmp_path, rows(side=["", ""], drawn=["", "../a.png"]))
    refused(write_card(tmp_path, table=table), tmp_path, "'drawn'", "leads out of root")


@pytest.mark.parametrize("pattern", ["/etc/*.csv", "no/such.csv", "images"])
def test_a_table_that_is_none_is_refused_by_its_path(tmp_path, pattern):
    refused(
        write_card(tmp_path, table={"path": pattern}),
        write_rows(tmp_path, rows()),
        "hospital",
        pattern,
    )
