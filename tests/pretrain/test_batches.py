"""The next batches are computed while a step runs, in the same order, and no thread is left."""

import contextlib
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_runs import DINO, Killed, go, killed_after, parameters

from cxrstudy.data import images
from cxrstudy.pretrain.batches import prefetch, read_batches
from cxrstudy.pretrain.build import build_run
from cxrstudy.pretrain.clip import ImageText

torch.set_num_threads(1)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@given(st.lists(st.integers(), max_size=12), st.integers(0, 5))
def test_items_come_in_their_order_whatever_the_caller_computes_itself(items, first):
    assert list(prefetch(iter(items), first)) == items
    assert not threads()


def test_the_first_items_are_computed_by_the_caller_and_the_others_by_one_thread():
    def items():
        while True:
            yield threading.current_thread()

    with contextlib.closing(prefetch(items(), 2)) as found:
        own, also, other, again = (next(found) for _ in range(4))
    assert own is also is threading.current_thread()
    assert other is again is not own
    assert not threads()


def test_the_next_item_is_computed_while_the_caller_works():
    def items():
        for k in range(10):
            time.sleep(0.03)
            yield k

    started = time.monotonic()
    for _ in prefetch(items()):
        time.sleep(0.03)
    assert time.monotonic() - started < 0.85 * 20 * 0.03  # one after the other takes 20 of them


def test_an_error_reaches_the_caller_in_its_place():
    def items():
        yield from range(3)
        raise OSError("the disk is gone")

    found, seen = prefetch(items()), []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(found)
    assert seen == [0, 1, 2]
    assert not threads()


def test_a_run_leaves_no_thread_when_it_fails(data, tmp_path, monkeypatch):
    with pytest.raises(Killed):
        go(data, tmp_path / "killed", killed_after(2))
    assert not threads()
    prepare, shown = ImageText.prepare, []

    def fails(self, x, *rest):
        shown.append(threading.current_thread() is threading.main_thread())
        if len(shown) == 4:
            raise OSError("the disk is gone")
        return prepare(self, x, *rest)

    monkeypatch.setattr(ImageText, "prepare", fails)
    steps = []
    with pytest.raises(OSError, match="the disk is gone"):
        go(data, tmp_path / "failed", lambda all_steps: (steps.append(k) or k for k in all_steps))
    assert steps == [0, 1, 2, 3]  # the steps before the fault are taken
    assert shown == [True, False, False, False]
    assert not threads()


@pytest.mark.parametrize("own", [{"paradigm": "unicl", "accumulate": 2}, DINO])
def test_batches_depend_on_seed_and_position_alone(data, tmp_path, own):
    run = build_run(parameters(data, tmp_path, **own), images.open_prepared(data), tmp_path)
    whole = list(read_batches(run))
    run.resumed_from = 2
    torch.manual_seed(int(np.random.default_rng().integers(2**31)))  # any state of the caller
    again = list(prefetch(read_batches(run)))
    assert len(whole) - len(again) == 2 * run.p.accumulate
    for one, other in zip(whole[2 * run.p.accumulate :], again, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
