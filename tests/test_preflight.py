"""Faults of a preset are reported before anything runs: all, each with the line to change."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import ROOT, Walk, clone
from hospitals import hospital
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy import grid, preflight, study
from cxrstudy.data import cards
from cxrstudy.marks import line_of

REAL = ROOT.parent / "shared" / "data"
PRESET = """title: Own
minutes: 1
hardware: any
needs_root: true
data:
  study:
    card: own
    n_images: 0
    size: 64
    fractions:
      pretrain: 0.4
      train: 0.25
      validation: 0.1
      test: 0.25
base:
  clip-hybrid:
    checkpoint: book/recorded/bases/clip-hybrid
curves:
  - data: study
    base: clip-hybrid
    paradigm:
      - clip
      - unicl
      - dinov2
    n_images:
      - 32
      - 100
    samples_seen: 640
    batch_size: 32
baselines:
  - pixels
  - shuffled
classify:
  resamples: 100
  labels:
    - covid
"""


def check(
    walk: Walk, root: Path | str, text: str = PRESET, **settings: Any
) -> list[preflight.Problem]:
    (walk.root / "notebooks" / "presets" / "own.yml").write_text(text, encoding="utf-8")
    try:
        preset = grid.override(grid.load_preset("own"), settings)
    except study.StudyError as error:
        return [preflight.Problem("error", "", str(error))]
    return preflight.check(preset, str(root))


def said(found: list[preflight.Problem], level: str) -> list[str]:
    return [f"{problem.where}: {problem.message}" for problem in found if problem.level == level]


def line(text: str, *keys: str | int) -> int:
    return line_of(text, *keys)


def test_a_preset_that_fits_has_neither_errors_nor_warnings_and_counts_its_labels(
    walk: Walk,
) -> None:
    found = check(walk, hospital(walk, 400))
    assert [str(problem) for problem in found if problem.level != "note"] == []
    assert "data study: 400 images of 200 patients" in "\n".join(map(str, found))
    manifest = pd.read_csv(walk.root / "files" / "t.csv", dtype={"patient": str})
    from cxrstudy.data.manifest import assign_splits

    split = assign_splits(
        manifest.rename(columns={"patient": "patient_id"}),
        fractions={"pretrain": 0.4, "train": 0.25, "validation": 0.1, "test": 0.25},
    )
    for part in ("train", "validation", "test"):
        rows = split[split["split"] == part]
        assert (
            f"{part} {(rows['covid'] == 1).sum()} with, {(rows['covid'] == 0).sum()} without"
            in str(found[-1])
        )


CHANGES = [  # (old, new, what is said, the text of the line that is named)
    ("    n_images: 0\n", "    n_images: 3000\n", "card own has 400 images", "    n_images: 3000"),
    ("test: 0.25\n", "test: 0.35\n", "sum to 1; 0.4 + 0.25 + 0.1 + 0.35 is 1.1", "    fractions:"),
    (
        "      validation: 0.1\n      test: 0.25\n",
        "      test: 0.35\n",
        "split 'validation'",
        "classify:",
    ),
    ("      - 100\n", "      - 300\n", "n_images 300 (clip)", "      - 300"),
    (
        "    batch_size: 32\n",
        "    batch_size: 64\n",
        "batch_size 64 exceeds n_images 32",
        "    batch_size: 64",
    ),
    (
        "samples_seen: 640",
        "samples_seen: 50",
        "n_images (100) is larger than samples_seen (50)",
        "      - 100",
    ),
    ("    size: 64\n", "    size: 128\n", "takes images of 64 px", "    size: 128"),
    (
        "bases/clip-hybrid",
        "bases/gone",
        "no encoder at",
        "    checkpoint: book/recorded/bases/gone",
    ),
    ("  - pixels\n", "  - pixls\n", "no encoder 'pixls'", "  - pixls"),
    (
        "  - pixels\n",
        "  - random:resnet_nosuch\n",
        "no encoder 'resnet_nosuch'",
        "  - random:resnet_nosuch",
    ),
    ("    - covid\n", "    - covit\n", "no label 'covit'; it has picc, covid", "  labels:"),
    ("  resamples: 100\n", "  resamples: 3\n", "resamples: Input should be", "  resamples: 3"),
    ("  resamples: 100\n", "  resample: 100\n", "unknown parameter 'resample'", "  resample: 100"),
    ("  resamples: 100\n", "  within: nosuch == 1\n", "is no query", "  within: nosuch == 1"),
    ("  resamples: 100\n", "  within: covid == 9\n", "within", "  within: covid == 9"),
    ("    card: own\n", "    card: owen\n", "no data card 'owen'", "    card: owen"),
    ("classify:\n", "segment:\n  sizes: none\nclassify:\n", "segment needs masks", "segment:"),
    ("    base: clip-hybrid\n", "    encoder: vit_tiny_patch16_224\n", "", ""),
    ("    size: 64\n", "    size: 72\n", "takes images of 64 px", "    size: 72"),
    ("  - data: study\n", "  - data: studdy\n", "'studdy'", ""),
    ("needs_root: true\n", "needs_root: maybe\n", "needs_root", ""),
]


@pytest.mark.parametrize(("old", "new", "what", "marked"), CHANGES)
def test_a_fault_is_an_error_with_its_line(
    walk: Walk, old: str, new: str, what: str, marked: str
) -> None:
    assert old in PRESET
    text = PRESET.replace(old, new, 1)
    errors = said(check(walk, hospital(walk, 400), text), "error")
    if not what:
        assert errors == []
        return
    hits = [error for error in errors if what in error]
    assert hits, errors
    if marked:
        number = text.splitlines().index(marked) + 1
        assert f"own.yml:{number}:" in hits[0]


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("needs_root: true", "needs_root: maybe", "needs_root: expected true or false"),
        ("baselines:", "baslines:", "unknown name 'baslines'; near it: 'baselines'"),
        ("hardware: any", "hardware: any: one", "put the value in double quotes"),
    ],
)
def test_a_preset_that_does_not_load_is_told_with_its_line(
    walk: Walk, old: str, new: str, what: str
) -> None:
    text = PRESET.replace(old, new, 1)
    (error,) = said(check(walk, "", text), "error")
    assert f"own.yml:{text.splitlines().index(new) + 1}: " in error
    assert what in error


def test_all_faults_are_told_at_once_and_nothing_runs(walk: Walk) -> None:
    text = PRESET
    singly = [
        change
        for change in CHANGES
        if change[3] and change[0] not in ("  resamples: 100\n", "    card: own\n")
    ]
    seen: set[str] = set()
    told = []
    for old, new, what, _ in singly:
        if (
            old not in seen
            and old in text
            and what not in ("split 'validation'", "takes images of 64 px")
        ):
            seen.add(old)
            text = text.replace(old, new, 1)
            told.append(what.replace("(100)", "(300)"))
    assert len(told) >= 7
    root = hospital(walk, 400)
    errors = "\n".join(said(check(walk, root, text), "error"))
    assert [what for what in told if what not in errors and "300" not in what] == []
    done = walk.call("run", "--preset", "own", "--data-root", str(root))
    assert done.returncode == 2
    assert not walk.runs.exists()
    assert done.stderr.count("error: ") >= 6
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("reports", "labels", "errors", "warnings"),
    [
        (False, True, ["clip needs reports"], []),
        (
            True,
            False,
            ["unicl needs labels"],
            ["no finding, line or tube is evaluated", "shuffled needs labels"],
        ),
        (
            False,
            False,
            ["clip needs reports", "unicl needs labels"],
            ["nothing is left to evaluate"],
        ),
    ],
)
def test_what_the_card_lacks_is_told(
    walk: Walk, reports: bool, labels: bool, errors: list[str], warnings: list[str]
) -> None:
    text = PRESET.replace("  labels:\n    - covid\n", "")
    root = hospital(walk, 400, reports=reports, labels=labels)
    found = check(walk, root, text)
    told = said(found, "error")
    assert len(told) == len(errors)
    for error, what in zip(told, errors, strict=True):
        assert what in error
        assert "out of `paradigm`" in error
        paradigm = what.split()[0]
        assert f"own.yml:{text.splitlines().index(f'      - {paradigm}') + 1}:" in error
    for what in warnings:
        assert what in "\n".join(said(found, "warning"))
    alone = text.replace("      - clip\n", "" if not reports else "      - clip\n")
    alone = alone.replace("      - unicl\n", "" if not labels else "      - unicl\n")
    assert said(check(walk, root, alone), "error") == []


def test_rows_without_a_file_are_counted_and_beyond_a_twentieth_warned_of(walk: Walk) -> None:
    root = hospital(walk, 400)
    (root / "images" / "a0.png").unlink()
    found = check(walk, root)
    assert said(found, "warning") == []
    assert re.search(r"399 images .*left out of the table: 1 \w", "\n".join(map(str, found)))
    for k in range(1, 40):
        (root / "images" / f"a{k}.png").unlink()
    found = check(walk, root)
    assert any(
        "40 of 400 rows of the table are left out" in each for each in said(found, "warning")
    )
    done = walk.call("run", "--preset", "own", "-n", "--data-root", str(root))
    assert done.returncode == 0, done.stderr
    assert "40 of 400 rows" in done.stdout


def test_images_without_a_report_are_left_out_of_clip_alone_and_counted(walk: Walk) -> None:
    root = hospital(walk, 400)
    table = pd.read_csv(root / "t.csv", dtype=str)
    table.loc[table.index[::2], "text"] = ""
    table.to_csv(root / "t.csv", index=False)
    found = check(walk, root)
    pool = len(preflight_pool(walk, root))
    (error,) = said(found, "error")
    assert (
        f"n_images 100 (clip): split pretrain of data study holds {pool // 2} images that have a "
        "report" in error
    )
    (warning,) = said(found, "warning")
    assert (
        f"{pool // 2} of {pool} in split pretrain are left out; the same at every n_images"
        in warning
    )


def preflight_pool(walk: Walk, root: Path) -> pd.DataFrame:
    from cxrstudy.data.cards import load_manifest
    from cxrstudy.data.manifest import assign_splits

    fractions = yaml.safe_load(PRESET)["data"]["study"]["fractions"]
    manifest = assign_splits(load_manifest("own", root=root), fractions=fractions)
    return manifest[manifest["split"] == "pretrain"]


@settings(max_examples=15, deadline=None)
@given(n=st.integers(2, 400))
def test_a_size_is_refused_exactly_where_the_split_holds_fewer(n: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXRSTUDY_ROOT", str(PLACE.root))
        patch.setenv("CXRSTUDY_RUNS", str(PLACE.runs))
        root = PLACE.root / "files"
        pool = len(preflight_pool(PLACE, root))
        text = PRESET.replace("      - 100\n", "").replace("      - 32\n", f"      - {n}\n")
        found = check(PLACE, root, text.replace("batch_size: 32", "batch_size: 2"))
        assert bool(said(found, "error")) == (n > pool)


@pytest.fixture(autouse=True, scope="module")
def _place(tmp_path_factory: pytest.TempPathFactory) -> None:
    global PLACE
    PLACE = clone(tmp_path_factory.mktemp("place"))
    hospital(PLACE, 400)


PLACE: Walk


def test_too_few_of_a_label_says_how_many_there_are_and_are_needed(walk: Walk) -> None:
    found = check(
        walk, hospital(walk, 400), PRESET.replace("    - covid\n", "    - covid\n    - picc\n")
    )
    (warning,) = said(found, "warning")
    assert "needed are 10 test images with and 10 without, of 5 patients each" in warning
    assert re.search(
        r"picc \(train \d+ with, \d+ without; validation \d+ with, \d+ without; test \d+ with",
        warning,
    )
    assert "covid (" not in warning
    assert said(found, "error") == []


def test_the_least_that_a_label_needs_is_what_evaluation_needs() -> None:
    from cxrstudy.evaluate import small_samples
    from cxrstudy.preflight import labels

    assert (labels.LEAST, labels.LEAST_PATIENTS) == (
        small_samples.LEAST,
        small_samples.LEAST_PATIENTS,
    )


def test_our_architectures_are_known_without_importing_them_and_fit_as_they_are_built() -> None:
    import torch

    from cxrstudy import encoders
    from cxrstudy.preflight import presence

    assert set(presence.OURS) == set(encoders.SMALL)
    for name in presence.OURS:
        for size in (32, 36, 37, 40, 41, 48, 60, 64, 72, 96, 100, 128):
            try:
                with torch.device("meta"):
                    encoders.build_encoder(name, size)
                fits = True
            except ValueError:
                fits = False
            assert (presence.unfit(name, size) == "") == fits, (name, size)


@pytest.mark.parametrize("encoder", ["vit_base_patch14_dinov2", "vit_tiny_patch16_224"])
def test_patches_that_do_not_divide_the_image_are_refused_with_sizes_that_do(
    walk: Walk, encoder: str
) -> None:
    text = PRESET.replace("    base: clip-hybrid\n", f"    encoder: {encoder}\n").replace(
        "size: 64", "size: 60"
    )
    (error,) = said(check(walk, hospital(walk, 400), text), "error")
    assert "do not divide 60 px" in error
    assert f"own.yml:{text.splitlines().index('    size: 60') + 1}" in error


def test_the_patients_of_a_base_do_not_judge_it(walk: Walk) -> None:
    root = hospital(walk, 400)
    listed = walk.root / "book" / "recorded" / "bases" / "clip-hybrid" / "patients.txt"
    listed.write_text("\n".join(f"p{k}" for k in range(200)))
    (error,) = said(check(walk, root), "error")
    assert "patients of data study were in the pretraining of base clip-hybrid" in error


def test_a_fault_of_the_card_names_the_card_and_its_line(walk: Walk) -> None:
    root = hospital(walk, 400)
    path = walk.root / "data_cards" / "own.md"
    path.write_text(path.read_text().replace("    covid: covid\n", "    covid: covit\n"))
    (error,) = said(check(walk, root), "error")
    number = path.read_text().splitlines().index("    covid: covit") + 1
    assert f"own.md:{number}" in error
    assert "'covit'" in error


@pytest.mark.parametrize("root", ["", "/nosuch/folder"])
def test_a_folder_that_is_not_there_is_told_once(walk: Walk, root: str) -> None:
    hospital(walk, 400)
    (error,) = said(check(walk, root), "error")
    assert "--data-root" in error


def test_a_data_root_that_no_data_set_reads_is_refused_unless_it_comes_from_the_environment(
    walk: Walk,
) -> None:
    done = walk.call("run", "--preset", "smoke", "-n", "--data-root", "/tmp")
    assert done.returncode == 2
    assert "--data-root /tmp" in done.stderr
    assert walk.call("run", "--preset", "smoke", "-n", DATA_ROOT="/tmp").returncode == 0


def test_a_changed_value_is_named_as_it_was_given(walk: Walk) -> None:
    root = hospital(walk, 400)
    (error,) = said(
        check(walk, root, **{"n_images": 350, "samples_seen": 640, "paradigm": "dinov2"}), "error"
    )
    assert error.startswith("--set n_images: n_images 350 (dinov2)")
    (error,) = said(check(walk, root, **{"classify.labels": ["nosuch"]}), "error")
    assert error.startswith("--set classify.labels: ")


def test_disk_and_memory_are_checked(walk: Walk) -> None:
    root = hospital(walk, 400)
    warnings = said(check(walk, root, PRESET + "disk_gb: 1000000\nmemory_gb: 1000000\n"), "warning")
    assert len(warnings) == 2
    assert "GB of disk" in warnings[0] and "GB of memory" in warnings[1]
    huge = said(
        check(
            walk,
            "",
            PRESET.replace("card: own", "card: synthetic").replace(
                "n_images: 0", "n_images: 1000000000"
            ),
        ),
        "error",
    )
    assert any("the prepared images take 4,096.0 GB" in error for error in huge)


@pytest.mark.parametrize(
    "name", [n for n in grid.preset_names() if not grid.load_preset(n).needs_root]
)
def test_presets_that_ship_have_no_warnings_and_take_no_time(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxrstudy.preflight import steps

    monkeypatch.setattr(steps, "memory_gb", lambda: 64.0)
    began = time.perf_counter()
    preset = grid.load_preset(name)
    for changed in ({}, *preset.variants.values()):
        assert preflight.check(grid.override(preset, changed)) == []
    assert time.perf_counter() - began < 1


def test_checking_what_is_drawn_imports_no_torch() -> None:
    code = "import sys; from cxrstudy import grid, preflight; "
    code += "preflight.check(grid.load_preset('mini')); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.skipif(
    not (REAL / "nih_subset").is_dir(),
    reason="../shared/data is absent: the real sample is not here",
)
def test_presets_for_real_x_rays_pass_on_the_sample() -> None:
    found = preflight.check(grid.load_preset("nih-small"), str(REAL / "nih_subset"))
    assert said(found, "error") == said(found, "warning") == []


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3), st.integers(0, 3))
def test_a_line_is_that_of_the_key_where_it_is_written(keys: list[str], blank: int) -> None:
    text = "\n" * blank + "".join("  " * depth + f"{key}:\n" for depth, key in enumerate(keys))
    text = text.rstrip("\n") + " 1\n"
    assert line_of(text, *keys) == blank + len(keys)
    assert line_of(text, *keys, "nosuch") == blank + len(keys)


def test_lines_of_lists_and_of_what_is_merged() -> None:
    text = "x:\n  - &one\n    n: [1,\n        2]\n    m: 1\n  - {<<: *one, k: 2}\n"
    assert line_of(text, "x", 0, "n", 1) == 4
    assert line_of(text, "x", 1, "m") == 5
    assert line_of(text, "x", 1, "k") == 6
    assert line_of("a: [", "a") == 1
    assert issubclass(study.StudyError, ValueError)


def test_reports_in_another_language_are_warned_of(walk: Walk) -> None:
    root = hospital(walk, 400)
    table = pd.read_csv(root / "t.csv", dtype=str)
    table.loc[table.index[:200], "text"] = "Kein Pneumothorax. Kein Erguss."
    table.to_csv(root / "t.csv", index=False)
    warned = "\n".join(said(check(walk, root), "warning"))
    assert "of 400 reports read, 200 are not in English (German 200)" in warned


def diagnoses(walk: Walk, labels: str) -> Path:
    """A hospital with one column ``Diagnosis`` instead of one for each label; a fourth is empty."""
    root = hospital(walk, 400)
    rows = pd.read_csv(root / "t.csv").drop(columns=["covid", "line"])
    kinds = ["bacterial", "viral; effusion", "normal", ""]
    rows["Diagnosis"] = [kinds[(k // 2) % 4] for k in range(len(rows))]
    rows.to_csv(root / "t.csv", index=False)
    path = walk.root / "data_cards" / "own.md"
    path.write_text(
        re.sub(r"labels:\n.*?---\n", labels + "---\n", path.read_text(), flags=re.DOTALL)
    )
    return root


LISTED = """labels:
  encoding: list
  column: Diagnosis
  separator: ";"
  names:
    viral: viral
    effusion: Effusion
  missing: absent
