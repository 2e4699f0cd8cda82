"""Plans: the runs of a preset, or of a variant of it, in one JSON file below the runs folder."""

import json
from pathlib import Path
from typing import Any

from cxrstudy import grid, study
from cxrstudy.files import write_changed


def plan_path(preset: str, variant: str = "") -> Path:
    """Return the file of a preset's plan, or of that of a variant."""
    name = f"plan-{study.digest(variant)}.json" if variant else "plan.json"
    return study.runs_root() / preset / name


def read_plan(preset: str, variant: str = "") -> list[dict[str, Any]]:
    """Return the planned runs (name, stage, parameters, needs); none without a readable plan."""
    plan = _read_plan(plan_path(preset, variant))
    return plan["runs"] if plan else []


def write_plan(
    path: Path,
    preset: str,
    runs: list[grid.Run],
    variant: str = "",
    asked: dict[str, dict[str, int]] | None = None,
) -> Path:
    """Write a plan and return its path; an equal file keeps its time stamp.

    Args:
        asked: what each run asks of a cluster, by its name.
    """
    content = {
        "preset": preset,
        "variant": variant,
        "runs": [
            {
                "name": run.name,
                "stage": run.stage,
                "parameters": run.parameters,
                "needs": run.needs,
                **({"asks": asked[run.name]} if asked else {}),
            }
            for run in runs
        ],
    }
    write_changed(path, json.dumps(content, indent=1))
    return path


def read_plans() -> list[dict[str, Any]]:
    """Return every readable plan below the runs folder, presets before their variants."""
    return [plan for plan in plans_by_path().values() if plan]


def plans_by_path(preset: str = "*") -> dict[Path, dict[str, Any] | None]:
    """Return plans by file, of one preset or of all; None for one that cannot be read."""
    paths = study.runs_root().glob(f"{preset}/plan*.json")
    ordered = sorted(paths, key=lambda path: (path.parent, len(path.name), path.name))
    return {path: _read_plan(path) for path in ordered}


def _read_plan(path: Path) -> dict[str, Any] | None:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        complete = plan["preset"] and all(run["name"] and run["stage"] for run in plan["runs"])
        return plan if complete else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
