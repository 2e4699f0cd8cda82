"""Zero-shot classification by prompts, and image-report retrieval: no labelled patient is used."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxrstudy import encoders, study, weights
from cxrstudy.data.images import Prepared
from cxrstudy.data.vocabulary import phrase
from cxrstudy.evaluate.features import BATCH, device
from cxrstudy.evaluate.metrics import interval, resampled_sums
from cxrstudy.evaluate.small_samples import with_width

# Prompts for a label that is present and for one that is absent. The first is as in
# MedImageInsight, the others are as in reports. The two lists correspond, so that the words beside
# the label cancel.
PRESENT = ("x-ray chest {}", "{} is present.", "There is {}.", "Findings consistent with {}.")
ABSENT = ("x-ray chest no {}", "{} is absent.", "There is no {}.", "No evidence of {}.")
AT = (1, 5, 10)  # R@k
DIRECTIONS = ("image_to_text", "text_to_image")


def open_text_tower(name: str, encoder: Any) -> Any:
    """Return the text tower of a value of the parameter ``encoder``, frozen; None if it has none.

    It has the methods ``tokens``, ``embed_text`` and ``embed_image``.
    """
    folder = encoders.encoder_folder(study.resolve(name))
    text: Any
    if folder is not None:
        text = encoders.load_text(folder, encoder.channels)
    elif name in weights.REGISTRY and weights.REGISTRY[name].text:
        text = encoders.load_pretrained(name, size=encoder.input_size).text
    else:
        text = encoder if isinstance(encoder, encoders.OpenClip) else None
    return None if text is None else text.eval().requires_grad_(False)


def text_scores(
    text: Any,
    pooled: np.ndarray,
    prepared: Prepared,
    test: pd.DataFrame,
    names: list[str],
    tasks: Sequence[str],
) -> dict[str, NDArray[np.float32]]:
    """Return the scores of a text tower that ``tasks`` ask for: ``zero_shot_scores`` and ``ranks``.

    The gallery of retrieval is ``test`` as it is given, in cross-fitting that of one fold: with
    fewer folds it is larger.

    Args:
        text: The text tower.
        pooled: Mean of the last layer's patches of the test images (N,C).
        test: Manifest of the N test images, with their row numbers.
        names: The L labels.

    Returns:
        ``zero_shot_scores`` (N,L) and ``ranks`` (N,2); ranks are NaN for images without a report.
    """
    images = embed_images(text, pooled, prepared, test["row"].to_numpy())
    found: dict[str, NDArray[np.float32]] = {}
    if "zero_shot" in tasks and names:
        found["zero_shot_scores"] = zero_shot_scores(text, images, names)
    if "retrieval" in tasks:
        reports = test["report"].fillna("").tolist() if "report" in test else [""] * len(test)
        index = [k for k, report in enumerate(reports) if report.strip()]
        found["ranks"] = np.full((len(test), 2), np.nan, np.float32)
        if index:
            reports = [reports[k] for k in index]
            found["ranks"][index] = ranks(images[index], embed_texts(text, reports), reports)
    return found


@torch.inference_mode()
def embed_images(text: Any, pooled: np.ndarray, prepared: Prepared, rows: np.ndarray) -> Tensor:
    """Return unit vectors (N,D) of some images, from the mean of their patches (N,C).

    The models of open_clip, which pool in other ways, encode the images again.
    """
    if not isinstance(text, encoders.OpenClip):
        return text.cpu().embed_image(torch.from_numpy(pooled)).float()
    text, out = text.to(device()), []
    for start in range(0, len(rows), BATCH):
        x = text.normalise(
            np.stack([prepared.images[row] for row in rows[start : start + BATCH]])
        ).to(device())
        size = (text.input_size,) * 2
        x = torch.nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True)
        out.append(text.embed_image(x).float().cpu())
    return torch.cat(out)


@torch.inference_mode()
def embed_texts(text: Any, texts: list[str]) -> Tensor:
    """Return unit vectors (N,D) of some texts."""
    where = next(text.parameters()).device
    parts = [text.tokens(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    return torch.cat([text.embed_text(tokens.to(where)).float().cpu() for tokens in parts])


def zero_shot_scores(
    text: Any,
    images: Tensor,
    names: list[str],
    *,
    present: tuple[str, ...] = PRESENT,
    absent: tuple[str, ...] = ABSENT,
) -> NDArray[np.float32]:
    """Return scores (N,L): cosine to the prompts for presence minus cosine to those for absence.

    A class embedding is the normalised mean of its prompts' unit vectors (Radford et al. 2021).

    Args:
        images: Unit vectors (N,D).
        names: The L labels.
        present: Prompts for presence.
        absent: Prompts for absence.
    """
    classes = []
    for templates in (present, absent):
        prompts = [template.format(phrase(name)) for name in names for template in templates]
        mean = embed_texts(text, prompts).reshape(len(names), len(templates), -1).mean(1)  # (L,D)
        classes.append(torch.nn.functional.normalize(mean, dim=-1))
    return (images @ (classes[0] - classes[1]).T).numpy()


def ranks(
    images: Tensor, texts: Tensor, reports: list[str], block: int = 1024
) -> NDArray[np.float32]:
    """Return retrieval ranks (N,2), from 1: of an image's report, and of an image with its report.

    Column 0 is the rank of each image's report among all distinct reports. Column 1 is the rank of
    the best image that has this report, among all images. Equal reports count as one: finding any
    of their images is right. Equal cosines share the mean of their ranks, so that collapsed
    features find nothing.

    Args:
        images: Unit vectors (N,D) of the images.
        texts: Unit vectors (N,D) of their reports.
        reports: The N reports.
        block: Images compared at a time.
    """
    _, first, inverse = np.unique(reports, return_index=True, return_inverse=True)
    distinct, own = texts[first], torch.from_numpy(inverse)  # (R,D), (N,)
    out, best = np.empty((len(images), 2), dtype=np.float32), torch.empty(len(distinct))
    for start in range(0, len(images), block):
        cosine = images[start : start + block] @ distinct.T  # (B,R)
        target = cosine.gather(1, own[start : start + block, None])
        out[start : start + block, 0] = _rank(cosine, target)
    for start in range(0, len(distinct), block):
        cosine = distinct[start : start + block] @ images.T  # (B,N)
        matches = own[None] == torch.arange(start, start + len(cosine))[:, None]
        target = cosine.masked_fill(~matches, -torch.inf).amax(1, keepdim=True)
        # the other images of a report are no competitors: one found is enough
        others = cosine.masked_fill(matches, -torch.inf)
        best[start : start + block] = torch.from_numpy(_rank(others, target, itself=0))
    out[:, 1] = best[own].numpy()
    return out


def _rank(cosine: Tensor, target: Tensor, itself: int = 1) -> NDArray[np.float32]:
    """Return 1 + those above + half of the equal ones, of which ``itself`` are the target."""
    equal = (cosine == target).sum(1) - itself
    return (1 + (cosine > target).sum(1) + equal / 2).numpy().astype(np.float32)


def recall(
    found: NDArray[Any], groups: NDArray[Any], *, resamples: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Return metric rows of R@1, R@5 and R@10 with 95% patient-bootstrap intervals.

    The gallery stays the same in all resamples.

    Args:
        found: Ranks (N,2), as `ranks` returns them. Images with NaN (no report) are left out.
        groups: Patient (N,) of each image.
    """
    rows, known = [], ~np.isnan(found).any(axis=1)
    found, groups = found[known], np.asarray(groups)[known]
    patients = len(np.unique(groups))
    for k in AT if len(found) else ():
        hits = np.concatenate([found <= k, np.ones((len(found), 1))], axis=1)
        sums = resampled_sums(hits, groups=groups, resamples=resamples, seed=seed)
        low, high, _ = with_width(
            *interval(sums[:, :2] / sums[:, 2:]), hits[:, :2].mean(axis=0), patients
        )
        for j, name in enumerate(DIRECTIONS):
            ends = {"value": float(hits[:, j].mean()), "low": float(low[j]), "high": float(high[j])}
            row = {"task": "retrieval", "label": name, "metric": f"recall@{k}"} | ends
            counts = {"n": len(found), "positives": int(hits[:, j].sum()), "n_patients": patients}
            rows.append(row | counts)
    return rows
