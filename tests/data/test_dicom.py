"""Test read_dicom on real files, if they are there, and on files written here for each rule."""

import io
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders import RLELosslessDecoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    MPEG2MPML,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from cxrstudy.data.dicom import UnreadableImage, read_dicom

REAL = Path(__file__).parents[3] / "shared/data/dicom"
real = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"real DICOM files are not part of the project: no {REAL}"
)
quick = settings(max_examples=60, deadline=None, database=None)
noisy = pytest.mark.filterwarnings("ignore")  # pydicom warns of the damage that these tests do
RAMP = np.arange(0, 4096, 13, dtype=np.uint16)[:300].reshape(15, 20)


def dataset(pixels, *, bits=12, photometric="MONOCHROME2", syntax=ExplicitVRLittleEndian, **tags):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = "1.2.3"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    ds.BitsStored, ds.HighBit = bits, bits - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = photometric
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    ds.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes() + b"\0" * (
        pixels.nbytes % 2
    )
    ds["PixelData"].VR = "OW" if ds.BitsAllocated == 16 else "OB"
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


def lut(first, bits, data, vr="US"):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(data) % 65536, first % 65536, bits])
    item.add_new(
        "LUTData", vr, [int(v) for v in data] if vr == "US" else np.asarray(data, "<u2").tobytes()
    )
    return [item]


def read(pixels, **kwargs):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.dcm"
        dataset(pixels, **kwargs).save_as(path, enforce_file_format=True)
        image = read_dicom(path)
    assert image.dtype == np.float32
    assert image.shape == pixels.shape
    assert np.isfinite(image).all()
    assert image.min() >= 0
    assert image.max() <= 1
    return image


def minmax(pixels):
    pixels = pixels.astype(float)
    return (pixels - pixels.min()) / (pixels.max() - pixels.min())


def reason(path):
    with pytest.raises(UnreadableImage) as caught:
        read_dicom(path)
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    assert caught.value.reason in str(caught.value)
    assert caught.value.remedy in str(caught.value)
    return caught.value.reason


# ---- real files


@real
def test_the_four_lossless_codecs_give_one_image_and_the_lossy_ones_are_near():
    first, *others = (
        read_dicom(REAL / f"RG3_{codec}") for codec in ("RLE", "JPLL", "JLSL", "J2KR")
    )
    assert first.shape == (1760, 1760)
    for other in others:
        np.testing.assert_array_equal(first, other)
    for codec in ("J2KI", "JLSN"):
        assert np.abs(read_dicom(REAL / f"RG3_{codec}") - first).mean() < 0.005


@real
def test_a_real_monochrome1_chest_has_bright_bone_with_and_without_meta_header():
    image = read_dicom(REAL / "gdcm-CR-MONO1-10-chest.dcm")
    np.testing.assert_array_equal(image, read_dicom(REAL / "CR-MONO1-10-chest"))
    spine, right_lung, outside = image[180:260, 195:215], image[180:260, 105:145], image[:15, -8:]
    assert spine.mean() > right_lung.mean() + 0.25
    assert right_lung.mean() > outside.mean() + 0.1


@real
def test_an_image_falsely_labelled_monochrome1_is_one_minus_its_original():
    original = read_dicom(next(REAL.glob("1.2.276*.dcm")))
    np.testing.assert_allclose(
        read_dicom(REAL / "Fake_MONOHR1.dcm"), 1 - original, atol=1e-6, rtol=0
    )


@real
@pytest.mark.parametrize("name", ["mlut_18.dcm", "vlut_04.dcm", "CR-ModalitySequenceLUT.dcm"])
def test_real_luts_and_signed_pixels_fill_the_range(name):
    image = read_dicom(REAL / name)
    assert image.min() == 0
    assert image.max() == 1
    if name != "CR-ModalitySequenceLUT.dcm":  # the SMPTE pattern: its two LUTs are straight lines
        stored = pydicom.dcmread(REAL / name).pixel_array
        np.testing.assert_allclose(image, minmax(stored), atol=1e-3)


