"""Whose numbers they are: encoders by name, whom they were pretrained on, and what nobody may evaluate."""

from pathlib import Path
from typing import Any

import pandas as pd

from cxrstudy import encoders, study, weights
from cxrstudy.data.images import Prepared
from cxrstudy.data.manifest import patients_hash
from cxrstudy.evaluate import embeddings
from cxrstudy.evaluate.cohort import Cohort

Subject = tuple[Any, dict[str, Any], set[str]]
SUPERVISED = "supervised:"


class LeakError(ValueError):
    """A patient who must not be in an encoder's pretraining is in it."""


def open_subject(name: str, size: int, seed: int) -> Subject:
    """(encoder, what it is, patients it was pretrained on) for a value of the parameter ``encoder``.

    The encoder is None for ``covariates``, not trained on the labels yet for ``supervised:NAME`` (an architecture, or
    an encoder that training goes on from), and ``Embeddings`` for a table of vectors; whom that one's encoder
    has seen may be said in a ``patients.txt`` beside it.
    """
    blank = {"paradigm": "control", "encoder": name, "n_images": 0, "samples_seen": 0}
    if name == "covariates":
        return None, blank, set()
    if name.startswith(SUPERVISED):
        inner = name.removeprefix(SUPERVISED)
        known = encoders.encoder_folder(study.resolve(inner)) or inner in weights.REGISTRY
        encoder, _, patients = open_subject(inner if known else f"random:{inner}", size, seed)
        return encoder, blank | {"seed": seed}, patients
    path = study.resolve(name)
    if path.suffix.lower() in embeddings.TABLES:
        if not path.is_file():
            raise encoders.MissingWeights(f"no table of embeddings at {path}")
        info = blank | {"paradigm": "embeddings", "encoder": path.name}
        return (
            embeddings.read_embeddings(path),
            info,
            encoders.listed_patients(path.parent) or set(),
        )
    folder = encoders.encoder_folder(path)
    encoder = encoders.load_encoder(folder or name, size=size, seed=seed)
    if folder is None:
        control = name == "pixels" or name.startswith("random:")
        return (
            encoder,
            blank | {"paradigm": "control" if control else "open weights", "seed": seed},
            set(),
        )
    listed = encoders.listed_patients(folder)
    if encoder.info.get("n_images") and listed is None:
        raise LeakError(
            f"{folder}: patients.txt is missing: nobody can tell whom it was pretrained on; run it again"
        )
    return encoder, dict(encoder.info), listed or set()


def refuse_leak(seen: set[str], judged: pd.DataFrame, name: str) -> None:
    """LeakError, with their number and the first, when patients of ``judged`` (column ``patient_id``) are among those
    ``seen`` in the pretraining of encoder ``name``."""
    shared = sorted(seen & set(judged["patient_id"]))
    if shared:
        raise LeakError(
            f"{len(shared)} patients who judge encoder {name} were in its pretraining (first: {shared[0]}); "
            "pretrain on splits that hold none of them"
        )


def refuse_overlap(train: pd.DataFrame, validation: pd.DataFrame, test: pd.DataFrame) -> None:
    """LeakError, with their number and the first, when training or validation patients of a probe are test patients.

    Tables with a column ``patient_id``: what is fitted on a patient, or chosen on one, must not be judged on them.
    """
    shared = sorted(
        (set(train["patient_id"]) | set(validation["patient_id"])) & set(test["patient_id"])
    )
    if shared:
        raise LeakError(
            f"{len(shared)} test patients are training or validation patients too (first: {shared[0]}); "
            "name splits, and data sets, that share no patient"
        )


def described(
    p: study.Classify, prepared: Prepared, cohort: Cohort, name: str, subject: dict[str, Any]
) -> dict[str, Any]:
    """``subject``, opened by its ``name``, with what it was evaluated on."""
    subject |= {
        "trained_on": subject.get("institution"),
        "data": Path(p.data).name,
        "kind": prepared.info["kind"],
        "institution": prepared.info["institution"],
        "generator": prepared.info.get("generator"),
        "patients": patients_hash(pd.concat([table for part in cohort.parts for table in part])),
    }
    if name.startswith(SUPERVISED):
        subject["samples_seen"] = p.supervised_samples
    if p.shuffle_labels:  # a control, whatever its encoder
        subject |= {
            "paradigm": "control",
            "encoder": f"shuffled labels, {subject['encoder']}",
            "base": None,
        }
    return subject
