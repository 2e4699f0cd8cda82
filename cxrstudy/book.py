"""Assemble and build the book: pages executed from records, executed run notebooks as they stand, no network.

The source is gathered in ``_build/src`` (only what changed is rewritten, so that Sphinx rebuilds only that) and built
by Jupyter Book into ``_build/html``.
"""

import csv
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import yaml

from cxrstudy import explorer, grid, narrative, recorded, study
from cxrstudy.files import write_changed, write_text
from cxrstudy.run import headline_of, notebook_error, run_table, variant_name

SPEED = (
    "Each row is one of our training steps beside another tool's on the same model, batch, resolution and one thread, "
    "alternating in one process; a ratio above 1 says that ours is faster."
)
HARM = (
    "Macro AUROC of continued encoders minus their base's, the mean over seeds, with the interval over resampled test "
    "patients. The synthetic rows are the recorded study, where the continued encoder alone is kept; in the real ones "
    "half of the base is mixed back in. The real sample is small and its labels are confounded with its selection: a "
    "difference on the same patients says harm or none, not how good an encoder is."
)
RATES = ("images_per_second", "peer_images_per_second")
PAGES = ("data", "gallery")  # executed with the presets that have runs on this machine
CHAPTERS = ("index", "explore", "segmentation", "reports", "laws", "claims", "discussion")  # with all sources
HIDDEN = {"parameters", "injected-parameters"}


class PageError(RuntimeError):
    """A page of the book failed when it was executed."""


def presets_run() -> list[str]:
    """Presets with a plan on this machine: mini first, then by name; smoke, which means nothing, last."""
    names = [path.parent.name for path in study.runs_root().glob("*/plan.json")]
    return sorted((n for n in names if n in grid.preset_names()), key=lambda n: (n != "mini", n == "smoke", n))


def sources() -> list[str]:
    """Where results come from: recorded presets (``recorded:NAME``), then those run on this machine; ablations, which
    have a chapter of their own, left out."""
    return [name for name in _all_sources() if not _variants(name)] or ["mini"]


def _all_sources() -> list[str]:
    return [f"{narrative.RECORDED}{name}" for name in recorded.presets()] + presets_run()


def _variants(source: str) -> dict[str, dict[str, Any]]:
    return grid.load_preset(source.removeprefix(narrative.RECORDED)).variants


def ablations() -> dict[str, str]:
    """Every setting of an ablation that there may be results of: "factor=value" to its source and variant."""
    found: dict[str, str] = {}
    for source in _all_sources():
        for key, settings in _variants(source).items():
            found.setdefault(key, f"{source} {variant_name(settings)}".strip())
    return found


def build(out: str | Path = "") -> int:
    """Build the book into ``out`` (default ``_build`` in the clone); 0 when it stands, 1 when it could not be built."""
    top = Path(out).expanduser().resolve() if str(out) else study.root() / "_build"
    source, html = top / "src", top / "_build" / "html"
    key, data_key = _inputs()
    stamp = top / "inputs"
    if stamp.is_file() and stamp.read_text() == key and (html / "index.html").is_file():
        print(f"the book is up to date: {html / 'index.html'}")
        return 0
    try:
        assemble(source, key, data_key)
    except PageError as error:
        print(f"a page could not be computed: {error}", file=sys.stderr)
        return 1
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(source), "--path-output", str(top), "-W", "-n", "--keep-going"]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    write_text(top / "build.log", done.stdout + done.stderr)
    if done.returncode or not (html / "index.html").is_file():
        lines = [li for li in (done.stdout + done.stderr).splitlines() if "WARNING" in li or "ERROR" in li]
        print("\n".join(lines[:20]) or done.stderr[-2000:], file=sys.stderr)
        print(f"the book could not be built; the whole log: {top / 'build.log'}", file=sys.stderr)
        return 1
    write_text(stamp, key)
    print(f"the book: {html / 'index.html'}")
    return 0


