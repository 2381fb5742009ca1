"""What a sweep varies: `--set learning_rate=1e-4,2e-4` lists values, `--set learning_rate=1e-5..1e-3` gives a range."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import UsageError
from service.settings.overrides import full_key, parsed
from trainer.errors import RecipeError
from trainer.recipe import Recipe
from trainer.recipe_file import with_overrides

FIXED = ("name", "stream", "base.model", "base.revision")
"""Values that all trials share: they are trained on the same rows, from the same base."""

Params = dict[str, Any]
"""A trial's values by full key."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One value that is varied."""

    key: str
    """`section.name`"""
    values: tuple[Any, ...] = ()
    """The listed values. Empty for a range."""
    low: float = 0.0
    high: float = 0.0
    is_whole: bool = False
    """Whether a range has whole numbers only."""

    @property
    def is_range(self) -> bool:
        return not self.values


def dimensions(recipe: Recipe, pairs: Sequence[str]) -> list[Dimension]:
    """Read the `--set` options.

    Raises:
        UsageError: an option is malformed, a key cannot be varied, or a value is not allowed.
    """
    found = [_dimension(recipe, pair) for pair in pairs]
    if not found:
        raise UsageError("nothing to vary. Give --set KEY=VALUE,VALUE,… at least once")
    keys = [one.key for one in found]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise UsageError(f"--set: {', '.join(twice)} is given more than once. List all values in one option")
    for one in found:
        for value in one.values or (one.low, one.high):
            with_params(recipe, {one.key: value})
    return found


def with_params(recipe: Recipe, params: Params) -> Recipe:
    """Return the recipe of a trial.

    Raises:
        UsageError: a value is not allowed.
    """
    try:
        return with_overrides(recipe, params)
    except RecipeError as error:
        raise UsageError(f"--set: {'; '.join(error.problems)}") from error


def grid(found: Sequence[Dimension]) -> Iterator[Params]:
    """Yield every combination of listed values, the last one varying fastest."""
    for values in itertools.product(*(one.values for one in found)):
        yield dict(zip((one.key for one in found), values, strict=True))


def size(found: Sequence[Dimension]) -> float:
    """Return the number of combinations. Infinite if there is a range."""
    return math.inf if any(one.is_range for one in found) else math.prod(len(one.values) for one in found)


def _dimension(recipe: Recipe, pair: str) -> Dimension:
    name, separator, text = pair.partition("=")
    if not separator or not text.strip():
        raise UsageError(f"--set: {pair!r} is not KEY=VALUE,VALUE,…")
    key = full_key(recipe, name.strip())
    if key in FIXED:
        raise UsageError(f"--set: {key} cannot be varied, because all trials share it. Start another sweep")
    low, dots, high = text.partition("..")
    if dots:
        return _range(recipe, key, low, high)
    values = tuple(parsed(value) for value in _listed(text))
    if any(values.count(value) > 1 for value in values):
        raise UsageError(f"--set: {key} lists a value twice: {text}")
    return Dimension(key=key, values=tuple(_number(value) for value in values))


def _listed(text: str) -> list[str]:
    """Split at commas outside brackets, so that a value may be a list."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _range(recipe: Recipe, key: str, low: str, high: str) -> Dimension:
    ends = [_number(parsed(text)) for text in (low, high)]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends) or not 0 < ends[0] < ends[1]:
        raise UsageError(f"--set: {key}={low}..{high} is not a range LOW..HIGH of numbers above 0")
    return Dimension(key=key, low=ends[0], high=ends[1], is_whole=not _takes_fractions(recipe, key, *ends))


def _takes_fractions(recipe: Recipe, key: str, low: float, high: float) -> bool:
    """Whether a value may lie between whole numbers. The recipe's own value does not tell: it may be null."""
    try:
        with_params(recipe, {key: low + (high - low) / math.e})
    except UsageError:
        return False
    return True


def _number(value: Any) -> Any:
    """Return a number that YAML 1.1 reads as text (1e-4), else the value."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
