"""Pages of the book without a notebook: every run, recorded measurements, all data cards."""

import csv
from pathlib import Path

from cxrstudy import recorded, sources, study
from cxrstudy.data import cardfile
from cxrstudy.run import headline_of, notebook_error, run_page, run_table
from cxrstudy.shown import inert

SPEED = (
    "Each row compares one of our training steps with another tool's, on the same model, batch, "
    "resolution and one thread, alternating in one process. The ratio is the median over rounds; "
    "above 1, ours is faster. Steps on a GPU are not compared: they show their share of the card's "
    "own measured matrix rate, and the memory that they used."
)
HARM = (
    "Macro AUROC of continued encoders minus that of their base model: the mean over seeds, with "
    "the interval over resampled test patients alone. In the rows of mini and of real x-rays, half "
    "of the base model is mixed in again (`wise_ft_alpha`). The recorded studies use the continued "
    "encoder alone; their harm is on [findings](findings), [tubes](tubes) and "
    "[the claims](claims)."
)
CARDS = (
    "A data set enters by its card, a file in `data_cards/`; `cxrstudy new --card NAME --data-root "
    "PATH` writes a preset for it. The first table says what labels, positions, masks and reports "
    "of each set can serve. *Placed* means that it is known whether a tube's tip is correct, "
    "*drawn* that there are masks or courses. Layout *read*: tests have read the real files. "
    "Layout *documented*: the real files were not seen; tests read made-up rows in the documented "
    "layout. What is not known is written as unknown."
)
SERVES = ("findings", "tubes present", "tubes placed", "tubes drawn", "reports")
LAYOUTS = {"real": "read", "layout": "documented"}
RATES = ("images_per_second", "peer_images_per_second")


def runs() -> tuple[list[tuple[str, Path, str]], str]:
    """Return (page, notebook, title) of each executed notebook, and the text of "Every run"."""
    notebooks: list[tuple[str, Path, str]] = []
    lines = ["# Every run", ""]
    lines += ["A run is one notebook, executed by Papermill. Its name opens it.", ""]
    presets, lost = sources.presets_run(), sources.left_out()
    if not presets:
        lines += ["Nothing has been run on this machine yet: `make study` starts.", ""]
    if lost:
        each = [f"- **{recorded.name_of(name)}**: {_plain(fault)}" for name, fault in lost.items()]
        lines += ["## Left out of this book", "", *each, ""]
    for preset in presets:
        lines += [f"## {preset}", "", "| executed notebook | stage | result |", "|---|---|---|"]
        for row in run_table(preset):
            page = run_page(preset, row["stage"], row["name"])
            whole = row["notebook"].read_bytes().rstrip().endswith(b"}")
            if whole:
                title = f"{preset}: {row['stage']} {row['name']}"
                notebooks.append((page, row["notebook"], title))
            why = notebook_error(row["notebook"]) or "stopped before its end"
            said = f"**failed**: {_plain(why)}"
            said = _plain(headline_of(row["record"])) if row["record"] else said
            link = f"[{row['name']}](<{page}.ipynb>)"
            name = link if whole else f"{row['name']} (its notebook is cut short)"
            lines.append(f"| {name} | {row['stage']} | {said} |")
        lines.append("")
    return notebooks, "\n".join(lines)


def _plain(text: str) -> str:
    """Return the text of an error in one line, with its markup escaped."""
    return inert(text.replace(f"{study.root()}/", ""))


def measurements(folder: Path) -> str:
    """Return the page of the recorded measurements in ``folder``: speed and harm."""
    lines = ["# Recorded measurements", ""]
    lines += ["Measured once, on the machine named below; not on yours."]
    fast, harm = (_rows(folder / f"{name}.csv") for name in ("benchmarks", "no_harm"))
    if fast:
        head = "| what | images/s | beside | images/s | ratio [95%] | rounds |"
        lines += ["", "## How fast is it?", "", SPEED, "", head, "|---|---|---|---|---|---|"]
        lines += [_speed(row) for row in fast]
    if harm:
        names = ("x-rays", "task", "paradigm", "images", "gain over base model [95%]", "over seeds")
        head = f"| {' | '.join(names)} | least relative weight change |"
        lines += ["", "## Does continuing harm?", "", HARM, "", head, "|---" * 7 + "|"]
        lines += [_harm(row) for row in harm]
    where = "; ".join(sorted({row["hardware"] for row in [*fast, *harm]}))
    commands = sorted({row["command"] for row in fast})
    commands += ["python tests/benchmarks/no_harm.py --help"] * bool(harm)
    again = ["", f"Measured on: {where}. Again with:", "", "```sh", *commands, "```", ""]
    return "\n".join([*lines, *again])


def _speed(row: dict[str, str]) -> str:
    what = f"**{row['benchmark']}** {row['setting']}"
    if row.get("mfu"):
        share, memory = float(row["mfu"]), float(row["memory_gb"])
        what += f" ({share:.0%} of the card's matrix rate, {memory:.0f} GB)"
    own, theirs = (f"{float(row[n]):.1f}" if row[n] else "" for n in RATES)
    ends = (float(row[name]) for name in ("ratio", "low", "high")) if theirs else ()
    ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*ends) if theirs else ""
    return f"| {what} | {own} | {row['peer']} | {theirs} | {ratio} | {row['rounds']} |"


def _harm(row: dict[str, str]) -> str:
    gain, low, high, least, most = (
        f"{float(row[name]):+.3f}" for name in ("gain", "low", "high", "least", "most")
    )
    cells = [row["images"], row["task"], row["paradigm"], f"{float(row['n_images']):,.0f}"]
    cells += [f"{gain} [{low}, {high}]", f"{row['seeds']}: {least} to {most}"]
    change = f"{float(row['relative_weight_change']):.1%}"
    return f"| {' | '.join([*cells, change])} |"


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def data_cards(folder: Path) -> str:
    """Return the page of the data cards in ``folder``: what each serves, terms, contamination."""
    head = ["card", "images", "patients", *SERVES, "layout"]
    held, terms, faults = [], [], []
    for path in sorted(folder.glob("*.md")):
        try:
            card = cardfile.read_card(path)
        except cardfile.CardError as error:
            faults.append(f"- **{path.stem}** cannot be read: {_plain(str(error))}")
            continue
        none = "" if card.kind == "synthetic" else "unknown"
        counts = [_count(card.counts.get(name, none)) for name in ("images", "patients")]
        serves = ["yes" if each in cardfile.serves(card) else "" for each in SERVES]
        held.append([f"**{card.name}**", *counts, *serves, LAYOUTS.get(card.verified or "", "")])
        parts = {"Licence": card.licence, "Access": card.access}
        parts["Encoders trained on it"] = card.contamination
        terms += ["", f"### {card.name}", "", f"{_plain(card.title)}.", ""]
        terms += [f"- *{name}*: {_plain(text) or 'unknown'}" for name, text in parts.items()]
    lines = ["# Data cards", "", CARDS, "", *_table(head, held)]
    lines += ["", "## Terms, and who trained on it", *terms, "", *faults, ""]
    return "\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return ["```{table}", ":class: words", *lines, "```"]


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else _plain(str(value))
