"""The types of the fault suite: a row, its trials and their results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Done:
    """The result of a trial that passed."""

    count: int = 1
    """How much the trial counts, in the row's unit."""
    note: str = ""
    """A short note, for example the longest time or the crash point."""


Trial = Callable[[int], Done]
"""Runs one trial, by its number from 0. The same number does the same, as far as the machine allows. It raises Broken
or another error if a guarantee does not hold."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """The trials of a row that is set up."""

    number: int
    """How many trials there are."""
    run: Trial
    names: Sequence[str] = ()
    """How the notes of the first trials begin. Another start may order the trials differently. A trial whose kept note
    begins with another name is run again."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault."""

    fault: str
    unit: str
    """What the row counts."""
    passes: str
    """What must be true of each trial."""
    prepare: Callable[[Path, bool], AbstractContextManager[Trials]]
    """(an empty folder, whether a sample is enough) → the trials, valid inside the block. The samples of all rows
    together take under three minutes."""
