"""Scores of generated reports against the true ones, each with its patient bootstrap.

Clinical F1 by labels ("CheXbert-style", Smit et al. 2020; `data.reports` in that labeller's place): a name is positive
in a report that says it is there. One that a report only doubts counts as positive too (``uncertain="present"``: a
reader would act on it) or not (``"absent"``). Micro F1 pools all names and reports; macro F1 is the mean over the names
that some true report bears; ``f1_side`` is micro F1 over (name, side) pairs of the mentions that state a side, where
bilateral counts as right and as left. ROUGE-L (Lin 2004) is rouge-score's F measure, the mean over reports; BLEU-4
(Papineni et al. 2002) is sacrebleu's corpus value over 100.

How the bootstrap is made fast: every score is a function of sums over reports (hits, n-grams in common, lengths), so a
report's share of each sum is counted once, and all resamples are one product of patient counts with these shares.
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
TASKS: dict[
    str, list[int]
] = {  # columns of NAMES; tracheostomy tubes and the like are lines and tubes too
    "findings": [k for k, name in enumerate(NAMES) if name in FINDINGS],
    "lines_tubes": [k for k, name in enumerate(NAMES) if name not in FINDINGS],
    "all": list(range(len(NAMES))),
}
_KINDS = 2 * 3 * len(NAMES)  # names and sided names, each with its hits, inventions and misses
_BLEU = BLEU(
    effective_order=True
)  # of one report; its counts are the same with and without effective order
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
    """All scores with 95% patient-bootstrap intervals: dicts of task, label, metric, value, low, high, n, positives,
    n_patients.

    ``generated`` and ``truth`` are N texts each, ``groups`` (N,) names each report's patient. Labels: "findings",
    "lines_tubes" and "all" have f1_micro, f1_macro and f1_side; "all" has rouge_l and bleu_4 too; each name that some
    report bears has its f1. ``positives`` counts names (or pairs) in the true reports: None where nothing is counted.
    A score is NaN where neither side says anything that it counts; an empty generated report is no error.
    Resamples are those of `metrics.bootstrap` for the same groups and seed.
    An interval without width (every resample alike) becomes an exact one, and a name that too few true reports bear has
    a ``note`` that says so (`small_samples`).
    ValueError: lengths that differ, a true report that is empty (row named), ``resamples`` < 1.
    """
    shares = _shares(generated, truth, uncertain)
    total, drawn = _sums(shares, groups, resamples, seed)
    truly = _table(total)[0, 0, [0, 2]].sum(axis=0) > 0
    values, samples = _scores(total, truly), _scores(drawn, truly)
    said = _table(total)[0, :, [0, 2]].sum(axis=0)  # (kind, name): in the true reports
    bears = _table(shares)[:, :, [0, 2]].sum(axis=2) > 0  # (N, kind, name): in each true report
    records, who, patients = [], np.asarray(groups), len(np.unique(groups))
    for (label, metric), value in values.items():
        columns = TASKS.get(label, [NAMES.index(label)] if label in NAMES else [])
        kind, counted = int(metric == "f1_side"), metric.startswith("f1")
        independent = (
            len(np.unique(who[bears[:, kind, columns].any(axis=1)])) if counted else patients
        )
        low, high, _ = with_width(*interval(samples[label, metric]), value[0], max(independent, 1))
        ends = {"value": float(value[0]), "low": float(low), "high": float(high)}
        row: dict[str, Any] = (
            {"task": "reports", "label": label, "metric": metric} | ends | {"n": len(shares)}
        )
        positives = int(said[kind, columns].sum())
        row |= {"positives": positives if counted else None, "n_patients": patients}
        records.append(mark_rare(row, positives, "true reports name it") if metric == "f1" else row)
    return records


def per_report(
    generated: Sequence[str], truth: Sequence[str], *, uncertain: Uncertain = "present"
) -> pd.DataFrame:
    """Scores of each report alone: f1 (NaN where neither text bears a name), rouge_l, bleu_4 (sacrebleu's sentence
    value over 100), and the lists of names that are agreed, missed and invented."""
    shares = _shares(generated, truth, uncertain)
    rows = pd.DataFrame(
        {
            "f1": _f1(_table(shares)[:, 0].sum(axis=2)),
            "rouge_l": shares[:, -2],
            "bleu_4": [
                _BLEU.sentence_score(g, [t]).score / 100
                for g, t in zip(generated, truth, strict=True)
            ],
        }
    )
    told = [differences(g, t, uncertain=uncertain) for g, t in zip(generated, truth, strict=True)]
    return rows.assign(
        **{kind: [one[kind] for one in told] for kind in ("agreed", "missed", "invented")}
    )


def differences(
    generated: str, truth: str, *, uncertain: Uncertain = "present"
) -> dict[str, list[str]]:
    """Names that both reports bear (agreed), the true one alone (missed), the generated one alone (invented)."""
    mine, true = _said(generated, uncertain)[0], _said(truth, uncertain)[0]
    parts = {"agreed": mine & true, "missed": true - mine, "invented": mine - true}
    return {kind: [NAMES[k] for k, _ in sorted(part)] for kind, part in parts.items()}


@functools.lru_cache(maxsize=2**14)
def _said(
    text: str, uncertain: Uncertain
) -> tuple[frozenset[tuple[int, str]], frozenset[tuple[int, str]]]:
    """(place in NAMES, "") of what a text bears, and (place, side) of what it states a side of."""
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
    """(N, columns) what each report adds to the sums: `_KINDS` hits, BLEU's 10 counts, ROUGE-L, and one for itself."""
    if len(generated) != len(truth) or not len(truth):
        raise ValueError(
            f"{len(generated)} generated reports for {len(truth)} true ones: as many, and one at least"
        )
    empty = [row for row, text in enumerate(truth) if not text.strip()]
    if empty:
        raise ValueError(
            f"the true report of row {empty[0]} is empty ({len(empty)} such rows): leave such rows out"
        )
    hits = np.zeros(
        (len(truth), 2, 3, len(NAMES))
    )  # kind: names, pairs; both, generated alone, truth alone
    rest = np.ones((len(truth), 12))
    for row, (mine, true) in enumerate(zip(generated, truth, strict=True)):
        for kind, (said, meant) in enumerate(
            zip(_said(mine, uncertain), _said(true, uncertain), strict=True)
        ):
            for k, part in enumerate((said & meant, said - meant, meant - said)):
                np.add.at(hits[row, kind, k], [name for name, _ in part], 1)
        bleu = _BLEU.sentence_score(mine, [true])
        rest[row, :10] = [bleu.sys_len, bleu.ref_len, *bleu.counts, *bleu.totals]
        rest[row, 10] = _ROUGE.score(true, mine)["rougeL"].fmeasure
    return np.concatenate([hits.reshape(len(truth), _KINDS), rest], axis=1)


