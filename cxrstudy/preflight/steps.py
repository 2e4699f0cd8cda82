"""The single checks of a preset: parameters, data, curves against the data, the machine."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cxrstudy import study
from cxrstudy.data import cards, odd
from cxrstudy.data.language import not_english
from cxrstudy.preflight.asked import PARTS, Asked, Keys, Level, Problem, values_of
from cxrstudy.preflight.holdings import Holding, sums_to_one

SAMPLE = 1000  # reports whose language is checked


def parameters(c: Asked) -> Iterator[Problem]:
    """Yield each parameter that is unknown, ill-typed or out of range, at its line."""
    preset = c.preset
    each: list[tuple[str, dict[str, Any], Keys]] = [
        ("classify", preset.classify, ("classify",)),
        ("analyse", preset.analyse, ("analyse",)),
        *(("data", values, ("data", key)) for key, values in preset.data.items()),
        *(
            ("pretrain", v, ("base", key))
            for key, v in preset.base.items()
            if list(v) != ["checkpoint"]
        ),
        *(
            ("pretrain", values, ("curves", k))
            for k, curve in enumerate(preset.curves)
            for values in values_of(curve)
        ),
        *((stage, values, (stage,)) for stage, values in c.downstream.items()),
    ]
    for stage, values, keys in each:
        try:
            study.STAGES[stage](**values)
        except ValidationError as error:
            for item in error.errors():
                place = _place_of_fault(c, item, values, keys)
                yield c.error(_message(item, study.STAGES[stage]), *keys, *place)


def _place_of_fault(c: Asked, item: Any, values: dict[str, Any], keys: Keys) -> Keys:
    """Return the keys, within a block, of the value that pydantic refused."""
    of_all = "n_images" if "n_images" in item["msg"] else ""
    name = str(item["loc"][0]) if item["loc"] else of_all
    if name not in values:
        return ()
    return _of_curve(c, int(keys[1]), name, values[name])[2:] if keys[0] == "curves" else (name,)


def _message(item: Any, model: type[study.Parameters]) -> str:
    """Return what pydantic found wrong with one parameter, or with all together."""
    if not item["loc"]:
        return str(item["msg"]).removeprefix("Value error, ")
    alone: Any = {key: item[key] for key in ("type", "loc", "input")} | {"ctx": item.get("ctx", {})}
    error = ValidationError.from_exception_data("", [alone])
    return study.explain(error, "", model).removeprefix(": ")


# ---- what there is ----------------------------------------------------------------------------
def data(c: Asked) -> Iterator[Problem]:
    """Check the card, its table and its images, and count what was left out of them."""
    seen: set[tuple[str, str]] = set()
    for key, held in c.held.items():
        p, at = held.p, ("data", key, "card")
        if held.fault_of_root and not p.root:
            yield c.error(held.fault, *(("needs_root",) if c.preset.needs_root else at))
        elif held.fault_of_root:
            yield Problem("error", "--data-root", held.fault)
        elif held.fault:
            yield Problem("error", held.where or c.at(*at), held.fault)
        elif p.card != "synthetic":
            yield from _name_of_card(p.card)
        if held.whole and p.n_images > held.whole:
            yield c.error(
                f"n_images is {p.n_images:,}, but card {p.card} has {held.whole:,} images under "
                f"{p.root}; 0 is all",
                *("data", key, "n_images"),
            )
        if held.manifest is not None and (p.card, p.root) not in seen:
            seen.add((p.card, p.root))
            yield from _table(c, key, held)


def _name_of_card(path: str) -> Iterator[Problem]:
    """Warn of a card whose name is not that of its file."""
    name, file = cards.read_card(path).name, Path(path).stem if path.endswith(".md") else path
    if name != file:
        message = f"the card's name is {name!r}, which reports and pages then show; "
        yield Problem("warning", cards.place(path, "name"), f"{message}write `name: {file}`")


def _table(c: Asked, key: str, held: Holding) -> Iterator[Problem]:
    """Report rows that were left out, values that were not understood, reports not in English."""
    at = ("data", key, "card")
    out = sum(count for reason, count in held.left_out.items() if reason != odd.ASKED)
    why = ", ".join(f"{count:,} {reason}" for reason, count in held.left_out.items() if count)
    patients = held.rows["patient_id"].nunique()
    text = f"data {key}: {held.n:,} images of {patients:,} patients"
    yield Problem("note", "", f"{text}; left out of the table: {why}" if why else text)
    yield from (Problem("note", "", f"data {key}: {note}") for note in held.notes)
    if out > odd.MANY * (out + held.whole):
        text = f"{out:,} of {out + held.whole:,} rows of the table are left out: {why}"
        yield c.warning(text, *at)
    for column, values in held.not_understood.items():
        if isinstance(values, dict):
            values = ", ".join(f"{v!r} ({n:,})" for v, n in values.items())
        yield c.warning(f"not understood in {column}, taken as missing: {values}", *at)
    if "report" in held.rows:
        some = held.rows["report"].dropna()
        some = some.sample(min(len(some), SAMPLE), random_state=0)
        if other := not_english(some):
            names = ", ".join(f"{name} {n:,}" for name, n in other.items())
            yield c.warning(
                f"of {len(some):,} reports read, {sum(other.values()):,} are not in English "
                f"({names}): they give no labels, and are neither written nor scored",
                *at,
            )


def splits(c: Asked) -> Iterator[Problem]:
    """Check that fractions sum to 1, and that each split that is used has images."""
    for key, held in c.held.items():
        shares, at = held.p.fractions, ("data", key, "fractions")
        if not sums_to_one(shares):
            terms = " + ".join(f"{share:g}" for share in shares.values())
            total = sum(shares.values())
            yield c.error(f"fractions must be at least 0 and sum to 1; {terms} is {total:g}", *at)
            continue
        for split, keys in _used(c, key):
            if split not in shares:
                there = ", ".join(shares)
                text = f"split {split!r} is used, but fractions of data {key} name only {there}"
                yield c.error(text, *keys)
            elif held.is_split and held.count([split]) == 0:
                yield c.error(f"data {key} has no image in split {split!r}: raise its share", *at)


def _used(c: Asked, key: str) -> Iterator[tuple[str, Keys]]:
    """Yield the splits of a data set that something reads, and where that is written."""
    for name, values in c.preset.base.items():
        if values.get("data") == key:
            for split in values.get("splits", ["pretrain"]):
                yield split, ("base", name, "splits")
    for k, p in c.points:
        if c.preset.curves[k].data == key and not c.folded(k):
            yield from ((split, ("curves", k, "splits")) for split in p.splits)
    if key in c.evaluated_on and c.folds:
        yield from ((fold, ("data", key, "fractions")) for fold in c.folds)
    elif key in c.evaluated_on:
        for stage, p in c.stages.items():
            yield from ((split, (stage, part)) for part in PARTS for split in getattr(p, part))


# ---- the curves against it --------------------------------------------------------------------
def curves(c: Asked) -> Iterator[Problem]:
    """Check each subset size against the images of its splits, and what each paradigm needs."""
    for k, p in c.points:
        held = c.held.get(c.preset.curves[k].data)
        if p.n_images < p.batch_size:
            given = "batch_size" in c.preset.curves[k].values
            yield c.error(
                f"batch_size {p.batch_size} exceeds n_images {p.n_images}: a batch would have "
                "images twice; lower batch_size or raise n_images",
                *(
                    ("curves", k, "batch_size")
                    if given
                    else _of_curve(c, k, "n_images", p.n_images)
                ),
            )
        if held is None or held.fault:
            continue
        if why := _missing(p.paradigm, held):
            yield c.error(why, *_of_curve(c, k, "paradigm", p.paradigm))
        elif held.is_split:
            yield from _size(c, k, p, held)


def _size(c: Asked, k: int, p: study.Pretrain, held: Holding) -> Iterator[Problem]:
    """Check one subset size against the images that its paradigm can use."""
    pools = c.pools(p.splits, folded=c.folded(k))
    there, in_all = (min(held.count(s, what) for s in pools) for what in (p.paradigm, "dinov2"))
    named = "the folds but one" if c.folded(k) else f"split {' and '.join(p.splits)}"
    about, needs = "" if held.manifest is not None else "about ", ""
    if there < in_all:
        needs = " that have a report" + " or known labels" * (p.paradigm == "unicl")
        level: Level = "warning" if in_all - there > odd.MANY * in_all else "note"
        where = c.at(*_of_curve(c, k, "paradigm", p.paradigm))
        text = f"{p.paradigm} takes only images{needs}: {in_all - there:,} of {in_all:,} in {named}"
        yield Problem(level, where, f"{text} are left out; the same at every n_images")
    if p.n_images > max(there, held.most(pools[0])):
        data = c.preset.curves[k].data
        yield c.error(
            f"n_images {p.n_images:,} ({p.paradigm}): {named} of data {data} holds {about}"
            f"{there:,} images{needs}; take no more than that",
            *_of_curve(c, k, "n_images", p.n_images),
        )


def _of_curve(c: Asked, k: int, name: str, value: Any) -> Keys:
    """Return the keys of a curve's value; in a list, of its own place there."""
    given = c.preset.curves[k].values.get(name)
    place = (given.index(value),) if isinstance(given, list) else ()
    return ("curves", k, name, *place)


