"""Make an ingest folder of an archive: ids hashed, views and labels guessed, all of it counted."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy import study
from cxrstudy.data.vocabulary import VIEWS
from cxrstudy.files import replacing, write_text
from cxrstudy.ingest import burned, card, duplicates, facts, pixels, quality, views
from cxrstudy.ingest.columnkinds import Column
from cxrstudy.ingest.join import join
from cxrstudy.ingest.pseudonym import key_mark, load_key, pseudonyms
from cxrstudy.ingest.walk import walk
from cxrstudy.progress import Progress

STEPS = {  # what may drop a file, and what is left after it
    "header": "x-rays of a chest, by their headers",
    "ids": "with a patient",
    "view": "frontal or lateral, or of unknown view",
    "pixels": "with readable pixels",
    "burned": "without text burned into the pixels",
    "duplicate": "each picture once",
}


@dataclass
class Ingest:
    """One ingest: where it is, and what is known so far."""

    name: str
    place: Path
    key: bytes
    asked: dict[str, list[str]]  # paths: folders, tables, against, public_ids
    workers: int
    say: Callable[[str], None]
    progress: Callable[..., Any] | None
    facts: dict[str, Any] = field(default_factory=dict)  # becomes quality.json
    columns: list[Column] = field(default_factory=list)  # of tables

    @property
    def private(self) -> Path:
        """The folder with real ids, which nothing but an ingest reads."""
        return self.place / "private"

    def bar(self, what: str) -> Progress:
        """Return a progress bar for a loop."""
        return partial(self.progress, what=what) if self.progress else iter

    def of_kind(self, kind: str) -> list[str]:
        """Return the columns of tables that hold a kind of cells."""
        return [each.name for each in self.columns if each.kind == kind]


def ingest(
    folders: Sequence[str],
    name: str,
    *,
    tables: Sequence[str] = (),
    out: str = "",
    key: str = "",
    public_ids: str = "",
    against: Sequence[str] = (),
    keep_burned_in: bool = False,
    workers: int = 1,
    say: Callable[[str], None] = print,
    progress: Callable[..., Any] | None = None,
) -> Path:
    """Make or grow an ingest folder and its data card; return the folder.

    What earlier ingests were given is read again; rows of images that were there stay.

    Args:
        folders: of the archive.
        name: of the card.
        tables: files, folders or globs of tables and of reports.
        out: the ingest folder; default ``ingested/NAME`` in the clone.
        key: file with the key of the hashes; default ``~/.config/cxrstudy/NAME.key``.
        public_ids: a list of ids of public images that encoders were trained on.
        against: folders of data runs and of other ingests, whose images may be here too.
        keep_burned_in: keep images with text in their pixels.
        workers: processes.
        say: called with each sentence for the user.
        progress: wraps long loops; called with ``what``.

    Raises:
        StudyError: a folder, table, key or name is not usable, or no image is left.
    """
    asked = {"folders": folders, "tables": tables, "against": against}
    asked["public_ids"] = [public_ids] if public_ids else []
    run = _begin(name, asked, out, key, workers, say, progress)
    frame = _read(run)
    _kept(frame)
    frame = _look(run, frame, keep_burned_in)
    _drop_copies(run, frame)
    kept = _kept(frame)
    public, others = run.asked["public_ids"][:1], run.asked["against"]
    if public or others:
        run.facts["contamination"] = duplicates.contamination(kept, "".join(public), others)
        say(run.facts["contamination"]["said"])
    whole = _merge(run, _rows(run, kept), dict(zip(kept["image_id"], kept["path"], strict=True)))
    run.facts["flow"] = quality.flow(frame, STEPS)
    _finish(run, kept, whole)
    return run.place


def _kept(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are not dropped; refuse that there is none, with the reasons."""
    kept = frame[frame["drop_reason"] == ""]
    if kept.empty:
        reasons = frame["drop_reason"].value_counts()
        most = ", ".join(f"{why} {n:,}" for why, n in reasons.head(5).items())
        remedy = ""
        if reasons.index[0] == "no patient id":
            remedy = ". Give a table with image and patient (--table): splits are by patient"
        raise study.StudyError(f"no image is left of {len(frame):,} files: {most}{remedy}")
    return kept


