"""Where the driver and the ranks of a run leave word for each other. (no torch)

    driver ──give(Order)──▶ Desk, an actor on ◀──hear(Word)── rank 0, rank 1, …    each asks several times a second
           ◀──take()─────── the driver's machine ──Order──▶

The desk has the run's name in the cluster, and Ray gives a name to one actor only. So there is one driver of a run, on
whatever machine. The desk ends with its driver. Ranks that do not hear from it for a while end, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Word:
    """What a rank says."""

    attempt: int
    """Number of the driver's attempt that the rank belongs to."""
    rank: int
    node: str
    """Ray's id of the machine."""
    meeting: str
    """HOST:PORT where the ranks could meet, if this one is the first."""
    number: int = 0
    """Counts the rank's words. A word whose answer was lost is said again, and the desk takes it once."""
    lines: tuple[str, ...] = ()
    """What the process has written since the last word."""
    events: str = ""
    """New lines of events.jsonl, if the run has no shared folder."""
    code: int | None = None
    """Exit code of the process, if it has ended. Negative: a signal."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a rank is told."""

    kind: Literal["wait", "go", "stop", "kill"]
    """wait: do not start yet. go: train. stop: save a checkpoint and end. kill: end at once."""
    attempt: int
    meeting: str = ""
    """HOST:PORT where the ranks meet."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the driver that the ranks get, too. Sent with `go`."""


class Desk:
    """The actor."""

    def __init__(self) -> None:
        self._words: list[Word] = []
        self._order = Order(kind="wait", attempt=0)
        self._taken: dict[tuple[int, int], int] = {}
        """Number of the last word of each rank, by attempt and rank."""

    def hear(self, word: Word) -> Order:
        """Take a rank's word, and return its order. A rank of an earlier attempt must end."""
        if word.number > self._taken.get((word.attempt, word.rank), -1):
            self._taken[word.attempt, word.rank] = word.number
            self._words.append(word)
        return self._order if word.attempt == self._order.attempt else replace(self._order, kind="kill", environment={})

    def take(self) -> list[Word]:
        """Return the words since the last call."""
        words, self._words = self._words, []
        return words

    def give(self, order: Order) -> None:
        """Set the order of all ranks."""
        self._order = order
