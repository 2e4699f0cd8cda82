"""Scores of generated reports, compared with the true ones, and their patient bootstrap.

Clinical F1 by labels (as with CheXbert, Smit et al. 2020; here `data.reports` labels the reports):
a name is positive in a report that states it as present. An uncertain mention counts as positive
(``uncertain="present"``: a reader would act on it) or not (``"absent"``). Micro F1 pools all names
and reports. Macro F1 is the mean over the names that are positive in some true report. ``f1_side``
is micro F1 over (name, side) pairs of the mentions with a side, where bilateral counts as right and
left. ROUGE-L (Lin 2004) is rouge-score's F measure, the mean over reports. BLEU-4 (Papineni et al.
2002) is sacrebleu's corpus value divided by 100.

Why the bootstrap is fast: every score is a function of sums over reports (hits, common n-grams,
lengths). So a report's part of each sum is counted once, and all resamples are one product of
patient counts with these parts.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from cxrstudy.data.language import keep_english
from cxrstudy.data.reports import NAMES, extract_labels, extract_mentions, sections
from cxrstudy.data.vocabulary import FINDINGS
from cxrstudy.evaluate.metrics import interval, resampled_sums, sums_by_group
from cxrstudy.evaluate.small_samples import mark_rare, with_width

Floats = NDArray[np.float64]
Uncertain = Literal["present", "absent"]
# columns of NAMES by label; tracheostomy tubes and similar are lines and tubes too
TASKS: dict[str, list[int]] = {
    "findings": [k for k, name in enumerate(NAMES) if name in FINDINGS],
    "lines_tubes": [k for k, name in enumerate(NAMES) if name not in FINDINGS],
    "all": list(range(len(NAMES))),
}
_KINDS = 2 * 3 * len(NAMES)  # names and names with a side: hits, invented and missed ones
_BLEU = BLEU(effective_order=True)  # of one report; it does not change the counts
_ROUGE = RougeScorer(["rougeL"])


def evaluate(
    generated: Sequence[str],
    truth: Sequence[str],
    groups: ArrayLike,
    *,
    uncertain: Uncertain = "present",
    resamples: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return all scores with 95% patient-bootstrap intervals.

    The resamples are those of `metrics.bootstrap` for the same groups and seed. An interval without
    width becomes an exact one (`small_samples`). An empty generated report is not an error.

    Args:
        generated: N texts.
        truth: N texts.
        groups: Patient (N,) of each report.
        uncertain: What an uncertain mention counts as.

    Returns:
        Dicts of task "reports", label, metric, value, low, high, n, positives, n_patients and, if
        any, note. Labels: "findings", "lines_tubes" and "all" have f1_micro, f1_macro and f1_side;
        "all" also has rouge_l and bleu_4; each name that is positive in some true report has its
        f1, with a note if these reports are too few. ``positives`` counts names (or pairs) in the
        true reports, or is None. A score is NaN where neither text has anything that it counts.

    Raises:
        ValueError: Lengths differ, a true report is empty (the message names the row), or
            ``resamples`` < 1.
    """
    shares = _shares(generated, truth, uncertain)
    total, drawn = _sums(shares, groups, resamples, seed)
    truly = _table(total)[0, 0, [0, 2]].sum(axis=0) > 0
    values, samples = _scores(total, truly), _scores(drawn, truly)
    counts = _table(total)[0, :, [0, 2]].sum(axis=0)  # (kind, name): in the true reports
    in_truth = _table(shares)[:, :, [0, 2]].sum(axis=2) > 0  # (N, kind, name)
    records, unit, patients = [], np.asarray(groups), len(np.unique(groups))
    for (label, metric), value in values.items():
        columns = TASKS.get(label, [NAMES.index(label)] if label in NAMES else [])
        kind, counted = int(metric == "f1_side"), metric.startswith("f1")
        independent = patients
        if counted:
            independent = len(np.unique(unit[in_truth[:, kind, columns].any(axis=1)]))
        low, high, _ = with_width(*interval(samples[label, metric]), value[0], max(independent, 1))
        ends = {"value": float(value[0]), "low": float(low), "high": float(high)}
        positives = int(counts[kind, columns].sum())
        row: dict[str, Any] = {"task": "reports", "label": label, "metric": metric} | ends
        row |= {"n": len(shares), "positives": positives if counted else None}
        row["n_patients"] = patients
        records.append(mark_rare(row, positives, "true reports name it") if metric == "f1" else row)
    return records


