"""A synthetic institution: chest x-rays with truth, labels, masks and reports, each a pure function of its index."""

from hashlib import sha256
from pathlib import Path

from cxrstudy.data import vocabulary
from cxrstudy.data.synthetic.render import Batch, alone, describe, sample

SOURCES = [*sorted(Path(__file__).parent.glob("*.py")), Path(vocabulary.__file__)]
FINGERPRINT = sha256(b"".join(source.read_bytes() for source in SOURCES)).hexdigest()[:12]  # parameters are in sources

__all__ = ["FINGERPRINT", "Batch", "alone", "describe", "sample"]
