"""Presets: each a YAML file that describes data sets, base models, scaling curves and their evaluation."""

import re
from typing import Any, Literal, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cxrstudy import marks
from cxrstudy.study import (
    Analyse,
    Classify,
    Data,
    Parameters,
    Pretrain,
    Report,
    Segment,
    StudyError,
    read_numbers,
    root,
)


class Ladder(BaseModel):
    """One grid of continual pretraining: every value that is a list is unfolded."""

    model_config = ConfigDict(extra="allow")
    data: str
    base: str = ""
    piece: int = Field(
        0,
        description="ladders of lower pieces are run first, so that a stop leaves a smaller study",
    )


class Family(BaseModel):
    """A task family beside classification: the stage's own parameters, and which rungs of a ladder are judged by it."""

    model_config = ConfigDict(extra="allow")
    rungs: Literal["all", "ends", "largest", "none"] = "all"
    seeds: list[int] = Field([], description="only rungs of these seeds; empty = all")


class Preset(BaseModel):
    """A preset file. ``data`` and ``base`` name things; ``ladders`` refer to the names."""

    model_config = ConfigDict(extra="forbid")
    title: str
    description: str = ""
    minutes: float = Field(description="expected time on the hardware named")
    hardware: str
    gpu_hours: float = Field(0, ge=0, description="0 = no GPU is needed")
    disk_gb: float = 1.0
    memory_gb: float = 4.0
    needs_root: bool = Field(False, description="real data: DATA_ROOT must name its folder")
    licences: str = "none"
    data: dict[str, dict[str, Any]]
    base: dict[str, dict[str, Any]] = {}
    ladders: list[Ladder] = []
    folds: int = Field(
        0, ge=0, description="0 = fixed splits; k = cross-fitted over k patient folds, at least 3"
    )
    classify: dict[str, Any] = {}
    segment: Family | None = Field(None, description="lines and tubes drawn; absent = not judged")
    report: Family | None = Field(None, description="reports written; absent = not judged")
    controls: list[str] = Field(
        [],
        description="encoders by name; shuffled: each base under labels dealt out anew; base:NAME",
    )
    analyse: dict[str, Any] = {}
    variants: dict[str, dict[str, Any]] = Field(
        {},
        description="FACTOR=VALUE: settings, as --set takes them; each is run after the preset itself",
    )


def preset_names() -> list[str]:
    """Names of the presets of this repository."""
    return sorted(path.stem for path in (root() / "notebooks" / "presets").glob("*.yml"))


def load_preset(name: str) -> Preset:
    """Read ``notebooks/presets/NAME.yml``; StudyError naming the file, line and field when it does not hold."""
    path = root() / "notebooks" / "presets" / f"{name}.yml"
    if not path.is_file():
        raise StudyError(f"no preset {name!r}; there are: {', '.join(preset_names())}")
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.load(text, Loader=yaml.CSafeLoader)  # C: ten times as fast
    except UnicodeDecodeError as error:
        raise StudyError(f"{path}: not YAML: {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise StudyError(marks.not_yaml(error, text, path)) from None
    if not isinstance(values, dict):
        raise StudyError(f"{path}:1: expected lines `name: value`")
    try:
        return Preset(**values)
    except ValidationError as error:
        raise StudyError(marks.faults(error, Preset, text, path)) from None
    except TypeError as error:  # a name that is a number
        raise StudyError(f"{path}: {error}") from None


PLANNED = {
    "data",
    "base",
    "out",
    "splits",
    "encoder",
    "fold_encoders",
    "folds",
    "records",
    "runs",
    "root",
}
BLOCKS: dict[
    str, type[Parameters]
] = {  # what --set reaches, in the order in which a bare name is looked for
    "ladders": Pretrain,
    "classify": Classify,
    "segment": Segment,
    "report": Report,
    "analyse": Analyse,
    "data": Data,
    "base": Pretrain,
}


def _known(key: str) -> tuple[str, str, list[str]]:
    """Return entry, name and possible blocks of a ``--set`` key; no block where there is no such parameter."""
    place, _, name = key.rpartition(".")
    block, _, entry = place.partition(".")  # data.study.institution: of one entry alone
    known = [b for b, model in BLOCKS.items() if name in model.model_fields and name not in PLANNED]
    return entry, name, [b for b in known if block in ("", b)]


def read_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return ``--set`` values with numbers that were read as text, as ``1e-4`` is, as the parameters ask for."""
    read = {}
    for key, value in settings.items():
        _, name, blocks = _known(key)
        many = (
            bool(blocks) and isinstance(value, list) and not takes_list(BLOCKS[blocks[0]], name)
        )  # to be unfolded
        each = value if many else [value]
        each = (
            [read_numbers(BLOCKS[blocks[0]], {name: one})[name] for one in each] if blocks else each
        )
        read[key] = each if many else each[0]
    return read


def _alike(key: str) -> str:
    """The parameters that a wrong ``--set`` key may mean, by spelling and by their description; then all names."""
    place, _, name = key.rpartition(".")
    block = place.partition(".")[0]
    fields: dict[str, dict[str, str]] = {}  # of each block: the names that no block before it has
    for each, model in BLOCKS.items():
        there = set(PLANNED).union(*fields.values())
        fields[each] = {
            n: f.description or "" for n, f in model.model_fields.items() if n not in there
        }
    words = set(re.findall(r"[a-z]+", name.casefold()))
    every = {n: told for own in fields.values() for n, told in own.items()}
    meant = [
        n
        for n, told in every.items()
        if words and words <= set(re.findall(r"[a-z]+", told.casefold()))
    ]
    wrong = block if block and block not in BLOCKS else ""
    said = f"{wrong!r} is no block{marks.near(wrong, BLOCKS)}" if wrong else "no such parameter"
    said += "" if name in every else marks.near(name, every)
    described = f"; described so: {', '.join(meant[:5])}" if meant else ""
    known = "; ".join(f"{each}: {', '.join(own)}" for each, own in fields.items() if own)
    return f"{said}{described}. Known are {known} (also as BLOCK.NAME)"


def takes_list(model: type[Parameters], name: str) -> bool:
    """Whether a parameter is a list itself, so that a list given for it is one value, not several to unfold."""
    return name in model.model_fields and get_origin(model.model_fields[name].annotation) is list


def override(preset: Preset, settings: dict[str, Any]) -> Preset:
    """``preset`` with ``--set`` values: ``name`` or ``block.name`` with block in ladders, classify, segment, report,
    scale, data, base, or ``block.entry.name`` for one entry of data or base.

    A bare name is looked for in that order, and reaches every entry of its block.
    """
    raw = preset.model_dump()
    for key, value in read_settings(settings).items():
        entry, name, known = _known(key)
        if not known:
            raise StudyError(f"--set {key}: {_alike(key)}")
        block = next((b for b in known if raw[b] is not None), known[0])
        if raw[block] is None:
            raise StudyError(f"--set {key}: this preset has no {block}")
        target = raw[block]
        if entry:
            if block not in ("data", "base") or entry not in target:
                there = ", ".join(
                    f"{kind}.{each}" for kind in ("data", "base") for each in raw[kind]
                )
                raise StudyError(f"--set {key}: no entry {block}.{entry}; there are: {there}")
            target = {entry: target[entry]}
        entries = (
            target
            if block == "ladders"
            else target.values()
            if block in ("data", "base")
            else [target]
        )
        for each in entries:
            each[name] = value
    return Preset(**raw)
