"""Write the synthetic institution as an archive gives it: files in disorder, tables beside them."""

import itertools
import json
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom.uid as uids
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.fileset import FileSet

from cxrstudy.data import synthetic
from cxrstudy.data.export import VIEW_POSITION, draw, new_folder, to_dicom
from cxrstudy.data.pacsfiles import EXTRAS, FOREIGN, beside
from cxrstudy.data.pacspeople import LANGUAGES, Exam, Planted, exam_of, random, staff_of
from cxrstudy.data.pacstables import write_tables
from cxrstudy.data.vocabulary import LABELS
from cxrstudy.progress import Progress

CUES = (  # where an image says its view; shuffled, so that shares are exact
    *(("tag",) * 9 + ("series",) * 4 + ("wrong",) * 2),
    *("code", "processing", "protocol", "nonsense", "none"),
)
SYNTAXES: tuple[tuple[str, Any], ...] = (
    *(("explicit", uids.ExplicitVRLittleEndian),) * 3,
    *(("implicit", uids.ImplicitVRLittleEndian),) * 2,
    ("rle", uids.RLELossless),
    ("jpeg_ls", uids.JPEGLSLossless),
    ("jpeg_2000", uids.JPEG2000Lossless),
    ("deflated", uids.DeflatedExplicitVRLittleEndian),
    ("bare", None),  # without preamble and meta information
)
CR = uids.ComputedRadiographyImageStorage
CODES = {  # PS3.16, CID 4010
    "PA": ("R-10214", "postero-anterior"),
    "AP": ("R-10206", "antero-posterior"),
    "LATERAL": ("R-10236", "left lateral"),
}
OTHER = {"PA": "AP", "AP": "PA", "LATERAL": "PA"}


def export_as_pacs(
    out: str | Path,
    *,
    n: int = 200,
    institution: str = "study",
    size: int = 512,
    bits: int = 12,
    seed: int = 0,
    start: int = 0,
    plant: bool = False,
    progress: Progress = iter,
) -> Path:
    """Write images ``start`` to ``start + n`` as an archive exports them, into the new ``out``.

    ``out/archive`` is the tree: x-rays under several schemes of folders and names, with headers in
    14 languages and several transfer syntaxes, and what lies among them (reports, presentation
    states, screenshots, hands, damaged and foreign files, a DICOMDIR). ``out/tables`` holds three
    tables by accession number. ``out/truth/files.csv`` says what each file is: kind, view, patient,
    study, labels, and of which image it is a copy; ``out/truth/studies.csv`` says what the tables
    hold of each study.

    Args:
        out: a folder that is new or empty.
        n: number of chest x-rays; other files come on top.
        institution: of the synthetic world.
        size: px.
        bits: stored a pixel: 8, 12 or 16.
        seed: of the institution.
        start: index of the first image.
        plant: also write made-up identifiers into private tags, file names, reports, tables and
            pixels; ``out/truth/planted.json`` lists them all with their places.
        progress: wraps the loop over batches.

    Returns:
        ``out``.

    Raises:
        ValueError: ``out`` is not empty, or ``bits`` is another number.
    """
    with new_folder(out, bits) as scratch:
        (scratch / "archive").mkdir()
        archive = _Archive(scratch / "archive", n, seed, bits, plant)
        count = itertools.count()
        for names, batch in draw(n, institution, size, seed, start, progress):
            for row, name in enumerate(names):
                archive.add(batch, row, name, next(count))
        archive.finish()
        (scratch / "truth").mkdir()
        pd.DataFrame(archive.truth).to_csv(scratch / "truth" / "files.csv", index=False)
        facts = {"institution": institution, "seed": seed, "start": start, "n": n, "bits": bits}
        facts |= {"generator": synthetic.VERSION, "size": size, "synthetic": True}
        (scratch / "truth" / "export.json").write_text(json.dumps(facts, indent=1))
        studies = write_tables(scratch / "tables", archive.exams, seed, archive.planted)
        studies.to_csv(scratch / "truth" / "studies.csv", index=False)
        if archive.planted:
            archive.planted.write(scratch / "truth" / "planted.json")
    return Path(out).expanduser()


