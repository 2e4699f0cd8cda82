"""A window, LUT, rescale or padding that leaves no picture is passed over, and a note says so."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from cxrstudy.data.greyscale import (
    FEW,
    NO_PADDING,
    NO_RESCALE,
    OTHER_WINDOW,
    OWN_RANGE,
    bone_bright,
)

STORED = np.rint(np.add.outer(np.arange(60), np.arange(60)) / 118 * 3000 + 500).astype(
    np.int32
)  # 500 to 3500
OWN = (STORED - 500) / 3000


def lut(first, data, bits=16):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(data) % 65536, first, bits])
    item.add_new("LUTData", "US", [int(v) for v in data])
    return [item]


def grey(pixels=STORED, photometric="MONOCHROME2", **tags):
    ds = Dataset()
    ds.PhotometricInterpretation = photometric
    ds.BitsStored, ds.PixelRepresentation = 12, 0
    for name, value in tags.items():
        setattr(ds, name, value)
    return bone_bright(pixels, ds)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 0, "WindowWidth": 1},
        {"WindowCenter": 2000, "WindowWidth": 1},
        {"WindowCenter": 2000, "WindowWidth": 4},
        {"WindowCenter": 60000, "WindowWidth": 400},
        {"WindowCenter": -5000, "WindowWidth": 1000},
        {"WindowCenter": 30000, "WindowWidth": 6e6},  # far too wide
        {"WindowCenter": 500, "WindowWidth": 60},  # all but a corner lies above it
        {"WindowCenter": [0, 1], "WindowWidth": [1, 1]},
        {"WindowCenter": 2000, "WindowWidth": 0.01, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 90000, "WindowWidth": 10, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 2000, "WindowWidth": 1e-3, "VOILUTFunction": "LINEAR_EXACT"},
        {"VOILUTSequence": lut(0, [700])},
        {"VOILUTSequence": lut(0, [9] * 4096)},
        {"VOILUTSequence": lut(0, [0] * 4096)},
        {"VOILUTSequence": lut(20000, range(4096))},
        {"VOILUTSequence": lut(0, range(256))},
    ],
)
def test_a_transform_that_leaves_no_picture_gives_way_to_the_images_own_range(tags, photometric):
    image, notes = grey(photometric=photometric, **tags)
    np.testing.assert_allclose(image, OWN if photometric == "MONOCHROME2" else 1 - OWN, atol=1e-6)
    assert notes == (OWN_RANGE,)


@pytest.mark.parametrize(
    "tags", [{"RescaleSlope": 0, "RescaleIntercept": 7}, {"ModalityLUTSequence": lut(0, [3] * 9)}]
)
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 7, "WindowWidth": 100}])
def test_a_rescale_to_one_value_is_not_applied_nor_the_window_after_it(tags, window):
    image, notes = grey(**tags, **window)
    np.testing.assert_allclose(image, OWN, atol=1e-6)
    assert notes == (NO_RESCALE,)


def test_the_next_window_is_taken_where_the_first_leaves_no_picture():
    image, notes = grey(WindowCenter=[0, 2000.5], WindowWidth=[1, 2001])
    np.testing.assert_allclose(image, np.clip((STORED - 1000) / 2000, 0, 1), atol=1e-6)
    assert notes == (OTHER_WINDOW,)
    image, notes = grey(VOILUTSequence=lut(0, [5]), WindowCenter=2000.5, WindowWidth=2001)
    np.testing.assert_allclose(image, np.clip((STORED - 1000) / 2000, 0, 1), atol=1e-6)
    assert notes == (OTHER_WINDOW,)


def test_a_window_that_leaves_a_picture_is_taken_at_its_word():
    for center, width in ((2000.5, 2001), (2000.5, 301), (1000.5, 65536)):
        image, notes = grey(WindowCenter=center, WindowWidth=width)
        black = center - 0.5 - (width - 1) / 2
        np.testing.assert_allclose(image, np.clip((STORED - black) / (width - 1), 0, 1), atol=1e-6)
        assert notes == ()


def test_padding_that_covers_the_image_is_not_applied():
    for tags in (
        {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 65535},
        {"PixelPaddingValue": 500},
    ):
        image, notes = grey(**tags)
        np.testing.assert_allclose(image, OWN, atol=0.01)
        assert notes == ((NO_PADDING,) if "PixelPaddingRangeLimit" in tags else ())


@pytest.mark.parametrize("values", [[7], [7, 9], [0, 100, 4000]])
def test_an_image_of_few_values_keeps_its_window_where_that_tells_them_apart(values):
    pixels = np.resize(np.array(values, np.int32), (40, 40))
    assert grey(pixels, WindowCenter=2000, WindowWidth=4001)[0].shape == (40, 40)
    image, notes = grey(pixels)
    assert notes == ()
    assert len(np.unique(image)) == len(values)


@settings(max_examples=100, deadline=None, database=None)
@given(
    st.floats(-1e5, 1e5),
    st.floats(1, 1e6),
    st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    st.booleans(),
)
def test_no_window_makes_a_picture_blank(center, width, function, turned):
    how = {"photometric": "MONOCHROME1" if turned else "MONOCHROME2"}
    image, notes = grey(WindowCenter=center, WindowWidth=width, VOILUTFunction=function, **how)
    assert len(np.unique(np.rint(image * 255))) >= FEW
    assert ((image > 0) & (image < 1)).mean() > 0.01
    assert set(notes) <= {OWN_RANGE}
