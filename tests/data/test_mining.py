"""Labels mined from reports: cards, statuses, counts, and agreement with Open-i's curators."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mined import hospital
from test_reports import CODES, OPENI, curated

from cxrstudy import study
from cxrstudy.data import mining
from cxrstudy.data.cards import CardError, load_manifest, read_card
from cxrstudy.data.reports import NAMES, extract_labels
from cxrstudy.data.sets import content_digest, prepare_data
from cxrstudy.data.vocabulary import LABELS

OURS = {name: [name] for name in LABELS}


def test_mentions_become_labels_and_other_languages_none(tmp_path):
    manifest = load_manifest(hospital(tmp_path), root=tmp_path).set_index("image_id")
    assert [c for c in manifest if c.startswith("label:")] == [f"label:{n}" for n in LABELS]
    heart = manifest["label:cardiomegaly"]
    assert heart[["x0", "again"]].eq(1).all() and heart[["x2", "x3", "x4"]].isna().all()
    effusion = manifest["label:pleural_effusion"]
    assert effusion["x0"] == 0 and np.isnan(effusion["x1"])  # denied; uncertain
    assert manifest.loc["x2"].filter(like="label:").isna().all()
    record = manifest.attrs["mined"]
    assert record["reports"] == 5  # one a study, not one an image
    assert record["with_label"] == 3
    assert record["not_english"] == {"German": 1}
    assert record["counts"]["pleural_effusion"] == {"absent": 1, "uncertain": 1, "present": 0}
    said = mining.in_words(record)
    assert "5 reports, 3 with any label. 1 reports are not in English (German 1)" in said


@pytest.mark.parametrize(
    ("extra", "effusion"),
    [
        ("uncertain: present", [0, 0, 1, np.nan, np.nan, np.nan, np.nan]),
        ("uncertain: absent", [0, 0, 0, np.nan, np.nan, np.nan, np.nan]),
        ("missing: absent", [0, 0, np.nan, np.nan, np.nan, 0, 0]),
    ],
)
def test_what_doubt_and_silence_mean_is_said_by_the_card(tmp_path, extra, effusion):
    manifest = load_manifest(
        hospital(tmp_path, labels=f"encoding: reports\n{extra}"), root=tmp_path
    )
    np.testing.assert_array_equal(manifest["label:pleural_effusion"], effusion)


def test_a_name_of_ours_may_join_several(tmp_path):
    names = "encoding: reports\nnames: {airway: [endotracheal_tube, tracheostomy_tube]}"
    manifest = load_manifest(hospital(tmp_path, labels=names), root=tmp_path)
    assert manifest["label:airway"].tolist()[-1] == 1
    assert [c for c in manifest if c.startswith("label:")] == ["label:airway"]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("encoding: reports\nnames: {picx: picx}", "no 'picx'; near it: 'picc'"),
        ("encoding: reports\nuncertain: maybe", "'unknown', 'present' or 'absent'"),
        ("encoding: reports\ncolumn: text", "neither `column` nor `values`"),
        ("encoding: list\ncolumn: text\nnames: {a: A}\nmissing: absent\nuncertain: present",
            "for encoding: reports only"),
        ("encoding: list\ncolumn: text\nnames: {a: A}", "labels.missing: Field required"),
    ],
)  # fmt: skip
def test_a_wrong_card_is_refused(tmp_path, labels, said):
    with pytest.raises(CardError, match=said.replace("(", r"\(")):
        read_card(hospital(tmp_path, labels=labels))


def test_a_card_without_reports_is_refused(tmp_path):
    with pytest.raises(CardError, match="name `report` under table"):
        load_manifest(hospital(tmp_path, table="view: file"), root=tmp_path)


def test_cards_of_other_encodings_are_hashed_as_before(tmp_path):
    other = "encoding: list\ncolumn: text\nnames: {a: A}\nmissing: absent"
    own = read_card(hospital(tmp_path, labels=other)).model_dump()["labels"]
    assert list(own) == [
        *("encoding", "column", "separator", "names", "values", "missing", "may_be_absent")
    ]
    assert (
        "uncertain"
        in read_card(
            hospital(tmp_path, labels="encoding: reports\nuncertain: absent")
        ).model_dump()["labels"]
    )


def test_a_data_run_says_what_was_mined_and_warns_of_other_languages(tmp_path):
    card = hospital(tmp_path / "data", pixels=True)
    values = {"card": str(card), "root": str(tmp_path / "data"), "n_images": 0, "size": 32}
    with pytest.warns(UserWarning, match="not in English"):
        prepared = prepare_data(study.Data(**values, out=str(tmp_path / "run")))
    assert prepared.info["mined"]["with_label"] == 3
    assert prepared.info["mined"]["by"].startswith("cxrstudy ")
    with pytest.warns(UserWarning, match="not in English"):
        again = prepare_data(study.Data(**values, out=str(tmp_path / "run")))
    assert again.info == prepared.info


def test_another_rule_is_another_data_set(tmp_path):
    def named(labels):
        card = hospital(tmp_path, labels=labels)
        return content_digest(str(card), root=str(tmp_path), n_images=0, seed=0)

    assert named("encoding: reports") == named("encoding: reports")
    assert named("encoding: reports") != named("encoding: reports\nuncertain: present")


SENTENCES = st.sampled_from(
    [
        "No edema.",
        "Possible edema.",
        "Mild edema.",
        "Clear lungs.",
        "No fracture.",
        "PICC in place.",
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(SENTENCES, max_size=4).map(" ".join) | st.none(), max_size=30))
def test_statuses_are_those_of_extract_labels_row_by_row(reports):
    found = mining.read_statuses(pd.Series(reports, dtype=object), {n: [n] for n in NAMES})
    assert len(found) == len(reports)
    for (_, row), text in zip(found.iterrows(), reports, strict=True):
        if not text:
            assert (row == mining.NOT_READ).all()
        else:
            said = {name: mining.STATUSES[code] for name, code in row.items() if code}
            assert said == extract_labels(text)


def test_many_reports_are_read_by_several_processes_as_by_one():
    texts = pd.Series([f"Mild edema, number {k}. No fracture." for k in range(3 * mining.CHUNK)])
    found = mining.read_statuses(texts, OURS)
    assert (found["edema"] == 3).all() and (found["fracture"] == 1).all()
    assert (found.drop(columns=["edema", "fracture"]) == 0).all(axis=None)


@pytest.mark.skipif(
    not OPENI.is_file(), reason="needs the real reports of ../shared/data/openi_reports"
)
def test_mined_labels_agree_with_the_curators_of_open_i():
    """Precision and recall of what a study would train on: present against everything else."""
    rows = list(curated())
    texts = pd.Series([text for _, text, _ in rows])
    columns, record = mining.mine_labels(texts, pd.Series([uid for uid, _, _ in rows]), OURS)
    assert record["reports"] == len(rows) and not record["not_english"]
    for name in set(CODES) - {"lines"}:
        wanted = tuple(f"{code}/" for code in CODES[name])
        true = np.array([any(f"{c}/".startswith(wanted) for c in codes) for _, _, codes in rows])
        said = columns[f"label:{name}"].eq(1).to_numpy()
        assert (said & true).sum() / said.sum() > 0.85, f"precision of {name}"
        assert (said & true).sum() / true.sum() > 0.85, f"recall of {name}"
