"""Where things lie, and the parameters of every notebook: each a typed model that refuses what it does not know."""

import ast
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
    """The repository: $CXRSTUDY_ROOT, or the nearest folder upwards from here or from the package with notebooks/."""
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
    """Where runs are kept: $CXRSTUDY_RUNS or ``runs`` in the repository."""
    return Path(os.environ.get("CXRSTUDY_RUNS") or root() / "runs").resolve()


def resolve(path: str | Path) -> Path:
    """A path given in a parameter: as it is when absolute, else below the repository, wherever the kernel started."""
    path = Path(path).expanduser()
    if path.is_absolute():
        return path
    return runs_root().joinpath(*path.parts[1:]) if path.parts[:1] == ("runs",) else root() / path


def digest(value: Any, length: int = 6) -> str:
    """A short name for a JSON-like value."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[
        :length
    ]


# --------------------------------------------------------------------------------------- parameters of the notebooks
def read_numbers(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` with numbers that were read as text, as ``1e-4`` is, as the fields of ``model`` ask for."""
    fields = model.model_fields
    return {
        key: typed(value, fields[key].annotation) if key in fields else value
        for key, value in values.items()
    }


class Parameters(BaseModel):
    """Parameters of one notebook; unknown names and wrong types are refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, values: Any) -> Any:
        return read_numbers(cls, values) if isinstance(values, dict) else values


class Data(Parameters):
    """data.ipynb: read a data card, split by patient, write images once at the working size."""

    card: str = Field(
        "synthetic", description="name of a card in data_cards/, or the path of your own"
    )
    root: str = Field(
        "", description="folder that holds the data set's files (not for the synthetic card)"
    )
    institution: str = Field("study", description="synthetic card: which institution")
    n_images: int = Field(3000, ge=0, description="how many images; 0 = all that the data set has")
    size: int = Field(64, ge=32, le=1024, description="image height and width in px")
    fractions: dict[str, float] = Field(
        {"pretrain": 0.5, "train": 0.2, "validation": 0.1, "test": 0.2},
        description="splits by patient, summing to 1",
    )
    seed: int = Field(0, ge=0, description="seed of the split and of the synthetic institution")
    out: str = Field("", description="folder of the run; empty = runs/scratch/...")


class Pretrain(Parameters):
    """pretrain.ipynb: continue an encoder's pretraining on a nested subset at a fixed number of samples seen."""

    data: str = Field(
        "", description="folder of a data run; empty = a small synthetic one, made on the spot"
    )
    base: str = Field(
        "", description="encoder folder to continue from; empty = start from random weights"
    )
    encoder: str = Field(
        "cnn_mini", description="architecture when there is no base: ours or any timm name"
    )
    paradigm: Literal["clip", "unicl", "clip+labels", "dinov2"] = Field(
        "clip",
        description="objective: reports; reports and labels as text; reports beside a label loss; images alone",
    )
    n_images: int = Field(500, ge=2, description="size of the nested subset of images")
    samples_seen: int = Field(
        4000, ge=1, description="compute budget: images shown in all, repeats included"
    )
    splits: list[str] = Field(["pretrain"], description="splits the subset is drawn from")
    batch_size: int = Field(64, ge=2, description="images a step")
    lr: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    warmup: float = Field(
        0.1, ge=0, lt=1, description="share of the steps that warm up, before the cosine"
    )
    weight_decay: float = Field(
        0.05, ge=0, description="AdamW's decay, not on biases, norms and gains"
    )
    clip: float = Field(1.0, gt=0, description="largest norm of a step's gradient")
    report_part: Literal["joined", "sampled", "findings", "impression"] = Field(
        "joined",
        description="clip, unicl: what of a report is shown; sampled = FINDINGS or IMPRESSION, drawn anew",
    )
    label_share: float = Field(
        0.5, ge=0, le=1, description="unicl: share of samples whose text is a label prompt"
    )
    prompts: Literal["set", "name"] = Field(
        "set", description="unicl: a prompt says all labels of an image, or one"
    )
    sides: bool = Field(
        False, description="unicl: prompts say right, left or bilateral where that is recorded"
    )
    positives: Literal["equal", "overlap"] = Field(
        "equal",
        description="unicl: pairs that count as matches have equal targets, or share a label",
    )
    label_weight: float = Field(1.0, ge=0, description="clip+labels: weight of the label loss")
    dino: dict[str, Any] = Field(
        {}, description="dinov2: what differs from pretrain.dinov2.DinoConfig"
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="share of samples that skip the last block, fewer before it"
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of the averaged weights that are kept; 0 = the last ones",
    )
    base_share: float = Field(
        0.0, ge=0, lt=1, description="share of the base's weights mixed into those that are kept"
    )
    collapse: float = Field(
        0.1, gt=0, description="a continued run stops when its held-out score falls by more"
    )
    seed: int = Field(0, ge=0, description="seed of subset, order, initialisation, augmentation")
    threads: int = Field(
        1, ge=1, description="CPU threads of this run (several runs go side by side)"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto = bf16 where the hardware has it"
    )
    accumulate: int = Field(
        1, ge=1, description="parts that a batch is computed in, one after the other"
    )
    processes: int = Field(1, ge=1, description="processes (GPUs) that share each batch")
    compile: bool = Field(False, description="torch.compile the encoder")
    gradient_checkpointing: bool = Field(False, description="less memory, more time")
    checkpoint_seconds: float = Field(
        60.0, gt=0, description="how often the state is saved for resuming"
    )
    checkpoint_steps: int = Field(
        0, ge=0, description="also every so many steps; 0 = by time alone"
    )
    out: str = Field("", description="folder of the run; empty = runs/scratch/...")

    @model_validator(mode="after")
    def _budget(self) -> "Pretrain":
        if self.n_images > self.samples_seen:
            raise ValueError(
                f"n_images ({self.n_images}) is larger than samples_seen ({self.samples_seen}): some images would "
                "never be seen, so the subset would be smaller than it says. Lower n_images or raise samples_seen"
            )
        return self


