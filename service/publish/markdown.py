"""Writes Markdown from texts that nobody checked: names of files, languages and licences from the source table."""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST_TEXT = 300
SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
"""What means something inside a line. A text never begins a line."""


def plain(text: object, *, longest: int | None = LONGEST_TEXT) -> str:
    """Return a text on one line in which Markdown and HTML mean nothing.

    Args:
        longest: a longer text is cut. None: no text is
    """
    line = "".join(letter if letter.isprintable() else " " for letter in str(text))
    line = " ".join(line.encode("utf-8", "replace").decode().split())
    if longest is not None and len(line) > longest:
        line = f"{line[:longest]}…"
    return SPECIAL.sub(r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, longest: int | None = LONGEST_TEXT) -> str:
    """Return a table. None gives an empty cell. `longest` is that of each cell."""
    cells = ([("" if v is None else plain(v, longest=longest)) for v in row] for row in rows)
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def block(text: str, language: str) -> str:
    """Return a fenced block. Its fence is longer than any fence in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
