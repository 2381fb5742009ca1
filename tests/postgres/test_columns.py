"""No value in a column of one row stops the other rows, whatever the column's type in the source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from column_values import CASES, MADE, TYPES, Case, create_table, insert_row
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


class Bench:
    """A table with one column of the case's type, and a stream that reads it."""

    def __init__(self, pool: Pool, root: Path, case: Case, table: str = "") -> None:
        self.pool, self.case = pool, case
        table = table or f"files_{next(NUMBERS)}"
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
        cases = {self.case.column: self.case}
        with self.pool.transaction() as cursor:
            cursor.execute(create_table(table, {self.case.column: self.case.type}))
            for n, value in enumerate([None] * GOOD_ROWS + list(self.case.values), 1):
                odd = {} if value is None else {self.case.column: value}
                cursor.execute(insert_row(table, n, cases, odd), {"content": code(n, 4)})
                row = cursor.fetchone()
                if value is not None and row is not None:
                    self.ids[row[0]] = value


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


@pytest.mark.parametrize("table", ["files", "asked", "found", "columns", "h", "s"])
def test_a_source_may_have_a_name_that_statements_use(postgres: str, tmp_path: Path, table: str) -> None:
    pool = Pool(postgres)
    try:
        check(Bench(pool, tmp_path, Case(column="id", type="bigint", values={}), table))
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
