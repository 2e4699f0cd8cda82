"""Data sets of a preset: which of them read files, from which folder, and what they contain."""

import os
from pathlib import Path
from typing import Any

from cxrstudy.presets import Preset
from cxrstudy.study import Data, StudyError, root


def reads_files(card: str) -> bool:
    """Return whether a card's data set consists of files, not of images generated here."""
    if card == "synthetic":
        return False
    from cxrstudy.data import cards  # imports pandas, which most calls do without

    try:
        described = cards.read_card(card)
    except (cards.CardError, OSError, UnicodeDecodeError) as error:
        raise StudyError(str(error)) from None
    return described.kind == "real" or described.table is not None


def with_needs_root(preset: Preset) -> Preset:
    """Return the preset with ``needs_root`` set if some card reads files in an unnamed folder."""
    needs = preset.needs_root or any(map(_needs_root, preset.data.values()))
    return preset.model_copy(update={"needs_root": needs})


def _needs_root(values: dict[str, Any]) -> bool:
    try:
        return not values.get("root") and reads_files(str(values.get("card") or "synthetic"))
    except StudyError:  # no such card: ``expand`` says so
        return True


def data_entry(values: dict[str, Any], data_root: str = "") -> dict[str, Any]:
    """Return an entry of a preset's ``data``; if it reads files, with their folder.

    All images of such a data set are taken unless ``n_images`` is given. A relative ``root`` of
    the entry is a folder below ``data_root`` if that is given, otherwise below the clone: a preset
    with several data sets so needs one DATA_ROOT.
    """
    if not reads_files(str(values.get("card") or "synthetic")):
        return {key: value for key, value in values.items() if key != "root"}
    folders = [Path(name).expanduser() for name in (data_root, values.get("root")) if name]
    place = os.path.abspath(root().joinpath(*folders)) if folders else ""
    return {"n_images": 0} | values | {"root": place}


def content(p: Data, where: str, must_read: bool) -> dict[str, str]:
    """Return what replaces card and folder in the name of a data run: a digest of the content.

    Data that are not on this machine can be planned for, but not under their final name.
    """
    if p.card == "synthetic":
        return {}
    from cxrstudy.data import cards, sets

    try:
        content = sets.content_digest(p.card, root=p.root, n_images=p.n_images, seed=p.seed)
        return {"card": cards.read_card(p.card).name, "root": content}
    except (ValueError, OSError) as error:
        if must_read:
            raise StudyError(f"{where}: {error}") from None
        return {}
