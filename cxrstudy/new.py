"""Write a preset for own x-rays, sized to what their card and table hold, with every line explained."""

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from cxrstudy import study
from cxrstudy.data import cards
from cxrstudy.preflight.holdings import Holding, Tables, count_labels, hold
from cxrstudy.preflight.steps import LEAST, too_few

SIZE = 64  # px of the small bases that ship
FEW = (
    1500  # images: below, every patient judges once (cross-fitting), or too few would judge at all
)
FRACTIONS = {"pretrain": 0.6, "train": 0.2, "validation": 0.05, "test": 0.15}
LEAST_IMAGES = 20
STEPS = 250  # of training, as in `mini`; after 44 steps of 32 images `unicl` had learned nothing of 530 real x-rays
SPARE = 0.95  # of the images that there are: a few may be files that cannot be read
BASES = {"clip": "clip-hybrid", "unicl": "clip-hybrid", "dinov2": "dino-hybrid"}
RATES = {
    "clip": 130.0,
    "unicl": 130.0,
    "dinov2": 75.0,
}  # images a second on one core, as recorded at 64 px
START, EVALUATION = 12.0, 15.0  # seconds of a run before it trains, and of an evaluation
Line = tuple[str, str]  # a line of YAML, and what it means


@dataclass(frozen=True)
class Sized:
    """What a card's data set allows, and what is made of it."""

    card: cards.Card
    held: Holding
    folds: int

    @cached_property
    def paradigms(self) -> list[str]:
        """What encoders can be trained by: images alone always, reports and labels where there are any."""
        own = {"clip": self.held.reported.any(), "unicl": bool(self.labels), "dinov2": True}
        return [
            name for name, there in own.items() if there and self.pool(name) >= LEAST_IMAGES // 2
        ]

    @cached_property
    def labels(self) -> list[str]:
        """Labels with enough positives and negatives to be evaluated."""
        table, names = self.held.within(""), self.held.labels
        parts = {"all folds": table}
        if not self.folds:
            parts = {
                part: table[table["split"] == part] for part in ("train", "validation", "test")
            }
        counts = {part: count_labels(rows, names) for part, rows in parts.items()}
        return [
            name
            for name in names
            if not too_few({part: found[name] for part, found in counts.items()})
        ]

    def pool(self, paradigm: str) -> int:
        """How many images a paradigm can be trained on."""
        folds = [f"fold{k}" for k in range(self.folds)]
        choices = [[fold for fold in folds if fold != left] for left in folds] or [["pretrain"]]
        return min(self.held.count(splits, paradigm) for splits in choices)

    def sizes(self, paradigm: str) -> list[int]:
        """Three nested sizes up to what there is; fewer where there is too little for three."""
        most = _rounded(SPARE * self.pool(paradigm))
        least = max(most / 16, min(32.0, most / 4))
        return sorted({_rounded(least), _rounded((least * most) ** 0.5), most})

    def batch(self, paradigm: str) -> int:
        """The largest power of two that the smallest size holds, up to 64 (dinov2, which shows crops: 32)."""
        most = min(self.sizes(paradigm)[0], 32 if paradigm == "dinov2" else 64)
        return int(2 ** (most.bit_length() - 1))

    def seen(self, paradigm: str) -> int:
        """Images shown in all, at every size: the largest subset twice, and STEPS at least, or little is learned."""
        batch = self.batch(paradigm)
        return max(-(-2 * self.sizes(paradigm)[-1] // batch), STEPS) * batch

    @property
    def segments(self) -> bool:
        """Whether lines and tubes can be drawn: masks, and splits that are fixed."""
        return not self.folds and all(
            self.held.masked[self.held.within("")["split"] == s].any() for s in FRACTIONS
        )

    @property
    def writes(self) -> bool:
        """Whether reports can be written: reports, and splits that are fixed."""
        return not self.folds and all(
            self.held.reported[self.held.within("")["split"] == s].any() for s in FRACTIONS
        )

    def minutes(self) -> float:
        """A rough estimate for this machine, from rates recorded on another."""
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
    """Two leading digits, rounded down."""
    step = 10 ** max(0, len(str(int(number))) - 2)
    return int(number) // step * step


def size_up(card: str, data_root: str) -> Sized:
    """Read a card's data set and size a study to it; StudyError where it does not load or is too small."""
    described = cards.read_card(card)
    if described.kind == "synthetic" and described.table is None:
        raise study.StudyError(
            "card synthetic draws its images: the preset mini is made for it. Name a card of your own"
        )
    root = str(Path(data_root).expanduser().resolve()) if data_root else ""
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
        sized = Sized(described, split, folds)
        unprobed = (
            folds and not sized.labels and held.reported.any()
        )  # then reports are what can be evaluated
        if held.n >= LEAST_IMAGES and all(split.count([part]) for part in shares) and not unprobed:
            return sized
    patients = held.within("")["patient_id"].nunique()
    raise study.StudyError(
        f"card {described.name}: {held.n} images of {patients} patients are too few to train on and to test on others; "
        f"{LEAST_IMAGES} images, of a dozen patients, are the least"
    )


# ---- the file ------------------------------------------------------------------------------------------------------
def _ladder(s: Sized, paradigm: str) -> list[Line]:
    what = {"clip": "reports", "unicl": "reports and labels", "dinov2": "images alone"}[paradigm]
    if paradigm == "unicl" and not s.held.reported.any():
        what = "prompts of the labels; there are no reports"
    sizes, most = s.sizes(paradigm), s.pool(paradigm)
    times, rate = s.seen(paradigm) / sizes[-1], 0.0005 if s.batch(paradigm) >= 32 else 0.0002
    noisy = "; 0.1 with more images, whose score is less noisy" if s.folds else ""
    where = "the folds that do not judge" if s.folds else "the split pretrain"
    notes = [
        f"the smallest subset of the {len(sizes)}, part of the next",
        *["part of the next"] * len(sizes),
    ]
    notes[len(sizes) - 1] = (
        f"the largest: {where} hold{'s' * (not s.folds)} {most:,} images that {paradigm} can use"
    )
    return [
        (
            "  - data: own",
            f"a scaling curve: one encoder for each of the n_images below, by {paradigm}",
        ),
        (f"    base: {BASES[paradigm]}", "the encoder that training goes on from (see base above)"),
        (f"    paradigm: {paradigm}", f"it learns from {what}"),
        ("    n_images:", "nested subsets of your images, patients whole"),
        *((f"      - {n}", note) for n, note in zip(sizes, notes, strict=False)),
        (
            f"    samples_seen: {s.seen(paradigm)}",
            f"images shown in all, the same at every n_images: those of the largest {times:.1f} times",
        ),
        (
            f"    batch_size: {s.batch(paradigm)}",
            "images a step; no more than the smallest n_images",
        ),
        (f"    lr: {rate}", "peak learning rate; lower it if a run stops as collapsing"),
        ("    warmup: 0.2", "share of the steps in which the rate rises"),
        (
            f"    collapse: {0.3 if s.folds else 0.1}",
            f"a run stops when its score on held-out images falls by more{noisy}",
        ),
        (
            "    base_share: 0.5",
            "half of the base's weights is mixed back in, which keeps what it knew",
        ),
        (
            "    seed: 0",
            "a list, as [0, 1, 2], repeats the curve: between seeds you see what chance does",
        ),
    ]


def _stages(s: Sized) -> list[Line]:
    lines: list[Line] = [("classify:", "the probe: a linear classifier on each frozen encoder")]
    left = [name for name in s.held.labels if name not in s.labels]
    if s.labels:
        too = f"; too few to evaluate: {', '.join(left)}" if left else ""
        lines.append(
            (
                "  labels:",
                f"those with enough positives and negatives ({LEAST} of each to test){too}",
            )
        )
        lines += [(f"    - {_text(name)}", "a label of your card") for name in s.labels]
        seen = -(-max(1408, min(16000, 8 * s.held.n)) // 64) * 64
        lines.append(
            (f"  supervised_samples: {seen}", "images shown to the supervised baseline in all")
        )
    lines.append(
        ("  resamples: 1000", "bootstrap resamples of the test patients, for 95% intervals")
    )
    if s.segments:
        train = int(s.held.masked[s.held.within("")["split"] == "train"].sum())
        lines += [
            ("segment:", "lines and tubes drawn, from the masks of your card"),
            ("  rungs: largest", "of each curve the largest subset; bases and baselines always"),
            (f"  n_train: {min(1000, train)}", f"training images at most, of {train:,} with masks"),
            ("  n_test: 300", "validation images at most, and test images"),
            ("  steps: 250", "training steps of the small head that draws"),
        ]
    if s.writes:
        train = int(s.held.reported[s.held.within("")["split"] == "train"].sum())
        lines += [
            ("report:", "reports written by a small language model from the frozen encoder"),
            ("  rungs: largest", "of each curve the largest subset; bases and baselines always"),
            (
                f"  n_train: {min(1500, train)}",
                f"training images at most, of {train:,} with a report",
            ),
            ("  n_test: 250", "test images at most"),
            ("  steps: 500", "training steps of the language model"),
        ]
    return lines


def lines(s: Sized) -> list[Line]:
    """The preset, line by line."""
    n, patients = s.held.n, s.held.within("")["patient_id"].nunique()
    has = [
        what for what, there in (("reports", s.held.reported.any()), ("labels", s.labels)) if there
    ]
    kind = "real x-rays" if s.card.kind == "real" else "synthetic x-rays"
    told = f"{n:,} {kind} of {patients:,} patients, with {' and '.join(has) or 'neither reports nor labels'}"
    shares = s.held.p.fractions
    notes = {
        "pretrain": "share of patients that encoders are trained on",
        "train": "share of patients that probes are fitted on",
        "validation": "share that chooses the probe's strength",
        "test": "share that judges, seen by nothing before",
    }
    gb = n * SIZE**2 / 1e9 + 0.01 * (3 * len(s.paradigms) * max(1, s.folds) + 8) + 0.05
    out: list[Line] = [
        (f"title: {_text(s.card.title)}", "the heading of its page in the book"),
        (f"description: {_text(told + '.')}", "what the page says below it"),
        (
            f"minutes: {max(1, round(s.minutes()))}",
            "an estimate for this machine; later changes do not update it",
        ),
        (
            f"hardware: {_text(f'{os.cpu_count()} CPU cores (estimated)')}",
            "what the estimate is for",
        ),
        (
            f"disk_gb: {max(0.1, round(gb, 1)):g}",
            "an estimate: prepared images, encoders, notebooks",
        ),
        ("memory_gb: 4", "an estimate"),
        ("needs_root: true", "your files lie in a folder that each call names: --data-root PATH"),
        (f"licences: {_text(s.card.licence)}", "from the card"),
    ]
    if s.folds:
        said = f"cross-fitting, as {n:,} images are few: each fifth of the patients is tested once"
        out.append(
            (
                f"folds: {s.folds}",
                f"{said}; `segment` and `report` need fixed splits, so they are not here",
            )
        )
    out += [
        ("data:", "data sets; each is prepared once"),
        ("  own:", "a name of your choice, which ladders refer to"),
        (f"    card: {_text(s.held.p.card)}", "data_cards/NAME.md, or the path of a card"),
        ("    n_images: 0", f"0 takes all: {n:,}"),
        (f"    size: {SIZE}", "height and width in px: what the bases below take"),
        ("    fractions:", "shares of patients; they sum to 1"),
        *(
            (f"      {split}: {share:g}", notes.get(split, "one fold"))
            for split, share in shares.items()
        ),
        (
            "base:",
            "encoders to go on from; these small ones ship, and have seen synthetic x-rays alone",
        ),
    ]
    for base in dict.fromkeys(BASES[paradigm] for paradigm in s.paradigms):
        by = "dinov2, from images alone" if base.startswith("dino") else "clip, from reports"
        out += [
            (f"  {base}:", f"pretrained by {by}"),
            (
                f"    shipped: book/recorded/bases/{base}",
                "its folder; published weights go by name (rad-dino)",
            ),
        ]
    absent = {"clip": "no reports", "unicl": "no label has enough positives and negatives"}
    lacking = [
        f"{what} is left out: {why}" for what, why in absent.items() if what not in s.paradigms
    ]
    out.append(("ladders:", "scaling curves" + "".join(f"; {text}" for text in lacking)))
    for paradigm in s.paradigms:
        out += _ladder(s, paradigm)
    out += [
        ("controls:", "baselines: what has learned nothing of your images"),
        ("  - pixels", "the image itself at 32 px"),
        ("  - random:hybrid_mini", "the same architecture with random weights"),
    ]
    if any(column in s.held.within("") for column in ("view", "age", "sex")):
        out.insert(
            -1, ("  - covariates", "view, age and sex alone: what can be guessed without looking")
        )
    if s.labels:
        out += [
            ("  - shuffled", "the base under labels dealt out anew: it should be at 0.5"),
            ("  - supervised:hybrid_mini", "trained end to end on your labels alone"),
        ]
    out += _stages(s)
    return out


def _text(value: str) -> str:
    """A string as YAML."""
    plain = re.fullmatch(r"[A-Za-z][\w/-]*", value) and yaml.safe_load(value) == value
    return value if plain else json.dumps(" ".join(value.split()), ensure_ascii=False)


def write(
    card: str, data_root: str = "", name: str = "", *, force: bool = False
) -> tuple[Path, Sized]:
    """Write ``notebooks/presets/NAME.yml`` (NAME: the card's) and return it with what it is sized to.

    StudyError: the card or its data do not load, the name is none, or the file is there and ``force`` is not given.
    """
    name = name or Path(card).stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise study.StudyError(f"--name {name!r}: letters, digits, '-', '_' and '.' alone")
    path = study.root() / "notebooks" / "presets" / f"{name}.yml"
    if path.exists() and not force:
        raise study.StudyError(
            f"{path} is there already: give --name NAME for another, or --force to write over it"
        )
    card = str(Path(card).expanduser().resolve()) if card.endswith(".md") else card
    try:
        sized = size_up(card, data_root)
    except (cards.CardError, OSError) as error:
        raise study.StudyError(str(error)) from None
    shown = f"--preset {name}"
    folds = [f"fold{k}" for k in range(sized.folds)]
    also = f' -y "folds: [{", ".join(folds)}]"' if folds else ""
    head = f"""\
# Written by `cxrstudy new --card {card}` for {sized.held.n:,} images. Change what you like, then look:
#   cxrstudy run {shown} -n --data-root PATH
# To evaluate embeddings of another encoder alone (a table of vectors), prepare the data, then probe:
#   cxrstudy run {shown} --only data --data-root PATH
#   papermill notebooks/classify.ipynb out.ipynb -p data runs/{name}/data/own-* -p encoder FILE.parquet{also}
"""
    path.write_text(
        head + "".join(f"{text}  # {note}\n" for text, note in lines(sized)), encoding="utf-8"
    )
    return path, sized