class Classify(Parameters):
    """classify.ipynb: frozen encoder, probe on findings and devices, patient-level intervals."""

    data: str = Field(
        "", description="folder of a data run; empty = a small synthetic one, made on the spot"
    )
    encoder: str = Field(
        "random:cnn_mini",
        description="encoder folder, timm name, random:NAME, a control (pixels, covariates = view, age, sex), "
        "supervised:NAME (architecture or encoder, trained end to end on the labelled patients), or a table of "
        "embeddings (.parquet, .npz)",
    )
    fold_encoders: list[str] = Field(
        [], description="cross-fitting: one encoder a fold, instead of `encoder`"
    )
    folds: list[str] = Field(
        [], description="cross-fitting: the splits that serve as folds; empty = fixed splits"
    )
    train: list[str] = Field(["train"], description="splits of the probe's training patients")
    validation: list[str] = Field(
        ["validation"], description="splits of the patients that choose the strength"
    )
    test: list[str] = Field(["test"], description="splits of the test patients")
    tasks: list[
        Literal["findings", "lines_tubes", "malposition", "laterality", "zero_shot", "retrieval"]
    ] = Field(
        ["findings", "lines_tubes", "malposition", "laterality", "zero_shot", "retrieval"],
        description="what is judged, where the data and the encoder allow it",
    )
    labels: list[str] = Field(
        [], description="labels to probe; empty = every label of the data, own names too"
    )
    within: str = Field("", description="only rows of the manifest that meet this pandas query")
    fit_within: str = Field(
        "", description="the same for training and validation rows alone, as exam == 0"
    )
    test_within: str = Field(
        "", description="the same for test rows alone, as exam > 0: a split in time"
    )
    probe: Literal["linear", "attention"] = Field(
        "linear", description="on the pooled feature, or on the patches"
    )
    pooling: str = Field(
        "mean+max+grid4", description="parts of the pooled feature, joined: mean, max, gridK, class"
    )
    layers: int = Field(
        1, ge=1, description="last blocks or stages of the encoder whose features are joined"
    )
    keep_features: bool = Field(
        False, description="keep patch features under runs/features for later evaluations"
    )
    strengths: list[float] = Field(
        [1e-3, 1e-2, 1e-1, 1.0, 10.0], description="L2 penalties of the probe, chosen on validation"
    )
    resamples: int = Field(2000, ge=20, description="bootstrap resamples of the test patients")
    label_counts: list[int] = Field(
        [], description="label-efficiency curve: numbers of labelled patients; 0 = all"
    )
    label_seeds: int = Field(3, ge=1, description="how often the patients of each count are drawn")
    shuffle_labels: bool = Field(
        False, description="control: the probe's labels are dealt out anew, so 0.5 is right"
    )
    supervised_samples: int = Field(
        40_000, ge=1, description="supervised:NAME: images shown in all"
    )
    also: list[str] = Field(
        [], description="other data runs on whose test patients the same probe is judged"
    )
    also_within: str = Field(
        "", description="the same as within, for the data of `also`: row >= 2512"
    )
    against: list[str] = Field(
        [], description="other classify runs on the same patients to compare with"
    )
    seed: int = Field(0, ge=0, description="seed of the bootstrap and of random encoders")
    threads: int = Field(1, ge=1, description="CPU threads of this run")
    out: str = Field("", description="folder of the run; empty = runs/scratch/...")


