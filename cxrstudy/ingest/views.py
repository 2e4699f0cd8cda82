"""Guess the view of each x-ray from its header, and by a classifier where no header says it."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy import study
from cxrstudy.data.columns import parse_view
from cxrstudy.data.lexicon import read_lexicon
from cxrstudy.data.vocabulary import VIEWS
from cxrstudy.progress import Progress

OTHER = "OTHER"  # oblique, decubitus, lordotic, ribs: known, and none of ours
OF_IMAGE = (  # tags on one image, the best first
    *("ViewPosition", "ViewCodeMeaning", "SeriesDescription", "ProtocolName"),
    "AcquisitionDeviceProcessingDescription",
)
OF_STUDY = (  # they may mean another image of the study
    *("PerformedProcedureStepDescription", "RequestedProcedureDescription"),
    *("ProcedureCodeMeaning", "StudyDescription"),
)
BASE = "book/recorded/bases/clip-hybrid"
SIZE = 64  # px, what that base model takes
LEAST = 24  # images of a view, to learn it from this export
MOST = 1000  # images of a view that are looked at
WANTED = 0.95  # accuracy of what the classifier decides; the rest stays unknown
PENALTIES = (0.001, 0.01, 0.1, 1.0)
FOLDS = 5


def _flat(text: str) -> str:
    """Return a text in lower case without accents."""
    text = unicodedata.normalize("NFKD", text.casefold())
    return "".join(sign for sign in text if not unicodedata.combining(sign))


def _patterns(group: str, border: str) -> dict[str, re.Pattern[str]]:
    words = {name: _flat(text).replace(" |", "|") for name, text in _LEXICON[group].items()}
    return {name: re.compile(f"{border}(?:{text}){border}") for name, text in words.items()}


_LEXICON = read_lexicon("views")
_WORDS, _SCRIPT, _HOW = _patterns("image", r"\b"), _patterns("script", ""), _patterns("how", r"\b")
_BED = re.compile(f"{_HOW['bedside'].pattern}|{_flat(_LEXICON['how']['script'])}")
_SEVERAL = re.compile(_HOW["several"].pattern + "|正侧位|正側位")


# ---- headers -------------------------------------------------------------------------------------
def view_of_text(text: str) -> str:
    """Return PA, AP, LATERAL, OTHER, or "" where a header's text says none or several."""
    if known := parse_view(text):
        return known
    flat = _spaced(text)
    found = {name for name, words in _WORDS.items() if words.search(flat)}
    found |= {name for name, signs in _SCRIPT.items() if signs.search(flat)}
    if OTHER in found:
        return OTHER
    if {"FRONTAL", "LATERAL"} <= found or _SEVERAL.search(flat):
        return ""
    found -= {"FRONTAL"}
    return next(iter(found)) if len(found) == 1 else ""


def is_bedside(text: str) -> bool:
    """Return whether a header's text says that the patient lay in bed, and no view."""
    return bool(_BED.search(_spaced(text))) and not view_of_text(text)


def _spaced(text: str) -> str:
    """Return a text flat, with single blanks for signs; ``p.a.`` and ``P -> A`` become ``pa``."""
    flat = " ".join(re.sub(r"[\W_]+", " ", _flat(text)).split())
    flat = re.sub(r"\b([ap]) ([ap])\b", r"\1\2", flat)
    return re.sub(r"\bdecubito (supino|dorsal|prono)", "supino", flat)  # not on a side


def guess_views(frame: pd.DataFrame, column: str = "") -> tuple[pd.Series, pd.Series, pd.Series]:
    """Return the view of each image, the tag that says it, and what contradicts it.

    Tags on one image come first, the best first. Tags on a study count where it has one image.
    The direction of rows tells lateral views; words of a bedside image mean AP, where nothing
    else is said.

    Args:
        frame: a row an image, tags as columns, ``StudyInstanceUID`` among them.
        column: of a hospital's table that holds views, if any; it comes after the view code.

    Returns:
        (view, view_from, contradiction): PA, AP, LATERAL, OTHER or ""; a column's name, "bedside"
        or ""; "ViewPosition PA, SeriesDescription AP", the first one, or "".
    """
    known: dict[str, pd.Series] = {}
    for name in (*OF_IMAGE[:2], column, *OF_IMAGE[2:], *OF_STUDY):
        if name and name in frame:
            known[name] = _map(frame[name], view_of_text)
    alone = ~frame["StudyInstanceUID"].duplicated(keep=False) if "StudyInstanceUID" in frame else 0
    for name in OF_STUDY:
        if name in known:
            known[name] = known[name].where(np.asarray(alone, bool), "")
    if "PatientOrientation" in frame:  # rows of a lateral view run from front to back
        known["PatientOrientation"] = _map(
            frame["PatientOrientation"], lambda text: "LATERAL" if text[:1] in ("A", "P") else ""
        )
    texts = [name for name in (*OF_IMAGE[2:], *OF_STUDY) if name in frame]
    bedside = np.zeros(len(frame), bool)
    for name in texts:
        bedside |= (
            _map(frame[name], lambda text: "AP" if is_bedside(text) else "").ne("").to_numpy()
        )
    view = pd.Series("", frame.index, dtype=object)
    view_from = view.copy()
    clash = view.copy()
    for name, found in known.items():
        new = found.ne("") & view.eq("")
        other = found.ne("") & view.ne("") & found.ne(view) & clash.eq("")
        clash = clash.mask(other, view_from + " " + view + f", {name} " + found)
        view, view_from = view.mask(new, found), view_from.mask(new, name)
    new = view.eq("") & bedside
    return view.mask(new, "AP"), view_from.mask(new, "bedside"), clash


