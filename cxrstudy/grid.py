"""Presets and the grid: what will be run, under which name, from which other runs.

A preset (one YAML file under ``notebooks/presets``) describes data sets, base encoders, ladders of continual
pretraining runs and their evaluation. ``plan`` unfolds it into runs; every run is one parameterised notebook.
A run's name ends in a digest of its parameters, which hold the names of the runs it reads: so a changed value
renames exactly the runs it touches, and results of other values stand beside them.
"""

import itertools
from dataclasses import dataclass
from typing import Any, Literal, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cxrstudy.study import (
    Classify,
    Data,
    Parameters,
    Pretrain,
    Report,
    Scale,
    Segment,
    StudyError,
    digest,
    explain,
    root,
    validated,
)


def slug(run: str) -> str:
    """A run's name without its digest."""
    return run.rsplit("-", 1)[0]


class Ladder(BaseModel):
    """One grid of continual pretraining: every value that is a list is unfolded."""

    model_config = ConfigDict(extra="allow")
    data: str
    base: str = ""
    piece: int = Field(0, description="ladders of lower pieces are run first, so that a stop leaves a smaller study")


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
    folds: int = Field(0, ge=0, description="0 = fixed splits; k = cross-fitted over k patient folds, at least 3")
    classify: dict[str, Any] = {}
    segment: Family | None = Field(None, description="lines and tubes drawn; absent = not judged")
    report: Family | None = Field(None, description="reports written; absent = not judged")
    controls: list[str] = Field(
        [], description="encoders by name; shuffled: each base under labels dealt out anew; base:NAME"
    )
    scale: dict[str, Any] = {}
    variants: dict[str, dict[str, Any]] = Field(
        {}, description="FACTOR=VALUE: settings, as --set takes them; each is run after the preset itself"
    )


@dataclass(frozen=True)
class Run:
    """One notebook execution. ``needs`` are the names of the runs whose folders it reads."""

    name: str
    stage: str
    preset: str
    parameters: dict[str, Any]
    needs: tuple[str, ...] = ()
    piece: int = 0

    @property
    def folder(self) -> str:
        """Where the run lies, as a parameter names it."""
        return f"runs/{self.preset}/{self.stage}/{self.name}"


def preset_names() -> list[str]:
    """Names of the presets of this repository."""
    return sorted(path.stem for path in (root() / "notebooks" / "presets").glob("*.yml"))


def load_preset(name: str) -> Preset:
    """Read ``notebooks/presets/NAME.yml``; StudyError naming the file and field when it does not hold."""
    path = root() / "notebooks" / "presets" / f"{name}.yml"
    if not path.is_file():
        raise StudyError(f"no preset {name!r}; there are: {', '.join(preset_names())}")
    try:
        preset = Preset(**yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader))  # C: ten times as fast
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not YAML: {error}") from None
    except (ValidationError, TypeError) as error:
        message = explain(error, str(path), Preset) if isinstance(error, ValidationError) else f"{path}: {error}"
        raise StudyError(message) from None
    return preset


PLACES = ("first", "between", "last")  # of a rung in its ladder
PLANNED = {"data", "base", "out", "splits", "encoder", "fold_encoders", "folds", "records", "runs", "root"}


def override(preset: Preset, settings: dict[str, Any]) -> Preset:
    """``preset`` with ``--set`` values: ``name`` or ``block.name`` with block in ladders, classify, segment, report,
    scale, data, base, or ``block.entry.name`` for one entry of data or base.

    A bare name is looked for in that order, and reaches every entry of its block.
    """
    raw = preset.model_dump()
    blocks: dict[str, type[Parameters]] = {
        "ladders": Pretrain,
        "classify": Classify,
        "segment": Segment,
        "report": Report,
        "scale": Scale,
        "data": Data,
        "base": Pretrain,
    }
    for key, value in settings.items():
        block, _, name = key.rpartition(".")
        block, _, entry = block.partition(".")  # data.study.institution: of one entry alone
        known = [b for b, model in blocks.items() if name in model.model_fields and name not in PLANNED]
        if (block and block not in known) or not known:
            names = sorted({n for model in blocks.values() for n in model.model_fields} - PLANNED)
            raise StudyError(f"--set {key}: no such parameter; known: {', '.join(names)} (or ladders.NAME, base.NAME)")
        block = block or next((b for b in known if raw[b] is not None), known[0])
        if raw[block] is None:
            raise StudyError(f"--set {key}: this preset has no {block}")
        target = raw[block]
        if entry:
            if block not in ("data", "base") or entry not in target:
                there = ", ".join(f"{kind}.{each}" for kind in ("data", "base") for each in raw[kind])
                raise StudyError(f"--set {key}: no entry {block}.{entry}; there are: {there}")
            target = {entry: target[entry]}
        entries = target if block == "ladders" else target.values() if block in ("data", "base") else [target]
        for entry in entries:
            entry[name] = value
    return Preset(**raw)


