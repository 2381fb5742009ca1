"""Makes unique code that hygiene accepts, from a seed."""

from __future__ import annotations

import random

VERBS = ("read", "write", "merge", "split", "count", "sort", "find", "drop", "parse", "join", "pack", "scan", "fold")
NOUNS = ("row", "page", "node", "edge", "token", "frame", "queue", "table", "index", "block", "field", "stream", "leaf")


def code(seed: int, functions: int = 8) -> str:
    """Return a Python module. Modules with different seeds share few 5-grams of tokens."""
    chance = random.Random(seed)

    def name() -> str:
        return f"{chance.choice(VERBS)}_{chance.choice(NOUNS)}_{chance.randrange(1000)}"

    parts = []
    for _ in range(functions):
        one, two, three = name(), name(), name()
        parts.append(
            f"def {one}({two}, {three}={chance.randrange(10**6)}):\n"
            f"    if {two} {chance.choice('<>')} {three}:\n"
            f"        return {name()}({three} {chance.choice('+-*/')} {chance.randrange(10**6)})\n"
            f"    return [{name()}({two}) for {two} in {three}]\n"
        )
    return "\n".join(parts)


def edited(text: str, seed: int, lines: int = 1) -> str:
    """Return the text with a few new lines, doubled blank lines and other line ends."""
    chance = random.Random(seed)
    found = text.split("\n")
    for _ in range(lines):
        found.insert(chance.randrange(len(found)), f"# {chance.choice(VERBS)} the {chance.choice(NOUNS)}")
    return "\r\n".join(found).replace("\r\n\r\n", "\r\n\r\n\r\n")