def assemble(source: Path, key: str, data_key: str) -> None:
    """Gather the book's source in ``source``: static files, computed pages, run notebooks, table of contents.

    ``key`` stands for all that the computed pages depend on, ``data_key`` for that without results (``_inputs``).
    """
    book, keep = study.root() / "book", set()
    for path in sorted(p for p in book.rglob("*") if p.is_file() and not {"__pycache__", "recorded"} & set(p.parts)):
        if path.suffix != ".ipynb" and path.name != "_toc.yml":
            keep.add(_copy(path, source / path.relative_to(book)))
    keep.add(_copy(_mathjax(), source / "assets" / "mathjax" / "tex-svg.js"))
    keep |= set(explorer.write(source / "assets", _all_sources()))
    presets, results = presets_run(), sources()
    told: dict[str, dict[str, Any]] = {page: {"presets": presets or ["mini"]} for page in PAGES}
    told |= {page: {"presets": results} for page in CHAPTERS}
    told |= {
        "planner": {"preset": results[0]},
        "flips": {"settings": ablations(), "repeats": results},
        "objectives": {},
    }
    wanted: list[tuple[Path, Path, dict[str, Any]]] = [
        (book / f"{page}.ipynb", source / f"{page}.ipynb", values) for page, values in told.items()
    ]
    wanted += [(book / "results.ipynb", source / f"{_page(name)}.ipynb", {"preset": name}) for name in results]
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        of = {"data": data_key, "gallery": data_key}  # these show no result: a new one does not draw them anew
        list(pool.map(lambda item: _execute(item[0], item[1], item[2], of.get(item[1].stem, key)), wanted))
    keep |= {target for _, target, _ in wanted}
    toc = yaml.safe_load((book / "_toc.yml").read_text())
    chapters = {part["caption"]: part["chapters"] for part in toc["parts"]}
    for name in reversed(results):
        part = "The results" if name.startswith(narrative.RECORDED) else "This machine"
        chapters[part].insert(0, {"file": _page(name)})
    entry: dict[str, Any] = next(chapter for chapter in chapters["This machine"] if chapter["file"] == "runs")
    lines = [
        "# Every run",
        "",
        "A run is one notebook, executed by Papermill; its name opens it as it was executed.",
        "",
    ]
    if not presets:
        lines += ["Nothing has been run on this machine yet: `make study` starts.", ""]
    for preset in presets:
        lines += [f"## {preset}", "", "| executed notebook | stage | result |", "|---|---|---|"]
        for row in run_table(preset):
            page = explorer.run_page(preset, row["stage"], row["name"])
            keep.add(_copy(row["notebook"], source / f"{page}.ipynb"))
            entry.setdefault("sections", []).append({"file": page, "title": f"{preset}: {row['stage']} {row['name']}"})
            failed = f"**failed**: {notebook_error(row['notebook']) or 'stopped before its end'}".replace("|", "\\|")
            said = headline_of(row["record"]) if row["record"] else failed
            lines.append(f"| [{row['name']}](<{page}.ipynb>) | {row['stage']} | {said} |")
        lines.append("")
    pages = {"runs.md": "\n".join(lines), "recorded.md": measurements(book / "recorded")}
    for name, text in (*pages.items(), ("_toc.yml", yaml.safe_dump(toc, sort_keys=False))):
        write_changed(source / name, text)
        keep.add(source / name)
    for path in source.rglob("*"):  # pages of runs that no longer stand
        if path.is_file() and path not in keep and "__pycache__" not in path.parts:
            path.unlink()


def _page(source: str) -> str:
    """The name of a source's page of results."""
    return f"results-{source.replace(':', '-')}"


