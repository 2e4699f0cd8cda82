"""Walk the folders of an archive: one row a file, with its tags, and why it is left out."""

import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pandas as pd
from joblib import Parallel, delayed
from pydicom.uid import UID

from cxrstudy.data import odd
from cxrstudy.data.filetypes import DICOM
from cxrstudy.data.lexicon import read_lexicon
from cxrstudy.files import replacing
from cxrstudy.ingest.bodyparts import BOTH, CHEST, OTHER, UNKNOWN, body_part
from cxrstudy.ingest.headers import CLOSED, COLUMNS, read_header
from cxrstudy.progress import Progress
from cxrstudy.study import StudyError

BATCH = 500  # files that one process reads at a time: what a kill loses
KEYS = ["path", "size", "mtime"]  # a file is read again if one of them has changed
STORED = ("kind", "fault", *COLUMNS)
FORM = hashlib.blake2b(" ".join(STORED).encode()).hexdigest()[:8]  # of the stored columns
NUMBERS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "SamplesPerPixel", "NumberOfFrames")
OF_IMAGE = (  # texts that name the part of the body, of the image and of its study
    *("BodyPartExamined", "AnatomicRegionMeaning", "SeriesDescription", "ProtocolName"),
    "AcquisitionDeviceProcessingDescription",
)
OF_STUDY = (
    *("PerformedProcedureStepDescription", "RequestedProcedureDescription"),
    *("ProcedureCodeMeaning", "StudyDescription"),
)
STORAGE = "1.2.840.10008.5.1.4.1.1."
XRAYS = [STORAGE + end for end in ("1", "1.1", "1.1.1")]
CAPTURE = STORAGE + "7"
PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")  # not compressed
OTHER_CLASSES = {  # beginning of a SOP class -> why its objects are left out
    "1.2.840.10008.1.3.10": "DICOMDIR",
    STORAGE + "88.59": "key object selection",
    STORAGE + "88.": "structured report",
    STORAGE + "11.": "presentation state",
    STORAGE + "104.": "encapsulated document",
}
OTHER_MODALITIES = frozenset(read_lexicon("dicomtags")["left out"]["modalities"].split())
OBJECTS = {"SR": "structured report", "PR": "presentation state", "KO": "key object selection"}
OBJECTS |= {"DOC": "encapsulated document", "PLAN": "no image"}
SYSTEM = ("@eaDir", "$RECYCLE.BIN", "System Volume Information", "__MACOSX")  # thumbnails, deleted
FILMS = ("CR", "DX", "DR", "RG", "XR")  # modalities of projection radiography
RAW, VIEW = "FOR PROCESSING", ["ViewPosition", "ViewCodeMeaning"]
TWIN = "for processing, and its twin for presentation is there"
COPY, TWO_PATIENTS = "copy of an image of this archive", "one SOPInstanceUID in two patients"


