"""A preset as it is asked for, what its data sets hold, and what is found wrong with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import ValidationError

from cxrstudy import grid, study
from cxrstudy.marks import line_of
from cxrstudy.preflight.holdings import Holding

PARTS = TRAIN, _, TEST = ("train", "validation", "test")
ALL = "all folds"
Keys = tuple[str | int, ...]
BUDGET = {"samples_seen": 10**12}  # enough for any rung
Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Problem:
    """What was found: an error ends the call, a warning is printed, a note says what is there."""

    level: Level
    where: str
    message: str

    def __str__(self) -> str:
        said = f"{self.where}: {self.message}" if self.where else self.message
        return said if self.level == "note" else f"{self.level}: {said}"


@dataclass(frozen=True)
class Asked:
    """A preset as it is asked for: its file, the ``--set`` values, and what its data sets hold."""

    file: str
    text: str
    preset: grid.Preset
    settings: dict[str, Any]
    held: dict[str, Holding]

    def at(self, *keys: str | int) -> str:
        """The file and line of a key of the preset, or the ``--set`` that gave it."""
        name = next((key for key in reversed(keys) if isinstance(key, str)), "")
        for setting in self.settings:
            block, _, own = setting.rpartition(".")
            if own == name and block.partition(".")[0] in ("", keys[0]):
                return f"--set {setting}"
        return f"{self.file}:{line_of(self.text, *keys)}"

    def error(self, message: str, *keys: str | int) -> Problem:
        """An error at a key."""
        return Problem("error", self.at(*keys), message)

    def warning(self, message: str, *keys: str | int) -> Problem:
        """A warning at a key."""
        return Problem("warning", self.at(*keys), message)

    @cached_property
    def rungs(self) -> list[tuple[int, study.Pretrain]]:
        """The ladder and the parameters of every rung, of those whose size, splits and paradigm hold."""
        found = []
        for k, ladder in enumerate(self.preset.ladders):
            found += [(k, p) for values in unfolded(ladder) if (p := _without_faults(values))]
        return found

    @cached_property
    def stages(self) -> dict[str, Any]:
        """Parameters of the evaluations that the preset asks for, of those that hold."""
        values = {"classify": self.preset.classify}
        for name in ("segment", "report"):
            if family := getattr(self.preset, name):
                values[name] = family.model_dump(exclude={"rungs", "seeds"})
        return {
            name: p for name, given in values.items() if (p := holds(study.STAGES[name], given))
        }

    @cached_property
    def folds(self) -> list[str]:
        """Names of the folds of cross-fitting; none with fixed splits."""
        return [f"fold{k}" for k in range(self.preset.folds)]

    @cached_property
    def laddered(self) -> list[str]:
        """Names of the data sets that ladders train on, each once."""
        return [
            key
            for key in dict.fromkeys(ladder.data for ladder in self.preset.ladders)
            if key in self.held
        ]

    def judged(self) -> Iterator[tuple[str, Holding]]:
        """The data sets that encoders are judged on, of those whose rows are known."""
        for key in self.laddered:
            if self.held[key].manifest is not None:
                yield key, self.held[key]

    def parts(self, held: Holding, stage: str) -> dict[str, Any]:
        """The rows of a stage's train, validation and test; with folds, of all of them together."""
        p = self.stages[stage]
        table = held.within(p.within)
        if self.folds:
            return {ALL: table}
        return {part: table[table["split"].isin(getattr(p, part))] for part in PARTS}


def unfolded(ladder: grid.Ladder) -> list[dict[str, Any]]:
    """The values of each rung of a ladder; none where a list is empty."""
    try:
        return grid._unfold(ladder.model_dump(exclude={"data", "base", "piece"}), study.Pretrain)
    except study.StudyError:
        return []


def holds(model: type[study.Parameters], values: dict[str, Any]) -> Any:
    """The parameters themselves; None where they do not hold."""
    try:
        return model(**values)
    except ValidationError:
        return None


def _without_faults(values: dict[str, Any]) -> Any:
    """A rung's parameters with defaults for those that do not hold, so that the others are checked all the same."""
    try:
        return study.Pretrain(**values)
    except ValidationError as error:
        faulty = {str(item["loc"][0]) for item in error.errors() if item["loc"]} or {"samples_seen"}
        kept = {name: value for name, value in values.items() if name not in faulty}
        return (
            None
            if faulty & {"n_images", "splits", "paradigm"}
            else holds(study.Pretrain, {**kept, **BUDGET})
        )
