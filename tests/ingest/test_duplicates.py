"""Copies are found whatever their file, size, window or edge; different exams are no copies."""

import io

import numpy as np
import pandas as pd
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont, ImageOps
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, RLELossless

from cxrstudy.data import synthetic
from cxrstudy.data.dicom import UnreadableImage
from cxrstudy.data.images import prepare, read_whole
from cxrstudy.ingest.duplicates import (
    ALIKE,
    HASHES,
    INVERTED,
    NEAR,
    SAME,
    TWO_PATIENTS,
    contamination,
    find_duplicates,
    hash_image,
    later_copies,
)
from cxrstudy.study import StudyError, root


def fingerprint(paths) -> pd.DataFrame:
    """Return the hashes of image files, a row a path; missing for one that cannot be read."""
    rows = []
    for path in paths:
        try:
            rows.append(hash_image(read_whole(path)[0]))
        except UnreadableImage:
            rows.append({})
    return pd.DataFrame(rows, columns=list(HASHES), dtype=object)


SHARED = root().parent / "shared" / "data"
REAL = pytest.mark.skipif(not SHARED.is_dir(), reason="real samples are not part of the project")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def films():
    batch = synthetic.sample(np.arange(8), size=192, seed=3)
    return [
        Image.fromarray(np.rint(np.asarray(each)[0] * 255).astype(np.uint8)) for each in batch.image
    ]


def hashes(pictures):
    return pd.DataFrame([hash_image(each) for each in pictures], columns=list(HASHES))


def write_dicom(pixels, path, photometric="MONOCHROME2", syntax=ExplicitVRLittleEndian):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = pydicom.uid.generate_uid()
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, photometric
    ds.PixelData = pixels.astype("<u2").tobytes()
    if syntax != ExplicitVRLittleEndian:
        ds.compress(syntax)
    ds.save_as(path, enforce_file_format=True)
    return path


# ---- equal pixels ------------------------------------------------------------------------------
def test_the_container_does_not_count_and_one_grey_level_does(tmp_path, films):
    names = ["a.png", "b.bmp", "c.tif", "d"]
    for name in names:
        films[0].save(tmp_path / name, format="PNG" if name == "d" else None)
    changed = films[0].copy()
    changed.putpixel((5, 5), changed.getpixel((5, 5)) ^ 1)
    changed.save(tmp_path / "e.png")
    found = fingerprint([*(tmp_path / name for name in names), tmp_path / "e.png"])
    assert found["pixel_hash"][:4].nunique() == 1
    assert found["pixel_hash"][4] != found["pixel_hash"][0]
    assert found["perceptual_hash"][4] == found["perceptual_hash"][0]


def test_dicom_is_hashed_by_its_pixels_and_a_changed_photometric_tag_is_an_inverted_copy(tmp_path):
    deep = RNG.integers(0, 4096, (40, 50))
    paths = [
        write_dicom(deep, tmp_path / "plain"),
        write_dicom(deep, tmp_path / "packed", syntax=RLELossless),
        write_dicom(deep, tmp_path / "inverted", photometric="MONOCHROME1"),
    ]
    pairs = find_duplicates(fingerprint(paths).set_index(pd.Index(["plain", "packed", "inverted"])))
    told = pairs[["one", "other", "kind"]].to_numpy().tolist()
    assert told == [["plain", "packed", SAME], ["plain", "inverted", INVERTED]]


@REAL
def test_real_dicom_in_four_lossless_encodings_is_one_picture():
    names = ["RG3_RLE", "RG3_JPLL", "RG3_JLSL", "RG3_J2KR", "RG3_J2KI", "RG3_JLSN"]
    found = fingerprint([SHARED / "dicom" / name for name in names])
    assert found["pixel_hash"][:4].nunique() == 1
    pairs = find_duplicates(found)
    assert set(pairs["other"]) == {1, 2, 3, 4, 5}
    fake = [SHARED / "dicom" / "Fake_MONOHR1.dcm", *(SHARED / "dicom").glob("1.2.276*.dcm")]
    assert find_duplicates(fingerprint(fake))["kind"].tolist() == [INVERTED]


def test_a_file_that_cannot_be_read_and_a_picture_of_one_grey_have_no_hash(tmp_path, films):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    for name in ("x.png", "y.png"):
        Image.new("L", (90, 80), 7).save(tmp_path / name)
    films[0].save(tmp_path / "z.png")
    found = fingerprint(sorted(tmp_path.iterdir()))
    assert found.notna().any(axis=1).tolist() == [False, False, False, True]
    assert find_duplicates(found).empty


# ---- near-duplicates ---------------------------------------------------------------------------
def jpeg(picture):
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=40)
    return Image.open(held).convert("L")


