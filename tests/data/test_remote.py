"""A root in a bucket is read as the same files in a folder are: in memory, and on an S3 server."""

import os
import socket

import fsspec
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxrstudy import study
from cxrstudy.data import cards, remote
from cxrstudy.data.images import open_prepared, read_image
from cxrstudy.data.sets import content_digest, prepare_data
from cxrstudy.presetdata import data_entry

CARD = """---
name: held
title: held
kind: real
licence: none
access: none
citation: none
table:
  path: tables/*.csv
  image_id: file
  patient_id: who
  study_id: [file]
reports:
  path: reports/{file}.txt
masks:
  - picc
images:
  - films/**/*.png
---
"""
N = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set in a folder: table, reports, films in folders."""
    root = tmp_path_factory.mktemp("held")
    for name in ("tables", "reports", "films/a", "films/b"):
        (root / name).mkdir(parents=True)
    for k in range(N):
        pixels = np.random.default_rng(k).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "films" / "ab"[k % 2] / f"f{k}.png")
        (root / "reports" / f"f{k}.txt").write_text(f"FINDINGS: Film {k}. No pneumothorax.")
    ids = [f"f{k}" for k in range(N)]
    pd.DataFrame({"file": ids, "who": [f"p{k // 2}" for k in range(N)]}).to_csv(
        root / "tables" / "all.csv", index=False
    )
    card = root.parent / "held.md"
    card.write_text(CARD.replace("masks:\n  - picc\n", ""))
    return root, str(card)


@pytest.fixture(params=["memory", "s3"])
def bucket(request, folder, tmp_path, monkeypatch):
    """The same data set in a bucket; its file system and its root."""
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    remote._fill.cache_clear()
    top = tmp_path.name
    if request.param == "memory":
        system = fsspec.filesystem("memory")
        system.put(str(folder[0]), f"{top}/held", recursive=True)
        yield system, f"memory://{top}/held"
        return
    s3fs = pytest.importorskip("s3fs", reason="needs the extra cloud")
    reason = "needs a local S3 server: pip install 'moto[server]'"
    server = pytest.importorskip("moto.server", reason=reason).ThreadedMotoServer
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = server("127.0.0.1", port, verbose=False)
    running.start()
    own = {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1"}
    for name, value in (own | {"ENDPOINT_URL": f"http://127.0.0.1:{port}"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    top = top.replace("_", "-")[:60]
    system.mkdir(top)
    system.put(str(folder[0]), f"{top}/held", recursive=True)
    yield system, f"s3://{top}/held"
    running.stop()


def test_a_bucket_is_read_as_a_folder_is(folder, bucket, tmp_path):
    root, card = folder
    url = bucket[1]
    here, there = (cards.load_manifest(card, root=each) for each in (root, url))
    assert list(there["path"]) == [
        p.replace(f"{root}/", f"{url}/") for p in here["path"].astype(str)
    ]
    pd.testing.assert_frame_equal(here.drop(columns="path"), there.drop(columns="path"))
    assert there["report"].str.contains("No pneumothorax").all()
    names = [content_digest(card, root=str(r), n_images=0, seed=0) for r in (root, url)]
    assert names[0] == names[1]  # so a run has one name, wherever its files are
    own = {"card": card, "size": 32, "n_images": 0, "fractions": {"a": 0.5, "b": 0.5}}
    runs = [
        prepare_data(study.Data(**own, root=str(each), out=str(tmp_path / name / "out")))
        for name, each in (("here", root), ("there", url))
    ]
    np.testing.assert_array_equal(np.asarray(runs[0].images), np.asarray(runs[1].images))
    opened = open_prepared(tmp_path / "there" / "out").manifest
    assert opened["path"].str.startswith(f"{url}/films/").all()
    kept = pd.read_parquet(tmp_path / "there" / "out" / "manifest.parquet")
    assert kept["path"].str.startswith("films/").all()
    np.testing.assert_array_equal(read_image(opened["path"].iloc[0], 32), runs[0].images[0])
    images = list(remote.place(url).rglob("*.png"))
    assert len(images) == N  # they stand for the images and hold none
    assert all(os.stat(path).st_blocks * 512 < 4096 for path in images)


def test_what_changes_in_a_bucket_is_seen_and_gone_files_go(folder, bucket):
    _, card = folder
    system, url = bucket
    before = content_digest(card, root=url, n_images=0, seed=0)
    system.rm(f"{url}/films/a/f0.png")
    system.pipe(f"{url}/reports/f1.txt", b"FINDINGS: Other words.")
    system.invalidate_cache()
    remote._fill.cache_clear()  # as a new process
    manifest = cards.load_manifest(card, root=url)
    assert len(manifest) == N - 1 and manifest.attrs["left_out"] == {"no image file": 1}
    assert (manifest["report"] == "FINDINGS: Other words.").sum() == 1
    assert content_digest(card, root=url, n_images=0, seed=0) != before


def test_a_lost_image_is_set_aside_but_a_lost_server_ends_the_run(folder, bucket, tmp_path):
    _, card = folder
    system, url = bucket
    cards.load_manifest(card, root=url)
    system.rm(f"{url}/films/b/f3.png")
    own = {"card": card, "size": 32, "n_images": 0, "fractions": {"a": 1.0}, "root": url}
    with pytest.warns(UserWarning, match=r"1 of 12 images could not be read"):
        prepared = prepare_data(study.Data(**own, out=str(tmp_path / "one" / "out")))
    assert prepared.info["quarantined"] == 1 and len(prepared.manifest) == N - 1


def test_a_root_that_cannot_be_read_is_named(folder, bucket):
    _, card = folder
    absent = bucket[1].replace("held", "absent")
    with pytest.raises(cards.CardError, match=r"absent: (cannot be listed|there is no file)"):
        cards.load_manifest(card, root=absent)
    with pytest.raises(cards.CardError, match=r"nosuch://x.*cloud"):
        cards.load_manifest(card, root="nosuch://x")


def test_a_name_in_a_bucket_does_not_lead_out_of_root(folder, bucket, monkeypatch):
    _, card = folder
    system, url = bucket
    found = system.find(url, detail=True)
    top = next(iter(found)).partition("/held/")[0] + "/held"
    found[f"{top}/films/../../../x.png"] = next(iter(found.values()))
    monkeypatch.setattr(type(system), "find", lambda *_, **how: found)
    with pytest.raises(cards.CardError, match="leads out of root"):
        cards.load_manifest(card, root=url)


@pytest.mark.parametrize("url", ["s3://b/all", "s3://b/all/"])
def test_a_preset_names_a_bucket_as_a_folder(url, folder):
    own = {"card": folder[1]}
    assert data_entry(own, url)["root"] == url
    assert data_entry(own | {"root": url})["root"] == url
    assert data_entry(own | {"root": "part"}, "s3://b/all")["root"] == "s3://b/all/part"
