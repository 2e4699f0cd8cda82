"""Report generation on a frozen encoder: its patch features become the first words of a language model.

Images are encoded once; their patch features (T,C) pass
through a projector and stand before the report as a prefix, in the manner of LLaVA (Liu et al. 2023) and, on x-rays,
MAIRA (Hyland et al. 2023). The language model is a small Llama trained here with byte pairs of the training reports, or
any causal one of Hugging Face's that lies in a folder, with low-rank adapters (Hu et al. 2021). Both take the prefix as
``inputs_embeds``; both write by `generate`.
"""

import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from cxrstudy import study
from cxrstudy.data.images import Prepared
from cxrstudy.data.manifest import nested_subset, patients_hash
from cxrstudy.evaluate import heads, protocol, textscores
from cxrstudy.evaluate.features import covariates, encode_batches, pool_tokens
from cxrstudy.evaluate.features import device as the_device
from cxrstudy.evaluate.language_model import open_model, small_model, train_tokenizer
from cxrstudy.evaluate.small_samples import set_aside
from cxrstudy.progress import Progress

IN_MEMORY = 2**31  # bytes of patch features; more go to a file of the run's folder
Pairs = tuple[np.ndarray, list[str]]  # patch features (N,T,C) and their N reports
_AT_ONCE = 96  # reports, or beams, written side by side: more spoil the processor's cache


# ---- what is seen --------------------------------------------------------------------------------------------------
def encode_tokens(
    encoder: Any,
    prepared: Prepared,
    rows: np.ndarray,
    *,
    grid: int,
    folder: Path | None = None,
    **how: Any,
) -> np.ndarray:
    """Patch features (len(rows), T, C) float16 of the given rows, row by row of the image; one pass of the encoder.

    ``grid``: patches are averaged to grid x grid places at most (0: all are kept). ``encoder`` None: `covariates`, one
    token. ``how`` as ``features.encode_batches``. Beyond
    IN_MEMORY bytes the result lies in an unnamed file of ``folder``, mapped. ValueError: a feature that float16 does
    not hold.
    """
    if encoder is None:
        return covariates(prepared.manifest)[rows, None].astype(np.float16)
    done, out = 0, np.empty(0)
    for patches, _ in encode_batches(encoder, prepared, rows, **how):
        side = math.isqrt(patches.shape[1])
        pooled = pool_tokens(patches, f"grid{min(grid or side, side)}").reshape(
            *patches.shape[::2], -1
        )
        chunk = pooled.transpose(1, 2).cpu().numpy()
        if not (np.abs(chunk) < np.finfo(np.float16).max).all():
            raise ValueError("the encoder gives features that are not finite in half precision")
        if not done:
            shape = (len(rows), *chunk.shape[1:])
            size = 2 * math.prod(shape)
            out = (
                np.empty(shape, np.float16)
                if folder is None or size <= IN_MEMORY
                else _mapped(shape, folder)
            )
        out[done : done + len(chunk)] = chunk
        done += len(chunk)
    return out


def _mapped(shape: tuple[int, ...], folder: Path) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    unnamed: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - gone once nothing maps it
    return np.memmap(unnamed, np.float16, "w+", shape=shape)


