"""Make what lies among the chest x-rays of an archive: other objects, damaged and foreign files."""

import copy
import struct
import time
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pydicom.uid as uids
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

from cxrstudy.data.pacspeople import LANGUAGES, Exam

EXTRAS = (  # one an exam, in turn
    *("", "sr", "twin", "", "pr", "disc", "empty", "twin", "", "hand", "sc", "copy", "", "pdf"),
    *("truncated", "", "abdomen", "no_patient_id", "sr", "cut_header", "other_patient", ""),
)
HEADER = (
    *("SpecificCharacterSet", "StudyDate", "StudyTime", "ContentDate", "AccessionNumber"),
    *("Manufacturer", "ReferringPhysicianName", "StudyDescription", "PatientName", "PatientID"),
    *("PatientBirthDate", "PatientSex", "PatientAge", "StudyInstanceUID", "StudyID"),
    "PatientTelephoneNumbers",
)
Beside = Iterator[tuple[str, FileDataset | bytes, dict[str, Any]]]


def beside(
    extra: str, ds: FileDataset, path: str, exam: Exam, truth: dict[str, Any], report: str
) -> Beside:
    """Return the other files of an image's folder: (kind, data set or bytes, other facts).

    A fact ``suffix`` is part of the file's name, ``moved`` asks for another patient's header.

    Args:
        extra: an entry of ``EXTRAS``.
        ds: the image as it was written.
        path: of its file.
        exam: its exam.
        truth: what is true of it.
        report: of its exam.
    """
    clean: dict[str, Any] = {"view": "", "view_cue": "", "burned_in": False}
    if extra and ds.file_meta.TransferSyntaxUID.is_compressed:
        ds.decompress(generate_instance_uid=False)
    if extra in ("sr", "pr", "sc", "pdf"):
        yield extra, _object(extra, ds, report), clean
    elif extra in ("hand", "abdomen"):
        yield extra, _other_part(extra, ds, exam), clean
    elif extra == "twin":
        yield "for_processing", _for_processing(ds), {"same_as": path}
    elif extra in ("copy", "other_patient"):
        again = _renewed(ds, extra) if extra == "other_patient" else copy.deepcopy(ds)
        moved = extra == "other_patient"
        yield extra, again, {"same_as": path, "suffix": "_2", "moved": moved}
    elif extra == "empty":
        yield "empty", b"", clean | {"suffix": "_0"}
    elif extra in ("truncated", "cut_header"):
        whole, cut = BytesIO(), _renewed(ds, extra)
        cut.file_meta.TransferSyntaxUID = uids.ExplicitVRLittleEndian  # deflated, none is readable
        cut.save_as(whole, enforce_file_format=True)
        share = 0.7 if extra == "truncated" else 0.0
        bytes_ = whole.getvalue()
        yield extra, bytes_[: 700 + int(share * len(bytes_))], clean | {"suffix": "_1"}


def _renewed(ds: FileDataset, *words: str) -> FileDataset:
    """Return a copy with a SOP instance uid of its own."""
    again = copy.deepcopy(ds)
    uid = uids.generate_uid(entropy_srcs=[str(ds.SOPInstanceUID), *words])
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = uid
    return again


def _for_processing(ds: FileDataset) -> FileDataset:
    """Return the detector's own image: dark bone, linear in dose, not meant for reading."""
    twin = _renewed(ds, "twin")
    stored = twin.pixel_array.astype(np.float64) / (2**ds.BitsStored - 1)
    bone = stored if ds.PhotometricInterpretation == "MONOCHROME2" else 1 - stored
    raw = np.rint((2**ds.BitsStored - 1) * np.exp(-2.5 * bone))
    twin.PixelData = raw.astype(twin.pixel_array.dtype).tobytes()
    twin.PhotometricInterpretation, twin.PresentationLUTShape = "MONOCHROME1", "INVERSE"
    twin.Modality, twin.PresentationIntentType = "DX", "FOR PROCESSING"
    kind = uids.DigitalXRayImageStorageForProcessing
    twin.SOPClassUID = twin.file_meta.MediaStorageSOPClassUID = kind
    twin.SeriesInstanceUID = uids.generate_uid(entropy_srcs=[str(ds.SeriesInstanceUID), "twin"])
    twin.SeriesNumber = 2
    for name in ("WindowCenter", "WindowWidth"):
        delattr(twin, name)
    return twin


