"""Labels of a preset's data sets: which are too few to evaluate, and which are not used."""

from collections.abc import Iterator

from cxrstudy.data import cards
from cxrstudy.evaluate.small_samples import LEAST, LEAST_PATIENTS
from cxrstudy.preflight.asked import ALL, TEST, TRAIN, Asked, Problem
from cxrstudy.preflight.holdings import Counts, Holding, count_labels

WRITTEN = "# Written by `cxrstudy new"  # first words of such a preset


def labels(c: Asked) -> Iterator[Problem]:
    """Count positives and negatives of each label by split, and warn of too few to evaluate."""
    p = c.stages.get("classify")
    if p is None:
        return
    for key, held in c.evaluated():
        if p.within and (fault := held.query_fault(p.within)):
            yield c.error(f"within: {p.within!r} {fault}", "classify", "within")
            continue
        for name in p.labels:
            if name not in held.labels:
                there = ", ".join(held.labels) or "none"
                text = f"labels: data {key} has no label {name!r}; it has {there}"
                yield c.error(text, "classify", "labels")
        if not held.labels:
            yield _no_labels(c, key, held)
        elif held.is_split:
            yield from _label_counts(c, key, held)


def _retrieval(c: Asked, held: Holding) -> bool:
    """Return whether some test image has a report, so that retrieval can be evaluated."""
    parts = c.parts(held, "classify")
    return bool(held.reported[parts[TEST if TEST in parts else ALL].index].any())


def _no_labels(c: Asked, key: str, held: Holding) -> Problem:
    rest = "; nothing is left to evaluate"
    if _retrieval(c, held):
        rest = "; with an encoder that reads text, retrieval is"
    return c.warning(
        f"card {held.p.card} has no labels: no finding, line or tube is evaluated{rest}. "
        "Name `labels` in the card to have them",
        *("data", key, "card"),
    )


def _label_counts(c: Asked, key: str, held: Holding) -> Iterator[Problem]:
    p = c.stages["classify"]
    names = [name for name in p.labels or held.labels if name in held.labels]
    counts = {n: count_labels(rows, names) for n, rows in c.parts(held, "classify").items()}
    few = []
    for name in names:
        own = {part: found[name] for part, found in counts.items()}
        text = "; ".join(
            f"{part} {n.images[0]:,} with, {n.images[1]:,} without" for part, n in own.items()
        )
        yield Problem("note", "", f"  {name}: {text}")
        if too_few(own):
            few.append(f"{name} ({text}{_one_sided(held, name)})")
    if not few:
        return
    needed = f"{LEAST} test images with and {LEAST} without, of {LEAST_PATIENTS} patients each"
    text = f"too few to evaluate, needed are {needed}, and both in training: {', '.join(few)}"
    text += "; no label is left" if len(few) == len(names) else ""
    all_rows = count_labels(held.within(p.within), names)  # without both classes, runs would fail
    fails = all(min(found.images) == 0 for found in all_rows.values()) and not _retrieval(c, held)
    where = ("classify", "labels") if p.labels else ("data", key, "card")
    yield c.error(text, *where) if fails else c.warning(text, *where)


def too_few(own: dict[str, Counts]) -> bool:
    """Return whether a label cannot be evaluated, by its counts in each part."""
    test, train = own.get(TEST) or own[ALL], own.get(TRAIN) or own[ALL]
    return min(test.images) < LEAST or min(test.patients) < LEAST_PATIENTS or min(train.images) < 1


def _one_sided(held: Holding, name: str) -> str:
    """Return the remedy for a label with positives only, or with negatives only."""
    card = cards.read_card(held.p.card).labels
    with_it, without = count_labels(held.within(""), [name])[name].images
    if card is None or bool(with_it) == bool(without):
        return ""
    if not with_it:
        at = cards.place(held.p.card, "labels")
        return f"; nothing says that it is present: see `values` and `names`, {at}"
    if card.missing == "absent":
        return "; every image has it, so there is no negative"
    empty = {
        "list": "a name that is not listed",
        "reports": "a label that a report does not mention",
    }.get(card.encoding, "an empty cell")
    at = cards.place(held.p.card, "labels", "missing")
    return f"; if {empty} means absent, write `missing: absent`, {at}"


def unused(c: Asked) -> Iterator[Problem]:
    """Warn of reports and labels that a card has got since `cxrstudy new` wrote the preset."""
    if not c.preset.text.startswith(WRITTEN) or c.preset.settings:
        return
    for key, held in c.evaluated():
        missing = [
            what
            for what, unused in (("reports", _unused_reports), ("labels", _unused_labels))
            if held.is_split and unused(c, held)
        ]
        if missing:
            again = f"cxrstudy new --card {held.p.card} --name {c.preset.name} --force"
            yield c.warning(
                f"card {held.p.card} has {' and '.join(missing)} that this preset does not use: "
                f"write it again with {again}, or delete its first line",
                *("data", key, "card"),
            )


def _paradigms(c: Asked) -> set[str]:
    return {p.paradigm for _, p in c.points}


def _unused_reports(c: Asked, held: Holding) -> bool:
    if _paradigms(c) & {"clip", "clip+labels"} or c.preset.report is not None:
        return False
    pools = c.pools(["pretrain"], folded=bool(c.folds))
    return min(held.count(pool, "clip") for pool in pools) >= LEAST


def _unused_labels(c: Asked, held: Holding) -> bool:
    kinds = {name.partition(":")[0] for name in c.preset.baselines}
    used = _paradigms(c) & {"unicl", "clip+labels"} or kinds & {"shuffled", "supervised"}
    if used or c.preset.classify.get("labels") or "classify" not in c.stages:
        return False
    parts = c.parts(held, "classify").items()
    counts = {part: count_labels(rows, held.labels) for part, rows in parts}
    return any(not too_few({part: n[name] for part, n in counts.items()}) for name in held.labels)
