"""Report generation on a frozen encoder: encode, train, generate, score, compare with baselines."""

import math
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cxrstudy import study
from cxrstudy.data.images import Prepared
from cxrstudy.evaluate import textscores
from cxrstudy.evaluate.cohort import cap_split, select_rows, split_rows
from cxrstudy.evaluate.features import covariates, encode_batches, pool_tokens
from cxrstudy.evaluate.features import device as torch_device
from cxrstudy.evaluate.protocol import open_frozen_encoder
from cxrstudy.evaluate.report_generator import ReportGenerator, fit_generator
from cxrstudy.evaluate.small_samples import set_aside
from cxrstudy.progress import Progress

IN_MEMORY = 2**31  # bytes of patch features; more go to a file of the run's folder


def encode_tokens(
    encoder: Any,
    prepared: Prepared,
    rows: np.ndarray,
    *,
    grid: int,
    folder: Path | None = None,
    **how: Any,
) -> np.ndarray:
    """Return patch features (n,T,C) float16 of some rows, by one pass of the encoder.

    Args:
        encoder: The encoder; None = `covariates`, as one token.
        grid: Patches are averaged to at most grid x grid; 0 = all are kept.
        folder: Folder whose unnamed file holds the result if it is larger than IN_MEMORY bytes.
        **how: As `features.encode_batches`.

    Raises:
        ValueError: A feature is not finite in half precision.
    """
    if encoder is None:
        return covariates(prepared.manifest)[rows, None].astype(np.float16)
    done, out = 0, np.empty(0)
    for patches, _ in encode_batches(encoder, prepared, rows, **how):  # (n,T,C)
        side = math.isqrt(patches.shape[1])
        pooled = pool_tokens(patches, f"grid{min(grid or side, side)}")
        pooled = pooled.reshape(*patches.shape[::2], -1).transpose(1, 2)  # (n,T',C)
        chunk = pooled.cpu().numpy()
        if not (np.abs(chunk) < np.finfo(np.float16).max).all():
            raise ValueError("the encoder gives features that are not finite in half precision")
        if not done:
            shape = (len(rows), *chunk.shape[1:])
            in_memory = folder is None or 2 * math.prod(shape) <= IN_MEMORY
            out = np.empty(shape, np.float16) if in_memory else _mapped(shape, folder)
        out[done : done + len(chunk)] = chunk
        done += len(chunk)
    return out


def _mapped(shape: tuple[int, ...], folder: Path | None) -> np.ndarray:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    unnamed: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - gone once it is not mapped
    return np.memmap(unnamed, np.float16, "w+", shape=shape)


