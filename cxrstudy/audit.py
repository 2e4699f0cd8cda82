"""Audit labels mined from reports: a sheet for readers, and how far labels and readers agree.

Units are reports, one a study. For each label they are divided by their mined status (present,
uncertain, absent, not mentioned), and each such stratum gives a simple random sample. All samples
follow one random order of the reports (permanent random numbers, Ohlsson 1995). So labels share
reports, and a larger sheet contains a smaller one.
"""

import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy import study
from cxrstudy.data import cards, mining
from cxrstudy.data.reports import extract_mentions
from cxrstudy.data.tables import SEPARATORS, read_tables
from cxrstudy.data.vocabulary import LABELS, phrase
from cxrstudy.evaluate.agreement import MARKS, METRICS, estimate, kappa
from cxrstudy.files import write_text
from cxrstudy.marks import near
from cxrstudy.shown import Shown, nothing, words
from cxrstudy.tables import interval

SHARES = np.array([4, 2, 1, 2])  # of a label's sample, by status: labels share the first two
BLIND = "Mentions show where the program read something. First mark without them."


def folder(card: str) -> Path:
    """Return where the audit of a card is kept, by the card's name."""
    return study.runs_root() / "audits" / re.sub(r"[^\w.-]", "-", card)


# ---- draw ----------------------------------------------------------------------------------------
def read_units(
    card: str, root: str, seed: int, names: Mapping[str, Sequence[str]]
) -> tuple[pd.Series, pd.DataFrame]:
    """Return the reports that can be drawn, in their random order, and their statuses.

    Args:
        card, root, seed: the data set, and the seed of the order.
        names: our label -> names of the vocabulary.

    Returns:
        The reports by item, with ``attrs["mined"]`` if the card's labels are mined; and the codes
        (reports, labels) of ``mining.read_statuses``. Items are hashes, independent of the order.

    Raises:
        StudyError: the data set has no reports in English.
        CardError: as ``cards.load_manifest``.
    """
    manifest = cards.load_manifest(card, root=root)
    if "report" not in manifest:
        raise study.StudyError(f"card {card} has no reports: name `report` under table in the card")
    units = manifest[["study_id", "report"]].dropna().drop_duplicates()
    keys = ["\0".join([str(seed), *row]) for row in units.itertuples(index=False)]
    digests = [hashlib.blake2b(key.encode(), digest_size=16).hexdigest() for key in keys]
    units = units["report"].set_axis(digests).sort_index()
    units = units.set_axis(units.index.str[16:28])
    codes = mining.read_statuses(units, names)
    read = (codes != mining.NOT_READ).all(axis=1)
    if not read.any():
        raise study.StudyError(f"card {card}: none of {len(read):,} reports is in English")
    units.attrs["mined"] = manifest.attrs.get("mined")
    return units[read], codes[read]


