"""Shows texts that nobody checked: reasons, paths and names may hold what a terminal would obey."""

from __future__ import annotations

import unicodedata


def visible(text: str) -> str:
    """Return a text in which control and bidirectional characters are written out, such as \\x1b and \\u202e.

    Line breaks and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(letter if _is_harmless(letter) else _written_out(letter) for letter in text)


def on_one_line(text: str) -> str:
    """Return the same on one line."""
    return " ".join(visible(text).split())


def _is_harmless(letter: str) -> bool:
    return letter.isprintable() or letter in "\n\t" or unicodedata.category(letter) == "Zs"


def _written_out(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
