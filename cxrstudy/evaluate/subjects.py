"""Evaluated encoders: how a name opens one, its pretraining patients, and refusal of leaks."""

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
    """Open the encoder that a value of the parameter ``encoder`` names.

    Args:
        name: a folder or published weights, ``pixels``, ``random:NAME``, ``covariates``,
            ``supervised:NAME`` (an architecture, or an encoder to continue), or a table of vectors.
        size: height and width of the images, in pixels.
        seed: of random weights.

    Returns:
        (encoder, subject, patients in its pretraining). The encoder is None for ``covariates``, not
        yet trained for ``supervised:NAME``, and ``Embeddings`` for a table of vectors, whose
        patients are read from a ``patients.txt`` beside it, if any.

    Raises:
        MissingWeights: there are no such weights or table.
        LeakError: the pretraining patients of an encoder are not known.
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
        listed = encoders.listed_patients(path.parent)
        return embeddings.read_embeddings(path), info, listed or set()
    folder = encoders.encoder_folder(path)
    encoder = encoders.load_encoder(folder or name, size=size, seed=seed)
    if folder is None:
        control = name == "pixels" or name.startswith("random:")
        paradigm = "control" if control else "open weights"
        return encoder, blank | {"paradigm": paradigm, "seed": seed}, set()
    listed = encoders.listed_patients(folder)
    if encoder.info.get("n_images") and listed is None:
        raise LeakError(
            f"{folder}: patients.txt is missing, so the patients of its pretraining are unknown; "
            "run it again"
        )
    return encoder, dict(encoder.info), listed or set()


def refuse_leak(seen: set[str], evaluated: pd.DataFrame, name: str) -> None:
    """Refuse to evaluate an encoder on patients of its pretraining.

    Args:
        seen: patients of the pretraining.
        evaluated: a table with the column ``patient_id``.
        name: of the encoder, for the message.

    Raises:
        LeakError: patients are in both; with their number and the first.
    """
    shared = sorted(seen & set(evaluated["patient_id"]))
    if shared:
        raise LeakError(
            f"{len(shared)} patients of the evaluation of encoder {name} were in its pretraining "
            f"(first: {shared[0]}); pretrain on splits without them"
        )


def refuse_overlap(train: pd.DataFrame, validation: pd.DataFrame, test: pd.DataFrame) -> None:
    """Refuse to test a probe on patients of its training or validation.

    The tables have the column ``patient_id``.

    Raises:
        LeakError: test patients are among the others; with their number and the first.
    """
    fitted_on = set(train["patient_id"]) | set(validation["patient_id"])
    shared = sorted(fitted_on & set(test["patient_id"]))
    if shared:
        raise LeakError(
            f"{len(shared)} test patients are training or validation patients too "
            f"(first: {shared[0]}); name splits and data sets that share no patient"
        )


def described(
    p: study.Classify, prepared: Prepared, cohort: Cohort, name: str, subject: dict[str, Any]
) -> dict[str, Any]:
    """Add to a subject what it was evaluated on, and return it."""
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
        encoder = f"shuffled labels, {subject['encoder']}"
        subject |= {"paradigm": "control", "encoder": encoder, "base": None}
    return subject
