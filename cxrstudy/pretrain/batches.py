"""Batches of a run: read, augmented and on the device before the step that needs them."""

import itertools
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cxrstudy import study
from cxrstudy.pretrain import distributed
from cxrstudy.pretrain.build import Run

T = TypeVar("T")
AHEAD = 2  # batches that wait for the step; one would be enough if all took as long to read


def step_draws(p: study.Pretrain, step: int) -> tuple[np.random.Generator, torch.Generator, int]:
    """Return the random state of a step: of its texts, of its augmentation, a seed of drop path."""
    rng = np.random.default_rng([p.seed, step, 1])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return rng, generator, int(rng.integers(2**62))


def read_batches(run: Run) -> Iterator[dict[str, Tensor]]:
    """Yield what the objective's ``prepare`` returns for this rank's images, from step to step.

    A step has ``accumulate`` parts. All depends on (seed, position) and (seed, step) alone.
    """
    p, world, rank = run.p, distributed.world_size(), distributed.rank()
    cuda = run.device.type == "cuda"
    stream = torch.cuda.Stream(run.device) if cuda else None
    for step in range(run.resumed_from, run.steps):
        rng, generator, _ = step_draws(p, step)
        for part in np.split(run.batch(step), p.accumulate):  # (B / accumulate,)
            low, high = (k * len(part) // world for k in (rank, rank + 1))
            # both contexts belong to the thread that asks for the batch
            with (
                torch.cuda.stream(stream),
                torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32),
            ):
                pixels = torch.from_numpy(run.prepared.images[run.rows[part[low:high]]])
                pixels = pixels.pin_memory() if cuda else pixels  # (N, H, W)
                x = run.objective.encoder.normalise(pixels.to(run.device, non_blocking=True))
                batch = run.objective.prepare(x, part, low, rng, generator)
            if stream is not None:
                stream.synchronize()  # this thread waits, the step goes on
                for tensor in batch.values():  # its memory is not used again before the step's end
                    tensor.record_stream(torch.cuda.default_stream(run.device))
            yield batch


def prefetch(items: Iterator[T], first: int = 1) -> Generator[T]:
    """Yield ``items``, of which a thread computes the next ones while the caller uses one.

    The caller's own thread computes the ``first`` ones. An error reaches the caller in its place of
    the order. Close the generator to end the thread (``contextlib.closing``).
    """
    yield from itertools.islice(items, first)
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        waiting = deque(pool.submit(next, items, None) for _ in range(AHEAD))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
