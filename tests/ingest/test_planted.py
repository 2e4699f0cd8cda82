"""Identifiers planted in an archive are in no output of ingest, study and book's pages.

The archive is that of ``cxrstudy export-synthetic --as-pacs --plant``: identifiers in tags, private
tags, names of files and folders, reports, tables and pixels. Its UIDs and file names count too.
Not searched: ``private/`` (the inventory) and where the links of ``images/`` lead to.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import Walk, clone

from cxrstudy import book
from cxrstudy.files import write_text

NAME = "own"


@dataclass
class Made:
    """A clone with an ingest of the archive, what the calls said, and what was planted."""

    walk: Walk
    archive: Path
    said: str
    planted: dict[str, set[str]]  # where -> identifiers
    before: set[Path]
    home: dict[str, str]
    preset: str = ""  # as ingest wrote it

    def call(self, *words: str, code: int = 0) -> str:
        done = self.walk.call(*words, **self.home)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    top = tmp_path_factory.mktemp("hospital")
    walk = clone(top / "clone")
    before = {path for path in walk.root.rglob("*") if path.is_file()}
    home = {"HOME": str(top / "home")}
    made = Made(walk, top / "export" / "archive", "", {}, before, home)
    size = ("--n", "54", "--size", "256", "--out", str(top / "export"))
    made.call("export-synthetic", "--as-pacs", "--plant", *size)
    made.planted = identifiers(top / "export")
    tables = [f"--table={path}" for path in sorted((top / "export" / "tables").iterdir())]
    made.said = made.call("ingest", str(made.archive), "--name", NAME, *tables, "--workers", "1")
    made.said += spoiled(made)
    made.said += made.call("run", "--preset", NAME, "--only", "data", "--quiet")
    return made


def identifiers(export: Path) -> dict[str, set[str]]:
    """What was planted, by place; and UIDs, file names and folder names of the archive."""
    found: dict[str, set[str]] = {}
    for row in json.loads((export / "truth" / "planted.json").read_text(encoding="utf-8")):
        for where in row["where"]:
            found.setdefault(where, set()).add(row["value"])
    names = {part for path in (export / "archive").rglob("*") for part in path.parts[-1:]}
    found["UIDs"] = {uid for name in names for uid in re.findall(r"[0-9.]{30,}\d", name)}
    common = (
        r"(?i)version|image.*|im\d+|dicom\w*|\w{1,5}(\.\w+)?|\d{1,6}|autorun.inf|dicomdir|thumbs.db"
        r"|\.ds_store"  # Sphinx names it too
    )
    found["names of files"] = {n for n in names if not re.fullmatch(common, n)}
    return found


def spoiled(made: Made) -> str:
    """Make two files unreadable behind the back of the ingest; say what a wrong call says."""
    links = sorted((made.walk.root / "ingested" / NAME / "images").rglob("*"))
    files = [link for link in links if link.is_symlink()]
    for link in files[:2]:
        link.resolve().write_bytes(link.resolve().read_bytes()[:-2000])
    archive, key = str(made.archive), str(made.walk.root / "x.key")
    said = made.call("ingest", archive, "--name", "other", "--key", key, code=2)
    broken = made.archive.parent / "broken.csv"
    broken.write_text('Accession,Name\n0077777777,"Xenophontia\n')
    return said + made.walk.call(
        "ingest", archive, "--name", "other", "--table", str(broken), **made.home
    ).stderr.replace(str(broken), "")


def text_of(path: Path) -> str:
    """A file as text: of Parquet its cells, of a notebook its cells and outputs, else its bytes."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return f"{table.schema} {table.schema.metadata} {table.to_pandas().to_csv()}"
    data = path.read_bytes()
    if path.suffix in (".safetensors", ".npy"):  # names and facts, then numbers alone
        data = data[: 2**17]
    if path.suffix in (".ipynb", ".json"):
        return str(json.loads(data)) + data.decode("utf-8")
    return "\n".join(data.decode(kind, errors="replace") for kind in ("utf-8", "cp1252", "utf-16"))


def outputs(made: Made) -> dict[str, str]:
    """Every file that ingest and study wrote, as text, with the names of files and links."""
    root = made.walk.root
    private = re.compile(r"ingested/\w+/private/")
    found = {"what the calls said": made.said}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path in made.before or private.match(name) or path.is_dir():
            continue
        found[name] = name if path.is_symlink() else f"{name}\n{text_of(path)}"
    return found


def leaks(texts: dict[str, str], planted: dict[str, set[str]]) -> Counter:
    """How often a planted identifier is in a text: (where it was planted, output, identifier)."""
    every = sorted(set().union(*planted.values()), key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, every))})(?!\w)", re.IGNORECASE)
    found: Counter = Counter()
    for name, text in texts.items():
        for hit in pattern.finditer(text):
            where = next((w for w, own in planted.items() if hit[0] in own), "in another case")
            found[where, name, hit[0]] += 1
    return found


def test_many_identifiers_were_planted_and_the_search_finds_them_where_they_are(made: Made):
    counts = {where: len(values) for where, values in made.planted.items()}
    assert set(counts) >= {"tags", "private tags", "file and folder names", "reports", "tables"}
    assert min(counts.values()) >= 20 and len(set().union(*made.planted.values())) > 400, counts
    private = made.walk.root / "ingested" / NAME / "private"
    texts = {str(p): text_of(p) for p in private.rglob("*.parquet")}
    tables = made.archive.parent / "tables"
    texts |= {path.name: text_of(path) for path in tables.iterdir()}
    found = {where for where, _, _ in leaks(texts, made.planted)}
    assert found >= {"tags", "reports", "tables"}


