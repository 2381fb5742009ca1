"""The ledger is made a table of partitions while services claim and settle."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from psycopg2 import sql
from world import ADAPTER, ELIGIBLE, STREAM, Outcome, claim_all, execute_outside, fill

from db import adapters, embedded, migrate, rights, runs, settling
from db.audit import audit
from db.errors import DatabaseError
from db.lease import Lease
from db.pool import Pool
from db.source import Source

SCRIPT = Path(__file__).parents[2] / "migrations" / "by_hand" / "partition_ledger.sql"
ROLE = "partition_service"
Query = Callable[..., list[Any]]


def partition(url: str, **changes: object) -> subprocess.CompletedProcess[str]:
    given = {"rows": 100, "count": 2, **changes}
    values = [f"--set={name}={value}" for name, value in given.items() if value is not None]
    command = [embedded.programs() / "psql", "--no-psqlrc", "--quiet", *values, f"--file={SCRIPT}", url]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def publish(pool: Pool, lease: Lease) -> None:
    """Add ten rows, and publish a run of them."""
    fill(pool, 10)
    current = adapters.current(pool, STREAM)
    run_id, files = claim_all(pool, lease, parent=current.version if current else None)
    runs.advance(pool, lease, run_id, "training")
    runs.advance(pool, lease, run_id, "judging")
    outcomes = [Outcome(file_id=n, outcome="trained") for n in files]
    report = {"train": {"tokens_published": 10 * len(files)}}
    settling.publish(pool, lease, run_id, outcomes, ADAPTER, report)


def test_the_ledger_is_partitioned_while_a_service_works(
    database_url: str, pool: Pool, lease: Lease, query: Query
) -> None:
    execute_outside(database_url, sql.SQL("create role {}").format(sql.Identifier(ROLE)))
    try:
        rights.grant(pool, ROLE, Source())
        failed: list[DatabaseError] = []
        stop, works = threading.Event(), threading.Event()

        def serve() -> None:
            try:
                while not stop.is_set():
                    publish(pool, lease)
                    works.set()
            except DatabaseError as error:
                failed.append(error)

        service = threading.Thread(target=serve)
        service.start()
        works.wait(20)
        done = partition(database_url, first=100_000)
        works.clear()
        works.wait(20)
        stop.set()
        service.join()
        assert (done.returncode, done.stderr, failed) == (0, "", [])
        query("select setval(pg_get_serial_sequence('code_files', 'id'), 100095)")
        for _ in range(25):  # beyond the last bound
            publish(pool, lease)
        per_table = dict(query("select tableoid::regclass::text, count(*) from codelupe.ledger group by 1"))
        assert per_table.keys() == {
            f"codelupe.ledger_{n}" for n in ("first", "from_100000", "from_100100", "from_100200")
        }
        assert audit(pool, Source(), ELIGIBLE, STREAM).problems == []
        assert runs.totals(pool, STREAM).rows == {"trained": sum(per_table.values())}
        assert query("select count(*) from codelupe.standing") == [(sum(per_table.values()),)]
        with pool.transaction() as cursor:
            assert rights.missing(cursor, ROLE, Source()) == []
        assert migrate.pending(pool) == []
        names = (
            "select conname from pg_constraint where conrelid = 'codelupe.ledger'::regclass and contype in ('c', 'f')"
        )
        assert len(query(names)) == 5
        again = partition(database_url, first=200_000)
        assert again.returncode != 0 and "has partitions already" in again.stderr
    finally:
        query(f"drop owned by {ROLE}")
        query(f"drop role {ROLE}")


def assert_as_it_was(query: Query) -> None:
    assert query("select relkind::text from pg_class where oid = 'codelupe.ledger'::regclass") == [("r",)]
    assert query("select from pg_constraint where conname = 'ledger_below'") == []


@pytest.mark.parametrize(
    "changes",
    [{"first": "abc"}, {"first": None}, {"rows": 0}, {"rows": "1e3"}, {"count": -2}, {"count": None}, {"count": 0}],
)
def test_wrong_values_are_named_and_change_nothing(
    database_url: str, pool: Pool, query: Query, changes: dict[str, object]
) -> None:
    done = partition(database_url, **{"first": 1000, **changes})
    assert done.returncode == 3 and not done.stdout
    (name,) = changes
    assert f"{name} is " in done.stderr and "must be a whole number from 1 on" in done.stderr
    assert_as_it_was(query)


def test_a_failure_of_the_last_step_takes_the_limit_back(database_url: str, query: Query) -> None:
    query("create table codelupe.ledger_from_1000 (id int)")  # in the way of a partition
    done = partition(database_url, first=1000)
    assert done.returncode == 3 and "already exists" in done.stderr and "is as it was" in done.stderr
    assert_as_it_was(query)


@pytest.mark.parametrize("held", [False, True])
def test_a_partitioning_that_cannot_be_done_changes_nothing(
    database_url: str, pool: Pool, lease: Lease, query: Query, held: bool
) -> None:
    publish(pool, lease)
    if not held:
        done = partition(database_url, first=10)
        assert "ids up to 10 are in use: give a first far above it" in done.stderr
    else:
        with pool.transaction() as cursor:  # a claim in progress
            cursor.execute("update codelupe.ledger set mark = 1 where file_id = 1")
            done = partition(database_url, first=1000)
        assert "lock timeout" in done.stderr
    assert done.returncode != 0
    assert_as_it_was(query)
    publish(pool, lease)
    assert audit(pool, Source(), ELIGIBLE, STREAM).problems == []
