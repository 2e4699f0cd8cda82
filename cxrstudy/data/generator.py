"""The version of what the synthetic institution draws; apart from it, so that Snakemake need not load torch."""

# Raise it when an image, label, mask or report changes: every record of synthetic data names it, and runs on synthetic
# data are made again. tests/data/synthetic_outputs.json pins the outputs of this version.
VERSION = "1"
