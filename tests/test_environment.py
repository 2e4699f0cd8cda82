import re
import tomllib

import yaml
from conftest import ROOT
from packaging.requirements import Requirement

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [
    Requirement(line.removesuffix("\\"))
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if line and line[0] not in "# "
]


def test_the_lock_serves_every_dependency_exactly_on_each_python() -> None:
    asked = [
        Requirement(text)
        for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    ]
    for python in ("3.11", "3.12", "3.13"):
        where = {
            "python_version": python,
            "python_full_version": f"{python}.1",
            "sys_platform": "linux",
        }
        locked = {
            canonical(r.name): r for r in LOCK if r.marker is None or r.marker.evaluate(where)
        }
        for need in asked:
            pin = locked[canonical(need.name)]
            version = re.fullmatch(r"==([\w.+]+)", str(pin.specifier))
            assert version, f"{pin} is not exact"
            assert need.specifier.contains(version[1]), f"{pin} does not meet {need}"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_conda_users_get_the_same_lock() -> None:
    wanted = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in wanted if isinstance(entry, dict))
    assert pip == ["-r requirements.lock", "-e ."]
    assert f"python{PROJECT['requires-python']}" in wanted


def test_nothing_but_what_the_user_fixed_lies_at_the_top() -> None:
    import subprocess

    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    if not tracked:
        return
    fixed = {"book", "notebooks", "cxrstudy", "data_cards", "environment.yml", "tests", "README.md"}
    tools = {
        "pyproject.toml",
        "requirements.lock",
        "LICENSE",
        "CITATION.cff",
        "SECURITY.md",
        "Makefile",
        ".ci",
        ".gitignore",
    }
    assert {path.split("/")[0] for path in tracked} <= fixed | tools
