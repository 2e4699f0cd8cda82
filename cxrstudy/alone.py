"""How to repeat one run alone: the commands that write its parameters and run its notebooks."""

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd

from cxrstudy import parameterfile, recorded, study
from cxrstudy.plans import read_plans


def commands(name: str, preset: str = "") -> list[str]:
    """Return the commands that repeat a run, to be typed in the clone one after the other.

    For each run that it needs, and then for the run itself, one command writes the parameters to
    a file and one runs the notebook. A run that is finished here need not be repeated.

    Raises:
        StudyError: no plan and no recorded study has a run of that name.
    """
    found = _find(name, preset)
    lines: dict[str, None] = {}
    for need in _needs(found["parameters"]):
        lines |= dict.fromkeys(commands(need, found["preset"]))
    stage, of = found["stage"], f" --preset {found['preset']}"
    root = ' -p root "$DATA_ROOT"' if found["parameters"].get("root") else ""
    lines[f"cxrstudy runs{of} --parameters {name} > {name}.yml"] = None
    lines[f"papermill notebooks/{stage}.ipynb {name}.ipynb -f {name}.yml{root}"] = None
    return list(lines)


def parameters(name: str, preset: str = "") -> str:
    """Return the parameters of a run as YAML, as papermill reads it."""
    return parameterfile.to_yaml(_find(name, preset)["parameters"])


def _needs(values: dict[str, Any]) -> list[str]:
    """Return the runs whose folders some parameters name."""
    named = [value for key, value in values.items() if key != "out"]
    each = [item for value in named for item in (value if isinstance(value, list) else [value])]
    folders = [str(item).split("/") for item in each if str(item).startswith("runs/")]
    return [parts[3] for parts in folders if len(parts) == 4]  # runs/PRESET/STAGE/RUN


def _find(name: str, preset: str) -> dict[str, Any]:
    for run in _all_runs(preset):
        if run["name"] == name:
            return run
    where = f" of preset {preset}" if preset else ""
    raise study.StudyError(f"no run {name!r}{where} is planned here or recorded: see cxrstudy runs")


def _all_runs(preset: str) -> Iterator[dict[str, Any]]:
    """Yield name, stage, preset and parameters of planned runs, then of recorded ones."""
    for plan in read_plans():
        if preset in ("", plan["preset"]):
            yield from ({"preset": plan["preset"], **run} for run in plan["runs"])
    for path in sorted(recorded.place("").glob(f"{preset or '*'}/runs.csv")):
        table = pd.read_csv(path, usecols=["run", "stage", "parameters"], keep_default_na=False)
        for row in table.itertuples(index=False):
            values = json.loads(row.parameters)
            own = {"name": row.run, "stage": row.stage, "parameters": values}
            yield {"preset": path.parent.name, **own}
