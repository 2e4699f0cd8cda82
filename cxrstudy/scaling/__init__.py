"""Scaling laws fitted to run records."""
