"""Print the length in words of sentences of book, notebooks, README, cards and docstrings.

    python tests/benchmarks/sentences.py [FILE ...]

Aim for prose pages: a mean of at most 20 words, at most 5% above 35. Code, tables, headings,
formulas and list markers are left out; a link counts by its text.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

LONG = 35
ABBREVIATIONS = re.compile(r"\b(e\.g|i\.e|et al|vs|approx|Fig|Sec|cf|no|resp)\.", re.IGNORECASE)


def prose(markdown: str) -> str:
    """Markdown without front matter, code, tables, headings, formulas, directives and markup."""
    text = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.S)
    text = re.sub(r"^(`{3,}|~{3,}).*?^\1\s*$", "\n", text, flags=re.S | re.M)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "x", text, flags=re.S)
    text = re.sub(r"^\s*(\||#|:::|\(.*\)=|<).*$", "\n", text, flags=re.M)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^\s*(?:[-*+]|\d+\.)\s+", "\n", text, flags=re.M)
    return re.sub(r"[*_`>]", "", text)


def sentences(text: str) -> Iterator[int]:
    """The number of words of each sentence; a paragraph or list item ends one."""
    for block in re.split(
        r"\n\s*\n", ABBREVIATIONS.sub(lambda found: found[0].replace(".", ""), text)
    ):
        for sentence in re.split(
            r"(?<=[.!?])[\"')\]]?\s+(?=[A-Z0-9\"'(])", " ".join(block.split())
        ):
            words = [word for word in sentence.split() if re.search(r"\w", word)]
            if len(words) > 2:
                yield len(words)


def texts(path: Path) -> str:
    """Return the prose of a file: Markdown, a notebook's Markdown cells, or docstrings of code."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return prose(source)
    if path.suffix == ".ipynb":
        cells = json.loads(source)["cells"]
        return "\n\n".join(
            prose("".join(cell["source"])) for cell in cells if cell["cell_type"] == "markdown"
        )
    kinds = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = [
        ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)
    ]
    return "\n\n".join(prose(text) for text in found if text)


def report(name: str, counts: list[int]) -> str:
    """One line: mean, share above LONG, number of sentences."""
    if not counts:
        return f"{name:<44} no sentence"
    share = sum(count > LONG for count in counts) / len(counts)
    mean = sum(counts) / len(counts)
    return f"{name:<44} mean {mean:5.1f}  above {LONG}: {share:5.1%}  of {len(counts)}"


def main(names: list[str]) -> None:
    """Print a line a file, or a line a group where no file is named."""
    if names:
        for name in names:
            print(report(name, list(sentences(texts(Path(name))))))
        return
    groups = {
        "README": ["README.md"],
        "cards": sorted(Path("data_cards").glob("*.md")),
        "book pages": [p for p in sorted(Path("book").glob("*")) if p.suffix in (".md", ".ipynb")],
        "notebooks": sorted(Path("notebooks").glob("*.ipynb")),
        "docstrings of the package": sorted(Path("cxrstudy").rglob("*.py")),
    }
    for group, paths in groups.items():
        print(report(group, [count for path in paths for count in sentences(texts(Path(path)))]))


if __name__ == "__main__":
    main(sys.argv[1:])
