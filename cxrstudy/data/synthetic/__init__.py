"""A synthetic institution: chest x-rays with truth, labels, masks and reports, each a function of its index alone."""

from cxrstudy.data.generator import VERSION
from cxrstudy.data.synthetic.render import Batch, alone, describe, sample

__all__ = ["VERSION", "Batch", "alone", "describe", "sample"]
