"""The grid: what will be run, under which name, from which other runs.

``plan`` unfolds a preset (see ``presets``) into runs; every run is one parameterised notebook. A run's name ends in a
digest of its parameters, which hold the names of the runs it reads: so a changed value renames exactly the runs it
touches, and results of other values stand beside them. Where real data lie is no part of a name: their content is.
"""

import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cxrstudy import presets
from cxrstudy.presets import (
    Family,
    Ladder,
    Preset,
    override,
    preset_names,
    read_settings,
    takes_list,
)
from cxrstudy.study import (
    Data,
    Parameters,
    Pretrain,
    StudyError,
    digest,
    read_numbers,
    root,
    validated,
)

__all__ = [
    "Family",
    "Ladder",
    "Preset",
    "Run",
    "check_ladders",
    "data_entry",
    "load_preset",
    "override",
    "plan",
    "preset_names",
    "read_settings",
    "reads_files",
    "slug",
    "without",
]

PLACES = ("first", "between", "last")  # of a rung in its ladder
PLACED = {"data", "base", "piece"}  # of a ladder: where it is, not what its runs do
NO_PART = {
    "segment": {"keep_features"},
    "report": {"keep_features"},
}  # of a run's name: changes no result


def slug(run: str) -> str:
    """A run's name without its digest."""
    return run.rsplit("-", 1)[0]


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


def without(runs: list[Run], stand: set[str]) -> list[Run]:
    """The runs that are still wanted when those named in ``stand`` are there already: evaluations that are not, and
    what they need. A fit over all points is left out when any of these is."""
    wanted = {
        run.name
        for run in runs
        if run.stage in ("classify", "segment", "report") and run.name not in stand
    }
    for run in reversed(runs):  # each comes after those it needs
        if run.name in wanted:
            wanted.update(run.needs)
    return [run for run in runs if run.name in wanted]


# ---- data sets -----------------------------------------------------------------------------------------------------
def reads_files(card: str) -> bool:
    """Whether a card's data set consists of files that somebody must have, not of images drawn here."""
    if card == "synthetic":
        return False
    from cxrstudy.data import cards  # imports pandas, which most calls do without

    try:
        described = cards.read_card(card)
    except (cards.CardError, OSError, UnicodeDecodeError) as error:
        raise StudyError(str(error)) from None
    return described.kind == "real" or described.table is not None


def load_preset(name: str) -> Preset:
    """Read ``notebooks/presets/NAME.yml``, as ``presets.load_preset``; a preset that reads files needs a root."""
    preset = presets.load_preset(name)
    return preset.model_copy(
        update={"needs_root": preset.needs_root or any(map(_needs_root, preset.data.values()))}
    )


def _needs_root(values: dict[str, Any]) -> bool:
    try:
        return not values.get("root") and reads_files(str(values.get("card") or "synthetic"))
    except StudyError:  # no such card: said when the preset is planned
        return False


def data_entry(values: dict[str, Any], data_root: str = "") -> dict[str, Any]:
    """Return an entry of a preset's ``data``; if it reads files, with their folder and, unless it says, all images."""
    if not reads_files(str(values.get("card") or "synthetic")):
        return {key: value for key, value in values.items() if key != "root"}
    where = values.get("root") or data_root
    place = os.path.abspath(root() / Path(where).expanduser()) if where else ""
    return {"n_images": 0} | values | {"root": place}


def _content(p: Data, where: str, must_read: bool) -> dict[str, str]:
    """Return what takes the place of a data set's card and folder in its run's name: what they hold.

    Data that are not here can be planned for, but not under the name that they will have.
    """
    if p.card == "synthetic":
        return {}
    from cxrstudy.data import cards, sets

    try:
        held = sets.content_digest(p.card, root=p.root, n_images=p.n_images, seed=p.seed)
        return {"card": cards.read_card(p.card).name, "root": held}
    except (ValueError, OSError) as error:
        if must_read:
            raise StudyError(f"{where}: {error}") from None
        return {}


# ---- the plan ------------------------------------------------------------------------------------------------------
@dataclass
class _Planned:
    """A plan in the making: what was asked for, the runs so far, and the names of data sets and base models."""

    name: str
    preset: Preset
    must_read: bool
    runs: dict[str, Run] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    base: dict[str, str] = field(default_factory=dict)
    piece: int = 0

    @property
    def folds(self) -> list[str]:
        return [f"fold{k}" for k in range(self.preset.folds)]

    def add(
        self, stage: str, label: str, values: dict[str, Any], needs: tuple[str, ...] = ()
    ) -> str:
        """Add a run unless it is there, and return its name."""
        where = f"preset {self.name}, {stage} {label}"
        p = validated(stage, {key: value for key, value in values.items() if key != "out"}, where)
        checked = p.model_dump(exclude={"out"})
        own = _content(p, where, self.must_read) if stage == "data" else {}
        named = {
            key: value
            for key, value in (checked | own).items()
            if key not in NO_PART.get(stage, ())
        }
        run = f"{label}-{digest([stage, named])}"
        out = f"runs/{self.name}/{stage}/{run}"
        self.runs.setdefault(
            run, Run(run, stage, self.name, checked | {"out": out}, needs, self.piece)
        )
        return run

    def folder(self, run: str) -> str:
        return self.runs[run].folder if run in self.runs else run

    def waits(self, *names: str) -> tuple[str, ...]:
        return tuple(name for name in names if name in self.runs)

    def label(self, encoder: str) -> str:
        """What a run on an encoder is called: after its run, or after the end of its path."""
        return slug(encoder) if encoder in self.runs else encoder.rstrip("/").rsplit("/", 1)[-1]


