"""The grid: which runs a preset asks for, their names, and which runs each of them reads.

Every run is one parameterised notebook. A run's name ends in a digest of its parameters, which
contain the names of the runs that it reads. So a changed value renames exactly the runs that it
affects, and results of other values are kept beside them. The folder of real data is not part of
a name; a digest of its content is.
"""

from dataclasses import dataclass, field
from typing import Any

from cxrstudy.presetdata import content, data_entry, with_needs_root
from cxrstudy.presets import (
    Curve,
    Preset,
    combinations,
    override,
    preset_names,
    preset_path,
    read_preset,
)
from cxrstudy.study import StudyError, digest, validated

EQUAL = (  # what all runs of a scaling curve must share, so that compute is constant
    *("samples_seen", "batch_size", "lr", "warmup", "weight_decay", "grad_clip_norm"),
    *("ema", "dino", "precision"),
)
EVALUATED = {  # by `sizes` of a downstream task: positions of a subset size in its curve
    "all": ("smallest", "between", "largest"),
    "ends": ("smallest", "largest"),
    "largest": ("largest",),
    "none": (),
}


def slug(run: str) -> str:
    """Return a run's name without its digest."""
    return run.rsplit("-", 1)[0]


@dataclass(frozen=True)
class Run:
    """One notebook execution. ``needs`` are the names of the runs whose folders it reads."""

    name: str
    stage: str
    preset: str
    parameters: dict[str, Any]
    needs: tuple[str, ...] = ()
    priority: int = 0

    @property
    def folder(self) -> str:
        """The run's folder, as a parameter names it."""
        return f"runs/{self.preset}/{self.stage}/{self.name}"


def without(runs: list[Run], recorded: set[str]) -> list[Run]:
    """Return the evaluations that are not in ``recorded``, and the runs that they need.

    The analysis, which reads all evaluations, is left out when any of these is.
    """
    wanted = {
        run.name
        for run in runs
        if run.stage in ("classify", "segment", "report") and run.name not in recorded
    }
    for run in reversed(runs):  # each comes after those it needs
        if run.name in wanted:
            wanted.update(run.needs)
    return [run for run in runs if run.name in wanted]


def load_preset(name: str) -> Preset:
    """Return the preset of ``notebooks/presets/NAME.yml``.

    ``needs_root`` is set if some card reads files whose folder the preset does not name.

    Raises:
        StudyError: there is no such preset, or it is wrong; names the line and the remedy.
    """
    path = preset_path(name)
    if not path.is_file():
        raise StudyError(f"no preset {name!r}; there are: {', '.join(preset_names())}")
    try:
        return with_needs_root(read_preset(path.read_text(encoding="utf-8"), name))
    except UnicodeDecodeError as error:
        raise StudyError(f"{path}: not YAML: {error}") from None


# ---- the plan ---------------------------------------------------------------------------------
def plan(
    name: str,
    settings: dict[str, Any] | None = None,
    data_root: str = "",
    *,
    must_read: bool = False,
) -> list[Run]:
    """Return the runs of a preset by its name, with ``--set`` values; see ``expand``."""
    return expand(override(load_preset(name), settings or {}), data_root, must_read=must_read)


def expand(preset: Preset, data_root: str = "", *, must_read: bool = False) -> list[Run]:
    """Return the runs that a preset asks for, each after those it needs.

    Args:
        data_root: folder of real data.
        must_read: refuse data that cannot be read. Otherwise such a plan can still be shown.

    Raises:
        StudyError: the preset asks for what does not fit together; says what and the remedy.
    """
    if preset.folds in (1, 2):
        raise StudyError(
            f"preset {preset.name}: folds is {preset.folds}; one fold is for test and one for "
            "validation, so at least 3 are needed"
        )
    g = _Grid(preset, must_read)
    _add_data(g, data_root)
    _add_bases(g)
    pairs: dict[tuple[str, str], None] = {}  # data and base model of each curve
    sizes = _curve_sizes(preset)
    for curve in sorted(preset.curves, key=lambda curve: curve.priority):
        pairs[_add_curve(g, curve, sizes)] = None
    last, g.priority = g.priority, 0
    for data, base in pairs:
        _add_base_evaluations(g, data, base)
        for baseline in preset.baselines:
            _add_baseline(g, baseline, data, base)
    _check_budgets(g)
    g.priority = last
    read = [name for name, run in g.runs.items() if run.stage in ("classify", "segment")]
    if read:
        own = {"records": [g.folder(name) for name in read], "runs": ""}
        g.add("analyse", "analyse", preset.analyse | own, tuple(read))
    return list(g.runs.values())


