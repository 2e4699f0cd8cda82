"""A preset, what its data sets contain, and the problems that are found."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pandas as pd
from pydantic import ValidationError

from cxrstudy import grid, study
from cxrstudy.marks import line_of
from cxrstudy.preflight.holdings import Holding
from cxrstudy.presets import combinations

PARTS = TRAIN, _, TEST = ("train", "validation", "test")
ALL = "all folds"
Keys = tuple[str | int, ...]
BUDGET = {"samples_seen": 10**12}  # enough for any subset size
Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Problem:
    """What was found: an error ends the call, a warning is printed, a note states a fact."""

    level: Level
    where: str
    message: str

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return text if self.level == "note" else f"{self.level}: {text}"


@dataclass(frozen=True)
class Asked:
    """A preset and what its data sets contain, by their names in the preset."""

    preset: grid.Preset
    held: dict[str, Holding]

    @property
    def file(self) -> str:
        """The preset's file, relative to the repository."""
        return f"notebooks/presets/{self.preset.name}.yml"

    def at(self, *keys: str | int) -> str:
        """Return the file and line of a key of the preset, or the ``--set`` that gave it."""
        name = next((key for key in reversed(keys) if isinstance(key, str)), "")
        for setting in self.preset.settings:
            block, _, own = setting.rpartition(".")
            if own == name and block.partition(".")[0] in ("", keys[0]):
                return f"--set {setting}"
        return f"{self.file}:{line_of(self.preset.text, *keys)}"

    def error(self, message: str, *keys: str | int) -> Problem:
        """Return an error at a key."""
        return Problem("error", self.at(*keys), message)

    def warning(self, message: str, *keys: str | int) -> Problem:
        """Return a warning at a key."""
        return Problem("warning", self.at(*keys), message)

    @cached_property
    def points(self) -> list[tuple[int, study.Pretrain]]:
        """The curve's position in the preset and the parameters of each pretraining run.

        Runs whose size, splits or paradigm are wrong are left out.
        """
        return [
            (k, p)
            for k, curve in enumerate(self.preset.curves)
            for values in values_of(curve)
            if (p := _without_faults(values))
        ]

    @cached_property
    def stages(self) -> dict[str, Any]:
        """Parameters of the evaluations that the preset asks for, of those that are valid."""
        values = {"classify": self.preset.classify, **self.downstream}
        valid_ones = {name: valid(study.STAGES[name], given) for name, given in values.items()}
        return {name: p for name, p in valid_ones.items() if p}

    @cached_property
    def downstream(self) -> dict[str, dict[str, Any]]:
        """Values of segment and report, if the preset has them."""
        tasks = {"segment": self.preset.segment, "report": self.preset.report}
        return {name: task.values for name, task in tasks.items() if task}

    @cached_property
    def folds(self) -> list[str]:
        """Names of the folds of cross-fitting; none with fixed splits."""
        return [f"fold{k}" for k in range(self.preset.folds)]

    def folded(self, k: int) -> bool:
        """Return whether a curve is cross-fitted: it is evaluated on what it trains on."""
        curve = self.preset.curves[k]
        return bool(self.folds) and curve.evaluated == curve.data

    def pools(self, splits: list[str], *, folded: bool) -> list[list[str]]:
        """Return the splits that runs train on: if cross-fitted, all folds but one."""
        if not folded:
            return [splits]
        return [[f for f in self.folds if f != left] for left in self.folds]

    @cached_property
    def evaluated_on(self) -> list[str]:
        """Names of the data sets that curves are evaluated on, each once."""
        names = dict.fromkeys(curve.evaluated for curve in self.preset.curves)
        return [name for name in names if name in self.held]

    def evaluated(self) -> Iterator[tuple[str, Holding]]:
        """Yield the data sets that encoders are evaluated on, of those whose rows are known."""
        for name in self.evaluated_on:
            if self.held[name].manifest is not None:
                yield name, self.held[name]

    def parts(self, held: Holding, stage: str) -> dict[str, pd.DataFrame]:
        """Return the rows of a stage's train, validation and test; with folds, all together."""
        p = self.stages[stage]
        table = held.within(p.within)
        if self.folds:
            return {ALL: table}
        return {part: table[table["split"].isin(getattr(p, part))] for part in PARTS}


def values_of(curve: grid.Curve) -> list[dict[str, Any]]:
    """Return the values of each run of a curve; none if one of its lists is empty."""
    try:
        return combinations(curve.values)
    except study.StudyError:
        return []


def valid(model: type[study.Parameters], values: dict[str, Any]) -> Any:
    """Return the parameters; None if they are not valid."""
    try:
        return model(**values)
    except ValidationError:
        return None


def _without_faults(values: dict[str, Any]) -> Any:
    """Return a run's parameters with defaults for wrong ones, so that the others are checked."""
    try:
        return study.Pretrain(**values)
    except ValidationError as error:
        faulty = {str(item["loc"][0]) for item in error.errors() if item["loc"]} or {"samples_seen"}
        if faulty & {"n_images", "splits", "paradigm"}:
            return None
        kept = {name: value for name, value in values.items() if name not in faulty}
        return valid(study.Pretrain, kept | BUDGET)