def test_none_is_in_what_ingest_and_data_run_write_and_say(made: Made):
    texts = outputs(made)
    expected = {
        f"ingested/{NAME}/images.parquet",
        f"data_cards/{NAME}.md",
        "ingested/own/quality.json",
    }
    expected |= {f"notebooks/presets/{NAME}.yml", f"ingested/{NAME}/dropped.csv"}
    assert expected <= set(texts)
    assert any(name.endswith("notebook.ipynb") for name in texts)
    assert any(name.endswith("manifest.parquet") for name in texts)
    quarantine = [text for name, text in texts.items() if name.endswith("quarantine.csv")]
    assert len(quarantine[0].splitlines()) >= 3  # the files that were spoiled
    assert "x.key is inside" in made.said
    assert leaks(texts, made.planted) == Counter()


def test_reports_are_there_without_what_was_planted(made: Made):
    rows = pd.read_parquet(made.walk.root / "ingested" / NAME / "images.parquet")
    reports = rows["report"].dropna()
    assert len(reports) > 20 and reports.str.contains("IMPRESSION").all()
    staff = r"Taken by \[name\], shown to \[name\] for \[name\]; \[name\] and \[name\] agree"
    assert reports.str.contains(staff).all()  # they have no title: only headers tell their names
    assert reports.str.contains(r"\[name\]").all() and reports.str.contains(r"\[date\]").all()


def test_images_with_burned_in_text_are_set_aside(made: Made):
    truth = pd.read_csv(made.archive.parent / "truth" / "files.csv", dtype=str)
    burned = set(truth.loc[truth["burned_in"] == "True", "path"])
    assert len(burned) >= 5
    links = (made.walk.root / "ingested" / NAME / "images").rglob("*")
    kept = {os.path.relpath(os.readlink(p), made.archive) for p in links if p.is_symlink()}
    assert len(kept) > 20 and kept & set(truth["path"]) == kept
    assert len(burned & kept) <= 0.1 * len(burned), burned & kept


def test_private_parts_are_for_their_owner_alone(made: Made):
    place = made.walk.root / "ingested" / NAME
    key = Path(made.home["HOME"]) / ".config/cxrstudy" / f"{NAME}.key"
    assert (place / "private").stat().st_mode & 0o077 == 0
    assert key.stat().st_mode & 0o077 == 0
    secret = key.read_text().strip()
    assert not any(secret in text for text in outputs(made).values())


def shrink(made: Made, folds: int, paradigms: tuple[str, ...], samples: int, **more: Any) -> None:
    """Let the preset of the ingest have few runs: one size, short training, few baselines."""
    preset = made.walk.root / "notebooks" / "presets" / f"{NAME}.yml"
    made.preset = made.preset or preset.read_text(encoding="utf-8")
    plan = yaml.safe_load(made.preset)
    plan["curves"] = [
        curve | {"n_images": [curve["n_images"][-1]], "samples_seen": samples} | more
        for curve in plan["curves"]
        if curve["paradigm"] in paradigms
    ]
    bases = {curve["base"] for curve in plan["curves"]}
    plan["base"] = {name: facts for name, facts in plan["base"].items() if name in bases}
    shares = [round(1 / folds, 3)] * (folds - 1)
    names = {f"fold{k}": share for k, share in enumerate([*shares, round(1 - sum(shares), 3)])}
    plan |= {"folds": folds, "baselines": ["pixels"]}
    plan["data"]["own"]["fractions"] = names
    plan["classify"]["resamples"] = 50
    preset.write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")


def test_a_tiny_study_of_the_archive_has_its_pages_and_none_is_in_them(
    made: Made, monkeypatch: pytest.MonkeyPatch
):
    """The least that is a study: one encoder in each of three folds, probes, and their analysis."""
    shrink(made, 3, ("clip",), 16, n_images=[16], batch_size=8)
    made.said += made.call("run", "--preset", NAME, "--cores", "2", "--quiet")
    results = pages(made, monkeypatch, f"results-{NAME}", "quality")
    assert "**In short.**" in results[0] and "16 images" in results[0]
    assert "Flow of files and images. files found" in results[1]
    texts = outputs(made)
    for part in ("encoder.json", "scores.parquet", "record.json", "quality.ipynb"):
        assert any(Path(name).name == part for name in texts), part
    assert leaks(texts, made.planted) == Counter()


def pages(made: Made, monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Compute these pages as the build of the book does, which computes all; return their text."""
    monkeypatch.setenv("CXRSTUDY_ROOT", str(made.walk.root))
    monkeypatch.setenv("CXRSTUDY_RUNS", str(made.walk.runs))
    top = made.walk.root / "_build"
    plan = book.assemble(top)
    write_text(top / "pages.json", json.dumps(plan))
    files = [f"src/{name}.ipynb" for name in names]
    call = [sys.executable, "-m", "snakemake", "-s", str(made.walk.root / "book" / "Snakefile")]
    call += ["--directory", str(top), "--config", "plan=pages.json", "--cores", "2", "--", *files]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [(top / file).read_text(encoding="utf-8") for file in files]


@pytest.mark.slow
def test_none_is_in_a_whole_study_and_its_pages(made: Made):
    shrink(made, 5, ("clip", "dinov2"), 160)
    made.said += made.call("run", "--preset", NAME, "--quiet")
    made.said += made.call("runs")
    made.said += made.call("book")
    texts = outputs(made)
    for part in ("encoder.json", "scores.parquet", "record.json", "quality.html", "runs.html"):
        assert any(Path(name).name == part for name in texts), part
    assert leaks(texts, made.planted) == Counter()
