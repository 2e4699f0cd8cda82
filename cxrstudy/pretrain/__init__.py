"""Continued pretraining: the loop, its objectives, and augmentation."""
