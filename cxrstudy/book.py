"""Assemble and build the book: pages executed from records, executed run notebooks as they stand, no network.

The source is gathered in ``_build/src`` (only what changed is rewritten, so that Sphinx rebuilds only that) and built
by Jupyter Book into ``_build/html``.
"""

import contextlib
import csv
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from cxrstudy import grid, memo, pages, recorded, study
from cxrstudy import pdf as printer
from cxrstudy.files import write_changed, write_text
from cxrstudy.plans import plans_by_path
from cxrstudy.results import read_record
from cxrstudy.run import headline_of, notebook_error, run_page, run_table, variant_name

SPEED = (
    "Each row is one of our training steps beside another tool's on the same model, batch, resolution and one thread, "
    "alternating in one process; the ratio is the median over rounds, above 1 where ours is faster. "
    "Steps on a GPU stand alone, with their share of the card's own measured matrix rate and the memory they took."
)
HARM = (
    "Macro AUROC of continued encoders minus their base's, the mean over seeds, with the interval over resampled test "
    "patients. The synthetic rows are the recorded study, where the continued encoder alone is kept; in those of mini "
    "and in the real ones half of the base is mixed back in. The real sample is small and its labels are confounded "
    "with its selection: a difference on the same patients says harm or none, not how good an encoder is."
)
RATES = ("images_per_second", "peer_images_per_second")
CHAPTERS = (
    "explore",
    "findings",
    "tubes",
    "segmentation",
    "reports",
    "laws",
    "claims",
    "discussion",
)


def presets_run() -> list[str]:
    """Presets with a plan on this machine: mini first, then by name; smoke, which means nothing, last."""
    names = {path.parent.name for path in study.runs_root().glob("*/plan.json")} - left_out().keys()
    return sorted(
        (n for n in names if n in grid.preset_names()), key=lambda n: (n != "mini", n == "smoke", n)
    )


def sources() -> list[str]:
    """Where results come from: recorded presets (``recorded:NAME``), then those run on this machine; ablations, which
    have a chapter of their own, left out."""
    return [name for name in _all_sources() if not _variants(name)] or [_blank()]


def _blank() -> str:
    """A preset to tell of where nothing has been run: mini, or any other that loads."""
    for name in ("mini", *grid.preset_names()):
        if not _preset_fault(name):
            return name
    raise study.StudyError(f"no preset can be read: {_preset_fault('mini')}")


def _all_sources() -> list[str]:
    kept = [f"{recorded.RECORDED}{name}" for name in recorded.presets()]
    return [name for name in kept if name not in left_out()] + presets_run()


def left_out() -> dict[str, str]:
    """Return the sources whose files cannot be read, each with the file and the remedy: the book goes on without them.

    A preset that does not load or is gone, a plan or a record that is cut short: of those on this machine and, by its
    preset, of recorded ones.
    """
    found = {
        f"{recorded.RECORDED}{name}": _preset_fault(name, plans=True) for name in recorded.presets()
    }
    for place in sorted({path.parent for path in study.runs_root().glob("*/plan*.json")}):
        found[place.name] = _preset_fault(place.name) or _runs_fault(place)
    return {name: fault for name, fault in found.items() if fault}


def _preset_fault(name: str, plans: bool = False) -> str:
    """Why a preset does not load or, where its pages ask what is still to run (``plans``), does not plan."""
    if name not in grid.preset_names():
        return f"its file notebooks/presets/{name}.yml is gone: put it back, or delete {study.runs_root() / name}"
    try:
        if not grid.load_preset(name).needs_root and plans:
            grid.plan(name)
    except (study.StudyError, OSError) as error:
        return str(error)
    return ""


def _runs_fault(place: Path) -> str:
    """What cannot be read of a preset's runs that the book would read."""
    planned: set[str] = set()
    for path, plan in plans_by_path(place.name).items():
        if plan is None:
            return f"{path} cannot be read: delete it; cxrstudy run --preset {place.name} writes it anew"
        planned |= {run["name"] for run in plan["runs"]}
    for path in sorted(place.glob("*/*/record.json")):
        facts = path.stat()
        wanted = path.parent.name in planned or path.with_name("notebook.ipynb").is_file()
        if wanted and (fault := _record_fault(path, facts.st_mtime_ns, facts.st_size)):
            return fault
    return ""


