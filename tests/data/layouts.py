"""Made-up rows and tiny images in the exact layout of published data sets, a function a set.

Header lines, folders and spellings are those documented for each set; ids, values and texts are
made up here. Each function writes ``n`` images below ``root`` and returns the folder that a data
run is given as its root.
"""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

CHEXPERT = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
    "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
CHEXPERT_V1 = (  # the order of train.csv
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,"
    "Support Devices"
)
STATES = ("1.0", "0.0", "-1.0", "")  # present, absent, uncertain, not mentioned
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with cough

 FINDINGS:

 {findings}

 IMPRESSION:

 {impression}
"""


def states(k: int, names: str = CHEXPERT) -> list[str]:
    """Return a row of labels in CheXpert's scheme: the four states in turn, from the k-th."""
    return [STATES[(k + m) % 4] for m in range(len(names.split(",")))]


def write_table(path: Path, header: str, rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV table under its header line as documented; packed where the name ends in .gz."""
    text = io.StringIO()
    text.write(header + "\n")
    csv.writer(text, lineterminator="\n").writerows(rows)
    data = text.getvalue().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_image(path: Path, k: int, shape: tuple[int, int] = (24, 20)) -> None:
    """Write the k-th image in the format that the name asks for; DICOM without a known suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.indices(shape)
    pixels = (rows * 7 + columns * 3 + k * 11) % 256
    if path.suffix in (".png", ".jpg"):
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        return
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = f"1.2.3.{k}"
    ds.Rows, ds.Columns = shape
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 7, 0, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.PixelData = pixels.astype(np.uint8).tobytes()
    ds["PixelData"].VR = "OB"
    ds.save_as(path, enforce_file_format=True)


def relative_runs(mask: np.ndarray) -> str:
    """Return a mask as SIIM-ACR and CANDID-PTX write it: (offset, length) over the transposed mask.

    An offset counts from the end of the run before.
    """
    flat = np.concatenate([[0], mask.T.ravel().astype(int), [0]])
    begins, ends = np.flatnonzero(np.diff(flat) == 1), np.flatnonzero(np.diff(flat) == -1)
    offsets = begins - np.concatenate([[0], ends[:-1]])
    return " ".join(f"{a} {b}" for a, b in zip(offsets, ends - begins, strict=True))


# ---- Boston ------------------------------------------------------------------------------------
def mimic_ids(k: int) -> tuple[str, str, str]:
    """Return patient, study and image id: two images a study, two studies of the first patient."""
    study = k // 2
    patient = str(10000032 + 11 * max(0, study - 1))
    image = "-".join(f"{(k + 1) * (m + 3) * 0x9E3779B1 % 2**32:08x}" for m in range(5))
    return patient, str(50414267 + 7 * study), image


def _mimic_tables(root: Path, n: int) -> None:
    ids = [mimic_ids(k) for k in range(n)]
    rest = ["3056", "2544", "21800506", "213014.531"]
    views = [
        ["CHEST (PA AND LAT)", "PA", *rest, "CHEST (PA AND LAT)", "postero-anterior", "Erect"],
        ["CHEST (PA AND LAT)", "LATERAL", *rest, "CHEST (PA AND LAT)", "lateral", "Erect"],
        ["CHEST (PORTABLE AP)", "AP", *rest, "CHEST (PORTABLE AP)", "antero-posterior", ""],
        ["CHEST (PORTABLE AP)", "", *rest, "CHEST (PORTABLE AP)", "", "Recumbent"],
    ]
    write_table(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,"
        "StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
        "PatientOrientationCodeSequence_CodeMeaning",
        [(image, p, s, *views[k % 4]) for k, (p, s, image) in enumerate(ids)],
    )
    parts = ("train", "train", "train", "validate", "test", "train")
    write_table(
        root / "mimic-cxr-2.0.0-split.csv.gz",
        "dicom_id,study_id,subject_id,split",
        [
            (image, s, p, parts[max(0, k // 2 - 1) % 6])
            for k, (p, s, image) in enumerate(reversed(ids))
            for k in [n - 1 - k]
        ],
    )
    studies = list(dict.fromkeys((p, s) for p, s, _ in ids))
    write_table(  # the last study has no row
        root / "mimic-cxr-2.0.0-chexpert.csv.gz",
        f"subject_id,study_id,{CHEXPERT}",
        [(p, s, *states(j)) for j, (p, s) in enumerate(studies[:-1])],
    )


def mimic_cxr_jpg(root: Path, n: int = 8) -> Path:
    """MIMIC-CXR-JPG: three packed tables and a folder a study."""
    _mimic_tables(root, n)
    for k in range(n):
        patient, study, image = mimic_ids(k)
        folder = root / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}"
        write_image(folder / f"{image}.jpg", k)
    return root


def mimic_cxr(root: Path, n: int = 8) -> Path:
    """MIMIC-CXR: DICOM files, a report a study beside its folder; the last has no headings."""
    _mimic_tables(root, n)
    records = []
    for k in range(n):
        patient, study, image = mimic_ids(k)
        folder = Path("files", f"p{patient[:2]}", f"p{patient}", f"s{study}")
        write_image(root / folder / f"{image}.dcm", k)
        records.append((patient, study, image, folder / f"{image}.dcm"))
        found = "Heart size is normal.\n Small left effusion." if k < 4 else "The lungs are clear."
        text = REPORT.format(findings=found, impression=f"Study {k // 2}.")
        if k >= n - 2:
            text = "                                 WET READ\n Lines unchanged.\n"
        (root / folder.parent / f"s{study}.txt").write_text(text, encoding="utf-8")
    write_table(root / "cxr-record-list.csv.gz", "subject_id,study_id,dicom_id,path", records)
    return root


# ---- Stanford ----------------------------------------------------------------------------------
def chexpert(root: Path, n: int = 8) -> Path:
    """CheXpert v1: ids are in the paths, which begin with the folder's own name."""
    root = root / "CheXpert-v1.0-small"
    rows: dict[str, list[list[object]]] = {"train": [], "valid": []}
    for k in range(n):
        part = "valid" if k >= n - 2 else "train"
        side = "lateral" if k % 4 == 1 else "frontal"
        study = f"patient{k // 2 + 1:05d}/study{k % 2 + 1 if k > 1 else 1}"
        path = f"{part}/{study}/view{k % 2 + 1}_{side}.jpg"
        write_image(root / path, k)
        facts = [("Female", "Male", "Unknown")[k % 3], (68, 0, 90)[k % 3], side.capitalize()]
        view = "" if side == "lateral" else ("AP", "PA", "LL")[k % 3]
        rows[part].append([f"{root.name}/{path}", *facts, view, *states(k, CHEXPERT_V1)])
    for part, own in rows.items():
        write_table(root / f"{part}.csv", f"Path,Sex,Age,Frontal/Lateral,AP/PA,{CHEXPERT_V1}", own)
    write_table(root / "train_visualCheXbert.csv", "Path,Edema", [["other", "1.0"]])
    return root


CHEXPERT_PLUS = (
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,"
    "report,section_narrative,section_clinical_history,section_history,section_comparison,"
    "section_technique,section_procedure_comments,section_findings,section_impression,"
    "section_end_of_impression,section_summary,section_accession_number,age,sex,race,ethnicity,"
    "interpreter_needed,insurance_type,recent_bmi,deceased,split"
)


def chexpert_plus(root: Path, n: int = 8) -> Path:
    """CheXpert Plus: reports in columns, labels in JSON lines, images as PNG or DICOM.

    The first two images are of one study, whose report is given twice with other dates.
    """
    columns, rows, labels = CHEXPERT_PLUS.split(","), [], []
    for k in range(n):
        part = "valid" if k >= n - 2 else "train"
        patient, study = f"patient{max(k, 1):05d}", "study1" if k < 2 else f"study{k}"
        stem = f"{part}/{patient}/{study}/view{k % 2 + 1}_frontal"
        other = k == n - 1  # this one as DICOM
        write_image(root / (f"DICOM/Uncompressed/{stem}.dcm" if other else f"PNG/{stem}.png"), k)
        row = dict.fromkeys(columns, "")
        row |= {"path_to_image": f"{stem}.jpg", "path_to_dcm": f"{stem}.dcm"}
        row |= {"frontal_lateral": "Frontal", "ap_pa": ("AP", "PA")[k % 2]}
        row |= {"deid_patient_id": patient, "patient_report_date_order": str(max(k, 1))}
        row |= {"section_findings": "" if k == 2 else f"Seen on {k}-{k}-2001. No effusion."}
        row |= {"section_impression": f"Impression of {study}.", "age": str(50 + max(k, 1))}
        row |= {"sex": ("Female", "Male")[max(k, 1) % 2], "split": part}
        rows.append([row[name] for name in columns])
        values = [float(v) if v else None for v in states(k, CHEXPERT_V1)]
        own = dict(zip(CHEXPERT_V1.split(","), values, strict=True))
        labels.append(json.dumps({"path_to_image": f"{stem}.jpg"} | own))
    write_table(root / "df_chexpert_plus_240401.csv", CHEXPERT_PLUS, rows)
    (root / "chexbert_labels").mkdir()
    (root / "chexbert_labels" / "report_fixed.json").write_text("\n".join(labels) + "\n")
    (root / "PNG" / ".azDownload-1-view1_frontal.png").write_bytes(b"")
    return root


# ---- Spain, Vietnam, Brazil ----------------------------------------------------------------------
PADCHEST = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,"
    "ViewPosition_DICOM,Projection,MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,"
    "PhotometricInterpretation_DICOM,PixelRepresentation_DICOM,PixelAspectRatio_DICOM,"
    "SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,WindowWidth_DICOM,Rows_DICOM,"
    "Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,ExposureInuAs_DICOM,ExposureTime,"
    "RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,Localizations,"
    "LabelsLocalizationsBySentence,labelCUIS,LocalizationsCUIS"
)


def padchest(root: Path, names: Sequence[str], n: int = 7) -> Path:
    """PadChest: Python lists with stray blanks, 16-bit PNG, the Spanish report in stems.

    Args:
        root: where to write.
        names: labels of the first image.
        n: how many images.
    """
    columns, rows = PADCHEST.split(","), []
    listed = [
        str([f" {name}" if m % 2 else name for m, name in enumerate(names)]),
        "['normal']",
        "['endotracheal tube', ' NSG tube', 'pneumothorax ']",
        "['exclude']",
        "",
        "[' suboptimal study', 'cardiomegaly']",
        "['pleural effusion', 'pleural effusion']",
    ]
    views = ("PA", "L", "AP_horizontal", "AP", "COSTAL")
    for k in range(n):
        image, folder = f"{2160 + k}_00-{k:03d}.png", (0, 54)[k % 2]
        (root / "images" / str(folder)).mkdir(parents=True, exist_ok=True)
        pixels = (np.arange(480).reshape(24, 20) * 100 + k).astype(np.uint16)
        Image.fromarray(pixels).save(root / "images" / str(folder) / image)
        row = dict.fromkeys(columns, "")
        row |= {"": k, "ImageID": image, "ImageDir": folder, "StudyID": f"{2160 + k}_00"}
        row |= {"PatientID": f"839860488694292331637988235681460987{k:02d}", "PatientBirth": 1930.0}
        row |= {"PatientSex_DICOM": "MF"[k % 2], "Projection": views[k % 5]}
        row |= {"Report": "sin hallazg patolog relev .", "Labels": listed[k % len(listed)]}
        rows.append([row[name] for name in columns])
    write_table(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", PADCHEST, rows)
    return root


VINDR = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,"
    "Edema,Emphysema,Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,"
    "Mediastinal shift,Nodule/Mass,Pleural effusion,Pleural thickening,Pneumothorax,"
    "Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,Pneumonia,Tuberculosis,"
    "{other},No finding"
)
VOTES = {  # label -> what the three readers of each training image say, in turn
    "Cardiomegaly": ("000", "001", "011", "111"),
    "Rib fracture": ("011", "000", "001", "000"),
    "Pleural effusion": ("100", "110", "000", "001"),
}


def vindr_id(k: int) -> str:
    """Return the id of VinDr's k-th image here: 32 hexadecimal digits."""
    return f"{(k + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}"


def vindr_cxr(root: Path, n: int = 6) -> Path:
    """VinDr-CXR: three rows a training image, one a test image, one column named otherwise."""
    train, test = [], []
    names = VINDR.format(other="Other diseases").split(",")
    for k in range(n):
        image, is_test = vindr_id(k), k >= n - 2
        write_image(root / ("test" if is_test else "train") / f"{image}.dicom", k)
        if is_test:
            test.append([image, *(int(name in ("Cardiomegaly", "No finding")) for name in names)])
            continue
        for reader in range(3):
            votes = [VOTES[name][k % 4][reader] if name in VOTES else 0 for name in names]
            train.append([image, f"R{reader + 1 + k % 4}", *votes])
    folder = root / "annotations"
    header = f"image_id,rad_id,{VINDR.format(other='Other diseases')}"
    write_table(folder / "image_labels_train.csv", header, train)
    header = f"image_id,{VINDR.format(other='Other disease')}"
    write_table(folder / "image_labels_test.csv", header, test)
    return root


def brax(root: Path, n: int = 8) -> Path:
    """BRAX: one table; the order of its columns is not documented."""
    views, rows = ("AP", "PA", "LL", "RL", "RLD", "LLO", "", "PA"), []
    for k in range(n):
        stem = f"id_{k // 2:04d}/Study_1.2.{k}/Series_1.2.{k}.1/image-1.2.{k}.1.1"
        write_image(root / "images" / f"{stem}.png", k)
        row = [f"Anonymized_DICOMs/{stem}.dcm", f"images/{stem}.png", f"{k // 2:04d}"]
        row += ["MFO"[k % 3], ("60", "85 or more", "20")[k % 3], f"{900 + k}", "20100101"]
        rows.append([*row, views[k % 8], 24, 20, k % 3, *states(k)])
    header = "DicomPath,PngPath,PatientID,PatientSex,PatientAge,AccessionNumber,StudyDate,"
    header += f"ViewPosition,Rows,Columns,Manufacturer,{CHEXPERT}"
    write_table(root / "master_spreadsheet_update.csv", header, rows)
    return root


# ---- lines and tubes -----------------------------------------------------------------------------
RANZCR = (
    "StudyInstanceUID,ETT - Abnormal,ETT - Borderline,ETT - Normal,NGT - Abnormal,"
    "NGT - Borderline,NGT - Incompletely Imaged,NGT - Normal,CVC - Abnormal,CVC - Borderline,"
    "CVC - Normal,Swan Ganz Catheter Present,PatientID"
)
COURSES = [  # of the first image: two catheters and a tube
    ("CVC - Normal", [[4, 5], [4, 60], [70, 60]]),
    ("CVC - Abnormal", [[10, 90], [75, 90]]),
    ("ETT - Normal", [[40, 0], [40, 50]]),
]
REST = ["ETT - Abnormal", "ETT - Borderline", "CVC - Borderline", "NGT - Normal", "NGT - Abnormal"]
REST += ["NGT - Borderline", "NGT - Incompletely Imaged", "Swan Ganz Catheter Present"]


def ranzcr_clip(root: Path, n: int = 6) -> Path:
    """RANZCR CLiP: the state of each kind of device, and courses as polylines of some images."""
    states_of = ["00100001010", "01000010001", "10000100000", "00000000000"]
    rows, courses = [], []
    for k in range(n):
        image = f"1.2.826.0.1.3680043.8.498.{10**19 + k}"
        write_image(root / "train" / f"{image}.jpg", k, (100, 80))
        rows.append([image, *states_of[k % 4], f"{k // 2 + 0xA0000001:09x}"])
        own = COURSES if k == 0 else [(name, [[1, 1], [9, 9]]) for name in REST] * (k == 1)
        courses += [(image, label, str(points)) for label, points in own]
    write_table(root / "train.csv", RANZCR, rows)
    write_table(root / "train_annotations.csv", "StudyInstanceUID,label,data", courses)
    return root


def drawn(first: tuple[int, int, int, int], shape: tuple[int, int] = (1024, 1024)) -> np.ndarray:
    """Return the mask of a rectangle: top, left, bottom, right."""
    mask = np.zeros(shape, bool)
    top, left, bottom, right = first
    mask[top:bottom, left:right] = True
    return mask


TUBES = {1: [(100, 50, 900, 60)], 3: [(10, 700, 12, 1000), (500, 1000, 1024, 1024)]}


def siim_acr(root: Path, n: int = 4) -> Path:
    """SIIM-ACR: a row a mask, '-1' or ' -1' for none, a blank before the second column's name."""
    rows: list[tuple[str, str]] = []
    for k in range(n):
        image = f"1.2.276.0.7230010.3.1.4.8323329.{1000 + k}.1517875160.837666"
        write_image(root / f"dicom-images-train/{image}a/{image}b/{image}.dcm", k)
        cells = [relative_runs(drawn(box)) for box in TUBES.get(k, [])]
        rows += [(image, cell) for cell in cells or [("-1", " -1")[k // 2 % 2]]]
    write_table(root / "train-rle.csv", "ImageId, EncodedPixels", rows)
    return root


def candid_ptx(root: Path, n: int = 6) -> Path:
    """CANDID-PTX: DICOM without suffix, masks of chest tubes in a table that names positives."""
    rows, tubes, ribs = [], [], []
    for k in range(n):
        image = f"1.2.840.{10000 + k}"
        write_image(root / "dataset" / image, k, (1024, 1024))
        mask = relative_runs(drawn((0, 0, 5, 7))) if k % 2 else ("-1", "")[k == 4]
        rows.append([image, f"1.9.{k}", f"P{k // 2 + 1}_{k}.dcm", f"Report {k}, no change.", mask])
        tubes += [[image, f"A{k}", relative_runs(drawn(box))] for box in TUBES.get(k, [])]
        ribs += [[image, f"B{k}", relative_runs(drawn((3, 3, 6, 6)))]] * (k == 2)
    rows.append(rows[1])  # an image that is listed again
    rows += [[*own[:2], f"P99_{own[2]}", *own[3:]] for own in rows[5:6]]  # of another patient too
    header = "SOPInstanceUID,StudyInstanceUID,filename,Report,EncodedPixels"
    write_table(root / "Pneumothorax_reports.csv", header, rows)
    write_table(root / "chest_tube.csv", "anon_SOPUID,anon_annotation,mask_rle", tubes)
    write_table(root / "acute_rib_fracture.csv", "anon_SOPUID,anon_annotation,mask_rle", ribs)
    return root


# ---- Indiana, NIH, three health systems ----------------------------------------------------------
OPENI = (  # the first columns of the table; the others are empty for most images
    "imageid,Accession Number,Acquisition Device Processing Code,Approval Status,Bits Allocated,"
    "Bits Stored,Body Part Examined,Cassette Orientation,Cassette Size,Collimator/grid Name,"
    "Columns,Contrast/Bolus Agent,Contrast/Bolus Total Dose,Contrast/Bolus Volume,Exposure,"
    "Exposures on Plate,Filter Type,Focal Spot(s),High Bit,Image Type,Imager Pixel Spacing,"
    "Instance Creation Date,Instance Creation Time,Instance Number,KVP,LUT Descriptor,"
    "LUT Explanation,Laterality,Manufacturer,Modality,Patient ID,Patient Orientation,"
    "Patient Position,Patient's Birth Date,Patient's Name,Patient's Sex,"
    "Photometric Interpretation,Pixel Representation,Pixel Spacing,Plate Type,Polarity,"
    "Private Creator,Referring Physician's Name,Requested Procedure ID,Rescale Intercept,"
    "Rescale Slope,Rescale Type,Rows,SOP Class UID,SOP Instance UID,Samples per Pixel,"
    "Sensitivity,Series Instance UID,Series Number,Source Number,Source Type,"
    "Specific Character Set,Study Date,Study ID,Study Instance UID,Study Status ID,Study Time,"
    "View Position,filename"
)


def openi(root: Path, n: int = 8) -> Path:
    """Open-i: reports and codes in XML, a table of DICOM attributes, two images a report."""
    rows = []
    codes = (
        ["Cardiomegaly/mild", "Pleural Effusion/left/small"],
        ["normal"],
        [
            "Cardiac Shadow/enlarged/moderate",
            "Pneumothorax/right",
            "Consolidation",
            "Nodule",
            "Mass",
            "Pulmonary Atelectasis/base/left",
            "Pulmonary Edema",
            "Fractures, Bone/ribs",
        ],
        ["No Indexing"],
    )
    for k in range(n):
        uid = 1000 + k // 2
        image = f"CXR{uid}_IM-0003-{k % 2 + 1}001"
        write_image(root / "NLMCXR_png" / f"{image}.png", k)
        row = dict.fromkeys(OPENI.split(","), "")
        row |= {"imageid": image, "Patient ID": uid, "View Position": ("PA", "", "LL", "AP")[k % 4]}
        row |= {"Pixel Spacing": "['0.1500', '0.1500']", "filename": f"./{image[3:]}.dcm"}
        rows.append(row.values())
        parts = {"COMPARISON": "XXXX.", "INDICATION": "Cough."}
        parts |= {"FINDINGS": f"Findings of {uid} &lt; before.", "IMPRESSION": f"No. {uid}."}
        text = "".join(f'<AbstractText Label="{k}">{v}</AbstractText>' for k, v in parts.items())
        major = "".join(f"<major>{code}</major>" for code in codes[k // 2 % 4])
        xml = f"""<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{uid}"/><MedlineCitation><Article><Abstract>{text}</Abstract></Article>
</MedlineCitation><MeSH>{major}<automatic>edema</automatic></MeSH>
<parentImage id="CXR{uid}_IM-0003-1001"/><parentImage id="CXR{uid}_IM-0003-2001"/></eCitation>"""
        (root / "ecgen-radiology").mkdir(exist_ok=True)
        (root / "ecgen-radiology" / f"{uid}.xml").write_text(xml, encoding="utf-8")
    write_table(root / "nlmcxr_dicom_metadata.csv.gz", OPENI, rows)
    return root


def rsna_pneumonia(root: Path, n: int = 4) -> Path:
    """RSNA: a row a box, an empty box where there is none, classes in another table."""
    rows, classes = [], []
    for k in range(n):
        image = f"{k:08x}-0000-4000-8000-00000000000{k % 10}"
        write_image(root / "stage_2_train_images" / f"{image}.dcm", k)
        boxes = [["264.0", "152.0", "213.0", "379.0", 1]] * (k % 3) or [["", "", "", "", 0]]
        rows += [[image, *box] for box in boxes]
        classes += [[image, ("Normal", "Lung Opacity")[k % 3 > 0]]] * len(boxes)
    write_table(root / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target", rows)
    write_table(root / "stage_2_detailed_class_info.csv", "patientId,class", classes)
    return root


def chestx_det(root: Path, n: int = 6) -> Path:
    """ChestX-Det: a JSON list of records, with lists of names, boxes and polygons."""
    names = ["Diffuse Nodule", "Effusion", "Cardiomegaly", "Pneumothorax", "Consolidation"]
    names += ["Atelectasis", "Calcification", "Emphysema", "Fibrosis", "Fracture", "Mass", "Nodule"]
    names += ["Pleural Thickening"]
    records: dict[str, list[object]] = {"train": [], "test": []}
    for k in range(n):
        part = "test" if k >= n - 2 else "train"
        file = f"{36199 + 37 * k}.png"
        write_image(root / f"{part}_data" / file, k)
        found = [[], names, ["Effusion", "Effusion"], ["Mass"]][k % 4]
        boxes = [[10, 20, 30, 40]] * len(found)
        polygons = [[[10, 20], [30, 20], [30, 40]]] * len(found)
        record = {"file_name": file, "syms": found, "boxes": boxes, "polygons": polygons}
        records[part].append(record)
    for part, own in records.items():
        (root / f"ChestX_Det_{part}.json").write_text(json.dumps(own))
    return root


def rexgradient(root: Path, n: int = 6) -> Path:
    """ReXGradient: a JSON mapping of studies, lists of images, paths that begin one folder up."""
    records: dict[str, dict[str, object]] = {"train": {}, "valid": {}, "test": {}}
    views = [["PA", "LATERAL"], ["AP"], ["POSTERO_ANTERIOR"], ["LAO"], [None], ["UNKNOWN"]]
    for k in range(n):
        part = ("train", "train", "valid", "test")[k % 4]
        patient, accession = f"GRDN{max(k, 1):04d}PATIENT", f"GRDN{k:04d}STUDY"
        place = f"deid_png/{patient}/{accession}/studies/1.2.{k}/series/1.2.{k}.1/instances"
        own = views[k % 6]
        paths = [f"{place}/1.2.{k}.1.{m}.png" for m in range(len(own))]
        for m, path in enumerate(paths):
            write_image(root / path, k + m)
        records[part][f"p{patient}_a{accession}_st1.2.{k}"] = {
            "ImagePath": [f"../{path}" for path in paths],
            "ImageViewPosition": own,
            "Indication": "Cough.",
            "Comparison": "None",
            "Findings": f"Findings of study {k}.",
            "Impression": float("nan") if k == 1 else f"Impression {k}.",
            "PatientAge": ("007Y", "064Y", "002D")[k % 3],
        }
    (root / "metadata").mkdir(parents=True, exist_ok=True)
    for part, own_records in records.items():
        path = root / "metadata" / f"{part}_metadata_view_position.json"
        path.write_text(json.dumps(own_records))
    return root
