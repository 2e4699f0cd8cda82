"""Assemble and build the book: pages run by papermill under Snakemake, run notebooks as they are.

The source is gathered in ``_build/src`` (only what changed is rewritten, so that Sphinx rebuilds
only that) and built by Jupyter Book into ``_build/html``. Nothing is fetched from a network.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from cxrstudy import bookpages, recorded, sources, study
from cxrstudy import pdf as printer
from cxrstudy.files import write_changed, write_text

OF_ALL = ("findings", "tubes", "segmentation", "reports", "laws", "claims", "discussion", "explore")

BUNDLES = (  # package, file, name in assets
    ("sphinx-mathjax-offline", "tex-svg.js", "mathjax/tex-svg.js"),
    ("plotly", "plotly.min.js", "plotly.min.js"),
)


class BuildError(RuntimeError):
    """A page could not be run, or the book not be built; the message says why."""


def build(out: str | Path = "", *, pdf: bool = False, cores: int = 0) -> int:
    """Build the book into ``out`` (default ``_build`` in the clone).

    Args:
        out: folder of sources, logs and pages.
        pdf: print the chapters to ``book.pdf`` there too.
        cores: pages that run at a time; 0 = as many as there are cores.

    Returns:
        0 when the book is built, 1 when a page or the build failed (said on stderr).
    """
    if pdf:
        printer.browser()  # fails here without one, not after minutes of building
    top = Path(out).expanduser().resolve() if str(out) else study.root() / "_build"
    for name, fault in sources.left_out().items():
        said = " ".join(fault.split())
        print(f"left out of the book: {recorded.name_of(name)}: {said}", file=sys.stderr)
    html = top / "_build" / "html"
    before = (top / "built").stat().st_mtime_ns if (top / "built").is_file() else 0
    n = len(sources.every())
    print(f"building the book from {n} preset{'s' * (n != 1)}; a minute or two", flush=True)
    try:
        run_snakemake(top, assemble(top), cores or os.cpu_count() or 1)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    same = before == (top / "built").stat().st_mtime_ns
    print(f"the book{' is up to date' if same else ''}: {html / 'index.html'}")
    if pdf:
        path = printer.print_book(html, top / "src" / "_toc.yml", top / "book.pdf")
        print(f"its chapters on paper: {path}")
    return 0


def assemble(top: Path) -> dict[str, Any]:
    """Gather in ``top/src`` what is not run: static files, run notebooks, written pages, contents.

    Returns:
        The plan that book/Snakefile reads.
    """
    book, source = study.root() / "book", top / "src"
    pages = page_plan(top)
    frame = [_copy(path, source / path.relative_to(book)) for path in _static(book)]
    frame += [_copy(path, source / "assets" / name) for path, name in _bundles()]
    keep = set(frame)
    toc = yaml.safe_load((book / "_toc.yml").read_text(encoding="utf-8"))
    chapters = {part["caption"]: part["chapters"] for part in toc["parts"]}
    for name in reversed(sources.studies()):
        part = "The results" if name.startswith(recorded.RECORDED) else "This machine"
        chapters[part].insert(0, {"file": page_of(name)})
    about = [yaml.safe_dump(toc), *(_facts(path) for path in frame if path.suffix != ".md")]
    entry = next(c for c in chapters["This machine"] if c["file"] == "runs")
    notebooks, text = bookpages.runs()
    for page, path, title in notebooks:
        keep.add(_copy(path, source / f"{page}.ipynb"))
        entry.setdefault("sections", []).append({"file": page, "title": title})
    written = {
        "runs.md": text,
        "recorded.md": bookpages.measurements(book / "recorded"),
        "cards.md": bookpages.data_cards(study.root() / "data_cards"),
        "_toc.yml": yaml.safe_dump(toc, sort_keys=False),
    }
    for name, content in written.items():
        write_changed(source / name, content)
        keep.add(source / name)
    every, explored = sources.every(), [source / "assets" / name for name in sources.EXPLORED]
    made = {source / f"{name}.ipynb" for name in pages} | set(explored)
    for path in source.rglob("*"):  # pages of runs that are gone
        if path.is_file() and path not in keep | made and "__pycache__" not in path.parts:
            path.unlink()
    return {
        "root": str(study.root()),
        "code": sorted(str(path) for path in Path(__file__).parent.glob("*.py")),
        "pages": pages,
        "explored": {
            "files": [str(path.relative_to(top)) for path in explored],
            "studies": every,
            "reads": sorted({str(path) for name in every for path in sources.files(name)}),
        },
        "sources": sorted(str(path) for path in keep),
        "frame": study.digest(about, 16),
    }


def _facts(path: Path) -> str:
    facts = path.stat()
    return f"{path.name} {facts.st_mtime_ns} {facts.st_size}"


def page_plan(top: Path) -> dict[str, dict[str, Any]]:
    """Return every page that is a notebook: its template, parameters and the files it reads."""
    studies, own = sources.studies(), sources.presets_run() or [sources.blank()]
    book = study.root() / "book"
    always = [*(study.root() / "data_cards").glob("*.md")]
    always += [*(study.root() / "notebooks" / "presets").glob("*.yml")]

    def page(template: str, parameters: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
        reads = [*always, *(path for name in names for path in sources.files(name))]
        return {
            "template": str(book / f"{template}.ipynb"),
            "parameters": parameters,
            "reads": sorted({str(path) for path in reads}),
        }

    pages = {name: page(name, {"presets": studies}, studies) for name in ("index", *OF_ALL)}
    pages["data"] = page("data", {"presets": own}, studies)
    pages["gallery"] = page("gallery", {"presets": own}, [])
    pages["sensitivity"] = page(
        "sensitivity", {}, [f"{recorded.RECORDED}{sources.SENSITIVITY}", *studies]
    )
    pages["objectives"] = page("objectives", {}, [])
    pages["learning"] = page("learning", {}, [f"{recorded.RECORDED}terms"])
    pages["atlas"] = page("atlas", {}, [])
    pages["atlas"]["reads"] += map(str, (study.root() / "atlas").glob("*.csv"))
    pages["quality"] = page("quality", {}, [])
    pages["quality"]["reads"] += map(str, sources.ingests())
    pages["planner"] = page("planner", {"preset": studies[0]}, studies[:1])
    for name in studies:
        titled = (book / "results.ipynb").read_text(encoding="utf-8")
        titled = titled.replace("Results: PRESET", f"Results: {recorded.name_of(name)}")
        write_changed(top / "templates" / f"{page_of(name)}.ipynb", titled)
        pages[page_of(name)] = page("results", {"preset": name}, [name])
        pages[page_of(name)]["template"] = str(top / "templates" / f"{page_of(name)}.ipynb")
    return pages


def page_of(source: str) -> str:
    """Return the name of a source's page of results."""
    return f"results-{source.replace(':', '-')}"


