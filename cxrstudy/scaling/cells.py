"""Cells: what encoders that differ in their seed alone scored, with resamples of the test patients.

Every contrast of ``scaling.contrasts`` is a weighted sum of cells. They are read here from the tidy
table of records and from the per-image scores that are stored with each run.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxrstudy import results
from cxrstudy.evaluate.metrics import auprc, auroc, bootstrap, counts, known_mean, units
from cxrstudy.evaluate.small_samples import class_counts, exact_width
from cxrstudy.scaling.verdicts import BASE, BASELINE, OUT_OF_DOMAIN, SEEN

Floats = NDArray[np.float64]
PARADIGMS = ("clip", "unicl", "dinov2", "clip+labels")
LOG_ERROR = (
    "log_error"  # natural logarithm of 1 - AUROC: a difference is a relative change of error
)
SCORED = {"classify": ("auroc", "auprc"), "segment": ("dice", "cl_dice")}


class Cell(NamedTuple):
    """What encoders that differ in their seed alone have in common."""

    task: str
    metric: str
    data: str
    arm: str  # paradigm, with SEEN or OUT_OF_DOMAIN for images of others; BASE; BASELINE
    start: str  # the base model that training started from; the name of a base model or baseline
    samples_seen: float
    n_images: float  # subset size; 0 for base models and baselines

    @property
    def curve(self) -> "Cell":
        """The scaling curve of the cell."""
        return self._replace(n_images=0.0)

    @property
    def family(self) -> "Cell":
        """All curves of the cell's paradigm on its task and metric, on any training images."""
        return Cell(self.task, self.metric, "", paradigm_of(self.arm), "", 0.0, 0.0)

    @property
    def trained(self) -> bool:
        """Whether the encoder was trained in this study, from a base model."""
        return self.arm not in (BASE, BASELINE)

    @property
    def in_house(self) -> bool:
        """Whether it was trained on images of the institution that evaluates it."""
        return self.arm in PARADIGMS

    @property
    def has_seeds(self) -> bool:
        """Whether a seed changes it: trained encoders, and the mask decoder on any encoder."""
        return self.trained or self.metric in SCORED["segment"]


@dataclass(frozen=True)
class Measured:
    """Values of S seeds (S,), each on R shared resamples of the test patients (S, R), and counts.

    ``hidden``: what a difference may hide where all resamples are alike (``small_samples``).
    """

    values: Floats
    draws: Floats
    encoder: str = ""
    n: int = 0  # test images
    n_patients: int = 0
    positives: int = 0
    hidden: float = 0.0
    kind: str = ""


Cells = Mapping[Cell, Measured]


def paradigm_of(arm: str) -> str:
    """Return the paradigm of an arm, whatever images it was trained on."""
    return arm.removesuffix(SEEN).removesuffix(OUT_OF_DOMAIN)


def base_of(cell: Cell) -> Cell:
    """Return the cell of the base model that a trained cell started from."""
    return cell._replace(arm=BASE, samples_seen=0.0, n_images=0.0)


def control_of(cell: Cell, cells: Cells) -> Cell | None:
    """Return the control of a trained cell at equal compute; out-of-domain images come first."""
    others = (cell._replace(arm=cell.arm + which) for which in (OUT_OF_DOMAIN, SEEN))
    return next((other for other in others if other in cells), None)


def read_cells(
    table: pd.DataFrame, *, resamples: int = 1000, seed: int = 0
) -> dict[Cell, Measured]:
    """Return the cells of a tidy table of records, from the per-image scores stored with its runs.

    All cells of one (task, metric, data) are evaluated on the labels that all its runs have.

    Args:
        table: as ``results.load_records`` or ``recorded.load`` returns it.
        resamples: R, resamples of the test patients; the same patients for all cells of a data set.
        seed: of the resamples.

    Raises:
        ValueError: runs of one (task, metric, data) with different test patients, or no scores.
    """
    found: dict[Cell, list[Measured]] = {}
    for cell, measured in _each_run(table, resamples, seed):
        found.setdefault(cell, []).append(measured)
    cells = {cell: join_seeds(runs) for cell, runs in found.items()}
    return cells | dict(_log_errors(cells))


def _each_run(table: pd.DataFrame, resamples: int, seed: int) -> Iterator[tuple[Cell, Measured]]:
    kept = table[(table["label"] == "macro") & table["value"].notna()]
    kept = kept[~kept["task"].str.contains("@")].drop_duplicates(["folder", "task", "metric"])
    kept = kept.assign(arm=_arms(kept), start=_starts(kept)).sort_values("seed", kind="stable")
    labels = table[(table["label"] != "macro") & table["value"].notna()]
    for (stage, task, metric, data), rows in kept.groupby(
        ["stage", "task", "metric", "data"], sort=False
    ):
        if metric not in SCORED.get(stage, ()):
            continue
        if rows["patients"].nunique() > 1:
            runs = ", ".join(rows.groupby("patients")["run"].first())
            raise ValueError(f"{task}: {runs} have different test patients and cannot be compared")
        names = _shared_labels(labels, rows, task, metric)
        for row in rows.itertuples() if names else ():
            if not (Path(row.folder) / "scores.parquet").is_file():
                raise ValueError(
                    f"{row.folder}: scores.parquet is missing. Run the {stage} notebook again"
                )
            trained = row.arm not in (BASE, BASELINE)
            seen, size = (row.samples_seen, row.n_images) if trained else (0, 0)
            cell = Cell(task, metric, data, row.arm, row.start, float(seen), float(size))
            read = _of_masks if stage == "segment" else _of_labels
            yield cell, read(row, names, metric, resamples, seed)


