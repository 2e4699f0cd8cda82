"""Files to pixels: all kinds are bone bright, bad ones are set aside, rows stay aligned."""

import json

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib.externals.loky import ProcessPoolExecutor
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from cxrstudy import study
from cxrstudy.data import cards, odd, synthetic
from cxrstudy.data.dicom import UnreadableImage
from cxrstudy.data.images import open_prepared, prepare, read_image
from cxrstudy.data.manifest import ManifestError, label_array
from cxrstudy.data.sets import open_data, prepare_data
from cxrstudy.data.shards import PART
from cxrstudy.data.vocabulary import LABELS

torch.set_num_threads(1)
CHUNK = PART[0]
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (32, 32), dtype=np.uint8)


def save(pixels, path, **how):
    Image.fromarray(pixels).save(path, **how)
    return path


def write_dicom(pixels, path, photometric="MONOCHROME2"):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, photometric
    ds.PixelData = pixels.astype("<u2").tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path


# ---- one file ----------------------------------------------------------------------------------
def test_an_8_bit_png_comes_out_as_it_is(tmp_path):
    pixels = read_image(save(NOISE, tmp_path / "x.png"), 32)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, NOISE)


def test_a_16_bit_png_is_scaled_and_not_clipped(tmp_path):
    deep = RNG.integers(0, 2**16, (32, 32), dtype=np.uint16)
    deep[0, :3] = 0, 256, 65535
    pixels = read_image(save(deep, tmp_path / "x.png"), 32)
    assert Image.open(tmp_path / "x.png").mode.startswith("I")
    np.testing.assert_allclose(pixels.astype(float), deep * (255 / 65535), atol=0.51)
    assert list(pixels[0, :3]) == [0, 1, 255]


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_a_colour_jpeg_becomes_its_grey(tmp_path, suffix):
    grey = np.kron(np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4), np.ones((8, 8), np.uint8))
    colour = np.stack([grey, grey, grey], -1)
    path = save(colour, tmp_path / f"x{suffix}", format="JPEG", quality=98)
    assert Image.open(path).mode == "RGB"
    assert np.abs(read_image(path, 32).astype(int) - grey).max() <= 3


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA"])
def test_other_png_modes_become_grey(tmp_path, mode):
    black_and_white = np.where(NOISE > 127, 255, 0).astype(np.uint8)
    Image.fromarray(black_and_white).convert(mode).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", 32), black_and_white)


@pytest.mark.parametrize("name", ["x.dcm", "IM-0001", "1.2.840"])
def test_a_dicom_file_is_known_by_its_content_and_comes_out_bone_bright(tmp_path, name):
    stored = RNG.integers(0, 4096, (32, 32))
    stored[0, :2] = 0, 4095
    for photometric, expected in (
        ("MONOCHROME2", stored / 4095),
        ("MONOCHROME1", 1 - stored / 4095),
    ):
        pixels = read_image(write_dicom(stored, tmp_path / name, photometric), 32)
        np.testing.assert_allclose(pixels, expected * 255, atol=0.51)


@settings(deadline=None, max_examples=25)
@given(
    size=st.integers(4, 24),
    extra=st.integers(0, 10),
    tall=st.booleans(),
    times=st.integers(1, 3),
    data=st.data(),
)
def test_a_film_that_is_not_square_keeps_its_middle_in_place(
    tmp_path_factory, size, extra, tall, times, data
):
    long = size + 2 * extra
    top, left = data.draw(st.integers(0, size - 2)), data.draw(st.integers(0, size - 2))
    square = np.full((size, size), 40, np.uint8)
    square[top : top + 2, left : left + 2] = 240
    whole = RNG.integers(0, 256, (long, size) if tall else (size, long), dtype=np.uint8)
    whole[
        (slice(extra, extra + size), slice(None))
        if tall
        else (slice(None), slice(extra, extra + size))
    ] = square
    path = tmp_path_factory.mktemp("film") / "x.png"
    save(np.kron(whole, np.ones((times, times), np.uint8)), path)
    np.testing.assert_array_equal(read_image(path, size), square)


