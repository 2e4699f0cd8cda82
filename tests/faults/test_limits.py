"""What a night can bring: folders that cannot be written to, a GPU that is too small, kills."""

import errno
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "pretrain"))

from kills import kills
from made_runs import go

from cxrstudy import cli, run
from cxrstudy.pretrain import loop


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EROFS, "let that disk be written to"),
        (errno.ENOSPC, "free space on that disk"),
        (errno.EACCES, "ask its owner for permission"),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_told_in_one_line(monkeypatch, number, said) -> None:
    def fails(*_: object, **__: object) -> int:
        raise OSError(number, "told by the system", "/disk/smoke/.lock")

    monkeypatch.setattr(run, "run_preset", fails)
    done = CliRunner().invoke(cli.main, ["run", "--preset", "smoke"])
    assert done.exit_code == 2
    last = done.output.splitlines()[-1]
    assert last.startswith(f"cxrstudy: /disk/smoke/.lock: told by the system: {said}")
    assert "CXRSTUDY_RUNS" in last


def test_a_gpu_that_is_too_small_names_the_batch_and_what_to_change(data, tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(loop, "train_step", fails)
    with pytest.raises(torch.OutOfMemoryError, match=r"for 4 images at a time .*batch_size 8") as e:
        go(data, tmp_path / "x", batch_size=8, accumulate=2)
    assert "set accumulate to 4, or halve batch_size. CUDA out of memory" in str(e.value)


@pytest.mark.slow
@pytest.mark.parametrize("pair", [("run", "SIGTERM"), ("kernel", "SIGKILL")])
def test_killed_at_a_random_moment_the_same_call_ends_with_the_same_results(pair) -> None:
    assert kills(1, 11, [pair]) == {" ".join(pair): {"as undisturbed": 1}}
