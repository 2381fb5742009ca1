"""Waiting rows are counted by ranges of ids. No row is lost, and no poll reads all rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import psycopg2
import pytest
from world import ELIGIBLE, STREAM, claim_all, fill, look_around, new_file

from db import chunks, settling
from db.audit import audit
from db.errors import LeaseLost, Misconfigured
from db.files import insert_files
from db.lease import Lease, acquire
from db.pool import Pool
from db.source import Source, claim

SOURCE = Source()
Query = Callable[..., list[Any]]
LEAST, GREATEST = -(2**63), 2**63 - 1


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use ranges of a few rows, so that small tables have many ranges on any machine."""
    for name, value in {"WINDOW_ROWS": 5, "CHUNK_ROWS": 10, "WINDOW_SECONDS": 1e9, "CHUNK_SECONDS": 1e9}.items():
        monkeypatch.setattr(chunks, name, value)


def poll(pool: Pool, lease: Lease) -> chunks.Pending:
    return chunks.poll(pool, lease, SOURCE, ELIGIBLE)


def sweep(pool: Pool, lease: Lease, **options: Any) -> chunks.Pending | None:
    return chunks.sweep(pool, lease, SOURCE, ELIGIBLE, **{"interval_seconds": 3600.0, **options})


def due_now(query: Query) -> None:
    """Let the pause between two reads pass."""
    query("update codelupe.chunks set due_at = now() where due_at > now()")


def put(query: Query, ids: list[int], score: float | None = 90.0) -> None:
    query(
        "insert into code_files (id, content, quality_score) select n, repeat('x', 60), %s from unnest(%s::bigint[]) n"
        " on conflict do nothing",
        score, ids,
    )  # fmt: skip


# --- ranges -------------------------------------------------------------------------------------------------


def test_a_large_table_is_read_from_its_end_and_then_range_by_range(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 58)
    first = poll(pool, lease)
    assert (first.rows, first.unknown_ranges) == (5, 1)
    assert [found.rows for found in iter(lambda: sweep(pool, lease, urgent=True), None)] == [15, 25, 35, 45, 55, 58]
    assert query("select first_id, last_id, pending from codelupe.chunks order by 1") == [
        (LEAST, 10, 10), (11, 20, 10), (21, 30, 10), (31, 40, 10), (41, 50, 10), (51, 53, 3), (54, GREATEST, 5),
    ]  # fmt: skip
    fill(pool, 4)
    assert poll(pool, lease).rows == 62
    assert query("select count(*) from codelupe.chunks") == [(7,)]  # the newest range may grow to twice its size
    fill(pool, 1)
    assert poll(pool, lease).rows == 58  # the five that left it join a range that is read next
    found = sweep(pool, lease, urgent=True)
    assert found is not None and found.rows == 63 == chunks.count(pool, SOURCE, ELIGIBLE, STREAM)
    assert query("select first_id, last_id, pending from codelupe.chunks order by 1 desc limit 2") == [
        (59, GREATEST, 5), (51, 58, 8),
    ]  # fmt: skip


@pytest.mark.parametrize("ids", [[LEAST, -1, 0, 1, GREATEST], [LEAST, LEAST + 1], [GREATEST - 1, GREATEST]])
def test_any_id_is_found_and_claimed(pool: Pool, lease: Lease, query: Query, ids: list[int]) -> None:
    fill(pool, 30)
    look_around(pool, lease)
    put(query, ids)
    due_now(query)
    rows = len({*ids, *range(1, 31)})
    assert look_around(pool, lease).rows == rows
    assert len(claim_all(pool, lease)[1]) == rows
    assert look_around(pool, lease).rows == 0


def test_a_range_that_fills_up_is_cut(pool: Pool, lease: Lease, query: Query) -> None:
    put(query, list(range(0, 5000, 100)))
    look_around(pool, lease)
    before = query("select count(*) from codelupe.chunks")[0][0]
    put(query, list(range(1, 99)))
    due_now(query)
    assert look_around(pool, lease).rows == 50 + 98
    assert query("select count(*) from codelupe.chunks")[0][0] >= before + 8
    assert max(pending for (pending,) in query("select pending from codelupe.chunks")) <= 10