class _Archive:
    """The tree while it is written: exams, what is true of each file, and what was planted."""

    def __init__(self, root: Path, n: int, seed: int, bits: int, plant: bool) -> None:
        self.root, self.seed, self.bits = root, seed, bits
        self.truth: list[dict[str, Any]] = []
        self.exams: dict[str, tuple[Exam, dict[str, Any]]] = {}
        self.planted = Planted() if plant else None
        self.disc: list[tuple[FileDataset, dict[str, Any]]] = []
        rng = random(seed, "shares")
        self.cues = rng.permutation(np.resize(CUES, n)).tolist()
        self.syntaxes = rng.permutation(np.resize(np.arange(len(SYNTAXES)), n)).tolist()

    def add(self, batch: synthetic.Batch, row: int, name: str, k: int) -> None:
        """Write image ``k``, and the other files of the folder of its study."""
        exam, view = exam_of(batch, row, self.seed), str(batch.view[row])
        extra = "" if exam.study in self.exams else EXTRAS[len(self.exams) % len(EXTRAS)]
        truth = {
            "kind": "chest",
            "view": view,
            "view_cue": self.cues[k],
            "patient_id": str(batch.patient_id[row]),
            "study_id": exam.study,
            "accession": exam.accession,
            "mrn": exam.person.mrn,
            "age": int(batch.age[row]),
            "sex": str(batch.sex[row]),
            "same_as": "",
            "burned_in": self.planted is not None and k % 6 == 0,
            "no_patient_id": extra == "no_patient_id",
        }
        labels = dict(zip(LABELS, batch.labels[row].astype(int).tolist(), strict=True))
        if exam.study not in self.exams:
            facts = {"report": batch.report[row], "sex": truth["sex"], "age": truth["age"]}
            facts |= {"reported": batch.reported[row], "labels": batch.labels[row]}
            self.exams[exam.study] = exam, facts | {"malpositioned": batch.malpositioned[row]}
        ds = to_dicom(batch, row, name, self.seed, self.bits)
        if zlib.crc32(exam.study.encode()) % 3 == 0:  # a third comes from imaging plates
            ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CR
            ds.Modality = "CR"
            del ds.PresentationIntentType
        self._identify(ds, exam)
        _say_view(ds, exam, view, self.cues[k], random(self.seed, "view", exam.study, view))
        if truth["burned_in"]:
            self._burn_in(ds, exam, k)
        if extra == "no_patient_id":
            ds.PatientID = ""
        if extra == "disc" and len(self.disc) < 24:  # its files are staged elsewhere until then
            self.disc.append((ds, truth | labels))
            return
        path = self.path(exam, ds)
        self.note(path, truth | labels, syntax=_save(ds, self.root / path, self.syntaxes[k]))
        for kind, content, facts in beside(extra, ds, path, exam, truth, batch.report[row]):
            suffix = str(facts.pop("suffix", ""))
            if isinstance(content, bytes):
                other = f"{path}{suffix}"
                (self.root / other).write_bytes(content)
            else:
                if facts.pop("moved", False):
                    self._identify(content, _someone_else(exam))
                other = self.path(exam, content, suffix)
                _save(content, self.root / other, 0)
            same = truth | labels if kind in ("copy", "other_patient") else truth
            self.note(other, same, **{"kind": kind, **facts})

    def finish(self) -> None:
        """Write foreign files, and a disc with its DICOMDIR."""
        for name, content in FOREIGN.items():
            (self.root / name).write_bytes(content)
            self.note(name, {}, kind="foreign")
        if self.disc:
            files = FileSet()
            files.UID = uids.generate_uid(entropy_srcs=["disc", str(self.seed)])
            for ds, _ in self.disc:
                files.add(ds)
            files.write(self.root / "CD0001")
            self.note("CD0001/DICOMDIR", {}, kind="dicomdir")
            places = {str(each.SOPInstanceUID): Path(each.path) for each in files}
            for ds, truth in self.disc:
                path = places[str(ds.SOPInstanceUID)].relative_to(self.root.resolve())
                self.note(str(path), truth, syntax="explicit")
        self.truth.sort(key=lambda row: str(row["path"]))

    def note(self, path: str, truth: dict[str, Any], **facts: Any) -> None:
        """Add what is true of a file."""
        self.truth.append({"path": path, **truth, **facts})

    def path(self, exam: Exam, ds: Dataset, suffix: str = "") -> str:
        """Return where a file goes: several habits of naming, one an exam."""
        style = zlib.crc32(exam.study.encode()) % 5
        uid, folder, k = str(ds.SOPInstanceUID), exam.folder, len(self.truth)
        name = (uid, f"IM{k:06d}", f"{uid}.dcm", f"{k:08X}", f"Image ({k}).ima")[style] + suffix
        if self.planted is not None and style % 2:
            who = exam.person
            name = f"{who.family}_{exam.day:%Y%m%d}_{k}{suffix}"
            folder = f"{folder}/{who.family}_{who.given}_{who.mrn}"
            self.planted.add("file and folder names", exam, "name mrn day")
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        return f"{folder}/{name}"

    def _identify(self, ds: Dataset, exam: Exam) -> None:
        """Write who and when into the header."""
        who, words = exam.person, LANGUAGES[exam.person.language]
        if words["charset"] != "none":
            charset = words["charset"].split("\\")
            ds.SpecificCharacterSet = charset if len(charset) > 1 else charset[0]
        ds.PatientID, ds.PatientName = who.mrn, who.name
        ds.AccessionNumber, ds.StudyID = exam.accession, exam.accession[-8:]
        ds.StudyDate = ds.SeriesDate = ds.ContentDate = f"{exam.day:%Y%m%d}"
        ds.StudyTime, ds.PatientBirthDate = "101500", f"{exam.birth:%Y%m%d}"
        ds.ReferringPhysicianName = f"{exam.physician}^Dr"
        if self.planted is None:
            return
        for tag, names in staff_of(exam).items():
            setattr(ds, tag, [f"{name}^Dr" for name in names.split("\\")])
        ds.PatientTelephoneNumbers = who.phone
        ds.add_new(0x00190010, "LO", "CXRSTUDY SYNTHETIC 1")
        ds.add_new(0x00191010, "LO", f"{who.family}, {who.given} {who.mrn}")
        ds.add_new(0x00191011, "LT", f"{exam.accession} {exam.day:%d.%m.%Y} {who.phone}")
        ds.add_new(0x00191012, "UN", f"{who.family}^{who.given}".encode())
        self.planted.add("tags", exam, "mrn accession own_name physician staff day birth phone")
        self.planted.add("private tags", exam, "mrn accession name day phone")

    def _burn_in(self, ds: Dataset, exam: Exam, k: int) -> None:
        """Write name, number and date into the pixels, and in half of them say so."""
        who = exam.person
        text = f"{who.family.upper()} {who.given.upper()}\n{who.mrn} {exam.day:%d.%m.%Y}"
        stored = np.frombuffer(ds.PixelData, f"u{ds.BitsAllocated // 8}").reshape(ds.Rows, -1)
        drawn = Image.new("1", stored.shape[::-1])
        font = ImageFont.load_default(max(8, ds.Rows // 28))
        place = (ds.Columns // 40, (ds.Rows // 40, ds.Rows - ds.Rows // 8)[k // 6 % 2])
        ImageDraw.Draw(drawn).text(place, text, fill=1, font=font)
        white = 0 if ds.PhotometricInterpretation == "MONOCHROME1" else 2**self.bits - 1
        ds.PixelData = np.where(np.asarray(drawn), white, stored).astype(stored.dtype).tobytes()
        if k // 6 % 2:
            ds.BurnedInAnnotation = "YES"
        else:
            del ds.BurnedInAnnotation
        assert self.planted is not None
        self.planted.add("pixels", exam, "name mrn day")


def _someone_else(exam: Exam) -> Exam:
    """Return an exam as if it had been sent under a wrong patient."""
    name = {"family": "Wronghampton", "given": "Ottokarine", "name": "Wronghampton^Ottokarine"}
    mrn = f"09{zlib.crc32(exam.person.mrn.encode()) % 10**6:06d}"
    return exam._replace(person=exam.person._replace(mrn=mrn, **name))


def _say_view(ds: Dataset, exam: Exam, view: str, cue: str, rng: np.random.Generator) -> None:
    """Write the view where this image has it, in its country's words, and nowhere else."""
    words = LANGUAGES[exam.person.language]
    described = str(rng.choice(words[view].split(" | ")))
    ds.StudyDescription = str(rng.choice(words["study"].split(" | ")))
    ds.SeriesDescription = described if cue in ("tag", "series", "wrong") else words["chest"]
    if cue == "wrong":
        ds.ViewPosition = VIEW_POSITION[OTHER[view]]
    elif cue != "tag":
        ds.ViewPosition = "FRONTAL" if cue == "nonsense" else ""
        del ds.PatientOrientation
    if cue == "code":
        item = Dataset()
        item.CodeValue, item.CodeMeaning = CODES[view]
        item.CodingSchemeDesignator = "SRT"
        ds.ViewCodeSequence = [item]
    elif cue == "processing":
        ds.AcquisitionDeviceProcessingDescription = f"CHEST {view}"
    elif cue == "protocol":
        ds.ProtocolName = described


def _save(ds: FileDataset, path: Path, syntax: int) -> str:
    """Write a file in one of the transfer syntaxes; return its name."""
    name, uid = SYNTAXES[syntax]
    if name == "bare":
        bare = Dataset(ds)
        bare.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        return name
    if uid.is_encapsulated and name != "jpeg_2000":
        ds.compress(uid, generate_instance_uid=False)
    elif name == "jpeg_2000":  # pydicom encodes it with a package that is not required here
        stored, packed = ds.pixel_array, BytesIO()
        Image.fromarray(stored).save(packed, "JPEG2000", no_jp2=True)
        ds.PixelData = encapsulate([packed.getvalue()])
        ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = uid
    ds.save_as(path, enforce_file_format=True)
    return name
