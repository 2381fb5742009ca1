"""Trains a run directory on a Ray cluster. Nothing else of the trainer imports Ray."""
