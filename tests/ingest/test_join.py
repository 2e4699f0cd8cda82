"""Test that tables find their key by its values, and tell what they matched."""

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy.ingest.columnkinds import kind_of_column, label_of
from cxrstudy.ingest.headers import COLUMNS
from cxrstudy.ingest.join import join
from cxrstudy.ingest.walk import walk
from cxrstudy.study import StudyError

REAL = Path(__file__).parents[3] / "shared/data"
N = 40  # images, two a study, four a patient
REPORTS = [
    f"The heart is normal in size. There is a small effusion, number {k} of this series."
    for k in range(N // 2)
]


def archive(n: int = N, accession="A{:06d}", **columns) -> pd.DataFrame:
    """Rows of a walk, two images a study and four a patient."""
    frame = pd.DataFrame({"path": [f"/in/{k // 100}/IM{k:06d}" for k in range(n)]})
    for name in COLUMNS:
        frame[name] = ""
    frame["SOPInstanceUID"] = [f"1.2.840.99.{k}.1" for k in range(n)]
    frame["StudyInstanceUID"] = [f"1.2.840.77.{k // 2}" for k in range(n)]
    frame["AccessionNumber"] = [accession.format(k // 2) for k in range(n)]
    frame["PatientID"] = [f"P{k // 4:05d}" for k in range(n)]
    return frame.assign(**columns)


def table(**columns) -> pd.DataFrame:
    """A row a study: by accession number, with a report."""
    frame = pd.DataFrame({"Anforderung": [f"A{k:06d}" for k in range(N // 2)]})
    frame["Befund"] = REPORTS
    return frame.assign(**columns)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le", "cp850"]
)
def test_separators_encodings_and_line_ends(tmp_path, separator, encoding):
    end = "\n" if separator in ",|" else "\r\n"
    reports = [f"Größe normal; kein Erguß, Nr. {k}.\nZeile" for k in range(N // 2)]
    text = table(Befund=reports).to_csv(sep=separator, index=False, lineterminator=end)
    (tmp_path / "t.dat").write_bytes(text.encode(encoding))
    frame, [match] = join(archive(), [tmp_path / "t.dat"])
    assert (match.level, match.column, match.rows_matched) == ("accession", "Anforderung", N // 2)
    assert match.images_matched == N
    assert frame["Befund"].tolist() == [reports[k // 2] for k in range(N)]


@pytest.mark.parametrize("form", ["parquet", "jsonl", "json", "gz", "sep", "glob"])
def test_forms_of_tables(tmp_path, form):
    t, path = table(), tmp_path / f"t.{form}"
    if form == "parquet":
        t.to_parquet(path)
    elif form == "jsonl":
        t.to_json(path, orient="records", lines=True)
    elif form == "json":
        path.write_text(json.dumps(t.to_dict("records")))
    elif form == "gz":
        path.write_bytes(gzip.compress(t.to_csv(index=False, sep=";").encode()))
    elif form == "sep":
        path.write_text("sep=|\n" + t.to_csv(index=False, sep="|"))
    else:
        t[:5].to_csv(tmp_path / "a.csv", index=False)
        t[5:].to_csv(tmp_path / "b.csv", index=False)
        path = tmp_path / "*.csv"
    frame, [match] = join(archive(), [path])
    assert (match.level, match.images_matched) == ("accession", N)
    assert frame["Befund"].tolist() == [REPORTS[k // 2] for k in range(N)]


def test_a_workbook_is_refused_with_the_remedy(tmp_path):
    import zipfile

    for name in ("t.xlsx", "t.csv"):
        with zipfile.ZipFile(tmp_path / name, "w") as book:
            book.writestr("[Content_Types].xml", "<x/>")
        with pytest.raises(StudyError, match=r"workbook.*save it as CSV.*--table"):
            join(archive(), [tmp_path / name])


@pytest.mark.parametrize(
    ("key", "level", "name"),
    [
        (lambda k: f"1.2.840.99.{k}.1", "image", "SOPInstanceUID"),
        (lambda k: f"IM{k:06d}.dcm", "image", "name of the file"),
        (lambda k: f"D:\\export\\0\\im{k:06d}.PNG", "image", "name of the file"),
    ],
)
def test_keys_of_an_image(tmp_path, key, level, name):
    t = pd.DataFrame({"x": [key(k) for k in range(N)], "age": [k % 9 for k in range(N)]})
    t.sample(frac=1, random_state=1).to_csv(tmp_path / "t.csv", index=False)
    frame, [match] = join(archive(), [tmp_path / "t.csv"])
    assert (match.level, match.key, match.column) == (level, name, "x")
    assert frame["age"].tolist() == [str(k % 9) for k in range(N)]


def test_a_path_as_long_as_needed(tmp_path):
    paths = [f"/data/chexpert/train/patient{k // 4}/study{k % 2}/view{k % 4}.jpg" for k in range(N)]
    t = pd.DataFrame({"Path": [p.replace("/data/chexpert", "CheXpert-small") for p in paths]})
    t["n"] = range(N)
    t.to_csv(tmp_path / "t.csv", index=False)
    frame, [match] = join(archive(path=paths), [tmp_path / "t.csv"])
    assert match.key == "last 3 parts of the path"
    assert frame["n"].astype(int).tolist() == list(range(N))


@pytest.mark.parametrize(
    ("of_archive", "of_table"),
    [
        ("{:06d}", "{}"),  # leading zeros lost by a spreadsheet
        ("{}", "{}.0"),  # integers with gaps
        ("ACC{}", " acc{} "),
        ("2024.{:05d}", "2024{:05d}"),
        ("RX-{:04d}", "rx{:04d}"),
        ("{:06d}", '="{:06d}"'),
    ],
)
def test_a_key_in_another_spelling(tmp_path, of_archive, of_table):
    t = table(Anforderung=[of_table.format(k + 100) for k in range(N // 2)])
    t.to_csv(tmp_path / "t.csv", index=False)
    numbers = [of_archive.format(k // 2 + 100) for k in range(N)]
    frame, [match] = join(archive(AccessionNumber=numbers), [tmp_path / "t.csv"])
    assert (match.level, match.images_matched, match.ambiguous) == ("accession", N, 0)
    assert frame["Befund"].tolist() == [REPORTS[k // 2] for k in range(N)]
    assert match.normalised in (0, N // 2)


def test_ids_that_normalise_alike_are_not_joined(tmp_path):
    numbers = [f"{k // 2 + 100}" for k in range(N)]
    numbers[:2] = ["0101", "0101"]  # beside 101, another study
    t = table(Anforderung=[str(k + 100) for k in range(N // 2)])
    t.to_csv(tmp_path / "t.csv", index=False)
    frame, [match] = join(archive(AccessionNumber=numbers), [tmp_path / "t.csv"])
    assert match.ambiguous == 1
    assert frame["Befund"].isna().sum() == 4  # both studies that may be 101
    kept = t.assign(Anforderung=t["Anforderung"].replace("100", "0101"))
    kept.to_csv(tmp_path / "t.csv", index=False)  # this table has leading zeros
    frame, [match] = join(archive(AccessionNumber=numbers), [tmp_path / "t.csv"])
    assert match.ambiguous == 0
    assert frame["Befund"].tolist() == [REPORTS[k // 2] for k in range(N)]


def test_rates_are_told_in_both_directions(tmp_path):
    more = pd.DataFrame({"Anforderung": [f"B{k:06d}" for k in range(60)], "Befund": "x " * 20})
    pd.concat([table()[:15], more]).to_csv(tmp_path / "t.csv", index=False)
    _, [match] = join(archive(), [tmp_path / "t.csv"])
    assert (match.rows, match.rows_matched) == (75, 15)
    assert (match.images, match.images_matched) == (N, 30)
    assert "15 of 75 rows match (20%), 30 of 40 images have a row (75%)" in str(match)


def test_several_rows_of_one_key(tmp_path):
    t = pd.concat([table(sex="F", n=1), table(sex="F", n=range(N // 2))[:5]])
    t.iloc[-1, t.columns.get_loc("n")] = 1  # as its twin
    t.to_csv(tmp_path / "t.csv", index=False)
    frame, [match] = join(archive(), [tmp_path / "t.csv"])
    assert match.repeated == 5
    assert match.differing == {"n": 3}  # 0, 2, 3; 1 and the last are alike
    assert frame["sex"].eq("F").all()
    assert frame["n"].isna().sum() == 6
    assert "5 ids have several rows; 3 of them differ in 'n', left empty" in str(match)


def test_the_name_of_a_column_decides_only_between_fits(tmp_path):
    numbers = [str(k // 2) for k in range(N)]
    t = table(Anforderung=[str(k) for k in range(N // 2)])
    t.insert(0, "row", [str(k) for k in range(N // 2)][::-1])
    t.to_csv(tmp_path / "t.csv", index=False)
    frame, [match] = join(archive(AccessionNumber=numbers), [tmp_path / "t.csv"])
    assert match.column == "Anforderung"  # it means a request
    assert frame["Befund"].tolist() == [REPORTS[k // 2] for k in range(N)]
    t.rename(columns={"Anforderung": "b"}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(StudyError, match=r"'row' and 'b' both fit|'b' and 'row' both fit"):
        join(archive(AccessionNumber=numbers), [tmp_path / "t.csv"])


def test_ages_are_no_accession_numbers(tmp_path):
    numbers = [str(k // 2) for k in range(400)]
    t = pd.DataFrame({"age": np.arange(3000) % 90, "text": "x"})
    t.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(StudyError, match=r"no column holds ids.*\('?t|columns 'age', 'text'"):
        join(archive(400, AccessionNumber=numbers), [tmp_path / "t.csv"])


def test_a_table_joins_on_ids_of_another(tmp_path):
    pictures = archive(SOPInstanceUID="", StudyInstanceUID="", AccessionNumber="", PatientID="")
    images = pd.DataFrame({"file": [f"IM{k:06d}" for k in range(N)]})
    images["exam"] = [f"E{k // 2:04d}" for k in range(N)]
    images.to_csv(tmp_path / "images.csv", index=False)
    table(Anforderung=[f"E{k:04d}" for k in range(N // 2)]).to_csv(tmp_path / "t.csv", index=False)
    frame, matches = join(pictures, [tmp_path / "t.csv", tmp_path / "images.csv"])
    assert [match.key for match in matches] == ["name of the file", "exam of a table"]
    assert frame["Befund"].tolist() == [REPORTS[k // 2] for k in range(N)]


def test_a_suffix_tells_an_image_from_its_mask(tmp_path):
    paths = [f"/in/images/{k}.jpg" for k in range(N // 2)]
    paths += [f"/in/masks/{k}.png" for k in range(N // 2)]
    t = pd.DataFrame({"file": [f"{k}.jpg" for k in range(N // 2)], "n": range(N // 2)})
    t.to_csv(tmp_path / "t.csv", index=False)
    frame, [match] = join(archive(path=paths), [tmp_path / "t.csv"])
    assert (match.images_matched, match.ambiguous) == (N // 2, 0)
    assert frame["n"][: N // 2].astype(int).tolist() == list(range(N // 2))
    t.assign(file=t.index).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(StudyError, match=r"'file' fit several image ids .*name of the file"):
        join(archive(path=paths), [tmp_path / "t.csv"])


def test_folders_are_studies_where_no_tag_says_it(tmp_path):
    bare = dict.fromkeys(("SOPInstanceUID", "StudyInstanceUID", "AccessionNumber", "PatientID"), "")
    paths = [f"/in/p{k // 4}/s{5000 + k // 2}/{k % 2}.jpg" for k in range(N)]
    table(Anforderung=[f"s{5000 + k}" for k in range(N // 2)]).to_csv(
        tmp_path / "t.csv", index=False
    )
    frame, [match] = join(archive(path=paths, **bare), [tmp_path / "t.csv"])
    assert (match.level, match.key) == ("study", "folder")
    assert frame["Befund"].tolist() == [REPORTS[k // 2] for k in range(N)]
    assert frame["Anforderung"].tolist() == [f"s{5000 + k // 2}" for k in range(N)]


@pytest.mark.parametrize("name", ["{}", "report_{}", "{} final"])
def test_a_folder_of_reports(tmp_path, name):
    for k, text in enumerate(REPORTS):
        file = tmp_path / "reports" / str(k % 3) / f"{name.format(1000 + k)}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.replace("effusion", "Ergüsse").encode(("cp1252", "utf-8")[k % 2]))
    (tmp_path / "reports" / "logo").write_bytes(b"\x89PNG\r\n\x1a\n0000")
    numbers = [str(1000 + k // 2) for k in range(N)]
    frame, [match] = join(archive(AccessionNumber=numbers), [tmp_path / "reports"])
    assert (match.level, match.images_matched) == ("accession", N)
    assert match.unread == {"a PNG picture": 1}
    assert frame["report"][2] == REPORTS[1].replace("effusion", "Ergüsse")
    assert [column.kind for column in match.columns] == ["report"]


def test_columns_keep_their_names_unless_they_are_taken(tmp_path):
    table(path="x", Modality="CR").to_csv(tmp_path / "t.csv", index=False)
    table(path="y").to_csv(tmp_path / "u.csv", index=False)
    frame, _ = join(archive(), [tmp_path / "t.csv", tmp_path / "u.csv"])
    assert frame["path"][0] == "/in/0/IM000000"
    assert frame["path (table)"].eq("x").all()
    assert frame["path (table)'"].eq("y").all()
    assert frame.columns.is_unique


def test_messages_hold_no_id(tmp_path):
    t = table()
    t.to_csv(tmp_path / "t.csv", index=False, header=False)
    with pytest.raises(StudyError, match="first line holds an id") as error:
        join(archive(), [tmp_path / "t.csv"])
    assert "A0000" not in str(error.value)
    with pytest.raises(StudyError, match="no column holds") as error:
        join(archive(AccessionNumber=""), [tmp_path / "t.csv"])
    assert "A0000" not in str(error.value)
    with pytest.raises(StudyError, match="no such file"):
        join(archive(), [tmp_path / "absent.csv"])


@settings(max_examples=50, deadline=None, database=None)
@given(st.integers(0, 10**6), st.integers(5, 60))
def test_a_join_never_gives_a_row_to_another_study(seed, n):
    """Whatever zeros are lost and rows are missing: a study has its own report or none."""
    draw = random.Random(seed)
    numbers = [
        draw.choice(("", "0", "00")) + str(number) for number in draw.sample(range(1, 3 * n), n)
    ]
    numbers += ["0" + number for number in draw.sample(numbers, n // 5)]
    numbers = list(dict.fromkeys(numbers))
    lost = draw.random() < 0.5
    written = {number: number.lstrip("0") if lost else number for number in numbers}
    rows = [number for number in numbers if draw.random() < 0.9]
    t = pd.DataFrame({"accession": [written[number] for number in rows]})
    t["own"] = [f"{number} of this" for number in rows]
    draw_path = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") / f"join{seed}.csv"
    try:
        t.to_csv(draw_path, index=False)
        images = archive(len(numbers), AccessionNumber=numbers)
        frame, _ = join(images, [draw_path])
    finally:
        draw_path.unlink(missing_ok=True)
    for number, own in zip(frame["AccessionNumber"], frame["own"], strict=True):
        assert pd.isna(own) or own == f"{number} of this"


@pytest.mark.parametrize(
    ("name", "cells", "kind", "more"),
    [
        ("Alter", ["61", "7", "080"], "age", {}),
        ("PatientAge", ["061Y", "007M", "080Y"], "age", {}),
        ("Geschlecht", ["m", "w", "w"], "sex", {}),
        ("Projektion", ["ap", "p.a.", "lateral"], "view", {}),
        ("Cardiomegaly", ["1.0", "0.0", "-1.0"], "label", {"1.0": 1, "0.0": 0, "-1.0": None}),
        (
            "Pleuraerguss",
            ["ja", "nein", "fraglich"],
            "label",
            {"ja": 1, "nein": 0, "fraglich": None},
        ),
        ("Épanchement pleural", ["oui", "non"], "label", {"oui": 1, "non": 0}),
        ("score", ["3", "4", "7"], "", {}),
        ("Untersuchung", ["2021-03-04", "2020-12-31", "2019-01-01"], "date", {}),
        ("geboren", ["04.03.1951", "31.12.1948"], "birth", {}),
        ("Befund", ["Herz normal gross, kein Erguss.", "Kein Pneumothorax links."], "report", {}),
        ("x", ["Cardiomegaly|Effusion", "Effusion", "No Finding"], "list", None),
        ("key", ["A1", "A2", "A3"], "id", {}),
    ],
)
def test_what_a_column_holds(name, cells, kind, more):
    column = pd.Series(cells * (1 if kind in ("id", "date", "birth", "report") else 30))
    found = kind_of_column(column, "t", name, name)
    assert found.kind == kind, found.evidence
    if more is not None:
        assert found.values == more
    else:
        assert found.values == {"Cardiomegaly": "cardiomegaly", "Effusion": "pleural_effusion"}
        assert found.separator == "|"


def test_names_of_labels():
    names = {
        "Pleural Effusion": "pleural_effusion",
        "pleural_effusion": "pleural_effusion",
        "Herzvergrößerung": "cardiomegaly",
        "ETT": "endotracheal_tube",
        "Pneumothorax links": "pneumothorax",
        "derrame pleural": "pleural_effusion",
        "No Finding": "",
        "Effusion or Edema": "",
        "Infiltration": "",  # of ChestX-ray14: no consolidation
        "score": "",
    }
    assert {name: label_of(name) for name in names} == names


@pytest.mark.skipif(not REAL.is_dir(), reason=f"real files are not part of the project: no {REAL}")
def test_real_tables(tmp_path):
    for folder, csv, column in (
        ("openi_images", "nlmcxr_dicom_metadata.csv.gz", "imageid"),
        ("nih_64px", None, None),
    ):
        root = REAL / folder
        walked = walk([root], tmp_path / folder)
        kept = walked[walked["drop_reason"] == ""]
        paths = [root / csv] if csv else sorted(root.glob("*.csv"))[:1]
        frame, [match] = join(kept, paths)
        assert match.level == "image"
        assert column in (None, match.column)
        assert match.images_matched > len(kept) / 3
        assert len(frame) == len(kept)
