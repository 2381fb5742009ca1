"""What the producer knows about a file, as a block of comments that may stand before its prompt.

    # @function two_sum
    # @algorithm hash map
    # @time O(n)

The facts come from the row's `metadata`; the block is never learned. data.metadata turns it on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.syntax import language_name

FACTS = {
    "function": ("function", "function_name"),
    "description": ("description", "summary"),
    "algorithm": ("algorithm",),
    "data_structure": ("data_structure", "data_structures"),
    "time": ("time", "time_complexity"),
    "space": ("space", "space_complexity"),
}
"""Fact → the keys of `metadata` that may hold it; in the order in which they are shown."""

MAX_CHARACTERS = 200
"""Of one fact; a longer one is cut."""

HASH, DASHES, SEMICOLONS, PERCENT = "#", "--", ";", "%"
COMMENTS = {
    **dict.fromkeys(("python", "ruby", "shell", "bash", "perl", "r", "yaml", "toml", "makefile", "dockerfile"), HASH),
    **dict.fromkeys(("elixir", "julia", "nim", "powershell", "cmake", "tcl"), HASH),
    **dict.fromkeys(("sql", "lua", "haskell", "ada", "elm", "vhdl"), DASHES),
    **dict.fromkeys(("lisp", "clojure", "scheme", "racket", "assembly"), SEMICOLONS),
    **dict.fromkeys(("erlang", "matlab", "tex", "latex", "prolog"), PERCENT),
}
"""What begins a comment, by language; `//` in any other."""


def fact_block(row: Row, data: Data) -> str:
    """The block with a newline at its end; nothing where it is turned off or nothing is known."""
    if not data.metadata:
        return ""
    comment = COMMENTS.get(language_name(row.language), "//")
    facts = ((fact, _value(row.metadata, keys)) for fact, keys in FACTS.items())
    return "".join(f"{comment} @{fact} {value}\n" for fact, value in facts if value)


def _value(metadata: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """One fact on one line; nothing for a value that is no text, number or list of them."""
    for key in keys:
        value = metadata.get(key)
        values = value if isinstance(value, list | tuple) else [value]
        words = [str(v) for v in values if isinstance(v, str | int | float) and not isinstance(v, bool)]
        if text := " ".join(", ".join(words).split()):
            return text[:MAX_CHARACTERS].encode(errors="replace").decode()
    return ""
