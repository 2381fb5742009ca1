"""No value in a column of one row stops the other rows, whatever the column's type in the source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from modules import code
from psycopg2 import sql
from world import ADAPTER, ELIGIBLE, Outcome, execute_outside, in_database, look_around

from db import chunks, runs, settling, streams
from db import lease as leases
from db.audit import audit
from db.claim import claim
from db.errors import Misconfigured
from db.lease import Lease
from db.pool import Pool
from db.replay import earlier_trained
from db.revocations import Subject, lineage
from db.source import Source, check_source
from service.cycle.claim import claim_run
from service.cycle.claim_files import Start
from service.settings.environment import PROJECT_RECIPES
from service.settings.home import Home
from service.settings.load import load_settings
from trainer.recipe import pinned
from trainer.records import read_rows

GOOD_ROWS = 12
NUMBERS = count(1)
TYPES = {
    "id": "bigint", "repository": "text", "path": "text", "language": "text", "content": "text",
    "quality_score": "real", "license": "text", "metadata": "jsonb", "created_at": "timestamptz",
}  # fmt: skip
GOOD = {"repository": "'r'", "path": "'src/' || n || '.py'", "language": "'python'", "quality_score": "90",
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
    good = {"uuid": "gen_random_uuid()", "colour": "'red'", "bytea": "'x'", "json": "'1'", "jsonb": "'1'",
            "text[]": "array['a', n::text]", "numeric[]": "array[n]", "varbit": "n::bit(8)::varbit",
            "timestamp": "'2020-01-01'"}  # fmt: skip
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
                 "('[' || repeat('[', 900) || repeat(']', 900) || ']')::jsonb": ""}),
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


class Bench:
    """A table with one column of the case's type, and a stream that reads it."""

    def __init__(self, pool: Pool, root: Path, case: Case) -> None:
        self.pool, self.case = pool, case
        table = f"files_{next(NUMBERS)}"
        self.stream = f"s-{table}"
        self.settings = load_settings(
            PROJECT_RECIPES / "embedded.yaml",
            environment={"CODELUPE_HOME": str(root / table), "SOURCE_TABLE": table, "CODELUPE_STREAM": self.stream},
            env_file=None,
        )
        self.home = Home(root / table)
        self.home.prepare()
        self.recipe = pinned(self.settings.recipe, model="tiny-qwen2", revision="r" * 40)
        self.ids: dict[int, str] = {}
        """The value of each row that is not a good one, by its id."""
        self._insert(table)
        binding = streams.Binding(source=table, base_model="tiny-qwen2", base_revision="r" * 40, lora={})
        streams.bind(pool, self.stream, binding)
        lease = leases.acquire(pool, self.stream, "tests", 600)
        assert lease is not None
        self.lease: Lease = lease
        self.source: Source = check_source(pool, self.settings.source)

    def _insert(self, table: str) -> None:
        case, columns = self.case, ", ".join(TYPES)
        types = ", ".join(f"{name} {case.type if name == case.column else kind}" for name, kind in TYPES.items())
        good = {**GOOD, case.column: case.good or GOOD.get(case.column, "")}
        with self.pool.transaction() as cursor:
            cursor.execute(f"create table {table} ({types})")
            for n in range(GOOD_ROWS + len(case.values)):
                number, values = n - GOOD_ROWS, {"id": str(n + 1), "content": "%(content)s", **good}
                if case.column in ("id", "content"):
                    values[case.column] = str(n + 1) if case.column == "id" else "%(content)s"
                if number >= 0:
                    values[case.column] = list(case.values)[number]
                    self.ids[n + 1] = list(case.values)[number]
                wanted = ", ".join(
                    f"{f'({values[name]})' if values[name] != 'null' else 'null'}"
                    f"{'::' + case.type if name == case.column and not values[name].startswith('%') else ''}"
                    for name in TYPES
                )
                statement = f"insert into {table} ({columns}) select {wanted} from (values ({n})) as v (n) returning id"
                cursor.execute(statement, {"content": code(n, 4)})
                row = cursor.fetchone()
                if number >= 0 and row is not None:
                    self.ids[row[0]] = self.ids.pop(n + 1)


