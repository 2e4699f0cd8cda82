"""Run records: what is written comes back as one tidy table, whole or not at all."""

import json
import math
import threading
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy import study
from cxrstudy.results import (
    SCHEMA,
    find_records,
    load_records,
    read_record,
    write_record,
    write_text,
)

PROMISED = [
    "run",
    "task",
    "label",
    "metric",
    "value",
    "low",
    "high",
    "n_images",
    "samples_seen",
    "paradigm",
    "seed",
]
PROMISED += ["preset", "institution", "hardware", "commit"]
SUBJECT = {
    "paradigm": "clip",
    "n_images": 200,
    "samples_seen": 4000,
    "seed": 3,
    "institution": "synthetic:study",
}
SUBJECT |= {
    "encoder": "cnn_mini",
    "base": "clip-base-abc",
    "kind": "synthetic",
    "data": "study-abc",
    "patients": "f0",
}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRSTUDY_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def write(name="one", stage="classify", preset="mini", **facts):
    parameters = study.validated(stage, {"out": f"runs/{preset}/{stage}/{name}"})
    return write_record(
        stage, parameters, **({"started": time.time() - 2, "subject": SUBJECT} | facts)
    )


def metric(**values):
    return {
        "task": "findings",
        "label": "edema",
        "metric": "auroc",
        "value": 0.8,
        "low": 0.7,
        "high": 0.9,
    } | values


def test_a_record_comes_back_as_a_row_a_metric_with_every_promised_column(runs):
    path = write(
        metrics=[metric(n=50, positives=7), metric(metric="auprc", value=0.4)],
        artefacts=["scores.parquet"],
    )
    write(
        "two",
        "pretrain",
        "smoke",
        metrics=[metric(task="pretrain", value=1.5, low=None)],
        subject={},
    )
    assert path == runs / "mini" / "classify" / "one" / "record.json"
    table = load_records(runs)
    assert len(table) == 3
    assert set(PROMISED) <= set(table.columns)
    row = table[(table["run"] == "one") & (table["metric"] == "auroc")].iloc[0]
    for name, value in (SUBJECT | metric(n=50, positives=7)).items():
        assert row[name] == value, name
    assert (row["preset"], row["stage"], row["folder"]) == ("mini", "classify", str(path.parent))
    assert row["seconds"] >= 2
    assert row["hardware"]
    assert row["commit"]
    other = table[table["run"] == "two"].iloc[0]
    assert (other["preset"], other["stage"], other["value"]) == ("smoke", "pretrain", 1.5)
    assert math.isnan(other["low"])
    assert pd.isna(other["paradigm"])


def test_a_record_says_what_it_was_made_with(runs):
    record = read_record(write(info={"flops": 1e9, "epochs": 20.0}))
    assert record["schema"] == SCHEMA
    assert record["parameters"] == study.Classify(out="runs/mini/classify/one").model_dump()
    assert record["info"]["flops"] == 1e9
    assert 2 <= record["info"]["seconds"] < 100
    assert record["info"]["peak_memory_bytes"] > 1e7
    assert {"commit", "python", "versions", "hardware"} <= set(record["environment"])
    assert record["environment"]["versions"]["torch"]


def test_a_record_is_found_by_its_file_its_folder_and_a_list_of_folders(runs):
    paths = [write(name, metrics=[metric()]) for name in ("b", "a", "c")]
    assert read_record(paths[0]) == read_record(paths[0].parent)
    assert [record["run"] for record in find_records(runs)] == ["a", "b", "c"]
    assert list(load_records([paths[2].parent, paths[0].parent])["run"]) == ["c", "b"]


def test_a_folder_without_records_gives_an_empty_table_with_the_columns(tmp_path):
    table = load_records(tmp_path)
    assert table.empty
    assert set(PROMISED) <= set(table.columns)


numbers = st.one_of(st.floats(), st.integers(-(2**53), 2**53).map(float))


@settings(deadline=None, max_examples=40)
@given(values=st.lists(st.tuples(st.text(min_size=1, max_size=8), numbers), min_size=1, max_size=6))
def test_numbers_survive_and_what_is_not_finite_becomes_null(tmp_path_factory, values):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXRSTUDY_RUNS", str(tmp_path_factory.mktemp("runs")))
        path = write(metrics=[metric(label=label, value=value) for label, value in values])
    text = path.read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    table = load_records([path.parent])
    assert list(table["label"]) == [label for label, _ in values]
    for found, (_, value) in zip(table["value"], values, strict=True):
        assert found == value or (math.isnan(found) and not math.isfinite(value))


def test_numpy_values_and_tuples_are_written_as_plain_ones(runs):
    odd = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": np.bool_(True),
        "d": (np.float64("nan"), 1),
        "e": {1: None},
    }
    record = read_record(write(info=odd))
    assert {key: record["info"][key] for key in odd} == {
        "a": 0.5,
        "b": 3,
        "c": True,
        "d": [None, 1],
        "e": {"1": None},
    }


def test_a_record_is_never_seen_half_written(runs):
    many = [metric(label=f"label {k}") for k in range(300)]
    path = write(metrics=many, info={"round": 0})
    stop, seen, broken = threading.Event(), [], []

    def read():
        while not stop.is_set():
            try:
                record = read_record(path)
                seen.append((record["info"]["round"], len(record["metrics"])))
            except Exception as error:
                broken.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for k in range(1, 60):
            write(metrics=many[: 300 - k], info={"round": k})
    finally:
        stop.set()
        reader.join()
    assert not broken
    assert len({k for k, _ in seen}) > 3  # it did read while records changed
    assert all(length == 300 - k for k, length in seen)
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]


def test_a_write_that_fails_leaves_the_old_record(runs):
    path = write(metrics=[metric()])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write(metrics=[metric(value=object())])
    assert path.read_bytes() == before
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "a lone surrogate \ud800")
    assert path.read_bytes() == before


BAD = {
    "empty": b"",
    "cut short": b'{"schema": 1, "run": "on',
    "a list": b"[1, 2]",
    "a number": b"7",
    "no schema": b'{"run": "one"}',
    "a schema in words": b'{"schema": "one"}',
    "not text": b"\xff\xfe\x00\x01",
    "a stranger's": b'{"schema": 1, "hello": "world"}',
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_a_file_that_is_no_record_is_refused_by_its_name_with_the_remedy(runs, content):
    write("good")
    path = write("bad")
    path.write_bytes(content)
    for call in (lambda: load_records(runs), lambda: load_records([path.parent])):
        with pytest.raises(ValueError, match="not a run record") as caught:
            call()
        assert str(path) in str(caught.value)
        assert "run it again" in str(caught.value)


def test_a_record_of_a_newer_schema_is_refused_by_its_name(runs):
    path = write()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": SCHEMA + 1}))
    for call in (lambda: read_record(path), lambda: load_records(runs)):
        with pytest.raises(ValueError, match=f"schema {SCHEMA + 1} is newer") as caught:
            call()
        assert str(path) in str(caught.value)


def test_a_run_folder_without_a_record_is_refused_by_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_records([tmp_path / "gone"])
    assert str(tmp_path / "gone") in str(caught.value)


def test_a_record_with_an_old_parameter_is_refused_with_the_new_name(tmp_path):
    record = {key: {} for key in ("run", "stage", "preset", "subject", "info", "environment")}
    record |= {"schema": 1, "metrics": [], "parameters": {"base_share": 0.5}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"base_share is now called wise_ft_alpha .*delete"):
        read_record(tmp_path)
