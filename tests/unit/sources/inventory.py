"""An inventory of parts: what is there, and what runs out. Grüße, 部品!"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

from demo.units import Weight, kilogram

LIMIT = 5
ONE = kilogram(1)


# How a part is counted.
@dataclass(frozen=True)
class Part:
    """One part."""

    name: str
    weight: Weight = ONE

    def label(self, width=10):
        text = self.name[:width]
        return f"{text:<{width}}|"


@functools.cache
def load(path):
    """Parts by name."""
    with path.open() as file:
        raw = json.load(file)
    parts = {}
    for name, grams in raw.items():
        parts[name] = Part(name, grams)
    return parts


def running_out(counts, limit=LIMIT):
    found = []
    for name, count in counts.items():
        if count < limit:
            missing = limit - count
            found.append((name, missing))
    return sorted(found, key=lambda item: item[1])


def _hidden(value):
    return value


async def watch(source):
    total = 0
    async for change in source:
        total += change
        yield total


if LIMIT > 3:

    def conditional(first, second):
        return first + second