@functools.lru_cache(4096)
def _record_fault(path: Path, *changed: int) -> str:
    """Why a record, as it was ``changed`` last, is none."""
    try:
        read_record(path)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def _variants(source: str) -> dict[str, dict[str, Any]]:
    return grid.load_preset(source.removeprefix(recorded.RECORDED)).variants


def ablations() -> dict[str, str]:
    """Every setting of an ablation that there may be results of: "factor=value" to its source and variant."""
    found: dict[str, str] = {}
    for source in _all_sources():
        for key, settings in _variants(source).items():
            found.setdefault(key, f"{source} {variant_name(settings)}".strip())
    return found


def build(out: str | Path = "", *, pdf: bool = False) -> int:
    """Build the book into ``out`` (default ``_build`` in the clone); 0 when it stands, 1 when it could not be built.

    ``pdf``: print its chapters to ``book.pdf`` there too.
    """
    if pdf:
        printer.browser()  # where there is none, that is said before minutes of building
    top = Path(out).expanduser().resolve() if str(out) else study.root() / "_build"
    source, html = top / "src", top / "_build" / "html"
    lost = left_out()
    for name, fault in lost.items():
        print(
            f"left out of the book: {recorded.name_of(name)}: {' '.join(fault.split())}",
            file=sys.stderr,
        )
    key = study.digest([_inputs(), lost], 32)
    stamp = top / "inputs"
    if stamp.is_file() and stamp.read_text() == key and (html / "index.html").is_file():
        print(f"the book is up to date: {html / 'index.html'}")
        return _printed(top) if pdf else 0
    n = len(_all_sources())
    print(f"building the book from {n} preset{'s' * (n != 1)}; some minutes", flush=True)
    command = [sys.executable, "-m", "cxrstudy.builder"]
    environment, pipe = os.environ | {"PYTHONWARNINGS": "ignore"}, subprocess.PIPE
    with (
        subprocess.Popen(
            command, text=True, env=environment, stdin=pipe, stdout=pipe, stderr=pipe
        ) as builder,
        _ending(builder),
    ):
        try:
            frame = assemble(source)
        except pages.PageError as error:
            print(f"a page could not be computed: {error}", file=sys.stderr)
            return 1
        same = (top / "frame").is_file() and (top / "frame").read_text() == frame
        words = ["build", str(source), "--path-output", str(top), "-W", "-n", "--keep-going"]
        words += ["--all"] * (
            not same
        )  # Sphinx by itself leaves pages as they are, and styles that alone changed
        said = "".join(builder.communicate(json.dumps(words)))
    write_text(top / "build.log", said)
    if builder.returncode or not (html / "index.html").is_file():
        lines = [line for line in said.splitlines() if "WARNING" in line or "ERROR" in line]
        print("\n".join(lines[:20]) or said[-2000:], file=sys.stderr)
        print(f"the book could not be built; the whole log: {top / 'build.log'}", file=sys.stderr)
        return 1
    write_text(top / "frame", frame)
    write_text(stamp, key)
    print(f"the book: {html / 'index.html'}")
    return _printed(top) if pdf else 0


