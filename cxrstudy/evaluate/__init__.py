"""Frozen encoders under one protocol: features, probes, metrics with patient-level intervals."""
