"""Totals are kept as they change: always those of the ledger, and nobody waits for them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
from psycopg2 import extensions
from world import ADAPTER, ELIGIBLE, STREAM, Outcome, claim_all, fill

from db import runs, settling
from db.audit import audit
from db.lease import Lease
from db.pool import Pool
from db.source import Source

Query = Callable[..., list[Any]]
OTHER = "other"
CLAIMED = (
    "insert into codelupe.ledger (stream, file_id, run_id, disposition) select %s, n, %s, 'claimed' from unnest(%s) n"
)
SETTLED = (
    "update codelupe.ledger set disposition = %s, reason = %s, settled_at = now()"
    " where stream = %s and file_id = any(%s)"
)
TRUTH = "select disposition, reason, count(*) from codelupe.ledger where stream = %s group by 1, 2"
KEPT = (
    "select disposition, reason, sum(rows)::bigint from codelupe.ledger_totals where stream = %s"
    " group by 1, 2 having sum(rows) <> 0"
)


@pytest.fixture
def run_of(lease: Lease, query: Query) -> dict[str, int]:
    """A live run of each of two streams."""
    query("insert into codelupe.streams values (%s, 'code_files', 'm', 'r', '{}')", OTHER)
    make = "insert into codelupe.runs (stream, seed, epoch) values (%s, 1, 1) returning run_id"
    return {stream: query(make, stream)[0][0] for stream in (STREAM, OTHER)}


@contextmanager
def session(url: str, level: str = "read committed") -> Iterator[extensions.cursor]:
    """A transaction that gives up where it would have to wait. It is rolled back unless the test commits it."""
    connection = psycopg2.connect(url)
    connection.set_session(isolation_level=level)
    with connection.cursor() as cursor:
        cursor.execute("set lock_timeout = '2s'")
        connection.commit()
        yield cursor
    connection.close()


def same(query: Query, stream: str) -> bool:
    return sorted(query(TRUTH, stream), key=str) == sorted(query(KEPT, stream), key=str)


def test_no_writer_waits_for_another_ones_counts(database_url: str, query: Query, run_of: dict[str, int]) -> None:
    """Not even one of the same stream. A claim, which sees the database as it was, does not fail either."""
    with (
        session(database_url, "repeatable read") as claim,
        session(database_url) as settle,
        session(database_url) as other,
    ):
        query(CLAIMED, STREAM, run_of[STREAM], [1, 2, 3])
        claim.execute(CLAIMED, [STREAM, run_of[STREAM], [11, 12]])
        settle.execute(SETTLED, ["rejected", "revoked", STREAM, [1]])
        other.execute(CLAIMED, [OTHER, run_of[OTHER], [1, 2, 3, 4]])
        settle.connection.commit()
        claim.execute(CLAIMED, [STREAM, run_of[STREAM], [13]])
        assert query(KEPT, OTHER) == [] and sorted(query(KEPT, STREAM)) == [
            ("claimed", None, 2),
            ("rejected", "revoked", 1),
        ]
        claim.connection.commit()
        other.connection.commit()
    assert sorted(query(KEPT, STREAM)) == [("claimed", None, 5), ("rejected", "revoked", 1)]
    assert query(KEPT, OTHER) == [("claimed", None, 4)] and same(query, STREAM) and same(query, OTHER)


def test_the_counts_are_the_ledgers_while_several_write_and_fold(
    database_url: str, query: Query, run_of: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "FOLDED_FROM", 0)
    differences: list[str] = []
    writing = threading.Event()

    def write(number: int) -> None:
        chance, stream = random.Random(number), (STREAM, OTHER)[number % 2]
        mine = [number * 1000 + n for n in range(60)]
        with session(database_url) as cursor:
            cursor.execute(CLAIMED, [stream, run_of[stream], mine])
            cursor.connection.commit()
            for _ in range(40):
                disposition, reason = chance.choice([("trained", None), ("rejected", "no_gain"), ("returned", None)])
                some = chance.sample(mine, chance.randrange(1, 20))
                cursor.execute(SETTLED, [disposition, reason, stream, some])
                if chance.random() < 0.2:
                    cursor.execute("delete from codelupe.ledger where stream = %s and file_id = %s", [stream, some[0]])
                cursor.connection.rollback() if chance.random() < 0.2 else cursor.connection.commit()

    def fold() -> None:
        pool = Pool(database_url)
        while not writing.wait(0.002):
            runs.fold_totals(pool, STREAM)
            with pool.transaction(isolation="repeatable read", read_only=True) as cursor:
                cursor.execute(TRUTH, [STREAM])
                truth = set(cursor.fetchall())
                cursor.execute(KEPT, [STREAM])
                differences.extend(map(str, truth ^ set(cursor.fetchall())))
        pool.close()

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    folders = [threading.Thread(target=fold) for _ in range(2)]
    for thread in (*writers, *folders):
        thread.start()
    for thread in writers:
        thread.join()
    writing.set()
    for thread in folders:
        thread.join()
    assert differences == [] and same(query, STREAM) and same(query, OTHER)
    pool = Pool(database_url)
    runs.fold_totals(pool, STREAM)
    pool.close()
    assert query("select count(*) from codelupe.ledger_totals where stream = %s", STREAM) == [
        (len(query(TRUTH, STREAM)),)
    ]
    assert query("select count(*) from codelupe.ledger_totals where stream = %s", OTHER)[0][0] > 10  # left alone


def test_totals_read_no_row_of_the_ledger_or_of_runs_rows(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 6)
    run_id, files = claim_all(pool, lease, held_out=(2,))
    for state in ("training", "judging"):
        runs.advance(pool, lease, run_id, state)  # type: ignore[arg-type]
    outcomes = [Outcome(file_id=n, outcome="held_out" if n == 2 else "trained" if n < 6 else "unused") for n in files]
    settling.publish(pool, lease, run_id, outcomes, ADAPTER, {"train": {"tokens_published": 50}})
    with pool.transaction() as cursor:
        cursor.execute("alter table codelupe.ledger rename to hidden")
        cursor.execute("alter table codelupe.run_rows rename to hidden_rows")
    found = runs.totals(pool, STREAM)
    assert found.rows == {"trained": 4, "held_out": 1, "returned": 1}
    assert (found.trained_rows, found.trained_tokens, found.last_trained_id) == (4, 40, 5)


def test_an_audit_finds_other_counts_and_a_recount_ends_it(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 3)
    run_id, _ = claim_all(pool, lease)
    assert audit(pool, Source(), ELIGIBLE, STREAM).problems == []
    query("insert into codelupe.ledger_totals values (%s, 'rejected', 'no_gain', 2)", STREAM)
    query("delete from codelupe.ledger_totals where disposition = 'claimed'")
    query("update codelupe.runs set trained_rows = 7, last_trained_id = 3")
    again = "To count again, run this SQL: select codelupe.recount()"
    assert audit(pool, Source(), ELIGIBLE, STREAM).problems == [
        f"2 kept counts differ from the ledger: claimed (0, not 3), rejected:no_gain (2, not 0). {again}",
        f"1 runs keep other counts than those of their rows: runs {run_id}. {again}",
    ]
    query("select codelupe.recount()::text")
    assert audit(pool, Source(), ELIGIBLE, STREAM).problems == []
    assert runs.totals(pool, STREAM).rows == {"claimed": 3}
