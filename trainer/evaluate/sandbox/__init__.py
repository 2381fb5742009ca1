"""Runs a benchmark's tests against code that a model wrote, in isolated processes. `run.py` is the entry."""