def draw(codes: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return the sample: columns ``item``, ``label``, ``status``, ``N``, ``n`` (of its stratum).

    Strata grow together, in proportion to ``SHARES``. How far, a second random order says, that of
    the items: were it the first, sizes would depend on what was drawn, and weights be biased.

    Args:
        codes: statuses of each label (column) in each report, in the random order, by item.
        n: about how many reports the sheet has.

    Raises:
        StudyError: ``n`` reports cannot hold one of each status of each label.
    """
    first = np.sort(_turns(codes.sort_index()).min(axis=1))  # when each report enters the sheet
    if n < (least := int((first <= 1).sum())):
        raise study.StudyError(
            f"--n {n}: one report of each status of {codes.shape[1]} labels takes {least} reports; "
            f"give --n {least} or more, or fewer labels by --label"
        )
    is_in = _turns(codes) < (first[n] if n < len(first) else np.inf)
    parts = []
    for k, name in enumerate(codes):
        status = codes[name].to_numpy()
        counts = {"N": status, "n": status[is_in[:, k]]}
        sizes = {key: np.bincount(values, minlength=4) for key, values in counts.items()}
        chosen = {"item": codes.index[is_in[:, k]], "label": name, "status": counts["n"]}
        own = {key: size[counts["n"]] for key, size in sizes.items()}
        parts.append(pd.DataFrame(chosen | own))
    return pd.concat(parts, ignore_index=True)


def _turns(codes: pd.DataFrame) -> np.ndarray:
    """Return when each report enters the sample of each label, (reports, labels)."""
    ranks = [codes.groupby(name).cumcount().to_numpy() for name in codes]
    return (np.stack(ranks, axis=1) + 1) / SHARES[codes.to_numpy()]


def write_sheet(
    card: str,
    *,
    root: str = "",
    n: int = 200,
    labels: Sequence[str] = (),
    seed: int = 0,
    blinded: bool = True,
) -> tuple[Path, pd.DataFrame, list[str]]:
    """Draw reports and write ``sheet.html``, its twin ``sheet.csv`` and ``design.json``.

    Returns:
        The folder, the sample as of ``draw``, and labels that no report mentions.

    Raises:
        StudyError, CardError: as ``read_units`` and ``draw``; a label is unknown.
    """
    described = cards.read_card(card)
    rule = described.labels
    is_mined = rule is not None and rule.encoding == "reports"
    names = rule.theirs if rule and is_mined else {name: [name] for name in LABELS}
    units, codes = read_units(card, root, seed, names)
    for name in labels:
        if name not in codes:
            raise study.StudyError(f"--label {name!r}: labels are {', '.join(codes)}")
    asked = [name for name in codes if name in (labels or codes)]
    mentioned = [name for name in asked if codes[name].any()]
    if not mentioned:
        raise study.StudyError(f"no report mentions {', '.join(asked)}: there is nothing to audit")
    sample = draw(codes[mentioned], n)
    own = {"card": described.name, "seed": seed, "blinded": blinded, "reports": len(units)}
    for key in ("uncertain", "missing"):
        own[key] = getattr(rule, key) or "unknown" if is_mined else "unknown"
    own["mined"] = units.attrs["mined"]
    rows = sample.sort_values(["item", "label"])[["item", "label"]].assign(mark="", comment="")
    rows["report"] = rows["item"].map(units).map(_inert)
    csv = "\ufeff" + rows.to_csv(index=False)
    page = _page(own, sample, units, names)
    own |= {"csv": study.digest(csv), "sample": sample.to_dict("list")}
    out = folder(described.name)
    _refuse_changed(out)
    out.mkdir(parents=True, exist_ok=True)
    out.chmod(0o700)  # the sheets hold reports
    files = {"sheet.html": page, "sheet.csv": csv, "design.json": json.dumps(own)}
    for name, text in files.items():
        write_text(out / name, text)
        (out / name).chmod(0o600)
    return out, sample, [name for name in asked if name not in mentioned]


def _refuse_changed(out: Path) -> None:
    """Refuse to replace a ``sheet.csv`` that someone has filled in."""
    sheet, design = out / "sheet.csv", out / "design.json"
    if sheet.is_file() and design.is_file():
        text = sheet.read_bytes().decode("utf-8", errors="replace")
        if study.digest(text) != json.loads(design.read_text())["csv"]:
            raise study.StudyError(
                f"{sheet} has been changed since it was drawn: rename it "
                f"(say, {out.name}-reader-1.csv) to keep its marks"
            )


def _inert(text: str) -> str:
    """Return a text that no spreadsheet reads as a formula."""
    return f" {text}" if text[:1] in "=+-@\t" else text


def _page(
    own: Mapping[str, Any], sample: pd.DataFrame, texts: pd.Series, names: Mapping[str, Any]
) -> str:
    """Return the sheet as one HTML file; a blinded one holds no mined status."""
    items = []
    for item, rows in sample.groupby("item"):  # by its hash: the order tells nothing
        asked = rows["label"].tolist()
        wanted = {theirs: ours for ours in asked for theirs in names[ours]}
        parts, end, text = [], 0, texts[item]
        for mention in sorted(extract_mentions(text), key=lambda m: m.span):
            low, high = mention.span
            if mention.name in wanted and low >= end:
                said = f"{phrase(wanted[mention.name])}: {mention.status}"
                parts += [[text[end:low], ""], [text[low:high], "-" if own["blinded"] else said]]
                end = high
        one: dict[str, Any] = {"id": item, "ask": asked, "parts": [*parts, [text[end:], ""]]}
        if not own["blinded"]:
            one["mined"] = [mining.STATUSES[code] for code in rows["status"]]
        items.append(one)
    data: dict[str, Any] = {"name": folder(own["card"]).name}
    data["key"] = f"{own['card']}:{own['seed']}"
    data |= {"blinded": own["blinded"], "items": items}
    data["words"] = {name: phrase(name) for name in sample["label"].unique()}
    template = Path(__file__).with_name("audit_sheet.html")
    page = template.read_text(encoding="utf-8").replace("@NAME@", html.escape(own["card"]))
    page = page.replace("@BLIND@", BLIND if own["blinded"] else "Mined labels are shown.")
    return page.replace("@DATA@", json.dumps(data).replace("<", "\\u003c"))


# ---- score ---------------------------------------------------------------------------------------
def read_marks(path: Path, sample: pd.DataFrame) -> pd.Series:
    """Return the marks of one reader in the order of ``sample``.

    ``attrs["shown"]`` counts those made while mentions were shown.

    Raises:
        StudyError: naming each line that is foreign, twice, without a mark, or with another word,
            and the rows of the sheet that are not in the file.
        CardError: the file is no such table.
    """
    head = path.read_bytes()[:4096].split(b"\n")[0] if path.is_file() else b""
    separator = max(SEPARATORS, key=lambda sign: head.count(sign.encode()))
    used = ("item", "label", "mark")
    rows = read_tables([path], used=used, separator=separator, encoding="cp1252")
    open_pairs = dict.fromkeys(zip(sample["item"], sample["label"], strict=True), "")
    faults, letters = [], {mark[0]: mark for mark in MARKS}
    for row, item, label, mark in rows.frame[list(used)].itertuples():
        key, word = (item, label), mark.strip().lower() if isinstance(mark, str) else ""
        word = letters.get(word, word)
        if key not in open_pairs:
            faults.append(f"{rows.place(row)}: {item} {label} is not of this sheet")
        elif open_pairs[key]:
            faults.append(f"{rows.place(row)}: {item} {label} is there twice")
        elif word not in MARKS:
            what = f"{mark!r} is no mark{near(word, MARKS)}" if word else "has no mark"
            faults.append(f"{rows.place(row)}: {item} {label} {what}")
        open_pairs[key] = word or "-"
    gone = [" ".join(pair) for pair, mark in open_pairs.items() if not mark]
    if faults := faults + [f"{path}: {pair} is missing" for pair in gone]:
        more = f"\nand {len(faults) - 10} more" if len(faults) > 10 else ""
        raise study.StudyError(
            "\n".join([f"{len(faults)} rows cannot be scored:", *faults[:10]])
            + f"{more}\nMark every row of the sheet as {', '.join(MARKS)}. If the file is of "
            "another sheet, draw that again (same --n, --seed, --label)"
        )
    pairs = zip(sample["item"], sample["label"], strict=True)
    marks = pd.Series([open_pairs[pair] for pair in pairs], sample.index)
    marks.attrs["shown"] = int((rows.frame.get("mentions shown", pd.Series()) == "yes").sum())
    return marks


def score(card: str, files: Sequence[str | Path] = ()) -> pd.DataFrame:
    """Score the marks of one or two readers; write ``audit.json`` and ``audit.csv``.

    Args:
        card: whose sheet was drawn.
        files: CSV of each reader; none: ``*-reader-*.csv`` in the audit's folder, else its
            ``sheet.csv``.

    Returns:
        A row a reader and label: counts by mined status, METRICS with intervals; kappa if two.

    Raises:
        StudyError: no sheet was drawn, there are no or too many files, or as ``read_marks``.
    """
    name = cards.read_card(card).name
    out = folder(name)
    if not (out / "design.json").is_file():
        raise study.StudyError(f"no sheet of {card} was drawn: cxrstudy audit {card}")
    paths = [Path(file).expanduser() for file in files] or sorted(out.glob("*-reader-*.csv"))
    paths = paths or [out / "sheet.csv"]
    if len(paths) > 2:
        raise study.StudyError(f"{len(paths)} files: give those of one reader or of two")
    design = json.loads((out / "design.json").read_text())
    sample = pd.DataFrame(design.pop("sample"))
    marks = [read_marks(path, sample) for path in paths]
    means = {"unknown": np.nan, "absent": 0.0, "present": 1.0}
    values = np.array([means[design["missing"]], 0.0, means[design["uncertain"]], 1.0])
    positive = ["present"] + ["uncertain"] * (design["uncertain"] == "present")
    rows = []
    for label, own in sample.groupby("label", sort=False):
        for k, each in enumerate(marks):
            is_present = each[own.index].isin(positive).to_numpy()
            row: dict[str, Any] = {"label": label, "reader": k + 1, "read": len(own)}
            for code, word in enumerate(mining.STATUSES):
                here = own["status"].to_numpy() == code
                whole = own["N"][here].max() if here.any() else 0
                row[word] = f"{is_present[here].sum()} of {here.sum()} (of {whole})"
            row |= estimate(own, is_present, values)
            if len(marks) == 2:
                row |= kappa(marks[0][own.index], marks[1][own.index])
            rows.append(row)
    table = pd.DataFrame(rows)
    table.attrs["card"] = name
    found = design | {"readers": len(marks), "read": int(sample["item"].nunique())}
    found["mentions_shown"] = sum(each.attrs["shown"] for each in marks)
    found["rows"] = json.loads(table.to_json(orient="records"))  # null where not defined
    if len(marks) == 2:
        found["kappa"] = json.loads(pd.Series(kappa(*marks)).to_json())
    write_text(out / "audit.csv", table.to_csv(index=False))
    write_text(out / "audit.json", json.dumps(found, indent=1))
    return table


# ---- show ----------------------------------------------------------------------------------------
def in_book(prepared: Any) -> list[Shown]:
    """Return what the data page says of labels mined for prepared data, and of their audit."""
    record = prepared.info.get("mined")
    if not record:
        return []
    said = nothing("", mining.in_words(record))
    out = folder(prepared.info["card"])
    if not (out / "audit.json").is_file():
        return [said, nothing("", "No audit of the mined labels has been done.")]
    found = json.loads((out / "audit.json").read_text())
    table = pd.read_csv(out / "audit.csv")
    names = {"f1": "F1", "npv": "negative predictive value"}
    shown = {"label": table["label"].map(phrase), "reader": table["reader"].astype(str)}
    shown |= {f"mined {word}": table[word] for word in mining.STATUSES[::-1]}
    for metric in [*METRICS, *(["kappa"] if "kappa" in table else [])]:
        ends = table[[metric, f"{metric}_low", f"{metric}_high"]].astype(float)
        shown[names.get(metric, metric)] = [interval(*row) for row in ends.to_numpy()]
    caption = (
        f"Labels mined from reports against {found['readers']} reader(s) of {found['read']:,} of "
        f"{found['reports']:,} reports, {'' if found['blinded'] else 'not '}blinded to what was "
        f"mined (mentions shown for {found['mentions_shown']} of {table['read'].sum()} marks): "
        "what reports say, not what images show. By mined status: reports that the reader "
        "calls present, of those read (of all). Estimates, with 95% intervals, are for all "
        "reports in English. "
        + ("Kappa is Cohen's, of the four marks, not weighted. " if "kappa" in table else "")
        + (
            "The labels have changed since this audit: draw and mark it again."
            if found["mined"] != record
            else ""
        )
    )
    rows = pd.DataFrame(shown).set_index("label")
    return [said, words(rows, "Audit of the mined labels.", caption)]
