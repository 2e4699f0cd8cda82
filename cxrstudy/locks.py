"""One lock for each preset, held as long as any process of its runs is alive.

`cxrstudy run` locks a file, and Snakemake inherits its descriptor: the system releases the lock
when both have ended. What Snakemake starts (papermill, kernels, their workers) has the lock's path
in its environment, so that it is found even if it outlives both.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

from cxrstudy.study import StudyError

MARK = "CXRSTUDY_LOCK"
ENDING = (  # beside SIGINT, which Python handles
    *("SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGALRM"),
)


def workers(lock: Path) -> dict[int, str]:
    """Return pid and name of every process that Snakemake has started under a lock."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == str(lock):
                words = process.cmdline()
                module = words[words.index("-m") + 1] if "-m" in words[:-1] else process.name()
                found[process.pid] = module.removesuffix("_launcher")
    return found


def busy(lock: Path) -> bool:
    """Return whether any process works under a lock now."""
    if not lock.is_file():
        return False
    with lock.open() as file:
        return not _take(file, fcntl.LOCK_SH) or bool(workers(lock))


@contextlib.contextmanager
def held(lock: Path, preset: str, patience: float = 2.0) -> Iterator[int]:
    """Hold a preset's lock; give the file's descriptor, for Snakemake to inherit.

    Raises:
        StudyError: processes still work under it after ``patience`` seconds; names them.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        until = time.monotonic() + patience
        while not _take(file, fcntl.LOCK_EX) or workers(lock):
            if time.monotonic() > until:
                raise StudyError(
                    f"preset {preset!r} is being run already ({_who(lock)}; lock {lock})"
                )
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"{os.getpid()}")
        file.flush()
        yield file.fileno()


def _take(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _who(lock: Path) -> str:
    """Return who works under a lock, and how to stop it."""
    there = workers(lock)
    with contextlib.suppress(psutil.Error, OSError, ValueError):
        first = psutil.Process(int(lock.read_text()))
        is_older = first.create_time() < lock.stat().st_mtime + 1  # not a later one of that pid
        if is_older and first.pid != os.getpid():
            pid = first.pid
            return f"cxrstudy run is process {pid}; wait for it, or stop it with: kill {pid}"
    if not there:
        return "by a process that cannot be seen from here"
    named = ", ".join(f"{name} {pid}" for pid, name in sorted(there.items()))
    pids = " ".join(map(str, sorted(there)))
    return f"at work: {named}; wait for them, or stop them with: kill {pids}"


def stop(process: subprocess.Popen | None, lock: Path) -> dict[int, str]:
    """End Snakemake and all processes under the lock: by SIGTERM, then by SIGKILL.

    Return those that could not be ended, as ``workers`` does.
    """
    again: KeyboardInterrupt | None = None
    for number, seconds in ((signal.SIGTERM, 8.0), (signal.SIGTERM, 4.0), (signal.SIGKILL, 4.0)):
        try:
            if process and process.poll() is None and seconds == 8.0:
                os.killpg(process.pid, number)  # papermill ends its kernel
            else:
                for pid in workers(lock):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            until = time.monotonic() + seconds
            while time.monotonic() < until and _goes_on(process, lock):
                time.sleep(0.1)
        except KeyboardInterrupt as error:  # asked again: no longer patient
            again = error
        if not _goes_on(process, lock):
            break
    if again:
        raise again
    return workers(lock)


def _goes_on(process: subprocess.Popen | None, lock: Path) -> bool:
    return bool(process and process.poll() is None) or bool(workers(lock))


@contextlib.contextmanager
def ending_signals() -> Iterator[None]:
    """Let signals that end a process interrupt the block as Ctrl-C does.

    Signals that are ignored (nohup) stay so.
    """

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in ENDING if hasattr(signal, name)):
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
