"""Join a hospital's tables and report files to its images, by what the cells say."""

import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial

import numpy as np
import pandas as pd

from cxrstudy.data.columns import plain
from cxrstudy.data.ids import normal_id
from cxrstudy.data.locate import OTHER_SUFFIXES, SUFFIXES
from cxrstudy.data.tables import Rows
from cxrstudy.ingest.columnkinds import KEYS, Column, kind_of_column, names_of
from cxrstudy.ingest.tablefiles import HELP, read_source
from cxrstudy.study import StudyError

SAMPLE, NAMED_SAMPLE = 1000, 50_000  # values of a column that are compared, more by its name
SHARE = 0.5  # of the values of a key, or of the archive's ids, must match
SURE = 8  # signs: ids as long as this hardly match by chance
NAMED = 1.25  # how much the name of a column counts
DEEPEST = 5  # parts of a path that are compared
Spell = Callable[[str], str]


@dataclass(frozen=True)
class Match:
    """How a table was joined: by which column, and how much of it and of the archive matched."""

    table: str
    column: str
    level: str  # image, study, accession or patient
    key: str  # what of the archive: a tag, the name of the file ...
    rows: int
    rows_matched: int
    images: int
    images_matched: int
    normalised: int  # values that match only without case, blanks, leading zeros, ``.0`` or signs
    ambiguous: int  # values that fit several ids, or of which several fit one: not used
    repeated: int  # ids with several rows
    differing: dict[str, int]  # column -> ids whose rows differ in it, which have no value there
    unread: dict[str, int]  # kind -> files of a folder of reports that are no text
    columns: list[Column] = field(default_factory=list)

    def __str__(self) -> str:
        """Return the match in one sentence, without any id."""
        more = [
            (self.normalised, "values match only once normalised"),
            (self.ambiguous, "values are ambiguous and not used"),
            (self.repeated, "ids have several rows"),
            *((n, f"of them differ in {name!r}, left empty") for name, n in self.differing.items()),
            *((n, f"files are {kind}, no text") for kind, n in self.unread.items()),
        ]
        return (
            f"{self.table}: column {self.column!r} is the {self.level} ({self.key}); "
            f"{self.rows_matched:,} of {self.rows:,} rows match "
            f"({self.rows_matched / max(self.rows, 1):.0%}), {self.images_matched:,} of "
            f"{self.images:,} images have a row ({self.images_matched / max(self.images, 1):.0%})"
            + "".join(f"; {n:,} {what}" for n, what in more if n)
        )


def join(
    inventory: pd.DataFrame, sources: Sequence[str | os.PathLike[str]]
) -> tuple[pd.DataFrame, list[Match]]:
    """Return the images with the columns of all tables, and how each table matched.

    The column with the key is found by comparing its values with the archive's SOPInstanceUIDs,
    file names, StudyInstanceUIDs, folders, accession numbers and patients, then with ids of tables
    that are joined already. Where rows of one key differ, the cell is left empty and counted.

    Args:
        inventory: rows of ``walk`` that are kept.
        sources: tables (CSV, Parquet, JSON, JSON lines), or a folder or glob of tables or of
            report texts, named by image, study or accession.

    Raises:
        StudyError: a table cannot be read, no column of it is a key, or two fit alike.
    """
    frame = inventory.reset_index(drop=True)
    keys = _archive_keys(frame)
    waiting = [(str(source), *read_source(str(source))) for source in sources]
    matches: list[Match] = []
    while waiting:
        later = []
        for name, table, unread in waiting:
            found = _find_key(name, table, keys)
            if found is None:
                later.append((name, table, unread))
                continue
            frame, match = _joined(frame, table, name, *found, unread)
            matches.append(match)
            keys += [
                _Key("study", f"{each.column} of a table", frame[each.name].fillna(""), SPELLINGS)
                for each in match.columns
                if each.kind == "id" and each.column != match.column
            ]
        if len(later) == len(waiting):
            raise StudyError(_no_key(later, keys))
        waiting = later
    return frame, matches


