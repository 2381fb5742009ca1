"""Kinds of values in a recipe, with their limits. (no torch)"""

from __future__ import annotations

from dataclasses import field
from typing import Any


def number(default: Any, low: float | None = None, high: float | None = None, *, word: str | None = None) -> Any:
    """A field with a value from `low` to `high`, inclusive, or with `word` instead of a number."""
    return field(default=default, metadata={"low": low, "high": high, "word": word})


def choice(default: str, *others: str) -> Any:
    """A field with one of several names."""
    return field(default=default, metadata={"choices": (default, *others)})


def names() -> Any:
    """A list of texts that may be empty."""
    return field(default=(), metadata={"may_be_empty": True})
