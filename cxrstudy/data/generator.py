"""Version of the synthetic institution, apart from it so that Snakemake need not load torch."""

# Raise it if an image, label, mask or report changes. Every record of synthetic data names it, and
# runs on synthetic data are then repeated. tests/data/synthetic_outputs.json pins the outputs.
VERSION = "1"
