"""What a safeguard is: the source text that is removed, and the test that must fail then."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A safeguard, and the test that fails without it."""

    file: str
    old: str
    """The safeguard's source text."""
    new: str
    """The text that replaces it."""
    caught_by: tuple[str, ...]
    """Arguments for pytest, or `row N` for a sample of that row."""


def test(file: str, words: str = "") -> tuple[str, ...]:
    return (file, "-k", words) if words else (file,)