def run(p: study.Report, prepared: Prepared, *, progress: Progress = iter) -> dict[str, Any]:
    """Train a generator on one frozen encoder and score the test patients' reports.

    Baselines: the same generator given another patient's image, which shows what it writes without
    seeing the patient; the most frequent training report; a random training report.

    Returns:
        ``reports``: a table of image_id, patient_id, truth, generated, other_patient and each
        report's scores (see `textscores.per_report`); ``metrics`` of task "reports", where a
        baseline's label begins with its name, as in "other patient: all"; ``history`` (see
        `fit_generator`); ``subject``; ``info``; ``generator``; ``tokens`` of the test rows (N,T,C);
        ``test`` (a manifest).

    Raises:
        LeakError: A patient was in the encoder's pretraining, or a test patient is in another part
            too.
        ValueError: A part has no report, or a baseline cannot be made.
    """
    torch.set_num_threads(p.threads)
    table = select_rows(prepared, p.within, source=p.data)
    table = table.assign(text=textscores.texts(table, p.part))
    with_report = table[table["text"] != ""]
    if with_report.empty:
        raise ValueError(
            f"part: none of {len(table)} images of {p.data} has a report with {p.part!r}"
        )
    split = split_rows(with_report, (p.train, p.validation, p.test), "image with a report")
    split = cap_split(split, (p.n_train, p.n_validation, p.n_test), p.seed)
    encoder, subject = open_frozen_encoder(p, prepared, split, "patch features")
    test, patients = split.test, split.test["patient_id"].to_numpy()
    other = textscores.other_patients(patients, p.seed)
    clock = [time.perf_counter()]
    rows = np.concatenate([part["row"].to_numpy() for part in split])
    folder = study.resolve(p.out) if p.out else None
    tokens = encode_tokens(encoder, prepared, rows, grid=p.grid, folder=folder, progress=progress)
    x_train, x_val, x_test = np.split(tokens, np.cumsum([len(part) for part in split])[:-1])
    train, validation, truth = (part["text"].tolist() for part in split)
    clock.append(time.perf_counter())
    with torch.random.fork_rng():
        torch.manual_seed(p.seed)
        generator = ReportGenerator(p, x_train, train).to(torch_device())
        history = fit_generator(
            generator, p, (x_train, train), (x_val, validation), progress=progress
        )
    clock.append(time.perf_counter())
    generated = generator.generate(x_test, p, progress=progress)
    clock.append(time.perf_counter())
    # nothing is sampled: the report for another patient's image is the one generated for that image
    swapped = [generated[i] for i in other]
    reports = pd.DataFrame(
        {"image_id": test["image_id"], "patient_id": test["patient_id"], "truth": truth}
    )
    reports = reports.assign(generated=generated, other_patient=swapped)
    names = ("seconds_encode", "seconds_train", "seconds_generate")
    info = {
        "train_images": len(train),
        "validation_images": len(validation),
        "test_images": len(test),
        "test_patients": int(test["patient_id"].nunique()),
        "without_report": len(table) - len(with_report),
        "patches": int(tokens.shape[1]),
        "features": int(tokens.shape[2]),
        **_training_info(generator, history, train),
        **dict(zip(names, np.diff(clock).round(2).tolist(), strict=True)),
    }
    return {
        "reports": reports.join(textscores.per_report(generated, truth, uncertain=p.uncertain)),
        "metrics": _metrics(p, generated, swapped, train, patients, truth),
        "history": history,
        "subject": subject,
        "info": info,
        "generator": generator,
        "tokens": x_test,
        "test": test,
    }


def _training_info(
    generator: ReportGenerator, history: pd.DataFrame, train: list[str]
) -> dict[str, Any]:
    """Return the part of ``info`` that describes model and training."""
    checks, ids = history.dropna(subset="validation"), generator.ids(train)
    trained = [weight for weight in generator.parameters() if weight.requires_grad]
    return {
        "trained_parameters": sum(weight.numel() for weight in trained),
        "parameters": sum(weight.numel() for weight in generator.parameters()),
        "tokens_a_report": float(np.mean([len(one) for one in ids])),
        "reports_cut": float(np.mean([one[-1] != generator.end for one in ids])),
        "best_step": int(checks.loc[checks["validation"].idxmin(), "step"]),
        "validation_loss": float(checks["validation"].min()),
    }


def _metrics(
    p: study.Report,
    generated: list[str],
    swapped: list[str],
    train: list[str],
    patients: np.ndarray,
    truth: list[str],
) -> list[dict[str, Any]]:
    """Return metric rows of the generated reports and, under their names, of the baselines."""
    random = np.random.default_rng(p.seed).integers(len(train), size=len(truth))
    compared = {
        "": generated,
        "other patient: ": swapped,
        "most frequent report: ": [Counter(train).most_common(1)[0][0]] * len(truth),
        "random report: ": [train[i] for i in random],
    }
    how: dict[str, Any] = {"uncertain": p.uncertain, "resamples": p.resamples, "seed": p.seed}
    return [
        row | {"label": name + row["label"]}
        for name, texts in compared.items()
        for row in set_aside(textscores.evaluate(texts, truth, patients, **how))
    ]
