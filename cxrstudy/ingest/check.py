"""Say what an ingest folder lacks, without changing it."""

import json
from pathlib import Path

from cxrstudy import study
from cxrstudy.ingest.pseudonym import key_mark, load_key
from cxrstudy.ingest.walk import new_files


def lacks(place: Path) -> list[str]:
    """Return what an ingest folder lacks, each with the remedy: key, images, files not yet read."""
    private, found = place / "private", []
    try:
        described = json.loads((place / "ingest.json").read_text(encoding="utf-8"))
        call = json.loads((private / "call.json").read_text(encoding="utf-8"))
        again = f"cxrstudy ingest FOLDER --name {described['name']}"
        folders, key = call["folders"], described["key"]
    except (OSError, ValueError, KeyError) as error:
        return [f"what it was made from cannot be read ({type(error).__name__}): ingest again"]
    if not (place / "quality.json").is_file():
        found.append(f"it did not end: {again} continues it")
    file = "".join(call.get("key", [])) or f"~/.config/cxrstudy/{described['name']}.key"
    if not Path(file).expanduser().exists():
        found.append(f"key file {file} is gone: restore it, or nothing can be added")
    else:
        try:
            if key_mark(load_key(file, inside=[place])) != key:
                found.append(f"key file {file} holds another key: restore the one it was made with")
        except study.StudyError as error:
            found.append(str(error))
    links = [link for link in place.glob("images/*/*") if link.is_symlink()]
    if broken := sum(not link.exists() for link in links):
        found.append(
            f"{broken:,} of {len(links):,} images are not where they were: mount the archive, or "
            f"name its new folder: {again}"
        )
    gone = [path for path in (*folders, *call["tables"]) if not _there(path)]
    found += [f"{path} is gone: mount it, or ingest without it" for path in gone]
    if not gone and (new := new_files(folders, private)):
        found.append(f"{new:,} files are new or changed since: {again} adds them")
    return found


def _there(path: str) -> bool:
    return Path(path).exists() or any(sign in path for sign in "*?[")