def per_report(
    generated: Sequence[str], truth: Sequence[str], *, uncertain: Uncertain = "present"
) -> pd.DataFrame:
    """Return the scores of each report alone.

    Columns: f1 (NaN where neither text has a name), rouge_l, bleu_4 (sacrebleu's sentence value
        divided
    by 100), and the lists of names agreed, missed and invented, as `differences`.
    """
    shares, pairs = _shares(generated, truth, uncertain), list(zip(generated, truth, strict=True))
    rows = pd.DataFrame(
        {
            "f1": _f1(_table(shares)[:, 0].sum(axis=2)),
            "rouge_l": shares[:, -2],
            "bleu_4": [_BLEU.sentence_score(g, [t]).score / 100 for g, t in pairs],
        }
    )
    names = [differences(g, t, uncertain=uncertain) for g, t in pairs]
    return rows.assign(
        **{kind: [one[kind] for one in names] for kind in ("agreed", "missed", "invented")}
    )


def differences(
    generated: str, truth: str, *, uncertain: Uncertain = "present"
) -> dict[str, list[str]]:
    """Return the names in both reports (agreed), only in the true (missed) or other (invented)."""
    found, true = _positive(generated, uncertain)[0], _positive(truth, uncertain)[0]
    parts = {"agreed": found & true, "missed": true - found, "invented": found - true}
    return {kind: [NAMES[k] for k, _ in sorted(part)] for kind, part in parts.items()}


@functools.lru_cache(maxsize=2**14)
def _positive(
    text: str, uncertain: Uncertain
) -> tuple[frozenset[tuple[int, str]], frozenset[tuple[int, str]]]:
    """Return the positive names of a text, (index in NAMES, ""), and (index, side) with a side."""
    positive = {"present", "uncertain"} if uncertain == "present" else {"present"}
    names = {
        (NAMES.index(name), "")
        for name, status in extract_labels(text).items()
        if status in positive
    }
    pairs: set[tuple[int, str]] = set()
    for mention in extract_mentions(text):
        if mention.status in positive and mention.side:
            both = ("right", "left") if mention.side == "bilateral" else (mention.side,)
            pairs |= {(NAMES.index(mention.name), side) for side in both}
    return frozenset(names), frozenset(pairs)


def _shares(generated: Sequence[str], truth: Sequence[str], uncertain: Uncertain) -> Floats:
    """Return each report's part of the sums, (N,columns): `_KINDS` hits, BLEU's 10, ROUGE-L, 1."""
    if len(generated) != len(truth) or not len(truth):
        raise ValueError(
            f"{len(generated)} generated reports for {len(truth)} true ones: as many are needed, "
            "and at least one"
        )
    empty = [row for row, text in enumerate(truth) if not text.strip()]
    if empty:
        raise ValueError(
            f"the true report of row {empty[0]} is empty ({len(empty)} such rows): "
            "leave these rows out"
        )
    hits = np.zeros(
        (len(truth), 2, 3, len(NAMES))
    )  # names or pairs; both, generated only, truth only
    rest = np.ones((len(truth), 12))
    for row, (text, true) in enumerate(zip(generated, truth, strict=True)):
        kinds = zip(_positive(text, uncertain), _positive(true, uncertain), strict=True)
        for kind, (found, wanted) in enumerate(kinds):
            for k, part in enumerate((found & wanted, found - wanted, wanted - found)):
                np.add.at(hits[row, kind, k], [name for name, _ in part], 1)
        bleu = _BLEU.sentence_score(text, [true])
        rest[row, :10] = [bleu.sys_len, bleu.ref_len, *bleu.counts, *bleu.totals]
        rest[row, 10] = _ROUGE.score(true, text)["rougeL"].fmeasure
    return np.concatenate([hits.reshape(len(truth), _KINDS), rest], axis=1)