# ---- the grey scale


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        (np.uint8, 8), (np.uint16, 10), (np.uint16, 12), (np.uint16, 16), (np.int16, 12),
        (np.int16, 16),
    ],
)  # fmt: skip
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_without_voi_transform_the_image_spans_zero_to_one(dtype, bits, photometric):
    low = -(2 ** (bits - 1)) if np.issubdtype(dtype, np.signedinteger) else 0
    pixels = (
        np.linspace(low, low + 2**bits - 1, 77).round().astype(dtype).reshape(7, 11)
    )  # odd length: padded
    expected = minmax(pixels) if photometric == "MONOCHROME2" else 1 - minmax(pixels)
    np.testing.assert_allclose(
        read(pixels, bits=bits, photometric=photometric), expected, atol=1e-6
    )


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEGLSLossless]
)
def test_other_encodings_read_the_same(tmp_path, syntax, signed):
    pixels = (RAMP.astype(int) - 2048).astype(np.int16) if signed else RAMP
    if syntax.is_compressed:
        ds = dataset(pixels)
        ds.compress(syntax)
    else:
        ds = dataset(pixels, syntax=syntax)
    ds.save_as(tmp_path / "other.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_dicom(tmp_path / "other.dcm"), read(RAMP))


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_a_bare_data_set_reads_like_its_file(tmp_path, syntax):
    ds = dataset(RAMP, syntax=syntax)
    del ds.file_meta
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    ds.save_as(tmp_path / "bare", implicit_vr=implicit, little_endian=little)
    np.testing.assert_array_equal(read_dicom(tmp_path / "bare"), read(RAMP))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize("slope", [None, 2.5])
def test_windows_agree_with_pydicom_where_its_output_range_is_known(function, slope):
    tags = {"WindowCenter": [1500, 7], "WindowWidth": [900, 7], "VOILUTFunction": function}
    if slope:
        tags |= {"RescaleSlope": slope, "RescaleIntercept": -100}
    ds = dataset(RAMP, **tags | ({} if function else {"VOILUTFunction": "LINEAR"}))
    low, high = (0, 4095) if not slope else (-100, 4095 * slope - 100)
    expected = (apply_voi_lut(apply_modality_lut(RAMP, ds), ds) - low) / (high - low)
    np.testing.assert_allclose(read(RAMP, **tags), expected, atol=1e-6)


def test_a_window_ends_at_its_own_range_not_at_the_images():
    image = read(RAMP, WindowCenter=2048, WindowWidth=8192)
    assert image.min() > 0.2
    assert image.max() < 0.8
    hot = RAMP.copy()
    hot[0, 0] = 4095  # one hot pixel leaves every other grey as it was
    np.testing.assert_array_equal(
        read(hot, WindowCenter=2048, WindowWidth=8192).ravel()[1:], image.ravel()[1:]
    )


def test_a_negative_rescale_slope_turns_the_greys_round_once_with_or_without_window():
    for window in ({}, {"WindowCenter": 2048, "WindowWidth": 4096}):
        turned = read(RAMP, RescaleSlope=-1, RescaleIntercept=4095, **window)
        np.testing.assert_allclose(turned, read(4095 - RAMP, **window), atol=1e-6)


@pytest.mark.parametrize(
    ("center", "width"), [(100, 0), (100, 0.5), (100, -5), (None, 50), (100, None)]
)
def test_a_forbidden_or_half_window_counts_as_none(center, width):
    np.testing.assert_array_equal(read(RAMP, WindowCenter=center, WindowWidth=width), read(RAMP))


def test_monochrome1_is_inverted_after_the_window_and_the_lut_shape_does_not_invert_again():
    window = {"WindowCenter": 1000, "WindowWidth": 1000}
    expected = 1 - read(RAMP, **window)
    np.testing.assert_allclose(read(RAMP, photometric="MONOCHROME1", **window), expected, atol=1e-6)
    shape = {"PresentationLUTShape": "INVERSE"}
    np.testing.assert_allclose(
        read(RAMP, photometric="MONOCHROME1", **window, **shape), expected, atol=1e-6
    )


@pytest.mark.parametrize("vr", ["US", "OW"])
def test_a_voi_lut_wins_over_a_window_and_its_greys_span_the_bits_that_it_uses(vr):
    table = (np.linspace(0, 1, 3000) ** 2 * 1023).round().astype(int)
    image = read(
        RAMP, VOILUTSequence=lut(500, 16, table, vr), WindowCenter=9, WindowWidth=9
    )  # 10 bits, said to be 16
    np.testing.assert_allclose(
        image, table[np.clip(RAMP.astype(int) - 500, 0, 2999)] / 1023, atol=1e-6
    )


@pytest.mark.parametrize("packed", [False, True])
def test_a_voi_lut_of_8_bits_over_12_bit_pixels(packed):
    table = np.arange(4096) // 16
    item = lut(0, 8, table)
    if packed:  # two entries to a word, as the standard lays out 8-bit entries
        item[0].add_new("LUTData", "OW", table.astype(np.uint8).tobytes())
    np.testing.assert_allclose(read(RAMP, VOILUTSequence=item), (RAMP // 16) / 255, atol=1e-6)


def test_a_voi_lut_of_65536_entries_after_a_fractional_rescale():
    image = read(
        RAMP,
        VOILUTSequence=lut(0, 16, np.arange(65536), "OW"),
        RescaleSlope=10.1,
        RescaleIntercept=3,
    )
    np.testing.assert_allclose(image, np.rint(RAMP * 10.1 + 3) / 65535, atol=1e-6)


@pytest.mark.parametrize("bits", [12, 16])
def test_a_modality_lut_maps_signed_pixels_and_feeds_the_window(bits):
    pixels = (RAMP.astype(int) - 2048).astype(np.int16)
    table = np.arange(4095, -1, -1)
    image = read(pixels, ModalityLUTSequence=lut(-2048, bits, table))
    np.testing.assert_allclose(image, 1 - minmax(pixels), atol=1e-6)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    image = read(pixels, ModalityLUTSequence=lut(-2048, bits, table), **window)
    np.testing.assert_allclose(image, (4095 - RAMP) / 4095, atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_leaves_the_contrast_alone(photometric):
    framed = RAMP.copy()
    framed[:3] = 60000
    framed[3] = 60010
    padding = {"PixelPaddingValue": 60000, "PixelPaddingRangeLimit": 60010}
    image = read(framed, bits=16, photometric=photometric, **padding)
    assert (image[:4] == 0).all()
    np.testing.assert_array_equal(image[4:], read(RAMP[4:], bits=16, photometric=photometric))
    assert (
        read(framed, bits=16, photometric=photometric, WindowCenter=9, WindowWidth=9, **padding)[:4]
        == 0
    ).all()


def test_padding_of_signed_pixels_written_as_unsigned():
    pixels = (RAMP.astype(int) - 900).astype(np.int16)
    pixels[0] = -20000
    ds = dataset(pixels, bits=16)
    ds.add_new("PixelPaddingValue", "US", 65536 - 20000)
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signed.dcm"
        path.write_bytes(buffer.getvalue())
        image = read_dicom(path)
    np.testing.assert_allclose(image[1:], minmax(pixels[1:]), atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_an_image_of_one_value_is_black_unless_a_window_gives_it_a_grey(photometric):
    flat = np.full((4, 6), 1000, np.uint16)
    assert (read(flat, photometric=photometric) == 0).all()
    assert (read(flat, photometric=photometric, PixelPaddingValue=1000) == 0).all()
    grey = read(flat, photometric="MONOCHROME2", WindowCenter=1001, WindowWidth=1001)
    np.testing.assert_allclose(grey, 0.4995, atol=1e-6)


images = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
depths = st.sampled_from(
    [(np.uint8, 8), (np.uint16, 10), (np.uint16, 16), (np.int16, 12), (np.int16, 16)]
)
functions = st.sampled_from([None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])


@quick
@given(images, depths, functions, st.integers(-40000, 70000), st.integers(1, 70000))
def test_monochrome1_of_mirrored_pixels_is_monochrome2(shape, depth, function, center, width):
    """Pixels p under MONOCHROME2 and low + high - p under MONOCHROME1 are one image.

    low and high are the ends of the stored range. The window's centre c moves to low + high - c
    (LINEAR_EXACT, SIGMOID), or to low + high + 1 - c for LINEAR, whose middle is c - 1/2. Its width
    stays.
    """
    dtype, bits = depth
    low = -(2 ** (bits - 1)) if np.issubdtype(dtype, np.signedinteger) else 0
    ends = 2 * low + 2**bits - 1
    pixels = np.random.default_rng(shape[2]).integers(low, low + 2**bits, shape[:2]).astype(dtype)
    mirrored = (ends - pixels.astype(int)).astype(dtype)
    upright, turned = {}, {}
    if function:
        upright = {"VOILUTFunction": function, "WindowCenter": center, "WindowWidth": width}
        turned = upright | {"WindowCenter": ends + (function == "LINEAR") - center}
    one = read(mirrored, bits=bits, photometric="MONOCHROME1", **turned)
    np.testing.assert_allclose(one, read(pixels, bits=bits, **upright), atol=1e-6)


# ---- what cannot be read


@pytest.mark.parametrize(
    ("tags", "part"),
    [
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "RGB"),
        ({"SamplesPerPixel": 3}, "not grey"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"PhotometricInterpretation": None}, "not grey"), ({"NumberOfFrames": 2}, "2 frames"),
        ({"Rows": 0}, "absurd dimensions"),
        ({"Rows": 60000, "Columns": 60000}, "absurd dimensions"),
        ({"Rows": 16}, "cut short: 600 bytes"), ({"BitsAllocated": 32}, "32 bits"),
        ({"PixelData": b""}, "absent"), ({"BitsStored": 17}, "damaged"),
        ({"VOILUTFunction": "CURLY", "WindowCenter": 9, "WindowWidth": 9}, "grey scale"),
        ({"VOILUTSequence": lut(0, 8, [])}, "grey scale"),
    ],
)  # fmt: skip
def test_each_fault_has_its_reason(tmp_path, tags, part):
    dataset(RAMP, **tags).save_as(tmp_path / "fault.dcm", enforce_file_format=True)
    assert part in reason(tmp_path / "fault.dcm")


def test_absent_empty_text_jpeg_and_imageless_files(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("Heart size normal. " * 50)
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "photo.jpg")
    report = dataset(RAMP)
    for name in ("Rows", "Columns", "PixelData"):
        delattr(report, name)
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    found = {
        name: reason(tmp_path / name)
        for name in ("absent", "empty", "text", "photo.jpg", "report.dcm")
    }
    assert "No such file" in found["absent"]
    assert "the file is empty" in found["empty"]
    assert "no DICOM header" in found["text"]
    assert "no DICOM header" in found["photo.jpg"]
    assert "no image" in found["report.dcm"]
    assert "Is a directory" in reason(tmp_path)


@noisy
@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_cut_short_anywhere_is_unreadable(tmp_path, compressed):
    ds = dataset(RAMP)
    if compressed:
        ds.compress(RLELossless)
    ds.save_as(tmp_path / "whole.dcm", enforce_file_format=True)
    whole = (tmp_path / "whole.dcm").read_bytes()
    for length in range(0, len(whole) - 8, 13):  # 8: the delimiter that ends a compressed image
        (tmp_path / "cut.dcm").write_bytes(whole[:length])
        assert reason(tmp_path / "cut.dcm")


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLSLossless])
def test_a_header_that_promises_more_rows_than_the_stream_holds(tmp_path, syntax):
    """With gdcm, pydicom's first choice, such JPEG-LS files abort the process."""
    pixels = (RAMP // 16).astype(np.uint8)
    ds = dataset(pixels, bits=8)
    if syntax == JPEGLSLossless:
        ds.compress(syntax)
    else:
        jpeg = io.BytesIO()
        Image.fromarray(pixels).save(jpeg, "JPEG", quality=100)
        ds.PixelData, ds.file_meta.TransferSyntaxUID = encapsulate([jpeg.getvalue()]), syntax
        ds["PixelData"].VR = "OB"
    ds.save_as(tmp_path / "whole.dcm", enforce_file_format=True)
    np.testing.assert_allclose(read_dicom(tmp_path / "whole.dcm"), minmax(pixels), atol=0.02)
    ds.Rows *= 2
    ds.save_as(tmp_path / "tall.dcm", enforce_file_format=True)
    assert "damaged" in reason(tmp_path / "tall.dcm")


@noisy
@pytest.mark.parametrize("number", [b"nan ", b"1e99", b"12:4"])
def test_a_rescale_slope_that_is_no_number(tmp_path, number):
    dataset(RAMP, RescaleSlope="7.25", RescaleIntercept=0).save_as(
        tmp_path / "slope.dcm", enforce_file_format=True
    )
    content = (tmp_path / "slope.dcm").read_bytes()
    assert content.count(b"7.25") == 1
    (tmp_path / "slope.dcm").write_bytes(content.replace(b"7.25", number))
    if number == b"1e99":  # huge, but a number
        np.testing.assert_allclose(read_dicom(tmp_path / "slope.dcm"), minmax(RAMP), atol=1e-6)
    else:
        assert "grey scale" in reason(tmp_path / "slope.dcm")


def test_missing_codecs_are_named(tmp_path, monkeypatch):
    ds = dataset(RAMP)
    ds.compress(RLELossless)
    ds.save_as(tmp_path / "rle.dcm", enforce_file_format=True)
    monkeypatch.setattr(RLELosslessDecoder, "_available", {})
    assert "no codec" in reason(tmp_path / "rle.dcm")
    ds.file_meta.TransferSyntaxUID = MPEG2MPML
    ds.save_as(tmp_path / "film.dcm", enforce_file_format=True)
    assert "MPEG2" in reason(tmp_path / "film.dcm")


def test_the_exception_survives_pickling():
    error = UnreadableImage(Path("a.dcm"), "3 frames", "cut it")
    again = pickle.loads(pickle.dumps(error))
    assert (again.path, again.reason, again.remedy) == (Path("a.dcm"), "3 frames", "cut it")
    assert str(again) == str(error)
    assert "a.dcm" in str(UnreadableImage("a.dcm", "3 frames"))


def only_unreadable(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bytes"
        path.write_bytes(content)
        try:
            result = read_dicom(path)
        except UnreadableImage:
            return
    assert result.dtype == np.float32
    assert np.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 1


@noisy
@quick
@given(
    st.sampled_from([b"", bytes(128) + b"DICM", b"\x08\x00", b"\x02\x00", b"\x00\x08"]),
    st.binary(max_size=300),
)
def test_random_bytes_raise_nothing_but_unreadable(start, rest):
    only_unreadable(start + rest)


@noisy
@settings(quick, max_examples=100)
@given(st.data())
def test_a_damaged_file_raises_nothing_but_unreadable(data):
    tags = {
        "WindowCenter": 2000, "WindowWidth": 3000, "RescaleSlope": 1, "RescaleIntercept": 0,
        "PixelSpacing": [1, 1],
    }  # fmt: skip
    buffer = io.BytesIO()
    dataset(RAMP[:2], VOILUTSequence=lut(0, 12, range(40)), **tags).save_as(
        buffer, enforce_file_format=True
    )
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(128, len(content) - 1))] = data.draw(st.integers(0, 255))
    only_unreadable(bytes(content))