def _begin(
    name: str,
    asked: dict[str, Sequence[str]],
    out: str,
    key: str,
    workers: int,
    say: Callable[[str], None],
    progress: Callable[..., Any] | None,
) -> Ingest:
    """Return an ingest whose folder, key and name are fit; refuse another key than before."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise study.StudyError(f"--name {name!r}: use letters, digits, '-' and '_' only")
    place = Path(out).expanduser().resolve() if out else study.root() / "ingested" / name
    given = {what: [os.path.abspath(Path(p).expanduser()) for p in asked[what]] for what in asked}
    given["folders"] = [os.path.realpath(folder) for folder in given["folders"]]
    if inside := [folder for folder in given["folders"] if place.is_relative_to(folder)]:
        raise study.StudyError(f"--out {place} is inside {inside[0]}: name a folder elsewhere")
    for what, path in ((what, path) for what, paths in given.items() for path in paths):
        if not Path(path).exists() and not re.search(r"[*?\[]", path):
            option = {"tables": "--table", "public_ids": "--public-ids"}.get(what, f"--{what}")
            raise study.StudyError(f"{option} {path}: there is no such file or folder")
    for other in map(Path, given["against"]):
        if other.resolve() == place.resolve():
            raise study.StudyError(f"--against {other} is the folder of this ingest itself")
        if not any((other / file).is_file() for file in ("ingest.json", "prepared.json")):
            raise study.StudyError(f"--against {other} is neither a data run nor an ingest folder")
    private, described = place / "private", place / "ingest.json"
    before = json.loads(described.read_text("utf-8")) if described.is_file() else {}
    if place.is_dir() and any(place.iterdir()) and not before:
        raise study.StudyError(f"{place} is not empty and no ingest folder: give another --out")
    card.refuse_foreign(name, private)
    call = private / "call.json"
    was = json.loads(call.read_text("utf-8")) if call.is_file() else {}
    file = key or "".join(was.get("key", [])) or f"~/.config/cxrstudy/{name}.key"
    if before and not Path(file).expanduser().exists():
        raise study.StudyError(
            f"key file {file} is gone, and a new key would change all ids: restore it, or name it "
            "with --key, or ingest into a new folder (--out)"
        )
    secret = load_key(file, inside=[place, *given["folders"]])
    if before and before["key"] != key_mark(secret):
        raise study.StudyError(
            f"{place} was made with another key than {file}: give that with --key, or ingest into "
            "a new folder (--out), where all ids are others"
        )
    private.mkdir(parents=True, exist_ok=True, mode=0o700)
    private.chmod(0o700)
    for what, paths in given.items():
        for path in (path for path in was.get(what, []) if path not in paths):
            if Path(path).exists() or re.search(r"[*?\[]", path):
                paths.append(path)
            else:
                say(f"note: {path}, which an earlier ingest has read, is gone")
    every = list(dict.fromkeys([*before.get("folders", []), *given["folders"]]))
    given["key"] = [os.path.abspath(Path(file).expanduser())]
    now = {"name": name, "key": key_mark(secret), "folders": every}
    write_text(described, json.dumps(now, indent=1))
    return Ingest(name, place, secret, given, workers, say, progress)


# ---- the steps -----------------------------------------------------------------------------------
def _drop(frame: pd.DataFrame, at: Any, step: str, reason: Any) -> None:
    """Mark rows that are still kept as dropped by a step."""
    chosen = np.asarray(at, bool) & frame["drop_reason"].eq("").to_numpy()
    frame.loc[chosen, "drop_step"] = step
    frame.loc[chosen, "drop_reason"] = reason[chosen] if isinstance(reason, pd.Series) else reason


def _read(run: Ingest) -> pd.DataFrame:
    """Return a row a file: its tags, columns of tables, ids and view, and why it is dropped."""
    folders = run.asked["folders"]
    run.say(f"reading headers below {', '.join(folders)}")
    walked = walk(folders, run.private, run.workers, run.bar("headers"))
    is_image = walked["drop_reason"] == ""
    joined, matches = join(walked[is_image], run.asked["tables"])
    write_text(run.private / "call.json", json.dumps(run.asked, indent=1))  # they fit: read again
    frame = pd.concat([joined, walked[~is_image]], ignore_index=True)
    frame["drop_step"] = np.where(frame["drop_reason"] != "", "header", "")
    notes = Counter(note for text in joined["note"] for note in text.split("; ") if note)
    run.facts |= {"notes": dict(notes.most_common()), "tables": [], "evidence": {}}
    for match in matches:
        run.say(str(match))
        run.columns += match.columns
        of_files = ("columns", "table")  # names of files may hold names of persons
        known = {what: value for what, value in asdict(match).items() if what not in of_files}
        run.facts["tables"].append(known)
    kept = frame["drop_reason"] == ""
    for what in ("patient", "study"):
        found, counts, respelled = facts.ids(frame[kept], what, run.columns)
        frame[what] = found
        said = "no study ids: each image is a study of its own"
        if found.notna().any():
            said = f"keyed hash of {facts.evidence(counts)}"
        said += f"; {respelled:,} ids were written in several ways" if respelled else ""
        run.facts["evidence"][f"{what}_id"] = said
    _drop(frame, frame["patient"].isna(), "ids", "no patient id")
    column = next(iter(run.of_kind("view")), "")
    frame["view"], frame["view_from"], clash = views.guess_views(frame[kept], column)
    frame["clash"] = clash.reindex(frame.index, fill_value="")
    run.facts["contradictions"] = clash[clash != ""].value_counts().to_dict()
    _drop(frame, frame["view"] == views.OTHER, "view", "oblique, decubitus, apical or of ribs")
    return frame


def _look(run: Ingest, frame: pd.DataFrame, keep_burned_in: bool) -> pd.DataFrame:
    """Return the frame with what pixels show; drop unreadable ones; classify unknown views."""
    kept = frame["drop_reason"] == ""
    run.say(f"looking at the pixels of {kept.sum():,} images (once: they are remembered)")
    seen = pixels.look(frame[kept], run.private, run.workers, run.bar("images"))
    frame = frame.join(seen.rename(columns={"fault": "unreadable"}))
    _drop(frame, frame["unreadable"].fillna("") != "", "pixels", frame["unreadable"])
    by_tag = frame["BurnedInAnnotation"].map(burned.says_burned_in)
    by_eye = frame["burned"] >= burned.THRESHOLD
    still = frame["drop_reason"] == ""
    run.facts["burned_in"] = {
        "tag": int((by_tag & still).sum()),
        "detector": int((by_eye & still).sum()),
    }
    if not keep_burned_in:
        if found := int(((by_tag | by_eye) & still).sum()):
            run.say(
                f"{found:,} images seem to have text in their pixels and are set aside; look at"
            )
            run.say("some of them: --keep-burned-in keeps all")
        _drop(frame, by_tag | by_eye, "burned", "text burned into the pixels")
    _classify(run, frame)
    return frame


def _classify(run: Ingest, frame: pd.DataFrame) -> None:
    """Set the view of images of which no header tells it, or two differ, where pixels are sure.

    The classifier learns from images whose headers agree. Of two headers that differ the first
    counts, unless the classifier says what the other says.
    """
    kept = frame[frame["drop_reason"] == ""]
    clear = kept[(kept["view"] != "") & (kept["clash"] == "")].sort_values("pixel_hash")  # random
    clear = clear.groupby("view").head(views.MOST)
    asked = kept[(kept["view"] == "") | (kept["clash"] != "")]
    said, two = "", int((kept["clash"] != "").sum())
    if len(asked) and len(clear):
        rows, known = (views.features(pixels.thumbs(part, run.private)) for part in (asked, clear))
        patients = clear["patient"].tolist()
        found, measured = views.classify_views(rows, known, clear["view"].tolist(), patients)
        view = pd.Series(found, asked.index)
        new = view[(asked["view"] == "") & (view != "")]
        frame.loc[new.index, "view"], frame.loc[new.index, "view_from"] = new, "view classifier"
        other = asked["clash"].str.extract(r", (.*) (\w+)$")
        turned = view[(view == other[1]) & (asked["clash"] != "")]
        how = other.loc[turned.index, 0] + " and the view classifier"
        frame.loc[turned.index, "view"], frame.loc[turned.index, "view_from"] = turned, how
        unknown = int((asked["view"] == "").sum())
        run.facts["view_classifier"] = measured | {"asked": unknown, "decided_of_asked": len(new)}
        said = f"; the classifier was not used: {measured.get('unused')}"
        if "accuracy" in measured:
            said = f"; the classifier is right in {measured['accuracy']:.0%} of {measured['n']:,} "
            said += f"known views, in {measured['accuracy_decided'] or 0:.0%} where it decides"
        if two:
            said += f"; two headers differ in {two:,} images: the first counts, in {len(turned):,} "
            said += "the other, which the classifier confirms"
    kept = frame[frame["drop_reason"] == ""]
    run.facts["view_from"] = kept["view_from"].replace("", "unknown").value_counts().to_dict()
    run.facts["evidence"]["view"] = facts.evidence(run.facts["view_from"]) + said


def _drop_copies(run: Ingest, frame: pd.DataFrame) -> None:
    """Set ids of images, drop copies of others, and list all pairs in duplicates.csv.

    Images of earlier ingests come first, so that they stay.
    """
    kept = frame[frame["drop_reason"] == ""]
    uid = kept["SOPInstanceUID"].str.strip()
    name = uid.where(uid != "", kept["patient"] + " " + kept["pixel_hash"].fillna(""))
    frame["image_id"] = pseudonyms("image", name, run.key) if len(kept) else ""
    _drop(frame, frame["image_id"].duplicated(), "duplicate", "one image id twice")
    kept = frame[frame["drop_reason"] == ""]
    order = (~kept["image_id"].isin(_earlier(run)["image_id"])).sort_values(kind="stable").index
    columns = [*duplicates.HASHES, "patient", "study"]
    pairs = duplicates.find_duplicates(kept.loc[order, columns])
    reason = duplicates.later_copies(pairs).reindex(frame.index)
    _drop(frame, reason.notna(), "duplicate", reason)
    for side in ("one", "other"):
        pairs[side] = pairs[side].map(frame["image_id"])
    write_text(run.place / "duplicates.csv", pairs.to_csv(index=False))
    run.facts["duplicates"] = {
        f"{kind}{'' if same else ', two patients'}": int(n)
        for (kind, same), n in pairs.groupby(["kind", "same_patient"]).size().items()
    }


def _earlier(run: Ingest) -> pd.DataFrame:
    path = run.place / "images.parquet"
    return pd.read_parquet(path) if path.is_file() else pd.DataFrame({"image_id": []})


# ---- images.parquet ------------------------------------------------------------------------------
def _rows(run: Ingest, kept: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of images.parquet."""
    said = run.facts["evidence"]
    made = kept[["image_id"]].copy()
    made["patient_id"] = pseudonyms("patient", kept["patient"], run.key)
    exam = kept["study"].astype(object).fillna("image " + kept["image_id"])
    made["study_id"] = pseudonyms("study", exam, run.key)
    made["path"] = "images/" + made["image_id"].str[:2] + "/" + made["image_id"]
    made["view"] = kept["view"].where(kept["view"].isin(VIEWS))
    made["view_from"] = kept["view_from"]
    made["age"], counts = facts.ages(kept, run.of_kind("age"))
    said["age"] = f"{facts.evidence(counts)}; above {facts.OLDEST} written as {facts.OLDEST}"
    made["sex"], counts = facts.sexes(kept, run.of_kind("sex"))
    said["sex"] = facts.evidence(counts)
    made["pixel_spacing"], counts = facts.spacings(kept, [])
    said["pixel_spacing"] = facts.evidence(counts)
    made["report"], columns, left = facts.reports(kept, run.columns, run.workers)
    run.facts["identifiers"] = left
    shown = ", ".join(f"{kind} {n:,}" for kind, n in left.items()) or "none"
    share = f"{made['report'].notna().mean():.0%} of images"
    said["report"] = f"{columns}, {share}; identifiers found in them and replaced: {shown}"
    said["image_id"] = "keyed hash of SOPInstanceUID, or of patient and pixels"
    labels, run.facts["labels_found"] = facts.labels(kept, run.columns, made["report"])
    places, run.facts["positions"] = facts.positions(kept, run.columns)
    return pd.concat([made, labels, places], axis=1)