def crop(picture, share):
    width, height = picture.size
    left, top = round(width * share), round(height * share)
    return picture.crop((left, top, width - left, height - top))


def windowed(picture):
    greys = np.asarray(picture) / 255.0
    low, high = np.percentile(greys, [5, 95])
    curve = np.clip((greys - low) / (high - low), 0, 1) ** 0.7
    return Image.fromarray((curve * 255).astype(np.uint8))


def lettered(picture):
    out = picture.copy()
    draw = ImageDraw.Draw(out)
    draw.text((8, 8), "L", fill=255, font=ImageFont.load_default(12))
    draw.text((120, 180), "AP SUPINE", fill=255, font=ImageFont.load_default(8))
    return out


CHANGES = {
    "encoded again": jpeg,
    "smaller": lambda p: p.resize((96, 96), Image.Resampling.LANCZOS),
    "other shape": lambda p: p.resize((224, 240)).resize((192, 192)),
    "windowed": windowed,
    "inverted and encoded again": lambda p: jpeg(ImageOps.invert(p)),
    "lettered": lettered,
    "1% cropped": lambda p: crop(p, 0.01),
    "2% cropped": lambda p: crop(p, 0.02),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_copy_is_found(films, name):
    frame = hashes([*films, *map(CHANGES[name], films)])
    pairs = find_duplicates(frame)
    pairs = pairs[(pairs["other"] - pairs["one"]) == len(films)]
    assert set(pairs["kind"]) == {ALIKE}
    assert len(pairs) == len(films), pairs


def test_other_exams_of_the_synthetic_patients_are_no_copies(films):
    assert find_duplicates(hashes(films)).empty


@REAL
def test_in_real_data_the_known_copies_are_found_and_nothing_else():
    folder = SHARED / "nih_subset" / "images"
    names = sorted(path.name for path in folder.iterdir())
    at = names.index("00002658_001.png")
    names = names[max(0, at - 80) : at + 80]  # with several exams of many patients
    frame = fingerprint([folder / name for name in names]).set_index(pd.Index(names))
    frame["patient_id"] = [name[:8] for name in names]
    assert frame["patient_id"].duplicated().sum() > 20
    pairs = find_duplicates(frame)
    assert pairs[["one", "other", "kind"]].to_numpy().tolist() == [
        ["00002658_001.png", "00002658_002.png", SAME]
    ]
    assert later_copies(pairs).to_dict() == {"00002658_002.png": SAME}
    notes = pd.read_csv(SHARED / "covid_notes" / "prepared_images.csv")
    paths = [SHARED / "covid_notes" / "images" / name for name in notes["filename"]]
    pairs = find_duplicates(fingerprint(paths).assign(patient_id=notes["patientid"]))
    assert len(pairs) == 4 and pairs["distance"].max() < NEAR / 2


# ---- the search --------------------------------------------------------------------------------
def coded(bits):
    return pd.DataFrame({"perceptual_hash": [np.packbits(row).tobytes().hex() for row in bits]})


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 255), max_size=15), st.booleans(), st.integers(0, 2**31))
def test_two_hashes_that_differ_in_fifteen_bits_are_always_compared(flips, inverted, seed):
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (50, 2, 256), dtype=np.uint8)
    copy = bits[7].copy()
    copy[0, list(flips)] ^= 1
    copy[1] = rng.integers(0, 2, 256)
    copy ^= np.uint8(inverted)
    pairs = find_duplicates(coded(np.concatenate([bits, copy[None]])))
    assert pairs[["one", "other", "distance"]].to_numpy().tolist() == [[7, 50, len(flips)]]


def test_many_equal_pictures_end_soon_and_each_is_paired_with_the_first():
    one = pd.DataFrame([dict(zip(HASHES, ("a", "b", "0f" * 64), strict=True))])
    frame = pd.concat([one] * 20_000, ignore_index=True)
    pairs = find_duplicates(frame)
    assert (pairs["one"] == 0).all() and len(pairs) == 19_999


# ---- patients ----------------------------------------------------------------------------------
def test_a_study_of_two_patients_is_listed_unless_studies_are_numbered_in_each_patient(films):
    frame = hashes([films[0], *films[:7], *[films[7]] * 22])
    frame["pixel_hash"] = frame["polarity_free_hash"] = frame["perceptual_hash"] = ""
    frame["patient_id"] = [f"p{k}" for k in range(30)]
    frame["study_id"] = [f"s{max(k, 1)}" for k in range(30)]
    frame["split"] = ["train"] + ["test"] * 29
    pairs = find_duplicates(frame)
    assert pairs[["one", "other", "kind"]].to_numpy().tolist() == [[0, 1, TWO_PATIENTS]]
    assert pairs["across_splits"].tolist() == [True] and later_copies(pairs).empty
    frame["study_id"] = [f"s{k % 3}" for k in range(30)]
    assert find_duplicates(frame).empty


