"""A synthetic institution: chest x-rays with truth, structured labels, masks and reports.

Every image is a function of (seed, institution, index).
"""

from cxrstudy.data.generator import VERSION
from cxrstudy.data.synthetic.sampling import Batch, describe, isolate_label, sample

__all__ = ["VERSION", "Batch", "describe", "isolate_label", "sample"]
