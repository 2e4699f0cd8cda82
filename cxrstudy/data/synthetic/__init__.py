"""A synthetic institution: chest x-rays with truth, labels, masks and reports, each a pure function of its index."""

from cxrstudy.data.synthetic.render import Batch, sample

FINGERPRINT = "dev"  # TEMPORARY (lead): replace by the real hash of sources and parameters


def describe(indices, *, institution="study", seed=0):  # TEMPORARY (lead): see NOTE_FROM_LEAD.md; must render nothing
    return sample(indices, institution=institution, size=32, seed=seed)


__all__ = ["FINGERPRINT", "Batch", "describe", "sample"]
