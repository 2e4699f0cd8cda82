"""Image files are found however a table writes their path; paths out of root are refused."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrstudy.data.locate import below_root, find_images, find_listed, matching_files
from cxrstudy.data.tables import CardError, Rows


def lay(base, *files):
    for file in files:
        (base / file).parent.mkdir(parents=True, exist_ok=True)
        (base / file).touch()
    return base


def find(base, patterns, ids):
    n = len(ids)
    rows = Rows(
        pd.DataFrame(index=range(n)),
        [Path("rows.csv")],
        np.zeros(n, int),
        ["line"],
        np.arange(n) + 2,
    )
    found = find_images(base, patterns, pd.Series(ids, name="image"), rows)
    return [None if pd.isna(file) else os.path.relpath(file, base) for file in found]


def test_two_stars_are_any_depth_none_too(tmp_path):
    files = ["images/a.png", "images/x/b.png", "images/x/y/c.png", "images/x/y/z/d.png"]
    lay(tmp_path, *files, "images/.hidden/e.png", "images/._a.png", "other/f.png")
    assert matching_files(tmp_path, "images/**/*") == files
    assert matching_files(tmp_path, "images/**") == files
    assert matching_files(tmp_path, "**/y/**/*.png") == files[2:]
    assert matching_files(tmp_path, "images/*/*.png") == files[1:2]
    assert (
        matching_files(tmp_path, "./images/*.png")
        == matching_files(tmp_path, "images\\*.png")
        == files[:1]
    )
    assert find(tmp_path, ["images/**/*"], ["a", "b.png", "x/y/c.png", "images/x/y/z/d", "e"]) == [
        *files,
        None,
    ]


names = st.text("ab", min_size=1, max_size=2)


@settings(deadline=None, max_examples=30)
@given(
    st.sets(st.lists(names, min_size=1, max_size=4).map(tuple), min_size=1, max_size=6), st.data()
)
def test_patterns_find_what_the_standard_library_finds(tmp_path_factory, paths, data):
    base = tmp_path_factory.mktemp("tree")
    for path in paths:
        lay(base, "/".join(f"d{part}" for part in path[:-1]) + f"/f{path[-1]}.png")
    parts = data.draw(st.lists(st.sampled_from(["**", "d*", "da", "d[ab]", "d?"]), max_size=3))
    pattern = "/".join([*parts, "f*.png"])
    assert matching_files(base, pattern) == sorted(
        {p.relative_to(base).as_posix() for p in base.glob(pattern)}
    )


SPELLINGS = [
    "images\\x\\A 1.png", "./images/x/A 1.png", "images//x/A 1.png", "images/y/../x/A 1.png",
    " images/x/A 1.png ",
]  # fmt: skip
SPELLINGS += ["x/A 1.png", "A 1.png", "A 1", "A 1.PNG", "a 1.png", "IMAGES/X/a 1", "x\\A 1"]


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_path_is_found_however_it_is_written(tmp_path, name):
    assert find(lay(tmp_path, "images/x/A 1.png"), ["images/**/*"], [name]) == ["images/x/A 1.png"]


def test_a_path_may_begin_with_root_or_with_its_name(tmp_path):
    base = lay(tmp_path / "CheXpert-v1.0", "train/p1/view1.jpg", "train/p2/view1.jpg")
    (tmp_path / "link").symlink_to(base)
    for root in (base, tmp_path / "link"):
        ids = ["CheXpert-v1.0/train/p1/view1.jpg", str(base / "train/p2/view1.jpg")]
        assert find(root, ["train/**/*.jpg"], ids) == ["train/p1/view1.jpg", "train/p2/view1.jpg"]
        assert find_listed(root, ids).keys() == set(ids)
    assert (
        find(base, ["**/*"], ["CheXpert-v1.0/train/p3/view1.jpg", "train/p1/view1.jpg"])[0] is None
    )


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_accents_are_one_whether_composed_or_not(tmp_path, form, stored):
    lay(tmp_path, unicodedata.normalize(stored, "images/Müller-é.png"))
    [found] = find(tmp_path, ["images/*"], [unicodedata.normalize(form, "Müller-é.png")])
    assert unicodedata.normalize("NFC", found) == unicodedata.normalize(
        "NFC", "images/Müller-é.png"
    )
    assert find_listed(tmp_path, [unicodedata.normalize(form, "images/Müller-é.png")])


def test_suffixes_in_capitals_and_none_at_all(tmp_path):
    lay(tmp_path, "images/a.PNG", "images/B.DCM", "images/1.2.840.1", "images/IM0001")
    found = find(tmp_path, ["images/*"], ["a", "b.dcm", "1.2.840.1", "IM0001", "a2"])
    assert found == ["images/a.PNG", "images/B.DCM", "images/1.2.840.1", "images/IM0001", None]
    assert find(tmp_path, ["images/*.png", "images/*.dcm"], ["a", "B"]) == [
        "images/a.PNG",
        "images/B.DCM",
    ]


def test_case_tells_two_files_apart_and_nothing_else(tmp_path):
    lay(tmp_path, "images/a.png", "images/A.png")
    assert find(tmp_path, ["images/*"], ["A", "a"]) == ["images/A.png", "images/a.png"]
    lay(tmp_path, "images/q.PNG", "images/q.png")
    with pytest.raises(
        CardError, match=r"rows.csv, line 2: image 'q' fits 2 files .*path below root"
    ):
        find(tmp_path, ["images/*"], ["q"])


def test_two_ids_of_one_file_are_refused_by_their_lines(tmp_path):
    with pytest.raises(
        CardError, match=r"line 2; rows.csv, line 4: 'a' and 'images/a.png' name one file"
    ):
        find(
            lay(tmp_path, "images/a.png", "images/b.png"), ["images/*"], ["a", "b", "images/a.png"]
        )


@pytest.mark.parametrize(
    "name", ["../x.png", "images/../../x.png", "/etc/x.png", "C:\\data\\x.png", "..\\x.png", ".."]
)
def test_a_path_that_leads_out_of_root_is_refused(tmp_path, name):
    base = lay(tmp_path / "root", "images/x.png")
    lay(tmp_path, "x.png")
    for act in (lambda: below_root(name, base), lambda: find_listed(base, [name])):
        with pytest.raises(CardError, match="leads out of root"):
            act()
    with pytest.raises(CardError, match=r"rows.csv, line 3: column 'image': .* leads out of root"):
        find(base, ["images/*"], ["x", name])


@pytest.mark.parametrize("pattern", ["../*", "/etc/*", "images/../../*", "C:/x/*"])
def test_a_pattern_that_leads_out_of_root_is_refused(tmp_path, pattern):
    with pytest.raises(CardError, match="leads out of root"):
        find(lay(tmp_path, "a.png"), [pattern], ["a"])


def test_the_error_tells_whether_no_file_or_no_id_fits(tmp_path):
    lay(tmp_path, "pictures/a.png")
    with pytest.raises(
        CardError, match=r"none of 1 images .* no file fits the pattern. There is 'pictures/a.png'"
    ):
        find(tmp_path, ["images/*.png"], ["a"])
    with pytest.raises(
        CardError,
        match=r"1 files fit the pattern.*first id is 'q.png'.*first file 'pictures/a.png'",
    ):
        find(tmp_path, ["pictures/*.png"], ["q.png"])


def test_links_are_followed_and_a_loop_of_them_ends(tmp_path):
    lay(tmp_path / "root", "images/a.png")
    lay(tmp_path, "elsewhere/b.png")
    (tmp_path / "root/images/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/images/loop").symlink_to(tmp_path / "root/images")
    found = matching_files(tmp_path / "root", "images/**/*.png")
    assert found == ["images/a.png", "images/more/b.png"]
