"""Adds up the energy that a run's cards use. (no torch)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.cards_in_use import CardReading

Source = Literal["counter", "power"]


@dataclass(frozen=True, kw_only=True)
class Energy:
    """What a run used."""

    joules: float
    source: Source
    """`counter`, or `power` if a card without a counter had to be estimated."""


class EnergyMeter:
    """The energy of a run, over all its cards and all its starts.

    A card's counter gives it. For a card without one, the power between two readings is averaged.
    """

    def __init__(self, earlier: Energy | None = None) -> None:
        self.energy = earlier
        """Of all starts, up to the last reading. None: no card has told anything yet."""
        self._last: Sequence[CardReading] = ()
        self._last_at = 0.0

    def add(self, cards: Sequence[CardReading], seconds: float) -> None:
        """Add what was used since the last reading.

        Args:
            seconds: the time of this reading, on a clock that only goes forward
        """
        if len(self._last) == len(cards):
            for before, now in zip(self._last, cards, strict=True):
                self._add_card(before, now, seconds - self._last_at)
        self._last, self._last_at = cards, seconds

    def _add_card(self, before: CardReading, now: CardReading, seconds: float) -> None:
        if before.energy_joules is not None and now.energy_joules is not None:
            used = max(0.0, now.energy_joules - before.energy_joules)  # a reloaded driver starts again from 0
            self._count(used, "counter")
        elif before.power_watts is not None and now.power_watts is not None:
            self._count((before.power_watts + now.power_watts) / 2 * seconds, "power")

    def _count(self, joules: float, source: Source) -> None:
        before = self.energy or Energy(joules=0.0, source=source)
        estimated = "power" in (before.source, source)
        self.energy = Energy(joules=round(before.joules + joules, 3), source="power" if estimated else "counter")