def _map(column: pd.Series, parse: Any) -> pd.Series:
    """Return what ``parse`` says of each text of a column, asked once a text; "" for missing."""
    text = column.fillna("").astype(str).str.strip()
    return text.map({each: parse(each) if each else "" for each in text.unique()})


# ---- a classifier for what is left ---------------------------------------------------------------
def features(images: np.ndarray, progress: Progress = iter) -> np.ndarray:
    """Return features (N,F) of images (N,64,64) uint8 by the shipped base model."""
    from cxrstudy.data.images import Prepared
    from cxrstudy.encoders import load_encoder
    from cxrstudy.evaluate.features import encode

    prepared = Prepared(pd.DataFrame(), images, {})
    rows = np.arange(len(images))
    encoder = load_encoder(study.root() / BASE)
    return encode(encoder, prepared, rows, pooling="grid4", progress=progress)


def classify_views(
    unknown: np.ndarray, known: np.ndarray, view: Sequence[str], patient: Sequence[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the views (N,) of images without one, "" where unsure, and how well this was measured.

    A logistic probe learns from the export's images with a known view. PA against AP it is right
    in 96% of 1,000 real x-rays (ChestX-ray14), by cross-validation over patients; of 208 web images
    (covid_notes) in 75%, and in 96% of the 26% that it decides.

    It decides nothing where a view that occurs has fewer than ``LEAST`` known images, because it
    would call that another one. A probe that learned from synthetic x-rays is no way out: it was
    right in 59% and 42% of the same real ones, and called a lateral AP.

    The threshold is the lowest probability above which it is right in ``WANTED`` of the known
    images, by cross-validation over patients.

    Args:
        unknown: features (N,F), see ``features``.
        known: features (M,F).
        view: of the known images (M,).
        patient: of the known images (M,).
    """
    truth, groups = np.asarray(view, dtype=object), pd.factorize(pd.Series(list(patient)))[0]
    counts = Counter(truth.tolist())
    classes = [name for name in VIEWS if counts[name]]
    facts: dict[str, Any] = {"n": len(truth), "classes": {c: counts[c] for c in classes}}
    nothing = np.full(len(unknown), "", dtype=object)
    if len(classes) < 2 or min(counts.values()) < LEAST or groups.max() + 1 < 2 * FOLDS:
        return nothing, facts | {"unused": f"fewer than {LEAST} images of a view that occurs"}
    fold, score = groups % FOLDS, np.zeros((len(known), len(classes)))
    for k in range(FOLDS):
        test, validation = fold == k, fold == (k + 1) % FOLDS
        rest = ~test & ~validation
        fit = _fit(known[rest], truth[rest], known[validation], truth[validation], classes)
        score[test] = fit(known[test])
    facts |= _measured(score, truth, classes)
    if not len(unknown):
        return nothing, facts
    rest = fold != 0
    found = _fit(known[rest], truth[rest], known[~rest], truth[~rest], classes)(unknown)
    sure = found.max(1) >= facts["threshold"]
    return np.where(sure, np.array(classes, dtype=object)[found.argmax(1)], ""), facts


def _fit(
    x: np.ndarray, view: np.ndarray, x_val: np.ndarray, view_val: np.ndarray, classes: list[str]
) -> Any:
    """Return a function from features to probabilities (N,C), each view against the others."""
    from cxrstudy.evaluate.classification import fit_probe

    y, y_val = (np.stack([v == c for c in classes], 1).astype(float) for v in (view, view_val))
    probe = fit_probe(x, y, strengths=PENALTIES, x_val=x_val, y_val=y_val)

    def probabilities(rows: np.ndarray) -> np.ndarray:
        odds = probe.decision_function(rows)
        share = np.exp(odds - odds.max(1, keepdims=True))
        return share / share.sum(1, keepdims=True)

    return probabilities


def _measured(score: np.ndarray, truth: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """Return accuracy of all, threshold, accuracy and share of those above it, and who is who."""
    said = np.array(classes, dtype=object)[score.argmax(1)]
    right, top = said == truth, score.max(1)
    order = np.argsort(-top)
    running = np.cumsum(right[order]) / np.arange(1, len(right) + 1)
    good = np.flatnonzero((running >= WANTED) & (np.arange(len(right)) >= 19))
    threshold = float(top[order][good[-1]]) if len(good) else 2.0  # 2: nothing is decided
    sure = top >= threshold
    pairs = pd.crosstab(pd.Series(truth), pd.Series(said))
    each = [right[truth == name].mean() for name in classes]
    return {
        "accuracy": round(float(right.mean()), 4),
        "balanced_accuracy": round(float(np.mean(each)), 4),
        "threshold": round(threshold, 4),
        "decided": round(float(sure.mean()), 4),
        "accuracy_decided": round(float(right[sure].mean()), 4) if sure.any() else None,
        "confusion": {
            str(t): {str(s): int(n) for s, n in row.items()} for t, row in pairs.T.items()
        },
    }
