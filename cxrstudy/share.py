"""Pack what may leave a hospital: the tables of a finished study, and nothing of one patient.

A pack is a zip file of CSV files, to be read before it is sent, and ``manifest.json``: schema, hash
and size of each. Columns are on a list (``COLUMNS``): ids, paths, notes and names of folders are on
none. Cells of fewer than ``FEWEST`` images, patients, positives or negatives are blank, and so is
what they could be computed from.
"""

import hashlib
import io
import json
import re
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy import sources, study
from cxrstudy.files import replacing
from cxrstudy.numbers import SMALL
from cxrstudy.recorded import RECORDED, variant_alone

SCHEMA, FEWEST = 1, SMALL
LARGEST_FILE, LARGEST_PACK, MOST_ROWS = 20_000_000, 60_000_000, 200_000
COUNTS = ["n", "n_patients", "positives"]
ENDS = ["low", "high"]
LISTED = {  # table -> its columns that may leave; each begins with task, metric and data
    "metrics": "label value low high n n_patients positives paradigm base encoder kind n_images "
    "samples_seen seed generator suppressed",
    "values": "arm start encoder kind n_images samples_seen value low high seeds least most "
    "variance_sources n n_patients positives",
    "contrasts": "kind start one other n_images effect low high p seeds variance_sources low90 "
    "high90 verdict n n_patients positives",
    "crossovers": "start one smallest largest sizes first holds",
    "overtakes": "one other smallest largest sizes first holds",
    "laws": "one start samples_seen from_n sizes runs form exponent low high floor law_error "
    "last_error extrapolates",
    "bands": "one start samples_seen n_images value low high",
    "extrapolation": "one start samples_seen left_out method form n_images value predicted low "
    "high held off",
}
COLUMNS = {name: ["task", "metric", "data", *text.split()] for name, text in LISTED.items()}
COLUMNS["claims"] = [
    "id",
    "effect",
    *ENDS,
    "p",
    "seeds",
    "variance_sources",
    "verdict",
    "threshold",
]
MEASURED = ["value", "effect", "p", *ENDS, "low90", "high90", "least", "most", *COUNTS]
TOTALS = ("macro", "all", "findings", "lines_tubes")  # labels, also after "other patient: "
NAME = r"[A-Za-z0-9][\w -]{0,39}"
TEXT = re.compile(r"(\w[\w @.,:+()%='-]{0,99})?")  # no markup, path or formula of a spreadsheet


@dataclass(frozen=True)
class Pack:
    """One institution's pack: its manifest and its tables."""

    manifest: dict[str, Any]
    tables: dict[str, pd.DataFrame]


def pack(name: str, out: str | Path = "", site: str = "") -> Path:
    """Write the pack of a finished study and return its path.

    Args:
        name: a preset that was run here, or a recorded study.
        out: the file [default: NAME.zip in the current folder].
        site: what the institution is called in an atlas [default: the study's name].

    Raises:
        StudyError: there is no such study, it is not finished, or a text is not one of ours.
    """
    source = name if name in sources.every() else f"{RECORDED}{name}"
    if source not in sources.every():
        raise study.StudyError(f"no results of {name!r} here: cxrstudy run --preset {name}")
    if changed := variant_alone(source):
        raise study.StudyError(f"{name} was run with {changed} only: cxrstudy run --preset {name}")
    name, site = source.removeprefix(RECORDED), site or source.removeprefix(RECORDED)
    if not re.fullmatch(NAME, site):
        raise study.StudyError(f"--site {site!r}: up to 40 letters, digits, blanks, - and _")
    metrics, missing = sources.plan_table(source)
    own = source != f"{RECORDED}{name}"  # a recorded study may be a part, and is complete in itself
    missing = [run for run in missing if own and not run.startswith("analyse-")]
    found = {key: rows for key, rows in sources.analysis(source).items() if key in COLUMNS}
    if missing or not len(found.get("contrasts", ())):
        what = f"{len(missing)} runs lack ({missing[0]} ...)" if missing else "no analysis"
        raise study.StudyError(f"{name} is not finished, {what}: cxrstudy run --preset {name}")
    tables, blank = suppress({"metrics": metrics} | found)
    texts = {key: _text(rows, key) for key, rows in tables.items()}
    manifest = {
        "schema": SCHEMA,
        "site": site,
        "study": name,
        "kind": sorted({str(kind) for kind in metrics["kind"].dropna()}),
        "fewest": FEWEST,
        "suppressed": blank,
        "cxrstudy": version("cxrstudy"),
        "tables": {
            key: {"rows": len(tables[key]), "bytes": len(text), "sha256": _hash(text)}
            for key, text in texts.items()
        },
    }
    path = Path(out).expanduser() if str(out) else Path(f"{name}.zip")
    files = {"manifest.json": json.dumps(manifest, indent=1).encode()}
    files |= {f"{key}.csv": text for key, text in texts.items()}
    with replacing(path) as scratch, zipfile.ZipFile(scratch, "w") as packed:
        for file, content in files.items():  # a fixed time: the same study is the same file
            packed.writestr(zipfile.ZipInfo(file), content, zipfile.ZIP_DEFLATED)
    return path


