"""The single checks of a preset: its parameters, its data, its grid against the data, the machine."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cxrstudy import study
from cxrstudy.data import cards, odd
from cxrstudy.data.language import not_english
from cxrstudy.evaluate.small_samples import LEAST, LEAST_PATIENTS
from cxrstudy.preflight.asked import ALL, PARTS, TEST, TRAIN, Asked, Keys, Problem, unfolded
from cxrstudy.preflight.holdings import Counts, Holding, count_labels, sums_to_one

WRITTEN = "# Written by `cxrstudy new"  # how such a preset begins
SAMPLE = 1000  # reports whose language is looked at


def parameters(c: Asked) -> Iterator[Problem]:
    """Every parameter that is unknown, ill-typed or out of range, at its line."""
    each: list[tuple[str, dict[str, Any], Keys]] = [
        ("classify", c.preset.classify, ("classify",)),
        ("analyse", c.preset.analyse, ("analyse",)),
        *(("data", values, ("data", key)) for key, values in c.preset.data.items()),
        *(
            ("pretrain", v, ("base", key))
            for key, v in c.preset.base.items()
            if list(v) != ["shipped"]
        ),
        *(
            ("pretrain", v, ("ladders", k))
            for k, ladder in enumerate(c.preset.ladders)
            for v in unfolded(ladder)
        ),
    ]
    for stage in ("segment", "report"):
        if family := getattr(c.preset, stage):
            each.append((stage, family.model_dump(exclude={"rungs", "seeds"}), (stage,)))
    for stage, values, keys in each:
        try:
            study.STAGES[stage](**values)
        except ValidationError as error:
            for item in error.errors():
                name = (
                    str(item["loc"][0])
                    if item["loc"]
                    else "n_images"
                    if "n_images" in item["msg"]
                    else ""
                )
                place: Keys = (name,) if name in values else ()
                if keys[0] == "ladders" and place:
                    place = _listed(c, int(keys[1]), name, values[name])[2:]
                yield c.error(_said(item, study.STAGES[stage]), *keys, *place)


def _said(item: Any, model: type[study.Parameters]) -> str:
    """What pydantic found wrong with one parameter, or with all together."""
    if not item["loc"]:
        return str(item["msg"]).removeprefix("Value error, ")
    alone: Any = {
        "type": item["type"],
        "loc": item["loc"],
        "input": item["input"],
        "ctx": item.get("ctx", {}),
    }
    return study.explain(ValidationError.from_exception_data("", [alone]), "", model).removeprefix(
        ": "
    )


# ---- what is there -------------------------------------------------------------------------------------------------
def data(c: Asked) -> Iterator[Problem]:
    """The card, its table and its images, and what was left out of them."""
    told: set[tuple[str, str]] = set()
    for key, held in c.held.items():
        p, at = held.p, ("data", key, "card")
        if held.fault_of_root and not p.root:
            yield c.error(held.fault, *(("needs_root",) if c.preset.needs_root else at))
        elif held.fault_of_root:
            yield Problem("error", "--data-root", held.fault)
        elif held.fault:
            yield Problem("error", held.where or c.at(*at), held.fault)
        if not held.fault and p.card != "synthetic":
            name, file = (
                cards.read_card(p.card).name,
                Path(p.card).stem if p.card.endswith(".md") else p.card,
            )
            if name != file:
                yield Problem(
                    "warning",
                    cards.place(p.card, "name"),
                    f"the card calls itself {name!r}, which reports and pages then show; write `name: {file}`",
                )
        if held.whole and p.n_images > held.whole:
            yield c.error(
                f"n_images is {p.n_images:,}, but card {p.card} has {held.whole:,} images under {p.root}; 0 is all",
                *("data", key, "n_images"),
            )
        if held.manifest is None or (p.card, held.p.root) in told:
            continue
        told.add((p.card, held.p.root))
        out = sum(count for reason, count in held.left_out.items() if reason != odd.ASKED)
        why = ", ".join(f"{count:,} {reason}" for reason, count in held.left_out.items() if count)
        patients = held.manifest["patient_id"].nunique()
        said = f"data {key}: {held.n:,} images of {patients:,} patients"
        yield Problem("note", "", f"{said}; left out of the table: {why}" if why else said)
        if out > odd.MANY * (out + held.whole):
            yield c.warning(
                f"{out:,} of {out + held.whole:,} rows of the table are left out: {why}", *at
            )
        for column, values in held.not_understood.items():
            many = isinstance(values, dict)
            values = ", ".join(f"{v!r} ({n:,})" for v, n in values.items()) if many else values
            yield c.warning(f"not understood in {column}, taken as missing: {values}", *at)
        if "report" in held.manifest:
            some = held.manifest["report"].dropna()
            some = some.sample(min(len(some), SAMPLE), random_state=0)
            if other := not_english(some):
                names = ", ".join(f"{name} {n:,}" for name, n in other.items())
                said = f"of {len(some):,} reports read, {sum(other.values()):,} are not in English ({names})"
                yield c.warning(
                    f"{said}: they give no labels, and are neither written nor scored", *at
                )


def splits(c: Asked) -> Iterator[Problem]:
    """Fractions sum to 1 and hold the splits that are used, with images in each."""
    for key, held in c.held.items():
        shares, at = held.p.fractions, ("data", key, "fractions")
        if not sums_to_one(shares):
            said = " + ".join(f"{share:g}" for share in shares.values())
            yield c.error(
                f"fractions must be at least 0 and sum to 1; {said} is {sum(shares.values()):g}",
                *at,
            )
            continue
        for split, keys in _used(c, key):
            if split not in shares:
                there = ", ".join(shares)
                yield c.error(
                    f"split {split!r} is used, but fractions of data {key} name only {there}", *keys
                )
            elif held.is_split and held.count([split]) == 0:
                yield c.error(f"data {key} has no image in split {split!r}: raise its share", *at)


def _used(c: Asked, key: str) -> Iterator[tuple[str, Keys]]:
    """Splits of a data set that something reads, and where that is said."""
    for name, values in c.preset.base.items():
        if values.get("data") == key:
            yield from (
                (split, ("base", name, "splits")) for split in values.get("splits", ["pretrain"])
            )
    own = [k for k, ladder in enumerate(c.preset.ladders) if ladder.data == key]
    if own and c.folds:
        yield from ((fold, ("data", key, "fractions")) for fold in c.folds)
    elif own:
        yield from (
            (split, ("ladders", k, "splits")) for k, p in c.rungs if k in own for split in p.splits
        )
        for stage, p in c.stages.items():
            yield from ((split, (stage, part)) for part in PARTS for split in getattr(p, part))


def labels(c: Asked) -> Iterator[Problem]:
    """Positives and negatives of each label by split, and which labels are too few to evaluate."""
    for key, held in c.judged():
        p, at = c.stages.get("classify"), ("data", key, "card")
        if p is None:
            return
        if p.within and (fault := held.query_fault(p.within)):
            yield c.error(f"within: {p.within!r} {fault}", "classify", "within")
            continue
        there = ", ".join(held.labels) or "none"
        for name in p.labels:
            if name not in held.labels:
                yield c.error(
                    f"labels: data {key} has no label {name!r}; it has {there}",
                    "classify",
                    "labels",
                )
        parts = c.parts(held, "classify")
        retrieved = held.reported[parts[TEST if TEST in parts else ALL].index].any()
        if not held.labels:
            rest = (
                "; with an encoder that reads text, retrieval is"
                if retrieved
                else "; nothing is left to evaluate"
            )
            said = f"card {held.p.card} has no labels: no finding, line or tube is evaluated{rest}"
            yield c.warning(f"{said}. Name `labels` in the card to have them", *at)
            continue
        if not held.is_split:
            continue
        names = [name for name in p.labels or held.labels if name in held.labels]
        counts = {part: count_labels(rows, names) for part, rows in parts.items()}
        few = []
        for name in names:
            own = {part: found[name] for part, found in counts.items()}
            said = "; ".join(
                f"{part} {n.images[0]:,} with, {n.images[1]:,} without" for part, n in own.items()
            )
            yield Problem("note", "", f"  {name}: {said}")
            if too_few(own):
                few.append(f"{name} ({said}{_one_sided(held, name)})")
        if few:
            where = ("classify", "labels") if p.labels else at
            needed = (
                f"{LEAST} test images with and {LEAST} without, of {LEAST_PATIENTS} patients each"
            )
            rest = "; no label is left" if len(few) == len(names) else ""
            said = f"too few to evaluate, needed are {needed}, and both in training: {', '.join(few)}{rest}"
            every = count_labels(
                held.within(p.within), names
            )  # where none has both classes, the runs would fail
            hopeless = not retrieved and all(min(found.images) == 0 for found in every.values())
            yield c.error(said, *where) if hopeless else c.warning(said, *where)


def too_few(own: dict[str, Counts]) -> bool:
    """Whether a label cannot be evaluated, by its counts in each part."""
    test, train = own.get(TEST) or own[ALL], own.get(TRAIN) or own[ALL]
    return min(test.images) < LEAST or min(test.patients) < LEAST_PATIENTS or min(train.images) < 1


def _one_sided(held: Holding, name: str) -> str:
    """The remedy for a label that has positives alone, or negatives alone, as the card reads its column."""
    card = cards.read_card(held.p.card).labels
    with_it, without = count_labels(held.within(""), [name])[name].images
    if card is None or bool(with_it) == bool(without):
        return ""
    if not with_it:
        return f"; nothing says that it is present: see `values` and `names`, {cards.place(held.p.card, 'labels')}"
    if card.missing == "absent":
        return "; every image has it, so nothing can be told apart"
    empty = "a name that is not listed" if card.encoding == "list" else "an empty cell"
    at = cards.place(held.p.card, "labels", "missing")
    return f"; if {empty} means absent, write `missing: absent`, {at}"


def unused(c: Asked) -> Iterator[Problem]:
    """Reports and labels that a card has come to have since `cxrstudy new` wrote the preset."""
    if not c.text.startswith(WRITTEN) or c.settings:
        return
    given = {p.paradigm for _, p in c.rungs}
    controls = {name.partition(":")[0] for name in c.preset.controls}
    for key, held in c.judged():
        choices = [[fold for fold in c.folds if fold != left] for left in c.folds] or [["pretrain"]]
        lacks = []
        if not given & {"clip", "clip+labels"} and c.preset.report is None:
            enough = held.is_split and min(held.count(s, "clip") for s in choices) >= LEAST
            lacks += ["reports"] * enough
        uses = given & {"unicl", "clip+labels"} or controls & {"shuffled", "supervised"}
        if (
            not uses
            and not c.preset.classify.get("labels")
            and "classify" in c.stages
            and held.is_split
        ):
            counts = {
                part: count_labels(rows, held.labels)
                for part, rows in c.parts(held, "classify").items()
            }
            enough = any(
                not too_few({part: n[name] for part, n in counts.items()}) for name in held.labels
            )
            lacks += ["labels"] * enough
        if lacks:
            said = f"card {held.p.card} has {' and '.join(lacks)} that this preset does not use"
            again = f"cxrstudy new --card {held.p.card} --name {c.file.rsplit('/', 1)[-1].removesuffix('.yml')} --force"
            yield c.warning(
                f"{said}: write it again with {again}, or delete its first line",
                "data",
                key,
                "card",
            )


# ---- the grid against it -------------------------------------------------------------------------------------------
def ladders(c: Asked) -> Iterator[Problem]:
    """Each rung against the images that its splits hold; paradigms against reports and labels."""
    for k, p in c.rungs:
        key = c.preset.ladders[k].data
        held = c.held.get(key)
        if p.n_images < p.batch_size:
            given = "batch_size" in (c.preset.ladders[k].model_extra or {})
            yield c.error(
                f"batch_size {p.batch_size} exceeds n_images {p.n_images}: a batch would hold images twice; lower "
                "batch_size or raise n_images",
                *(("ladders", k, "batch_size") if given else _listed(c, k, "n_images", p.n_images)),
            )
        if held is None or held.fault:
            continue
        if why := _lacks(p.paradigm, held):
            yield c.error(why, *_listed(c, k, "paradigm", p.paradigm))
            continue
        if not held.is_split:
            continue
        choices = [[fold for fold in c.folds if fold != left] for left in c.folds] or [p.splits]
        there, in_all = (
            min(held.count(s, what) for s in choices) for what in (p.paradigm, "dinov2")
        )
        named = "the folds but one" if c.folds else f"split {' and '.join(p.splits)}"
        about, needs = ("", "") if held.manifest is not None else ("about ", "")
        if there < in_all:
            needs = " that have a report" + " or known labels" * (p.paradigm == "unicl")
            said = f"{p.paradigm} takes only images{needs}: {in_all - there:,} of {in_all:,} in {named} are left out"
            level: Any = "warning" if in_all - there > odd.MANY * in_all else "note"
            yield Problem(
                level,
                c.at(*_listed(c, k, "paradigm", p.paradigm)),
                f"{said}; the same at every n_images",
            )
        if p.n_images > max(there, held.most(choices[0])):
            yield c.error(
                f"n_images {p.n_images:,} ({p.paradigm}): {named} of data {key} holds {about}{there:,} images{needs}; "
                "take no more than that",
                *_listed(c, k, "n_images", p.n_images),
            )


def _listed(c: Asked, k: int, name: str, value: Any) -> Keys:
    """Keys of a ladder's value: its own place where it stands in a list."""
    given = (c.preset.ladders[k].model_extra or {}).get(name)
    return (
        ("ladders", k, name, given.index(value))
        if isinstance(given, list)
        else ("ladders", k, name)
    )


