"""Formats a file's metadata as a comment block before its prompt.

    # @function two_sum
    # @algorithm hash map
    # @time O(n)

The facts come from the row's `metadata`. The block has no loss. data.metadata enables it.
"""

from __future__ import annotations

from trainer.fact_names import FACTS, fact
from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.syntax import language_name

TITLE = ".comments metadata"
"""First line of the block before a conversation."""
HASH, DASHES, SEMICOLONS, PERCENT = "#", "--", ";", "%"
COMMENTS = {
    **dict.fromkeys(("python", "ruby", "shell", "bash", "perl", "r", "yaml", "toml", "makefile", "dockerfile"), HASH),
    **dict.fromkeys(("elixir", "julia", "nim", "powershell", "cmake", "tcl"), HASH),
    **dict.fromkeys(("starlark", "terraform", "hcl", "crystal", "gdscript", "graphql", "meson", "awk", "nix"), HASH),
    **dict.fromkeys(("raku", "coffeescript", "puppet", "fish", "tcsh", "just", "cython", "snakemake", "nushell"), HASH),
    **dict.fromkeys(("sql", "lua", "haskell", "ada", "elm", "vhdl", "plpgsql", "plsql", "tsql", "purescript"), DASHES),
    **dict.fromkeys(("lisp", "elisp", "clojure", "scheme", "racket", "assembly", "fennel", "hy"), SEMICOLONS),
    **dict.fromkeys(("erlang", "matlab", "tex", "latex", "prolog"), PERCENT),
}
"""Comment prefix by language. The default is `//`."""


def fact_block(row: Row, data: Data) -> str:
    """Return the block with a final newline, or an empty text if it is disabled or there are no facts."""
    if not data.metadata:
        return ""
    comment = _comment(row.language)
    facts = ((name, fact(row.metadata, name)) for name in FACTS)
    return "".join(f"{comment} @{name} {value}\n" for name, value in facts if value)


def titled_block(row: Row, data: Data) -> str:
    """Return the block before a conversation: a title, the facts and a blank line. Empty without facts."""
    facts = fact_block(row, data)
    return f"{_comment(row.language)} {TITLE}\n{facts}\n" if facts else ""


def _comment(language: str) -> str:
    """Return the prefix of a comment. A conversation without a language is `text`."""
    return HASH if language == "text" else COMMENTS.get(language_name(language), "//")