@pytest.mark.parametrize("shape", [(33, 57), (101, 64), (20, 31), (1, 400), (16, 16)])
def test_any_shape_gives_the_size_asked_for_and_keeps_the_range(tmp_path, shape):
    pixels = read_image(save(np.full(shape, 77, np.uint8), tmp_path / "x.png"), 32)
    assert pixels.shape == (32, 32)
    assert (pixels == 77).all()


def damage(folder):
    """Files from which no image can be read: name and how each came to be."""
    good = save(RNG.integers(0, 256, (64, 64), dtype=np.uint8), folder / "good.png").read_bytes()
    whole = write_dicom(RNG.integers(0, 4096, (32, 32)), folder / "good.dcm").read_bytes()
    bad = {f"cut{share}.png": good[: int(len(good) * share)] for share in (0.0, 0.01, 0.5, 0.9)}
    bad |= {
        "text.png": b"this is no image", "text.jpg": b"nor this", "text.dcm": b"nor this",
        "cut.dcm": whole[:-99],
    }  # fmt: skip
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    (folder / "folder.png").mkdir()
    (folder / "folder.dcm").mkdir()
    return [*bad, "folder.png", "folder.dcm", "absent.png", "absent.dcm"]


def test_a_file_that_holds_no_image_is_refused_by_its_path_with_a_reason(tmp_path):
    for name in damage(tmp_path):
        with pytest.raises(UnreadableImage) as caught:
            read_image(tmp_path / name, 32)
        assert str(caught.value.path) == str(tmp_path / name), name
        assert len(caught.value.reason) > 5, name


# ---- a data set --------------------------------------------------------------------------------
def manifest_of(paths, **columns):
    ids = [path.name for path in paths]
    own = {
        "image_id": ids, "patient_id": [f"p {i}" for i in ids], "study_id": ids,
        "path": [str(p) for p in paths],
    }  # fmt: skip
    return pd.DataFrame(own | columns)


