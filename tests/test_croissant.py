"""Cards as Croissant: read back by the reference implementation where it is installed."""

import hashlib
import json

import pytest
from click.testing import CliRunner
from conftest import ROOT

from cxrstudy import cli, croissant
from cxrstudy.data.cardfile import read_card

CARDS = sorted(path.stem for path in (ROOT / "data_cards").glob("*.md"))


@pytest.fixture(scope="module")
def mlc():
    reason = "mlcroissant is not installed: pip install -e '.[croissant]'"
    return pytest.importorskip("mlcroissant", reason=reason)


@pytest.mark.parametrize("name", CARDS)
def test_every_card_is_valid(name, mlc, tmp_path) -> None:
    path = tmp_path / "croissant.json"
    path.write_text(croissant.to_json(read_card(name)))
    found = mlc.Dataset(str(path)).metadata  # raises on any error
    card = read_card(name)
    assert not found.ctx.issues.errors
    assert (found.name, found.cite_as) == (card.name, card.citation)
    assert found.data_limitations[0] == card.contamination or not card.contamination
    assert found.data_biases == [card.caution] or not card.caution
    if card.table:
        columns = {field.source.extract.column for field in found.record_sets[0].fields}
        assert {card.table.image_id, card.table.patient_id} <= columns


@pytest.mark.parametrize("name", CARDS)
def test_what_a_card_says_is_in_it(name) -> None:
    card, found = read_card(name), json.loads(croissant.to_json(read_card(name)))
    assert card.licence == found["license"]
    assert "not for clinical use" in found["rai:dataLimitations"][1]
    ids = [each["@id"] for each in found["distribution"]]
    fields = [field["@id"] for rows in found.get("recordSet", []) for field in rows["field"]]
    assert len({*ids, *fields}) == len(ids) + len(fields)
    named = {pattern for part in found["distribution"] for pattern in part.get("includes", [])}
    assert {path for path in card.images if "{" not in path} <= named
    assert not any("{" in path for path in named)


def test_a_table_that_is_there_has_its_hash(tmp_path) -> None:
    (tmp_path / "images.csv").write_text("image_id,patient_id\n1,2\n")
    call = ["card", "site", "--croissant", "--data-root", str(tmp_path)]
    done = CliRunner().invoke(cli.main, [*call, "--out", str(tmp_path / "c.json")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "c.json").read_text())
    table = next(part for part in found["distribution"] if part["@id"] == "table")
    assert table["contentUrl"] == "images.csv"
    content = (tmp_path / "images.csv").read_bytes()
    assert table["sha256"] == hashlib.sha256(content).hexdigest()
    sources = [field["source"] for field in found["recordSet"][0]["field"]]
    assert all(source["fileObject"] == {"@id": "table"} for source in sources)
    (tmp_path / "images.csv").unlink()
    done = CliRunner().invoke(cli.main, call)
    assert done.exit_code == 2
    assert "0 files 'images.csv'" in done.output


def test_a_card_is_printed_as_written_and_an_unknown_one_refused() -> None:
    done = CliRunner().invoke(cli.main, ["card", "site"])
    assert done.output == (ROOT / "data_cards" / "site.md").read_text()
    done = CliRunner().invoke(cli.main, ["card", "nowhere"])
    assert done.exit_code == 2
    assert "no data card" in done.output
