"""The types that the source's columns may have, and expressions over them that no value of a row can make fail.

A cast that fails would end the whole statement, and one row would then stop all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from psycopg2 import sql

from db.rows import MAX_METADATA_BYTES
from db.statements import QUERIES

MAX_NAME_BYTES = {"repository": 8192, "path": 8192, "language": 8192, "license": 65_536, "phase": 8192}
"""A longer value is not read. Some producers keep the text of a license in its column, so that limit is higher."""


class ColumnType(NamedTuple):
    """The type of a column. A domain counts as the type below it."""

    name: str
    """As in pg_type: int8, not bigint."""
    category: str
    """One letter, as in pg_type: S for texts, A for arrays."""


OURS = {
    "id": ColumnType("int8", "N"),
    "content": ColumnType("text", "S"),
    "language": ColumnType("text", "S"),
    "quality_score": ColumnType("float4", "N"),
    "repository": ColumnType("text", "S"),
    "path": ColumnType("text", "S"),
    "license": ColumnType("text", "S"),
    "metadata": ColumnType("jsonb", "U"),
    "created_at": ColumnType("timestamptz", "D"),
    "updated_at": ColumnType("timestamptz", "D"),
    "phase": ColumnType("text", "S"),
}
"""The types of `code_files`."""

_INTEGERS = ("int2", "int4", "int8")
_ALLOWED = {
    "id": (_INTEGERS, "an integer type"),
    "quality_score": ((*_INTEGERS, "float4", "float8", "numeric"), "a number"),
    "metadata": (("jsonb", "json"), "jsonb or json"),
    "created_at": (("timestamptz", "timestamp", "date"), "a time"),
}
"""The types that a column may have, and what a message calls them. Its category does not tell: money is N too."""


def type_problem(ours: str, theirs: str, found: ColumnType) -> str | None:
    """Return why a column cannot be used, or None. The columns that are not listed may have any type."""
    if ours == "content":
        good, wanted = found.category == "S", "text"
    elif ours in _ALLOWED:
        names, wanted = _ALLOWED[ours]
        good = found.name in names
    else:
        return None
    return None if good else f"the column {theirs} (for {ours}) must be {wanted}, not {found.name}"


def expressions(columns: Mapping[str, sql.Composable], types: Mapping[str, ColumnType]) -> dict[str, sql.Composable]:
    """Return what statements may use in braces.

    Args:
        columns: each column as it is written in a statement, by our name
        types: the types of columns that differ from `OURS`
    """
    kinds = {**OURS, **types}
    found = dict(columns)
    found["content"] = _text(columns["content"], kinds["content"])
    found["content_bytes"] = _fragment("text_bytes", value=columns["content"])
    for ours, limit in MAX_NAME_BYTES.items():
        value, kind = columns[ours], kinds[ours]
        too_long = _fragment(_size_check(kind), value=value, limit=sql.Literal(limit))
        as_bytes = _fragment("text_bytes", value=value)
        found[f"{ours}_bytes"] = _fragment("name_bytes", value=value, too_long=too_long, bytes=as_bytes)
        indexed = kind.name in ("text", "varchar")  # an index on the column serves a comparison with it
        found[f"{ours}_text"] = (
            _text(value, kind) if indexed else _fragment("name_text", value=value, too_long=too_long)
        )
    metadata = columns["metadata"]
    found["metadata_bytes"] = _fragment(
        f"metadata_bytes_{kinds['metadata'].name}",
        value=metadata,
        limit=sql.Literal(MAX_METADATA_BYTES),
        bytes=_fragment("text_bytes", value=metadata),
    )
    score = kinds["quality_score"].name
    exact = "float8" if score in _INTEGERS else score
    found["score"] = _fragment("score_integer" if score in _INTEGERS else "score_own", value=columns["quality_score"])
    found["score_threshold"] = _fragment(f"score_threshold_{exact}")
    found["created"] = _fragment("created", value=columns["created_at"])
    return found


def _size_check(kind: ColumnType) -> str:
    """The name of the fragment that tells whether a value of this type is too long."""
    if kind.category == "S":
        return "too_long_text"
    if kind.category == "A":
        return "too_long_array"
    return {"bytea": "too_long_bytea", "jsonb": "too_long_jsonb"}.get(kind.name, "too_long_other")


def _text(value: sql.Composable, kind: ColumnType) -> sql.Composable:
    """A text without the blanks that pad a `char(n)`. `octet_length` counts them, `char_length` does not."""
    return value if kind.name == "text" else sql.SQL("{}::text").format(value)


def _fragment(name: str, **values: sql.Composable) -> sql.Composed:
    return sql.SQL(QUERIES[name]).format(**values)
