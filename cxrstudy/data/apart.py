"""Decode pixel data in another process: gdcm aborts the process that it is in on damaged files.

Each thread has one such process, which lives as long as the thread. A damaged file ends it, and the
next file gets a new one.
"""

import contextlib
import os
import struct
import subprocess
import sys
import threading
from io import BytesIO
from typing import IO

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import pixel_array

SIZE = struct.Struct("<Q")  # of each message
_own = threading.local()


def decoded(ds: pydicom.Dataset) -> np.ndarray:
    """Return the stored words (H, W) of compressed pixel data, in a process of its own.

    Raises:
        ValueError: no decoder can read them, or it ended the process.
    """
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ds.file_meta.TransferSyntaxUID
    ds.file_meta, ds.preamble = meta, bytes(128)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, ds, implicit_vr=False, little_endian=True)
    process = _process()
    assert process.stdin and process.stdout
    answer = b""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(SIZE.pack(len(buffer.getvalue())) + buffer.getvalue())
        process.stdin.flush()
        answer = _message(process.stdout)
    if not answer:
        _own.process = None
        process.stdin.close()
        process.stdout.close()
        raise ValueError(f"its decoder ended with code {process.wait()}")
    if not answer.startswith(b"\x93NUMPY"):
        raise ValueError(answer.decode())
    return np.load(BytesIO(answer))


def _process() -> subprocess.Popen[bytes]:
    """Return this thread's process; one that was inherited by a fork serves its first owner."""
    if getattr(_own, "process", None) is None or _own.pid != os.getpid():
        command = [sys.executable, "-m", "cxrstudy.data.apart"]
        _own.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        _own.pid = os.getpid()
    return _own.process


def _message(file: IO[bytes]) -> bytes:
    head = file.read(SIZE.size)
    return file.read(SIZE.unpack(head)[0]) if len(head) == SIZE.size else b""


def main() -> None:
    """Answer each message, a DICOM file, by its words as .npy or by why there are none."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what codecs print must not come between
    while data := _message(sys.stdin.buffer):
        try:
            buffer = BytesIO()
            words = pixel_array(pydicom.dcmread(BytesIO(data)), raw=True, correct_unused_bits=False)
            np.save(buffer, words)
            answer = buffer.getvalue()
        except Exception as error:
            answer = repr(error).encode(errors="replace")
        answers.write(SIZE.pack(len(answer)) + answer)
        answers.flush()


if __name__ == "__main__":
    main()
