"""Finds misspelled names of settings in `.env` and in the environment. A misspelled setting would have no effect."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from service.settings.variables import FOR_COMPOSE, VARIABLES

KNOWN = (*VARIABLES, *FOR_COMPOSE)
NEAR_IN_ENVIRONMENT, NEAR_IN_FILE, NEAREST = 0.87, 0.8, 0.6
"""How similar a name is to one of ours (0 to 1): to be that one misspelled, and to be named as the nearest.
SANDBOX_SECRET, METRICS_PATH and the like are other programs' variables."""
LEAST_CHARS = 6
"""Shorter names, such as MODE, are other programs' own."""


def unknown_in_file(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the problems and the warnings about the names of a file, which is for our settings."""
    problems, warnings = [], []
    for name in names:
        if name in KNOWN:
            continue
        if meant := misspelled(name, NEAR_IN_FILE):
            problems.append(f"{name}: there is no such setting. Did you mean {meant}?")
        else:
            nearest = _nearest(name, NEAREST)
            warnings.append(
                f"{name} is not a setting and has no effect" + (f". The nearest is {nearest}" if nearest else "")
            )
    return problems, warnings


def unknown_in_environment(names: Iterable[str]) -> list[str]:
    """Return warnings about near misses of our names. All other names belong to other programs."""
    found = ((name, misspelled(name, NEAR_IN_ENVIRONMENT)) for name in names if name not in KNOWN)
    return [f"{name} has no effect. Did you mean {meant}?" for name, meant in found if meant]


def misspelled(name: str, near: float) -> str | None:
    """Return which of our names is meant, or None.

    A name that holds one of ours and more words, such as TEST_DATABASE_URL, is meant as it is.
    """
    plain = re.sub(r"[\W_]+", "_", name.upper()).strip("_")
    short = plain.removeprefix("CODELUPE_")
    if plain in KNOWN or short in KNOWN:
        return plain if plain in KNOWN else short
    if len(plain) < LEAST_CHARS or any(re.search(f"(?:^|_){ours}(?:_|$)", plain) for ours in KNOWN):
        return None
    return _nearest(plain, near) or (_nearest(short, near) if short != plain else None)


def _nearest(name: str, cutoff: float) -> str | None:
    return next(iter(difflib.get_close_matches(name.upper(), KNOWN, 1, cutoff)), None)