def _missing(paradigm: str, held: Holding) -> str:
    """Return what a data set lacks that a paradigm needs, with the remedy; empty if nothing."""
    if held.manifest is None:
        return ""
    what = ""
    if paradigm in ("clip", "clip+labels") and not held.reported.any():
        what, column = "reports", "report"
    known = held.prompted.any() if paradigm == "unicl" else bool(held.labels)
    if not what and paradigm in ("unicl", "clip+labels") and not known:
        what, column = "labels", "labels"
    return what and (
        f"{paradigm} needs {what}, card {held.p.card} has none: take {paradigm} out of "
        f"`paradigm`, or name `{column}` in the card"
    )


def downstream(c: Asked) -> Iterator[Problem]:
    """Check that there are masks for segment and reports for report, in each of their splits."""
    for key, held in c.evaluated():
        needs = {"segment": ("masks", held.masked), "report": ("reports", held.reported)}
        for stage in needs.keys() & c.stages.keys():
            what, there = needs[stage]
            within = c.stages[stage].within
            if c.folds:
                text = f"{stage} needs fixed splits, but folds is {len(c.folds)}: remove `{stage}`"
                yield c.error(text, stage)
            elif not there.any():
                yield c.error(
                    f"{stage} needs {what}, card {held.p.card} has none: remove `{stage}` from "
                    f"this preset, or name `{'masks' if stage == 'segment' else 'report'}` in "
                    "the card's table",
                    stage,
                )
            elif fault := held.query_fault(within):
                yield c.error(f"within: {within!r} {fault}", stage, "within")
            elif held.is_split:
                for part, rows in c.parts(held, stage).items():
                    if not there[rows.index].any():
                        text = f"{stage}: no image of its {part} split in data {key} has {what}"
                        yield c.error(text, stage)


# ---- the machine ------------------------------------------------------------------------------
def memory_gb() -> float:
    """Return the machine's memory in GB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def free_gb() -> float:
    """Return the free disk in GB in the folder of runs."""
    place = study.runs_root()
    while not place.is_dir():
        place = place.parent
    return shutil.disk_usage(place).free / 1e9


def machine(c: Asked) -> Iterator[Problem]:
    """Check disk and memory: what the images surely take, and what the preset expects."""
    images, free = sum(held.n * held.p.size**2 for held in c.held.values()) / 1e9, free_gb()
    disk, memory = c.preset.disk_gb, c.preset.memory_gb
    if images > free:
        text = f"the prepared images take {images:,.1f} GB, {free:.1f} GB of disk are free"
        yield c.error(text, "data")
    elif disk > free:
        yield c.warning(f"expects {disk:g} GB of disk, {free:.1f} GB are free", "disk_gb")
    if memory > memory_gb():
        text = f"expects {memory:g} GB of memory, there are {memory_gb():.0f} GB"
        yield c.warning(text, "memory_gb")