def _lacks(paradigm: str, held: Holding) -> str:
    """What a data set lacks that a paradigm needs, with the remedy; empty where it lacks nothing."""
    if held.manifest is None:
        return ""
    said = "{0} needs {1}, card {2} has none: take {0} out of `paradigm`, or name `{3}` in the card"
    if paradigm in ("clip", "clip+labels") and not held.reported.any():
        return said.format(paradigm, "reports", held.p.card, "report")
    known = held.prompted.any() if paradigm == "unicl" else bool(held.labels)
    if paradigm in ("unicl", "clip+labels") and not known:
        return said.format(paradigm, "labels", held.p.card, "labels")
    return ""


def families(c: Asked) -> Iterator[Problem]:
    """Masks for segment and reports for report, in each of their splits."""
    for key, held in c.judged():
        has = {"segment": ("masks", held.masked), "report": ("reports", held.reported)}
        for stage in has.keys() & c.stages.keys():
            what, there = has[stage]
            if c.folds:
                yield c.error(
                    f"{stage} needs fixed splits, but folds is {len(c.folds)}: remove `{stage}`",
                    stage,
                )
            elif not there.any():
                yield c.error(
                    f"{stage} needs {what}, card {held.p.card} has none: remove `{stage}` from this preset, or name "
                    f"`{'masks' if stage == 'segment' else 'report'}` in the card's table",
                    stage,
                )
            elif fault := held.query_fault(c.stages[stage].within):
                yield c.error(f"within: {c.stages[stage].within!r} {fault}", stage, "within")
            else:
                for part, rows in c.parts(held, stage).items():
                    if held.is_split and not there[rows.index].any():
                        yield c.error(
                            f"{stage}: no image of its {part} split in data {key} has {what}", stage
                        )


# ---- the machine ---------------------------------------------------------------------------------------------------
def memory_gb() -> float:
    """Return the machine's memory in GB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def free_gb() -> float:
    """Return the free disk in GB where runs are kept."""
    place = study.runs_root()
    while not place.is_dir():
        place = place.parent
    return shutil.disk_usage(place).free / 1e9


def machine(c: Asked) -> Iterator[Problem]:
    """Disk and memory: what the images take for certain, and what the preset expects."""
    images, free = sum(held.n * held.p.size**2 for held in c.held.values()) / 1e9, free_gb()
    if images > free:
        yield c.error(
            f"the prepared images take {images:,.1f} GB, {free:.1f} GB of disk are free", "data"
        )
    elif c.preset.disk_gb > free:
        yield c.warning(
            f"expects {c.preset.disk_gb:g} GB of disk, {free:.1f} GB are free", "disk_gb"
        )
    if c.preset.memory_gb > memory_gb():
        yield c.warning(
            f"expects {c.preset.memory_gb:g} GB of memory, there are {memory_gb():.0f} GB",
            "memory_gb",
        )
