"""An export as an archive gives it: each file is what the table of truth says, and none is easy."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from click.testing import CliRunner

from cxrstudy import cli
from cxrstudy.data import dicom, synthetic
from cxrstudy.data.ids import normal_id
from cxrstudy.data.pacs import export_as_pacs
from cxrstudy.data.pacsfiles import EXTRAS
from cxrstudy.data.pacspeople import LANGUAGES, person_of
from cxrstudy.data.vocabulary import LABELS

N, SIZE = 66, 64


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return export_as_pacs(tmp_path_factory.mktemp("pacs") / "export", n=N, size=SIZE)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pacs") / "export"
    call = ["export-synthetic", "--as-pacs", "--plant", "--n", str(N), "--size", str(SIZE)]
    done = CliRunner().invoke(cli.main, [*call, "--bits", "12", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert f"cxrstudy ingest {out}/archive --name NAME --table {out}/tables/" in done.output
    return out


def truth(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "truth" / "files.csv", keep_default_na=False, dtype=str)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def header(path: Path) -> pydicom.Dataset:
    return pydicom.dcmread(path, force=True, stop_before_pixels=True)


def test_every_file_is_in_the_truth_and_every_kind_of_file_is_there(plain) -> None:
    rows = truth(plain)
    assert sorted(rows["path"]) == sorted(files(plain / "archive"))
    assert (rows["kind"] == "chest").sum() == N
    kinds = set(EXTRAS) - {"", "twin", "disc", "no_patient_id"}
    assert set(rows["kind"]) == kinds | {"chest", "for_processing", "foreign", "dicomdir"}
    assert set(rows["syntax"]) - {""} == {
        *("explicit", "implicit", "rle", "jpeg_ls", "jpeg_2000", "deflated", "bare")
    }
    assert set(rows.loc[rows["kind"] == "chest", "view"]) == {"PA", "AP", "LATERAL"}
    assert (rows["no_patient_id"] == "True").any()
    suffixes = {Path(name).suffix for name in rows["path"]}
    assert {"", ".dcm", ".ima"} <= suffixes
    assert not list((plain / "truth").glob("planted*"))


def test_pixels_of_every_transfer_syntax_are_those_drawn(plain) -> None:
    rows = truth(plain)
    chest = rows[rows["kind"] == "chest"]
    drawn = synthetic.sample(range(N), size=SIZE)
    image = {study: [] for study in drawn.study_id}
    for k, study in enumerate(drawn.study_id):
        image[study].append(drawn.image[k, 0].numpy())
    for path, study in zip(chest["path"], chest["study_id"], strict=True):
        read = dicom.read_dicom(plain / "archive" / path)
        assert min(np.abs(read - one).max() for one in image[study]) <= 0.51 / 4095


def test_headers_say_who_it_is_in_their_own_letters_and_the_view_where_truth_says(plain) -> None:
    rows, seen, languages = truth(plain), set(), set()
    for row in rows[rows["kind"] == "chest"].itertuples():
        ds, who = header(plain / "archive" / row.path), person_of(row.patient_id, 0)
        languages.add(who.language)
        assert str(ds.PatientName) == who.name
        assert ds.PatientID == ("" if row.no_patient_id == "True" else who.mrn)
        assert ds.AccessionNumber == row.accession
        assert ds.StudyDescription in LANGUAGES[who.language]["study"].split(" | ")
        tag = {"PA": "PA", "AP": "AP", "LL": "LATERAL"}.get(ds.ViewPosition, "")
        described = ds.SeriesDescription in LANGUAGES[who.language][row.view].split(" | ")
        assert described == (row.view_cue in ("tag", "series", "wrong"))
        assert (tag == row.view) == (row.view_cue == "tag")
        assert bool(tag) == (row.view_cue in ("tag", "wrong"))
        assert ("ViewCodeSequence" in ds) == (row.view_cue == "code")
        assert ("ProtocolName" in ds) == (row.view_cue == "protocol")
        seen.add((row.view_cue, ds.Modality))
    assert len(languages) > 8
    assert {cue for cue, _ in seen} >= {"tag", "series", "wrong", "none", "nonsense"}
    assert {modality for _, modality in seen} == {"DX", "CR"}


def test_what_lies_beside_is_what_it_is_called(plain) -> None:
    rows, archive = truth(plain), plain / "archive"
    by_kind = rows.groupby("kind")["path"].agg(list)
    for kind, modality in {"sr": "SR", "pr": "PR", "sc": "OT", "pdf": "DOC"}.items():
        assert {header(archive / path).Modality for path in by_kind[kind]} == {modality}
    for path in by_kind["pdf"]:
        assert pydicom.dcmread(archive / path).EncapsulatedDocument.startswith(b"%PDF")
    assert all(not (archive / path).stat().st_size for path in by_kind["empty"])
    for kind in ("truncated", "cut_header"):
        for path in by_kind[kind]:
            with pytest.raises(dicom.UnreadableImage):
                dicom.read_dicom(archive / path)
    assert header(archive / by_kind["truncated"][0]).Rows == SIZE  # its header alone looks well
    twins = rows[rows["kind"].isin(["for_processing", "copy", "other_patient"])]
    for row in twins.itertuples():
        one, other = (header(archive / path) for path in (row.path, row.same_as))
        assert one.StudyInstanceUID == other.StudyInstanceUID
        assert (one.SOPInstanceUID == other.SOPInstanceUID) == (row.kind == "copy")
        assert (one.PatientID == other.PatientID) == (row.kind != "other_patient")
        same = np.array_equal(*(dicom.read_dicom(archive / p) for p in (row.path, row.same_as)))
        assert same == (row.kind != "for_processing")
    disc = pydicom.fileset.FileSet(pydicom.dcmread(archive / by_kind["dicomdir"][0]))
    on_disc = rows[rows["path"].str.startswith("CD0001/") & (rows["kind"] == "chest")]
    assert len(disc) == len(on_disc) > 0


def read_table(out: Path, name: str, **how) -> pd.DataFrame:
    return pd.read_csv(out / "tables" / name, dtype=str, keep_default_na=False, **how)


def test_tables_match_by_normal_numbers_only_and_lack_what_the_truth_says(plain) -> None:
    studies = pd.read_csv(plain / "truth" / "studies.csv", dtype={"accession": str})
    tables = {
        "reports": read_table(plain, "reports.csv", sep=";", encoding="cp1252"),
        "labels": read_table(plain, "labels.txt", sep="\t", encoding="utf-16"),
        "demographics": read_table(plain, "demographics.csv"),
    }
    assert (plain / "tables" / "demographics.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    tables["demographics"].columns = tables["demographics"].columns.str.lstrip("\ufeff")
    for name, table in tables.items():
        key = table.iloc[:, 0]
        known = dict(zip(studies["accession"].map(normal_id), studies.index, strict=True))
        assert len(known) == len(studies)
        found = key.map(normal_id).map(known)
        counts = found.value_counts().reindex(studies.index, fill_value=0)
        assert list(counts) == list(studies[f"{name}_rows"])
        assert (counts == 0).any() and (counts > 1).any() and found.isna().any()
        assert found.dropna().size > key.isin(studies["accession"]).sum() or name != "reports"
        near = [text for text in key[found.isna()] if text.endswith("A")]
        assert normal_id(near[0][:-1]) in known  # would match if its last letter were dropped
    reports = tables["reports"]
    assert reports["Report"].str.contains("\r\nIMPRESSION:").any()
    assert not reports["Report"].str.contains("MRN|phone").any()
    assert len(tables["labels"].columns) == 1 + len(LABELS)


def test_planted_identifiers_are_where_the_list_says(planted) -> None:
    listed = json.loads((planted / "truth" / "planted.json").read_text())
    rows = truth(planted)
    assert {row["kind"] for row in listed} == {"name", "mrn", "accession", "date", "phone"}
    tags, private, pixels = [], [], []
    for row in rows[
        ~rows["kind"].isin(["foreign", "empty", "dicomdir", "cut_header"])
    ].itertuples():
        ds = header(planted / "archive" / row.path)
        tags += [str(each.value) for each in ds if not each.tag.is_private]
        private += [str(each.value) for each in ds if each.tag.is_private]
        pixels += [row.mrn] * (row.burned_in == "True")
    places = {
        "tags": "\n".join(tags),
        "private tags": "\n".join(private),
        "file and folder names": "\n".join(rows["path"]),
        "reports": (planted / "tables" / "reports.csv").read_text("cp1252"),
        "tables": (planted / "tables" / "demographics.csv").read_text("utf-8-sig"),
    }
    assert {where for row in listed for where in row["where"]} == {*places, "pixels"}
    absent = {
        (row["value"], where)
        for row in listed
        for where in set(row["where"]) - {"pixels"}
        if row["kind"] != "date" and row["value"] not in places[where]
    }
    assert absent <= {(mrn, "tags") for mrn in rows.loc[rows["no_patient_id"] == "True", "mrn"]}
    dates = [row for row in listed if row["kind"] == "date" and len(row["value"]) == 8]
    assert all(row["value"] in places["tags"] for row in dates if "tags" in row["where"])
    for mrn in set(pixels):
        assert "pixels" in next(row["where"] for row in listed if row["value"] == mrn)


def test_burned_in_text_changes_the_pixels_it_is_on_alone(plain, planted) -> None:
    first, second = (truth(out).query("kind == 'chest'") for out in (plain, planted))
    keys = ["study_id", "view", "view_cue"]
    pairs = first.merge(second, on=keys, suffixes=("", "_planted")).drop_duplicates(keys)
    burned = pairs["burned_in_planted"] == "True"
    assert 5 < burned.sum() < len(pairs) / 2
    said = []
    for row in pairs[burned].itertuples():
        one = dicom.read_dicom(plain / "archive" / row.path)
        two = dicom.read_dicom(planted / "archive" / row.path_planted)
        if (changed := one != two).mean() < 0.25:  # views of one study may be paired crosswise
            assert changed.any() and (two[changed] == 1).all()
        said.append(header(planted / "archive" / row.path_planted).get("BurnedInAnnotation"))
    assert {None, "YES"} == set(said)


def test_an_export_is_the_same_each_time_and_another_seed_has_other_patients(tmp_path) -> None:
    made = [
        export_as_pacs(tmp_path / str(k), n=30, size=32, seed=seed, plant=True)
        for k, seed in enumerate((3, 3, 4))
    ]
    first, second, third = (files(out) for out in made)
    assert first == second
    mrn = [set(truth(out)["mrn"]) - {""} for out in (made[0], made[2])]
    assert not mrn[0] & mrn[1]
    assert b"ADDENDUM" in third["tables/reports.csv"]
    whole = BytesIO(first["truth/export.json"])
    assert json.load(whole)["seed"] == 3


def test_planting_needs_the_tree(tmp_path) -> None:
    call = ["export-synthetic", "--plant", "--out", str(tmp_path / "x")]
    done = CliRunner().invoke(cli.main, call)
    assert done.exit_code == 2
    assert "--as-pacs" in done.output
