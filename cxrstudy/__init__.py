"""cxrstudy: a rerunnable study of how chest-x-ray foundation encoders improve with in-house data."""
