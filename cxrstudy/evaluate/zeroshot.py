"""What an encoder with a text tower knows without any labelled patient: labels by prompts, reports by images."""

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

# Said of a label that is there and of one that is not; the first is the manner of MedImageInsight's prompts, the others
# are a report's. The two sides correspond, so that what they say beside the label cancels.
PRESENT = ("x-ray chest {}", "{} is present.", "There is {}.", "Findings consistent with {}.")
ABSENT = ("x-ray chest no {}", "{} is absent.", "There is no {}.", "No evidence of {}.")
AT = (1, 5, 10)  # R@k
DIRECTIONS = ("image_to_text", "text_to_image")


def text_side(name: str, encoder: Any) -> Any:
    """The text side of a value of the parameter ``encoder``: ``tokens``, ``embed_text``, ``embed_image``; None where
    it has none."""
    folder = encoders.encoder_folder(study.resolve(name))
    text: Any
    if folder is not None:
        text = encoders.load_text(folder, encoder.channels)
    elif name in weights.REGISTRY and weights.REGISTRY[name].text:
        text = encoders.load_pretrained(name, size=encoder.input_size).text
    else:
        text = encoder if isinstance(encoder, encoders.OpenClip) else None
    return None if text is None else text.eval().requires_grad_(False)


def look(
    text: Any,
    pooled: np.ndarray,
    prepared: Prepared,
    test: pd.DataFrame,
    names: list[str],
    tasks: Sequence[str],
) -> dict[str, NDArray[np.float32]]:
    """What is asked for in ``tasks`` of the ``test`` rows, whose ``pooled`` features (N,C) are given: ``shots`` (N,L),
    the ``label_scores`` of ``names``, and ``ranks`` (N,2) among the rows that have a report, NaN for the rest.

    The gallery is ``test`` as it is given: in cross-fitting that of one fold, so fewer folds make it larger.
    """
    images = embed_images(text, pooled, prepared, test["row"].to_numpy())
    found = {"shots": label_scores(text, images, names)} if "zero_shot" in tasks and names else {}
    if "retrieval" in tasks:
        reports = test["report"].fillna("").tolist() if "report" in test else [""] * len(test)
        told = [k for k, report in enumerate(reports) if report.strip()]
        found["ranks"] = np.full((len(test), 2), np.nan, np.float32)
        if told:
            reports = [reports[k] for k in told]
            found["ranks"][told] = ranks(images[told], embed_texts(text, reports), reports)
    return found


@torch.inference_mode()
def embed_images(text: Any, pooled: np.ndarray, prepared: Prepared, rows: np.ndarray) -> Tensor:
    """Unit rows (N,D) of some images: from their ``pooled`` features (N,C), the mean of the patches; open_clip's
    models, which pool each their own way, look at the images again."""
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
    """Unit rows (N,D) of some texts."""
    where = next(text.parameters()).device
    parts = [text.tokens(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    return torch.cat([text.embed_text(tokens.to(where)).float().cpu() for tokens in parts])


def label_scores(
    text: Any,
    images: Tensor,
    names: list[str],
    *,
    present: tuple[str, ...] = PRESENT,
    absent: tuple[str, ...] = ABSENT,
) -> NDArray[np.float32]:
    """(N,L): how much nearer unit rows ``images`` (N,D) lie to what is said of a label that is there than of one that
    is not, cosine minus cosine. A side is the direction of the mean of its prompts' unit rows (Radford et al. 2021).
    """
    sides = []
    for templates in (present, absent):
        said = [template.format(phrase(name)) for name in names for template in templates]
        mean = embed_texts(text, said).reshape(len(names), len(templates), -1).mean(1)
        sides.append(torch.nn.functional.normalize(mean, dim=-1))
    return (images @ (sides[0] - sides[1]).T).numpy()


def ranks(
    images: Tensor, texts: Tensor, reports: list[str], block: int = 1024
) -> NDArray[np.float32]:
    """(N,2): the rank, from 1, of each image's report among all distinct reports, and of the best image that bears an
    image's report among all images, by cosine of unit rows (N,D).

    Images whose reports are equal, word by word, share one: finding any is right. Those that score alike share the mean
    of their ranks, so that features that have fallen together find nothing.
    """
    _, first, own = np.unique(reports, return_index=True, return_inverse=True)
    distinct, place = texts[first], torch.from_numpy(own)
    out = np.empty((len(images), 2), dtype=np.float32)
    best = torch.empty(len(distinct))
    for start in range(0, len(images), block):
        near = images[start : start + block] @ distinct.T
        out[start : start + block, 0] = _rank(
            near, near.gather(1, place[start : start + block, None])
        )
    for start in range(0, len(distinct), block):
        near = distinct[start : start + block] @ images.T
        theirs = place[None] == torch.arange(start, start + len(near))[:, None]
        top = near.masked_fill(~theirs, -torch.inf).amax(1, keepdim=True)
        # its other images are no rivals: that one of them is found is enough
        best[start : start + block] = torch.from_numpy(
            _rank(near.masked_fill(theirs, -torch.inf), top, own=0)
        )
    out[:, 1] = best[place].numpy()
    return out


def _rank(near: Tensor, target: Tensor, own: int = 1) -> NDArray[np.float32]:
    """1 + those above + half of those alike; ``own``: how many of the alike are the target itself."""
    return (
        (1 + (near > target).sum(1) + ((near == target).sum(1) - own) / 2)
        .numpy()
        .astype(np.float32)
    )


def recall(
    found: NDArray[Any], groups: NDArray[Any], *, resamples: int, seed: int = 0
) -> list[dict[str, Any]]:
    """R@1, R@5 and R@10 of ``ranks`` (N,2) with 95% intervals over patients (``groups``): metric rows of the task
    ``retrieval``, the gallery (in cross-fitting: each fold's) as it is. NaN, no report: left out; n counts the rest."""
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
            rows.append(
                row | {"n": len(found), "positives": int(hits[:, j].sum()), "n_patients": patients}
            )
    return rows
