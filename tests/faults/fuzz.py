"""Read hostile inputs, seeded and bounded, and count what happens.

    python tests/faults/fuzz.py dicom reports --inputs 200000
    python tests/faults/fuzz.py tables --seed 4711 --inputs 1     # one input again

Every input is read in a child process (see ``watch``). It may be read, or refused by the error that
the reader promises. All else is a fault: another error, the child's end, 5 s, 1 GB.
"""

import argparse
import functools
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import corpora
import mutate
from watch import Count, Try, watch

from cxrstudy import grid, study
from cxrstudy.data import reports as report_reader
from cxrstudy.data.cards import CardError, load_manifest, read_card
from cxrstudy.data.dicom import UnreadableImage, read_dicom
from cxrstudy.data.images import read_image
from cxrstudy.data.manifest import ManifestError, read_manifest
from cxrstudy.data.tables import read_tables
from cxrstudy.evaluate.embeddings import read_embeddings
from cxrstudy.ingest.tablefiles import read_source
from cxrstudy.presetdata import with_needs_root
from cxrstudy.presets import read_preset
from cxrstudy.results import read_record
from cxrstudy.weights import TornFile
from cxrstudy.weights import read as read_weights

MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
Make = Callable[[random.Random], Any]


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def outcome(read: Callable[[], object], promised: type[Exception]) -> str:
    """Return how reading ends: read, refused, or the fault."""
    try:
        read()
    except promised as error:
        if any(isinstance(each, MemoryError) for each in _chain(error)):
            return f"memory: {error}"[:300]
        return "refused"
    except BaseException as error:
        return f"error: {type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return "read"


def _tries(make: Make, read: Callable[[Any], object], promised: type[Exception]) -> Try:
    warnings.simplefilter("ignore")

    def attempt(seed: int) -> str:
        made = make(random.Random(seed))
        return outcome(lambda: read(made), promised)

    return attempt


# ---- what is read ----------------------------------------------------------------------------
def _dicom(folder: Path) -> Try:
    files = corpora.x_rays(folder)

    def make(rng: random.Random) -> Path:
        data = rng.choice(files)
        if rng.random() < 0.4:
            data = corpora.hostile_tags(data, rng)
        if rng.random() < 0.8:
            data = mutate.of_bytes(data, rng, files)
        (folder / "x").write_bytes(data)
        return folder / "x"

    return _tries(make, read_dicom, UnreadableImage)


def _whole(folder: Path) -> Try:
    files = [
        p.read_bytes() for p in sorted((corpora.SHARED / "dicom").glob("*")) if p.suffix != ".csv"
    ]

    def make(rng: random.Random) -> Path:
        data = rng.choice(files)
        data = corpora.hostile_tags(data, rng) if rng.random() < 0.4 else data
        (folder / "x").write_bytes(mutate.of_bytes(data, rng, files))
        return folder / "x"

    return _tries(make, read_dicom, UnreadableImage)


def _pictures(folder: Path) -> Try:
    files = corpora.pictures()

    def make(rng: random.Random) -> Path:
        (folder / "x").write_bytes(mutate.of_bytes(rng.choice(files), rng, files))
        return folder / "x"

    return _tries(make, lambda path: read_image(path, 32), UnreadableImage)


def _reports(folder: Path) -> Try:
    texts = corpora.reports()

    def make(rng: random.Random) -> str:
        text, most = rng.choice(texts), rng.choice((300, 300, 300, 300, 300, 3000, 100_000))
        start = rng.randrange(len(text)) if most == 300 else 0
        return mutate.of_text(text[start : start + most], rng, texts, corpora.WORDS)[:most]

    def read(text: str) -> None:
        for mention in report_reader.extract_mentions(text):
            assert 0 <= mention.span[0] < mention.span[1] <= len(text)
            assert mention.status in ("present", "absent", "uncertain")
        if len(text) % 4 == 0:  # it reads the mentions again
            assert set(report_reader.extract_labels(text)) <= set(report_reader.NAMES)
        report_reader.sections(text)

    return _tries(make, read, study.StudyError)  # it promises to refuse no text


def _yaml(texts: list[str], rng: random.Random) -> str:
    text = rng.choice(texts)
    if rng.random() < 0.1:
        line = text.find("\n", rng.randrange(len(text))) + 1
        text = text[:line] + corpora.laughs(rng) + "\n" + text[line:]
    return text if rng.random() < 0.1 else mutate.of_text(text, rng, texts, corpora.YAML)


def _cards(folder: Path) -> Try:
    texts, path = corpora.cards(), folder / "card.md"

    def make(rng: random.Random) -> Path:
        data = _yaml(texts, rng).encode(rng.choice(("utf-8",) * 9 + ("utf-16",)), "surrogatepass")
        path.write_bytes(mutate.of_bytes(data, rng, [data]) if rng.random() < 0.1 else data)
        return path

    return _tries(make, read_card, CardError)


def _presets(folder: Path) -> Try:
    texts = corpora.presets()

    def read(text: str) -> None:
        grid.expand(with_needs_root(read_preset(text, "made")))

    return _tries(lambda rng: _yaml(texts, rng), read, study.StudyError)


