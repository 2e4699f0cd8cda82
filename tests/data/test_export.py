"""An export is read back by the ordinary path of real data, and holds what was drawn."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pydicom
import pytest
from click.testing import CliRunner
from PIL import Image

from cxrstudy import cli, study
from cxrstudy.data import dicom, synthetic
from cxrstudy.data.cards import load_manifest
from cxrstudy.data.columns import parse_age, parse_view
from cxrstudy.data.export import export_synthetic
from cxrstudy.data.sets import prepare_data
from cxrstudy.data.vocabulary import DEVICES, LABELS

N, SIZE, START = 70, 96, 3_499_900


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "hospital"
    call = [
        "export-synthetic",
        "--n",
        str(N),
        "--size",
        str(SIZE),
        "--start",
        str(START),
        "--out",
        str(out),
    ]
    done = CliRunner().invoke(cli.main, call)
    assert done.exit_code == 0, done.output
    assert f"{N} x-rays" in done.output
    return out


@pytest.fixture(scope="module")
def drawn():
    return synthetic.sample(range(START, START + N), size=SIZE)


def test_pixels_and_tags_come_back_as_drawn(folder, drawn) -> None:
    files = sorted((folder / "images").iterdir())
    assert len(files) == N
    kinds = set()
    for k, file in enumerate(files):
        ds = pydicom.dcmread(file)
        kinds.add(ds.PhotometricInterpretation)
        assert (ds.BitsAllocated, ds.BitsStored, ds.Modality) == (16, 16, "DX")
        assert ds.PhotometricInterpretation == (
            "MONOCHROME1" if "mobile" in drawn.scanner[k] else "MONOCHROME2"
        )
        assert np.abs(dicom.read_dicom(file) - drawn.image[k, 0].numpy()).max() <= 0.51 / 65535
        assert (ds.PatientID, ds.PatientSex) == (drawn.patient_id[k], drawn.sex[k])
        assert parse_view(ds.ViewPosition) == drawn.view[k]
        assert parse_age(ds.PatientAge) == int(drawn.age[k])
        assert ds.ImagerPixelSpacing == pytest.approx([drawn.pixel_spacing[k]] * 2, abs=1e-4)
    assert kinds == {"MONOCHROME1", "MONOCHROME2"}
    uids = [pydicom.dcmread(f, stop_before_pixels=True).StudyInstanceUID for f in files]
    studies = pd.DataFrame({"uid": uids, "exam": drawn.study_id})
    assert (studies.groupby("uid")["exam"].nunique() == 1).all()
    assert studies["uid"].nunique() == len(set(drawn.study_id))


def test_tables_reports_and_masks_hold_what_is_known(folder, drawn) -> None:
    truth = pd.read_csv(folder / "truth.csv")
    assert np.array_equal(truth[list(LABELS)].to_numpy(), drawn.labels)
    for k, name in enumerate(DEVICES):
        tips = truth[[f"{name}_tip_column", f"{name}_tip_row"]].to_numpy()
        assert np.allclose(tips, drawn.tips[:, k], atol=0.006, equal_nan=True)
        assert np.array_equal(truth[f"{name}_malpositioned"], drawn.malpositioned[:, k])
    for k, name in enumerate(truth["image_id"]):
        bits = np.asarray(Image.open(folder / "masks" / f"{name}.png"))
        assert np.array_equal((bits >> np.arange(7)[:, None, None]) & 1, drawn.masks[k])
        assert (
            folder / "reports" / f"{drawn.study_id[k]}.txt"
        ).read_text().strip() == drawn.report[k]
    facts = json.loads((folder / "export.json").read_text())
    assert facts["generator"] == synthetic.VERSION
    assert facts["synthetic"]


def test_the_ordinary_path_of_real_data_reads_it(folder, drawn, tmp_path) -> None:
    manifest = load_manifest("synthetic_dicom", root=folder)
    assert list(manifest["patient_id"]) == list(drawn.patient_id)
    assert list(manifest["report"]) == drawn.report
    read = manifest[[f"label:{name}" for name in LABELS]].to_numpy(dtype=float)
    assert np.array_equal(read, drawn.reported, equal_nan=True)
    p = study.Data(
        card="synthetic_dicom", root=str(folder), n_images=0, size=SIZE, out=str(tmp_path / "data")
    )
    prepared = prepare_data(p)
    assert prepared.info["kind"] == "synthetic"  # whatever way it came, no number on it is real
    assert prepared.info["generator"] is None
    order = {name: k for k, name in enumerate(manifest["image_id"])}
    rows = [order[name] for name in prepared.manifest["image_id"]]
    eight = np.rint(drawn.image[rows, 0].numpy() * 255)
    assert (
        np.abs(prepared.images[:] - eight).max() <= 1
    )  # a value between two of 8 bits may fall either way


def test_the_template_of_a_hospital_reads_this_very_shape(folder) -> None:
    manifest = load_manifest("site", root=folder)
    pd.testing.assert_frame_equal(manifest, load_manifest("synthetic_dicom", root=folder))
    assert len(manifest) == N
    assert manifest.attrs["left_out"] == manifest.attrs["not_understood"] == {}


def test_fewer_bits_are_fewer_greys(tmp_path) -> None:
    drawn = synthetic.sample(range(3), size=64).image[:, 0].numpy()
    for bits in (8, 12):
        out = export_synthetic(tmp_path / str(bits), n=3, size=64, bits=bits)
        read = np.stack([dicom.read_dicom(f) for f in sorted((out / "images").iterdir())])
        assert np.abs(read - drawn).max() <= 0.51 / (2**bits - 1)


def test_nothing_is_overwritten_and_half_an_export_is_none(tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    done = CliRunner().invoke(cli.main, ["export-synthetic", "--out", str(tmp_path / "mine")])
    assert done.exit_code == 2
    assert "not empty" in done.output

    def killed(chunks):
        yield next(iter(chunks))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_synthetic(tmp_path / "new", n=100, size=32, progress=killed)
    assert not (tmp_path / "new").exists()
    export_synthetic(tmp_path / "new", n=2, size=32)
    assert len(pd.read_csv(tmp_path / "new" / "images.csv")) == 2
    with pytest.raises(ValueError, match="bits 10"):
        export_synthetic(tmp_path / "odd", n=1, size=32, bits=10)