def without(runs: list[Run], stand: set[str]) -> list[Run]:
    """The runs that are still wanted when those named in ``stand`` are there already: evaluations that are not, and
    what they need. A fit over all points is left out when any of these is."""
    wanted = {run.name for run in runs if run.stage in ("classify", "segment", "report") and run.name not in stand}
    for run in reversed(runs):  # each comes after those it needs
        if run.name in wanted:
            wanted.update(run.needs)
    return [run for run in runs if run.name in wanted]


def plan(name: str, settings: dict[str, Any] | None = None, data_root: str = "") -> list[Run]:
    """Unfold a preset into runs, in an order in which each comes after those it needs; StudyError if it cannot."""
    preset = override(load_preset(name), settings or {})
    if preset.needs_root and not data_root:
        raise StudyError(f"preset {name!r} reads real images: say where they lie, DATA_ROOT=PATH or --data-root PATH")
    runs: dict[str, Run] = {}
    piece = 0

    def add(stage: str, label: str, values: dict[str, Any], needs: tuple[str, ...] = ()) -> str:
        values = {key: value for key, value in values.items() if key != "out"}
        checked = validated(stage, values, f"preset {name}, {stage} {label}").model_dump(exclude={"out"})
        same = {"keep_features"} if stage in ("segment", "report") else set()  # changes no result: no part of the name
        run = f"{label}-{digest([stage, {k: v for k, v in checked.items() if k not in same}])}"
        out = f"runs/{name}/{stage}/{run}"
        runs.setdefault(run, Run(run, stage, name, checked | {"out": out}, needs, piece))
        return run

    def folder(run: str) -> str:
        return runs[run].folder if run in runs else run

    def waits(*names: str) -> tuple[str, ...]:
        return tuple(name for name in names if name in runs)

    if preset.folds in (1, 2):
        raise StudyError(
            f"preset {name}: folds is {preset.folds}; one is held, one validates, so at least 3 are needed"
        )
    folds = [f"fold{k}" for k in range(preset.folds)]
    data: dict[str, str] = {}
    for key, values in preset.data.items():
        extra = {"root": data_root} if preset.needs_root and values.get("card") != "synthetic" else {}
        data[key] = add("data", key, extra | values)
    base: dict[str, str] = {}
    for key, values in preset.base.items():
        if list(values) == ["shipped"]:  # an encoder folder of the repository, or a name of published weights
            base[key] = values["shipped"]
            continue
        on = _named(values.get("data"), data, f"preset {name}: base {key}", "data")
        from_ = values.get("base") or ""
        if from_ in preset.base:  # one of the preset's own, which must stand above it
            from_ = _named(from_, base, f"preset {name}: base {key}", "base")
        base[key] = add("pretrain", key, values | {"data": folder(on), "base": folder(from_)}, (on, *waits(from_)))

    def classify(label: str, on: str, encoders: list[str], needs: tuple[str, ...], **more: Any) -> str:
        which = {"fold_encoders": encoders} if len(encoders) > 1 else {"encoder": encoders[0]}
        also = [data.get(name, name) for name in preset.classify.get("also", [])]
        values = (
            preset.classify | {"data": folder(on), "folds": folds, "also": [folder(a) for a in also]} | which | more
        )
        return add("classify", label, values, (on, *needs, *waits(*also)))

    def judge(label: str, on: str, encoder: str, needs: tuple[str, ...], place: str = "", seed: int = 0) -> None:
        """Runs of the other task families on an encoder; ``place`` of a rung in its ladder: first, between or last."""
        blind = {"segment": ("covariates", "pixels"), "report": ("covariates",)}  # a decoder sees 3 of its pixels
        for stage, family in (("segment", preset.segment), ("report", preset.report)):
            wanted = {"all": PLACES, "ends": ("first", "last"), "largest": ("last",), "none": ()}
            if family is None or encoder in blind[stage]:
                continue
            if place and (place not in wanted[family.rungs] or (family.seeds and seed not in family.seeds)):
                continue
            if encoder.startswith("supervised:") or encoder.endswith((".npz", ".parquet")):
                continue  # taught by labels for labels; vectors without patches
            if folds:
                raise StudyError(f"preset {name}: {stage} needs fixed splits, but folds is {preset.folds}")
            add(
                stage,
                label,
                family.model_dump(exclude={"rungs", "seeds"}) | {"data": folder(on), "encoder": encoder},
                needs,
            )

    points: list[str] = []
    rungs: list[str] = []
    evaluated: dict[tuple[str, str], None] = {}
    placed = {"data", "base", "piece"}
    sizes: dict[tuple[Any, ...], set[int]] = {}
    for ladder in preset.ladders:
        for values in _unfold(ladder.model_dump(exclude=placed), Pretrain):
            sizes.setdefault((ladder.data, ladder.base, values.get("paradigm")), set()).add(values.get("n_images", 0))
    for ladder in sorted(preset.ladders, key=lambda ladder: ladder.piece):
        piece = ladder.piece
        on = _named(ladder.data, data, f"preset {name}: ladder", "data")
        from_ = _named(ladder.base, base, f"preset {name}: ladder", "base") if ladder.base else ""
        evaluated[(on, from_)] = None
        absent = sorted(set(folds) - set(runs[on].parameters["fractions"]))
        if absent:
            raise StudyError(
                f"preset {name}: folds is {preset.folds}, but data {ladder.data} has no split {absent[0]!r}"
            )
        for values in _unfold(ladder.model_dump(exclude=placed), Pretrain):
            values |= {"data": folder(on), "base": folder(from_) if from_ else ""}
            label = f"{values.get('paradigm', 'clip')}-n{values.get('n_images')}-s{values.get('seed', 0)}"
            needs = waits(on, from_)
            if not folds:
                trained = [add("pretrain", label, values, needs)]
            else:
                others = [{"splits": [f for f in folds if f != held]} for held in folds]
                trained = [
                    add("pretrain", f"{label}-{h}", values | o, needs) for h, o in zip(folds, others, strict=True)
                ]
            rungs += trained
            points.append(classify(label, on, [folder(run) for run in trained], tuple(trained)))
            n, rung = values.get("n_images", 0), (ladder.data, ladder.base, values.get("paradigm"))
            place = "last" if n == max(sizes[rung]) else "first" if n == min(sizes[rung]) else "between"
            judge(label, on, folder(trained[0]), (on, *trained), place, values.get("seed", 0))
    last, piece = piece, 0
    for on, from_ in evaluated:
        if from_:
            label = slug(from_) if from_ in runs else from_.rstrip("/").rsplit("/", 1)[-1]
            points.append(classify(f"base-{label}", on, [folder(from_)], waits(from_)))
            judge(f"base-{label}", on, folder(from_), waits(on, from_))
        for control in preset.controls:
            if control == "shuffled":  # the base's features, and labels dealt out anew
                if from_:
                    points.append(classify(f"shuffled-{label}", on, [folder(from_)], waits(from_), shuffle_labels=True))
                continue
            if control.startswith("base:"):  # one that no ladder starts from: judged as it is
                other = _named(control.removeprefix("base:"), base, f"preset {name}: controls", "base")
                called = slug(other) if other in runs else other.rstrip("/").rsplit("/", 1)[-1]
                points.append(classify(called, on, [folder(other)], waits(other)))
                judge(called, on, folder(other), waits(on, other))
                continue
            points.append(classify(control.replace(":", "-"), on, [control], ()))
            judge(control.replace(":", "-"), on, control, (on,))
    check_ladders([runs[rung] for rung in rungs], {run.folder: run.parameters.get("size") for run in runs.values()})
    points, piece = list(dict.fromkeys(points)), last
    if points:
        add("scale", "scale", preset.scale | {"records": [folder(p) for p in points], "runs": ""}, tuple(points))
    return list(runs.values())