def _no_key(tables: Sequence[tuple[str, Rows, dict[str, int]]], keys: "Sequence[_Key]") -> str:
    """Return the message on tables without a key; columns that look like ids are not named."""
    said = []
    for name, table, _ in tables:
        for column, key in ((c, key) for c in table.frame for key in keys):
            sample = table.frame[column].dropna().unique()[:SAMPLE]
            found, _, ambiguous = key.match(sample)
            if ambiguous > len(sample) / 2 and not found:
                return (
                    f"{name}: values of column {column!r} fit several {key.level} ids of the "
                    f"archive each ({key.name}). Give longer paths, or ids as the archive has them"
                )
        columns = [repr(c) for c in table.frame if not re.search(r"\d{4}", c)]
        said.append(f"{name} (columns {', '.join(columns[:30])})")
    return (
        f"no column holds ids of the archive's images, studies, accession numbers or patients: "
        f"{'; '.join(said)}. Give a table with such a column under a header line, or leave it out"
    )


# ---- keys ----------------------------------------------------------------------------------------
@lru_cache(maxsize=2**16)
def _normal(text: str) -> str:
    return normal_id(text)


@lru_cache(maxsize=2**16)
def _bare(text: str) -> str:
    """Return an id without any sign but letters and digits."""
    return normal_id(re.sub(r"[\W_]", "", text)) if re.search(r"\w", text) else text


@lru_cache(maxsize=2**16)
def _bare_path(path: str) -> str:
    """Return a path without the suffix of an image."""
    while posixpath.splitext(path)[1] in SUFFIXES + OTHER_SUFFIXES:
        path = posixpath.splitext(path)[0]
    return path


def _tail(parts: int, bare: bool, path: str) -> str:
    """Return the last parts of a path in lower case."""
    path = plain(path).replace("\\", "/").casefold()
    path = _bare_path(path) if bare else path
    return path if parts > path.count("/") else "/".join(path.split("/")[-parts:])


SPELLINGS: tuple[Spell, ...] = (str.strip, _normal, _bare)  # the strictest first


def _keeps_spelling(ids: Iterable[str]) -> bool:
    return any(normal_id(text) != text.casefold() for text in ids)


@dataclass
class _Key:
    """Ids of the archive: one an image, "" if it has none, and how spellings of one id differ."""

    level: str
    name: str
    ids: pd.Series
    spellings: tuple[Spell, ...]
    _spelled: dict[int, dict[str, list[str]]] = field(default_factory=dict)

    @cached_property
    def known(self) -> list[str]:
        return [text for text in self.ids.unique() if text]

    def spelled(self, k: int) -> dict[str, list[str]]:
        """Return the ids by their ``k``-th spelling."""
        if k not in self._spelled:
            groups: dict[str, list[str]] = defaultdict(list)
            for text in self.known:
                groups[self.spellings[k](text)].append(text)
            self._spelled[k] = dict(groups)
        return self._spelled[k]

    def match(self, values: Sequence[str]) -> tuple[dict[str, str], int, int]:
        """Return value -> id, how many match in a loose spelling alone, and how many are ambiguous.

        Where ids of the archive differ only in spelling, a value counts as it is written only if
        the table keeps spellings: if it holds an id with leading zeros, say.
        """
        found: dict[str, str] = {}
        ambiguous: set[str] = set()
        left, loose = list(values), 0
        for k, spell in enumerate(self.spellings):
            groups: dict[str, list[str]] = defaultdict(list)
            for value in left:
                groups[spell(value)].append(value)
            known = self.spelled(k)
            hits = {text: known[text] for text in groups if text in known}
            if k == 0 and spell is str.strip and not _keeps_spelling(hits):
                hits = {text: self.spelled(1)[normal_id(text)] for text in hits}
            taken = set(found.values())
            for text, ids in hits.items():
                if len(ids) > 1 or ids[0] in taken:
                    ambiguous.update(groups[text])
                else:
                    found |= dict.fromkeys(groups[text], ids[0])
                    loose += len(groups[text]) if k else 0
            left = [value for value in left if value not in found and value not in ambiguous]
        return found, loose, len(ambiguous)


