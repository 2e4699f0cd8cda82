"""Shards: killed runs resume, only what changed is read again, rows keep their images."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cxrstudy.data import images, shards
from cxrstudy.data.dicom import UnreadableImage
from cxrstudy.data.images import open_prepared, prepare
from cxrstudy.data.manifest import assign_splits, nested_subset
from cxrstudy.data.shardfiles import decoded, jpeg

N = 120


@pytest.fixture
def small(monkeypatch):
    """Shards of at most 20 images on average, read 16 at a time."""
    monkeypatch.setattr(shards, "SIZE", 20)
    monkeypatch.setattr(shards, "PART", (16, 2**24))


def film(k):
    return np.random.default_rng(k).integers(0, 256, (8, 8), dtype=np.uint8)


def table_of(folder, n=N, start=0):
    """Write n images of n / 2 patients; return their manifest, in random order."""
    folder.mkdir(exist_ok=True)
    numbers = np.random.default_rng(1).permutation(np.arange(start, start + n))
    paths = []
    for k in numbers:
        path = folder / f"{k}.png"
        if not path.exists():
            Image.fromarray(film(k)).save(path)
        paths.append(str(path))
    ids = [f"i{k}" for k in numbers]
    people = [f"p{k // 2}" for k in numbers]
    return pd.DataFrame({"image_id": ids, "patient_id": people, "study_id": ids, "path": paths})


def made(table, out, **how):
    return prepare(table, out, size=8, info={"kind": "real"}, **how)


def check(prepared, other=()):
    """Every row has the pixels of its own image."""
    for row, name in enumerate(prepared.manifest["image_id"]):
        k = int(name.removeprefix("i"))
        expected = film(10_000 + k if k in other else k)
        np.testing.assert_array_equal(prepared.images[row], expected, name)


class Reader:
    """Counts the files that are read; fails at the one after ``most``."""

    def __init__(self, monkeypatch, most=10**9):
        self.paths, self.most, read = [], most, images.read_with_notes
        monkeypatch.setattr(
            images, "read_with_notes", lambda *given: self.note(*given) or read(*given)
        )

    def note(self, path, size):
        if len(self.paths) >= self.most:
            raise KeyboardInterrupt
        self.paths.append(path)


# ---- what is in which shard ----------------------------------------------------------------------
@pytest.mark.usefixtures("small")
def test_a_shard_holds_whole_patients_and_a_small_subset_the_first_shards(tmp_path):
    table = table_of(tmp_path / "in")
    prepared = made(table, tmp_path / "out", seed=3)
    check(prepared)
    pd.testing.assert_series_equal(prepared.manifest["image_id"], table["image_id"])
    at = pq.read_table(tmp_path / "out" / "shards.parquet").to_pandas()
    own = pd.concat([prepared.manifest, at], axis=1)
    assert own.groupby("patient_id")["shard"].nunique().max() == 1
    sizes = own["shard"].value_counts()
    assert len(sizes) == 8 and sizes.mean() >= 10
    for n in (10, 40, 90):
        subset = nested_subset(own, n, seed=3)
        assert sorted(subset["shard"].unique()) == list(range(subset["shard"].max() + 1))
        assert set(own[own["shard"] < subset["shard"].max()]["image_id"]) <= set(subset["image_id"])


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.integers(-N, N - 1), max_size=12), step=st.sampled_from([1, 3, -1]))
def test_it_is_indexed_as_an_array_is(tmp_path_factory, rows, step):
    folder = tmp_path_factory.getbasetemp() / "indexed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SIZE", 20)
        folder.mkdir(exist_ok=True)
        stored = made(table_of(folder / "in"), folder / "out").images
    whole = np.asarray(stored)
    assert (stored.shape, stored.dtype, len(stored)) == (whole.shape, whole.dtype, N)
    index = np.array(rows, dtype=np.int64)
    for key in (index, rows, slice(None, None, step), pd.Index(index), np.arange(N) % 7 == 2):
        np.testing.assert_array_equal(stored[key], whole[key])
    np.testing.assert_array_equal(stored[-1], whole[-1])
    np.testing.assert_array_equal(np.stack(list(stored)), whole)
    with pytest.raises(IndexError):
        stored[N]


# ---- what is read again --------------------------------------------------------------------------
@pytest.mark.usefixtures("small")
def test_a_run_that_was_stopped_goes_on_from_its_whole_shards(tmp_path, monkeypatch):
    table = table_of(tmp_path / "in")
    first = Reader(monkeypatch, 70)
    with pytest.raises(KeyboardInterrupt):
        made(table, tmp_path / "out")
    left = {path.stem for path in (tmp_path / "out" / "shards").glob("*.parquet")}
    assert left
    with pytest.raises(FileNotFoundError, match="holds no prepared data set"):
        open_prepared(tmp_path / "out")
    (tmp_path / "out" / "shards" / ".0.npy.99").write_bytes(b"killed")
    (tmp_path / "out" / ".images.99.npy").write_bytes(b"killed before there were shards")
    monkeypatch.undo()
    monkeypatch.setattr(shards, "SIZE", 20)
    second = Reader(monkeypatch)
    prepared = made(table, tmp_path / "out")
    check(prepared)
    kept = sum(len(pq.read_table(tmp_path / "out" / "shards" / f"{stem}.parquet")) for stem in left)
    assert len(second.paths) == N - kept and kept > len(first.paths) - 40
    files = {path.name for path in (tmp_path / "out" / "shards").iterdir()}
    assert not any(name.startswith(".") for name in files)
    assert len(files) == 2 * 8 and not list((tmp_path / "out").glob(".images*"))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("image_format", ["raw", "jpeg"])
def test_only_what_changed_is_read_again(tmp_path, monkeypatch, image_format):
    how = {"image_format": image_format}
    table = table_of(tmp_path / "in")
    before = made(table, tmp_path / "runs" / "one", **how)
    pixels = np.asarray(before.images)
    Image.fromarray(film(10_005)).save(tmp_path / "in" / "5.png")
    more = pd.concat([table, table_of(tmp_path / "in", 7, start=N)], ignore_index=True)
    reader = Reader(monkeypatch)
    prepared = made(more, tmp_path / "runs" / "two", **how)  # as a grid names a changed data set
    assert sorted(Path(path).stem for path in reader.paths) == sorted(
        ["5", *map(str, range(N, N + 7))]
    )
    old = (table["image_id"] != "i5").to_numpy()
    np.testing.assert_array_equal(prepared.images[:N][old], pixels[old])
    if image_format == "raw":
        check(prepared, other=[5])
    one, two = (
        {path.name: path.stat().st_ino for path in (tmp_path / "runs" / run / "shards").iterdir()}
        for run in ("one", "two")
    )
    assert {one[name] for name in one.keys() & two.keys()} <= set(two.values())  # one copy on disk
    assert one.keys() & two.keys()


@pytest.mark.usefixtures("small")
def test_a_damaged_shard_is_made_again_and_the_others_stay(tmp_path, monkeypatch):
    table = table_of(tmp_path / "in")
    made(table, tmp_path / "out")
    file = sorted((tmp_path / "out" / "shards").glob("*.npy"))[0]
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    (tmp_path / "out" / "prepared.json").unlink()
    reader = Reader(monkeypatch)
    with pytest.warns(UserWarning, match="damaged .its SHA-256"):
        check(made(table, tmp_path / "out"))
    assert 0 < len(reader.paths) < 40
    file.write_bytes(content[:-9])
    with pytest.raises(FileNotFoundError, match=r"cut short: delete .*prepared\.json"):
        open_prepared(tmp_path / "out")
    with pytest.warns(UserWarning, match="cut short|damaged"):
        check(made(table, tmp_path / "out"))


@pytest.mark.usefixtures("small")
def test_an_error_of_the_system_is_tried_again_and_one_of_the_file_is_not(tmp_path, monkeypatch):
    table = table_of(tmp_path / "in")
    (tmp_path / "in" / "3.png").write_text("<html>")
    (tmp_path / "in" / "50.png").rename(tmp_path / "50.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert made(table, tmp_path / "out").info["quarantined"] == 2
    (tmp_path / "out" / "prepared.json").unlink()
    (tmp_path / "50.png").rename(tmp_path / "in" / "50.png")
    reader = Reader(monkeypatch)
    prepared = made(table, tmp_path / "out")
    assert prepared.info["quarantined"] == 1
    assert [Path(path).stem for path in reader.paths] == ["50"]
    check(prepared)


@pytest.mark.usefixtures("small")
def test_a_root_that_vanishes_ends_the_run_and_loses_no_image(tmp_path, monkeypatch):
    table, root = table_of(tmp_path / "in"), tmp_path / "in"

    def unplug(path, size):
        if len(reader.paths) == 60:
            root.rename(tmp_path / "unplugged")
        reader.paths.append(path)

    reader = Reader(monkeypatch)
    reader.note = unplug
    with pytest.raises(UnreadableImage, match=r"root has vanished.*the same call resumes"):
        made(table, tmp_path / "out", root=str(root))
    (tmp_path / "unplugged").rename(root)
    prepared = made(table, tmp_path / "out", root=str(root))
    assert prepared.info["quarantined"] == 0
    check(prepared)
    assert len(reader.paths) < N + 60


# ---- the same, however it is made ----------------------------------------------------------------
def result(out):
    """All that a data run holds; shards by their checksums."""
    names = ("manifest.parquet", "quarantine.csv", "odd.csv", "prepared.json", "shards.json")
    return {name: (out / name).read_bytes() for name in names}


@pytest.mark.usefixtures("small")
def test_several_processes_give_the_same_files(tmp_path, monkeypatch):
    table = assign_splits(table_of(tmp_path / "in"), fractions={"a": 0.5, "b": 0.5}, seed=0)
    (tmp_path / "in" / "7.png").write_bytes(b"none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made(table, tmp_path / "alone" / "out")
        monkeypatch.setattr(images, "MANY", 0)
        monkeypatch.setattr(images, "cpu_count", lambda: 2)
        made(table, tmp_path / "together" / "out")
    assert result(tmp_path / "alone" / "out") == result(tmp_path / "together" / "out")


RUN = """
import sys, time, pandas as pd
from cxrstudy.data import images, shards
shards.SIZE, shards.PART = 20, (16, 2**24)
read = images.read_with_notes
images.read_with_notes = lambda *given: time.sleep(0.01) or read(*given)
table = pd.read_parquet(sys.argv[1])
images.prepare(table, sys.argv[2], size=8, info={"kind": "real"}, root=sys.argv[3])
"""


def test_runs_killed_at_any_moment_resume_to_the_same_bytes(tmp_path):
    table = table_of(tmp_path / "in")
    table.to_parquet(tmp_path / "table.parquet")
    rng = np.random.default_rng(0)

    def start(run):
        words = [tmp_path / "table.parquet", tmp_path / run / "out", tmp_path / "in"]
        return subprocess.Popen([sys.executable, "-c", RUN, *map(str, words)])

    assert start("whole").wait() == 0
    kills = 0
    while (process := start("killed")) and kills < 4:
        begun = time.monotonic()
        while not list((tmp_path / "killed").glob("out/shards")) and time.monotonic() < begun + 30:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
    assert kills and start("killed").wait() == 0
    assert result(tmp_path / "killed" / "out") == result(tmp_path / "whole" / "out")
    left = [path.name for path in (tmp_path / "killed" / "out" / "shards").glob(".*")]
    assert left == []


def test_two_at_once_prepare_one_folder_once(tmp_path):
    table_of(tmp_path / "in").to_parquet(tmp_path / "table.parquet")
    words = [tmp_path / "table.parquet", tmp_path / "out", tmp_path / "in"]
    both = [
        subprocess.Popen([sys.executable, "-c", RUN, *map(str, words)], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [process.communicate()[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("another process prepares" in text for text in said) <= 1
    check(open_prepared(tmp_path / "out"))


def test_a_full_disk_is_an_error_that_is_named_and_nothing_half_stays(tmp_path):
    table = table_of(tmp_path / "in")
    program = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    program += "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n" + RUN
    table.to_parquet(tmp_path / "table.parquet")
    words = [str(tmp_path / name) for name in ("table.parquet", "out", "in")]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 1 and "File too large" in done.stderr
    assert not list((tmp_path / "out").glob("shards/.*"))
    assert not (tmp_path / "out" / "prepared.json").exists()


# ---- JPEG ----------------------------------------------------------------------------------------
@pytest.mark.usefixtures("small")
def test_jpeg_keeps_rows_and_counts_and_loses_little(tmp_path):
    smooth = np.add.outer(np.arange(48.0), np.arange(48.0)) * 2.5
    table = table_of(tmp_path / "in")
    for k, path in enumerate(table["path"][:100]):
        Image.fromarray(np.roll(smooth, k, 0).astype(np.uint8)).save(path)
    Path(table["path"][40]).write_bytes(b"none")
    raw, coded = (
        prepare(table, tmp_path / name / "out", size=48, info={"kind": "real"}, image_format=name)
        for name in ("raw", "jpeg")
    )
    assert raw.info == coded.info  # mean and deviation are those of the pixels read
    pd.testing.assert_frame_equal(raw.manifest, coded.manifest)
    assert coded.images.shape == raw.images.shape == (N - 1, 48, 48)
    error = np.asarray(coded.images).astype(float)[:99] - np.asarray(raw.images)[:99]
    assert np.abs(error).mean() < 1
    row = int(np.flatnonzero(raw.manifest["image_id"] == table["image_id"][60])[0])
    np.testing.assert_array_equal(coded.images[row], decoded(jpeg(raw.images[row])))
    about = json.loads((tmp_path / "jpeg" / "out" / "shards.json").read_text())
    assert about["format"] == "jpeg" and all(s["file"].endswith(".arrow") for s in about["shards"])
    assert os.path.getsize(tmp_path / "jpeg" / "out" / "shards" / about["shards"][0]["file"]) > 0


def test_reading_by_several_processes_leaves_joblib_usable():
    from joblib import Parallel, delayed

    from cxrstudy.data.shards import _in_order

    assert list(_in_order(abs, [-3, 2, -1], 2)) == [3, 2, 1]
    assert Parallel(n_jobs=2)(delayed(abs)(k) for k in (-1, 2)) == [1, 2]
