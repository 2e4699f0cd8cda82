"""No path that a card or its tables are made of leads out of the data set's root."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrstudy.data.below import below, check_text, links_out
from cxrstudy.data.tables import CardError

parts = st.sampled_from(
    ["..", ".", "", "a", "images", "a b", "...", "..a", "C:", "~", "etc", "\0", "*", "ä", "{x}"]
)
joins = st.sampled_from(["/", "\\", "//", "\\/"])
paths = st.lists(st.tuples(joins, parts), max_size=6).map(
    lambda pairs: "".join(join + part for join, part in pairs)
)


@given(st.one_of(paths, paths.map(lambda p: p.lstrip("/\\")), st.text(max_size=20)))
def test_no_path_made_of_such_parts_leads_out(path):
    root = "/data/root"
    try:
        text = check_text(path)
    except CardError:
        return
    full = os.path.normpath(os.path.join(root, text))
    assert full == root or full.startswith(f"{root}/")
    windows = path.replace("/", "\\")
    assert not windows.startswith("\\") and "\\..\\" not in f"\\{windows}\\" and "\0" not in path


@pytest.mark.parametrize("path", ["a.png", "images/a b.png", "x/...", "..a/b", "p{id:.2}/x", "*/*"])
def test_paths_below_are_as_they_were(tmp_path, path):
    assert below(tmp_path, path) == tmp_path / path
    assert below(tmp_path, path.replace("/", "\\")) == tmp_path / path


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../../x", "..\\x", "C:\\x", "\\\\host\\x", "a/..", "a\0b"]
)
def test_paths_that_lead_out_by_their_text_are_refused(tmp_path, path):
    with pytest.raises(CardError, match=r"leads out of root.*below root"):
        below(tmp_path, path)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A root with links, and a folder elsewhere."""
    root, other = tmp_path / "root", tmp_path / "archive"
    (root / "images").mkdir(parents=True)
    (other / "deep").mkdir(parents=True)
    (tmp_path / "archive2").mkdir()
    for file in (root / "images/a.png", other / "deep/b.png", tmp_path / "archive2/c.png"):
        file.write_text("x")
    links = {
        "images/inside.png": "a.png",
        "images/out.png": other / "deep/b.png",
        "images/relative.png": "../../archive/deep/b.png",
        "images/chain.png": "out.png",
        "images/beside.png": tmp_path / "archive2/c.png",  # a name that begins alike
        "images/up": "..",
        "folder": other,
        "loop": "loop",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    (tmp_path / "link").symlink_to(root)
    return root, other


OUT = ["images/out.png", "images/relative.png", "images/chain.png", "folder/deep/b.png"]
IN = ["images/a.png", "images/inside.png", "images/up/images/a.png", "images/absent.png"]


def test_a_link_out_is_refused_and_one_inside_is_not(places):
    root, _ = places
    for top in (root, root.parent / "link"):
        assert links_out(top, [top / name for name in IN]) == []
        assert links_out(top, [top / name for name in OUT]) == [top / name for name in OUT]
        with pytest.raises(CardError, match=r"images/out.png leads out of root through a link"):
            below(top, "images/out.png")


def test_links_of_an_ingest_folder_lead_only_into_the_folders_that_it_names(places):
    root, other = places
    (root / "ingest.json").write_text(json.dumps({"folders": [str(other)]}))
    assert links_out(root, [root / name for name in [*IN, *OUT]]) == []
    assert links_out(root, [root / "images/beside.png"]) == [root / "images/beside.png"]
    (root / "ingest.json").write_text(json.dumps({"folders": [str(other / "deep")]}))
    assert links_out(root, [root / "folder"]) == [root / "folder"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"folders": 3}', '{"folders": "/"}', '{"folders": [3]}']
)
def test_a_damaged_note_allows_nothing(places, content):
    root, _ = places
    (root / "ingest.json").write_text(content)
    with pytest.raises(CardError, match=r"ingest.json is damaged: run the ingest again"):
        below(root, "images/a.png")


def test_a_loop_of_links_ends(places):
    root, _ = places
    assert links_out(root, [root / "loop"]) in ([], [root / "loop"])