def test_a_slow_read_makes_the_next_ones_shorter(
    pool: Pool, lease: Lease, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(pool, 40)
    poll(pool, lease)
    monkeypatch.setattr(chunks, "LEAST_ROWS", 3)
    monkeypatch.setattr(chunks, "CHUNK_SECONDS", 0.0)
    sweep(pool, lease)
    assert query("select most_rows from codelupe.chunks order by first_id limit 1") == [(3,)]
    monkeypatch.setattr(chunks, "CHUNK_SECONDS", 1e9)
    due_now(query)
    assert look_around(pool, lease).rows == 40
    assert query("select pending from codelupe.chunks order by first_id limit 2") == [(3,), (3,)]
    assert query("select most_rows from codelupe.chunks order by first_id limit 2") == [(6,), (6,)]


# --- what could be lost -------------------------------------------------------------------------------------


def test_a_commit_below_the_newest_rows_is_found(pool: Pool, lease: Lease, database_url: str, query: Query) -> None:
    fill(pool, 20)
    late = psycopg2.connect(database_url)
    with late.cursor() as cursor:
        cursor.execute("insert into code_files (content, quality_score) values (repeat('s', 60), 80)")
    fill(pool, 30)
    assert look_around(pool, lease).rows == 50
    late.commit()
    late.close()
    assert poll(pool, lease).rows == 50
    due_now(query)
    assert look_around(pool, lease).rows == 51


def test_a_score_that_comes_late_is_found(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 60, quality_score=None)
    found = look_around(pool, lease)
    assert (found.rows, found.ineligible) == (0, {"no_score": 60})
    query("update code_files set quality_score = 90 where id = 7")
    assert look_around(pool, lease).rows == 0
    due_now(query)
    found = look_around(pool, lease)
    assert (found.rows, found.ineligible) == (1, {"no_score": 59})
    assert claim_all(pool, lease)[1] == [7]


def test_rows_that_are_returned_count_again_at_once_or_when_their_time_comes(
    pool: Pool, lease: Lease, query: Query
) -> None:
    fill(pool, 60)
    look_around(pool, lease)
    run_id, _ = claim_all(pool, lease)
    found = poll(pool, lease)
    assert found.rows == 0 and found.unknown_ranges > 0
    assert look_around(pool, lease).unknown_ranges == 0
    settling.give_back(pool, lease, run_id, state="returned", reason="test")
    assert look_around(pool, lease).rows == 60
    run_id, _ = claim_all(pool, lease)
    settling.give_back(pool, lease, run_id, state="returned", reason="test", delay_seconds=3600)
    assert look_around(pool, lease).rows == 0
    query("update codelupe.chunks set due_at = due_at - interval '61 min'")  # an hour and a minute later …
    query("alter table codelupe.ledger disable trigger user")
    query("update codelupe.ledger set not_before = not_before - interval '61 min'")
    assert look_around(pool, lease).rows == 60


def test_ranges_rest_no_longer_than_their_rows(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 100)
    look_around(pool, lease)
    run_id, _ = claim_all(pool, lease)
    settling.give_back(pool, lease, run_id, state="returned", reason="test", delay_seconds=60)
    look_around(pool, lease)
    assert query("select max(due_at) <= now() + interval '60 s' from codelupe.chunks where pending = 0") == [(True,)]


def test_the_newest_ranges_are_read_more_often(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 200)
    look_around(pool, lease)  # all of them were among the newest ranges then
    due_now(query)
    look_around(pool, lease)
    often = query(
        "select count(*) from codelupe.chunks where last_id < %s and due_at < now() + interval '400 s'", GREATEST
    )
    assert often == [(chunks.RECENT_CHUNKS,)]


def test_deleted_rows_are_counted_until_the_next_read(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 60)
    before = look_around(pool, lease)
    query("delete from code_files where id <= 30")
    assert poll(pool, lease).rows == 60
    assert sweep(pool, lease) is None
    assert sweep(pool, lease, urgent=True, confirm=before.at) is not None
    while sweep(pool, lease, urgent=True, confirm=before.at):
        pass
    assert poll(pool, lease).rows == 30
    query("delete from code_files")
    chunks.discard_counts(pool, lease)
    assert look_around(pool, lease).rows == 0


def test_other_limits_reset_the_counts(pool: Pool, lease: Lease) -> None:
    fill(pool, 30, quality_score=80.0)
    assert look_around(pool, lease).rows == 30
    stricter = replace(ELIGIBLE, quality_threshold=85)
    found = look_around(pool, lease, eligible=stricter)
    assert (found.rows, found.ineligible) == (0, {"low_score": 30})
    assert look_around(pool, lease).rows == 30


def test_a_service_without_the_lease_counts_nothing(pool: Pool, lease: Lease, query: Query) -> None:
    query("update codelupe.leases set expires_at = now() - interval '1 s'")
    assert acquire(pool, STREAM, "another", 60) is not None
    for write in (poll, sweep, chunks.discard_counts):
        with pytest.raises(LeaseLost):
            write(pool, lease)
    assert query("select count(*) from codelupe.chunks") == [(0,)]


def test_a_view_that_repeats_an_id_is_named_by_the_claim(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 12)
    query(f"create view often as select {LEAST} as id, content, language, quality_score from code_files")
    source = Source(table="often")
    for _ in range(2):
        assert look_around(pool, lease, source=source).rows == 12
    with pytest.raises(Misconfigured, match=f"id {LEAST} twice"):
        claim_all(pool, lease, source=source)


def test_times_outside_pythons_range(pool: Pool, lease: Lease, query: Query) -> None:
    for moment in ("infinity", "-infinity", "20000-01-01", "0044-03-15 BC"):
        query("insert into code_files (content, quality_score, created_at) values (repeat('x', 60), 90, %s)", moment)
    found = look_around(pool, lease)
    assert found.rows == 4 and found.oldest_age_seconds is not None and 6e10 < found.oldest_age_seconds < 7e10


# --- the claim ----------------------------------------------------------------------------------------------


def test_a_claim_reads_only_where_rows_are_known_to_wait(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 100, quality_score=None)
    query("update code_files set quality_score = 90 where id in (15, 16, 63)")
    look_around(pool, lease)
    query("update code_files set quality_score = 90 where id = 40")  # since the last read
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=10, parent_version=None, seed=1) as claimed:
        assert [row.file_id for row in claimed.rows()] == [15, 16, 63]
        assert claimed._ranges == [11, 61, 96]
        claimed.cancel()
    due_now(query)
    look_around(pool, lease)
    assert claim_all(pool, lease)[1] == [15, 16, 40, 63]