def suppress(tables: dict[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], int]:
    """Return tables with the columns that may leave, and the number of cells that are blank.

    In ``metrics``, a label's row is blank where a count is below ``FEWEST``. Where it is the only
    such label, that with the next fewest positives is blank too, or else the mean over labels
    would give it away. Totals over labels lose their counts. In the other tables, which hold totals
    alone, counts follow ``metrics``; a task whose total itself is small is left out.
    """
    found = {name: rows.copy() for name, rows in tables.items()}
    metrics = found["metrics"]
    counts = metrics.reindex(columns=COUNTS).apply(pd.to_numeric)
    total = metrics["label"].astype(str).str.split(": ").str[-1].isin(TOTALS)
    negatives = counts["n"] - counts["positives"]
    small = (counts < FEWEST).any(axis=1) | (~total & negatives.between(1, FEWEST - 1))
    family = metrics["label"].astype(str).str.rpartition(": ")[0]  # other patient: edema
    groups = metrics.assign(family=family).groupby(["run", "task", "metric", "family"]).ngroup()
    lost, labels = ((rows & ~total).groupby(groups).transform("sum") for rows in (small, ~total))
    rest = counts["positives"].mask(small | total)
    second = (lost == 1) & (rest == rest.groupby(groups).transform("min"))
    alone = (lost > 0) & (lost == labels)  # all labels are small, and so is their mean
    blank = small | second | alone
    hidden = set(metrics.loc[small & ~total, "task"])
    metrics[COUNTS] = counts.mask(blank | (total & metrics["task"].isin(hidden)))
    metrics.loc[blank, ["value", *ENDS]] = np.nan
    metrics["suppressed"] = blank.astype(int)
    gone = set(metrics.loc[alone, "task"])
    for name in ("values", "contrasts"):
        if name in found:
            counts = found[name][COUNTS].apply(pd.to_numeric)
            gone |= set(found[name].loc[(counts < FEWEST).any(axis=1), "task"])
            found[name].loc[found[name]["task"].isin(hidden), "positives"] = np.nan
    for name, rows in found.items():
        if name != "metrics" and "task" in rows:
            found[name] = rows[~rows["task"].isin(gone)]
    if gone:
        found.pop("claims", None)  # they may combine tasks
    codes: dict[str, str] = {}  # names of data sets are the hospital's own

    def coded(data: Any) -> Any:
        return codes.setdefault(str(data), f"data-{len(codes) + 1}") if pd.notna(data) else data

    for name, rows in found.items():
        if "data" in rows:
            tasks = [task.split("@") for task in rows["task"]]  # on other data: findings@DATA
            names = ["@".join([task, *map(coded, data)]) for task, *data in tasks]
            rows = rows.assign(data=rows["data"].map(coded), task=names)
        found[name] = rows.reindex(columns=COLUMNS[name]).reset_index(drop=True)
    return found, int(blank.sum())


def read_pack(path: str | Path) -> Pack:
    """Read a pack from another institution.

    Raises:
        StudyError: it is no pack, of another schema, not as its manifest says, or absurdly large.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            sizes = {entry.filename: entry.file_size for entry in packed.infolist()}
            if len(sizes) > 1 + len(COLUMNS) or sum(sizes.values()) > LARGEST_PACK:
                raise study.StudyError(
                    f"{path}: {len(sizes)} files of {sum(sizes.values()):,} bytes: this is no pack"
                )
            files = {name: _unpacked(packed, name, path) for name in sizes}
        manifest = json.loads(files.pop("manifest.json"))
        if manifest["schema"] != SCHEMA:
            raise study.StudyError(f"{path}: schema {manifest['schema']}, not {SCHEMA}")
        listed = manifest["tables"]
        if set(files) != {f"{name}.csv" for name in listed} or not listed.keys() <= COLUMNS.keys():
            raise study.StudyError(f"{path}: its files are not those that its manifest lists")
        if not re.fullmatch(NAME, str(manifest["site"])):
            raise study.StudyError(f"{path}: {manifest['site']!r} is no name of a site")
        tables = {name: _table(files[f"{name}.csv"], name, listed[name], path) for name in listed}
    except (zipfile.BadZipFile, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, study.StudyError):
            raise
        raise study.StudyError(f"{path}: no pack of cxrstudy share ({error!r})") from None
    return Pack(manifest, tables)


def _unpacked(packed: zipfile.ZipFile, name: str, path: str | Path) -> bytes:
    """Return a file's bytes, as far as they are of a sane number, whatever the archive says."""
    with packed.open(name) as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise study.StudyError(f"{path}: {name} has more than {LARGEST_FILE:,} bytes")
    return content


def _table(content: bytes, name: str, listed: dict[str, Any], path: str | Path) -> pd.DataFrame:
    if _hash(content) != listed["sha256"]:
        raise study.StudyError(f"{path}: {name}.csv was changed after it was packed")
    rows = pd.read_csv(io.BytesIO(content), keep_default_na=False, na_values=[""])
    if list(rows) != COLUMNS[name] or not len(rows) == listed["rows"] <= MOST_ROWS:
        raise study.StudyError(f"{path}: {name}.csv has other columns or rows than it should")
    numbers = [column for column in MEASURED if column in rows]
    rows[numbers] = rows[numbers].apply(pd.to_numeric)
    _check_texts(rows, f"{path}: {name}.csv")
    return rows


def _text(rows: pd.DataFrame, name: str) -> bytes:
    """Return a table as CSV; names of encoders and base models without the folders they are in."""
    for column in {"encoder", "base"} & set(rows):
        rows[column] = [PurePath(str(v)).name if pd.notna(v) else v for v in rows[column]]
    _check_texts(rows, f"table {name}")
    return rows.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()


def _check_texts(rows: pd.DataFrame, where: str) -> None:
    """Refuse texts that are no names of ours: paths, markup, sentences."""
    for column in rows.select_dtypes(exclude="number"):
        for text in rows[column].dropna().unique():
            if not TEXT.fullmatch(str(text)):
                raise study.StudyError(
                    f"{where}: {column} holds {str(text)[:60]!a}, which no pack has"
                )


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
