"""Presets: each a YAML file that describes data sets, base models, scaling curves, evaluations."""

import itertools
import re
from pathlib import Path
from typing import Any, Literal, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

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

PLANNED = {  # parameters that the plan fills in, so that --set does not reach them
    *("data", "base", "out", "splits", "encoder", "fold_encoders", "folds"),
    *("records", "runs", "root"),
}
BLOCKS: dict[str, type[Parameters]] = {  # what --set reaches; a bare name is looked for in order
    "curves": Pretrain,
    "classify": Classify,
    "segment": Segment,
    "report": Report,
    "analyse": Analyse,
    "data": Data,
    "base": Pretrain,
}


class Curve(BaseModel):
    """One scaling curve or more: each combination of the values that are lists is a run."""

    model_config = ConfigDict(extra="allow")
    data: str
    base: str = ""
    evaluate_on: str = Field(
        "", description="data to evaluate on; empty = those trained on. Others make it a control"
    )
    priority: int = Field(0, description="0 runs first, then 1: a stopped study is a smaller one")

    @property
    def evaluated(self) -> str:
        """The name of the data set that its encoders are evaluated on."""
        return self.evaluate_on or self.data

    @property
    def values(self) -> dict[str, Any]:
        """The parameters of its pretraining runs, as written."""
        return self.model_extra or {}


class DownstreamTask(BaseModel):
    """Segmentation or reports: the stage's own parameters, and which encoders are evaluated."""

    model_config = ConfigDict(extra="allow")
    sizes: Literal["all", "ends", "largest", "none"] = Field(
        "all", description="subset sizes of each curve that are evaluated; base models always are"
    )
    seeds: list[int] = Field([], description="only runs of these seeds; empty = all")

    @property
    def values(self) -> dict[str, Any]:
        """The stage's own parameters, as written."""
        return self.model_extra or {}


class Preset(BaseModel):
    """A preset file. ``data`` and ``base`` give names; ``curves`` refer to the names."""

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
    curves: list[Curve] = Field([], description="scaling curves: encoders to train")
    folds: int = Field(0, ge=0, description="cross-fitting over so many folds; 0 = fixed splits")
    classify: dict[str, Any] = {}
    segment: DownstreamTask | None = Field(None, description="draw lines and tubes; absent = no")
    report: DownstreamTask | None = Field(None, description="write reports; absent = no")
    baselines: list[str] = Field(
        [], description="encoders by name; shuffled: each base with permuted labels; base:NAME"
    )
    analyse: dict[str, Any] = {}
    variants: dict[str, dict[str, Any]] = Field(
        {}, description="FACTOR=VALUE: settings as for --set; each runs after the preset itself"
    )
    _name: str = PrivateAttr("")
    _text: str = PrivateAttr("")
    _settings: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self._name

    @property
    def text(self) -> str:
        """The file's content, to name lines in messages."""
        return self._text

    @property
    def settings(self) -> dict[str, Any]:
        """The ``--set`` values that were applied (see ``override``)."""
        return self._settings


def preset_path(name: str) -> Path:
    """Return the file of a preset, which need not exist."""
    return root() / "notebooks" / "presets" / f"{name}.yml"


def preset_names() -> list[str]:
    """Return the names of the presets of this repository."""
    return sorted(path.stem for path in preset_path("").parent.glob("*.yml"))


def read_preset(text: str, name: str) -> Preset:
    """Return the preset that a YAML text describes.

    Raises:
        StudyError: naming the file, line and field that are wrong, and the remedy.
    """
    path = preset_path(name)
    try:
        values = yaml.load(text, Loader=yaml.CSafeLoader)  # in C: ten times as fast
    except (yaml.YAMLError, ValueError) as error:
        raise StudyError(marks.not_yaml(error, text, path)) from None
    if not isinstance(values, dict):
        raise StudyError(f"{path}:1: expected lines `name: value`")
    try:
        preset = Preset(**values)
    except ValidationError as error:
        raise StudyError(marks.faults(error, Preset, text, path)) from None
    except TypeError as error:  # a name that is a number
        raise StudyError(f"{path}: {error}") from None
    preset._name, preset._text = name, text
    return preset


