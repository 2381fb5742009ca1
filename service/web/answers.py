"""The recipe's own prompts, answered by the base, the previous adapter and the current one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from service.settings.home import Home
from service.web.files import read_part

MOST_BYTES = 2_000_000
"""A longer file is not shown."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prompt of the recipe with three answers. None: not kept."""

    prompt: str
    base: str | None
    previous: str | None
    current: str | None


def compared_answers(home: Home, *, current: int | None, previous: int | None) -> list[Answer]:
    """Return each prompt of the current version's run with three answers. An answer that is not kept is None.

    Args:
        current, previous: versions, which are the ids of their runs
    """
    now = _answers(home, current)
    before = {one["prompt"]: one["candidate"] for one in _answers(home, previous)}
    return [
        Answer(prompt=one["prompt"], base=one["base"], previous=before.get(one["prompt"]), current=one["candidate"])
        for one in now
    ]


def _answers(home: Home, version: int | None) -> list[dict[str, str]]:
    """The answers of a run. Empty if it has none, or if the file cannot be read."""
    if version is None:
        return []
    try:
        data, size = read_part(home.run(version).answers, 0, MOST_BYTES)
        if size > MOST_BYTES:
            return []
        found: Any = json.loads(data)["prompts"]
        return [{name: str(one[name]) for name in ("prompt", "candidate", "base")} for one in found]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