def _merge(run: Ingest, made: pd.DataFrame, paths: dict[str, str]) -> pd.DataFrame:
    """Add rows to images.parquet and links to the archive; rows of earlier ingests stay."""
    before = _earlier(run)
    fresh = made[~made["image_id"].isin(before["image_id"])]
    whole = fresh
    if len(before):
        more = [column for column in made if column not in before]
        before = before.merge(made[["image_id", *more]], on="image_id", how="left")
        whole = pd.concat([before, fresh], ignore_index=True)
        gone = int((~before["image_id"].isin(made["image_id"])).sum())
        patients = len(set(fresh["patient_id"]) - set(before["patient_id"]))
        run.facts["new"] = {"images": len(fresh), "patients": patients, "not found now": gone}
        run.say(
            f"{len(before):,} images were there already and keep their rows ({gone:,} of them were "
            f"not found now); {len(fresh):,} images and {patients:,} patients are new"
        )
    for name, target in paths.items():
        file = run.place / "images" / name[:2] / name
        if not (file.is_symlink() and os.readlink(file) == target):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            file.symlink_to(target)
    with replacing(run.place / "images.parquet") as scratch:
        whole.to_parquet(scratch, index=False)
    return whole


def _finish(run: Ingest, kept: pd.DataFrame, whole: pd.DataFrame) -> None:
    """Write the card, read it as a study does, and write quality.json and dropped.csv."""
    from cxrstudy.data.cards import load_manifest

    root = study.root()
    shown = run.place.relative_to(root) if run.place.is_relative_to(root) else run.place
    text = card.card_text(run.name, str(shown), run.facts, whole)
    path = card.write_unedited(root / "data_cards" / f"{run.name}.md", text, run.private, run.say)
    run.say(f"card: {path.relative_to(root)}")
    try:
        manifest = load_manifest(run.name, root=run.place)
    except ValueError as error:
        raise study.StudyError(f"{path.relative_to(root)} cannot be used: {error}") from None
    found = run.facts.pop("labels_found")
    run.facts["labels_from"] = "tables" if found["names"] or found["list"] else "reports"
    run.facts |= {"name": run.name, **quality.collect(manifest, kept, run.private)}
    text = json.dumps(run.facts, indent=1, ensure_ascii=False, default=str)
    write_text(run.place / "quality.json", f"{text}\n")
    flow = run.facts["flow"]
    rows = [(step["step"], why, n) for step in flow for why, n in step["dropped"].items()]
    table = pd.DataFrame(rows, columns=["step", "reason", "files"])
    write_text(run.place / "dropped.csv", table.to_csv(index=False))
