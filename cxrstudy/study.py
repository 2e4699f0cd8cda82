"""Where files are, and the parameters of every notebook: typed, with their default and meaning."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cxrstudy.marks import near
from cxrstudy.numbers import typed


class StudyError(ValueError):
    """The call or its input is wrong; the message says which part and the remedy."""


def root() -> Path:
    """Return the repository: $CXRSTUDY_ROOT, or the nearest folder upwards with notebooks/presets.

    The search starts in the working folder, then in the folder of the package.
    """
    if "CXRSTUDY_ROOT" in os.environ:
        return Path(os.environ["CXRSTUDY_ROOT"]).resolve()
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / "notebooks" / "presets").is_dir():
                return folder
    raise StudyError(
        "no folder with notebooks/presets above here: run from the clone, or set CXRSTUDY_ROOT"
    )


def runs_root() -> Path:
    """Return the folder of all runs: $CXRSTUDY_RUNS, or ``runs`` in the repository."""
    return Path(os.environ.get("CXRSTUDY_RUNS") or root() / "runs").resolve()


def resolve(path: str | Path) -> Path:
    """Return the path that a parameter names: an absolute one as it is, others in the repository.

    ``runs/...`` is below ``runs_root()``.
    """
    path = Path(path).expanduser()
    if path.is_absolute():
        return path
    return runs_root().joinpath(*path.parts[1:]) if path.parts[:1] == ("runs",) else root() / path


def digest(value: Any, length: int = 6) -> str:
    """Return a hash of a JSON-like value in ``length`` hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode()).hexdigest()[:length]