def test_of_near_duplicates_only_those_of_another_patient_are_set_aside(films):
    frame = hashes([films[0], jpeg(films[0]), films[1], jpeg(films[1])])
    frame["patient_id"] = ["a", "a", "b", "c"]
    pairs = find_duplicates(frame)
    assert pairs["same_patient"].tolist() == [True, False]
    assert later_copies(pairs).to_dict() == {3: f"{ALIKE} as an image of another patient"}


# ---- contamination -----------------------------------------------------------------------------
OURS = pd.DataFrame(
    {
        "image_id": [f"{k:016x}" for k in range(5)],
        "patient": ["10000032", "patient00007", "p9", "p10", "p11"],
        "StudyInstanceUID": [f"1.2.840.99.{k}.123456" for k in range(5)],
        "path": [
            "/a/files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34.dcm",
            "/a/train/patient00007/study1/view1_frontal.jpg",
            "/a/00002658_001.png",
            "/a/study1/view1_frontal.jpg",
            "/a/x.dcm",
        ],
    }
)


@pytest.mark.parametrize(
    ("text", "columns", "listed"),
    [
        ("dicom_id,subject_id\n02aa804e-bde0afdd-112c0b34,10000032\n", 2, [0]),
        ("study_id\n50414267\n60000000\n", 1, [0]),
        ("Path;Sex\nCheXpert-v1.0/train/patient00007/study1/view1_frontal.jpg;F\n", 1, [1]),
        ("Image Index\n00002658_001.png\n00002658_002.png\n", 1, [2]),
        ("uid\n1.2.840.99.4.123456\n", 1, [4]),
        ("image\nchest/00009999_001.png\n", 0, []),
    ],
)
def test_public_ids_are_matched_in_whatever_column_and_form(tmp_path, text, columns, listed):
    file = tmp_path / "training_images.csv"
    file.write_text(text)
    found = contamination(OURS, file)["public"]
    assert len(found["columns"]) == columns
    assert found["listed"] == OURS["image_id"].iloc[listed].tolist()


def test_plain_numbers_say_how_many_would_match_by_chance_and_a_list_without_ids_is_refused(
    tmp_path,
):
    rng = np.random.default_rng(0)
    ours = pd.DataFrame({"AccessionNumber": rng.choice(9000, 800, replace=False).astype(str)})
    ours["AccessionNumber"] = "5" + ours["AccessionNumber"].str.zfill(4)
    numbers = pd.Series(50_000 + rng.choice(9000, 900, replace=False), name="study_id")
    numbers.to_csv(tmp_path / "ids.csv", index=False)
    (column,) = contamination(ours, tmp_path / "ids.csv")["public"]["columns"]
    assert column["images"] == pytest.approx(column["by_chance"], rel=0.3) and column["images"] > 50
    (tmp_path / "none.csv").write_text("sex,view\nF,PA\n")
    with pytest.raises(StudyError, match=r"none\.csv: no column holds ids.*sex, view"):
        contamination(ours, tmp_path / "none.csv")
    with pytest.raises(StudyError, match="no such file"):
        contamination(ours, tmp_path / "gone.csv")


def test_images_of_another_data_run_are_found_by_their_pixels_and_by_resemblance(tmp_path, films):
    paths = []
    for k, film in enumerate(films[:6]):
        film.save(tmp_path / f"{k}.png")
        paths.append(str(tmp_path / f"{k}.png"))
    table = pd.DataFrame({"image_id": [f"o{k}" for k in range(6)], "path": paths})
    table = table.assign(patient_id=table["image_id"], study_id=table["image_id"])
    prepare(table, tmp_path / "run", size=64, info={})
    films[0].save(tmp_path / "same.tif")
    windowed(films[1]).save(tmp_path / "like.png")
    films[7].save(tmp_path / "new.png")
    ours = [str(tmp_path / name) for name in ("same.tif", "like.png", "new.png")]
    frame = fingerprint(ours).assign(path=ours, image_id=["same", "like", "new"])
    found = contamination(frame, others=[tmp_path / "run"])
    (other,) = found["others"]
    assert [pair[:2] for pair in other["listed"]] == [["same", "o0"], ["like", "o1"]]
    assert other["same_pixels"] == 1 and other["alike"] == 2
    assert "2 of 3 resemble images of run (6 images), 1 with equal pixels" in found["said"]
    with pytest.raises(StudyError, match="no prepared data"):
        contamination(frame, others=[tmp_path / "none"])
