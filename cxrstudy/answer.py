"""What a results page says at its top: in a few sentences, computed from the table, what came of continuing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pandas as pd

from cxrstudy import grid, narrative, recorded, study, tables
from cxrstudy.plots import TASKS, human
from cxrstudy.results import read_record
from cxrstudy.run import read_plan
from cxrstudy.scaling import ladders

NOTHING = (
    "**In short:** no encoder that went on from a base on in-house images was judged by any label: these runs do not "
    "say what such images bring."
)


def in_short(table: pd.DataFrame) -> str:
    """Say what the runs of ``table`` answer: on what it rests, each ladder's largest subset against its base and
    against the best baseline without labels, whether any encoder is above raw pixels, and what the intervals hold."""
    ladder = ladders.points(table)
    if ladder.empty:
        return NOTHING
    gained = _largest(ladders.gains(table))
    told = [f"**In short.** {tables.tested(table, *TASKS)} {_count(gained)}".strip()]
    beyond, lines = ladders.beyond_control(table), []
    for (task, paradigm), own in ladder.groupby(["task", "paradigm"], sort=False):
        most = own["n_images"].max()
        based, plain = (
            [
                *found[
                    (found["task"] == task)
                    & (found["paradigm"] == paradigm)
                    & (found["n_images"] == most)
                ].itertuples()
            ]
            for found in (gained, beyond)
        )
        parts = [f"{_compared(row)} against the unmodified base" for row in based]
        parts += [] if parts else ["its base was not evaluated"]
        parts += [f"{_compared(row)} against {_best(row.control)}" for row in plain]
        parts += [] if plain else ["no baseline that learned from no label was evaluated"]
        lines.append(
            f"- {TASKS[task]}, `{paradigm}` with {human(most)} in-house images: {'; '.join(parts)}."
        )
    rest = [*_pixels(table), narrative.hardly_trained(table), _seeds(ladder)]
    return "\n\n".join(filter(None, [*told, "\n".join(lines), " ".join(filter(None, rest))]))


def _largest(gained: pd.DataFrame) -> pd.DataFrame:
    return gained[
        gained["n_images"] == gained.groupby(["task", "paradigm"])["n_images"].transform("max")
    ]


def _count(gained: pd.DataFrame) -> str:
    """In how many ladders the largest subset is better, and worse, than the base."""
    if gained.empty:
        return "No base was evaluated as it came: what continuing brought cannot be told."
    better, worse, of = int((gained["low"] > 0).sum()), int((gained["high"] < 0).sum()), len(gained)
    return (
        f"At its largest subset, continuing was measurably better than the base in {better} of {of} "
        f"{'ladder' if of == 1 else 'ladders'} and measurably worse in {worse}."
    )


def _compared(row: Any) -> str:
    """A difference of macro AUROC with its interval, and one word; where none is seen, how much lower it may be."""
    if pd.isna(row.low):
        return f"{row.gain:+.3f} (no interval: better or worse cannot be told)"
    word = "better" if row.low > 0 else "worse" if row.high < 0 else "no measurable difference"
    if word.startswith("no") and row.low <= -narrative.LOSS:
        word += f": {-row.low:.3f} lower is not excluded"
    return f"{row.gain:+.3f} [{row.low:+.3f},\u00a0{row.high:+.3f}] ({word})"


def _best(control: str) -> str:
    """The best baseline of `ladders.beyond_control`, in words."""
    name = control.removeprefix(", over ")
    name = {"pixels": "raw pixels", "covariates": "view, age and sex alone"}.get(
        name, re.sub(r"^random ", "random weights of ", name)
    )
    return f"the best baseline that learned from no label ({name})"


def _pixels(table: pd.DataFrame) -> Iterator[str]:
    """A sentence a task on which no encoder is above raw pixels with certainty."""
    for task in TASKS:
        rows = table[
            (table["stage"] == "classify") & (table["task"] == task) & (table["label"] == "macro")
        ]
        rows = rows[
            (rows["metric"] == "auroc")
            & rows["value"].notna()
            & ~rows["run"].str.startswith("shuffled-")
        ]
        plain, encoders = rows[rows["encoder"] == "pixels"], rows[rows["paradigm"] != "control"]
        names = ladders.judged_labels(table, task)
        if plain.empty or encoders.empty or not names:
            continue
        less = [ladders.resampled(str(plain["folder"].iloc[0]), names, "auroc", 1000, 0)]
        over = [
            ladders.difference([ladders.resampled(folder, names, "auroc", 1000, 0)], less, 0.0)
            for folder in encoders["folder"]
        ]
        best = max(over, key=lambda found: found["gain"])
        if all(found["low"] <= 0 for found in over):
            yield (
                f"On {TASKS[task].lower()} **no encoder, continued or not, is above raw pixels with certainty** (the "
                f"best: {best['gain']:+.3f} [{best['low']:+.3f},\u00a0{best['high']:+.3f}])."
            )


def _seeds(ladder: pd.DataFrame) -> str:
    """What intervals do not hold, where a ladder's largest subset was trained once."""
    largest = ladder[
        ladder["n_images"] == ladder.groupby(["task", "paradigm"])["n_images"].transform("max")
    ]
    seeds = largest.groupby("paradigm", sort=False)["seed"].nunique()
    once = [f"`{name}`" for name, count in seeds.items() if count <= 1]
    if not once:
        return ""
    who = "Each" if len(once) == len(seeds) else " and ".join(once)
    return f"{who} was trained with one seed: intervals hold test patients only, not what another seed would change."


def described(preset: str) -> str:
    """A preset's title and description, and how many images its data runs could read, from their records."""
    told = grid.load_preset(preset.removeprefix(recorded.RECORDED))
    title = told.title if told.title.endswith((".", "?", "!")) else f"{told.title}."
    return " ".join([f"*{title}* {told.description}", *_prepared(preset)])


def _prepared(preset: str) -> Iterator[str]:
    for name, info in _data_runs(preset):
        if "images" not in info:
            continue
        patients = f" of {info['patients']:,} patients" if "patients" in info else ""
        unread, rows = info.get("quarantined", 0), sum((info.get("left_out") or {}).values())
        parts = {
            f"{unread:,} could not be read": unread,
            f"rows of the table left out: {rows:,}": rows,
        }
        lost = "; ".join(text for text, count in parts.items() if count)
        yield f"As prepared, `{name}` holds **{info['images']:,} images**{patients}{f' ({lost})' if lost else ''}."


def _data_runs(preset: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(data set, info) of every data run of a preset's grid that has a record."""
    name = preset.removeprefix(recorded.RECORDED)
    if name != preset:
        if name not in recorded.presets():
            return
        runs = pd.read_csv(recorded.place(name) / "runs.csv", keep_default_na=False)
        runs = runs[(runs["stage"] == "data") & (runs["variant"] == "")]
        yield from (
            (_set(run), json.loads(info))
            for run, info in zip(runs["run"], runs["info"], strict=True)
        )
        return
    for run in read_plan(preset):
        folder = study.runs_root() / preset / run["stage"] / run["name"]
        if run["stage"] == "data" and (folder / "record.json").is_file():
            yield _set(run["name"]), read_record(folder)["info"]


def _set(run: str) -> str:
    return re.sub(r"-[0-9a-f]{6}$", "", run)