def plan(
    name: str,
    settings: dict[str, Any] | None = None,
    data_root: str = "",
    *,
    must_read: bool = False,
) -> list[Run]:
    """Unfold a preset into runs, in an order in which each comes after those it needs; StudyError if it cannot.

    ``must_read``: refuse data that cannot be read. Without, a plan of data that are not here can be looked at.
    """
    preset = override(load_preset(name), settings or {})
    if preset.folds in (1, 2):
        raise StudyError(
            f"preset {name}: folds is {preset.folds}; one is held, one validates, so at least 3 are needed"
        )
    g = _Planned(name, preset, must_read)
    _add_data(g, data_root)
    _add_bases(g)
    ends = _ends(preset)
    points: list[str] = []
    rungs: list[str] = []
    evaluated: dict[tuple[str, str], None] = {}
    for ladder in sorted(preset.ladders, key=lambda ladder: ladder.piece):
        on, from_ = _add_ladder(g, ladder, ends, rungs, points)
        evaluated[(on, from_)] = None
    last, g.piece = g.piece, 0
    for on, from_ in evaluated:
        points += _add_baselines(g, on, from_)
    check_ladders(
        [g.runs[r] for r in rungs],
        {run.folder: run.parameters.get("size") for run in g.runs.values()},
    )
    g.piece = last
    if points:
        read = [name for name, run in g.runs.items() if run.stage in ("classify", "segment")]
        own = {"records": [g.folder(name) for name in read], "runs": ""}
        g.add("analyse", "analyse", preset.analyse | own, tuple(read))
    return list(g.runs.values())


def _add_data(g: _Planned, data_root: str) -> None:
    entries: dict[str, dict[str, Any]] = {}
    for key, values in g.preset.data.items():
        try:
            entries[key] = data_entry(values, data_root)
        except StudyError as error:
            raise StudyError(f"preset {g.name}: data {key}: {error}") from None
    lacking = [key for key, values in entries.items() if values.get("root") == ""]
    if lacking or (g.preset.needs_root and not data_root):
        raise StudyError(
            f"preset {g.name!r} reads real images ({', '.join(lacking) or 'needs_root'}): say where they lie, "
            "DATA_ROOT=PATH or --data-root PATH"
        )
    for key, values in entries.items():
        g.data[key] = g.add("data", key, values)


def _add_bases(g: _Planned) -> None:
    for key, values in g.preset.base.items():
        if list(values) == [
            "shipped"
        ]:  # an encoder folder of the repository, or a name of published weights
            g.base[key] = values["shipped"]
            continue
        on = _named(values.get("data"), g.data, f"preset {g.name}: base {key}", "data")
        from_ = values.get("base") or ""
        if from_ in g.preset.base:  # one of the preset's own, which must stand above it
            from_ = _named(from_, g.base, f"preset {g.name}: base {key}", "base")
        own = values | {"data": g.folder(on), "base": g.folder(from_)}
        g.base[key] = g.add("pretrain", key, own, (on, *g.waits(from_)))


def _ends(preset: Preset) -> dict[tuple[Any, ...], set[int]]:
    """The sizes of each scaling curve, over all ladders of the same data, base model and paradigm."""
    sizes: dict[tuple[Any, ...], set[int]] = {}
    for ladder in preset.ladders:
        for values in _unfold(ladder.model_dump(exclude=PLACED), Pretrain):
            sizes.setdefault((ladder.data, ladder.base, values.get("paradigm")), set()).add(
                values.get("n_images", 0)
            )
    return sizes


