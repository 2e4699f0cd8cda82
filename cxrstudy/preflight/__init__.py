"""Check a preset before its first run: the card, the files, the labels by split, the grid against what is there.

Everything that can be known without drawing or opening an image is checked, and all faults are told at once, each with
the file and line where it is mended. What is drawn (the synthetic institution) is not described: that needs torch.
"""

from typing import Any

from cxrstudy import grid, study
from cxrstudy.preflight import presence, steps
from cxrstudy.preflight.asked import Asked, Problem, holds
from cxrstudy.preflight.holdings import Tables, hold

__all__ = ["Problem", "Tables", "check", "reads_files"]

STEPS = (
    steps.parameters,
    steps.data,
    steps.splits,
    steps.labels,
    steps.unused,
    steps.ladders,
    steps.families,
    presence.bases,
    presence.controls,
    presence.leaks,
    steps.machine,
)


def check(
    name: str,
    settings: dict[str, Any] | None = None,
    data_root: str = "",
    tables: Tables | None = None,
) -> list[Problem]:
    """Return what is wrong with a preset, or worth knowing, before it runs: errors, then warnings, then notes.

    Args: as ``grid.plan``; ``tables`` keeps what was read of a data set for the next call.
    """
    settings, tables = settings or {}, {} if tables is None else tables
    path = study.root() / "notebooks" / "presets" / f"{name}.yml"
    file = f"notebooks/presets/{name}.yml"
    try:
        preset = grid.override(grid.load_preset(name), settings)
    except (ValueError, OSError) as error:
        return [Problem("error", "", str(error))]
    data = {key: p for key, values in preset.data.items() if (p := _entry(values, data_root))}
    held = {key: hold(p, tables) for key, p in data.items()}
    asked = Asked(file, path.read_text(encoding="utf-8"), preset, settings, held)
    found = list(dict.fromkeys(problem for step in STEPS for problem in step(asked)))
    if not any(problem.level == "error" for problem in found):
        try:
            grid.plan(name, settings, data_root, must_read=True)
        except (ValueError, OSError) as error:
            found.append(Problem("error", file, str(error)))
    return sorted(found, key=lambda problem: ("error", "warning", "note").index(problem.level))


def _entry(values: dict[str, Any], data_root: str) -> study.Data | None:
    try:
        return holds(study.Data, grid.data_entry(values, data_root))
    except study.StudyError:  # of its card, which ``hold`` tells with the line
        return holds(study.Data, values)


def reads_files(preset: grid.Preset) -> bool:
    """Whether some data set of a preset lies in a folder that must be named, as ``--data-root`` does."""
    return preset.needs_root or any(
        values.get("card", "synthetic") != "synthetic" for values in preset.data.values()
    )
