"""From a row to its sample: the builders by name, and which of them a row gets."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from trainer.errors import UnusableInput
from trainer.recipe import Data
from trainer.run_dir import Row
from trainer.samples.instruction import build_instruction
from trainer.samples.sample import Sample


class Builder(Protocol):
    """Makes one sample of a row, or raises Rejected. The same row, settings and seed give the same sample."""

    def __call__(self, row: Row, data: Data, *, seed: int) -> Sample: ...


BUILDERS: dict[str, Builder] = {
    "instruction": build_instruction,
}


def check_builders(data: Data) -> None:
    """Raises UnusableInput when a recipe names a builder that is not there."""
    if unknown := [name for name in data.builders if name not in BUILDERS]:
        raise UnusableInput(f"data.builders: {', '.join(unknown)} is not one of {', '.join(sorted(BUILDERS))}")


def builder_of(row: Row, data: Data, *, seed: int) -> Callable[[Row], Sample]:
    """The builder of this row: drawn by the recipe's weights, the same one for every part of the row."""
    names = sorted(data.builders)
    draw = random.Random(f"{seed}:builder:{row.file_id}")
    (name,) = draw.choices(names, weights=[data.builders[name] for name in names])
    builder = BUILDERS[name]
    return lambda part: builder(part, data, seed=seed)


def halves(row: Row) -> tuple[Row, Row] | None:
    """A row's text cut at the line boundary nearest to its middle, or None where there is none.

    Both parts together are the row's text; each is a row of the same file.
    """
    middle = len(row.content) // 2
    before = row.content.rfind("\n", 0, middle) + 1
    after = row.content.find("\n", middle) + 1
    cuts = [cut for cut in (before, after) if 0 < cut < len(row.content)]
    if not cuts:
        return None
    cut = min(cuts, key=lambda cut: abs(cut - middle))
    return replace(row, content=row.content[:cut]), replace(row, content=row.content[cut:])