def _sums(shares: Floats, groups: ArrayLike, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Return the sums of (N,columns) over all reports, (1,columns), and over resamples, (B,columns)."""
    total = sums_by_group(shares, groups).sum(axis=0, keepdims=True)
    return total, resampled_sums(shares, groups=groups, resamples=resamples, seed=seed)


def _table(sums: Floats) -> Floats:
    """(B, columns) -> (B, kind, both / generated alone / truth alone, name)."""
    return sums[:, :_KINDS].reshape(len(sums), 2, 3, len(NAMES))


def _scores(sums: Floats, truly: NDArray[np.bool_]) -> dict[tuple[str, str], Floats]:
    """{(label, metric): (B,)} from the sums (B, columns) over B sets of reports; ``truly``: the names of macro F1."""
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
    """F1 from (both, generated alone, truth alone) in axis 1: (B, 3, ...) -> (B, ...); NaN where all are 0."""
    both, invented, missed = np.moveaxis(hits, 1, 0)
    return _ratio(2 * both, 2 * both + invented + missed)


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


def corpus_bleu(counts: Floats) -> Floats:
    """BLEU-4 in [0, 1] of (..., 10) sums: words generated, words true, then n-grams in common and generated, n = 1..4.

    As sacrebleu's ``compute_bleu`` with smoothing "exp": an order without a hit counts 1/2, 1/4, ... of one n-gram.
    """
    words, true, common, made = counts[..., 0], counts[..., 1], counts[..., 2:6], counts[..., 6:10]
    halved = 0.5 ** np.cumsum((common == 0) & (made > 0), axis=-1)
    precision = np.where(common > 0, common, halved) / np.maximum(made, 1)
    short = np.minimum(0.0, 1 - true / np.maximum(words, 1))
    usable = (common > 0).any(axis=-1) & (made > 0).all(axis=-1)
    return np.where(usable, np.exp(short + np.log(precision).mean(axis=-1)), 0.0)


# ---- what is scored, and against what -----------------------------------------------------------------------------
def texts(manifest: pd.DataFrame, part: str = "joined") -> list[str]:
    """The reports of a manifest as they are to be written, one a row; "" where there is none, or not that ``part``.

    ``part``: "findings" or "impression" (that section's text), or "joined" (both under their headers). Indication,
    comparison and the like are left out: no image tells them. A report that is not in English is set aside as if there
    were none, with a warning: its names cannot be scored. ValueError when the manifest has no column ``report``.
    """
    if "report" not in manifest:
        raise ValueError(
            "the manifest has no column 'report': reports cannot be written without reports to learn from. In a data "
            "card `report` names their column; without reports leave `report` out of the preset"
        )
    out = []
    for text in keep_english(manifest["report"].fillna("")):
        found = {name: " ".join(said.split()) for name, said in sections(text).items()}
        if part == "joined":
            both = [
                f"{name.upper()}: {found[name]}"
                for name in ("findings", "impression")
                if found.get(name)
            ]
            out.append(" ".join(both))
        else:
            out.append(found.get(part, ""))
    return out


def other_patients(patients: np.ndarray, seed: int) -> np.ndarray:
    """A permutation (N,) by lot that gives every row the image of another patient.

    Rows stand by patient, patients by lot; each takes the row as far on as the largest patient has rows. ValueError
    when one patient has more than half of the rows: then there is no such permutation.
    """
    names, unit, sizes = np.unique(patients, return_inverse=True, return_counts=True)
    if 2 * sizes.max() > len(patients):
        raise ValueError(
            f"the control needs another patient's image for each of {len(patients)} test images, but patient "
            f"{names[sizes.argmax()]!r} has {sizes.max()} of them: test on more patients (n_test, test)"
        )
    rng = np.random.default_rng(seed)
    place = rng.permutation(len(names))[unit]
    order = np.lexsort((rng.permutation(len(patients)), place))
    other = np.empty(len(order), dtype=np.int64)
    other[order] = np.roll(order, -sizes.max())
    return other