# ---- the decoder ---------------------------------------------------------------------------------------------------
class Writer(nn.Module):
    """Patch features (N,T,C) to reports: a projector into the word space of a causal language model.

    Attributes: ``language`` and ``tokenizer``; ``projector`` and ``place`` (T, width), what a patch's place adds. Patch
    features are centred by ``mean`` (C) and turned by ``axes`` (C, C) first: the training images' principal axes, each
    over the square root of its deviation. DINOv2's features vary hundreds of times as much along their first axes as
    along the middle one, and findings lie further down: standardised a channel at a time they taught a decoder less
    (`mini`, validation loss .815, F1 of findings 0; turned: .806 and .05; CLIP's: .804 and .28; .793 and .33).
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, p: study.Report, tokens: np.ndarray, reports: list[str]):
        """``tokens`` (N,T,C) and ``reports`` of the training images."""
        super().__init__()
        if p.language_model:
            self.language, self.tokenizer = open_model(p.language_model, p.lora_rank)
        else:
            self.tokenizer = train_tokenizer(reports, p.vocabulary)
            self.language = small_model(p, self.tokenizer)
        width, (count, patches, channels) = (
            self.language.get_input_embeddings().embedding_dim,
            tokens.shape,
        )
        some = np.asarray(tokens[:: max(1, count // 1000)], dtype=np.float64).reshape(-1, channels)
        mean = some.mean(0)
        some -= mean
        variance, axes = np.linalg.eigh(some.T @ some / len(some))
        axes *= np.sign(
            axes[np.abs(axes).argmax(0), range(channels)]
        )  # which libraries choose as they like
        floor = (
            max(0.01, channels / len(some)) * variance.mean()
        )  # few rows tell little of small directions
        axes /= (variance.clip(min=0) + floor + 1e-8) ** 0.25
        self.register_buffer("mean", torch.from_numpy(mean).float())
        self.register_buffer("axes", torch.from_numpy(axes).float())
        deep = [nn.GELU(), nn.Linear(width, width)] if p.projector == "mlp" else []
        self.projector = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width), *deep)
        self.place = nn.Parameter(0.02 * torch.randn(patches, width))
        self.end, begin = self.tokenizer.eos_token_id, self.tokenizer.bos_token_id
        said = self.tokenizer(p.prompt, add_special_tokens=False)["input_ids"] if p.prompt else []
        self.start, self.max_tokens = [self.end if begin is None else begin, *said], p.max_tokens

    def ids(self, reports: list[str]) -> list[list[int]]:
        """Token ids of each report, its end included; a report of more than ``max_tokens`` is cut, and has no end."""
        found = self.tokenizer(list(reports), add_special_tokens=False)["input_ids"]
        return [[*one, self.end][: self.max_tokens] for one in found]

    def prefix(self, tokens: Tensor) -> Tensor:
        """(N,T,C) patch features -> (N, T + start, width) what stands before the report."""
        words = self.language.get_input_embeddings()
        seen = self.projector((tokens.float() - self.mean) @ self.axes) + self.place
        start = words(torch.tensor(self.start, device=tokens.device)).expand(len(tokens), -1, -1)
        return torch.cat([seen.to(start.dtype), start], dim=1)

    def loss(self, tokens: Tensor, ids: list[list[int]]) -> tuple[Tensor, int]:
        """Sum of the cross entropy (nats) over the tokens of the reports, and how many these are."""
        longest = max(map(len, ids))
        target = torch.full((len(ids), longest), -100)
        for row, one in enumerate(ids):
            target[row, : len(one)] = torch.tensor(one)
        target = target.to(tokens.device)
        words = self.language.get_input_embeddings()(target[:, :-1].clamp(min=0))
        # padding stands after the text, and a causal model does not look ahead: no mask is needed
        before = torch.cat([self.prefix(tokens), words], dim=1)
        logits = self.language(inputs_embeds=before, logits_to_keep=longest, use_cache=False).logits
        total = functional.cross_entropy(
            logits.float().flatten(0, 1), target.flatten(), reduction="sum"
        )
        return total, sum(map(len, ids))

    @torch.inference_mode()
    def write(self, tokens: np.ndarray, p: study.Report, *, progress: Progress = iter) -> list[str]:
        """A report for each of (N,T,C) patch features: greedy, or the best of ``p.num_beams`` beams.

        Nothing is drawn by lot, so the report is a function of the image. Guards against repetition are
        ``p.no_repeat`` (no run of so many tokens twice) and ``p.repetition_penalty``; off by default, since an
        IMPRESSION says again what FINDINGS said, and such guards garble it.
        """
        self.eval()
        how = transformers.GenerationConfig(
            do_sample=False,
            num_beams=p.num_beams,
            max_new_tokens=p.max_tokens,
            no_repeat_ngram_size=p.no_repeat,
            repetition_penalty=p.repetition_penalty,
            eos_token_id=self.end,
            pad_token_id=self.end,
        )
        self.language.generation_config = (
            how  # else `generate` fills in what the folder's own asks for, as sampling
        )
        out, batch = [], max(1, _AT_ONCE // p.num_beams)
        for start in progress(range(0, len(tokens), batch)):
            with _autocast(self.place.device):
                before = self.prefix(_to(tokens[start : start + batch], self.place.device))
                seen = torch.ones(before.shape[:2], dtype=torch.long, device=before.device)
                written = self.language.generate(
                    inputs_embeds=before, attention_mask=seen, generation_config=how
                )
            out += self.tokenizer.batch_decode(
                written, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return [text.strip() for text in out]


def _to(tokens: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(tokens)).to(device)


def _autocast(device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


# ---- training ------------------------------------------------------------------------------------------------------
def fit(
    writer: Writer, p: study.Report, train: Pairs, held: Pairs, *, progress: Progress = iter
) -> pd.DataFrame:
    """Train what of ``writer`` is not frozen for ``p.steps`` steps; it ends in the state of least validation loss.

    ``train`` and ``held`` are patch features (N,T,C) and their N reports. AdamW, warm-up, cosine to zero; reports of
    like length share a batch. Returns one row a step: step, samples_seen, loss (nats a token), lr, and validation (nats
    a token; NaN between checks). FloatingPointError when a loss is not finite.
    """
    tokens, ids, device = train[0], writer.ids(train[1]), writer.place.device
    trained = [value for value in writer.parameters() if value.requires_grad]
    groups = [
        {"params": [value for value in trained if value.ndim > 1], "weight_decay": p.weight_decay},
        {"params": [value for value in trained if value.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=p.lr, betas=(0.9, 0.98))
    warm = max(1, round(p.warmup * p.steps))

    def rate(step: int) -> float:
        return (
            (step + 1) / warm
            if step < warm
            else (1 + math.cos(math.pi * (step - warm) / (p.steps - warm or 1))) / 2
        )

    def batch_loss(index: np.ndarray) -> Tensor:
        with _autocast(device):
            total, count = writer.loss(_to(tokens[index], device), [ids[i] for i in index])
        return total / count

    history = heads.fit(
        writer,
        _batches([len(one) for one in ids], p.batch_size, np.random.default_rng(p.seed)),
        batch_loss,
        optimiser,
        torch.optim.lr_scheduler.LambdaLR(optimiser, rate),
        steps=p.steps,
        max_norm=p.clip,
        validate=lambda: -validation_loss(writer, held),
        checks={round(p.steps * (k + 1) / p.checks) for k in range(p.checks)} | {p.steps},
        progress=progress,
    )
    history.insert(1, "samples_seen", history["step"] * p.batch_size)
    return history.assign(validation=-history.pop("score"))


@torch.inference_mode()
def validation_loss(writer: Writer, held: Pairs, batch: int = 64) -> float:
    """Cross entropy, in nats a token, of reports after the patch features of their images."""
    writer.eval()
    ids, device, sums = writer.ids(held[1]), writer.place.device, np.zeros(2)
    order = np.argsort([len(one) for one in ids], kind="stable")
    for take in np.split(order, range(batch, len(order), batch)):
        with _autocast(device):
            total, count = writer.loss(_to(held[0][take], device), [ids[i] for i in take])
        sums += [total.item(), count]
    return float(sums[0] / sums[1])


def _batches(lengths: list[int], size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless batches of places; each epoch shows every report once, those of like length together."""
    while True:
        order = rng.permutation(len(lengths))
        batches = []
        for pool in np.split(order, range(8 * size, len(order), 8 * size)):
            near = pool[np.argsort(np.asarray(lengths)[pool], kind="stable")]
            batches += np.split(near, range(size, len(near), size))
        yield from (batches[i] for i in rng.permutation(len(batches)))


