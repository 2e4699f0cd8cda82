"""DICOM headers as a PACS gives them, for the tests of the walk and its benchmark."""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.8.498"
PLAIN = {
    "ImageType": ["DERIVED", "PRIMARY"],
    "StudyDate": "20210304",
    "SeriesDate": "20210304",
    "ContentDate": "20210304",
    "StudyTime": "101112",
    "ContentTime": "101112",
    "Modality": "DX",
    "PresentationIntentType": "FOR PRESENTATION",
    "Manufacturer": "Siemens",
    "InstitutionName": "Universitätsklinikum",
    "ReferringPhysicianName": "Müller^Hans",
    "StationName": "DX1",
    "StudyDescription": "Thorax p.a. + lat.",
    "SeriesDescription": "Thorax pa",
    "ManufacturerModelName": "Ysio Max",
    "PatientBirthDate": "19500101",
    "PatientSex": "F",
    "PatientAge": "071Y",
    "BodyPartExamined": "CHEST",
    "ProtocolName": "Thorax pa",
    "KVP": "125",
    "ViewPosition": "PA",
    "ImagerPixelSpacing": [0.14, 0.14],
    "DistanceSourceToDetector": "1800",
    "ExposureTime": "4",
    "XRayTubeCurrent": "500",
    "Exposure": "2",
    "Grid": "FOCUSED",
    "DetectorType": "SCINTILLATOR",
    "DetectorID": "D1",
    "DetectorTemperature": "30.1",
    "AcquisitionDeviceProcessingDescription": "CHEST PA",
    "SoftwareVersions": "VB10",
    "FieldOfViewShape": "RECTANGLE",
    "FieldOfViewDimensions": ["430", "430"],
    "StudyID": "1",
    "SeriesNumber": "1",
    "InstanceNumber": "1",
    "PatientOrientation": ["L", "F"],
    "ImageLaterality": "U",
    "PixelSpacing": [0.14, 0.14],
    "BurnedInAnnotation": "NO",
    "WindowCenter": "2048",
    "WindowWidth": "4096",
    "RescaleIntercept": "0",
    "RescaleSlope": "1",
    "LossyImageCompression": "00",
    "PerformedProcedureStepDescription": "Thorax 2 Ebenen",
}


def code(meaning: str) -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "R-10214", "SRT", meaning
    return Sequence([item])


def header(k: int = 0, *, syntax=ExplicitVRLittleEndian, size: int = 32, **tags) -> Dataset:
    """Image ``k`` of an archive, two a study and four a patient, with some 110 elements.

    Tags given replace its own; None takes one out.
    """
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID, ds.SOPInstanceUID = DigitalXRayImageStorageForPresentation, f"{ROOT}.{k}.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{ROOT}.{k // 2}", f"{ROOT}.{k}.0"
    ds.AccessionNumber, ds.PatientID = f"A{k // 2:08d}", f"P{k // 4:07d}"
    ds.PatientName, ds.AcquisitionTime = f"Schäfer^Anna{k // 4}", f"{k // 3600 % 24:02d}1112"
    for name, value in PLAIN.items():
        setattr(ds, name, value)
    ds.ProcedureCodeSequence, ds.AnatomicRegionSequence = code("Radiography"), code("Chest")
    ds.ViewCodeSequence = code("postero-anterior")
    of = Dataset()
    of.ReferencedSOPClassUID = of.ReferencedSOPInstanceUID = "1.2.3"
    ds.ReferencedStudySequence = Sequence([of])
    ds.ReferencedPerformedProcedureStepSequence = Sequence([of])
    ds["ReferencedStudySequence"].is_undefined_length = True
    of.is_undefined_length_sequence_item = True
    for group, name, vr in ((0x19, "SIEMENS CSA", "LO"), (0x21, "VENDOR", "DS")):
        block = ds.private_block(group, name, create=True)
        for element in range(20):
            block.add_new(element, vr, "1.5")
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = size
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = np.zeros((size, size), np.uint16).tobytes()
    ds["PixelData"].VR = "OW"
    for name, value in tags.items():
        if value is None:
            del ds[name]
        else:
            setattr(ds, name, value)
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", "1.2")
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2")
    return ds


def save(ds: Dataset, path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