@dataclass
class _Grid:
    """A plan that is being built: the runs so far, and the names of data sets and base models."""

    preset: Preset
    must_read: bool
    runs: dict[str, Run] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)  # name in the preset -> run
    base: dict[str, str] = field(default_factory=dict)  # name in the preset -> run or encoder
    trained: list[str] = field(default_factory=list)  # pretraining runs of the curves
    priority: int = 0

    @property
    def folds(self) -> list[str]:
        return [f"fold{k}" for k in range(self.preset.folds)]

    def add(
        self, stage: str, label: str, values: dict[str, Any], needs: tuple[str, ...] = ()
    ) -> str:
        """Add a run if it is new, and return its name."""
        where = f"preset {self.preset.name}, {stage} {label}"
        p = validated(stage, {key: value for key, value in values.items() if key != "out"}, where)
        checked = p.model_dump(exclude={"out"})
        own = content(p, where, self.must_read) if stage == "data" else {}
        run = f"{label}-{digest([stage, checked | own])}"
        out = {"out": f"runs/{self.preset.name}/{stage}/{run}"}
        new = Run(run, stage, self.preset.name, checked | out, needs, self.priority)
        self.runs.setdefault(run, new)
        return run

    def folder(self, run: str) -> str:
        """Return the folder of a run; an encoder of another kind is returned as it is."""
        return self.runs[run].folder if run in self.runs else run

    def needed(self, *names: str) -> tuple[str, ...]:
        """Return those of ``names`` that are runs of this plan."""
        return tuple(name for name in names if name in self.runs)

    def label(self, encoder: str) -> str:
        """Return the label of runs on an encoder: after its run, or the end of its path."""
        return slug(encoder) if encoder in self.runs else encoder.rstrip("/").rsplit("/", 1)[-1]

    def find(self, block: str, key: Any, where: str) -> str:
        """Return what a name of the preset's ``data`` or ``base`` refers to."""
        known = self.data if block == "data" else self.base
        if key not in known:
            raise StudyError(
                f"preset {self.preset.name}: {where}: {block} {key!r} is not among this preset's "
                f"{block}: {', '.join(known) or 'none'}"
            )
        return known[key]


def _add_data(g: _Grid, data_root: str) -> None:
    """Add the runs that prepare data sets."""
    entries: dict[str, dict[str, Any]] = {}
    for key, values in g.preset.data.items():
        try:
            entries[key] = data_entry(values, data_root)
        except StudyError as error:
            raise StudyError(f"preset {g.preset.name}: data {key}: {error}") from None
    missing = [key for key, values in entries.items() if values.get("root") == ""]
    if missing or (g.preset.needs_root and not data_root):
        raise StudyError(
            f"preset {g.preset.name!r} reads real images ({', '.join(missing) or 'needs_root'}): "
            "name their folder by DATA_ROOT=PATH or --data-root PATH"
        )
    for key, values in entries.items():
        g.data[key] = g.add("data", key, values)


def _add_bases(g: _Grid) -> None:
    """Add the runs that train base models, and note those that are checkpoints."""
    for key, values in g.preset.base.items():
        if list(values) == ["checkpoint"]:  # an encoder folder, or the name of published weights
            g.base[key] = values["checkpoint"]
            continue
        data = g.find("data", values.get("data"), f"base {key}")
        base = values.get("base") or ""
        if base in g.preset.base:  # one of the preset's own, which must be listed before it
            base = g.find("base", base, f"base {key}")
        own = values | {"data": g.folder(data), "base": g.folder(base)}
        g.base[key] = g.add("pretrain", key, own, (data, *g.needed(base)))


def _curve_sizes(preset: Preset) -> dict[tuple[Any, ...], set[int]]:
    """Return the subset sizes of each data set, base model and paradigm, over all curves."""
    sizes: dict[tuple[Any, ...], set[int]] = {}
    for curve in preset.curves:
        for values in combinations(curve.values):
            key = (curve.data, curve.base, values.get("paradigm"))
            sizes.setdefault(key, set()).add(values.get("n_images", 0))
    return sizes


def _add_curve(g: _Grid, curve: Curve, sizes: dict[tuple[Any, ...], set[int]]) -> tuple[str, str]:
    """Add a curve's pretraining runs and their evaluations.

    Returns:
        The data that it is evaluated on, and its base model.
    """
    g.priority = curve.priority
    data = g.find("data", curve.data, "curve")
    target = g.find("data", curve.evaluated, "curve, evaluate_on")
    base = g.find("base", curve.base, "curve") if curve.base else ""
    absent = sorted(set(g.folds) - set(g.runs[target].parameters["fractions"]))
    if absent:
        raise StudyError(
            f"preset {g.preset.name}: folds is {g.preset.folds}, but data {curve.evaluated} has no "
            f"split {absent[0]!r}"
        )
    folds = g.folds if target == data else []  # images of others share no patient with a fold
    for values in combinations(curve.values):
        n, seed = values.get("n_images", 0), values.get("seed", 0)
        where = "" if target == data else f"{curve.data}-"
        label = f"{values.get('paradigm', 'clip')}-{where}n{values.get('n_images')}-s{seed}"
        own = values | {"data": g.folder(data), "base": g.folder(base)}
        trained = _add_pretraining(g, label, own, g.needed(data, base), folds)
        g.trained += trained
        _add_classify(g, label, target, [g.folder(run) for run in trained], tuple(trained))
        all_sizes = sizes[(curve.data, curve.base, values.get("paradigm"))]
        position = "smallest" if n == min(all_sizes) else "between"
        position = "largest" if n == max(all_sizes) else position
        at = (position, seed)
        _add_downstream(g, label, g.folder(trained[0]), target, (target, *trained), at)
    return target, base


