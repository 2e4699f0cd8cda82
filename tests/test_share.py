"""A pack holds totals alone, and is refused if anything else is in it; packs make an atlas."""

import json
import zipfile
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import ROOT
from made_ladders import base, ladder

from cxrstudy import atlas, cli, share, study
from cxrstudy.results import load_records
from cxrstudy.scaling import analysis, verdicts

PLANTED = ("Quibblethorn", "01234567", "/mnt/radiology/Quibblethorn", "17.03.2011")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A finished study of a card whose names, notes and paths hold planted identifiers."""
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / PLANTED[0] / "runs"))
    own = {"institution": PLANTED[0], "data": f"{PLANTED[0]}-0a1b2c", "kind": "real"}
    own |= {"patients": PLANTED[1], "trained_on": PLANTED[0]}
    folders = [base({"findings": 0.6, "lines_tubes": 0.9}, **own)]
    folders += ladder("clip", {200: 1.0, 2000: 1.6}, seeds=2, jitter=0.02, **own)
    for folder in folders:
        record = json.loads((folder / "record.json").read_text())
        for row in record["metrics"]:
            few = 4 if row["label"] == "picc" else 300
            row |= {"n_patients": 300, "note": f"{few} positives, such as {PLANTED[1]}"}
            row["positives"] = (
                few if row["label"] != "macro" else 304 if row["task"] != "findings" else 600
            )
        record["subject"]["encoder"] = PLANTED[2] + "/cnn_mini"
        (folder / "record.json").write_text(json.dumps(record))
    tables, grid = analysis.analyse({"": load_records(folders)}, resamples=50)
    top = folders[0].parents[1]
    tables["laws"]["refused"] = PLANTED[3]
    analysis.write_analysis(top / "analyse" / "analyse-dddddd", tables, grid)
    runs = [{"name": folder.name, "stage": "classify"} for folder in folders]
    runs.append({"name": "analyse-dddddd", "stage": "analyse"})
    plan = {"preset": "mini", "variant": ""}
    plan["runs"] = [run | {"parameters": {}, "needs": []} for run in runs]
    (top / "plan.json").write_text(json.dumps(plan))
    return SimpleNamespace(top=top, folders=folders, plan=plan)


def everything(path) -> str:
    with zipfile.ZipFile(path) as packed:
        return "\n".join(
            [*packed.namelist(), *(packed.read(n).decode() for n in packed.namelist())]
        )


def test_nothing_of_one_image_or_patient_and_nothing_planted_is_in_a_pack(site, tmp_path) -> None:
    out = tmp_path / "a.zip"
    done = CliRunner().invoke(cli.main, ["share", "mini", "--out", str(out), "--site", "Site A"])
    assert done.exit_code == 0, done.output
    text = everything(out)
    scores = pd.read_parquet(site.folders[0] / "scores.parquet")
    for word in (*PLANTED, *scores["image_id"], *scores["patient_id"].unique(), str(tmp_path)):
        assert word not in text, word
    assert "cnn_mini" in text  # the encoder's own name stays
    packed = share.read_pack(out)
    assert packed.manifest["site"] == "Site A"
    assert packed.manifest["kind"] == ["real"]
    contrasts = packed.tables["contrasts"]
    whole = pd.read_parquet(site.top / "analyse" / "analyse-dddddd" / "contrasts.parquet")
    assert np.allclose(contrasts["effect"], whole["effect"], rtol=1e-5, equal_nan=True)
    assert np.allclose(contrasts["low"], whole["low"], rtol=1e-5, equal_nan=True)
    share.pack("mini", tmp_path / "again.zip", "Site A")
    assert (tmp_path / "again.zip").read_bytes() == out.read_bytes()


def test_small_cells_are_blank_and_cannot_be_computed_from_totals(site, tmp_path) -> None:
    tables = share.read_pack(share.pack("mini", tmp_path / "a.zip")).tables
    metrics = tables["metrics"]
    tubes = metrics[metrics["task"] == "lines_tubes"]
    hidden = tubes[tubes["label"] == "picc"]
    assert len(hidden)
    assert hidden[["value", "low", "high", "positives"]].isna().all(axis=None)
    total = tubes[tubes["label"] == "macro"]
    assert total["positives"].isna().all()  # 304 - 300 would be the hidden 4
    assert total["value"].notna().all()  # twice it less the other label's would be the hidden one
    other = tubes[tubes["label"] == "chest_tube"]
    assert other[["value", "positives"]].isna().all(axis=None)
    findings = metrics[metrics["task"] == "findings"]
    assert findings[["value", "positives"]].notna().all(axis=None)
    own = tables["contrasts"]
    assert own.loc[own["task"] == "lines_tubes", "positives"].isna().all()
    assert not own[own["task"] == "findings"].empty


def test_of_three_labels_the_small_one_and_the_next_are_blank_and_of_one_small_all() -> None:
    rows = pd.DataFrame(
        {
            "label": ["a", "b", "c", "macro", "other patient: a", "other patient: b"],
            "positives": [4, 40, 30, 74, 50, 60],
        }
    )
    rows = rows.assign(run="r", task="t", metric="f1", data="d", n=100, value=0.5)
    kept = share.suppress({"metrics": rows})[0]["metrics"].set_index("label")["value"].notna()
    assert list(kept[kept].index) == ["b", "macro", "other patient: a", "other patient: b"]
    one = rows[rows["label"].isin(["a", "macro"])].assign(n=1000)
    found, blank = share.suppress({"metrics": one, "laws": one[["task", "metric", "data"]]})
    assert (blank, len(found["laws"])) == (2, 0)
    assert found["metrics"]["value"].isna().all()


@pytest.mark.parametrize("column", share.COUNTS)
def test_a_task_whose_total_is_small_is_left_out(column) -> None:
    rows = pd.DataFrame({"run": ["r"], "task": ["t"], "metric": ["auroc"], "label": ["macro"]})
    rows = rows.assign(data="d", n=100, n_patients=50, positives=40, value=0.9, low=0.8, high=1.0)
    values = rows.assign(arm="clip", **{column: 9})
    laws = rows[["task", "metric", "data"]].assign(exponent=0.1)
    found, _ = share.suppress({"metrics": rows, "values": values, "laws": laws})
    assert not len(found["values"]) and not len(found["laws"])
    assert len(share.suppress({"metrics": rows, "values": rows, "laws": laws})[0]["laws"]) == 1


def test_what_is_not_finished_or_not_there_is_not_packed(site, tmp_path) -> None:
    with pytest.raises(study.StudyError, match="cxrstudy run --preset elsewhere"):
        share.pack("elsewhere", tmp_path / "x.zip")
    site.plan["runs"].append(
        {"name": "clip-n9", "stage": "classify", "parameters": {}, "needs": []}
    )
    (site.top / "plan.json").write_text(json.dumps(site.plan))
    with pytest.raises(study.StudyError, match=r"not finished, 1 runs lack \(clip-n9"):
        share.pack("mini", tmp_path / "x.zip")
    with pytest.raises(study.StudyError, match="--site"):
        share.pack("mini", tmp_path / "x.zip", "../up")
    assert not (tmp_path / "x.zip").exists()


def repacked(path, out, change) -> str:
    """Write a changed copy of a pack."""
    with zipfile.ZipFile(path) as packed:
        files = {name: packed.read(name) for name in packed.namelist()}
    change(files)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return str(out)


def with_manifest(**facts):
    def change(files) -> None:
        files["manifest.json"] = json.dumps(json.loads(files["manifest.json"]) | facts).encode()

    return change


def with_text(old: bytes, new: bytes):
    def change(files) -> None:
        changed = files["contrasts.csv"].replace(old, new)
        assert changed != files["contrasts.csv"]
        files["contrasts.csv"] = changed
        manifest = json.loads(files["manifest.json"])
        manifest["tables"]["contrasts"]["sha256"] = share._hash(changed)
        files["manifest.json"] = json.dumps(manifest).encode()

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (with_manifest(schema=2), "schema 2"),
        (with_manifest(site="<b>x</b>"), "no name of a site"),
        (lambda files: files.pop("bands.csv"), "not those that its manifest"),
        (lambda files: files.update({"values.csv": files["values.csv"] + b"1\n"}), "was changed"),
        (with_text(b"task,metric", b"patient,metric"), "other columns"),
        (with_text(b"clip-cnn", b"<script>alert(1)</script>"), "which no pack has"),
        (with_text(b"clip-cnn", b"<img src=x onerror=alert(1)>"), "which no pack has"),
        (with_text(b"clip-cnn", b"=1+1"), "which no pack has"),
        (with_text(b"clip-cnn", b"/home/someone"), "which no pack has"),
        (lambda files: files.update({"values.csv": b"0" * 20_000_001}), "more than 20,000,000"),
        (lambda files: files.update({"scores.csv": b"image_id\n"}), "11 files .* is no pack"),
        (lambda files: files.pop("manifest.json"), "no pack"),
    ],
)
def test_a_pack_that_is_not_as_it_should_be_is_refused(site, tmp_path, change, why) -> None:
    path = share.pack("mini", tmp_path / "a.zip")
    with pytest.raises(study.StudyError, match=why):
        share.read_pack(repacked(path, tmp_path / "b.zip", change))


def test_what_is_no_archive_is_refused(tmp_path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\3\4 not an archive")
    with pytest.raises(study.StudyError, match="no pack of cxrstudy share"):
        share.read_pack(tmp_path / "a.zip")
    with pytest.raises(study.StudyError, match="no pack"):
        share.read_pack(tmp_path / "absent.zip")


# ---- the atlas ---------------------------------------------------------------------------------
@pytest.fixture
def clone(tmp_path, monkeypatch):
    monkeypatch.setattr(atlas, "folder", lambda: tmp_path / "atlas")
    names = ("study-gpu", "study-cpu")
    return [str(share.pack(n, tmp_path / f"{n}.zip", f"Site {n[-3:]}")) for n in names]


def test_two_packs_make_an_atlas_whose_means_lie_between_them(clone) -> None:
    done = CliRunner().invoke(cli.main, ["atlas", *clone])
    assert done.exit_code == 0, done.output
    sites, tables = atlas.read_atlas()
    assert [site["site"] for site in sites] == ["Site gpu", "Site cpu"]
    assert "2 sites are few" in atlas.introduction(sites)
    pooled = tables["pooled"]
    assert len(pooled) > 20 and (pooled["sites"] == 2).all()
    assert (pooled["effect"].between(pooled["least"], pooled["most"])).all()
    assert (pooled["low"] < pooled["least"]).all() and (pooled["most"] < pooled["high"]).all()
    gains = pooled[(pooled["kind"] == verdicts.GAIN) & (pooled["size"] == atlas.LARGEST)]
    one = tables["contrasts"].merge(gains[["task", "metric", "start", "one", "other"]])
    assert {"Site gpu", "Site cpu"} == set(one["site"])
    shown = atlas.summary(pooled)
    assert shown["mean [95%]"].str.match(r"[+-]\d\.\d{3,4} \[").all()


def test_one_study_does_not_count_twice(clone, tmp_path) -> None:
    with pytest.raises(study.StudyError, match="two sites at least"):
        atlas.write_atlas(clone[:1])
    again = share.pack("study-gpu", tmp_path / "again.zip", "Another")
    with pytest.raises(study.StudyError, match="are one study"):
        atlas.write_atlas([clone[0], again])
    same = share.pack("study-cpu", tmp_path / "same.zip", "Site gpu")
    with pytest.raises(study.StudyError, match="two packs are called"):
        atlas.write_atlas([clone[0], same])


def run_page(monkeypatch) -> str:
    """Run the cells of the page here, and return what they show."""
    shown: list[str] = []
    names: dict = {}
    monkeypatch.setattr(
        "IPython.display.display",
        lambda what: shown.append(getattr(what, "data", None) or what.markup),
    )
    for cell in nbformat.read(ROOT / "book" / "atlas.ipynb", 4).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    return "\n".join(shown)


def test_the_page_shows_sites_side_by_side_or_one_sentence(clone, monkeypatch) -> None:
    assert run_page(monkeypatch) == "*No packs of sites have been joined here.*"
    atlas.write_atlas(clone)
    shown = run_page(monkeypatch)
    assert shown.count("<img") + shown.count("<svg") >= 2
    assert "Site gpu: gain over the base model" in shown
    assert "gain over base model: clip - clip-hybrid" in shown
