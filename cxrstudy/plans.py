"""Plans: what a preset, or a variant of it, would run, kept as one JSON file each below the runs folder."""

import json
from pathlib import Path
from typing import Any

from cxrstudy import grid, study
from cxrstudy.files import write_changed


def plan_path(preset: str, variant: str = "") -> Path:
    """Where the plan of a preset, or of a variant of it, is kept."""
    return (
        study.runs_root()
        / preset
        / (f"plan-{study.digest(variant)}.json" if variant else "plan.json")
    )


def read_plan(preset: str, variant: str = "") -> list[dict[str, Any]]:
    """The planned runs (name, stage, parameters, needs); none where there is no plan that can be read."""
    plan = _read_plan(plan_path(preset, variant))
    return plan["runs"] if plan else []


def write_plan(path: Path, preset: str, runs: list[grid.Run], variant: str = "") -> Path:
    """Write a plan and return its path; untouched when it stands already."""
    content = {
        "preset": preset,
        "variant": variant,
        "runs": [
            {"name": r.name, "stage": r.stage, "parameters": r.parameters, "needs": r.needs}
            for r in runs
        ],
    }
    write_changed(path, json.dumps(content, indent=1))
    return path


def read_plans() -> list[dict[str, Any]]:
    """Every plan below the runs folder that can be read, presets as they are before their variants."""
    return [plan for plan in plans_by_path().values() if plan]


def plans_by_path(preset: str = "*") -> dict[Path, dict[str, Any] | None]:
    """The same by file, of one preset or of all, with None for one that cannot be read."""
    paths = sorted(
        study.runs_root().glob(f"{preset}/plan*.json"),
        key=lambda path: (path.parent, len(path.name), path.name),
    )
    return {path: _read_plan(path) for path in paths}


def _read_plan(path: Path) -> dict[str, Any] | None:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        return (
            plan
            if plan["preset"] and all(run["name"] and run["stage"] for run in plan["runs"])
            else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
