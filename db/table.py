"""The source table's own names: which table or view, its columns, and which rows may be trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from psycopg2 import extensions, sql

from db.columns import ColumnType, expressions, type_problem
from db.errors import Misconfigured
from db.statements import QUERIES

CHANNEL = "codelupe_files"
"""The channel on which the database notifies listeners of new files, and of requests for a run."""
NEEDED = ("id", "content", "language", "quality_score")
OPTIONAL = {
    "repository": "text",
    "path": "text",
    "license": "text",
    "metadata": "jsonb",
    "created_at": "timestamptz",
    "updated_at": "text",
    "phase": "text",
}
"""Columns that are used where they exist, with the type of the null that stands for them elsewhere."""

_NAME = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^",=]+?))\s*')


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table or view of code files. Names are taken as written: case counts, quotes are not needed."""

    table: str = "code_files"
    """May have a schema before a dot; a part that holds a dot itself is put in double quotes."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The table's own names of columns, by ours; a column that is not listed has our name."""
    absent: frozenset[str] | None = None
    """Optional columns that the table does not have; None until `check_source` has looked."""
    with_phase: bool = False
    """Whether the column `phase` is read. Without phases it need not be there, nor be readable."""
    has_xmin: bool = False
    """Whether rows have Postgres' own `xmin`, which changes with every write. A view's rows have none."""
    types: Mapping[str, ColumnType] = field(default_factory=dict)
    """The types of the table's columns, by ours; those of `code_files` until `check_source` has looked."""

    @classmethod
    def parse(cls, table: str, columns: str) -> Source:
        """Read SOURCE_TABLE and SOURCE_COLUMNS (`content=body,quality_score=score`).

        Raises:
            ValueError: with every problem of both.
        """
        problems = []
        if not _parts(table):
            problems.append(f"SOURCE_TABLE: {table!r} is not a table or schema.table")
        names: dict[str, str] = {}
        for pair in _split(columns):
            match = re.fullmatch(rf"\s*(\w+)\s*={_NAME.pattern}", pair)
            if match is None:
                problems.append(f"SOURCE_COLUMNS: {pair.strip()!r} is not of the form ours=theirs")
                continue
            ours, quoted, plain = match.groups()
            if ours not in (*NEEDED, *OPTIONAL):
                known = ", ".join((*NEEDED, *OPTIONAL))
                problems.append(f"SOURCE_COLUMNS: {ours!r} is not one of {known}")
            elif ours in names:
                problems.append(f"SOURCE_COLUMNS: {ours} is given twice")
            names[ours] = quoted.replace('""', '"') if quoted else plain
        if problems:
            raise ValueError("; ".join(problems))
        return cls(table=table, columns=names)

    @property
    def name(self) -> str:
        """The source in one line: what a stream is bound to. `updated_at` is no part of it: it only saves work."""
        names = sorted(self.columns.items())
        renamed = ",".join(f"{ours}={theirs}" for ours, theirs in names if theirs != ours != "updated_at")
        return f"{self.table}({renamed})" if renamed else self.table

    def column(self, ours: str) -> str:
        """The table's own name of a column."""
        return self.columns.get(ours, ours)

    def identifier(self) -> sql.Identifier:
        """The table's quoted name."""
        parts = _parts(self.table)
        if not parts:
            raise Misconfigured(f"SOURCE_TABLE: {self.table!r} is not a table or schema.table")
        return sql.Identifier(*parts)

    def _escaped(self) -> sql.Identifier:
        """The table's quoted name for `execute` with parameters, where a percent sign is doubled."""
        return sql.Identifier(*(part.replace("%", "%%") for part in self.identifier().strings))

    def expression(self, ours: str) -> sql.Composable:
        """A column of the table `s`, or a null where the table has none of that name."""
        if (self.absent and ours in self.absent) or (ours == "phase" and not self.with_phase):
            return sql.SQL("null::" + OPTIONAL[ours])
        return sql.Identifier("s", self.column(ours).replace("%", "%%"))

    def mark(self) -> sql.Composable:
        """A number that changes when a row may have changed, at the cost of a look at the row, not at its text.

        It is made of the length of the text and of xmin, or where there is none of `updated_at`. Without both, it is
        the length alone.
        """
        content, changed = self.expression("content"), self.expression("updated_at")
        if self.has_xmin:
            return sql.SQL("((s.xmin::text::bigint << 32) | octet_length({}))").format(content)
        if self.absent is None or "updated_at" in self.absent:
            return sql.SQL("octet_length({})::bigint").format(content)
        return sql.SQL("hashtextextended({}::text, octet_length({}))").format(changed, content)

    def statement(self, name: str) -> sql.Composed:
        """A statement of queries/ with this source's names; execute it with a mapping, if an empty one."""
        columns = {ours: self.expression(ours) for ours in (*NEEDED, *OPTIONAL)}
        values = expressions(columns, self.types)
        ineligible = sql.SQL(QUERIES["ineligible_reason"]).format(**values)
        settled = sql.SQL(QUERIES["text_bytes"]).format(value=sql.Identifier("s", "content"))
        return sql.SQL(QUERIES[name]).format(
            table=self._escaped(), ineligible=ineligible, mark=self.mark(), settled_bytes=settled, **values
        )