def _sums(shares: Floats, groups: ArrayLike, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Return the sums over all reports (1,columns) and over resamples (B,columns)."""
    total = sums_by_group(shares, groups).sum(axis=0, keepdims=True)
    return total, resampled_sums(shares, groups=groups, resamples=resamples, seed=seed)


def _table(sums: Floats) -> Floats:
    """Return sums (B,columns) as (B, kind, both / generated only / truth only, name)."""
    return sums[:, :_KINDS].reshape(len(sums), 2, 3, len(NAMES))


def _scores(sums: Floats, truly: NDArray[np.bool_]) -> dict[tuple[str, str], Floats]:
    """Return {(label, metric): (B,)} from the sums (B,columns) over B sets of reports.

    ``truly`` marks the names that are positive in some true report.
    """
    table, scores = _table(sums), {}
    single = _f1(table[:, 0])
    for task, columns in TASKS.items():
        scores[task, "f1_micro"] = _f1(table[:, 0, :, columns].sum(axis=0))
        kept = single[:, [k for k in columns if truly[k]]]
        known = ~np.isnan(kept)
        scores[task, "f1_macro"] = _ratio(np.where(known, kept, 0.0).sum(axis=1), known.sum(axis=1))
        scores[task, "f1_side"] = _f1(table[:, 1, :, columns].sum(axis=0))
    scores["all", "rouge_l"] = sums[:, -2] / sums[:, -1]
    scores["all", "bleu_4"] = corpus_bleu(sums[:, _KINDS : _KINDS + 10])
    scores |= {(name, "f1"): single[:, k] for k, name in enumerate(NAMES) if truly[k]}
    return scores


def _f1(hits: Floats) -> Floats:
    """Return F1 (B,...) from both, generated only and truth only (B,3,...); NaN if all are 0."""
    both, invented, missed = np.moveaxis(hits, 1, 0)
    return _ratio(2 * both, 2 * both + invented + missed)


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


def corpus_bleu(counts: Floats) -> Floats:
    """Return BLEU-4 in [0, 1] as sacrebleu's ``compute_bleu`` with smoothing "exp".

    Args:
        counts: Sums (...,10): words generated, words true, then common and generated n-grams, n =
            1..4. An order without a hit counts 1/2, 1/4, ... of one n-gram.
    """
    words, true, common, made = counts[..., 0], counts[..., 1], counts[..., 2:6], counts[..., 6:10]
    halved = 0.5 ** np.cumsum((common == 0) & (made > 0), axis=-1)
    precision = np.where(common > 0, common, halved) / np.maximum(made, 1)
    short = np.minimum(0.0, 1 - true / np.maximum(words, 1))
    usable = (common > 0).any(axis=-1) & (made > 0).all(axis=-1)
    return np.where(usable, np.exp(short + np.log(precision).mean(axis=-1)), 0.0)


# ---- what is scored ------------------------------------------------------------------------------
def texts(manifest: pd.DataFrame, part: str = "joined") -> list[str]:
    """Return the part of each report that is to be generated; "" without a report or that part.

    Indication, comparison and similar sections are left out: they cannot be seen in an image. A
    report that is not in English is left out with a warning, because it cannot be scored.

    Args:
        part: "findings", "impression", or "joined" (both under their headers).

    Raises:
        ValueError: The manifest has no column ``report``.
    """
    if "report" not in manifest:
        raise ValueError(
            "the manifest has no column 'report': generating reports needs reports to train on. In "
            "a data card `report` names their column; without reports leave `report` out of the "
            "preset"
        )
    out = []
    for text in keep_english(manifest["report"].fillna("")):
        found = {name: " ".join(body.split()) for name, body in sections(text).items()}
        if part == "joined":
            names = [name for name in ("findings", "impression") if found.get(name)]
            out.append(" ".join(f"{name.upper()}: {found[name]}" for name in names))
        else:
            out.append(found.get(part, ""))
    return out


def other_patients(patients: np.ndarray, seed: int) -> np.ndarray:
    """Return a random permutation (N,) that gives every row the image of another patient.

    Rows are grouped by patient, patients in random order. Each row takes the one that is as many
    places on as the largest patient has rows.

    Raises:
        ValueError: One patient has more than half of the rows: no such permutation exists.
    """
    names, unit, sizes = np.unique(patients, return_inverse=True, return_counts=True)
    if 2 * sizes.max() > len(patients):
        raise ValueError(
            f"the baseline needs another patient's image for each of {len(patients)} test "
            f"images, but patient {names[sizes.argmax()]!r} has {sizes.max()} of them: test on "
            "more patients (n_test, test)"
        )
    rng = np.random.default_rng(seed)
    place = rng.permutation(len(names))[unit]
    order = np.lexsort((rng.permutation(len(patients)), place))
    other = np.empty(len(order), dtype=np.int64)
    other[order] = np.roll(order, -sizes.max())
    return other