def _suffixed(folder: Path, files: list[tuple[str, bytes]]) -> Make:
    every = [data for _, data in files]

    def make(rng: random.Random) -> Path:
        suffix, data = rng.choice(files)
        suffix = rng.choice(files)[0] if rng.random() < 0.1 else suffix
        path = folder / f"t{suffix}"
        path.write_bytes(mutate.of_bytes(data, rng, every))
        return path

    return make


def _tables(folder: Path) -> Try:
    def read(path: Path) -> None:
        read_tables([path], used=["image", "patient"], also=["label", "lists", "when", "x"])

    return _tries(_suffixed(folder, corpora.tables()), read, CardError)


def _sources(folder: Path) -> Try:
    make = _suffixed(folder, corpora.tables())
    return _tries(make, lambda path: read_source(str(path)), study.StudyError)


def _card_tables(folder: Path) -> Try:
    """Manifests by a card, from a mutated table of images that are there."""
    from PIL import Image

    root = folder / "root"
    root.mkdir()
    for k in range(9):
        Image.new("L", (8, 8), k).save(root / f"x{k}.png")
    front = (
        "---\nname: t\ntitle: t\nkind: real\nlicence: l\naccess: a\ncitation: c\n"
        "images: ['*.png']\n"
        "table:\n  path: t.csv\n  image_id: image\n  patient_id: patient\n  study_id: [patient]\n"
        "  report: report\nlabels:\n  encoding: list\n  column: label\n  names: {edema: a}\n"
        "  missing: absent\n---\n"
    )
    (folder / "t.md").write_text(front)
    assert len(load_manifest_of(folder, corpora.tables()[0][1])) == 9
    texts = [data for suffix, data in corpora.tables() if suffix == ".csv"]

    def make(rng: random.Random) -> bytes:
        return mutate.of_bytes(rng.choice(texts), rng, texts)

    return _tries(make, functools.partial(load_manifest_of, folder), ValueError)


def load_manifest_of(folder: Path, data: bytes) -> Any:
    """Return the manifest of a table; ValueError that is none of ours becomes AssertionError."""
    (folder / "root" / "t.csv").write_bytes(data)
    try:
        return load_manifest(folder / "t.md", root=folder / "root")
    except (CardError, ManifestError):
        raise
    except ValueError as error:
        raise AssertionError(repr(error)) from error


def _manifests(folder: Path) -> Try:
    files = corpora.manifests()
    make = _suffixed(folder, [(".parquet", data) for data in files])
    return _tries(make, read_manifest, ManifestError)


def _weights(folder: Path) -> Try:
    make = _suffixed(folder, corpora.weights()[:2])
    return _tries(make, read_weights, TornFile)


def _embeddings(folder: Path) -> Try:
    make = _suffixed(folder, corpora.weights()[2:])
    return _tries(make, read_embeddings, ValueError)


def _records(folder: Path) -> Try:
    texts = [
        p.read_text() for p in sorted((corpora.ROOT / "book/recorded").rglob("record.json"))[:20]
    ]
    texts.append(
        '{"schema": 1, "run": "a", "stage": "data", "preset": "p", "parameters": {}, "subject"'
        ': {}, "metrics": [{"value": 0.5}], "info": {"seconds": 1.0}, "environment": {}}'
    )
    path = folder / "record.json"

    def make(rng: random.Random) -> Path:
        deep = "[" * rng.choice((5, 100_000))
        text = mutate.of_text(
            rng.choice(texts), rng, texts, ("null", "NaN", "1e999", "[]", "{}", deep)
        )
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return path

    return _tries(make, read_record, ValueError)


TARGETS: dict[str, Callable[[Path], Try]] = {
    "dicom": _dicom,
    "whole": _whole,
    "pictures": _pictures,
    "reports": _reports,
    "cards": _cards,
    "presets": _presets,
    "tables": _tables,
    "sources": _sources,
    "card-tables": _card_tables,
    "manifests": _manifests,
    "weights": _weights,
    "embeddings": _embeddings,
    "records": _records,
}


def fuzz(target: str, inputs: int, seed: int = 0) -> Count:
    """Read so many inputs of a target, from this seed on; return what happened."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=MEMORY))
    try:
        return watch(
            lambda: TARGETS[target](Path(tempfile.mkdtemp(dir=folder))), seed, seed + inputs
        )
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Fuzz the targets that are named, and print a line for each and one for each fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("targets", nargs="+", choices=[*TARGETS, "all"])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    failed = False
    for target in TARGETS if "all" in asked.targets else asked.targets:
        began = time.monotonic()
        count = fuzz(target, asked.inputs, asked.seed)
        outcomes = ", ".join(f"{n} {kind}" for kind, n in sorted(count.outcomes.items()))
        slow, large = count.slowest, count.largest
        print(
            f"{target}: {count.tried} inputs from seed {asked.seed} "
            f"in {time.monotonic() - began:.0f} s: {outcomes}; slowest {slow[0]:.2f} s "
            f"(seed {slow[1]}), most memory {large[0] / 2**20:.0f} MB (seed {large[1]})",
            flush=True,
        )
        for at, fault in list(count.faults.items())[:40]:
            print(f"  {at}: {fault}", flush=True)
        failed |= bool(count.faults)
    sys.exit(failed)


if __name__ == "__main__":
    main()
