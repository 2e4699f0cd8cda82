"""Which bits of a DICOM word are the image: every layout gives it back or is set aside."""

import io

import gdcm
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from cxrstudy.data.bits import WIDER
from cxrstudy.data.dicom import UnreadableImage, read_dicom, read_with_notes

SMOOTH = np.add.outer(np.arange(40), np.arange(48)) / (39 + 47)  # [0, 1], without a jump
NATIVE = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless]
WHOLE = [
    *NATIVE, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1,
]  # the codecs here keep all 16 bits of a word  # fmt: skip


def ramp(bits, signed=False):
    """A smooth image that uses all values of so many bits."""
    low = -(2 ** (bits - 1)) if signed else 0
    return np.rint(SMOOTH * (2**bits - 1)).astype(int) + low


def minmax(values):
    return (values - values.min()) / (values.max() - values.min())


def write(path, words, *, syntax=ExplicitVRLittleEndian, precision=16, absent=(), **tags):
    """Words of 16 bits, as they are, into a file; a JPEG stream has the precision given."""
    words = (
        np.asarray(words).astype(np.uint16)
        if np.min(words) >= 0
        else np.asarray(words, np.int16).view(np.uint16)
    )
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = "1.2.3"
    ds.Rows, ds.Columns = words.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
    ds.PixelData = words.astype(order).tobytes()
    ds["PixelData"].VR = "OW"
    if syntax == JPEG2000Lossless:
        buffer = io.BytesIO()
        Image.fromarray(words).save(buffer, "JPEG2000", no_jp2=True, irreversible=False)
        ds.PixelData = encapsulate([buffer.getvalue()])
    elif syntax in (JPEGLSLossless, RLELossless):
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.BitsStored, ds.HighBit = precision, precision - 1
        ds.compress(syntax)
    elif syntax == JPEGLosslessSV1:
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.BitsStored, ds.HighBit = precision, precision - 1
        ds.save_as(path, enforce_file_format=True)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        ds = pydicom.dcmread(path)
    for name, value in {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0, **tags}.items():
        setattr(ds, name, value)
    for name in absent:
        delattr(ds, name)
    ds.save_as(path, enforce_file_format=True)
    return path


def check(path, values):
    np.testing.assert_allclose(read_dicom(path), minmax(values), atol=1e-6)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("stored", "high"), [(12, 15), (12, 13), (12, 11), (10, 15), (10, 12), (14, 15), (16, 15)]
)
@pytest.mark.parametrize("syntax", WHOLE)
def test_a_value_is_cut_out_where_highbit_says(tmp_path, syntax, stored, high, signed):
    values = ramp(stored, signed)
    words = (values & (2**stored - 1)) << (high + 1 - stored)
    tags = {"BitsStored": stored, "HighBit": high, "PixelRepresentation": int(signed)}
    check(write(tmp_path / "x.dcm", words, syntax=syntax, **tags), values)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("high", [11, 15])
@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEGLosslessSV1])
def test_samples_of_a_stream_as_precise_as_bitsstored_are_the_values(
    tmp_path, syntax, high, signed
):
    values = ramp(12, signed)
    tags = {"BitsStored": 12, "HighBit": high, "PixelRepresentation": int(signed)}
    check(write(tmp_path / "x.dcm", values & 4095, syntax=syntax, precision=12, **tags), values)


@pytest.mark.parametrize("syntax", WHOLE)
def test_values_beyond_bitsstored_are_the_image_where_it_runs_on(tmp_path, syntax):
    path = write(tmp_path / "x.dcm", ramp(14), syntax=syntax, BitsStored=12, HighBit=11)
    check(path, ramp(14))
    assert read_with_notes(path)[1] == (WIDER,)


def test_signed_values_beyond_bitsstored_are_the_image_where_it_runs_on(tmp_path):
    path = write(
        tmp_path / "x.dcm", ramp(14, True), BitsStored=12, HighBit=11, PixelRepresentation=1
    )
    check(path, ramp(14, True))


@pytest.mark.parametrize("syntax", WHOLE)
@pytest.mark.parametrize(("bit", "high"), [(12, 11), (15, 11), (0, 15), (3, 15)])
def test_overlays_outside_the_value_are_not_the_image(tmp_path, syntax, bit, high):
    drawn = np.zeros(SMOOTH.shape, int)
    drawn[5:9, 3:30] = 1
    words = (ramp(12) << (high - 11)) | (drawn << bit)
    tags = {"BitsStored": 12, "HighBit": high}
    path = write(tmp_path / "x.dcm", words, syntax=syntax, **tags)
    ds = pydicom.dcmread(path)
    for tag, value in ((0x0010, 40), (0x0011, 48), (0x0100, 16), (0x0102, bit)):
        ds.add_new((0x6000, tag), "US", value)
    ds.save_as(path)
    check(path, ramp(12))


@pytest.mark.parametrize("bit", [12, 13, 15])
def test_an_overlay_that_no_tag_tells_of_is_set_aside(tmp_path, bit):
    drawn = np.zeros(SMOOTH.shape, int)
    drawn[5:9, 3:30] = 1
    with pytest.raises(UnreadableImage, match="above HighBit 11 are set in some pixels"):
        read_dicom(write(tmp_path / "x.dcm", ramp(12) | (drawn << bit), BitsStored=12, HighBit=11))


def test_an_overlay_inside_the_value_is_set_aside(tmp_path):
    path = write(tmp_path / "x.dcm", ramp(12) | ((SMOOTH > 0.9).astype(int) << 12))
    ds = pydicom.dcmread(path)
    ds.add_new((0x6000, 0x0100), "US", 16)
    ds.add_new((0x6000, 0x0102), "US", 12)
    ds.save_as(path)
    with pytest.raises(UnreadableImage, match="overlay uses bits that also hold the image"):
        read_dicom(path)


