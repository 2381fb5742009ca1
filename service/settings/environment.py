"""What the environment and `.env` set, and what has to be known before the settings are read."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from service.errors import SettingsError, UsageError
from service.settings.variables import VARIABLES

PROJECT_RECIPES = Path(__file__).resolve().parents[2] / "recipes"
"""The recipes shipped with the project."""
TRAINING, TRAINING_RECIPE = "training.json", "recipe.yaml"
"""Files of a folder of `codelupe train`: what it was started with, and its recipe."""


def read_environment(environment: Mapping[str, str], env_file: Path | None = None) -> dict[str, str]:
    """Return the variables that are set. The environment wins over the file.

    Raises:
        SettingsError: the file cannot be read.
    """
    from_file = _from_file(env_file) if env_file is not None and env_file.is_file() else {}
    merged = {**from_file, **{name: environment[name] for name in environment if is_set(environment[name])}}
    return {name: value.strip() for name, value in merged.items() if value is not None and is_set(value)}


def _from_file(env_file: Path) -> dict[str, str | None]:
    """Return what the file sets. It may begin with a byte order mark, as Windows' editors write it.

    Raises:
        SettingsError: the file cannot be read.
    """
    try:
        text = env_file.read_bytes().decode("utf-8-sig")
        if "\0" in text:
            raise ValueError("it has NUL characters, as UTF-16 text has")
    except (OSError, ValueError) as error:
        raise SettingsError([f"{env_file} cannot be read ({error}). Save it as UTF-8 text"]) from error
    return dotenv_values(stream=io.StringIO(text), interpolate=False)


def is_utf8(value: str) -> bool:
    """Whether Python could decode all bytes of the value. It keeps others as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def is_set(value: str | None) -> bool:
    """Whether a value counts: an empty one does not, nor does a placeholder such as `your_key_here`."""
    return bool(value and value.strip()) and not re.fullmatch(r"your_\w*_here", (value or "").strip())


def chosen_log_format(*, environment: Mapping[str, str] = os.environ, env_file: Path | None = Path(".env")) -> str:
    """Return LOG_FORMAT before the other settings are validated. Returns the default for an invalid value."""
    variable = VARIABLES["LOG_FORMAT"]
    try:
        chosen: str = variable.parse(read_environment(environment, env_file).get("LOG_FORMAT", variable.default))
    except ValueError:  # load_settings reports it
        return str(variable.default)
    return chosen


def chosen_recipe(
    flag: Path | None, *, environment: Mapping[str, str] = os.environ, env_file: Path | None = Path(".env")
) -> Path:
    """Return the recipe file: the flag, else CODELUPE_RECIPE, else that of a training in CODELUPE_HOME.

    A name without suffix is one of the project's recipes.

    Raises:
        UsageError: the project has no recipe of this name.
    """
    given = read_environment(environment, env_file)
    if flag is None and "CODELUPE_RECIPE" not in given and "CODELUPE_HOME" in given:
        with contextlib.suppress(RuntimeError, OSError):  # not a usable name, which `load_settings` reports
            home = Path(given["CODELUPE_HOME"]).expanduser()
            if (home / TRAINING).is_file() and (home / TRAINING_RECIPE).is_file():
                return home / TRAINING_RECIPE
    named = flag or Path(given.get("CODELUPE_RECIPE", VARIABLES["CODELUPE_RECIPE"].default))
    if named.suffix or named.is_file():
        return named
    if not (found := PROJECT_RECIPES / f"{named}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in PROJECT_RECIPES.glob("*.yaml")))
        raise UsageError(f"there is no recipe {named}. Name a file, or one of {known}")
    return found