"""
AGAINST = """labels:
  encoding: columns
  names:
    bacterial: Diagnosis
  values:
    bacterial: 1
    viral; effusion: 0
    normal: null
  missing: unknown
"""


def test_one_column_of_diagnoses_gives_a_label_a_name(walk: Walk) -> None:
    found = check(
        walk,
        diagnoses(walk, LISTED),
        PRESET.replace("    - covid\n", "    - viral\n    - effusion\n"),
    )
    assert said(found, "error") == said(found, "warning") == []
    (manifest,) = [cards.load_manifest("own", root=walk.root / "files")]
    assert manifest["label:viral"].value_counts().to_dict() == {0.0: 300, 1.0: 100}
    assert manifest["label:viral"].equals(manifest["label:effusion"])


def test_one_value_against_another_leaves_the_rest_unknown(walk: Walk) -> None:
    found = check(
        walk, diagnoses(walk, AGAINST), PRESET.replace("    - covid\n", "    - bacterial\n")
    )
    assert said(found, "error") == []
    label = cards.load_manifest("own", root=walk.root / "files")["label:bacterial"]
    assert (label == 1).sum() == (label == 0).sum() == 100 and label.isna().sum() == 200


@pytest.mark.parametrize(
    ("encoding", "empty"), [("list", "a name that is not listed"), ("columns", "an empty cell")]
)
def test_a_label_without_negatives_names_the_mend(walk: Walk, encoding: str, empty: str) -> None:
    text = (
        LISTED
        if encoding == "list"
        else AGAINST.replace("viral; effusion: 0", "viral; effusion: null")
    )
    text = text.replace("missing: absent", "missing: unknown")
    name = "viral" if encoding == "list" else "bacterial"
    found = check(walk, diagnoses(walk, text), PRESET.replace("    - covid\n", f"    - {name}\n"))
    (told,) = [p for p in said(found, "warning") + said(found, "error") if "too few" in p]
    number = (walk.root / "data_cards" / "own.md").read_text().splitlines().index(
        "  missing: unknown"
    ) + 1
    assert f"if {empty} means absent, write `missing: absent`, data_cards/own.md:{number}" in told


def test_a_label_without_positives_points_at_the_map(walk: Walk) -> None:
    text = AGAINST.replace("bacterial: 1", "bacterial: 0")
    found = check(walk, diagnoses(walk, text), PRESET.replace("    - covid\n", "    - bacterial\n"))
    (told,) = [p for p in said(found, "warning") + said(found, "error") if "too few" in p]
    assert "nothing says that it is present: see `values` and `names`, data_cards/own.md:" in told


def test_a_card_of_another_name_than_its_file_is_warned_of(walk: Walk) -> None:
    root = hospital(walk, 400)
    path = walk.root / "data_cards" / "own.md"
    path.write_text(path.read_text().replace("name: own", "name: site"))
    (warning,) = said(check(walk, root), "warning")
    assert "data_cards/own.md:2: the card's name is 'site'" in warning and "`name: own`" in warning
    elsewhere = walk.root / "mine.md"
    elsewhere.write_text(path.read_text())
    found = check(walk, root, PRESET.replace("card: own", f"card: {elsewhere}"))
    assert any("mine.md:2: " in w and "`name: mine`" in w for w in said(found, "warning"))