def _shared_labels(
    labels: pd.DataFrame, rows: pd.DataFrame, task: str, metric: str
) -> tuple[str, ...]:
    """The labels that were evaluated in all of the runs."""
    own = labels[(labels["task"] == task) & (labels["metric"] == metric)]
    own = own[own["folder"].isin(rows["folder"])]
    shared = own.groupby("label", sort=False)["folder"].nunique()
    return tuple(shared.index[shared == rows["folder"].nunique()])


def _arms(rows: pd.DataFrame) -> pd.Series:
    """Return the arm of each evaluated encoder."""
    trained = rows["paradigm"].isin(PARADIGMS) & (rows["base"].fillna("") != "")
    arm = rows["paradigm"].where(trained, BASE).where(rows["paradigm"] != "control", BASELINE)
    others = trained & rows["trained_on"].notna() & (rows["trained_on"] != rows["institution"])
    bases = rows[(arm == BASE) & rows["trained_on"].notna()]
    known = dict(zip(_starts(bases), bases["trained_on"], strict=True))
    seen = others & (_starts(rows).map(known) == rows["trained_on"])
    return arm.where(~others, arm + OUT_OF_DOMAIN).where(~seen, arm + SEEN)


def _starts(rows: pd.DataFrame) -> pd.Series:
    """Return the base model's name, without a digest, of trained encoders and base models."""
    run = rows["run"].str.replace("-[0-9a-f]{6}$", "", regex=True)
    own = run.str.removeprefix("base-")
    own = own.where(rows["paradigm"] != "control", rows["encoder"].astype(str))
    base = rows["base"].fillna("").astype(str).str.replace("-[0-9a-f]{6}$", "", regex=True)
    return base.where(base != "", own)


def _of_labels(
    row: Any, names: tuple[str, ...], metric: str, resamples: int, seed: int
) -> Measured:
    """Return a classification run's macro metric, and that of each resample of test patients."""
    measure = {"auroc": auroc, "auprc": auprc}[metric]
    scores = results.kept_scores(row.folder).sort_values("image_id")
    truth, score = (
        scores[[f"{what}:{name}" for name in names]].to_numpy(float) for what in ("truth", "score")
    )
    patients = scores["patient_id"].to_numpy()
    draws = bootstrap(measure, truth, score, groups=patients, resamples=resamples, seed=seed)
    known = (~np.isnan(truth)).any(axis=1)
    pairs = class_counts(truth, patients)["pairs"]
    return Measured(
        values=np.array([np.nanmean(measure(truth, score))]),
        draws=np.nanmean(draws, axis=1)[None],
        encoder=str(row.encoder),
        n=int(known.sum()),
        n_patients=len(np.unique(patients[known])),
        positives=int(np.nansum(truth)),
        hidden=float(np.mean([exact_width(n) for n in pairs])),
        kind=str(row.kind),
    )


def _of_masks(row: Any, names: tuple[str, ...], metric: str, resamples: int, seed: int) -> Measured:
    """Return the same of masks: the mean over devices of the mean over images that show them."""
    scores = results.kept_scores(row.folder)
    wide = scores.pivot(index=["image_id", "patient_id"], columns="device", values=metric)
    wide = wide[list(names)].sort_index()
    values = wide.to_numpy(np.float64)
    unit, patients = units(wide.index.get_level_values("patient_id").to_numpy(), len(wide))
    sums, shown = np.zeros((2, patients, len(names)))
    np.add.at(sums, unit, np.nan_to_num(values))
    np.add.at(shown, unit, ~np.isnan(values))

    def macro(drawn: Floats) -> Floats:
        total, images = sums.T @ drawn, shown.T @ drawn
        return known_mean(np.where(images > 0, total / np.maximum(images, 1), np.nan).T)

    draws = np.concatenate([macro(drawn) for drawn in counts(patients, resamples, seed)])
    return Measured(
        values=macro(np.ones((patients, 1))),
        draws=draws[None],
        encoder=str(row.encoder),
        n=len(wide),
        n_patients=patients,
        positives=int((~np.isnan(values)).sum()),
        kind=str(row.kind),
    )


def join_seeds(runs: list[Measured]) -> Measured:
    """Return the seeds of one cell together."""
    first = runs[0]
    return Measured(
        np.concatenate([run.values for run in runs]),
        np.concatenate([run.draws for run in runs]),
        first.encoder,
        first.n,
        first.n_patients,
        first.positives,
        first.hidden,
        first.kind,
    )


def _log_errors(cells: Cells) -> Iterator[tuple[Cell, Measured]]:
    """Yield the log error of AUROC cells in which no value and no resample is 1."""
    for cell, own in cells.items():
        below = (own.values < 1).all() and (np.isnan(own.draws) | (own.draws < 1)).all()
        if cell.metric == "auroc" and below:
            values, draws = np.log(1 - own.values), np.log(1 - own.draws)
            log = replace(own, values=values, draws=draws, hidden=0.0)
            yield cell._replace(metric=LOG_ERROR), log