class Segment(Parameters):
    """segment.ipynb: frozen encoder, a small head that draws lines and tubes, continuity of patches along them."""

    data: str = Field(
        "", description="folder of a data run; empty = a small synthetic one, made on the spot"
    )
    encoder: str = Field(
        "random:cnn_mini",
        description="encoder folder, timm name, random:NAME, or the control: pixels",
    )
    train: list[str] = Field(["train"], description="splits of the head's training patients")
    validation: list[str] = Field(
        ["validation"], description="splits of the patients that choose step and thresholds"
    )
    test: list[str] = Field(["test"], description="splits of the test patients")
    devices: list[str] = Field(
        [], description="devices to draw; empty = all that the training images show"
    )
    within: str = Field("", description="only rows of the manifest that meet this pandas query")
    n_train: int = Field(
        1500, ge=1, description="training images at most: a nested subset, patients whole"
    )
    n_test: int = Field(500, ge=1, description="validation images at most, and test images")
    head: Literal["decoder", "linear"] = Field(
        "decoder", description="small convolutional decoder, or 1x1 convolution"
    )
    layers: int = Field(
        5, ge=1, description="feature maps: a CNN's last stages, a ViT's last blocks; or all"
    )
    keep_features: bool = Field(
        False, description="keep feature maps under runs/features for later evaluations"
    )
    steps: int = Field(400, ge=1, description="training steps of the head")
    batch_size: int = Field(16, ge=1, description="images a step")
    lr: float = Field(3e-3, gt=0, description="peak learning rate of AdamW, then a cosine to 0")
    weight_decay: float = Field(1e-2, ge=0, description="AdamW's decay")
    resamples: int = Field(1000, ge=20, description="bootstrap resamples of the test patients")
    seed: int = Field(
        0, ge=0, description="seed of subsets, head, order, bootstrap and random encoders"
    )
    threads: int = Field(1, ge=1, description="CPU threads of this run")
    out: str = Field("", description="folder of the run; empty = runs/scratch/...")


class Report(Parameters):
    """report.ipynb: frozen encoder, its patch features as the prefix of a language model that writes the report."""

    data: str = Field(
        "", description="folder of a data run; empty = a small synthetic one, made on the spot"
    )
    encoder: str = Field(
        "random:cnn_mini",
        description="encoder folder, timm name, random:NAME, or a control: pixels, covariates (view, age, sex)",
    )
    train: list[str] = Field(
        ["train"], description="splits of the patients whose reports are learned"
    )
    validation: list[str] = Field(
        ["validation"], description="splits of the patients that choose when to stop"
    )
    test: list[str] = Field(["test"], description="splits of the test patients")
    within: str = Field("", description="only rows of the manifest that meet this pandas query")
    part: Literal["joined", "findings", "impression"] = Field(
        "joined", description="what of a report is written: FINDINGS and IMPRESSION, or one of them"
    )
    n_train: int = Field(1500, ge=0, description="most training images, whole patients; 0 = all")
    n_validation: int = Field(200, ge=0, description="most validation images; 0 = all")
    n_test: int = Field(300, ge=0, description="most test images; 0 = all")
    grid: int = Field(
        8,
        ge=0,
        description="patch features are averaged to grid x grid places at most; 0 = all of them",
    )
    keep_features: bool = Field(
        False, description="keep patch features under runs/features for later evaluations"
    )
    projector: Literal["linear", "mlp"] = Field(
        "linear", description="patch feature to word space: one layer, or two"
    )
    language_model: str = Field(
        "",
        description="empty = a small one, trained here; or the folder of a Hugging Face causal language model",
    )
    vocabulary: int = Field(
        1024, ge=300, description="small language model: byte pairs, learned from training reports"
    )
    width: int = Field(
        128, ge=32, multiple_of=32, description="small language model: channels, in heads of 32"
    )
    layers: int = Field(2, ge=1, description="small language model: blocks")
    lora_rank: int = Field(
        8, ge=0, description="language model of a folder: rank of its adapters; 0 = none"
    )
    prompt: str = Field(
        "", description="what is said to the language model between the image and the report"
    )
    max_tokens: int = Field(96, ge=2, description="longest report in tokens, learned or written")
    steps: int = Field(800, ge=1, description="training steps")
    batch_size: int = Field(16, ge=1, description="reports a step")
    lr: float = Field(
        3e-3,
        gt=0,
        description="peak learning rate of AdamW; some 2e-4 for adapters of a large model",
    )
    warmup: float = Field(
        0.1, ge=0, lt=1, description="share of the steps that warm up, before the cosine"
    )
    weight_decay: float = Field(0.05, ge=0, description="AdamW's decay, not on biases and gains")
    clip: float = Field(1.0, gt=0, description="largest norm of a step's gradient")
    checks: int = Field(
        10, ge=1, description="how often the validation loss is taken; the best state is kept"
    )
    num_beams: int = Field(
        1, ge=1, description="beams of the search for a report's words; 1 = greedy"
    )
    no_repeat: int = Field(
        0,
        ge=0,
        description="no run of so many tokens twice in a report; 0 = off: IMPRESSION may repeat FINDINGS",
    )
    repetition_penalty: float = Field(
        1.0, ge=1, description="divides the odds of tokens already written; 1 = off"
    )
    uncertain: Literal["present", "absent"] = Field(
        "present", description="clinical F1: what a doubted name counts as"
    )
    resamples: int = Field(2000, ge=20, description="bootstrap resamples of the test patients")
    seed: int = Field(
        0,
        ge=0,
        description="seed of caps, initialisation, order, controls, bootstrap, random encoders",
    )
    threads: int = Field(1, ge=1, description="CPU threads of this run")
    out: str = Field("", description="folder of the run; empty = runs/scratch/...")