@pytest.mark.parametrize(
    "absent", ["BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"]
)
@pytest.mark.parametrize("syntax", WHOLE)
def test_an_absent_tag_has_the_value_that_readers_take(tmp_path, absent, syntax):
    tags = {"BitsStored": 12, "HighBit": 11}
    check(write(tmp_path / "x.dcm", ramp(12), syntax=syntax, absent=[absent], **tags), ramp(12))


@pytest.mark.parametrize(
    "tags",
    [
        {"BitsStored": 0}, {"BitsStored": 17}, {"BitsStored": 12, "HighBit": 3},
        {"BitsStored": 12, "HighBit": 20}, {"PixelRepresentation": 7}, {"PixelRepresentation": 1},
    ],
)  # fmt: skip
def test_tags_that_cannot_be_are_set_aside_by_name(tmp_path, tags):
    with pytest.raises(UnreadableImage) as caught:
        read_dicom(write(tmp_path / "x.dcm", ramp(16), **tags))
    assert list(tags)[-1] in caught.value.reason
    assert "codec" not in str(caught.value)


@pytest.mark.parametrize("high", [3, 15, 20])
def test_a_wrong_highbit_does_no_harm_to_words_that_fit(tmp_path, high):
    check(write(tmp_path / "x.dcm", ramp(12), BitsStored=12, HighBit=high), ramp(12))


@settings(max_examples=60, deadline=None, database=None)
@given(st.data())
def test_any_layout_gives_the_image_that_was_stored(tmp_path_factory, data):
    """Any BitsStored and HighBit, signed or not; the bits outside are zero or the sign."""
    stored = data.draw(st.integers(8, 16))
    high = data.draw(st.integers(stored - 1, 15))
    signed = data.draw(st.booleans())
    values = ramp(stored, signed)
    words = (values & (2**stored - 1)) << (high + 1 - stored)
    if signed and data.draw(st.booleans()):
        words = (values << (high + 1 - stored)) & 0xFFFF
    tags = {"BitsStored": stored, "HighBit": high, "PixelRepresentation": int(signed)}
    check(write(tmp_path_factory.mktemp("bits") / "x.dcm", words, **tags), values)


def test_pixel_data_of_another_length_are_set_aside(tmp_path):
    for columns in (24, 46, 47, 49):
        with pytest.raises(
            UnreadableImage, match=r"pixel data (too long|absent or cut short): 3840 bytes of"
        ):
            read_dicom(
                write(tmp_path / "x.dcm", ramp(12), BitsStored=12, HighBit=11, Columns=columns)
            )
    with pytest.raises(UnreadableImage, match="too long"):
        read_dicom(write(tmp_path / "x.dcm", ramp(12), BitsAllocated=8, BitsStored=8, HighBit=7))
    check(
        write(tmp_path / "x.dcm", ramp(12), PlanarConfiguration=9), ramp(12)
    )  # says nothing of one sample


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1])
@pytest.mark.parametrize("tags", [{"Columns": 47}, {"Rows": 20}, {"Rows": 48, "Columns": 40}])
def test_a_stream_of_another_size_is_set_aside(tmp_path, syntax, tags):
    with pytest.raises(UnreadableImage, match="40 rows, 48 columns"):
        read_dicom(write(tmp_path / "x.dcm", ramp(12), syntax=syntax, **tags))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("padding", [-2000, -2048, -1, 5000])
def test_padding_outside_the_bits_stored_is_black_and_not_the_image(tmp_path, signed, padding):
    values = ramp(12, signed)
    values[:6], values[:, :9] = padding, padding
    inner = values[6:, 9:]
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": int(signed)}
    path = write(tmp_path / "x.dcm", values & 0xFFFF, **tags)
    ds = pydicom.dcmread(path)
    ds.add_new("PixelPaddingValue", "SS" if padding < 0 else "US", padding)
    ds.save_as(path)
    image = read_dicom(path)
    used = inner[inner != padding]
    expected = np.where(inner == padding, 0, (inner - used.min()) / (used.max() - used.min()))
    np.testing.assert_allclose(image[6:, 9:], expected, atol=1e-6)
    assert (image[:6] == 0).all() and (image[:, :9] == 0).all()


def test_a_signed_frame_around_a_bright_image_is_no_fault(tmp_path):
    values = np.full((60, 60), -2048)
    values[20:40, 20:40] = 1500 + ramp(8)[:20, :20]
    path = write(
        tmp_path / "x.dcm", values & 4095, BitsStored=12, HighBit=11, PixelRepresentation=1
    )
    check(path, values)


def test_an_odd_number_of_bytes_reads_with_and_without_the_byte_that_makes_it_even(tmp_path):
    values = np.arange(77).reshape(7, 11)
    write(tmp_path / "x.dcm", ramp(8))
    ds = pydicom.dcmread(tmp_path / "x.dcm")
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 7, 11, 8, 8, 7
    ds.PixelData = values.astype(np.uint8).tobytes() + b"\0"
    ds["PixelData"].VR = "OB"
    ds.save_as(tmp_path / "x.dcm")
    check(tmp_path / "x.dcm", values)
    whole = (tmp_path / "x.dcm").read_bytes()
    at = whole.index(bytes(range(77)))
    (tmp_path / "y.dcm").write_bytes(
        whole[: at - 4] + (77).to_bytes(4, "little") + whole[at : at + 77]
    )
    check(tmp_path / "y.dcm", values)
