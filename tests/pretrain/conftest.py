"""Prepared data and a base model that the tests of pretraining share."""

import pytest
from made_runs import go

from cxrstudy import study
from cxrstudy.data.sets import prepare_data


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "study-abc"
    fractions = {"pretrain": 0.7, "other": 0.3}
    prepare_data(study.Data(n_images=120, size=32, fractions=fractions, out=str(folder)))
    return folder


@pytest.fixture(scope="session")
def base(data, tmp_path_factory):
    """Return the folder of a clip run from random weights on the other split."""
    out = tmp_path_factory.mktemp("runs") / "clip-base-123abc"
    go(data, out, splits=["other"], n_images=20)
    return out
