"""Whether encoders are on this machine, what images they take and whom they have seen, without loading any."""

import json
from collections.abc import Iterator
from pathlib import Path

from cxrstudy import study
from cxrstudy.evaluate import embeddings
from cxrstudy.preflight.asked import Asked, Keys, Problem

OURS = ("cnn_mini", "hybrid_mini", "davit_mini")  # as `encoders.SMALL`, whose import takes seconds


def folder_of(name: str) -> Path | None:
    """Return the encoder folder that a name is, or holds as a run's folder does; None where there is none."""
    path = study.resolve(name)
    return next(
        (place for place in (path / "encoder", path) if (place / "encoder.json").is_file()), None
    )


def absent(name: str) -> str:
    """Return why an encoder cannot be opened here, and the remedy; empty where it can.

    Args: ``name`` is an encoder folder, a table of embeddings, a name of published weights or one of timm's.
    """
    if folder := folder_of(name):
        lacking = [
            file for file in ("model.safetensors", "config.json") if not (folder / file).is_file()
        ]
        return (
            f"{folder} lacks {lacking[0]}: copy the whole folder, or make it again"
            if lacking
            else ""
        )
    path = study.resolve(name)
    if path.suffix.lower() in embeddings.TABLES:
        return embeddings.unreadable(path) or (
            "" if path.is_file() else f"no table of embeddings at {path}"
        )
    if name in ("pixels", "covariates") or name.partition(":")[0] in (
        "random",
        "supervised",
        "local-dir",
    ):
        return ""
    if name in OURS:
        return f"{name} is one of our small architectures and ships no weights; say random:{name}"
    import timm  # with weights, imports torch: for names that are no folder

    from cxrstudy import weights

    if name in weights.REGISTRY:
        try:
            weights.find(name)
        except OSError as error:
            return str(error)
        return ""
    if "/" in name and not name.startswith("hf-hub:"):
        return (
            f"no encoder at {path}: a folder of one holds encoder.json and model.safetensors "
            "(a pretrain run writes it)"
        )
    if name.startswith("hf-hub:") or timm.is_model(name):
        return ""  # fetched, or refused with the way to fetch it, when it is opened
    return (
        f"no encoder {name!r}: no folder, none of {', '.join(weights.REGISTRY)}, and none of timm's"
    )


def input_size(name: str) -> int:
    """Return the size in px that an encoder folder's images must have; 0 where it is not such a folder."""
    folder = folder_of(name)
    return (
        int(json.loads((folder / "encoder.json").read_text(encoding="utf-8"))["input_size"])
        if folder
        else 0
    )


def patients_of(name: str) -> set[str]:
    """Return the patients that an encoder folder lists as seen in its pretraining."""
    folder = folder_of(name)
    listed = folder / "patients.txt" if folder else None
    return (
        set(listed.read_text(encoding="utf-8").split("\n")) - {""}
        if listed and listed.is_file()
        else set()
    )


def unfit(name: str, size: int) -> str:
    """Return why an architecture cannot see the whole of an image of ``size`` px; empty where it can.

    Args: ``name`` is one of ours, of timm's or of published weights.
    """
    if name in OURS:
        cut = (
            name == "hybrid_mini" and 1 <= size % 8 <= 4
        )  # convolutions to an eighth, then patches of 2
        near = f"say size={size // 8 * 8} or size={(size // 8 + 1) * 8}"
        return (
            f"size={size}: the patches of hybrid_mini do not divide {size} px; {near}"
            if cut
            else ""
        )
    import torch

    from cxrstudy import encoders, weights

    try:
        with torch.device("meta"):  # no weights are made
            encoders.build_encoder(
                weights.REGISTRY[name].architecture if name in weights.REGISTRY else name, size
            )
    except ValueError as error:
        return str(error)
    return ""


# ---- checks ---------------------------------------------------------------------------------------------------------
def bases(c: Asked) -> Iterator[Problem]:
    """Encoders to start from are there, and see images of the size that the data is prepared at."""
    for name, values in c.preset.base.items():
        if list(values) == ["shipped"] and (why := absent(str(values["shipped"]))):
            yield c.error(f"base {name}: {why}", "base", name, "shipped")
        elif (
            list(values) != ["shipped"] and values.get("data") in c.held and not values.get("base")
        ):
            yield from _fits(
                c, str(values.get("encoder", "cnn_mini")), values["data"], ("base", name, "encoder")
            )
    for k, ladder in enumerate(c.preset.ladders):
        if ladder.data not in c.held or (ladder.base and ladder.base not in c.preset.base):
            continue  # `grid.plan` says so
        size, shipped = (
            c.held[ladder.data].p.size,
            c.preset.base.get(ladder.base, {}).get("shipped", ""),
        )
        own = input_size(shipped) if shipped else 0
        if own and own != size:
            yield c.error(
                f"base {ladder.base} sees images of {own} px, data {ladder.data} is prepared at {size} px: set its "
                f"size to {own}, or continue another base",
                *("data", ladder.data, "size"),
            )
        elif shipped and not own and not absent(shipped):
            yield from _fits(c, shipped, ladder.data, ("ladders", k, "base"))
        elif not ladder.base:
            name = (ladder.model_extra or {}).get("encoder", "cnn_mini")
            for each in name if isinstance(name, list) else [name]:
                yield from _fits(c, str(each), ladder.data, ("ladders", k, "encoder"))


def controls(c: Asked) -> Iterator[Problem]:
    """Baselines against labels, and their encoders against the images' size."""
    for k, control in enumerate(c.preset.controls):
        kind, _, inner = control.partition(":")
        for key in c.laddered:
            held = c.held[key]
            if kind in ("shuffled", "supervised") and held.manifest is not None and not held.labels:
                yield c.warning(
                    f"{control} needs labels, card {held.p.card} has none: it is not evaluated",
                    "controls",
                    k,
                )
            elif kind in ("random", "supervised") and not folder_of(inner):
                yield from _fits(c, inner, key, ("controls", k))
        if kind not in ("shuffled", "base") and (why := absent(control)):
            yield c.error(why, "controls", k)


def _fits(c: Asked, encoder: str, key: str, keys: Keys) -> Iterator[Problem]:
    """An architecture by name is known, and sees the whole of the images of a data set."""
    why = unfit(encoder, c.held[key].p.size)
    if why:
        yield c.error(why, *(("data", key, "size") if why.startswith("size=") else keys))


def leaks(c: Asked) -> Iterator[Problem]:
    """No patient who judges was in the pretraining of a base that ships, by the list beside it."""
    for k, ladder in enumerate(c.preset.ladders):
        held, shipped = c.held.get(ladder.data), c.preset.base.get(ladder.base, {}).get("shipped")
        if held is None or held.manifest is None or not shipped or "classify" not in c.stages:
            continue
        p, rows = c.stages["classify"], held.manifest
        rows = rows if c.folds else rows[rows["split"].isin([*p.train, *p.validation, *p.test])]
        shared = patients_of(shipped) & set(rows["patient_id"])
        if shared:
            yield c.error(
                f"{len(shared):,} patients of data {ladder.data} were in the pretraining of base {ladder.base} (first: "
                f"{min(shared)}), so they cannot judge it: start from another base, or leave them out by the card's "
                "query",
                *("ladders", k, "base"),
            )
