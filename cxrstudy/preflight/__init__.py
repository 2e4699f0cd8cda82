"""Check a preset before its first run: the card, the files, labels by split, curves against them.

Everything is checked that can be known without generating or opening an image. All faults are
listed at once, each with the file and line where it is mended. What is generated (the synthetic
institution) is not described, as that needs torch.
"""

from cxrstudy import grid, presetdata, study
from cxrstudy.preflight import estimates, labels, presence, steps
from cxrstudy.preflight.asked import Asked, Problem, valid
from cxrstudy.preflight.holdings import Tables, hold

__all__ = ["Problem", "Tables", "check"]

STEPS = (
    steps.parameters,
    steps.data,
    steps.splits,
    labels.labels,
    labels.unused,
    steps.curves,
    steps.downstream,
    presence.bases,
    presence.baselines,
    presence.leaks,
    steps.machine,
    estimates.reading,
    estimates.training,
)


def check(preset: grid.Preset, data_root: str = "", tables: Tables | None = None) -> list[Problem]:
    """Return what is wrong with a preset, or worth knowing: errors, then warnings, then notes.

    Args:
        data_root: folder of real data.
        tables: keeps the tables that were read, for the next call.
    """
    tables = {} if tables is None else tables
    data = {name: _entry(values, data_root) for name, values in preset.data.items()}
    asked = Asked(preset, {name: hold(p, tables) for name, p in data.items() if p})
    found = list(dict.fromkeys(problem for step in STEPS for problem in step(asked)))
    if not any(problem.level == "error" for problem in found):
        try:
            grid.expand(preset, data_root, must_read=True)
        except (ValueError, OSError) as error:
            found.append(Problem("error", asked.file, str(error)))
    return sorted(found, key=lambda problem: ("error", "warning", "note").index(problem.level))


def _entry(values: dict, data_root: str) -> study.Data | None:
    try:
        return valid(study.Data, presetdata.data_entry(values, data_root))
    except study.StudyError:  # of its card, which ``hold`` reports with the line
        return valid(study.Data, values)
