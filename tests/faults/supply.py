"""What is known of the packages of `requirements.lock`: their licences, and their faults.

    python tests/faults/supply.py licences    # writes the table in SECURITY.md
    python tests/faults/supply.py audit       # 1 if a fault is known, 2 if nothing could be checked

A licence is read from a package's own metadata where it is installed, else from the registry. Known
faults are what the registry's JSON says of a version. Some registries answer for the newest version
only; then nothing is known of an older one, and `audit` names it.
"""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

ROOT = Path(__file__).parents[2]
LOCK, PAGE = ROOT / "requirements.lock", ROOT / "SECURITY.md"
REGISTRY = "https://pypi.org/pypi"
TABLE = re.compile(r"(?<=<!-- licences -->\n).*?(?=<!-- end -->)", re.DOTALL)
UNSTATED = "not stated"
FLAGS = {  # what a row of the table is marked with
    "unknown": UNSTATED,
    "proprietary": r"Proprietary",
    "copyleft": r"GPL|General Public|MPL|Mozilla|EPL|EUPL|CDDL|CC-BY-(?:SA|NC)",
}
ONE_NAME = {  # the ways in which packages write one licence
    r"(The )?MIT( License)?": "MIT",
    r"Apache( Software)?( License)?(, Version)?[ -]?(2\.0)?( License)?": "Apache-2.0",
    r"BSD( License)?": "BSD",
    r"Mozilla Public License 2.0 \(MPL 2.0\)": "MPL-2.0",
    r"ISC( License \(ISCL\))?": "ISC",
    r"Python Software Foundation License": "PSF-2.0",
    r".*Proprietary.*": "Proprietary (NVIDIA)",
    r"UNKNOWN|": UNSTATED,
}


def pins(lock: Path = LOCK) -> list[tuple[str, str]]:
    """Return name and version of every package of a lock."""
    return re.findall(r"^([\w.-]+)==([\w.+!]+)", lock.read_text(), re.MULTILINE)


def normal(name: str) -> str:
    """Return a package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def asked(name: str, version: str) -> dict[str, Any]:
    """Return the registry's JSON of a version; of the newest one where it has no other."""
    try:
        with urlopen(f"{REGISTRY}/{name}/{version}/json", timeout=60) as answer:
            return json.load(answer)
    except HTTPError:
        with urlopen(f"{REGISTRY}/{name}/json", timeout=60) as answer:
            return json.load(answer)


# ---- licences ------------------------------------------------------------------------------------
def licence(name: str, version: str) -> str:
    """Return the licence that a package states, or that its licence file is recognised as."""
    try:
        package = distribution(name)
    except PackageNotFoundError:
        package = None
    if package is None or package.version != version:
        facts = asked(name, version)["info"]
        stated, field = facts.get("license_expression"), facts.get("license")
        classifiers, texts = facts.get("classifiers") or [], []
    else:
        stated, field = (package.metadata.get(k) for k in ("License-Expression", "License"))
        classifiers = package.metadata.get_all("Classifier") or []
        files = package.files or []
        texts = [f for f in files if re.search(r"dist-info/.*LICEN[CS]E", str(f))]
    named = [c.split("::")[-1].strip() for c in classifiers if c.startswith("License")]
    said = stated or "; ".join(n for n in named if n != "OSI Approved")
    said = one_name(said or (field or "").strip().split("\n")[0][:60])
    if said == UNSTATED and any(
        "Permission is hereby granted, free" in t.read_text() for t in texts
    ):
        return "MIT"
    return said


def one_name(said: str) -> str:
    """Return the one name of a licence that packages write in several ways."""
    return next((name for how, name in ONE_NAME.items() if re.fullmatch(how, said)), said)


def flag(said: str) -> str:
    """Return why a reader must look at a licence, a key of ``FLAGS``; empty if no reason."""
    return next((name for name, how in FLAGS.items() if re.search(how, said)), "")


def table(licences: dict[str, str]) -> str:
    """Return the Markdown table of packages by licence, flagged ones first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, said in licences.items():
        groups[said].append(name)
    order = sorted(groups, key=lambda said: (not flag(said), flag(said), -len(groups[said]), said))
    rows = [
        f"| {said} | {flag(said)} | {len(groups[said])} | {', '.join(sorted(groups[said]))} |"
        for said in order
    ]
    return "\n".join(
        ["| licence | look at | packages | which |", "| --- | --- | --- | --- |", *rows]
    )


def write_licences() -> int:
    """Write the table of licences into SECURITY.md."""
    found = {normal(name): licence(name, version) for name, version in pins()}
    PAGE.write_text(TABLE.sub(lambda _: table(found) + "\n", PAGE.read_text()))
    flagged = sum(bool(flag(said)) for said in found.values())
    print(f"{len(found)} packages, {flagged} flagged: see {PAGE}")
    return 0


# ---- known faults --------------------------------------------------------------------------------
def audit(ask: Callable[[str, str], dict[str, Any]] = asked, lock: Path = LOCK) -> int:
    """Print known vulnerabilities and withdrawn releases of the lock, and what was not checked.

    Returns:
        1 if there are any, 2 if no package could be checked, else 0.
    """
    packages = pins(lock)

    def answer(package: tuple[str, str]) -> dict[str, Any] | str:
        try:
            return ask(*package)
        except OSError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(answer, packages))
    faults, other, silent = [], [], []
    for (name, version), facts in zip(packages, answers, strict=True):
        if isinstance(facts, str):
            silent.append(f"{name} ({facts})")
            continue
        files = facts.get("releases", {}).get(version) or facts.get("urls", [])
        if facts["info"]["version"] == version:
            faults += [
                f"{name} {version}: {known['id']} {known.get('link') or ''}, "
                f"fixed in {known.get('fixed_in') or 'no version'}"
                for known in facts["vulnerabilities"]
                if not known.get("withdrawn")
            ]
        else:
            other.append(f"{name} {version}")
            files = facts.get("releases", {}).get(version, [])
        faults += [f"{name} {version}: withdrawn from the registry"] * any(
            file["yanked"] for file in files
        )
    checked = len(packages) - len(other) - len(silent)
    print("\n".join(faults) or "no known vulnerability, no withdrawn release")
    print(f"{checked} of {len(packages)} locked versions checked for vulnerabilities")
    if other:
        print(f"{len(other)} not checked: the registry knows the newest version's only:")
        print("  " + ", ".join(other))
    if silent:
        print(f"{len(silent)} not checked: no answer: " + ", ".join(silent))
    return 1 if faults else 2 if not checked else 0


if __name__ == "__main__":
    sys.exit({"licences": write_licences, "audit": audit}[sys.argv[1]]())