def _add_pretraining(
    g: _Grid, label: str, values: dict[str, Any], needs: tuple[str, ...], folds: list[str]
) -> list[str]:
    """Add one pretraining run, or with cross-fitting one for each fold that it leaves out."""
    if not folds:
        return [g.add("pretrain", label, values, needs)]
    splits = {fold: [other for other in folds if other != fold] for fold in folds}
    return [
        g.add("pretrain", f"{label}-{fold}", values | {"splits": others}, needs)
        for fold, others in splits.items()
    ]


def _add_base_evaluations(g: _Grid, data: str, base: str) -> None:
    """Add the evaluations of an unmodified base model."""
    if base:
        label = f"base-{g.label(base)}"
        _add_classify(g, label, data, [g.folder(base)], g.needed(base))
        _add_downstream(g, label, g.folder(base), data, g.needed(data, base))


def _add_baseline(g: _Grid, baseline: str, data: str, base: str) -> None:
    """Add the evaluations of one of the preset's baselines."""
    if baseline == "shuffled":  # the base model's features, with permuted labels
        if base:
            label, own = f"shuffled-{g.label(base)}", {"shuffle_labels": True}
            _add_classify(g, label, data, [g.folder(base)], g.needed(base), own)
        return
    encoder = baseline
    if baseline.startswith("base:"):  # a base model that no curve starts from
        encoder = g.find("base", baseline.removeprefix("base:"), "baselines")
    label = g.label(encoder).replace(":", "-")
    _add_classify(g, label, data, [g.folder(encoder)], g.needed(encoder))
    _add_downstream(g, label, g.folder(encoder), data, (data, *g.needed(encoder)))


def _add_classify(
    g: _Grid,
    label: str,
    data: str,
    encoders: list[str],
    needs: tuple[str, ...],
    own: dict[str, Any] | None = None,
) -> None:
    """Add the probe of an encoder (with cross-fitting: of one encoder for each fold)."""
    which = {"fold_encoders": encoders} if len(encoders) > 1 else {"encoder": encoders[0]}
    also = [g.data.get(name, name) for name in g.preset.classify.get("also", [])]
    shared = {"data": g.folder(data), "folds": g.folds, "also": [g.folder(a) for a in also]}
    values = g.preset.classify | shared | which | (own or {})
    g.add("classify", label, values, (data, *needs, *g.needed(*also)))


def _add_downstream(
    g: _Grid,
    label: str,
    encoder: str,
    data: str,
    needs: tuple[str, ...],
    at: tuple[str, int] | None = None,
) -> None:
    """Add segmentation and report runs on an encoder, if the preset asks for them.

    Args:
        at: position of the encoder's subset size in its curve (see ``EVALUATED``), and its seed;
            None for base models and baselines.
    """
    if encoder.startswith("supervised:") or encoder.endswith((".npz", ".parquet")):
        return  # trained on labels to predict labels; vectors without patches
    unfit = {"segment": ("covariates", "pixels"), "report": ("covariates",)}  # no feature map
    for stage, task in (("segment", g.preset.segment), ("report", g.preset.report)):
        if task is None or encoder in unfit[stage]:
            continue
        if at and (at[0] not in EVALUATED[task.sizes] or (task.seeds and at[1] not in task.seeds)):
            continue
        if g.folds:
            raise StudyError(
                f"preset {g.preset.name}: {stage} needs fixed splits, but folds is {g.preset.folds}"
            )
        g.add(stage, label, task.values | {"data": g.folder(data), "encoder": encoder}, needs)


def _check_budgets(g: _Grid) -> None:
    """Refuse unequal budgets within a curve: the same paradigm, base, architecture and px."""
    px = {run.folder: run.parameters.get("size") for run in g.runs.values()}
    first: dict[tuple[Any, ...], Run] = {}
    for run in (g.runs[name] for name in g.trained):
        p = run.parameters
        other = first.setdefault((p["paradigm"], p["base"], p["encoder"], px[p["data"]]), run)
        for key in EQUAL:
            if other.parameters[key] != p[key]:
                raise StudyError(
                    f"the {p['paradigm']} curve is not at constant compute: {key} is "
                    f"{other.parameters[key]} in {other.name} but {p[key]} in {run.name}. "
                    f"Give every n_images the same {key}"
                )
