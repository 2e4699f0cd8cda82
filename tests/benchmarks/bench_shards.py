"""Formats of a shard: bytes an image, images read a second, and what JPEG costs a frozen probe.

    python tests/benchmarks/bench_shards.py formats --real /work/shared/data/nih_subset/images
    python tests/benchmarks/bench_shards.py probe --root /work/shared/data/nih_subset
    python tests/benchmarks/bench_shards.py sources --files /work/shared/data/dicom

``formats``: raw as a memory-mapped array; PNG and JPEG (quality 95) in Parquet (row groups of 100)
and in a memory-mapped Arrow file; read in order by 64, at random one by one (as a batch takes few
from each of many shards), and so again after the system was told to forget the file. ``probe``:
macro AUROC of findings, cross-fitted over five folds of patients, on features of a frozen encoder,
of raw and of JPEG images; the interval of the difference is a bootstrap of patients. ``sources``:
files read, decoded and resized a second.
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cxrstudy import study
from cxrstudy.data.dicom import UnreadableImage
from cxrstudy.data.images import read_image, read_whole
from cxrstudy.data.shardfiles import QUALITY, decoded, jpeg

BATCH = 64


def images_of(source: str, size: int, count: int) -> np.ndarray:
    """Return real or synthetic images uint8 (N, size, size)."""
    if source == "synthetic":
        from cxrstudy.data import synthetic

        drawn = synthetic.sample(range(count), size=size).image[:, 0]
        return np.rint(np.asarray(drawn) * 255).astype(np.uint8)
    paths = sorted(Path(source).iterdir())[:count]
    return np.stack([read_image(path, size) for path in paths])


def png(image: np.ndarray) -> bytes:
    """Return an image as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


Reader = Callable[[np.ndarray], np.ndarray]


def write(kind: str, images: np.ndarray, folder: Path) -> tuple[Path, Callable[[], Reader]]:
    """Write images in one format; return the file and what opens it."""
    codec, _, container = kind.partition(" ")
    path = folder / kind.replace(" ", ".")
    if codec == "raw":
        path = path.with_suffix(".npy")
        np.save(path, images)
        return path, lambda: np.load(path, mmap_mode="r").__getitem__
    coded = [(png if codec == "png" else jpeg)(image) for image in images]
    table = pa.table({"image": pa.array(coded, pa.binary())})
    if container == "parquet":
        pq.write_table(table, path, compression="none", row_group_size=100, use_dictionary=False)
        return path, lambda: from_parquet(path)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=256)

    def arrow() -> Reader:
        column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0)
        return lambda rows: np.stack([decoded(column[int(row)].as_py()) for row in rows])

    return path, arrow


def from_parquet(path: Path) -> Reader:
    """Return a reader of rows of a Parquet file: each row group once for all rows asked for."""
    file = pq.ParquetFile(path, memory_map=True)

    def read(rows: np.ndarray) -> np.ndarray:
        groups, at = np.divmod(rows, 100)
        needed = {int(k): file.read_row_group(int(k)).column(0) for k in np.unique(groups)}
        return np.stack(
            [decoded(needed[int(k)][int(i)].as_py()) for k, i in zip(groups, at, strict=True)]
        )

    return read


def forget(path: Path) -> None:
    """Let the system drop a file from its cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rate(read: Reader, orders: Any, clock: Callable[[], float] = time.process_time) -> float:
    """Return images a second over batches of rows; of the CPU's, as the machine may be busy."""
    start = clock()
    for rows in orders:
        read(rows)
    return sum(map(len, orders)) / max(clock() - start, 1e-9)


def formats(args: argparse.Namespace) -> None:
    """Print a line for each source, size and format."""
    print("source      px  format         bytes/image  in order/s  random/s  random, not cached/s")
    for source in ("synthetic", args.real):
        for size in args.sizes:
            count = args.count if source != "synthetic" or size < 400 else args.count // 4
            images = images_of(source, size, count)
            n = len(images)
            order = [np.arange(n)[k : k + BATCH] for k in range(0, n, BATCH)]
            mixed = np.random.default_rng(0).permutation(n)[:BATCH, None]  # of one shard: one
            for kind in ("raw", "png parquet", "png arrow", "jpeg parquet", "jpeg arrow"):
                with tempfile.TemporaryDirectory(dir=args.scratch) as name:
                    path, opened = write(kind, images, Path(name))
                    bytes_each = path.stat().st_size / n
                    rates = [rate(opened(), order), rate(opened(), mixed)]
                    forget(path)
                    rates.append(rate(opened(), mixed, time.perf_counter))
                label = "synthetic" if source == "synthetic" else "real"
                print(
                    f"{label:<10}{size:>4}  {kind:<14}{bytes_each:>12,.0f}"
                    + "".join(f"{each:>12,.0f}" for each in rates),
                    flush=True,
                )
            error = np.abs(decoded(jpeg(images[0])).astype(float) - images[0]).mean()
            print(
                f"  JPEG q{QUALITY}: grey values of the first image are off by {error:.2f} of 255"
            )