def _named(key: Any, known: dict[str, str], where: str, block: str) -> str:
    if key not in known:
        raise StudyError(f"{where}: {block} {key!r} is not among this preset's {block}: {', '.join(known) or 'none'}")
    return known[key]


def _unfold(values: dict[str, Any], model: type[Parameters]) -> list[dict[str, Any]]:
    """Every combination of the values that are lists, but for parameters that are lists themselves."""
    takes_list = {name for name, field in model.model_fields.items() if get_origin(field.annotation) is list}
    axes = {k: v if isinstance(v, list) and k not in takes_list else [v] for k, v in values.items()}
    empty = [name for name, choices in axes.items() if not choices]
    if empty:
        raise StudyError(f"{empty[0]} is an empty list: the grid would hold no run")
    return [dict(zip(axes, combo, strict=True)) for combo in itertools.product(*axes.values())]


EQUAL = ("samples_seen", "batch_size", "lr", "warmup", "weight_decay", "clip", "ema", "dino", "precision")


def check_ladders(rungs: list[Run], sizes: dict[str, Any]) -> None:
    """Refuse unequal budgets within one ladder (same paradigm, base, architecture and size in px).

    ``sizes``: the size in px of each data run's folder.
    """
    seen: dict[tuple, Run] = {}
    for run in rungs:
        p = run.parameters
        first = seen.setdefault((p["paradigm"], p["base"], p["encoder"], sizes[p["data"]]), run)
        for key in EQUAL:
            if first.parameters[key] != p[key]:
                raise StudyError(
                    f"the {p['paradigm']} ladder is not at constant compute: {key} is {first.parameters[key]} in "
                    f"{first.name} but {p[key]} in {run.name}. Give every n_images the same {key}"
                )
