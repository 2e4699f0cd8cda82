"""Whether encoders are here, which image size they take, which patients they were trained on."""

import json
from collections.abc import Iterator
from pathlib import Path

from cxrstudy import study
from cxrstudy.evaluate import embeddings
from cxrstudy.preflight.asked import Asked, Keys, Problem
from cxrstudy.presets import Curve

# as `encoders.SMALL`, whose import takes seconds
OURS = ("cnn_mini", "hybrid_mini", "vit_mini", "davit_mini")


def folder_of(name: str) -> Path | None:
    """Return the encoder folder of a name: the folder itself, or the encoder of a run's folder."""
    path = study.resolve(name)
    each = (path / "encoder", path)
    return next((place for place in each if (place / "encoder.json").is_file()), None)


def absent(name: str) -> str:
    """Return why an encoder cannot be opened here, and the remedy; empty if it can.

    Args:
        name: encoder folder, table of embeddings, name of published weights or timm name.
    """
    if folder := folder_of(name):
        files = ("model.safetensors", "config.json")
        missing = [file for file in files if not (folder / file).is_file()]
        return f"{folder} lacks {missing[0]}: copy the whole folder again" if missing else ""
    path = study.resolve(name)
    if path.suffix.lower() in embeddings.TABLES:
        why = "" if path.is_file() else f"no table of embeddings at {path}"
        return embeddings.unreadable(path) or why
    kind = name.partition(":")[0]
    if name in ("pixels", "covariates") or kind in ("random", "supervised", "local-dir"):
        return ""
    if name in OURS:
        return f"{name} is one of our small architectures and has no weights; say random:{name}"
    import timm  # with weights, imports torch: for names that are no folder

    from cxrstudy import weights

    if name in weights.REGISTRY:
        try:
            weights.find(name)
        except OSError as error:
            return str(error)
        return ""
    is_hub = name.startswith("hf-hub:")
    if "/" in name and not is_hub:
        return (
            f"no encoder at {path}: an encoder's folder holds encoder.json and model.safetensors "
            "(a pretrain run writes it)"
        )
    if is_hub or timm.is_model(name):
        return ""  # fetched, or refused with the way to fetch it, when it is opened
    known = ", ".join(weights.REGISTRY)
    return f"no encoder {name!r}: no folder, none of {known}, and none of timm's"


def input_size(name: str) -> int:
    """Return the image size in px of an encoder folder; 0 if it is not such a folder."""
    folder = folder_of(name)
    if not folder:
        return 0
    return int(json.loads((folder / "encoder.json").read_text(encoding="utf-8"))["input_size"])


def patients_of(name: str) -> set[str]:
    """Return the patients that an encoder folder lists as used in its pretraining."""
    folder = folder_of(name)
    listed = folder / "patients.txt" if folder else None
    if not listed or not listed.is_file():
        return set()
    return set(listed.read_text(encoding="utf-8").split("\n")) - {""}


def unfit(name: str, size: int) -> str:
    """Return why an architecture does not cover an image of ``size`` px; empty if it does.

    Args:
        name: an architecture of ours or of timm, or a name of published weights.
    """
    if name in OURS:  # hybrid_mini: convolutions to an eighth, then patches of 2
        cut = {"hybrid_mini": 1 <= size % 8 <= 4, "vit_mini": size % 8 > 0}
        if not cut.get(name):
            return ""
        near = f"say size={size // 8 * 8} or size={(size // 8 + 1) * 8}"
        return f"size={size}: the patches of {name} do not divide {size} px; {near}"
    import torch

    from cxrstudy import encoders, weights

    architecture = weights.REGISTRY[name].architecture if name in weights.REGISTRY else name
    try:
        with torch.device("meta"):  # no weights are made
            encoders.build_encoder(architecture, size)
    except ValueError as error:
        return str(error)
    return ""


# ---- checks -----------------------------------------------------------------------------------
def bases(c: Asked) -> Iterator[Problem]:
    """Check that base models are here and take images of the size of the data."""
    for name, values in c.preset.base.items():
        if list(values) == ["checkpoint"]:
            if why := absent(str(values["checkpoint"])):
                yield c.error(f"base {name}: {why}", "base", name, "checkpoint")
        elif values.get("data") in c.held and not values.get("base"):
            encoder = str(values.get("encoder", "cnn_mini"))
            yield from _fits(c, encoder, values["data"], ("base", name, "encoder"))
    for k, curve in enumerate(c.preset.curves):
        if curve.data in c.held and (not curve.base or curve.base in c.preset.base):
            yield from _base_of_curve(c, k, curve)  # else `grid.expand` says so


def _base_of_curve(c: Asked, k: int, curve: Curve) -> Iterator[Problem]:
    size = c.held[curve.data].p.size
    checkpoint = c.preset.base.get(curve.base, {}).get("checkpoint", "")
    own = input_size(checkpoint) if checkpoint else 0
    if own and own != size:
        yield c.error(
            f"base {curve.base} takes images of {own} px, data {curve.data} is prepared at {size} "
            f"px: set its size to {own}, or continue another base",
            *("data", curve.data, "size"),
        )
    elif checkpoint and not own and not absent(checkpoint):
        yield from _fits(c, checkpoint, curve.data, ("curves", k, "base"))
    elif not curve.base:
        names = curve.values.get("encoder", "cnn_mini")
        for name in names if isinstance(names, list) else [names]:
            yield from _fits(c, str(name), curve.data, ("curves", k, "encoder"))


def baselines(c: Asked) -> Iterator[Problem]:
    """Check baselines against the data's labels and the images' size."""
    for k, baseline in enumerate(c.preset.baselines):
        kind, _, inner = baseline.partition(":")
        for key in c.evaluated_on:
            held = c.held[key]
            if kind in ("shuffled", "supervised") and held.manifest is not None and not held.labels:
                text = f"{baseline} needs labels, card {held.p.card} has none: it is not evaluated"
                yield c.warning(text, "baselines", k)
            elif kind in ("random", "supervised") and not folder_of(inner):
                yield from _fits(c, inner, key, ("baselines", k))
        if kind not in ("shuffled", "base") and (why := absent(baseline)):
            yield c.error(why, "baselines", k)


def _fits(c: Asked, encoder: str, key: str, keys: Keys) -> Iterator[Problem]:
    """Check that an architecture is known and covers the images of a data set."""
    why = unfit(encoder, c.held[key].p.size)
    if why:
        yield c.error(why, *(("data", key, "size") if why.startswith("size=") else keys))


def leaks(c: Asked) -> Iterator[Problem]:
    """Refuse a checkpoint that was trained on patients of this evaluation, by its list."""
    for k, curve in enumerate(c.preset.curves):
        held = c.held.get(curve.evaluated)
        checkpoint = c.preset.base.get(curve.base, {}).get("checkpoint")
        if held is None or held.manifest is None or not checkpoint or "classify" not in c.stages:
            continue
        p, rows = c.stages["classify"], held.manifest
        rows = rows if c.folds else rows[rows["split"].isin([*p.train, *p.validation, *p.test])]
        shared = patients_of(checkpoint) & set(rows["patient_id"])
        if shared:
            yield c.error(
                f"{len(shared):,} patients of data {curve.evaluated} were in the pretraining of "
                f"base {curve.base} (first: {min(shared)}), so they cannot evaluate it: start from "
                "another base, or leave them out by the card's query",
                *("curves", k, "base"),
            )