def film(k):
    """An 8 x 8 image that no other k has."""
    return np.random.default_rng(k).integers(0, 256, (8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder of good images over two chunks, and bad ones to be mixed in."""
    folder = tmp_path_factory.mktemp("films")
    good = [save(film(k), folder / f"{k}.png") for k in range(CHUNK + 30)]
    return good, [folder / name for name in damage(folder)]


def test_bad_files_are_set_aside_and_rows_stay_with_their_images(films, tmp_path):
    good, bad = films
    paths = list(good)
    for k, path in enumerate(bad):  # at both ends, in the middle and side by side
        paths.insert([0, 1, 5, CHUNK - 1, CHUNK, len(paths)][k % 6], path)
    prepared = prepare(manifest_of(paths), tmp_path / "out", size=8, info={"kind": "real"})
    assert list(prepared.manifest["image_id"]) == [path.name for path in paths if path in good]
    for row, name in enumerate(prepared.manifest["image_id"]):
        np.testing.assert_array_equal(prepared.images[row], film(int(name.removesuffix(".png"))))
    assert prepared.images.shape == (len(good), 8, 8)
    assert prepared.images.dtype == np.uint8
    assert prepared.info["quarantined"] == len(bad)
    aside = pd.read_csv(tmp_path / "out" / "quarantine.csv")
    assert list(aside["path"]) == [str(path) for path in paths if path in bad]
    assert list(aside["image_id"]) == [path.name for path in paths if path in bad]
    assert aside["reason"].str.len().min() > 5
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("manifest.parquet", "prepared.json", "quarantine.csv", "odd.csv", ".lock"),
        *("shards", "shards.json", "shards.parquet"),
    }


def test_mean_and_spread_are_those_of_the_images_kept(films, tmp_path):
    good, bad = films
    prepared = prepare(manifest_of([*bad, *good[:50]]), tmp_path, size=8, info={"kind": "real"})
    pixels = np.stack([film(k) for k in range(50)]) / 255
    assert prepared.info["mean"] == pytest.approx(pixels.mean())
    assert prepared.info["std"] == pytest.approx(pixels.std())
    assert prepared.info["size"] == 8
    assert prepared.info["kind"] == "real"


def test_without_any_image_that_can_be_read_it_stops_and_names_one(films, tmp_path):
    _, bad = films
    with pytest.raises(ManifestError, match=f"none of {len(bad)} images") as caught:
        prepare(manifest_of(bad), tmp_path, size=8, info={})
    assert str(bad[0]) in str(caught.value)
    with pytest.raises(FileNotFoundError):
        open_prepared(tmp_path)


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_folder_that_stands_is_returned_and_not_rewritten(films, tmp_path):
    paths = [save(film(k), tmp_path / f"{k}.png") for k in range(5)]
    out = tmp_path / "out"
    first = prepare(manifest_of(paths), out, size=8, info={"kind": "real"})
    before = stamps(out)
    for path in paths:
        path.unlink()  # so it cannot be read again
    second = prepare(manifest_of(paths), out, size=8, info={"kind": "real"})
    assert stamps(out) == before
    np.testing.assert_array_equal(first.images, second.images)
    pd.testing.assert_frame_equal(first.manifest, second.manifest)
    assert first.info == second.info


@pytest.mark.parametrize(
    "changed", [{"size": 16}, {"info": {"card": "two"}}, {"info": {"card": "one", "more": 1}}]
)
def test_a_folder_made_for_something_else_is_made_anew(tmp_path, changed):
    paths = [save(film(k), tmp_path / f"{k}.png") for k in range(5)]
    asked = {"size": 8, "info": {"card": "one"}}
    prepare(manifest_of(paths), tmp_path / "out", **asked)
    for k, path in enumerate(paths):
        save(film(100 + k), path)
    again = prepare(manifest_of(paths), tmp_path / "out", **asked | changed)
    size = changed.get("size", 8)
    assert again.images.shape == (5, size, size)
    np.testing.assert_array_equal(
        again.images[:][:, :: size // 8, :: size // 8], [film(100 + k) for k in range(5)]
    )
    assert (changed.get("info") or asked["info"]).items() <= again.info.items()


def test_a_folder_that_a_killed_run_left_is_not_taken_for_whole(tmp_path):
    paths = [save(film(k), tmp_path / f"{k}.png") for k in range(3)]
    out = tmp_path / "out"
    prepare(manifest_of(paths), out, size=8, info={})
    (out / "prepared.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"holds no prepared data set; run data\.ipynb"
    ) as caught:
        open_prepared(out)
    assert str(out) in str(caught.value)
    next((out / "shards").glob("*.npy")).write_bytes(b"half")
    with pytest.warns(UserWarning, match=r"\.npy is damaged"):
        again = prepare(manifest_of(paths), out, size=8, info={})
    np.testing.assert_array_equal(again.images, [film(k) for k in range(3)])


def test_windows_that_leave_no_picture_and_bits_beyond_those_stored_are_counted_as_odd(tmp_path):
    smooth = np.add.outer(np.arange(48), np.arange(48)) / 94
    paths = []
    for k, (top, tags) in enumerate(
        [(4095, {}), (4095, {"WindowCenter": 0, "WindowWidth": 1}), (16383, {})]
    ):
        paths.append(write_dicom(np.rint(smooth * top), tmp_path / f"{k}.png"))
        ds = pydicom.dcmread(paths[-1])
        for name, value in tags.items():
            setattr(ds, name, value)
        ds.save_as(paths[-1])
    prepared = prepare(manifest_of(paths), tmp_path / "out", size=48, info={})
    assert prepared.info["odd"] == {
        "window replaced by the image's own range": 1,
        "values beyond BitsStored": 1,
    }
    for image in prepared.images:
        np.testing.assert_allclose(image, smooth * 255, atol=0.6)
    listed = pd.read_csv(tmp_path / "out" / "odd.csv")
    assert list(listed["image_id"]) == ["1.png", "2.png"]


# ---- the synthetic institution, and a data run -------------------------------------------------
def test_synthetic_rows_are_drawn_in_their_order(tmp_path):
    manifest = cards.load_manifest("synthetic", institution="public-2", n_images=CHUNK + 20, seed=4)
    manifest = manifest.sample(frac=1, random_state=1).reset_index(drop=True)
    prepared = prepare(manifest, tmp_path, size=32, info={})
    rows = [0, 7, CHUNK - 1, CHUNK, CHUNK + 19]
    index = [int(name.rsplit("-", 1)[1]) for name in prepared.manifest["image_id"].iloc[rows]]
    drawn = synthetic.sample(index, institution="public-2", size=32, seed=4)
    np.testing.assert_array_equal(
        prepared.images[rows], np.rint(drawn.image[:, 0].numpy() * 255).astype(np.uint8)
    )
    np.testing.assert_array_equal(
        label_array(prepared.manifest.iloc[rows], LABELS, truth=True), drawn.labels
    )


def test_a_large_set_drawn_on_all_cores_is_the_same_to_the_byte(tmp_path, monkeypatch):
    p = study.Data(n_images=2 * CHUNK + 3, size=32, out=str(tmp_path / "alone"))
    alone = prepare_data(p)
    monkeypatch.setattr("cxrstudy.data.images.LARGE", 0)
    monkeypatch.setattr("cxrstudy.data.images.cpu_count", lambda: 2)
    asked: list[int] = []
    monkeypatch.setattr(
        "cxrstudy.data.shards.ProcessPoolExecutor",
        lambda jobs, **how: asked.append(jobs) or ProcessPoolExecutor(jobs, **how),
    )
    shared = prepare_data(p.model_copy(update={"out": str(tmp_path / "shared")}))
    np.testing.assert_array_equal(alone.images, shared.images)
    assert asked == [2]


def test_a_data_run_splits_patients_and_says_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path))
    p = study.Data(
        n_images=60, size=32, fractions={"pretrain": 0.5, "test": 0.5}, out="runs/one/data/study"
    )
    prepared = prepare_data(p)
    assert set(prepared.manifest["split"]) == {"pretrain", "test"}
    assert prepared.manifest.groupby("patient_id")["split"].nunique().max() == 1
    assert prepared.info["kind"] == "synthetic"
    assert prepared.info["institution"] == "synthetic:study"
    assert prepared.info["generator"] == synthetic.VERSION
    opened, folder = open_data(p.out)
    assert folder == tmp_path / "one" / "data" / "study"
    pd.testing.assert_frame_equal(opened.manifest, prepared.manifest)
    before = stamps(folder)
    prepare_data(p)
    assert stamps(folder) == before
    prepare_data(p.model_copy(update={"seed": 1}))
    assert stamps(folder) != before
    assert json.loads((folder / "prepared.json").read_text())["asked"] != prepared.info["asked"]


def test_a_copy_in_another_split_is_set_aside_and_the_pair_is_named(tmp_path):
    other = RNG.integers(0, 256, (32, 32), dtype=np.uint8)
    pixels = {"a": NOISE, "b": NOISE, "c": other, "d": other, "e": NOISE * 0, "f": NOISE * 0}
    table = pd.DataFrame(
        {"image_id": list(pixels), "split": ["train", "test", *["test"] * 3, "train"]}
    )
    table["path"] = [str(save(each, tmp_path / f"{name}.png")) for name, each in pixels.items()]
    table["patient_id"] = table["study_id"] = list("abcdef")
    with pytest.warns(
        UserWarning, match="1 images are copies.*b of test has the pixels of a of tr"
    ):
        prepared = prepare(table, tmp_path / "out", size=32, info={})
    assert prepared.manifest["image_id"].tolist() == ["a", "c", "d", "e", "f"]
    assert prepared.info["set_aside"] == {odd.COPY: 1}
    assert pd.read_csv(tmp_path / "out" / "quarantine.csv")["image_id"].tolist() == ["b"]
    np.testing.assert_array_equal(prepared.images[1], other)
    together = prepare(table.drop(columns="split"), tmp_path / "all", size=32, info={})
    assert len(together.manifest) == 6 and together.info["set_aside"] == {}