def _add_ladder(
    g: _Planned,
    ladder: Ladder,
    ends: dict[tuple[Any, ...], set[int]],
    rungs: list[str],
    points: list[str],
) -> tuple[str, str]:
    """Add a ladder's pretraining runs to ``rungs`` and their evaluations to ``points``; return its data and base."""
    g.piece = ladder.piece
    on = _named(ladder.data, g.data, f"preset {g.name}: ladder", "data")
    from_ = _named(ladder.base, g.base, f"preset {g.name}: ladder", "base") if ladder.base else ""
    absent = sorted(set(g.folds) - set(g.runs[on].parameters["fractions"]))
    if absent:
        raise StudyError(
            f"preset {g.name}: folds is {g.preset.folds}, but data {ladder.data} has no split {absent[0]!r}"
        )
    for values in _unfold(ladder.model_dump(exclude=PLACED), Pretrain):
        values |= {"data": g.folder(on), "base": g.folder(from_) if from_ else ""}
        label = (
            f"{values.get('paradigm', 'clip')}-n{values.get('n_images')}-s{values.get('seed', 0)}"
        )
        needs = g.waits(on, from_)
        if not g.folds:
            trained = [g.add("pretrain", label, values, needs)]
        else:
            others = [{"splits": [f for f in g.folds if f != held]} for held in g.folds]
            trained = [
                g.add("pretrain", f"{label}-{held}", values | own, needs)
                for held, own in zip(g.folds, others, strict=True)
            ]
        rungs += trained
        points.append(_classify(g, label, on, [g.folder(run) for run in trained], tuple(trained)))
        n, sizes = (
            values.get("n_images", 0),
            ends[(ladder.data, ladder.base, values.get("paradigm"))],
        )
        place = "last" if n == max(sizes) else "first" if n == min(sizes) else "between"
        _judge(g, label, on, g.folder(trained[0]), (on, *trained), place, values.get("seed", 0))
    return on, from_


def _add_baselines(g: _Planned, on: str, from_: str) -> list[str]:
    """Add evaluations of a base model and of the preset's controls on a data set; return their names."""
    points = []
    if from_:
        label = g.label(from_)
        points.append(_classify(g, f"base-{label}", on, [g.folder(from_)], g.waits(from_)))
        _judge(g, f"base-{label}", on, g.folder(from_), g.waits(on, from_))
    for control in g.preset.controls:
        if control == "shuffled":  # the base's features, and labels dealt out anew
            if from_:
                own = {"shuffle_labels": True}
                points.append(
                    _classify(g, f"shuffled-{label}", on, [g.folder(from_)], g.waits(from_), **own)
                )
            continue
        if control.startswith("base:"):  # one that no ladder starts from: judged as it is
            other = _named(
                control.removeprefix("base:"), g.base, f"preset {g.name}: controls", "base"
            )
            points.append(_classify(g, g.label(other), on, [g.folder(other)], g.waits(other)))
            _judge(g, g.label(other), on, g.folder(other), g.waits(on, other))
            continue
        called = g.label(control).replace(":", "-")
        points.append(_classify(g, called, on, [control], ()))
        _judge(g, called, on, control, (on,))
    return points


def _classify(
    g: _Planned, label: str, on: str, encoders: list[str], needs: tuple[str, ...], **more: Any
) -> str:
    which = {"fold_encoders": encoders} if len(encoders) > 1 else {"encoder": encoders[0]}
    also = [g.data.get(name, name) for name in g.preset.classify.get("also", [])]
    shared = g.preset.classify | {
        "data": g.folder(on),
        "folds": g.folds,
        "also": [g.folder(a) for a in also],
    }
    return g.add("classify", label, shared | which | more, (on, *needs, *g.waits(*also)))


def _judge(
    g: _Planned,
    label: str,
    on: str,
    encoder: str,
    needs: tuple[str, ...],
    place: str = "",
    seed: int = 0,
) -> None:
    """Runs of the other task families on an encoder; ``place`` of a rung in its ladder: first, between or last."""
    blind = {
        "segment": ("covariates", "pixels"),
        "report": ("covariates",),
    }  # a decoder sees 3 of its pixels
    for stage, family in (("segment", g.preset.segment), ("report", g.preset.report)):
        wanted = {"all": PLACES, "ends": ("first", "last"), "largest": ("last",), "none": ()}
        if family is None or encoder in blind[stage]:
            continue
        if place and (
            place not in wanted[family.rungs] or (family.seeds and seed not in family.seeds)
        ):
            continue
        if encoder.startswith("supervised:") or encoder.endswith((".npz", ".parquet")):
            continue  # taught by labels for labels; vectors without patches
        if g.folds:
            raise StudyError(
                f"preset {g.name}: {stage} needs fixed splits, but folds is {g.preset.folds}"
            )
        own = family.model_dump(exclude={"rungs", "seeds"}) | {
            "data": g.folder(on),
            "encoder": encoder,
        }
        g.add(stage, label, own, needs)


def _named(key: Any, known: dict[str, str], where: str, block: str) -> str:
    if key not in known:
        raise StudyError(
            f"{where}: {block} {key!r} is not among this preset's {block}: {', '.join(known) or 'none'}"
        )
    return known[key]


def _unfold(values: dict[str, Any], model: type[Parameters]) -> list[dict[str, Any]]:
    """Every combination of the values that are lists, but for parameters that are lists themselves."""
    axes = {
        k: v if isinstance(v, list) and not takes_list(model, k) else [v] for k, v in values.items()
    }
    empty = [name for name, choices in axes.items() if not choices]
    if empty:
        raise StudyError(f"{empty[0]} is an empty list: the grid would hold no run")
    return [
        read_numbers(model, dict(zip(axes, c, strict=True)))
        for c in itertools.product(*axes.values())
    ]


EQUAL = (
    "samples_seen",
    "batch_size",
    "lr",
    "warmup",
    "weight_decay",
    "clip",
    "ema",
    "dino",
    "precision",
)


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