@dataclass(frozen=True, kw_only=True)
class Eligibility:
    """Which rows may be trained on."""

    quality_threshold: float
    """The least quality score; a `real` score is compared in single precision, as it is stored."""
    min_chars: int
    max_chars: int
    """Both lengths are allowed."""
    phases: tuple[str, ...] = ()
    """The phases of a curriculum. Empty: a row's phase does not matter."""

    def parameters(self) -> dict[str, Any]:
        """Return what the fragment `ineligible_reason` needs."""
        return {**vars(self), "phases": list(self.phases) or None}


def resolved(cursor: extensions.cursor, source: Source) -> Source:
    """The source with its absent columns known; looks at the catalogue unless that was done before.

    Raises:
        Misconfigured: the table or a needed column is missing or has a wrong type; names all of them.
    """
    if source.absent is not None:
        return source
    table = {"table": source.identifier().as_string(cursor)}
    cursor.execute(QUERIES["source_columns"], table)
    found = {name: ColumnType(type_name, category) for name, type_name, category in cursor.fetchall()}
    if not found:
        raise Misconfigured(_missing_table(cursor, source))
    problems = list(_column_problems(source, found))
    cursor.execute(QUERIES["source_has_xmin"], table)
    has_xmin = cursor.fetchone() == (True,)
    if problems:
        listed = ", ".join(sorted(found))
        id_is_wrong = any("(for id)" in problem for problem in problems)
        raise Misconfigured(
            f"the source table {source.table} cannot be used: {'; '.join(problems)}. "
            f"It has the columns {listed}; correct SOURCE_COLUMNS (ours=theirs)"
            + (_new_id(source, table["table"], set(found), is_view=not has_xmin) if id_is_wrong else "")
        )
    theirs = {ours: source.column(ours) for ours in (*NEEDED, *OPTIONAL)}
    return replace(
        source,
        absent=frozenset(ours for ours, name in theirs.items() if name not in found),
        has_xmin=has_xmin,
        types={ours: found[name] for ours, name in theirs.items() if name in found},
    )


def _column_problems(source: Source, found: Mapping[str, ColumnType]) -> list[str]:
    problems = []
    for ours in (*NEEDED, *OPTIONAL):
        theirs = source.column(ours)
        if ours == "phase" and not source.with_phase:
            continue
        if theirs in found:
            problems.append(type_problem(ours, theirs, found[theirs]))
        elif ours in NEEDED or ours in source.columns:
            problems.append(f"the column {theirs} (for {ours}) is missing")
    return [problem for problem in problems if problem is not None]


def _new_id(source: Source, table: str, taken: set[str], *, is_view: bool) -> str:
    """What to do about a table whose key is a UUID or a text: how it gets a number beside it."""
    name = next(name for name in ("codelupe_id", "codelupe_row_id", "codelupe_number") if name not in taken)
    others = (f"{ours}={theirs}" for ours, theirs in source.columns.items() if ours != "id")
    columns = ",".join([f"id={name}", *others])
    where = "the table below the view" if is_view else table
    below = f", the view's definition gets the column {name}" if is_view else ""
    return (
        f". If it has no number for each row, its owner adds one: ALTER TABLE {where} ADD COLUMN {name} bigint "
        f"GENERATED ALWAYS AS IDENTITY; CREATE UNIQUE INDEX ON {where} ({name}){below}; "
        f"then SOURCE_COLUMNS is {columns}"
    )


def _missing_table(cursor: extensions.cursor, source: Source) -> str:
    cursor.execute(QUERIES["source_similar"], {"name": _parts(source.table)[-1]})
    similar = ", ".join(row[0] for row in cursor.fetchall())
    hint = f" (names are case-sensitive; there is {similar})" if similar else ""
    return f"the source table {source.table} does not exist{hint}; correct SOURCE_TABLE or create it"


def _parts(name: str) -> list[str]:
    """`schema.table` in its parts; empty where it is neither that nor a table."""
    if not re.fullmatch(r'(?:"(?:[^"]|"")+"|[^".]+)(?:\.(?:"(?:[^"]|"")+"|[^".]+))?', name.strip()):
        return []
    pieces = re.findall(r'"((?:[^"]|"")+)"|([^".]+)', name.strip())
    return [quoted.replace('""', '"') if quoted else plain for quoted, plain in pieces]


def _split(columns: str) -> list[str]:
    """The pairs of a list, split at commas outside double quotes."""
    return [pair for pair in re.findall(r'(?:"(?:[^"]|"")*"|[^,"])+', columns) if pair.strip()]
