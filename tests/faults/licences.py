"""Print the licence of every installed package as a Markdown table, those with copyleft first.

    python tests/faults/licences.py

It is read from the packages' own metadata: the licence expression, else the classifiers, else the
licence field. "unstated" means that a package says nothing there; see its page in the registry.
"""

import re
from importlib.metadata import Distribution, distributions

COPYLEFT = re.compile(r"GPL|General Public|MPL|Mozilla|EPL|EUPL|CDDL|CC-BY-(?:SA|NC)", re.I)


def licence(package: Distribution) -> str:
    """Return the licence that a package states."""
    facts = package.metadata
    if stated := facts.get("License-Expression"):
        return stated
    named = [c.split("::")[-1].strip() for c in facts.get_all("Classifier") or [] if "License" in c]
    field = (facts.get("License") or "").strip().split("\n")[0][:60]
    return "; ".join(n for n in named if n != "OSI Approved") or field or "unstated"


def main() -> None:
    """Print the table."""
    rows = {(p.metadata["Name"], p.version, licence(p)) for p in distributions()}
    print("| package | version | licence |\n| --- | --- | --- |")
    for name, version, said in sorted(
        rows, key=lambda r: (not COPYLEFT.search(r[2]), r[0].lower())
    ):
        print(f"| {name} | {version} | {said} |")


if __name__ == "__main__":
    main()