@contextlib.contextmanager
def _ending(process: subprocess.Popen[str]) -> Iterator[None]:
    """End a process when the block is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        process.terminate()
        raise


def _printed(top: Path) -> int:
    path = printer.print_book(top / "_build" / "html", top / "src" / "_toc.yml", top / "book.pdf")
    print(f"its chapters on paper: {path}")
    return 0


def assemble(source: Path) -> str:
    """Gather the book's source in ``source``: static files, computed pages, run notebooks, table of contents.

    Returns a hash of what stands on or about every page: the list of chapters, styles, scripts, configuration.
    """
    book, keep = study.root() / "book", set()
    for path in sorted(
        p for p in book.rglob("*") if p.is_file() and not {"__pycache__", "recorded"} & set(p.parts)
    ):
        if path.suffix != ".ipynb" and path.name != "_toc.yml":
            keep.add(_copy(path, source / path.relative_to(book)))
    keep.add(_copy(_mathjax(), source / "assets" / "mathjax" / "tex-svg.js"))
    presets, results = presets_run(), sources()
    computed = [
        pages.Page(book / f"{template}.ipynb", source / f"{page}.ipynb", values, _digest(*files))
        for template, page, values, files in _told(presets or [_blank()], results)
    ]
    with ThreadPoolExecutor(1) as beside:
        explored = beside.submit(_explored, source / "assets")
        pages.execute(computed)
    keep |= {*explored.result(), *(page.target for page in computed)}
    memo.forget(source.with_name("memo"))
    toc = yaml.safe_load((book / "_toc.yml").read_text())
    chapters = {part["caption"]: part["chapters"] for part in toc["parts"]}
    for name in reversed(results):
        part = "The results" if name.startswith(recorded.RECORDED) else "This machine"
        chapters[part].insert(0, {"file": _page(name)})
    about = [book / "_config.yml", *(book / "assets").rglob("*"), *(book / "_ext").glob("*.py")]
    frame = [
        yaml.safe_dump(toc),
        *(p.read_text(encoding="utf-8") for p in sorted(about) if p.is_file()),
    ]
    entry: dict[str, Any] = next(
        chapter for chapter in chapters["This machine"] if chapter["file"] == "runs"
    )
    lines = [
        "# Every run",
        "",
        "A run is one notebook, executed by Papermill; its name opens it as it was executed.",
        "",
    ]
    if not presets:
        lines += ["Nothing has been run on this machine yet: `make study` starts.", ""]
    lost = [
        f"- **{recorded.name_of(name)}**: {_plain(fault)}" for name, fault in left_out().items()
    ]
    lines += ["## Left out of this book", "", *lost, ""] if lost else []
    for preset in presets:
        lines += [f"## {preset}", "", "| executed notebook | stage | result |", "|---|---|---|"]
        for row in run_table(preset):
            page = run_page(preset, row["stage"], row["name"])
            if whole := row["notebook"].read_bytes().rstrip().endswith(b"}"):
                keep.add(_copy(row["notebook"], source / f"{page}.ipynb"))
                title = f"{preset}: {row['stage']} {row['name']}"
                entry.setdefault("sections", []).append({"file": page, "title": title})
            failed = f"**failed**: {notebook_error(row['notebook']) or 'stopped before its end'}".replace(
                "|", "\\|"
            )
            said = headline_of(row["record"]) if row["record"] else failed
            name = (
                f"[{row['name']}](<{page}.ipynb>)"
                if whole
                else f"{row['name']} (its notebook is cut short)"
            )
            lines.append(f"| {name} | {row['stage']} | {said} |")
        lines.append("")
    written = {"runs.md": "\n".join(lines), "recorded.md": measurements(book / "recorded")}
    for name, text in (*written.items(), ("_toc.yml", yaml.safe_dump(toc, sort_keys=False))):
        write_changed(source / name, text)
        keep.add(source / name)
    for path in source.rglob("*"):  # pages of runs that no longer stand
        if path.is_file() and path not in keep and "__pycache__" not in path.parts:
            path.unlink()
    return study.digest(frame, 32)


def _plain(text: str) -> str:
    """Text of an error as it stands in a page: in one line, and nothing in it is markup."""
    return re.sub(
        r"([\\`*_{}\[\]<>|$#~@])", r"\\\1", " ".join(text.replace(f"{study.root()}/", "").split())
    )


def _explored(assets: Path) -> list[Path]:
    from cxrstudy import (
        explorer,
    )  # draws figures, whose libraries take seconds to import: beside the kernels

    return explorer.write(assets, _all_sources())


def _told(
    presets: list[str], results: list[str]
) -> Iterable[tuple[str, str, dict[str, Any], tuple[list[Path], ...]]]:
    """(template, page, its parameters, (files of ours, files of runs) that it tells of) of every computed page."""
    settings = ablations()
    of = {
        name: _files_of(name)
        for name in {*results, *(value.partition(" ")[0] for value in settings.values())}
    }

    def both(names: Iterable[str]) -> tuple[list[Path], ...]:
        kept = [of[name] for name in names]
        return [p for ours, _ in kept for p in ours], [p for _, runs in kept for p in runs]

    data = [path for name in presets for path in _files_of(name)[1] if path.parts[-3] == "data"]
    yield "index", "index", {"presets": results}, both(results[:1])
    yield from ((page, page, {"presets": presets}, ([], data)) for page in ("data", "gallery"))
    yield (
        "flips",
        "flips",
        {"settings": settings, "repeats": results},
        both(sorted(of)),
    )  # the longest: early
    yield "objectives", "objectives", {}, ([], [])
    yield "planner", "planner", {"preset": results[0]}, both(results[:1])
    yield from ((page, page, {"presets": results}, both(results)) for page in CHAPTERS)
    yield from (("results", _page(name), {"preset": name}, both([name])) for name in results)


def _files_of(source: str) -> tuple[list[Path], list[Path]]:
    """(files of ours, files of runs) that a source of results consists of."""
    name = source.removeprefix(recorded.RECORDED)
    if name != source:
        return [*recorded.place(name).rglob("*")], []
    place = study.runs_root() / name
    return [], [
        *place.glob("plan*.json"),
        *place.glob("*/*/record.json"),
        *place.glob("*/*/notebook.ipynb"),
    ]


def _page(source: str) -> str:
    """The name of a source's page of results."""
    return f"results-{source.replace(':', '-')}"