def test_a_claim_takes_counted_rows_first(pool: Pool, lease: Lease) -> None:
    fill(pool, 50)
    poll(pool, lease)
    assert claim_all(pool, lease, limit=6)[1] == [46, 47, 48, 49, 50, 1]
    assert poll(pool, lease).rows == 0
    assert look_around(pool, lease).rows == 44


def test_a_claim_that_is_undone_leaves_the_counts(pool: Pool, lease: Lease) -> None:
    fill(pool, 50)
    look_around(pool, lease)
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=6, parent_version=None, seed=1) as claimed:
        for row in claimed.rows():
            claimed.keep(row, "train")
        claimed.cancel()
    assert poll(pool, lease).rows == 50


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_every_row_is_claimed_once(pool: Pool, lease: Lease, query: Query, seed: int) -> None:
    """Producers, service and runs act at random.

    Afterwards all ranges agree with the audit's counts, and claims leave no row.
    """
    chance = random.Random(seed)
    settled: list[int] = []
    query("alter table code_files alter column id restart with 1000")

    def some_ids() -> list[int]:
        near = chance.choice((0, 0, 500, -500, LEAST + 10, GREATEST - 300))
        return [near + chance.randrange(300) for _ in range(chance.randrange(1, 12))]

    def run(end: str) -> None:
        with claim(pool, lease, SOURCE, ELIGIBLE, limit=chance.randrange(1, 30), parent_version=None, seed=1) as found:
            rows = list(found.rows())
            for row in rows:
                if end == "reject":
                    found.reject(row, "counted")
                else:
                    found.keep(row, "train")
            run_id = found.run_id
        if end == "reject":
            settled.extend(row.file_id for row in rows)
        settling.give_back(pool, lease, run_id, state="returned", reason="test", delay_seconds=chance.choice((0, 3600)))

    work: list[Callable[[], Any]] = [
        lambda: put(query, some_ids()),
        lambda: put(query, some_ids(), score=chance.choice((None, 10.0))),
        lambda: query("update code_files set quality_score = 90 where id = any(%s)", some_ids()),
        lambda: query("update code_files set quality_score = 10 where id = any(%s)", some_ids()),
        lambda: query("delete from code_files where id = any(%s) and not id = any(%s::bigint[])", some_ids(), settled),
        lambda: insert_files(pool, [new_file(n) for n in range(chance.randrange(30))]),
        lambda: poll(pool, lease),
        lambda: sweep(pool, lease, interval_seconds=chance.choice((0.0, 3600.0))),
        lambda: run("keep"),
        lambda: run("reject"),
    ]
    for _ in range(80):
        chance.choice(work)()
        ranges = query("select first_id, last_id from codelupe.chunks order by 1")
        if ranges:
            assert (ranges[0][0], ranges[-1][1]) == (LEAST, GREATEST)
            assert all(one[1] + 1 == two[0] for one, two in pairwise(ranges))
    query("update codelupe.ledger set not_before = null where disposition = 'returned'")
    due_now(query)
    found, truth = look_around(pool, lease), audit(pool, SOURCE, ELIGIBLE, STREAM)
    assert (found.rows, found.ineligible, found.unknown_ranges) == (truth.pending, truth.ineligible, 0)
    assert chunks.count(pool, SOURCE, ELIGIBLE, STREAM) == truth.pending
    while look_around(pool, lease).rows:
        run("reject")
    assert len(settled) == len(set(settled))
    assert audit(pool, SOURCE, ELIGIBLE, STREAM).pending == 0
