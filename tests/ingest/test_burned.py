"""Text burned into x-rays is found by size and contrast; side markers are not text.

Run as a program, it prints the table: python tests/ingest/test_burned.py
"""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from cxrstudy.data import synthetic
from cxrstudy.ingest.burned import THRESHOLD, burned_in_text, says_burned_in

SHARED = Path(__file__).parents[3] / "shared/data"
needs_real = pytest.mark.skipif(
    not (SHARED / "nih_subset").is_dir(), reason="needs the real x-rays of ../shared/data"
)
TTF = Path(matplotlib.__file__).parent / "mpl-data/fonts/ttf"
FONTS = ["DejaVuSans", "DejaVuSansMono", "DejaVuSans-Bold", "DejaVuSerif", "STIXGeneral", "cmtt10"]
TEXTS = ["SMITH^JANE", "Doe, John M", "MRN 0012345", "12.03.1954 14:22", "KOWALSKI JAN"]
TEXTS += [
    "ID 4711-0815",
    "Muller Anna F 067Y",
    "ACC: CR19004512",
    "1950-03-14",
    "St. Mary Hospital",
]
MARKERS = ["L", "R", "AP", "PA", "LL", "R.", "→"]
HEIGHTS, CONTRASTS = (7, 10, 16, 28), (0.3, 0.6, None)  # px; None: white on what is there


def drawn(n: int, size: int = 512) -> np.ndarray:
    """Synthetic x-rays (N, size, size) in [0, 1]."""
    return np.asarray(synthetic.sample(range(0, 7 * n, 7), size=size).image)[:, 0]


def films(n: int, start: int = 0) -> list[np.ndarray]:
    """Real x-rays, 448 px."""
    files = sorted((SHARED / "nih_subset/images").iterdir())[start :: 1000 // n][:n]
    return [np.asarray(Image.open(file).convert("L"), dtype=np.float32) / 255 for file in files]


def planted(
    image: np.ndarray, text: str, height: int, contrast: float | None, rng, font=""
) -> np.ndarray:
    """The image with text of capitals ``height`` px high, in a corner or anywhere."""
    font = ImageFont.truetype(str(TTF / f"{font or rng.choice(FONTS)}.ttf"), round(height / 0.72))
    left, top, right, bottom = font.getbbox(text)
    room = image.shape[1] - (right - left) - 4, image.shape[0] - (bottom - top) - 4
    if min(room) < 4:
        return planted(image, text[:6], height, contrast, rng)
    x, y = (int(rng.choice([2, r, rng.integers(2, r)])) for r in room)
    ink = Image.new("L", image.shape[::-1])
    ImageDraw.Draw(ink).text((x - left, y - top), text, fill=255, font=font)
    share = np.asarray(ink, dtype=np.float32) / 255
    under = float(np.median(image[y : y + bottom - top, x : x + right - left]))
    level = 1.0 if contrast is None else under + (contrast if under < 0.5 else -contrast)
    return (image * (1 - share) + level * share).astype(np.float32)


def scores(images, seed: int) -> dict[tuple[int, float | None], list[float]]:
    """Scores of each image with a text of each height and contrast."""
    rng = np.random.default_rng(seed)
    found = {}
    for height in HEIGHTS:
        for contrast in CONTRASTS:
            made = [planted(i, rng.choice(TEXTS), height, contrast, rng) for i in images]
            found[height, contrast] = [burned_in_text(image) for image in made]
    return found


def recall(found, least: float = THRESHOLD, heights=HEIGHTS) -> float:
    chosen = [score for (height, _), own in found.items() for score in own if height in heights]
    return float(np.mean(np.array(chosen) >= least))


# ---- tests --------------------------------------------------------------------------------------
def test_planted_text_is_found_and_clean_images_are_not():
    images = drawn(6)
    assert max(map(burned_in_text, images)) < THRESHOLD
    found = scores(images, seed=1)
    assert recall(found, heights=(10, 16, 28)) >= 0.93 and recall(found) >= 0.85


@pytest.mark.parametrize("marker", MARKERS)
def test_a_side_marker_is_no_text(marker):
    rng = np.random.default_rng(2)
    for image in drawn(3):
        for height in (8, 20, 40):
            marked = planted(image, marker, height, None, rng, font="DejaVuSans-Bold")
            assert burned_in_text(marked) < THRESHOLD


def test_kinds_sizes_and_directions():
    image = drawn(1)[0]
    named = planted(image, "KOWALSKI JAN", 14, None, np.random.default_rng(4))
    assert burned_in_text(named) == burned_in_text(np.rint(named * 255).astype(np.uint8)) >= 8
    for turned in (np.rot90(named), np.rot90(named, 2), named[:, ::-1], 1 - named):
        assert burned_in_text(np.ascontiguousarray(turned)) >= THRESHOLD
    large = Image.fromarray(named).resize((2000, 2000))
    assert burned_in_text(np.asarray(large)) >= THRESHOLD
    for shape in ((1, 1), (3, 400), (700, 2)):
        assert burned_in_text(np.zeros(shape, np.uint8)) == 0


@pytest.mark.parametrize(
    ("tag", "said"), [("YES", True), ("yes ", True), ("NO", False), ("", False), (None, False)]
)
def test_the_tag_is_believed_if_it_says_yes(tag, said):
    assert says_burned_in(tag) is said


@needs_real
def test_on_real_x_rays():
    images = films(25)
    clean = np.array([burned_in_text(image) for image in images])
    assert (clean >= THRESHOLD).mean() <= 0.4  # a fifth bears PORTABLE or AP, in letters
    without = [image for image, score in zip(images, clean, strict=True) if score < THRESHOLD][:8]
    found = scores(without, seed=3)
    assert recall(found, heights=(10, 16, 28)) >= 0.93 and recall(found) >= 0.85


# ---- the table ----------------------------------------------------------------------------------
def table() -> None:
    """Choose the threshold on one half, measure it on the other, and print recall by kind."""
    from itertools import product

    for name, images in (("synthetic, 512 px", list(drawn(40))), ("real, 448 px", films(120))):
        clean = np.array([burned_in_text(image) for image in images])
        half = len(images) // 2
        print(f"{name}: share of {half} + {half} images without planted text, at least n letters")
        for least in range(3, 10):
            shares = [(own >= least).mean() for own in (clean[:half], clean[half:])]
            print(f"  {least}: {shares[0]:.3f} {shares[1]:.3f}")
        bare = [
            [image for image, score in zip(images[own], clean[own], strict=True) if score < 3]
            for own in (slice(half), slice(half, None))
        ]
        first, other = scores(bare[0][:20], 0), scores(bare[1][:20], 1)
        for least in range(3, 8):
            print(f"  recall at {least}: {recall(first, least):.3f} {recall(other, least):.3f}")
        for height, contrast in product(HEIGHTS, CONTRASTS):
            own = np.array(other[height, contrast])
            print(f"  {height} px, contrast {contrast or 'white'}: {(own >= THRESHOLD).mean():.2f}")
        rng = np.random.default_rng(9)
        made = [
            planted(image, marker, height, None, rng, "DejaVuSans-Bold")
            for image, marker, height in product(bare[1][:10], MARKERS[:6], (10, 30))
        ]
        marked = np.array([burned_in_text(image) for image in made])
        print(f"  side markers taken for text: {(marked >= THRESHOLD).sum()} of {len(marked)}")


if __name__ == "__main__":
    table()