@pytest.fixture(scope="module")
def postgres(postgres_url: str, template: str) -> Iterator[str]:
    """One database for all cases: each has its own table and stream."""
    name = "test_columns"
    create = sql.SQL("create database {} template {}")
    execute_outside(postgres_url, create.format(sql.Identifier(name), sql.Identifier(template)))
    url = in_database(postgres_url, name)
    execute_outside(url, sql.SQL(MADE))
    yield url
    execute_outside(postgres_url, sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_row_never_stops_the_others(postgres: str, tmp_path: Path, case: Case) -> None:
    pool = Pool(psycopg2.extensions.make_dsn(postgres, options=f"-c timezone={case.time_zone}"))
    try:
        bench = Bench(pool, tmp_path, case)
        check(bench)
    finally:
        pool.close()


def check(bench: Bench) -> None:
    pool, stream, eligible = bench.pool, bench.stream, bench.settings.eligibility
    bad = {file_id: reason for file_id, value in bench.ids.items() if (reason := bench.case.values[value])}
    used = GOOD_ROWS + len(bench.ids) - len(bad)
    look_around(pool, bench.lease, source=bench.source, eligible=eligible)
    assert chunks.count(pool, bench.source, eligible, stream) >= used
    claimed = claim_run(pool, bench.lease, bench.home, bench.settings, bench.recipe, Start())
    assert claimed.run_id is not None
    directory = bench.home.run(claimed.run_id)
    train, held_out = list(read_rows(directory.rows)), list(read_rows(directory.held_out))
    assert len(train) + len(held_out) == used
    for row in (*train, *held_out):
        json.dumps(row.repository), json.dumps(row.path)  # the web page and the card show them
        assert row.file_id not in bad
    outcomes = [Outcome(file_id=row.file_id, outcome="trained", tokens=1) for row in train]
    outcomes += [Outcome(file_id=row.file_id, outcome="held_out", tokens=0) for row in held_out]
    for state in ("training", "judging"):
        runs.advance(pool, bench.lease, claimed.run_id, state)
    report = {"train": {"tokens_published": len(train)}}
    settling.publish(pool, bench.lease, claimed.run_id, outcomes, ADAPTER, report)
    found = audit(pool, bench.source, eligible, stream)
    assert (found.problems, found.pending, found.claimed) == ([], 0, 0)
    reasons = {**found.ineligible, **{name.removeprefix("rejected:"): n for name, n in found.settled.items()}}
    assert reasons.pop("trained") == len(train) and reasons.pop("held_out") == len(held_out)
    assert reasons == {reason: list(bad.values()).count(reason) for reason in bad.values()}
    assert look_around(pool, bench.lease, source=bench.source, eligible=eligible).rows == 0
    with claim(pool, bench.lease, bench.source, eligible, limit=9, parent_version=None, seed=1) as again:
        assert len(list(earlier_trained(again, "1", 1000))) == len(train)
        assert list(again.rows()) == []
        again.cancel()
    for row in train:
        assert lineage(pool, bench.source, stream, Subject(file_id=row.file_id)).uses
    if train[0].path is not None:
        where = f"{train[0].repository}/{train[0].path}"
        assert train[0].file_id in lineage(pool, bench.source, stream, Subject(path=where)).file_ids
    with pytest.raises(Exception, match="has the path"):
        lineage(pool, bench.source, stream, Subject(path="no/such/path"))


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        ("quality_score", "money", "must be a number, not money"),
        ("quality_score", "oid", "must be a number, not oid"),
        ("quality_score", "regclass", "must be a number, not regclass"),
        ("quality_score", "text", "must be a number, not text"),
        ("id", "numeric", "must be an integer type, not numeric"),
        ("content", "bytea", "must be text, not bytea"),
        ("metadata", "text", "must be jsonb or json, not text"),
        ("created_at", "time", "must be a time, not time"),
    ],
)
def test_a_column_of_an_unusable_type_is_named(pool: Pool, query: Any, column: str, kind: str, message: str) -> None:
    types = ", ".join(f"{name} {kind if name == column else usual}" for name, usual in TYPES.items())
    query(f"create table other ({types})")
    with pytest.raises(Misconfigured, match=message):
        check_source(pool, Source(table="other"))


@pytest.mark.parametrize("threshold", [1e-60, -1e-60, 1e60, -1e60, 1.7e308, 5e-324, 0.7])
def test_any_threshold_can_be_compared_with_any_score(pool: Pool, lease: Lease, query: Any, threshold: float) -> None:
    for kind in ("real", "double precision", "numeric", "bigint"):
        table = f"scores_{kind.split()[0]}"
        query(f"create table {table} (id bigint, content text, language text, quality_score {kind})")
        query(f"insert into {table} select n, repeat('x', 60), 'c', n from generate_series(0, 1) n")
        eligible = replace(ELIGIBLE, quality_threshold=threshold)
        found = audit(pool, Source(table=table), eligible, lease.stream)
        expected = sum(score >= threshold for score in (0, 1))
        if kind == "real" and abs(threshold) < 1e-30:
            expected = 2  # counts as zero
        assert found.pending == expected, kind


def test_a_real_score_is_compared_in_single_precision(pool: Pool, lease: Lease, query: Any) -> None:
    query("insert into code_files (content, quality_score) values (repeat('x', 60), 0.7)")
    assert audit(pool, Source(), replace(ELIGIBLE, quality_threshold=0.7), lease.stream).pending == 1
