"""A simulated hospital: files, a table and the card `own`, for tests that open no image."""

from pathlib import Path

import pandas as pd
from conftest import Walk

CARD = """---
name: own
title: "One hospital's x-rays: a # test"
kind: real
licence: own
access: ask
citation: none
table:
  path: t.csv
  image_id: image
  patient_id: patient
  study_id:
    - image
{more}images:
  - images/*
{labels}---
"""
LABELS = """labels:
  encoding: columns
  missing: unknown
  values:
    "1": 1
    "0": 0
  names:
    covid: covid
    picc: line
"""


def hospital(
    walk: Walk, n: int, *, reports: bool = True, labels: bool = True, masks: bool = False
) -> Path:
    """A folder of ``n`` files for images, two for each patient, with its card ``own``."""
    root = walk.root / "files"
    (root / "images").mkdir(parents=True, exist_ok=True)
    names = [f"a{k}.png" for k in range(n)]
    for name in names:
        (root / "images" / name).touch()
    table = pd.DataFrame({"image": names, "patient": [f"p{k // 2}" for k in range(n)]})
    table["text"] = "No pleural effusion."
    table["covid"] = [(k // 2) % 2 for k in range(n)]
    table["line"] = [int(k < 2) for k in range(n)]
    table["mask"] = table["image"].map(lambda name: f"images/{name}")
    table.to_csv(root / "t.csv", index=False)
    more = "  report: text\n" * reports + "  masks:\n    picc: mask\n" * masks
    (walk.root / "data_cards" / "own.md").write_text(CARD.format(more=more, labels=LABELS * labels))
    return root
