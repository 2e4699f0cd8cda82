"""The file of a run's parameters, in YAML 1.1, as papermill reads it.

As a program: ``python -m cxrstudy.parameterfile PLAN RUN`` prints the file of a run of a plan.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml


def to_yaml(values: dict[str, Any]) -> str:
    """Return YAML that papermill reads as the same values of the same types.

    JSON does not serve: YAML 1.1 reads its ``5e-06`` as text.
    """
    plain = json.loads(json.dumps(values))  # tuples as lists, and no aliases of repeated lists
    return yaml.safe_dump(plain, sort_keys=True, width=float("inf"))


def main() -> None:
    """Print the parameters of one run of a plan."""
    plan, name = sys.argv[1:]
    runs = json.loads(Path(plan).read_text(encoding="utf-8"))["runs"]
    sys.stdout.write(to_yaml(next(run["parameters"] for run in runs if run["name"] == name)))


if __name__ == "__main__":
    main()
