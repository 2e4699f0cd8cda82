"""Picture files become grey and upright, in their own range, or are set aside by kind."""

import contextlib
import gzip
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cxrstudy.data import odd
from cxrstudy.data.dicom import UnreadableImage
from cxrstudy.data.images import read_image, read_with_notes
from cxrstudy.data.picturefiles import CLEAR, COLOUR, FEWER, OWN, TORN

RNG = np.random.default_rng(3)
NOISE = RNG.integers(0, 256, (48, 48), dtype=np.uint8)
SMOOTH = (np.add.outer(np.arange(48) * 3, np.arange(48)) / (47 * 4) * 255).round().astype(np.uint8)
ORIENTED = {  # how a file of each EXIF orientation stores an upright image
    1: lambda up: up, 2: np.fliplr, 3: lambda up: np.rot90(up, 2), 4: np.flipud, 5: np.transpose,
    6: lambda up: np.rot90(up, 1), 7: lambda up: np.rot90(up, 2).T, 8: lambda up: np.rot90(up, -1),
}  # fmt: skip


def save(pixels, path, **how):
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, **how)
    return path


def reason(path):
    with pytest.raises(UnreadableImage) as caught:
        read_image(path, 48)
    assert caught.value.path == path
    return caught.value


def png(path, pixels, depth=16, colour=0, chunks=()):
    """A PNG written by hand, with chunks that Pillow does not write."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = np.asarray(pixels).astype(">u2" if depth == 16 else "u1")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(
        ">IIBBBBB",
        rows.shape[1] // (3 if colour == 2 else 1),
        rows.shape[0],
        depth,
        colour,
        0,
        0,
        0,
    )
    parts = [
        chunk(b"IHDR", head), *(chunk(*c) for c in chunks), chunk(b"IDAT", zlib.compress(raw)),
        chunk(b"IEND", b""),
    ]  # fmt: skip
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


# ---- turned
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_a_picture_is_turned_as_its_exif_orientation_says(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"quality": 98} if suffix == ".jpg" else {"lossless": True} if suffix == ".webp" else {}
    path = save(ORIENTED[orientation](SMOOTH), tmp_path / f"x{suffix}", exif=exif, **how)
    assert np.abs(read_image(path, 48).astype(int) - SMOOTH).max() <= 3


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_deep_picture_is_turned_too(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    deep = SMOOTH.astype(np.uint16) * 257
    path = save(ORIENTED[orientation](deep), tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(read_image(path, 48), SMOOTH)


# ---- bits
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_16_bit_picture_is_white_where_the_bits_it_uses_end(tmp_path, suffix, bits):
    values = np.rint(SMOOTH / 255 * (2**bits - 1)).astype(np.uint16)
    image, notes = read_with_notes(save(values, tmp_path / f"x{suffix}"), 48)
    np.testing.assert_array_equal(image, np.rint(values / (2**bits - 1) * 255).astype(np.uint8))
    assert notes == ((FEWER,) if bits < 16 else ())


@settings(max_examples=40, deadline=None, database=None)
@given(bits=st.integers(8, 16), scaled=st.booleans())
def test_sbit_tells_the_bits_and_a_picture_scaled_to_16_stays(tmp_path_factory, bits, scaled):
    """The PNG standard scales samples to all 16 bits; some programs do not."""
    values = np.rint(SMOOTH / 255 * (2**bits - 1)).astype(int)
    stored = np.rint(values / (2**bits - 1) * 65535).astype(int) if scaled else values
    path = png(tmp_path_factory.mktemp("sbit") / "x.png", stored, chunks=[(b"sBIT", bytes([bits]))])
    assert np.abs(read_image(path, 48).astype(int) - SMOOTH).max() <= 1


def test_a_dark_film_whose_sbit_is_told_keeps_its_black(tmp_path):
    values = SMOOTH.astype(int) * 2  # at most 510 of 4095
    path = png(tmp_path / "x.png", values, chunks=[(b"sBIT", b"\x0c")])
    np.testing.assert_array_equal(read_image(path, 48), np.rint(values / 4095 * 255))


def test_pictures_of_other_numbers_are_scaled_to_their_own_range(tmp_path):
    for values in (SMOOTH.astype(np.float32) * 7 - 300, SMOOTH.astype(np.int32) * 70000 - 9):
        image, notes = read_with_notes(save(values, tmp_path / "x.tif"), 48)
        np.testing.assert_array_equal(image, SMOOTH)
        assert notes == (OWN,)
    path = save(np.where(SMOOTH > 9, np.nan, SMOOTH).astype(np.float32), tmp_path / "x.tif")
    assert "NaN" in reason(path).reason


@pytest.mark.parametrize("deep", [False, True])
def test_a_tiff_whose_white_is_zero_is_turned_round(tmp_path, deep):
    stored = 255 - SMOOTH
    path = save(
        stored.astype(np.uint16) * 257 if deep else stored, tmp_path / "x.tif", tiffinfo={262: 1}
    )
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<HHI", 262, 3, 1))
    content[at + 8 : at + 10] = b"\0\0"
    path.write_bytes(bytes(content))
    np.testing.assert_array_equal(read_image(path, 48), SMOOTH)


def test_16_bit_colour_of_which_few_bits_are_used_is_set_aside(tmp_path):
    def rgb(values):
        return np.repeat(values, 3, axis=1).reshape(48, -1)

    np.testing.assert_array_equal(
        read_image(png(tmp_path / "full.png", rgb(SMOOTH.astype(int) * 257), 16, 2), 48), SMOOTH
    )
    assert (
        "16 bits" in reason(png(tmp_path / "few.png", rgb(SMOOTH.astype(int) * 16), 16, 2)).reason
    )


# ---- kinds of files
@pytest.mark.parametrize("suffix", [".tif", ".bmp", ".jp2", ".webp", ".gif", ".pgm", ".png"])
@pytest.mark.parametrize("name", ["x{}", "x.dcm", "x.jpg", "x"])
def test_a_grey_picture_is_known_by_its_content(tmp_path, suffix, name):
    path = save(NOISE, tmp_path / f"y{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    path = path.rename(tmp_path / name.format(suffix))
    image, notes = read_with_notes(path, 48)
    np.testing.assert_array_equal(image, NOISE)
    assert notes == ()


def test_a_16_bit_jpeg_2000_and_tiff_keep_their_range(tmp_path):
    deep = RNG.integers(0, 2**16, (48, 48), dtype=np.uint16)
    deep[0, 0] = 65535
    for name in ("x.jp2", "x.tif"):
        np.testing.assert_allclose(
            read_image(save(deep, tmp_path / name), 48), deep / 257, atol=0.51
        )
    deep.astype(">u2").tofile(tmp_path / "raw")
    Image.frombytes("I;16B", (48, 48), (tmp_path / "raw").read_bytes()).save(tmp_path / "big.tif")
    np.testing.assert_allclose(read_image(tmp_path / "big.tif", 48), deep / 257, atol=0.51)


def others(folder):
    """Files that are no image, under names of images, and the word by which each is known."""
    with zipfile.ZipFile(folder / "zip.png", "w") as archive:
        archive.writestr("x.png", b"x" * 2000)
    (folder / "nii.png").write_bytes(struct.pack("<i", 348) + bytes(340) + b"n+1\0" + bytes(900))
    (folder / "niigz.png").write_bytes(gzip.compress(bytes(1000)))
    (folder / "pdf.png").write_bytes(b"%PDF-1.7\n" + bytes(range(256)))
    (folder / "html.png").write_text("<!DOCTYPE html><html><body>404</body></html>")
    (folder / "text.png").write_text("heart size normal")
    (folder / "xml.png").write_text('<?xml version="1.0"?><a/>')
    (folder / "npy.png").write_bytes(b"\x93NUMPY" + bytes(200))
    (folder / "lfs.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (folder / "mac.png").write_bytes(b"\0\5\x16\7" + bytes(200))
    (folder / "zeros.png").write_bytes(bytes(5000))
    (folder / "empty.png").write_bytes(b"")
    (folder / "odd.png").write_bytes(bytes(range(100, 256)))
    (folder / "film.png").write_bytes(bytes([0, 0, 0, 24]) + b"ftypmp42" + bytes(100))
    words = {
        "zip": "zip archive", "nii": "NIfTI", "niigz": "gzip", "pdf": "PDF", "html": "HTML",
        "text": "text",
    }  # fmt: skip
    words |= {
        "xml": "XML", "npy": "NumPy", "lfs": "Git LFS", "mac": "macOS", "zeros": "zeros",
        "empty": "empty",
    }  # fmt: skip
    return words | {"odd": "64 65 66", "film": "film"}


def test_a_file_that_is_no_image_is_called_what_it_is(tmp_path):
    for name, word in others(tmp_path).items():
        error = reason(tmp_path / f"{name}.png")
        assert word in error.reason, name
        assert "export the image" in error.remedy


def test_films_of_several_frames_are_set_aside(tmp_path):
    frames = [Image.fromarray(NOISE), Image.fromarray(SMOOTH)]
    for name in ("x.tif", "x.gif", "x.png", "x.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        error = reason(tmp_path / name)
        assert error.kind == "several frames", name


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".jp2", ".webp"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_a_picture_cut_short_is_set_aside(tmp_path, suffix, share):
    path = save(RNG.integers(0, 256, (200, 200), dtype=np.uint8), tmp_path / f"x{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert len(reason(path).reason) > 5


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(60000, 60000), (10001, 10000), (1, 2**31 - 1)])
def test_absurd_sizes_are_set_aside_before_they_are_decoded(tmp_path, size):
    path = png(tmp_path / "x.png", NOISE, depth=8)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", *size)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    path.write_bytes(bytes(content))
    assert reason(path).kind == "absurd dimensions"
    thin = save(np.zeros((20000, 1), np.uint8), tmp_path / "thin.png")
    with pytest.raises(UnreadableImage, match="absurd dimensions"):
        read_image(thin, 1024)


# ---- colour, palettes, transparency
@pytest.mark.parametrize("mode", ["RGB", "CMYK", "YCbCr", "P", "LA", "RGBA", "L", "1"])
@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg"])
def test_any_mode_of_a_grey_picture_gives_its_grey(tmp_path, mode, suffix):
    pixels = np.where(SMOOTH > 127, 255, 0).astype(np.uint8) if mode == "1" else SMOOTH
    try:
        Image.fromarray(pixels).convert("RGB" if mode == "CMYK" else "L").convert(mode).save(
            tmp_path / f"x{suffix}"
        )
    except (OSError, KeyError):
        pytest.skip(f"{suffix} has no {mode}")
    image, notes = read_with_notes(tmp_path / f"x{suffix}", 48)
    assert np.abs(image.astype(int) - pixels).max() <= (
        60 if mode == "1" and suffix == ".jpg" else 6
    )
    assert notes == ()


def test_colour_is_counted_and_a_faint_mark_too(tmp_path):
    grey = np.stack([SMOOTH] * 3, -1)
    marked = grey.copy()
    marked[:3, :3] = 255, 255, 0
    for pixels, expected in (
        (grey, ()),
        (marked, (COLOUR,)),
        (RNG.integers(0, 256, grey.shape, np.uint8), (COLOUR,)),
    ):
        assert read_with_notes(save(pixels, tmp_path / "x.png"), 48)[1] == expected
    palette = Image.fromarray(marked).quantize(64)
    palette.save(tmp_path / "p.png")
    assert read_with_notes(tmp_path / "p.png", 48)[1] == (COLOUR,)


def test_transparent_places_are_black_and_counted(tmp_path):
    clear = np.dstack([NOISE, np.where(SMOOTH > 99, 255, 0).astype(np.uint8)])
    Image.fromarray(clear, "LA").save(tmp_path / "x.png")
    image, notes = read_with_notes(tmp_path / "x.png", 48)
    np.testing.assert_array_equal(image, np.where(SMOOTH > 99, NOISE, 0))
    assert notes == (CLEAR,)


# ---- odd
def test_odd_shapes_and_greys_are_told(tmp_path):
    def notes(pixels):
        return read_with_notes(save(pixels, tmp_path / "x.png"), 48)[1]

    assert notes(np.full((1, 1), 9, np.uint8)) == (odd.ONE_PIXEL, odd.CONSTANT)
    assert notes(np.full((64, 64), 9, np.uint8)) == (odd.CONSTANT,)
    assert notes(NOISE[:20, :20]) == (odd.TINY,)
    assert notes(np.tile(NOISE, (4, 1))) == (odd.ASPECT,)
    assert notes(NOISE // 32 + 100) == (odd.FLAT,)
    assert notes(NOISE) == ()


def test_a_jpeg_cut_short_and_closed_again_is_odd(tmp_path):
    noise = RNG.integers(0, 256, (200, 200), dtype=np.uint8)
    noise[:, :90] = 60
    whole = save(noise, tmp_path / "x.jpg", quality=90).read_bytes()
    assert read_with_notes(tmp_path / "x.jpg", 48)[1] == ()
    (tmp_path / "x.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    assert TORN in read_with_notes(tmp_path / "x.jpg", 48)[1]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None, database=None)
@given(
    st.sampled_from([".png", ".jpg", ".tif", ".bmp", ".jp2", ".webp", ".gif", ".pgm"]), st.data()
)
def test_a_damaged_picture_raises_nothing_but_unreadable(tmp_path_factory, suffix, data):
    path = save(NOISE[:12, :12], tmp_path_factory.mktemp("damage") / f"x{suffix}")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content)[: data.draw(st.integers(1, len(content)))])
    with contextlib.suppress(UnreadableImage):
        assert read_image(path, 32).shape == (32, 32)
