"""Values that a column of the source may have, by its type, and what becomes of a row that has one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TYPES = {
    "id": "bigint", "repository": "text", "path": "text", "language": "text", "content": "text",
    "quality_score": "real", "license": "text", "metadata": "jsonb", "created_at": "timestamptz",
}  # fmt: skip
GOOD = {"repository": "'r' || n", "path": "'src/' || n || '.py'", "language": "'python'", "quality_score": "90",
        "license": "'MIT'", "metadata": "'{}'", "created_at": "now()"}  # fmt: skip
"""What a good row has, as SQL."""
MADE = "create type colour as enum ('red', 'blue'); create domain key as bigint; create domain label as text;" \
       "create domain labels as label; create domain points as numeric check (value > -1)"  # fmt: skip
LONG = "repeat('x', 20000000)"
NAME = {"'x'": "", "null": "", "''": "", "repeat('x', 8192)": "", "repeat('x', 8193)": "long_name", LONG: "long_name",
        "repeat('é', 4097)": "long_name"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """A column of some type, and what becomes of a row for each of its values."""

    column: str
    type: str
    values: dict[str, str]
    """The reason why a row with this value is not used, by value in SQL. Empty if the row is used."""
    good: str = ""
    """What a good row has in this column."""
    time_zone: str = "UTC"

    def __str__(self) -> str:
        return f"{self.column} {self.type} {self.time_zone}"


def names(column: str) -> list[Case]:
    """The types that a repository, path, language or license may have, any of them."""
    found = {
        "text": NAME,
        "varchar": NAME,
        "labels": NAME,
        "char(9000)": {"'x'": "", "repeat('x', 8193)": "long_name"},
        "bytea": {r"'\x00ff'": "", "convert_to(repeat('x', 4096), 'UTF8')": "long_name", "null": "",
                  f"convert_to({LONG}, 'UTF8')": "long_name"},
        "uuid": {"gen_random_uuid()": "", "null": ""},
        "colour": {"'blue'": "", "null": ""},
        "json": {"""'"x"'""": "", "'null'": "", f"""('"' || {LONG} || '"')::json""": "long_name"},
        "jsonb": {"'[1e131071]'": "long_name", "'null'": "", f"to_jsonb({LONG})": "long_name",
                  "to_jsonb(array_fill(1e131071::numeric, '{1100}'))": "long_name"},
        "text[]": {"array['a', null, 'b']": "", "'{}'": "", f"array[{LONG}]": "long_name"},
        "numeric[]": {"'{0}'": "", "array_fill(1e131071::numeric, '{1100}')": "long_name"},
        "numeric": {"'NaN'": "", "1e131071": "long_name"},
        "bigint": {"-9223372036854775808": "", "9223372036854775807": ""},
        "timestamp": {"'infinity'": "", "'294276-12-31'": "", "'4713-01-01 BC'": ""},
        "varbit": {"B'1'": "", "repeat('1', 9000)::varbit": "long_name"},
    }  # fmt: skip
    good = {"uuid": "gen_random_uuid()", "colour": "'red'", "bytea": "convert_to(n::text, 'UTF8')",
            "json": "to_json(n)",
            "jsonb": "to_jsonb(n)",
            "text[]": "array['a', n::text]", "numeric[]": "array[n]", "varbit": "n::bit(8)::varbit",
            "timestamp": "timestamp '2020-01-01' + n * interval '1 s'"}  # fmt: skip
    plain = {"text", "varchar", "labels", "char(9000)"}
    return [
        Case(column=column, type=kind, values=values, good="" if kind in plain else good.get(kind, "n"))
        for kind, values in found.items()
    ]  # fmt: skip


ENDS = {"-9223372036854775808": "", "9223372036854775807": "", "0": "", "-1": ""}
TIMES = {
    "'infinity'": "",
    "'-infinity'": "",
    "'294276-12-31'": "",
    "'4714-11-24 BC'": "",
    "'0001-01-01'": "",
    "null": "",
}
CASES = [
    Case(column="id", type="bigint", values=ENDS),
    Case(column="id", type="key", values=ENDS),
    Case(column="id", type="smallint", values={"-32768": "", "32767": "", "0": ""}),
    Case(column="quality_score", type="real",
         values={"'NaN'": "no_score", "null": "no_score", "'Infinity'": "", "'-Infinity'": "low_score",
                 "1e-45": "low_score", "3e38": "", "69.99999": "low_score", "70": ""}),
    Case(column="quality_score", type="double precision",
         values={"1e-60": "low_score", "1e60": "", "-1e60": "low_score", "'NaN'": "no_score", "1e-320": "low_score",
                 "1.7e308": "", "'Infinity'": "", "'-Infinity'": "low_score", "69.99999999999": "low_score"}),
    Case(column="quality_score", type="numeric",
         values={"1e400": "", "-1e400": "low_score", "1e-400": "low_score", "'NaN'": "no_score", "1e131071": "",
                 "'Infinity'": "", "'-Infinity'": "low_score", "69.99999999999999999999": "low_score",
                 "1e-16383": "low_score"}),
    Case(column="quality_score", type="points", values={"1e400": "", "1e-400": "low_score", "null": "no_score"}),
    Case(column="quality_score", type="bigint",
         values={"9223372036854775807": "", "-9223372036854775808": "low_score", "70": "", "69": "low_score"}),
    Case(column="quality_score", type="smallint", values={"32767": "", "-32768": "low_score", "null": "no_score"}),
    *names("repository"),
    *names("path"),
    *names("language"),
    Case(column="license", type="text", values={"repeat('x', 65536)": "", "repeat('x', 65537)": "long_name"}),
    Case(column="metadata", type="jsonb",
         values={f"to_jsonb({LONG})": "bad_metadata", "null": "", "'[]'": "", """'{"a": 1e400}'""": "",
                 """'{"a": 1e9000}'""": "bad_metadata",
                 "jsonb_build_object('a', repeat('x', 4000000))": "bad_metadata",
                 "jsonb_build_object('a', repeat('x', 3999990))": "",
                 "to_jsonb(array_fill(1, '{3000000}'))": "bad_metadata",
                 "('[' || repeat('[', 900) || repeat(']', 900) || ']')::jsonb": "bad_metadata"}),
    Case(column="metadata", type="json",
         values={f"""('"' || {LONG} || '"')::json""": "bad_metadata", """'{"a": "\\u0000"}'""": "bad_metadata",
                 "null": "", """'{"a": 1, "a": 2}'""": "", """'"\\ud800"'""": "bad_metadata"}),
    *[Case(column="created_at", type=kind, values=values, time_zone=zone)
      for zone in ("America/New_York", "Pacific/Kiritimati")
      for kind, values in {"timestamptz": {**TIMES, "'294276-12-31'": ""}, "timestamp": TIMES,
                           "date": {**TIMES, "'5874897-12-31'": ""}}.items()],
    Case(column="content", type="varchar", values={"null": "no_content", "'x'": "too_short", LONG: "too_long"}),
    Case(column="content", type="labels", values={"null": "no_content", "''": "too_short"}),
    Case(column="content", type="char(5000)", values={"'x'": "too_short", "null": "no_content"}),
]  # fmt: skip


def create_table(table: str, types: Mapping[str, str]) -> str:
    """Return the statement that makes a source table. `types` are those that differ from TYPES."""
    return f"create table {table} ({', '.join(f'{name} {types.get(name, kind)}' for name, kind in TYPES.items())})"


def insert_row(table: str, number: int, cases: Mapping[str, Case], odd: Mapping[str, str]) -> str:
    """Return the statement that inserts a row, with its text as the parameter `content`.

    Args:
        number: the row's id, unless `odd` has another
        cases: the columns whose type differs from TYPES
        odd: values in SQL that a good row does not have
    """
    good = {"id": str(number), "content": "%(content)s", **GOOD}
    good |= {name: case.good for name, case in cases.items() if case.good}
    values = {**good, **odd}
    wanted = ", ".join(f"({value})::{cases[n].type}" if n in cases else f"({value})" for n, value in values.items())
    return f"insert into {table} ({', '.join(values)}) select {wanted} from (values ({number})) as v (n) returning id"
