"""Write a preset for your own x-rays, with sizes from card and table, and every line explained."""

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from cxrstudy import study
from cxrstudy.data import cards
from cxrstudy.files import is_remote
from cxrstudy.preflight.holdings import Holding, Tables, count_labels, hold
from cxrstudy.preflight.labels import LEAST, too_few
from cxrstudy.presets import preset_path

SIZE = 64  # px of the small base models in the repository
FEW = 1500  # images: below, cross-fitting, so that every patient is in the test set once
FRACTIONS = {"pretrain": 0.6, "train": 0.2, "validation": 0.05, "test": 0.15}
LEAST_IMAGES = 20
STEPS = 250  # of training, as in `mini`; after 44 steps `unicl` had learned nothing of 530 x-rays
SPARE = 0.95  # of the images that there are: a few may be files that cannot be read
BASES = {"clip": "clip-hybrid", "unicl": "clip-hybrid", "dinov2": "dino-hybrid"}
RATES = {"clip": 130.0, "unicl": 130.0, "dinov2": 75.0}  # images/s of one core, measured at 64 px
START, EVALUATION = 12.0, 15.0  # seconds of a run before it trains, and of an evaluation
PARTS = ("train", "validation", "test")
Line = tuple[str, str]  # a line of YAML, and what it means