def _other_part(part: str, ds: FileDataset, exam: Exam) -> FileDataset:
    """Return an x-ray of a hand or an abdomen, drawn roughly, in the same study."""
    other, side = _renewed(ds, part), 256
    film = Image.new("L", (side, side), 10)
    draw = ImageDraw.Draw(film)
    if part == "hand":
        draw.rounded_rectangle((85, 130, 175, 230), 25, fill=110)
        for finger in range(5):
            x = 78 + 24 * finger
            draw.line((x, 150, x - 24 + 12 * finger, 45 + 12 * abs(finger - 2)), 110, 17)
            draw.line((x, 150, x - 24 + 12 * finger, 50 + 12 * abs(finger - 2)), 215, 7)
    else:
        draw.rectangle((30, 0, 226, 256), fill=120)
        for k in range(7):
            draw.rounded_rectangle((112, 4 + 36 * k, 144, 34 + 36 * k), 6, fill=210)
        draw.ellipse((40, 190, 110, 270), fill=190)
        draw.ellipse((146, 190, 216, 270), fill=190)
        for x, y in ((70, 80), (160, 60), (85, 140), (180, 130)):
            draw.ellipse((x - 18, y - 12, x + 18, y + 12), fill=60)
    grey = np.asarray(film.resize((ds.Columns, ds.Rows)), float) / 255
    grey = 1 - grey if ds.PhotometricInterpretation == "MONOCHROME1" else grey
    top = 2**ds.BitsStored - 1
    other.PixelData = np.rint(grey * top).astype(f"u{ds.BitsAllocated // 8}").tobytes()
    words = LANGUAGES[exam.person.language]
    other.SeriesDescription = words[part]
    other.BodyPartExamined = "HAND" if part == "hand" else ""  # its description alone says abdomen
    other.ViewPosition = "AP"
    for name in ("ViewCodeSequence", "ProtocolName", "AcquisitionDeviceProcessingDescription"):
        if name in other:
            delattr(other, name)
    return other


def _object(kind: str, ds: FileDataset, report: str) -> FileDataset:
    """Return an object without an x-ray: report, presentation state, screenshot or PDF."""
    storage, modality = {
        "sr": (uids.BasicTextSRStorage, "SR"),
        "pr": (uids.GrayscaleSoftcopyPresentationStateStorage, "PR"),
        "sc": (uids.SecondaryCaptureImageStorage, "OT"),
        "pdf": (uids.EncapsulatedPDFStorage, "DOC"),
    }[kind]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = storage
    meta.MediaStorageSOPInstanceUID = uids.generate_uid(entropy_srcs=[str(ds.SOPInstanceUID), kind])
    meta.TransferSyntaxUID = uids.ExplicitVRLittleEndian
    new = FileDataset("", Dataset(), preamble=b"\0" * 128, file_meta=meta)
    for name in HEADER:
        if name in ds:
            new[name] = copy.deepcopy(ds[name])
    new.SOPClassUID, new.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    new.SeriesInstanceUID = uids.generate_uid(entropy_srcs=[str(ds.SeriesInstanceUID), kind])
    new.Modality, new.SeriesNumber, new.InstanceNumber = modality, 90, 1
    if kind == "sr":
        new.ValueType, new.ContinuityOfContent = "CONTAINER", "SEPARATE"
        new.CompletionFlag, new.VerificationFlag = "COMPLETE", "VERIFIED"
        new.ConceptNameCodeSequence = [_code("18748-4", "LN", "Diagnostic Imaging Report")]
        text = Dataset()
        text.RelationshipType, text.ValueType, text.TextValue = "CONTAINS", "TEXT", report
        text.ConceptNameCodeSequence = [_code("121070", "DCM", "Findings")]
        new.ContentSequence = [text]
    elif kind == "pr":
        image, series = Dataset(), Dataset()
        image.ReferencedSOPClassUID = ds.SOPClassUID
        image.ReferencedSOPInstanceUID = ds.SOPInstanceUID
        series.SeriesInstanceUID = ds.SeriesInstanceUID
        series.ReferencedImageSequence = [image]
        new.ReferencedSeriesSequence = [series]
        new.ContentLabel, new.PresentationLUTShape = "AS_READ", "IDENTITY"
    elif kind == "sc":
        shot = Image.new("RGB", (160, 60), (20, 30, 90))
        ImageDraw.Draw(shot).text((4, 20), "exposure index 412", fill="white")
        new.BodyPartExamined, new.ConversionType = "CHEST", "WSD"
        new.SamplesPerPixel, new.PhotometricInterpretation = 3, "RGB"
        new.PlanarConfiguration = new.PixelRepresentation = 0
        new.Rows, new.Columns = shot.height, shot.width
        new.BitsAllocated, new.BitsStored, new.HighBit = 8, 8, 7
        new.PixelData = shot.tobytes()
    else:
        page = BytesIO()
        fixed = {"creationDate": time.gmtime(0), "modDate": time.gmtime(0)}
        Image.new("L", (200, 60), 255).save(page, "PDF", **fixed)
        pdf = page.getvalue()
        new.MIMETypeOfEncapsulatedDocument = "application/pdf"
        new.EncapsulatedDocumentLength = len(pdf)
        new.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    return new


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _logo() -> bytes:
    packed = BytesIO()
    Image.new("L", (40, 20), 200).save(packed, "PNG")
    return packed.getvalue()


FOREIGN = {  # beside the folders, as viewers and file managers leave them
    "README.TXT": "Viewer: double-click START.EXE\r\nSichtgerät: START.EXE starten\r\n".encode(
        "cp1252"
    ),
    "index.html": b"<html><body><h1>Export</h1></body></html>\n",
    "Thumbs.db": bytes.fromhex("d0cf11e0a1b11ae1") + bytes(1016),
    ".DS_Store": b"\0\0\0\1Bud1" + bytes(500),
    "AUTORUN.INF": b"[autorun]\r\nopen=START.EXE\r\n",
    "logo.png": _logo(),
    "VERSION": struct.pack("<4I", 1, 2, 3, 4),
}
