"""Write the synthetic institution as files: DICOM, tables, reports and masks."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from cxrstudy.data import synthetic
from cxrstudy.data.vocabulary import DEVICES, LABELS
from cxrstudy.progress import Progress

CHUNK = 64  # x-rays drawn at a time
VIEW_POSITION = {"PA": "PA", "AP": "AP", "LATERAL": "LL"}


def export_synthetic(
    out: str | Path,
    *,
    n: int = 200,
    institution: str = "study",
    size: int = 512,
    bits: int = 16,
    seed: int = 0,
    start: int = 0,
    progress: Progress = iter,
) -> Path:
    """Write images ``start`` to ``start + n`` of an institution into the new folder ``out``.

    ``images/*.dcm`` (mobile machines write MONOCHROME1, fixed ones MONOCHROME2), ``masks/*.png``
    (bit k of a pixel: device k of the vocabulary), ``reports/*.txt``, ``images.csv`` (a row an
    image; labels as the institution recorded them) and ``truth.csv`` (true labels, severity, side,
    tips in pixels). The cards ``synthetic_dicom`` and ``site`` read it back.

    Args:
        out: a folder that is new or empty.
        n: number of images.
        institution: of the synthetic world.
        size: px.
        bits: stored a pixel: 8, 12 or 16.
        seed: of the institution.
        start: index of the first image.
        progress: wraps the loop over batches.

    Returns:
        ``out``.

    Raises:
        ValueError: ``out`` is not empty, or ``bits`` is another number.
    """
    with new_folder(out, bits) as scratch:
        for folder in ("images", "masks", "reports"):
            (scratch / folder).mkdir(parents=True)
        tables: list[tuple[pd.DataFrame, pd.DataFrame]] = []
        for names, batch in draw(n, institution, size, seed, start, progress):
            for row, name in enumerate(names):
                to_dicom(batch, row, name, seed, bits).save_as(
                    scratch / "images" / f"{name}.dcm", enforce_file_format=True
                )
                each = np.asarray(batch.masks)[row] << np.arange(len(DEVICES))[:, None, None]
                Image.fromarray(each.sum(0).astype(np.uint8)).save(
                    scratch / "masks" / f"{name}.png"
                )
                (scratch / "reports" / f"{batch.study_id[row]}.txt").write_text(
                    batch.report[row] + "\n", encoding="utf-8"
                )
            tables.append(_tables(batch, names))
        for k, file in enumerate(("images.csv", "truth.csv")):
            pd.concat([pair[k] for pair in tables]).to_csv(scratch / file, index=False)
        facts = {"institution": institution, "seed": seed, "start": start, "n": n}
        facts |= {"generator": synthetic.VERSION, "size": size, "bits": bits, "synthetic": True}
        (scratch / "export.json").write_text(json.dumps(facts, indent=1))
    return Path(out).expanduser()


def draw(
    n: int, institution: str, size: int, seed: int, start: int, progress: Progress
) -> Iterator[tuple[list[str], synthetic.Batch]]:
    """Yield names and images of ``start`` to ``start + n``, ``CHUNK`` at a time."""
    for first in progress(range(start, start + n, CHUNK)):
        index = np.arange(first, min(first + CHUNK, start + n))
        batch = synthetic.sample(index, institution=institution, size=size, seed=seed)
        yield [f"{institution}-{seed}-{k:07d}" for k in index.tolist()], batch


@contextmanager
def new_folder(out: str | Path, bits: int) -> Iterator[Path]:
    """Give a folder to fill that becomes ``out`` at the end: no partial export looks complete.

    Raises:
        ValueError: ``out`` is there and not empty, or ``bits`` is not 8, 12 or 16.
    """
    out = Path(out).expanduser()
    if bits not in (8, 12, 16):
        raise ValueError(f"bits {bits}: a detector stores 8, 12 or 16 bits a pixel")
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise ValueError(f"{out} is there already and not empty; name a new folder, or remove it")
    scratch = out.with_name(f".{out.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    yield scratch
    if out.is_dir():
        out.rmdir()
    scratch.rename(out)


def _tables(batch: synthetic.Batch, names: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return rows of ``images.csv`` and ``truth.csv``."""
    facts = ("patient_id", "study_id", "view", "age", "sex", "scanner")
    who: dict[str, Any] = {"image_id": names} | {key: getattr(batch, key) for key in facts}
    who["pixel_spacing_mm"] = np.round(np.asarray(batch.pixel_spacing), 4)
    who["report"] = batch.report
    who |= {name: pd.array(batch.reported[:, k], dtype="Int8") for k, name in enumerate(LABELS)}
    truth: dict[str, Any] = {"image_id": names}
    truth |= {name: batch.labels[:, k].astype(int) for k, name in enumerate(LABELS)}
    for k, name in enumerate(LABELS[: batch.severity.shape[1]]):
        truth[f"{name}_severity"] = np.round(batch.severity[:, k], 3)
        truth[f"{name}_side"] = batch.side[:, k]
    for k, name in enumerate(DEVICES):
        tip = np.round(np.asarray(batch.tips)[:, k], 2)
        truth[f"{name}_malpositioned"] = batch.malpositioned[:, k].astype(int)
        truth |= {f"{name}_tip_column": tip[:, 0], f"{name}_tip_row": tip[:, 1]}
    return pd.DataFrame(who), pd.DataFrame(truth)


def to_dicom(batch: synthetic.Batch, row: int, name: str, seed: int, bits: int) -> FileDataset:
    """Return one x-ray as Digital X-Ray Image Storage - For Presentation (PS3.3 A.26).

    Its uids follow from the ids.
    """
    patient, exam, top = str(batch.patient_id[row]), str(batch.study_id[row]), 2**bits - 1
    stored = np.rint(np.asarray(batch.image)[row, 0].astype(np.float64) * top)
    inverse = "mobile" in str(batch.scanner[row])
    stored = (top - stored if inverse else stored).astype(np.uint8 if bits == 8 else np.uint16)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["image", name])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", Dataset(), preamble=b"\0" * 128, file_meta=meta)
    ds.SOPClassUID = meta.MediaStorageSOPClassUID
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    series = [str(seed), exam, str(batch.view[row])]
    ds.StudyInstanceUID = generate_uid(entropy_srcs=["study", str(seed), exam])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=["series", *series])
    ds.PatientID, ds.PatientName = patient, f"SYNTHETIC^{patient}"
    ds.PatientSex, ds.PatientAge = str(batch.sex[row]), f"{int(batch.age[row]):03d}Y"
    ds.PatientBirthDate = ds.StudyDate = ds.StudyTime = ""
    ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.StudyID = exam[-16:]
    ds.Modality, ds.PresentationIntentType, ds.BodyPartExamined = "DX", "FOR PRESENTATION", "CHEST"
    ds.Manufacturer, ds.ManufacturerModelName = "cxrstudy (synthetic)", str(batch.scanner[row])
    ds.ImageComments = (
        "Synthetic: drawn by a program; no patient is behind it. Not for clinical use."
    )
    ds.ViewPosition, ds.ImageLaterality = VIEW_POSITION[str(batch.view[row])], "U"
    ds.PatientOrientation = ["A", "F"] if ds.ViewPosition == "LL" else ["L", "F"]
    ds.SeriesNumber, ds.InstanceNumber, ds.ImageType = 1, 1, ["ORIGINAL", "PRIMARY"]
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    ds.ImagerPixelSpacing = [round(float(np.asarray(batch.pixel_spacing)[row]), 5)] * 2
    ds.SamplesPerPixel, ds.PixelRepresentation = 1, 0
    ds.Rows, ds.Columns = stored.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 if bits == 8 else 16, bits, bits - 1
    ds.PhotometricInterpretation = "MONOCHROME1" if inverse else "MONOCHROME2"
    ds.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", 1 if inverse else -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.WindowCenter, ds.WindowWidth = (top + 1) // 2, top + 1  # 0 and 1 are the ends of the range
    ds.PixelData = stored.tobytes()
    return ds