def measurements(folder: Path) -> str:
    """The page of what was measured once and kept in ``folder``: speed beside others, and what continuing costs."""
    lines = ["# Recorded measurements", "", "Made once, on the machine named, and kept; not measured on yours."]
    fast, harm = (_rows(folder / f"{name}.csv") for name in ("benchmarks", "no_harm"))
    if fast:
        lines += ["", "## How fast is it?", "", SPEED, ""]
        lines += ["| what | images/s | beside | images/s | ratio [95%] | rounds |", "|---|---|---|---|---|---|"]
    for row in fast:
        what = f"**{row['benchmark']}** {row['setting']}"
        own, theirs = (f"{float(row[n]):.1f}" if row[n] else "" for n in RATES)
        ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*(float(row[k]) for k in ("ratio", "low", "high"))) if theirs else ""
        lines.append(f"| {what} | {own} | {row['peer']} | {theirs} | {ratio} | {row['rounds']} |")
    if harm:
        lines += ["", "## Does continuing harm?", "", HARM, ""]
        lines += ["| x-rays | task | paradigm | images | continued minus base [95%] | over seeds | weights moved |"]
        lines += ["|---|---|---|---|---|---|---|"]
    for row in harm:
        gain, low, high, least, most = (f"{float(row[n]):+.3f}" for n in ("gain", "low", "high", "least", "most"))
        told = [row["images"], row["task"], row["paradigm"], f"{float(row['n_images']):,.0f}"]
        told += [f"{gain} [{low}, {high}]", f"{row['seeds']}: {least} to {most}", f"{float(row['moved']):.1%}"]
        lines.append(f"| {' | '.join(told)} |")
    where = "; ".join(sorted({row["hardware"] for row in [*fast, *harm]}))
    commands = sorted({row["command"] for row in fast}) + ["python tests/benchmarks/no_harm.py --help"] * bool(harm)
    return "\n".join([*lines, "", f"Measured on: {where}. Again with:", "", "```sh", *commands, "```", ""])


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


def _execute(template: Path, target: Path, parameters: dict[str, Any], key: str) -> None:
    """Execute a page's template into ``target``, unless it was made from the same template and records.

    The word PRESET in its text becomes the parameter's value: a page's title must stand in its source.
    """
    if target.is_file() and json.loads(target.read_text())["metadata"].get("cxrstudy_inputs") == key:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.stem}.executing.ipynb")
    command = [sys.executable, "-m", "papermill", str(template), str(scratch), "-y", json.dumps(parameters)]
    command += ["-k", "python3", "--cwd", str(study.root()), "--no-progress-bar"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PageError(f"{template}: {notebook_error(scratch) or done.stderr[-1000:]} (see {scratch})")
    notebook = nbformat.read(scratch, as_version=4)
    for cell in notebook.cells:
        if HIDDEN & set(cell.metadata.get("tags", [])):
            cell.metadata["tags"] = ["remove-cell"]
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("PRESET", narrative.name_of(str(parameters.get("preset", ""))))
    notebook.metadata["cxrstudy_inputs"] = key
    notebook.metadata.pop("papermill", None)
    nbformat.write(notebook, str(scratch))
    os.replace(scratch, target)


def _inputs() -> tuple[str, str]:
    """Hashes of all that a page depends on (records, plans, run notebooks, the book's source, our code, cards), and of
    that but for the runs of other stages than data."""
    top, state = study.root(), hashlib.blake2b(digest_size=16)
    files = [
        p
        for folder in ("book", "cxrstudy", "data_cards", "notebooks/presets")
        for p in sorted((top / folder).rglob("*"))
    ]
    for path in files:
        if path.is_file() and path.suffix in (".py", ".md", ".yml", ".ipynb", ".css", ".js", ".csv"):
            state.update(str(path).encode() + path.read_bytes())  # .csv: what is recorded has a runs.csv beside it
    runs = study.runs_root()
    made = [*runs.glob("*/*/*/record.json"), *runs.glob("*/*/*/notebook.ipynb")]
    of_data = [path for path in made if path.parts[-3] == "data"]
    keys = []
    for paths in ([*runs.glob("*/plan*.json"), *of_data], set(made) - set(of_data)):
        for path in sorted(paths):
            facts = path.stat()
            state.update(f"{path}:{facts.st_mtime_ns}:{facts.st_size}".encode())
        keys.append(state.hexdigest())
    return keys[1], keys[0]


def _mathjax() -> Path:
    """MathJax in one file, from the installed package that carries it."""
    for file in importlib.metadata.files("sphinx-mathjax-offline") or []:
        if file.name == "tex-svg.js":
            return Path(str(file.locate()))
    raise FileNotFoundError("sphinx-mathjax-offline holds no tex-svg.js; install the locked version")
