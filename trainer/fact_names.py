"""Which keys of a row's metadata hold a fact that can be shown (data.metadata). (no torch)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FACTS = {
    "function": ("function", "function_name", "functionName"),
    "description": ("description", "summary"),
    "algorithm": ("algorithm", "algorithm_type", "algorithmType"),
    "data_structure": ("data_structure", "data_structures", "dataStructure", "dataStructures"),
    "time": ("time", "time_complexity", "timeComplexity"),
    "space": ("space", "space_complexity", "spaceComplexity"),
}
"""Maps a fact to the keys of `metadata` that may hold it, in output order."""

MAX_CHARACTERS = 200
"""Maximum length of a fact. Longer facts are cut."""


def fact(metadata: Mapping[str, Any], name: str) -> str:
    """Return one fact on one line. Empty unless the value is a text, a number or a list of these."""
    for key in FACTS[name]:
        value = metadata.get(key)
        values = value if isinstance(value, list | tuple) else [value]
        words = [str(v) for v in values if isinstance(v, str | int | float) and not isinstance(v, bool)]
        if text := " ".join(", ".join(words).split()):
            return text[:MAX_CHARACTERS].encode(errors="replace").decode()
    return ""


def has_facts(metadata: Mapping[str, Any]) -> bool:
    """Whether there is a fact to show."""
    return any(fact(metadata, name) for name in FACTS)
