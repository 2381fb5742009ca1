"""The rows of the fault suite: what is done, how often, and what one trial of each is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a trial that passed came to."""

    count: int = 1
    """How much it counts for, in the row's unit."""
    note: str = ""
    """What is worth reading beside the count: a longest time, where it was killed."""


Trial = Callable[[int], Done]
"""One trial, by its number from 0: the same number does the same, as far as the machine lets it. It raises Broken, or
any other error, where the promise was not kept."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """A row that is set up."""

    number: int
    """How many trials there are."""
    run: Trial
    names: Sequence[str] = ()
    """What the notes of the first trials begin with, where another start may list them in another order: a trial that
    passed as another one is made again."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault."""

    fault: str
    unit: str
    """What is counted."""
    passes: str
    """What has to be true of each trial."""
    prepare: Callable[[Path, bool], AbstractContextManager[Trials]]
    """(an empty folder, whether a sample is enough) → the trials, as long as the block runs. A sample of all rows
    together takes under three minutes."""