def run_snakemake(top: Path, plan: dict[str, Any], cores: int) -> None:
    """Run the pages and the build that are older than what they read, as Snakemake sees it.

    Raises:
        BuildError: a page or the book could not be made; the message has the end of its log.
    """
    write_changed(top / "pages.json", json.dumps(plan, indent=1))
    command = [sys.executable, "-m", "snakemake", "-s", str(study.root() / "book" / "Snakefile")]
    command += [
        "--directory",
        str(top),
        "--config",
        "plan=pages.json",
        "--nolock",
        "--keep-going",
        "--rerun-incomplete",
    ]
    command += ["--cores", str(cores), "--rerun-triggers", "mtime", "params", "input"]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    places = {"CXRSTUDY_ROOT": str(study.root()), "CXRSTUDY_RUNS": str(study.runs_root())}
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | threads | places, check=False
    )
    text = done.stdout + done.stderr
    write_text(top / "pages.log", text)
    if not done.returncode:
        return
    faults = text.partition("Error in rule")[2]
    failed = re.findall(r"^    output: src/(.+)\.ipynb$", faults, re.M)
    failed += ["explored"] if f"output: src/assets/{sources.EXPLORED[0]}" in faults else []
    if failed:
        logs = [top / "pages" / f"{name}.log" for name in dict.fromkeys(failed)]
        ends = [path.read_text(errors="replace")[-1500:] for path in logs if path.is_file()]
        raise BuildError("\n".join([f"a page could not be computed: {', '.join(failed)}", *ends]))
    log = top / "build.log"
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else [text[-2000:]]
    wrong = [line for line in lines if "WARNING" in line or "ERROR" in line] or lines[-20:]
    raise BuildError("\n".join([*wrong[:20], f"the book could not be built; the whole log: {log}"]))


# ---- static files --------------------------------------------------------------------------------
def _static(book: Path) -> Iterable[Path]:
    """Return the book's files that are copied unchanged."""
    for path in sorted(p for p in book.rglob("*") if p.is_file()):
        aside = {"__pycache__", "recorded"} & set(path.parts)
        if not aside and path.suffix != ".ipynb" and path.name not in ("_toc.yml", "Snakefile"):
            yield path


def _bundles() -> Iterable[tuple[Path, str]]:
    """Return (file, name in assets) of third-party scripts, from installed packages."""
    for package, name, target in BUNDLES:
        files = importlib.metadata.files(package) or []
        found = next((Path(str(f.locate())) for f in files if f.name == name), None)
        if found is None:
            raise FileNotFoundError(f"{package} has no file {name}: install the locked version")
        yield found, target


def _copy(path: Path, target: Path) -> Path:
    """Copy with its time stamp, unless the copy is the same already."""
    there = target.stat() if target.is_file() else None
    facts = path.stat()
    if there is None or (there.st_mtime, there.st_size) != (facts.st_mtime, facts.st_size):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return target
