"""Continual pretraining: objectives, augmentation and the one compute-matched loop."""