def combinations(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each combination of those ``Pretrain`` values that are lists of alternatives.

    Raises:
        StudyError: one of the lists is empty.
    """
    axes = [
        value if isinstance(value, list) and not takes_list(Pretrain, name) else [value]
        for name, value in values.items()
    ]
    empty = [name for name, choices in zip(values, axes, strict=True) if not choices]
    if empty:
        raise StudyError(f"{empty[0]} is an empty list: the grid would have no run")
    return [
        read_numbers(Pretrain, dict(zip(values, chosen, strict=True)))
        for chosen in itertools.product(*axes)
    ]


def takes_list(model: type[Parameters], name: str) -> bool:
    """Return whether a parameter is a list itself, so that a list for it is one value."""
    return name in model.model_fields and get_origin(model.model_fields[name].annotation) is list


# ---- --set ------------------------------------------------------------------------------------
def read_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return ``--set`` values, numbers that were read as text (``1e-4``) as numbers."""
    return {key: _read_setting(key, value) for key, value in settings.items()}


def _read_setting(key: str, value: Any) -> Any:
    _, name, blocks = _find(key)
    if not blocks:
        return value
    model = BLOCKS[blocks[0]]
    if isinstance(value, list) and not takes_list(model, name):  # alternatives
        return [read_numbers(model, {name: one})[name] for one in value]
    return read_numbers(model, {name: value})[name]


def override(preset: Preset, settings: dict[str, Any]) -> Preset:
    """Return a copy of a preset with ``--set`` values.

    Args:
        settings: by ``name``, ``BLOCK.name`` (see ``BLOCKS``), or ``BLOCK.ENTRY.name`` for one
            entry of data or base. A bare name is looked for in the order of ``BLOCKS`` and
            reaches every entry of its block.

    Raises:
        StudyError: there is no such parameter, block or entry.
    """
    changed = preset.model_copy(deep=True)
    for key, value in read_settings(settings).items():
        entry, name, known = _find(key)
        if not known:
            raise StudyError(f"--set {key}: {_similar(key)}")
        block = next((b for b in known if getattr(changed, b) is not None), known[0])
        for values in _entries(changed, block, entry, key):
            values[name] = value
    changed._settings = {**preset.settings, **settings}
    return changed


def _find(key: str) -> tuple[str, str, list[str]]:
    """Return entry, name and possible blocks of a ``--set`` key; no block if it is unknown."""
    place, _, name = key.rpartition(".")
    block, _, entry = place.partition(".")  # data.study.institution: of one entry alone
    known = [b for b, model in BLOCKS.items() if name in model.model_fields and name not in PLANNED]
    return entry, name, [b for b in known if block in ("", b)]


def _entries(preset: Preset, block: str, entry: str, key: str) -> list[dict[str, Any]]:
    """Return the dictionaries of parameters that a ``--set`` key reaches."""
    part: Any = getattr(preset, block)
    if part is None:
        raise StudyError(f"--set {key}: this preset has no {block}")
    if entry and (block not in ("data", "base") or entry not in part):
        there = [f"{kind}.{each}" for kind in ("data", "base") for each in getattr(preset, kind)]
        raise StudyError(f"--set {key}: no entry {block}.{entry}; there are: {', '.join(there)}")
    if block in ("data", "base"):
        return [part[entry]] if entry else list(part.values())
    each = part if block == "curves" else [part]
    return [one if isinstance(one, dict) else one.values for one in each]


def _similar(key: str) -> str:
    """Return which parameters a wrong ``--set`` key may mean, by spelling and description."""
    place, _, name = key.rpartition(".")
    block = place.partition(".")[0]
    fields: dict[str, dict[str, str]] = {}  # by block: the names that no block before it has
    for each, model in BLOCKS.items():
        there = set(PLANNED).union(*fields.values())
        fields[each] = {
            n: f.description or "" for n, f in model.model_fields.items() if n not in there
        }
    every = {n: description for own in fields.values() for n, description in own.items()}
    words = set(re.findall(r"[a-z]+", name.casefold()))
    meant = [
        n for n, text in every.items() if words and words <= set(re.findall("[a-z]+", text.lower()))
    ]
    said = "no such parameter"
    if block and block not in BLOCKS:
        said = f"{block!r} is no block{marks.near(block, BLOCKS)}"
    said += "" if name in every else marks.near(name, every)
    if meant:
        said += f"; described so: {', '.join(meant[:5])}"
    known = "; ".join(f"{each}: {', '.join(own)}" for each, own in fields.items() if own)
    return f"{said}. Known are {known} (also as BLOCK.NAME)"