def _archive_keys(frame: pd.DataFrame) -> list[_Key]:
    """Return what tables may be joined on; a folder may be a study where no tag says it."""
    paths = frame["path"]
    keys = [_Key("image", "SOPInstanceUID", frame["SOPInstanceUID"], SPELLINGS)]
    for n in range(1, DEEPEST + 1):
        name = f"last {n} parts of the path" if n > 1 else "name of the file"
        keys.append(
            _Key("image", name, paths, tuple(partial(_tail, n, bare) for bare in (False, True)))
        )
    folder = paths.map(lambda path: posixpath.basename(posixpath.dirname(path)))
    for level, name, ids in (
        ("study", "StudyInstanceUID", frame["StudyInstanceUID"]),
        ("study", "folder", folder),
        ("accession", "AccessionNumber", frame["AccessionNumber"]),
        ("patient", "PatientID", frame["PatientID"]),
    ):
        keys.append(_Key(level, name, ids, SPELLINGS))
    return keys


def _find_key(name: str, table: Rows, keys: Sequence[_Key]) -> tuple[str, _Key] | None:
    """Return the column that fits best, and the key of the archive that it holds.

    Raises:
        StudyError: two columns fit alike.
    """
    fits: list[tuple[float, int, str, _Key]] = []
    for column in table.frame:
        cells = table.frame[column].dropna()
        values = cells.unique()
        if not len(values) or np.median([len(value) for value in values[:100]]) > 200:
            continue  # reports
        levels = names_of(column, KEYS)
        for order, key in enumerate(keys):
            named = key.level in levels
            sample = values[:: max(1, len(values) // (NAMED_SAMPLE if named else SAMPLE))]
            found, _, _ = key.match(sample)
            ids = set(found.values())
            whole = len(values) / len(sample)
            sure = bool(ids) and np.median([len(text) for text in ids]) >= SURE
            share = max(len(found) / len(sample), whole * len(ids) / max(1, len(key.known)))
            # few values many times are ages or counts
            if (named or sure or len(values) >= len(cells) / 10) and (sure or share >= SHARE):
                fits.append((len(ids) * whole * (NAMED if named else 1), -order, column, key))
    if not fits:
        return None
    score, _, column, key = max(fits, key=lambda fit: fit[:2])
    if key.match([column])[0]:
        raise StudyError(f"{name}: its first line holds an id, not names of columns: add these")
    for other, _, rival, same in fits:
        if rival != column and same is key and other > 0.95 * score:
            pair = table.frame[[rival, column]].dropna()
            if any(_bare(one) != _bare(two) for one, two in pair.to_numpy()):
                raise StudyError(
                    f"{name}: columns {column!r} and {rival!r} both fit the {key.level} "
                    f"({key.name}), and differ. Name the right one {key.level!r}, or leave the "
                    "other out"
                )
    return column, key


# ---- rows ----------------------------------------------------------------------------------------
def _joined(
    frame: pd.DataFrame, table: Rows, name: str, column: str, key: _Key, unread: dict[str, int]
) -> tuple[pd.DataFrame, Match]:
    """Return the images with a table's columns from the rows of their keys, and the match."""
    cells = table.frame[column]
    found, loose, ambiguous = key.match(cells.dropna().unique())
    ids = cells.map(found).dropna()
    rows = table.frame.loc[ids.index, [c for c in table.frame if not c.startswith(HELP)]]
    several = ids.duplicated(keep=False)
    first, differing = rows.set_index(ids), {}
    if several.any():
        first = rows.groupby(ids).first()
        differs = rows[several].groupby(ids[several]).nunique() > 1
        for c in differs.columns[differs.any()].difference([column]):
            differing[c] = int(differs[c].sum())
            first.loc[differs.index[differs[c]], c] = np.nan
    columns, new = [], {}
    for c in first:
        named = c if c not in frame else f"{c} (table)"
        while named in frame:
            named += "'"
        new[named] = key.ids.map(first[c])
        fact = kind_of_column(first[c], name, c, named)
        columns.append(fact if c != column else Column(name, c, named, "id", "the key"))
    match = Match(
        table=name,
        column=column.removeprefix(HELP),
        level=key.level,
        key=key.name,
        rows=len(table.frame),
        rows_matched=len(rows),
        images=len(frame),
        images_matched=int(key.ids.isin(set(ids)).sum()),
        normalised=loose,
        ambiguous=ambiguous,
        repeated=int(ids[several].nunique()),
        differing=differing,
        unread=unread,
        columns=columns,
    )
    return pd.concat([frame, pd.DataFrame(new, index=frame.index)], axis=1), match