@dataclass(frozen=True)
class Sized:
    """A card's data set, and the study that is possible with it."""

    card: cards.Card
    held: Holding
    folds: int

    @cached_property
    def paradigms(self) -> list[str]:
        """Paradigms with enough images; dinov2 needs no reports or labels."""
        own = {"clip": self.held.reported.any(), "unicl": bool(self.labels), "dinov2": True}
        return [
            name for name, there in own.items() if there and self.pool(name) >= LEAST_IMAGES // 2
        ]

    @cached_property
    def labels(self) -> list[str]:
        """Labels with enough positives and negatives to be evaluated."""
        table, names = self.held.within(""), self.held.labels
        parts = {part: table[table["split"] == part] for part in PARTS}
        parts = {"all folds": table} if self.folds else parts
        counts = {part: count_labels(rows, names) for part, rows in parts.items()}
        return [n for n in names if not too_few({part: c[n] for part, c in counts.items()})]

    def pool(self, paradigm: str) -> int:
        """Return how many images a paradigm can be trained on."""
        folds = [f"fold{k}" for k in range(self.folds)]
        choices = [[fold for fold in folds if fold != left] for left in folds] or [["pretrain"]]
        return min(self.held.count(splits, paradigm) for splits in choices)

    def sizes(self, paradigm: str) -> list[int]:
        """Return three nested sizes up to all images; fewer if three are too close."""
        most = _rounded(SPARE * self.pool(paradigm))
        least = max(most / 16, min(32.0, most / 4))
        return sorted({_rounded(least), _rounded((least * most) ** 0.5), most})

    def batch(self, paradigm: str) -> int:
        """Return the largest power of two up to the smallest size and 64 (dinov2: 32)."""
        most = min(self.sizes(paradigm)[0], 32 if paradigm == "dinov2" else 64)
        return int(2 ** (most.bit_length() - 1))

    def seen(self, paradigm: str) -> int:
        """Return the images shown at every size: the largest subset twice, or STEPS batches."""
        batch = self.batch(paradigm)
        return max(-(-2 * self.sizes(paradigm)[-1] // batch), STEPS) * batch

    @property
    def segments(self) -> bool:
        """Whether lines and tubes can be segmented: masks in each of the fixed splits."""
        return self._in_each_split(self.held.masked)

    @property
    def writes(self) -> bool:
        """Whether reports can be written: reports in each of the fixed splits."""
        return self._in_each_split(self.held.reported)

    def _in_each_split(self, there: np.ndarray) -> bool:
        split = self.held.within("")["split"]
        return not self.folds and all(there[split == name].any() for name in FRACTIONS)

    def minutes(self) -> float:
        """Return a rough estimate for this machine, from rates measured on another."""
        runs = max(1, self.folds)
        seconds = sum(
            runs * len(self.sizes(name)) * (START + self.seen(name) / RATES[name])
            + EVALUATION * len(self.sizes(name))
            for name in self.paradigms
        )
        seconds += (
            self.held.n / 30
            + 8 * (EVALUATION + self.held.n / 200)
            + 300 * (self.segments + 2 * self.writes)
        )
        return seconds / 60 / max(1, min(os.cpu_count() or 1, 8))


def _rounded(number: float) -> int:
    """Return a number rounded down to two digits."""
    step = 10 ** max(0, len(str(int(number))) - 2)
    return int(number) // step * step


def size_up(card: str, data_root: str) -> Sized:
    """Return the study that fits a card's data set; StudyError if it is wrong or too small."""
    described = cards.read_card(card)
    if described.kind == "synthetic" and described.table is None:
        raise study.StudyError(
            "card synthetic generates its images: use the preset mini, or name a card of your own"
        )
    is_here = data_root and not is_remote(data_root)
    root = str(Path(data_root).expanduser().resolve()) if is_here else data_root
    tables: Tables = {}
    held = hold(
        study.Data(card=card, root=root, n_images=0, size=SIZE, fractions=FRACTIONS), tables
    )
    if held.fault:
        raise study.StudyError(f"{held.where}: {held.fault}" if held.where else held.fault)
    for folds in (*((5, 4, 3) if held.n < FEW else ()), 0):
        shares = {f"fold{k}": round(1 / folds, 3) for k in range(folds)} if folds else FRACTIONS
        if folds == 3:
            shares["fold2"] = 0.334
        split = hold(held.p.model_copy(update={"fractions": shares}), tables)
        if split.fault and folds:  # an official split is no fold
            continue
        if split.fault:
            raise study.StudyError(split.fault)
        sized = Sized(described, split, folds)
        reports_only = folds and not sized.labels and held.reported.any()  # need fixed splits
        each_part = all(split.count([part]) for part in shares)
        if held.n >= LEAST_IMAGES and each_part and not reports_only:
            return sized
    patients = held.within("")["patient_id"].nunique()
    raise study.StudyError(
        f"card {described.name}: {held.n} images of {patients} patients are too few to train on "
        f"and to test on others; the least is {LEAST_IMAGES} images of a dozen patients"
    )


# ---- the file ---------------------------------------------------------------------------------
def _curve(s: Sized, paradigm: str) -> list[Line]:
    learns_from = {"clip": "reports", "unicl": "reports and labels", "dinov2": "images alone"}
    if not s.held.reported.any():
        learns_from["unicl"] = "prompts of the labels; there are no reports"
    sizes, most = s.sizes(paradigm), s.pool(paradigm)
    times, rate = s.seen(paradigm) / sizes[-1], 0.0005 if s.batch(paradigm) >= 32 else 0.0002
    noisy = "; 0.1 with more images, whose score is less noisy" if s.folds else ""
    where = "the folds for training have" if s.folds else "the split pretrain has"
    notes = [f"the smallest subset of the {len(sizes)}, part of the next"]
    notes += ["part of the next"] * (len(sizes) - 1)
    notes[len(sizes) - 1] = f"the largest: {where} {most:,} images that {paradigm} can use"
    return [
        ("  - data: own", f"one encoder for each of the n_images below, by {paradigm}"),
        (f"    base: {BASES[paradigm]}", "the encoder that is continued (see base above)"),
        (f"    paradigm: {paradigm}", f"it learns from {learns_from[paradigm]}"),
        ("    n_images:", "nested subsets of your images, patients whole"),
        *((f"      - {n}", note) for n, note in zip(sizes, notes, strict=False)),
        (
            f"    samples_seen: {s.seen(paradigm)}",
            f"images shown, the same at every n_images; the largest subset {times:.1f} times",
        ),
        (
            f"    batch_size: {s.batch(paradigm)}",
            "images in a step; no more than the smallest n_images",
        ),
        (f"    lr: {rate}", "peak learning rate; lower it if a run stops as collapsing"),
        ("    warmup: 0.2", "share of the steps in which the rate rises"),
        (
            f"    max_score_drop: {0.3 if s.folds else 0.1}",
            f"a run stops when its held-out score falls by more{noisy}",
        ),
        ("    wise_ft_alpha: 0.5", "kept weights are half trained, half base: less is forgotten"),
        ("    seed: 0", "a list, as [0, 1, 2], repeats the curve and shows random variation"),
    ]


def _classify(s: Sized) -> list[Line]:
    out: list[Line] = [("classify:", "the probe: a linear classifier on each frozen encoder")]
    if s.labels:
        left = [name for name in s.held.labels if name not in s.labels]
        too = f"; too few to evaluate: {', '.join(left)}" if left else ""
        needed = f"those with enough positives and negatives ({LEAST} of each to test){too}"
        out.append(("  labels:", needed))
        out += [(f"    - {_text(name)}", "a label of your card") for name in s.labels]
        seen = -(-max(1408, min(16000, 8 * s.held.n)) // 64) * 64
        out.append((f"  supervised_samples: {seen}", "images shown to the supervised baseline"))
    return [*out, ("  resamples: 1000", "bootstrap resamples of test patients, for 95% intervals")]


def _downstream(s: Sized) -> list[Line]:
    sizes = ("  sizes: largest", "the largest subset of each curve; bases and baselines always")
    in_train = (s.held.within("")["split"] == "train").to_numpy()
    out: list[Line] = []
    if s.segments:
        train = int(s.held.masked[in_train].sum())
        out += [
            ("segment:", "segmentation of lines and tubes, with the masks of your card"),
            sizes,
            (f"  n_train: {min(1000, train)}", f"training images at most, of {train:,} with masks"),
            ("  n_test: 300", "validation images at most, and test images"),
            ("  steps: 250", "training steps of the small mask decoder"),
        ]
    if s.writes:
        train = int(s.held.reported[in_train].sum())
        out += [
            ("report:", "reports written by a small language model from the frozen encoder"),
            sizes,
            (
                f"  n_train: {min(1500, train)}",
                f"training images at most, of {train:,} with a report",
            ),
            ("  n_test: 250", "test images at most"),
            ("  steps: 500", "training steps of the language model"),
        ]
    return out


def lines(s: Sized) -> list[Line]:
    """Return the preset, line by line."""
    return [
        *_about(s),
        *_data(s),
        *_bases(s),
        *_curves(s),
        *_baselines(s),
        *_classify(s),
        *_downstream(s),
    ]


def _about(s: Sized) -> list[Line]:
    n, patients = s.held.n, s.held.within("")["patient_id"].nunique()
    has = [
        what for what, there in (("reports", s.held.reported.any()), ("labels", s.labels)) if there
    ]
    kind = "real x-rays" if s.card.kind == "real" else "synthetic x-rays"
    content = " and ".join(has) or "neither reports nor labels"
    described = f"{n:,} {kind} of {patients:,} patients, with {content}."
    gb = n * SIZE**2 / 1e9 + 0.01 * (3 * len(s.paradigms) * max(1, s.folds) + 8) + 0.05
    out = [
        (f"title: {_text(s.card.title)}", "the heading of its page in the book"),
        (f"description: {_text(described)}", "the text below the heading"),
        (f"minutes: {max(1, round(s.minutes()))}", "an estimate for this machine; never updated"),
        (f"hardware: {_text(f'{os.cpu_count()} CPU cores (estimated)')}", "of the estimate"),
        (f"disk_gb: {max(0.1, round(gb, 1)):g}", "an estimate: images, encoders, notebooks"),
        ("memory_gb: 4", "an estimate"),
        ("needs_root: true", "each call names the folder of your files: --data-root PATH"),
        (f"licences: {_text(s.card.licence)}", "from the card"),
    ]
    if s.folds:
        why = f"cross-fitting, as {n:,} images are few: each fold of the patients is tested once"
        out.append((f"folds: {s.folds}", f"{why}; `segment` and `report` need fixed splits"))
    return out


def _data(s: Sized) -> list[Line]:
    notes = {
        "pretrain": "share of patients that encoders are trained on",
        "train": "share of patients that probes are fitted on",
        "validation": "share that chooses the probe's penalty",
        "test": "share that is evaluated, and used for nothing else",
    }
    return [
        ("data:", "data sets; each is prepared once"),
        ("  own:", "a name of your choice, which curves refer to"),
        (f"    card: {_text(s.held.p.card)}", "data_cards/NAME.md, or the path of a card"),
        ("    n_images: 0", f"0 takes all: {s.held.n:,}"),
        (f"    size: {SIZE}", "height and width in px: what the base models below take"),
        ("    fractions:", "shares of patients; they sum to 1"),
        *(
            (f"      {split}: {share:g}", notes.get(split, "one fold"))
            for split, share in s.held.p.fractions.items()
        ),
    ]


def _bases(s: Sized) -> list[Line]:
    out = [("base:", "base models; these small ones were trained on synthetic x-rays only")]
    for base in dict.fromkeys(BASES[paradigm] for paradigm in s.paradigms):
        by = "dinov2, from images alone" if base.startswith("dino") else "clip, from reports"
        folder = f"    checkpoint: book/recorded/bases/{base}"
        published = "its folder; published weights by name (rad-dino)"
        out += [(f"  {base}:", f"pretrained by {by}"), (folder, published)]
    return out


def _curves(s: Sized) -> list[Line]:
    needs = {"clip": "no reports", "unicl": "no label has enough positives and negatives"}
    absent = [
        f"; {what} is left out: {why}" for what, why in needs.items() if what not in s.paradigms
    ]
    out = [("curves:", f"scaling curves{''.join(absent)}")]
    return out + [line for paradigm in s.paradigms for line in _curve(s, paradigm)]


def _baselines(s: Sized) -> list[Line]:
    out = [
        ("baselines:", "what has learned nothing from your images"),
        ("  - pixels", "32 x 32 px"),
    ]
    if any(column in s.held.within("") for column in ("view", "age", "sex")):
        out.append(("  - covariates", "view, age and sex, without the image"))
    out.append(("  - random:hybrid_mini", "the same architecture with random weights"))
    if s.labels:
        out += [
            ("  - shuffled", "negative control: the base with permuted labels; expect 0.5"),
            ("  - supervised:hybrid_mini", "trained end to end on your labels"),
        ]
    return out


def _text(value: str) -> str:
    """Return a string as YAML."""
    plain = re.fullmatch(r"[A-Za-z][\w/-]*", value) and yaml.safe_load(value) == value
    return value if plain else json.dumps(" ".join(value.split()), ensure_ascii=False)


def draft(
    card: str, data_root: str = "", name: str = "", *, force: bool = False
) -> tuple[str, Sized, Path]:
    """Return the text of a preset, what it is sized to, and the file where it belongs.

    Raises:
        StudyError: the card or its data are wrong, the name is not allowed, or the file exists
            and ``force`` is not given.
    """
    name = name or Path(card).stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise study.StudyError(f"--name {name!r}: use letters, digits, '-', '_' and '.' only")
    path = preset_path(name)
    if path.exists() and not force:
        raise study.StudyError(
            f"{path} is there already: give --name NAME for another, or --force to replace it"
        )
    card = str(Path(card).expanduser().resolve()) if card.endswith(".md") else card
    try:
        sized = size_up(card, data_root)
    except (cards.CardError, OSError) as error:
        raise study.StudyError(str(error)) from None
    folds = [f"fold{k}" for k in range(sized.folds)]
    also = f' -y "folds: [{", ".join(folds)}]"' if folds else ""
    probe = "papermill notebooks/classify.ipynb out.ipynb "
    probe += f"-p data runs/{name}/data/own-* -p encoder FILE{also}"
    head = f"""\
# Written by `cxrstudy new --card {card}` for {sized.held.n:,} images. Change it, then look:
#   cxrstudy run --preset {name} -n --data-root PATH
# To evaluate only embeddings of another encoder (a table), prepare the data, then probe:
#   cxrstudy run --preset {name} --only data --data-root PATH
#   {probe}
"""
    text = head + "".join(f"{line}  # {note}\n" for line, note in lines(sized))
    return text, sized, path