class Analyse(Parameters):
    """analyse.ipynb: every inference of a study: contrasts, laws, claims, planner; as tables."""

    records: list[str] = Field(
        [], description="run folders to read; empty = every run under `runs`"
    )
    runs: str = Field(
        "runs/mini", description="where to look when `records` is empty; or book/recorded/NAME"
    )
    settings: dict[str, str] = Field(
        {}, description='sensitivity analysis: factor=value to SOURCE, or "SOURCE VARIANT"'
    )
    repeats: list[str] = Field(
        [], description="sensitivity analysis: sources whose seeds give their variance"
    )
    resamples: int = Field(1000, ge=20, description="bootstrap resamples of the test patients")
    seed: int = Field(0, ge=0, description="seed of the bootstrap")
    out: str = Field("", description="folder of the run; empty = runs/scratch/...")


class Plan(Parameters):
    """plan.ipynb, run by hand: what a reader's own number of images would bring."""

    records: list[str] = Field(
        [], description="run folders to read; empty = every run under `runs`"
    )
    runs: str = Field(
        "runs/mini", description="where to look when `records` is empty; or book/recorded/NAME"
    )
    n_images: int = Field(2000, ge=1, description="how many in-house images the reader has")
    resamples: int = Field(1000, ge=20, description="bootstrap resamples of the test patients")
    seed: int = Field(0, ge=0, description="seed of the bootstrap")
    out: str = Field("", description="folder of the run; empty = runs/scratch/...")


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
    """``values`` as the stage's parameters; StudyError naming each unknown or ill-typed one."""
    try:
        return STAGES[stage](**values)
    except ValidationError as error:
        raise StudyError(explain(error, where or f"{stage} parameters", STAGES[stage])) from None


def explain(error: ValidationError, where: str, model: type[BaseModel]) -> str:
    """What pydantic found wrong, a part an item, with the names that are known."""
    lines, known = [], model.model_fields
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or "parameters"
        if item["type"] == "extra_forbidden":
            lines.append(
                f"unknown parameter {name!r}{near(name, known)}; known: {', '.join(known)}"
            )
        else:
            lines.append(
                f"{name}: {item['msg'].removeprefix('Value error, ')} (got {str(item['input'])[:80]})"
            )
    return f"{where}: " + "; ".join(lines)


def from_notebook(stage: str, shell: Any) -> Any:
    """The parameters of the notebook that ``shell`` (``get_ipython()``) runs, checked; ``out`` is filled in.

    Parameters are the names assigned in the latest cell that starts with ``# Parameters`` and in those that follow it
    so (papermill's injected one does): a name that papermill injected by mistake is refused, not ignored.
    """
    cells = [source for source in shell.user_ns["In"][:-1] if source]
    marked = [source.lstrip().startswith("# Parameters") for source in cells]
    if True in marked:
        stop = len(marked) - marked[::-1].index(True)
        start = stop - 1
        while start > 0 and marked[start - 1]:
            start -= 1
        names = [
            target.id
            for source in cells[start:stop]
            for statement in ast.parse(source).body
            for target in (
                getattr(statement, "targets", None) or [getattr(statement, "target", None)]
            )
            if isinstance(target, ast.Name)
        ]
    else:  # a runner that keeps no history, as nbval: what of the parameters the notebook has defined
        names = [name for name in STAGES[stage].model_fields if name in shell.user_ns]
        if not names:
            raise StudyError(f"{stage}.ipynb: run the cell that starts with '# Parameters' first")
    parameters = validated(stage, {name: shell.user_ns[name] for name in names}, f"{stage}.ipynb")
    if not parameters.out:
        name = f"{stage}-{digest(parameters.model_dump(exclude={'out'}))}"
        parameters = parameters.model_copy(update={"out": f"runs/scratch/{stage}/{name}"})
    return parameters