# ---- the protocol --------------------------------------------------------------------------------------------------
def run(p: study.Report, prepared: Prepared, *, progress: Progress = iter) -> dict[str, Any]:
    """Train a decoder on one frozen encoder, write the test patients' reports and score them beside three controls.

    Returns ``reports`` (a table: image_id, patient_id, truth, generated, other_patient, and each report's scores, see
    `textscores.per_report`), ``metrics`` (a list: task "reports", label, metric, value, low, high, n, positives; a
    control's label begins with its name, as in "other patient: all"), ``history`` (see `fit`), ``writer``, ``tokens``
    (of the test rows), ``test`` (a manifest), ``subject`` and ``info``. Controls: the same decoder fed another
    patient's image, which shows what is written without seeing; the most frequent training report; a training report by
    lot. LeakError, before anything is computed: a patient of any part was in the encoder's pretraining, or a test
    patient is in another part too. ValueError: no report in a part; a control that cannot be made.
    """
    torch.set_num_threads(p.threads)
    shared = study.Classify(
        **p.model_dump(include={"data", "within", "train", "validation", "test"})
    )
    table = protocol.labelled_rows(prepared, shared)
    table = table.assign(text=textscores.texts(table, p.part))
    told = table[table["text"] != ""]
    if told.empty:
        raise ValueError(
            f"part: none of {len(table)} images of {p.data} has a report with {p.part!r}"
        )
    caps = (p.n_train, p.n_validation, p.n_test)
    parts = [
        nested_subset(part, min(cap or len(part), len(part)), seed=p.seed)
        for part, cap in zip(protocol._parts(told, shared)[0], caps, strict=True)
    ]
    protocol.refuse_overlap(*parts)
    encoder, subject, pretrained = protocol.open_subject(p.encoder, prepared.info["size"], p.seed)
    if p.encoder.startswith(protocol.SUPERVISED) or not (
        encoder is None or hasattr(encoder, "forward_features")
    ):
        raise ValueError(
            f"encoder: {p.encoder!r} is no frozen encoder of images with patch features; name one"
        )
    protocol.refuse_leak(pretrained, pd.concat(parts), p.encoder)
    test, device = parts[2], the_device()
    other = textscores.other_patients(test["patient_id"].to_numpy(), p.seed)
    clock = [time.perf_counter()]
    rows = np.concatenate([part["row"].to_numpy() for part in parts])
    folder = study.resolve(p.out) if p.out else None
    how: dict[str, Any] = {"progress": progress}
    tokens = encode_tokens(encoder, prepared, rows, grid=p.grid, folder=folder, **how)
    seen = np.split(tokens, np.cumsum([len(part) for part in parts])[:-1])
    clock.append(time.perf_counter())
    learned, held, truth = (part["text"].tolist() for part in parts)
    with torch.random.fork_rng():
        torch.manual_seed(p.seed)
        writer = Writer(p, seen[0], learned).to(device)
        history = fit(writer, p, (seen[0], learned), (seen[1], held), progress=progress)
    clock.append(time.perf_counter())
    generated = writer.write(seen[2], p, progress=progress)
    clock.append(time.perf_counter())
    names = ("seconds_encode", "seconds_train", "seconds_generate")
    seconds = dict(zip(names, np.diff(clock).round(2).tolist(), strict=True))
    # decoding draws nothing by lot: what the decoder writes for another's image is what it has written for it
    swapped = [generated[i] for i in other]
    metrics = _scored(p, generated, swapped, learned, test["patient_id"].to_numpy(), truth)
    reports = pd.DataFrame(
        {"image_id": test["image_id"], "patient_id": test["patient_id"], "truth": truth}
    )
    reports = reports.assign(generated=generated, other_patient=swapped)
    reports = reports.join(textscores.per_report(generated, truth, uncertain=p.uncertain))
    checks = history.dropna(subset="validation")
    ids = writer.ids(learned)
    info = {
        "train_images": len(learned),
        "validation_images": len(held),
        "test_images": len(test),
        "test_patients": int(test["patient_id"].nunique()),
        "without_report": len(table) - len(told),
        "patches": int(tokens.shape[1]),
        "features": int(tokens.shape[2]),
        "trained_parameters": sum(v.numel() for v in writer.parameters() if v.requires_grad),
        "parameters": sum(v.numel() for v in writer.parameters()),
        "tokens_a_report": float(np.mean([len(one) for one in ids])),
        "reports_cut": float(np.mean([one[-1] != writer.end for one in ids])),
        "best_step": int(checks.loc[checks["validation"].idxmin(), "step"]),
        "validation_loss": float(checks["validation"].min()),
        **seconds,
    }
    subject = subject | {"trained_on": subject.get("institution")}
    subject = subject | {
        key: prepared.info.get(key) for key in ("kind", "institution", "generator")
    }
    subject |= {"data": Path(p.data).name, "patients": patients_hash(pd.concat(parts))}
    found = {
        "reports": reports,
        "metrics": metrics,
        "history": history,
        "subject": subject,
        "info": info,
    }
    return found | {"writer": writer, "tokens": seen[2], "test": test}


def _scored(
    p: study.Report,
    generated: list[str],
    swapped: list[str],
    learned: list[str],
    patients: np.ndarray,
    truth: list[str],
) -> list[dict[str, Any]]:
    """Metric rows of the ``generated`` reports and, under labels that begin with their names, of the baselines."""
    drawn = np.random.default_rng(p.seed).integers(len(learned), size=len(truth))
    controls = {
        "": generated,
        "other patient: ": swapped,
        "most frequent report: ": [Counter(learned).most_common(1)[0][0]] * len(truth),
        "random report: ": [learned[i] for i in drawn],
    }
    judge: dict[str, Any] = {"uncertain": p.uncertain, "resamples": p.resamples, "seed": p.seed}
    return [
        row | {"label": name + row["label"]}
        for name, said in controls.items()
        for row in set_aside(textscores.evaluate(said, truth, patients, **judge))
    ]
