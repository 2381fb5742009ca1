"""Changes to a recipe from the command line: `--set learning_rate=1e-4`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from service.errors import UsageError
from trainer.errors import RecipeError
from trainer.recipe import Recipe
from trainer.recipe_file import recipe_dict, with_overrides


def overridden(recipe: Recipe, pairs: Iterable[str]) -> Recipe:
    """Return the recipe with `KEY=VALUE` pairs applied. A key is `section.name`, or a name that one section has.

    Raises:
        UsageError: a pair is malformed, a key is unknown, or a value is not allowed.
    """
    values = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise UsageError(f"--set: {pair!r} is not KEY=VALUE")
        values[full_key(recipe, key.strip())] = parsed(text)
    try:
        return with_overrides(recipe, values)
    except RecipeError as error:
        raise UsageError(f"--set: {'; '.join(error.problems)}") from error


def full_key(recipe: Recipe, key: str) -> str:
    """Return `section.name` for a key. A name that `training` and other sections have is that of `training`.

    Raises:
        UsageError: no value of a recipe has this name, or several sections have it.
    """
    known = _keys(recipe)
    if key in known:
        return key
    found = [name for name in known if name.rpartition(".")[2] == key]
    if len(found) == 1:
        return found[0]
    if f"training.{key}" in found:
        return f"training.{key}"
    if found:
        raise UsageError(f"--set: several sections have {key}. Use one of {', '.join(found)}")
    raise UsageError(f"--set: a recipe has no value {key!r}. Its values: {', '.join(known)}")


def parsed(text: str) -> Any:
    """Read a value as a recipe's YAML would."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set: {text!r} is not a value ({' '.join(str(error).split())[:200]})") from error


def _keys(recipe: Recipe) -> Sequence[str]:
    found = []
    for section, values in recipe_dict(recipe).items():
        found += [f"{section}.{name}" for name in values] if isinstance(values, dict) else [section]
    return found
