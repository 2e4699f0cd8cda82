"""Find copies: equal pixels, near-duplicates, studies of two patients, images public elsewhere.

**Near-duplicates.** The perceptual hash is a pHash (signs of the lowest 16 x 16 cosine
coefficients, 256 bits) of the ranks of the greys: a window or another monotone curve hardly moves
it, and an inverted picture has all bits inverted. It is taken twice, of the centred square and of
this without its outer 1.5%, so that a cropped copy meets one of the two. On 16,220 real x-rays
(131 million pairs) copies differ in at most 8 bits and different exams in at least 30; pictures
that are encoded again, resized, lettered, windowed or cropped by up to 2% differ in at most 26.

**Search.** Two hashes are compared if one of 16 bands of 16 bits is equal. It must be if at most 15
bits differ. The bands are drawn at random, since neighbouring bits are alike in most chests.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn
from scipy.stats import rankdata

from cxrstudy import study
from cxrstudy.data.dicom import UnreadableImage
from cxrstudy.data.images import open_prepared, read_image
from cxrstudy.ingest.tablefiles import read_source

HASHES = ("pixel_hash", "polarity_free_hash", "perceptual_hash")
SIDE, LOW, MARGIN = 64, 16, 0.015  # pixels; coefficients a side; share cut off each edge
NEAR = 24  # bits: below what two exams of one patient differ in
BANDS = np.random.default_rng(0).permutation(LOW * LOW)  # 16 bits a band
MOST = 2000  # images of one band that an image is compared with: bounds the time
SAME, INVERTED, ALIKE = "same pixels", "same pixels, inverted", "near-duplicate"
TWO_PATIENTS = "one study of two patients"
PAIRS = ["one", "other", "kind", "distance", "same_patient", "same_study", "across_splits"]
RESTART = 0.1  # of study ids with several patients: beyond, studies are numbered in each patient
WHOSE = (("patient_id", "patient"), ("study_id", "study"), ("split",))
IDS = ["image_id", "path", "patient_id", "patient", "PatientID", "study_id", "study"]
IDS += ["StudyInstanceUID", "SOPInstanceUID", "AccessionNumber"]
DIGITS = 5  # that an id must have to name one thing: view1_frontal or 2021 do not
SUFFIX = r"(\.(png|jpe?g|dcm|dicom|tiff?|jp2|nii|gz|0))+$"


# ---- hashes --------------------------------------------------------------------------------------
def hash_image(image: Image.Image) -> dict[str, str]:
    """Return `HASHES` of a picture of one channel, 0 to 255, bone bright; none of one grey.

    They are hexadecimal text. ``pixel_hash`` is of the greys (8 bits) and their shape, whatever the
    container; ``polarity_free_hash`` is equal also for the inverted picture.
    """
    grey = np.asarray(image, dtype=np.float32)
    if grey.min() == grey.max():
        return {}
    shape = repr(grey.shape).encode()
    plain, inverted = (  # not .5: rounding errors must not decide a tie
        hashlib.blake2b(
            (part + 0.501).astype(np.uint8).tobytes(), digest_size=16, salt=shape
        ).hexdigest()
        for part in (grey, 255 - grey)
    )
    return dict(zip(HASHES, (plain, min(plain, inverted), perceptual_hash(image)), strict=True))


def perceptual_hash(image: Image.Image) -> str:
    """Return two pHashes of 256 bits of a grey picture as hexadecimal text: see the module."""
    side, code = min(image.size), b""
    left, top = ((length - side) / 2 for length in image.size)
    for cut in (0, side * MARGIN):
        box = (left + cut, top + cut, left + side - cut, top + side - cut)
        small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX, box=box))
        low = dctn(rankdata(small).reshape(small.shape), norm="ortho")[:LOW, :LOW]
        low[0, 0] = 0  # the mean of ranks is the same in all images
        code += np.packbits(low > np.median(low)).tobytes()
    return code.hex()


# ---- pairs ---------------------------------------------------------------------------------------
def find_duplicates(frame: pd.DataFrame, most_bits: int = NEAR) -> pd.DataFrame:
    """Return pairs of images that are copies, each later one with the first of its copies.

    Args:
        frame: `HASHES`, and if known patient_id, study_id, split; its index names the images.
        most_bits: near-duplicates differ in no more of 256 bits.

    Returns:
        `PAIRS`: ``one`` and ``other`` are of the frame's index, ``one`` the earlier; ``distance``
        is in bits; ``same_patient``, ``same_study`` and ``across_splits`` are None if not known.
    """
    found, copies = [], np.zeros(len(frame), dtype=bool)
    for kind, column in ((SAME, HASHES[0]), (INVERTED, HASHES[1])):
        value = frame.get(column, pd.Series("", frame.index)).fillna("").to_numpy()
        known = np.flatnonzero(value != "")
        first = pd.Series(known).groupby(value[known]).transform("first").to_numpy()
        later = first != known
        found.append(_pairs(first[later], known[later], kind, 0))
        copies[known[later]] = True
    hashes = frame[HASHES[2]].fillna("")
    searched = np.flatnonzero((hashes != "").to_numpy() & ~copies)
    if len(searched):
        one, other, distance = _near(_bits(hashes.iloc[searched]), most_bits)
        found.append(_pairs(searched[one], searched[other], ALIKE, distance))
    patient, exam, split = (_known(frame, *names) for names in WHOSE)
    if patient is not None and exam is not None:
        found.append(_two_patients(patient, exam))
    pairs = pd.concat(found, ignore_index=True).drop_duplicates(["one", "other"])
    one, other = pairs["one"].to_numpy(int), pairs["other"].to_numpy(int)
    pairs["same_patient"], pairs["same_study"], across = (
        None if each is None else each[one] == each[other] for each in (patient, exam, split)
    )
    pairs["across_splits"] = None if across is None else ~across
    pairs["one"], pairs["other"] = frame.index[one], frame.index[other]
    return pairs[PAIRS].reset_index(drop=True)


def later_copies(pairs: pd.DataFrame) -> pd.Series:
    """Return why images are to be set aside, by their names: the later one of each pair.

    Near-duplicates of one patient stay: they share a split, and may be two renderings of a film.
    """
    others = pairs["same_patient"].eq(False)
    chosen = pairs["kind"].isin([SAME, INVERTED]) | (pairs["kind"].eq(ALIKE) & others)
    why = pairs["kind"] + np.where(others, " as an image of another patient", "")
    return why[chosen].groupby(pairs["other"][chosen]).first()


def _known(frame: pd.DataFrame, *names: str) -> NDArray[Any] | None:
    return next((frame[name].to_numpy(object) for name in names if name in frame), None)


def _pairs(one: Any, other: Any, kind: str, distance: Any) -> pd.DataFrame:
    columns = {"one": one, "other": other, "kind": kind, "distance": distance}
    return pd.DataFrame(columns).astype({"one": int, "other": int, "distance": float})


def _two_patients(patient: NDArray[Any], exam: NDArray[Any]) -> pd.DataFrame:
    """Return the first image of each further patient of a study, and the first of all."""
    table = pd.DataFrame({"patient": patient, "exam": exam}).replace("", None).dropna()
    table = table.assign(row=table.index).drop_duplicates(["patient", "exam"])
    first = table.groupby("exam")["row"].transform("first")
    later = table["row"] != first
    if table["exam"][later].nunique() > RESTART * max(table["exam"].nunique(), 10):
        later &= False
    return _pairs(first[later], table["row"][later], TWO_PATIENTS, np.nan)


def _bits(hashes: pd.Series) -> NDArray[np.uint8]:
    """Return perceptual hashes as bytes (2N, 32): of N squares, then of their inner parts."""
    raw = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8)
    return np.concatenate(list(raw.reshape(len(hashes), 2, -1).swapaxes(0, 1)))


def _near(codes: NDArray[np.uint8], most_bits: int) -> tuple[NDArray[np.int64], ...]:
    """Return rows (i < j) of N images and their distance, at most ``most_bits``; see `_bits`."""
    n, total = len(codes) // 2, LOW * LOW
    words = np.ascontiguousarray(codes).view(np.uint64)
    mixed = np.packbits(np.unpackbits(codes, axis=1)[:, BANDS], axis=1)
    found = [np.zeros((0, 3), dtype=np.int64)]
    for band in np.ascontiguousarray(mixed).view(np.uint16).T:
        key = np.minimum(band, ~band)  # the same for an inverted picture
        order = np.argsort(key, kind="stable")
        key, at = key[order], np.arange(len(key))
        for step in range(1, MOST + 1):
            at = at[: np.searchsorted(at, len(key) - step)]
            at = at[key[at] == key[at + step]]
            if not len(at):
                break
            one, other = order[at], order[at + step]
            apart = np.bitwise_count(words[one] ^ words[other]).sum(axis=1, dtype=np.int64)
            apart = np.minimum(apart, total - apart)
            near = (apart <= most_bits) & (one % n != other % n) & (np.minimum(one, other) < n)
            found.append(np.stack([one % n, other % n, apart], axis=1)[near])
    pairs = np.concatenate(found)
    pairs[:, :2].sort(axis=1)
    table = pd.DataFrame(pairs).groupby([0, 1], as_index=False).min()
    return tuple(table[name].to_numpy() for name in table)


# ---- images that encoders may have seen ----------------------------------------------------------
def contamination(
    frame: pd.DataFrame, public_ids: str | Path = "", others: Sequence[str | Path] = ()
) -> dict[str, Any]:
    """Return which images are in a public list of ids, and which resemble those of other sets.

    Args:
        frame: any of `IDS` (as the archive writes them), and the perceptual hash for ``others``.
        public_ids: a table with a column of ids, names or paths, such as RAD-DINO's CSV.
        others: folders of data runs and of ingests.

    Returns:
        ``said``: sentences; ``public`` and ``others``: counts, and ``listed``: the images.

    Raises:
        StudyError: the table cannot be read or has no ids, or a folder is neither.
    """
    found: dict[str, Any] = {"said": ""}
    if public_ids:
        found["public"] = public = _match_ids(frame, Path(public_ids))
        by = [
            f"{each['images']:,} by {each['ours']} = {each['column']} (by chance some "
            f"{each['by_chance']:,})"
            for each in public["columns"]
        ]
        found["said"] = f"Of {len(frame):,} images, {len(public['listed']):,} are in "
        found["said"] += f"{public['file']} ({public['rows']:,} rows): {', '.join(by) or 'none'}. "
    found["others"] = [_match_set(frame, Path(folder).expanduser()) for folder in others]
    for other in found["others"]:
        found["said"] += f"{other['alike']:,} of {len(frame):,} resemble images of {other['data']} "
        found["said"] += (
            f"({other['images']:,} images), {other['same_pixels']:,} with equal pixels. "
        )
    return found | {"said": found["said"].strip()}


def _keys(ids: pd.Series) -> pd.Series:
    """Return the parts of ids and paths that can name a thing; an index entry may have several."""
    text = ids.dropna().astype(str).str.strip().str.casefold()
    parts = text.str.replace(SUFFIX, "", regex=True).str.split(r"[/\\]", regex=True).explode()
    parts = parts.str.replace(r"^[ps](?=\d{5,}$)", "", regex=True)  # MIMIC: s50414267 in paths
    return parts[parts.str.count(r"\d") >= DIGITS]


def _match_ids(frame: pd.DataFrame, path: Path) -> dict[str, Any]:
    """Return which images have an id that a table has, by the columns in which it is found."""
    table = read_source(str(path))[0].frame
    rows, patient, own = frame.reset_index(drop=True), _known(frame, *WHOSE[0]), {}
    for name in (name for name in IDS if name in rows):
        own[name] = keys = _keys(rows[name])
        if patient is not None:  # a folder or file name of several patients names none of them
            several = pd.Series(patient[keys.index]).groupby(keys.to_numpy()).transform("nunique")
            own[name] = keys[several.to_numpy() <= 1]
    columns, matched, has_ids = [], np.zeros(len(rows), dtype=bool), False
    for column in table:
        theirs = pd.Series(_keys(table[column]).unique(), dtype=object)
        has_ids |= len(theirs) > 0
        hits = {name: np.unique(keys.index[keys.isin(theirs)]) for name, keys in own.items()}
        ours = max(hits, key=lambda name: len(hits[name]), default="")
        if ours and len(hits[ours]):
            fact = {"column": column, "ours": ours, "images": len(hits[ours])}
            columns.append(fact | {"by_chance": _by_chance(own[ours], theirs)})
            matched[hits[ours]] = True
    if not has_ids:
        names = ", ".join(list(table)[:20])
        raise study.StudyError(
            f"--public-ids {path}: no column holds ids of at least {DIGITS} digits; it has "
            f"{names}. Give the list of images with their ids, file names or paths"
        )
    facts = {"file": path.name, "rows": len(table), "columns": columns}
    return facts | {"listed": _names(frame, np.flatnonzero(matched))}


def _by_chance(ours: pd.Series, theirs: pd.Series) -> int:
    """Return how many images plain numbers would match if theirs lay at random in their range."""
    mine, others = (ids[ids.str.fullmatch(r"\d{5,15}")].astype("int64") for ids in (ours, theirs))
    if others.empty:
        return 0
    low, high = int(others.min()), int(others.max())
    return round(int(mine.between(low, high).sum()) * len(others) / (high - low + 1))


def _match_set(frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Return which images resemble one of a data run or an ingest, and how many have its pixels."""
    prepared = None
    if (folder / "ingest.json").is_file():
        from cxrstudy.ingest import pixels  # which imports this module

        theirs = pixels.hashes_of(folder)
    else:
        try:
            prepared = open_prepared(folder)
        except FileNotFoundError as error:
            raise study.StudyError(f"{error}; or name an ingest folder") from None
        theirs = prepared.manifest[["image_id"]].reset_index(drop=True)
        hashed = [perceptual_hash(Image.fromarray(image)) for image in prepared.images]
        theirs[HASHES[2]] = pd.Series(hashed, dtype=object)
    at = np.flatnonzero((frame[HASHES[2]].fillna("") != "").to_numpy())
    one, other, distance = _near(
        _bits(pd.concat([frame[HASHES[2]].iloc[at], theirs[HASHES[2]]])), NEAR
    )
    across = (one < len(at)) & (other >= len(at))
    ours, image = at[one[across]], other[across] - len(at)
    if prepared is None:
        mine, own = frame[HASHES[0]].iloc[ours], theirs[HASHES[0]].iloc[image]
        same = mine.to_numpy() == own.to_numpy()
    else:
        same = np.zeros(len(ours), bool)
        for k, (path, row) in enumerate(zip(frame["path"].iloc[ours], image, strict=True)):
            with suppress(UnreadableImage):
                seen = read_image(path, prepared.info["size"])
                same[k] = np.array_equal(seen, prepared.images[row])
    ids = theirs["image_id"].to_numpy()[image].tolist()
    listed = zip(_names(frame, ours), ids, distance[across].tolist(), strict=True)
    facts = {"data": folder.resolve().name, "images": len(theirs), "alike": len(set(ours))}
    facts["same_pixels"] = len(set(ours[same]))
    return facts | {"listed": [list(pair) for pair in listed]}


def _names(frame: pd.DataFrame, rows: NDArray[np.int64]) -> list[str]:
    """Return image ids of some rows; without the column, the frame's index names them."""
    return frame.get("image_id", frame.index.to_series()).to_numpy()[rows].tolist()