def walk(
    folders: Sequence[str | os.PathLike[str]],
    private: str | os.PathLike[str],
    workers: int = 1,
    progress: Progress = iter,
) -> pd.DataFrame:
    """Return one row a file below ``folders``: path, kind, drop_reason, note and tags as columns.

    ``drop_reason`` is empty for images that are kept for now. ``note`` says what is doubtful about
    them. Columns have the keywords of DICOM as names, "" where absent. Numbers are floats.

    Headers are stored below ``private`` as they are read, so that a walk that is killed continues,
    and a later walk reads only files that are new, or whose size or time has changed. Links are
    not followed, hidden files and folders not read.

    Args:
        folders: where images may be, in folders of any depth.
        private: folder for the inventory; it holds identifiers.
        workers: processes.
        progress: wraps the iteration over batches.

    Raises:
        StudyError: a folder is absent or no folder, or there is no file at all.
    """
    store = Path(private) / "inventory"
    store.mkdir(parents=True, exist_ok=True)
    Path(private).chmod(0o700)
    with (store.parent / "walk.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StudyError(f"another ingest works in {store.parent}: wait for it") from None
        listing = _list(_roots(folders), Path(private).resolve())
        files = listing.loc[listing["problem"] == "", KEYS]
        _read_new(files, store, workers, progress)
        stored = files.merge(_load(store), on=KEYS)
        if len(list(store.iterdir())) > 1:
            _write(stored, store / f"{FORM}-whole.parquet")
            for path in store.iterdir():
                if not path.name.endswith("whole.parquet"):
                    path.unlink()
    return judge(listing.merge(stored, on=KEYS, how="left"))


def new_files(folders: Sequence[str | os.PathLike[str]], private: Path) -> int:
    """Return how many files below ``folders`` are new, or changed, since the last walk."""
    listing = _list(_roots(folders), private.resolve())
    files = pd.MultiIndex.from_frame(listing.loc[listing["problem"] == "", KEYS])
    return int((~files.isin(pd.MultiIndex.from_frame(_load(private / "inventory", KEYS)))).sum())


# ---- the tree ------------------------------------------------------------------------------------
def _roots(folders: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the folders, each once, without those inside another."""
    for folder in folders:
        if not Path(folder).expanduser().is_dir():
            what = "is no folder" if Path(folder).expanduser().exists() else "is not there"
            raise StudyError(f"{folder} {what}: name a folder with the images of the archive")
    found = sorted({Path(folder).expanduser().resolve() for folder in folders})
    return [path for path in found if not any(path.is_relative_to(o) for o in found if o != path)]


def _list(roots: Sequence[Path], private: Path) -> pd.DataFrame:
    """Return path, size, mtime (ns) and problem of every entry that is no ordinary folder."""
    rows: list[tuple[str, int, int, str]] = []
    folders = [str(root) for root in reversed(roots)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            rows.append((folder, 0, 0, "folder that cannot be opened"))
            continue
        if any(entry.name == "ingest.json" for entry in found):
            rows.append((folder, 0, 0, "folder that an ingest has made"))
            continue
        inside = []
        for entry in found:
            if entry.path == str(private):
                continue
            size, mtime, problem = _entry(entry, roots)
            if problem is None:
                inside.append(entry.path)
            else:
                path = os.fsencode(entry.path).decode(errors="backslashreplace")
                rows.append((path, size, mtime, problem))
        folders += reversed(inside)
    if not rows:
        raise StudyError(f"{', '.join(map(str, roots))}: there is no file, in no folder of it")
    return pd.DataFrame(rows, columns=[*KEYS, "problem"])


def _entry(entry: "os.DirEntry[str]", roots: Sequence[Path]) -> tuple[int, int, str | None]:
    """Return size, time and problem of an entry; the problem is None for a folder to walk."""
    try:
        if entry.name.encode(errors="ignore") != os.fsencode(entry.name):
            return 0, 0, "name that is not UTF-8: rename it"
        if entry.is_symlink():
            target = Path(entry.path).resolve()
            if not target.exists():
                return 0, 0, "broken link"
            below = any(target.is_relative_to(root) for root in roots)
            return 0, 0, f"link to what is walked {'already' if below else 'not: name its target'}"
        is_folder = entry.is_dir()
        if entry.name.startswith(".") or entry.name in SYSTEM:
            return 0, 0, f"hidden {'folder' if is_folder else 'file'}"
        if is_folder:
            return 0, 0, None
        found = entry.stat()
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        return 0, 0, "broken link"
    if not stat.S_ISREG(found.st_mode):
        return 0, 0, "no ordinary file"
    return found.st_size, found.st_mtime_ns, "" if found.st_size else "empty file"


# ---- the inventory -------------------------------------------------------------------------------
def _read_new(files: pd.DataFrame, store: Path, workers: int, progress: Progress) -> None:
    """Read the headers of the files that are not in the inventory, in parallel."""
    stored = _load(store, (*KEYS, "fault"))
    closed = stored["fault"].str.startswith(CLOSED)  # rights may have been given meanwhile
    known = pd.MultiIndex.from_frame(stored.loc[~closed, KEYS])
    new = files[~pd.MultiIndex.from_frame(files).isin(known)]
    batches = [new.iloc[at : at + BATCH] for at in range(0, len(new), BATCH)]
    done = Parallel(n_jobs=workers, return_as="generator_unordered")(
        delayed(_read_batch)(batch, store) for batch in batches
    )
    for _ in zip(progress(range(len(batches))), done, strict=True):
        pass


def _read_batch(files: pd.DataFrame, store: Path) -> None:
    """Read the headers of some files into one file of the inventory."""
    headers = [read_header(path) for path in files["path"]]
    columns = {name: [header.get(name, "") for header in headers] for name in STORED}
    _write(files.assign(**columns), store / f"{FORM}-{time.time_ns()}-{os.getpid()}.parquet")


def _write(rows: pd.DataFrame, path: Path) -> None:
    with replacing(path) as scratch:
        rows.to_parquet(scratch, index=False, compression="zstd")


def _load(store: Path, columns: Sequence[str] = (*KEYS, *STORED)) -> pd.DataFrame:
    """Return the stored rows, each once. Files of another form, or damaged, are deleted."""
    tables = []
    for path in sorted(store.glob("[!.]*")):
        try:
            if not path.name.startswith(FORM):
                raise ValueError(path.name)
            tables.append(pd.read_parquet(path, columns=list(columns)))
        except Exception:  # pyarrow raises a dozen kinds; the files are read again
            path.unlink()
    if not tables:
        kinds = {"size": int, "mtime": int}
        return pd.DataFrame({name: pd.Series(dtype=kinds.get(name, str)) for name in columns})
    return pd.concat(tables, ignore_index=True).drop_duplicates(KEYS)


# ---- what is left out ----------------------------------------------------------------------------
def judge(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of files with kind, drop_reason and note. The first reason counts."""
    frame = frame.fillna(dict.fromkeys(STORED, ""))
    for name in NUMBERS:
        numbers = pd.to_numeric(frame[name].str.split("\\").str[0], errors="coerce")
        frame[name] = numbers.astype(float)
    part = _body_parts(frame)
    reason = pd.Series("", index=frame.index)
    for why, at in _reasons(frame, part):
        reason = reason.where((reason != "") | ~at, why)
    for find in (_twins, _copies):
        found = find(frame[reason == ""])
        reason[found.index] = found
    frame["drop_reason"] = reason
    frame["note"] = _notes(frame, part).where(reason == "", "")
    uids = frame["SOPClassUID"].where(frame["kind"] == DICOM, "")
    names = {uid: f"DICOM: {UID(uid).name.replace(' Storage', '')}" for uid in uids.unique()}
    frame["kind"] = frame["kind"].where(uids == "", uids.map(names))
    first = ["path", "kind", "drop_reason", "note"]
    return frame[[*first, *frame.columns.difference([*first, "problem"], sort=False)]]


def _reasons(
    frame: pd.DataFrame, part: pd.Series
) -> Iterator[tuple["str | pd.Series", "pd.Series"]]:
    """Yield each reason, and of each row whether it applies, in the order in which they count."""
    dicom = frame["kind"] == DICOM
    modality = frame["Modality"].str.upper().str.strip()
    sides = frame[["Rows", "Columns"]]
    yield frame["problem"], frame["problem"] != ""
    classes = [_class_reason(*pair) for pair in zip(frame["SOPClassUID"], modality, strict=True)]
    yield pd.Series(classes, index=frame.index), pd.Series(classes, index=frame.index) != ""
    yield frame["fault"], frame["fault"] != ""
    yield "no image", sides.isna().any(axis=1)
    yield "several frames", frame["NumberOfFrames"] > 1
    grey = frame["PhotometricInterpretation"].isin(["MONOCHROME1", "MONOCHROME2", ""])
    yield "colour", dicom & ~(grey & ~(frame["SamplesPerPixel"] > 1))
    unlike = ~modality.isin(FILMS) & (part != CHEST)
    yield "secondary capture", _is_capture(frame) & unlike
    yield "not the chest", part == OTHER
    yield odd.TINY, sides.min(axis=1) < odd.LEAST_SIDE
    size = sides.prod(axis=1) * frame["BitsAllocated"] / 8
    yield "pixel data cut short", frame["TransferSyntaxUID"].isin(PLAIN) & (size > frame["size"])


@cache
def _class_reason(sop: str, modality: str) -> str:
    """Return why objects of a SOP class and modality are left out, "" if they are not."""
    for start, why in OTHER_CLASSES.items():
        if sop.startswith(start):
            return why
    if modality in OBJECTS:
        return OBJECTS[modality]
    capture = sop == CAPTURE or sop.startswith(f"{CAPTURE}.")
    other = sop.startswith(STORAGE) and sop not in XRAYS and not capture
    return "other modality" if other or modality in OTHER_MODALITIES else ""


def _is_capture(frame: pd.DataFrame) -> pd.Series:
    sop = frame["SOPClassUID"]
    return (sop == CAPTURE) | sop.str.startswith(f"{CAPTURE}.")


def _body_parts(frame: pd.DataFrame) -> pd.Series:
    """Return the part of the body of each row: texts of the image count before its study's."""
    rows = zip(*(frame[name] for name in (*OF_IMAGE, *OF_STUDY)), strict=True)
    n = len(OF_IMAGE)
    found = [body_part(*texts[:n]) or body_part(*texts[n:]) for texts in rows]
    return pd.Series(found, index=frame.index)


def _notes(frame: pd.DataFrame, part: pd.Series) -> pd.Series:
    """Return what is doubtful about each row, joined by semicolons."""
    dicom = frame["kind"] == DICOM
    sides = frame[["Rows", "Columns"]]
    doubts = {
        "part of the body unknown": dicom & (part == UNKNOWN),
        "part of the body contradictory": part == BOTH,
        "secondary capture": _is_capture(frame),
        "for processing": frame["PresentationIntentType"].str.upper() == RAW,
        "modality unknown": dicom & ~frame["Modality"].str.upper().isin(FILMS),
        "no PatientID": dicom & (frame["PatientID"] == ""),
        "no StudyInstanceUID": dicom & (frame["StudyInstanceUID"] == ""),
        odd.ASPECT: sides.max(axis=1) > odd.MOST_ASPECT * sides.min(axis=1),
    }
    notes = pd.Series("", index=frame.index)
    for text, at in doubts.items():
        notes = notes.where(~at, notes + f"; {text}")
    return notes.str.removeprefix("; ")


def _twins(kept: pd.DataFrame) -> pd.Series:
    """Return the reason of images for processing that are there for presentation too.

    The latter are all that are not for processing, since many do not say so. The irradiation event
    says which is which. Where it is missing, images of one study with the same time of acquisition
    or the same view are twins, and so are any two of no known view.
    """
    intent = kept["PresentationIntentType"].str.upper()
    raw, shown = kept[intent == RAW], kept[intent != RAW]
    twins: list[int] = []
    study = "StudyInstanceUID"
    for names in (["IrradiationEventUID"], ["AcquisitionTime"], VIEW, [study]):
        keys = list(dict.fromkeys([study, *names]))
        given = shown[(shown[study] != "") & (shown[names] != "").any(axis=1)]
        asked = raw[(raw[names] != "").any(axis=1) & raw[study].isin(given[study])]
        same = pd.MultiIndex.from_frame(asked[keys]).isin(pd.MultiIndex.from_frame(given[keys]))
        twins += list(asked.index[same])
        told = names in (["IrradiationEventUID"], VIEW)  # two that differ in it are no twins
        raw = raw.drop(asked.index if told else asked.index[same])
    return pd.Series(TWIN, index=twins)


def _copies(kept: pd.DataFrame) -> pd.Series:
    """Return the reason of images whose SOPInstanceUID another image has."""
    uids = kept[kept["SOPInstanceUID"] != ""]
    patients = uids.groupby("SOPInstanceUID")["PatientID"].transform("nunique")
    copies = uids[uids.duplicated("SOPInstanceUID") & (patients == 1)]
    mixed = uids[patients > 1]
    return pd.concat(
        [pd.Series(COPY, index=copies.index), pd.Series(TWO_PATIENTS, index=mixed.index)]
    )