# ---- parameters of the notebooks --------------------------------------------------------------
def read_numbers(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` with numbers that were read as text (``1e-4``) as the model's numbers."""
    fields = model.model_fields
    return {
        key: typed(value, fields[key].annotation) if key in fields else value
        for key, value in values.items()
    }


class Parameters(BaseModel):
    """Parameters of one notebook; unknown names and wrong types are refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    seed: int = Field(0, ge=0, description="seed of everything that is random in the run")
    out: str = Field("", description="folder of the run; empty = runs/scratch/...")

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, values: Any) -> Any:
        return read_numbers(cls, values) if isinstance(values, dict) else values


class Data(Parameters):
    """data.ipynb: read a data card, split by patient, write images once at the working size."""

    card: str = Field("synthetic", description="name of a card in data_cards/, or a path to yours")
    root: str = Field("", description="folder of the data set's files; synthetic data have none")
    institution: str = Field("study", description="synthetic card: study, public, public-0, ...")
    n_images: int = Field(3000, ge=0, description="how many images; 0 = all of the data set")
    size: int = Field(64, ge=32, le=1024, description="image height and width in px")
    fractions: dict[str, float] = Field(
        {"pretrain": 0.5, "train": 0.2, "validation": 0.1, "test": 0.2},
        description="shares of patients in each split; they sum to 1",
    )
    seed: int = Field(0, ge=0, description="seed of the split and of the synthetic institution")
    image_format: Literal["raw", "jpeg"] = Field(
        "raw",
        description="raw = as read; jpeg = a fifth of the disk, grey values off by 1 on average",
        exclude_if=lambda value: value == "raw",
    )


class OnData(Parameters):
    """What all notebooks share that read a data run."""

    data: str = Field(
        "", description="folder of a data run; empty = a small synthetic one, made here"
    )
    threads: int = Field(1, ge=1, description="CPU threads of this run; several run at a time")


class Pretrain(OnData):
    """pretrain.ipynb: continue an encoder's pretraining on a nested subset, at constant compute."""

    base: str = Field("", description="encoder folder to continue from; empty = random weights")
    encoder: str = Field(
        "cnn_mini",
        description="architecture if there is no base: cnn_mini, hybrid_mini, vit_mini, davit_mini "
        "or a timm name",
    )
    paradigm: Literal["clip", "unicl", "clip+labels", "dinov2"] = Field(
        "clip",
        description="objective: reports; reports and label prompts; reports and a label loss; "
        "images alone",
    )
    n_images: int = Field(500, ge=2, description="images in the nested subset")
    samples_seen: int = Field(4000, ge=1, description="compute: images shown, with repeats")
    splits: list[str] = Field(["pretrain"], description="splits that the subset is drawn from")
    batch_size: int = Field(64, ge=2, description="images in a step")
    lr: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    warmup: float = Field(
        0.1, ge=0, lt=1, description="share of steps in warm-up, before the cosine"
    )
    weight_decay: float = Field(
        0.05, ge=0, description="of AdamW; not applied to biases, norms and gains"
    )
    grad_clip_norm: float = Field(1.0, gt=0, description="largest gradient norm in a step")
    report_part: Literal["joined", "findings", "impression"] = Field(
        "joined", description="clip, unicl: part of the report; joined = all of it"
    )
    label_share: float = Field(
        0.5, ge=0, le=1, description="unicl: share of samples whose text is a label prompt"
    )
    positives: Literal["equal", "overlap"] = Field(
        "equal", description="unicl: which pairs are positive: equal labels, or one in common"
    )
    label_weight: float = Field(1.0, ge=0, description="clip+labels: weight of the label loss")
    dino: dict[str, Any] = Field(
        {}, description="dinov2: what differs from cxrstudy.pretrain.dinov2.DinoConfig"
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth rate of the last block")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of averaged weights, which are kept; 0 = last weights"
    )
    wise_ft_alpha: float = Field(
        1.0, gt=0, le=1, description="kept weights = alpha * trained + (1 - alpha) * base (WiSE-FT)"
    )
    max_score_drop: float = Field(
        0.1, gt=0, description="with a base: stop if the held-out score falls by more than this"
    )
    seed: int = Field(0, ge=0, description="seed of subset, order, initialisation, augmentation")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto = bf16 if the hardware has it"
    )
    accumulate: int = Field(1, ge=1, description="parts of a batch, computed one after the other")
    processes: int = Field(1, ge=1, description="processes (GPUs) that share each batch")
    compile: bool = Field(False, description="torch.compile the encoder")
    gradient_checkpointing: bool = Field(False, description="less memory, more time")
    checkpoint_seconds: float = Field(
        60.0, gt=0, description="save the state this often, to resume"
    )
    checkpoint_steps: int = Field(0, ge=0, description="also every so many steps; 0 = by time only")

    @model_validator(mode="after")
    def _budget(self) -> "Pretrain":
        if self.n_images > self.samples_seen:
            raise ValueError(
                f"n_images ({self.n_images}) is larger than samples_seen ({self.samples_seen}), so "
                "some images would never be shown. Lower n_images or raise samples_seen"
            )
        return self


class Evaluation(OnData):
    """What all notebooks share that evaluate a frozen encoder."""

    encoder: str = Field(
        "random:cnn_mini",
        description="encoder folder, timm name, random:NAME, or a baseline (pixels, covariates)",
    )
    train: list[str] = Field(["train"], description="splits of the training patients")
    validation: list[str] = Field(["validation"], description="splits of the validation patients")
    test: list[str] = Field(["test"], description="splits of the test patients")
    within: str = Field("", description="only rows that meet this pandas query: view == 'PA'")
    resamples: int = Field(2000, ge=20, description="bootstrap resamples of the test patients")
    seed: int = Field(0, ge=0, description="seed of subsets, training, bootstrap, random encoders")


class Classify(Evaluation):
    """classify.ipynb: a linear probe on a frozen encoder, with intervals over patients."""

    encoder: str = Field(
        "random:cnn_mini",
        description="encoder folder, timm name, random:NAME, supervised:NAME (trained on labels), "
        "pixels, covariates (view, age, sex), or a table of embeddings (.parquet, .npz)",
    )
    fold_encoders: list[str] = Field([], description="cross-fitting: one encoder for each fold")
    folds: list[str] = Field([], description="cross-fitting: splits that are folds; empty = none")
    tasks: list[
        Literal[
            "findings",
            "lines_tubes",
            "malposition",
            "laterality",
            "zero_shot",
            "retrieval",
            "nuisance",
        ]
    ] = Field(
        ["findings", "lines_tubes", "malposition", "laterality", "zero_shot", "retrieval"],
        description="what is evaluated, if data and encoder allow it; also nuisance: what else the "
        "features hold",
    )
    labels: list[str] = Field([], description="labels to probe; empty = all of the data set")
    pooling: str = Field(
        "mean+max+grid4", description="pooled features, joined by +: mean, max, gridK, class"
    )
    layers: int = Field(1, ge=1, description="last blocks or stages whose features are joined")
    strengths: list[float] = Field(
        [1e-3, 1e-2, 1e-1, 1.0, 10.0], description="L2 penalties; validation chooses one a label"
    )
    label_counts: list[int] = Field(
        [], description="label-efficiency curve: numbers of labelled patients; 0 = all"
    )
    label_seeds: int = Field(3, ge=1, description="random draws of patients at each count")
    shuffle_labels: bool = Field(
        False, description="negative control: permuted labels; AUROC should be 0.5"
    )
    supervised_samples: int = Field(40_000, ge=1, description="supervised:NAME: images shown")
    also: list[str] = Field([], description="other data runs whose test patients are evaluated too")
    also_within: str = Field("", description="as within, for the data of `also`: row >= 2512")


class Segment(Evaluation):
    """segment.ipynb: a mask decoder for lines and tubes on a frozen encoder, and continuity."""

    devices: list[str] = Field([], description="devices to segment; empty = all in training masks")
    n_train: int = Field(1500, ge=1, description="training images at most, patients whole")
    n_test: int = Field(500, ge=1, description="validation images at most, and test images")
    layers: int = Field(5, ge=1, description="feature maps: last CNN stages or ViT blocks")
    steps: int = Field(400, ge=1, description="training steps of the decoder")
    batch_size: int = Field(16, ge=1, description="images in a step")
    lr: float = Field(3e-3, gt=0, description="peak learning rate of AdamW, then a cosine to 0")
    weight_decay: float = Field(1e-2, ge=0, description="of AdamW")
    resamples: int = Field(1000, ge=20, description="bootstrap resamples of the test patients")


class Report(Evaluation):
    """report.ipynb: a language model writes reports from a frozen encoder's patch features."""

    part: Literal["joined", "findings", "impression"] = Field(
        "joined", description="what is written: FINDINGS and IMPRESSION, or one of them"
    )
    n_train: int = Field(1500, ge=0, description="training images at most, patients whole; 0 = all")
    n_validation: int = Field(200, ge=0, description="validation images at most; 0 = all")
    n_test: int = Field(300, ge=0, description="test images at most; 0 = all")
    grid: int = Field(8, ge=0, description="average patches to grid x grid at most; 0 = keep all")
    projector: Literal["linear", "mlp"] = Field(
        "linear", description="from patch features to token embeddings: one layer, or two"
    )
    language_model: str = Field(
        "", description="folder of a Hugging Face causal language model; empty = train a small one"
    )
    vocabulary: int = Field(1024, ge=300, description="small model: byte-pair tokens")
    width: int = Field(128, ge=32, multiple_of=32, description="small model: channels, heads of 32")
    layers: int = Field(2, ge=1, description="small model: transformer blocks")
    lora_rank: int = Field(8, ge=0, description="large model: rank of LoRA adapters; 0 = none")
    prompt: str = Field("", description="text between the image and the report")
    max_tokens: int = Field(96, ge=2, description="longest report in tokens")
    steps: int = Field(800, ge=1, description="training steps")
    batch_size: int = Field(16, ge=1, description="reports in a step")
    lr: float = Field(3e-3, gt=0, description="peak learning rate of AdamW; LoRA: about 2e-4")
    warmup: float = Field(
        0.1, ge=0, lt=1, description="share of steps in warm-up, before the cosine"
    )
    weight_decay: float = Field(0.05, ge=0, description="of AdamW; not applied to biases and gains")
    grad_clip_norm: float = Field(1.0, gt=0, description="largest gradient norm in a step")
    checks: int = Field(10, ge=1, description="validation checks; the best state is kept")
    num_beams: int = Field(1, ge=1, description="beam search: beams; 1 = greedy")
    no_repeat: int = Field(
        0, ge=0, description="n-grams of this length occur once; 0 = off, IMPRESSION may repeat"
    )
    repetition_penalty: float = Field(1.0, ge=1, description="of tokens already written; 1 = off")
    uncertain: Literal["present", "absent"] = Field(
        "present", description="clinical F1: what an uncertain mention counts as"
    )


class Analyse(Parameters):
    """analyse.ipynb: every inference of a study: contrasts, laws, claims, planner; as tables."""

    records: list[str] = Field([], description="run folders to read; empty = all below `runs`")
    runs: str = Field("runs/mini", description="folder of runs, or book/recorded/NAME")
    settings: dict[str, str] = Field(
        {}, description='sensitivity analysis: factor=value to SOURCE, or "SOURCE VARIANT"'
    )
    repeats: list[str] = Field(
        [], description="sensitivity analysis: sources whose seeds give their variance"
    )
    resamples: int = Field(1000, ge=20, description="bootstrap resamples of the test patients")
    seed: int = Field(0, ge=0, description="seed of the bootstrap")


class Plan(Parameters):
    """plan.ipynb, run by hand: the expected gain with your own number of images."""

    records: list[str] = Field([], description="run folders to read; empty = all below `runs`")
    runs: str = Field("runs/mini", description="folder of runs, or book/recorded/NAME")
    n_images: int = Field(2000, ge=1, description="how many in-house images you have")
    resamples: int = Field(1000, ge=20, description="bootstrap resamples of the test patients")
    seed: int = Field(0, ge=0, description="seed of the bootstrap")


STAGES: dict[str, type[Parameters]] = {
    "data": Data,
    "pretrain": Pretrain,
    "classify": Classify,
    "segment": Segment,
    "report": Report,
    "analyse": Analyse,
    "plan": Plan,
}


def validated(stage: str, values: dict[str, Any], where: str = "") -> Any:
    """Return ``values`` as the stage's parameters; StudyError names each that is wrong."""
    try:
        return STAGES[stage](**values)
    except ValidationError as error:
        raise StudyError(explain(error, where or f"{stage} parameters", STAGES[stage])) from None


def explain(error: ValidationError, where: str, model: type[BaseModel]) -> str:
    """Return what pydantic found wrong, one part for each fault, with the names that are known."""
    lines, known = [], model.model_fields
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or "parameters"
        if item["type"] == "extra_forbidden":
            lines.append(
                f"unknown parameter {name!r}{near(name, known)}; known: {', '.join(known)}"
            )
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {message} (got {str(item['input'])[:80]})")
    return f"{where}: " + "; ".join(lines)


# ---- in a notebook ----------------------------------------------------------------------------
CHECKED = "_cxrstudy_checked"  # in a notebook's namespace: its names have been checked
PLAIN = (str, int, float, list, dict, type(None))  # what papermill can inject


def from_notebook(stage: str, namespace: dict[str, Any]) -> Any:
    """Return the checked parameters of the notebook that is running; ``out`` is filled in.

    Values that are no parameter are refused by name, so that a misspelt one is not ignored. Only
    the first call does so: later ones find the variables of all other cells.

    Args:
        namespace: ``globals()`` of the notebook.
    """
    fields = STAGES[stage].model_fields
    values = {name: namespace[name] for name in fields if name in namespace}
    if not values:
        raise StudyError(f"{stage}.ipynb: run the cell that starts with '# Parameters' first")
    if CHECKED not in namespace:
        values |= {
            name: value
            for name, value in namespace.items()
            if isinstance(value, PLAIN) and not name.startswith("_") and name not in ("In", "Out")
        }
    parameters = validated(stage, values, f"{stage}.ipynb")
    namespace[CHECKED] = True
    if not parameters.out:
        name = f"{stage}-{digest(parameters.model_dump(exclude={'out'}))}"
        parameters = parameters.model_copy(update={"out": f"runs/scratch/{stage}/{name}"})
    return parameters
