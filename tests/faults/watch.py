"""Run a function on many seeds in a child process, and see every way in which that can end.

A child notes the seed that it works on in shared memory. Where it dies, works for more than 5 s
(its own time; 20 s by the clock) or takes more than 1 GB, the seed is a fault and another child
goes on after it.
"""

import ctypes
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SECONDS, BYTES = 5.0, 2**30
ROOM = 2**31  # address space that a child may take beyond what it has at its start
Try = Callable[[int], str]  # returns what ended it: "read", "refused", or a fault


@dataclass
class Count:
    """Outcomes by kind, faults by seed, and the slowest and largest input."""

    outcomes: dict[str, int] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)
    slowest: tuple[float, int] = (0.0, -1)
    largest: tuple[int, int] = (0, -1)

    @property
    def tried(self) -> int:
        """How many inputs were tried."""
        return sum(self.outcomes.values())

    def add(self, seed: int, outcome: str) -> None:
        """Count an outcome; all but ``read`` and ``refused`` are faults."""
        kind = outcome.partition(":")[0]
        self.outcomes[kind] = self.outcomes.get(kind, 0) + 1
        if kind not in ("read", "refused"):
            self.faults[seed] = outcome


def _used() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _child(prepare: Callable[[], Try], start: int, stop: int, now: Any, pipe: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # codecs print what they think of their input
    attempt = prepare()
    with open("/proc/self/statm", encoding="ascii") as file:
        room = int(file.read().split()[0]) * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    peak = _used()
    for seed in range(start, stop):
        now[0], now[1] = seed, time.monotonic()
        spent = time.process_time()  # of this process: others may keep the machine busy
        outcome = attempt(seed)
        seconds, grown = time.process_time() - spent, _used() - peak
        if grown > BYTES:
            outcome = f"memory: {grown / 2**20:.0f} MB more"
        pipe.send((seed, outcome, seconds, grown))
        if grown > BYTES // 4:  # the peak never falls: measure the next ones anew
            return


def watch(prepare: Callable[[], Try], start: int, stop: int) -> Count:
    """Try the seeds from start to stop; ``prepare`` runs in the child and returns what to try."""
    count, fork = Count(), multiprocessing.get_context("fork")
    while start < stop:
        now = fork.Array(ctypes.c_double, [start, time.monotonic() + 60], lock=False)
        mine, theirs = fork.Pipe(duplex=False)
        child = fork.Process(target=_child, args=(prepare, start, stop, now, theirs))
        child.start()
        theirs.close()
        killed = ""
        while True:
            if mine.poll(0.5):
                try:
                    seed, outcome, seconds, grown = mine.recv()
                except EOFError:
                    break
                if seconds > SECONDS and outcome in ("read", "refused"):
                    outcome = f"hang: {seconds:.1f} s"
                count.add(seed, outcome)
                count.slowest = max(count.slowest, (seconds, seed))
                count.largest = max(count.largest, (grown, seed))
                start = seed + 1
            elif time.monotonic() - now[1] > 4 * SECONDS:
                killed = f"hang: more than {4 * SECONDS:.0f} s"
                child.kill()
                break
        child.join()
        if killed or child.exitcode:
            start = int(now[0])
            count.add(start, killed or f"crash: exit code {child.exitcode}")
            start += 1
    return count