# ---- what JPEG costs a probe ---------------------------------------------------------------------
def probe(args: argparse.Namespace) -> None:
    """Print the macro AUROC on raw and on JPEG images, and their difference."""
    from cxrstudy.data.manifest import label_array, label_names
    from cxrstudy.data.sets import prepare_data
    from cxrstudy.encoders import load_encoder
    from cxrstudy.evaluate import features, metrics
    from cxrstudy.evaluate.classification import fit_probe

    shares = {f"fold{k}": 0.2 for k in range(5)}
    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        scores: dict[str, Any] = {}
        for image_format in ("raw", "jpeg"):
            p = study.Data(
                card=args.card,
                root=args.root,
                n_images=0,
                size=args.size,
                fractions=shares,
                image_format=image_format,  # type: ignore[arg-type]
                out=f"{name}/{image_format}",
            )
            prepared = prepare_data(p)
            rows = np.flatnonzero(prepared.manifest.eval(args.within or "path == path"))
            table = prepared.manifest.iloc[rows]
            y = label_array(table, label_names(table))
            y = y[:, (np.nansum(y == 1, axis=0) >= 20) & (np.nansum(y == 0, axis=0) >= 20)]
            x = features.encode(load_encoder(args.encoder), prepared, rows, pooling="mean+max")
            fold = table["split"].str.removeprefix("fold").astype(int).to_numpy()
            found = np.zeros_like(y)
            for k in range(5):
                train, held = (fold != k) & (fold != (k + 1) % 5), fold == (k + 1) % 5
                own = {"x_val": x[held], "y_val": y[held], "strengths": (1e-3, 1e-2, 0.1, 1.0)}
                found[fold == k] = fit_probe(x[train], y[train], **own).decision_function(
                    x[fold == k]
                )
            scores[image_format] = found
        how = {"groups": table["patient_id"].to_numpy(), "resamples": 2000}
        macro = {k: np.nanmean(metrics.auroc(y, s)) for k, s in scores.items()}
        drawn = {
            k: np.nanmean(metrics.bootstrap(metrics.auroc, y, s, **how), 1)
            for k, s in scores.items()
        }
    low, high = np.quantile(drawn["jpeg"] - drawn["raw"], [0.025, 0.975])
    patients, change = table["patient_id"].nunique(), macro["jpeg"] - macro["raw"]
    print(
        f"{args.card} {args.size} px, {len(y)} images of {patients} patients, {y.shape[1]} labels, "
        f"{args.encoder}: macro AUROC raw {macro['raw']:.4f}, JPEG {macro['jpeg']:.4f}, "
        f"difference {change:+.4f} [{low:+.4f}, {high:+.4f}]"
    )


def sources(args: argparse.Namespace) -> None:
    """Print how many files of a kind one process reads, decodes and resizes a second (of CPU)."""
    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        for path in [*made_up(Path(name), args.real), *sorted(Path(args.files).iterdir())]:
            try:
                pixels, _ = read_whole(path)
            except UnreadableImage:
                continue
            start, count = time.process_time(), 0
            while time.process_time() < start + 2:
                read_image(path, args.size)
                count += 1
            each = count / (time.process_time() - start)
            what = f"{path.name[:32]} {pixels.height} x {pixels.width}"
            print(f"{what:<46}{path.stat().st_size / 1e6:>6.2f} MB {each:>7.1f} images/s")


def made_up(folder: Path, real: str) -> list[Path]:
    """Write a real image in the sizes and formats that archives have, and return the files."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    grey, _ = read_whole(sorted(Path(real).iterdir())[0])
    full = np.asarray(grey.convert("F").resize((2544, 3056), Image.Resampling.BICUBIC))
    noise = np.random.default_rng(0).normal(0, 1, full.shape)
    full = np.clip(full + noise, 0, 255)
    eight, twelve = np.rint(full).astype(np.uint8), np.rint(full * 16).astype("<u2")
    paths = [folder / name for name in ("full.jpg", "1024.png", "full-raw.dcm")]
    Image.fromarray(eight).save(paths[0], quality=95)
    Image.fromarray(eight).resize((1024, 1024)).save(paths[1])
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3"
    ds.Rows, ds.Columns = twelve.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.PixelData = twelve.tobytes()
    ds.save_as(paths[2], enforce_file_format=True)
    return paths


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["formats", "probe", "sources"])
    parser.add_argument("--real", default="/work/shared/data/nih_subset/images")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224, 518])
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--scratch", default=None, help="folder of the files; a real disk")
    parser.add_argument("--card", default="nih_chestxray14")
    parser.add_argument("--root", default="/work/shared/data/nih_subset")
    parser.add_argument("--within", default="", help="a query of the manifest")
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--files", default="/work/shared/data/dicom")
    args = parser.parse_args()
    {"formats": formats, "probe": probe, "sources": sources}[args.what](args)


if __name__ == "__main__":
    main()