def measurements(folder: Path) -> str:
    """The page of what was measured once and kept in ``folder``: speed beside others, and what continuing costs."""
    lines = [
        "# Recorded measurements",
        "",
        "Made once, on the machine named, and kept; not measured on yours.",
    ]
    fast, harm = (_rows(folder / f"{name}.csv") for name in ("benchmarks", "no_harm"))
    if fast:
        lines += ["", "## How fast is it?", "", SPEED, ""]
        lines += [
            "| what | images/s | beside | images/s | ratio [95%] | rounds |",
            "|---|---|---|---|---|---|",
        ]
    for row in fast:
        what = f"**{row['benchmark']}** {row['setting']}"
        if row.get("mfu"):
            what += f" ({float(row['mfu']):.0%} of the card's matrix rate, {float(row['memory_gb']):.0f} GB)"
        own, theirs = (f"{float(row[n]):.1f}" if row[n] else "" for n in RATES)
        ratio = (
            "{:.2f} [{:.2f}, {:.2f}]".format(*(float(row[k]) for k in ("ratio", "low", "high")))
            if theirs
            else ""
        )
        lines.append(f"| {what} | {own} | {row['peer']} | {theirs} | {ratio} | {row['rounds']} |")
    if harm:
        lines += ["", "## Does continuing harm?", "", HARM, ""]
        lines += [
            "| x-rays | task | paradigm | images | continued minus base [95%] | over seeds | least moved |"
        ]
        lines += ["|---|---|---|---|---|---|---|"]
    for row in harm:
        gain, low, high, least, most = (
            f"{float(row[n]):+.3f}" for n in ("gain", "low", "high", "least", "most")
        )
        told = [row["images"], row["task"], row["paradigm"], f"{float(row['n_images']):,.0f}"]
        told += [
            f"{gain} [{low}, {high}]",
            f"{row['seeds']}: {least} to {most}",
            f"{float(row['moved']):.1%}",
        ]
        lines.append(f"| {' | '.join(told)} |")
    where = "; ".join(sorted({row["hardware"] for row in [*fast, *harm]}))
    commands = sorted({row["command"] for row in fast}) + [
        "python tests/benchmarks/no_harm.py --help"
    ] * bool(harm)
    return "\n".join(
        [*lines, "", f"Measured on: {where}. Again with:", "", "```sh", *commands, "```", ""]
    )


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _copy(path: Path, target: Path) -> Path:
    """Copy with its time stamp, unless the copy is the same already."""
    if (
        not target.is_file()
        or target.stat().st_mtime != path.stat().st_mtime
        or target.stat().st_size != path.stat().st_size
    ):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return target


def _inputs() -> str:
    """A hash of all that the book depends on."""
    runs = [path for name in presets_run() for path in _files_of(name)[1]]
    return _digest([*(study.root() / "book").rglob("*")], runs)


def _digest(ours: Iterable[Path], runs: Iterable[Path]) -> str:
    """A hash of files of ours by content, our code, cards and presets always among them, and of run files by time."""
    top, state = study.root(), hashlib.blake2b(digest_size=16)
    always = [
        path
        for folder in ("cxrstudy", "data_cards", "notebooks/presets")
        for path in (top / folder).rglob("*")
    ]
    always += (top / "book" / "recorded").glob("*.csv")
    for path in sorted({*ours, *always}):
        if path.is_file() and "__pycache__" not in path.parts:
            state.update(str(path).encode() + path.read_bytes())
    for path in sorted(runs):
        facts = path.stat()
        state.update(f"{path}:{facts.st_mtime_ns}:{facts.st_size}".encode())
    return state.hexdigest()


def _mathjax() -> Path:
    """MathJax in one file, from the installed package that carries it."""
    for file in importlib.metadata.files("sphinx-mathjax-offline") or []:
        if file.name == "tex-svg.js":
            return Path(str(file.locate()))
    raise FileNotFoundError(
        "sphinx-mathjax-offline holds no tex-svg.js; install the locked version"
    )
