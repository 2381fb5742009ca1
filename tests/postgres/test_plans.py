"""Query plans of a poll, a sweep and a claim. On large tables, Postgres never reads the whole source or ledger."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from psycopg2 import sql
from world import ELIGIBLE, STREAM

from db.chunks import CHUNK_ROWS, GREATEST_ID, LEAST_ID, WINDOW_ROWS
from db.pool import Pool
from db.source import Source, check_source
from db.versions import COMPARED_BYTES, COMPARED_ROWS

ROWS = 300_000
"""Many times the number of rows that a poll reads."""
PAGE_ROWS = 100_000
"""The number of rows that a claim of MAX_DATASET_SIZE fetches at a time."""
RANGES = {
    "all": (LEAST_ID, GREATEST_ID),
    "the first": (LEAST_ID, CHUNK_ROWS),
    "one amid others": (100_001, 100_000 + CHUNK_ROWS),
    "the newest": (ROWS - WINDOW_ROWS + 1, GREATEST_ID),
    "the newest, after what the statistics know": (ROWS + 1, GREATEST_ID),
}
STATEMENTS: dict[str, dict[str, Any]] = {
    "source_nth_newest": {"rows": 2 * WINDOW_ROWS},
    "source_nth": {"rows": CHUNK_ROWS},
    "source_count_range": {},
    "source_claimable": {"limit": PAGE_ROWS},
    "source_settled": {"every": False, "rows": COMPARED_ROWS, "bytes": COMPARED_BYTES},
}
SOURCE = Source(absent=frozenset({"updated_at"}), has_xmin=True)


@pytest.fixture(scope="module")
def many(postgres_url: str, template: str) -> Iterator[Pool]:
    """Fill a table with mostly settled rows, vacuum it, then add some thousand new rows."""
    from world import execute_outside, in_database

    name = "plans"
    execute_outside(
        postgres_url,
        sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template)),
    )
    pool = Pool(in_database(postgres_url, name))
    with pool.transaction() as cursor:
        cursor.execute("insert into codelupe.streams values (%s, 'code_files', 'm', 'r', '{}')", [STREAM])
        cursor.execute("insert into codelupe.runs (stream, seed, epoch) values (%s, 1, 1)", [STREAM])
        cursor.execute("set local session_replication_role = replica")
        cursor.execute(
            "insert into code_files (content, quality_score) select repeat(md5(n::text), 2), 90"
            " from generate_series(1, %s) n",
            [ROWS],
        )
        cursor.execute(
            "insert into codelupe.ledger (stream, file_id, run_id, disposition, reason, settled_at)"
            " select %s, n, 1, 'rejected', 'duplicate', now() from generate_series(1, %s) n where n %% 50 <> 0",
            [STREAM, ROWS],
        )
        cursor.execute("analyze code_files, codelupe.ledger, codelupe.held_out, codelupe.fingerprints, codelupe.chunks")
        cursor.execute(
            "insert into code_files (content, quality_score) select repeat(md5(n::text), 2), 90"
            " from generate_series(1, 5000) n"
        )
    yield pool
    pool.close()
    execute_outside(postgres_url, sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def plan_of(pool: Pool, name: str, source: Source, **values: Any) -> list[dict[str, Any]]:
    """Return every node of the plan. Server-side cursors of a claim get the same plan."""
    with pool.transaction(read_only=True) as cursor:
        statement = sql.SQL("explain (format json) ") + source.statement(name)
        cursor.execute(statement, {"stream": STREAM, "phase": None, **ELIGIBLE.parameters(), **values})
        row = cursor.fetchone()
    assert row is not None
    nodes, waiting = [], [row[0][0]["Plan"]]
    while waiting:
        node = waiting.pop()
        nodes.append(node)
        waiting += node.get("Plans", [])
    return nodes


@pytest.mark.parametrize("between", RANGES)
@pytest.mark.parametrize("name", STATEMENTS)
def test_no_plan_scans_the_source_or_the_ledger(many: Pool, name: str, between: str) -> None:
    first_id, last_id = RANGES[between]
    if between == "all" and not name.startswith("source_nth"):
        return  # a new stream's first range is cut first and never read whole
    nodes = plan_of(many, name, SOURCE, first_id=first_id, last_id=last_id, **STATEMENTS[name])
    scans = [node for node in nodes if node.get("Relation Name") in ("code_files", "ledger")]
    assert scans
    for scan in scans:
        assert scan["Node Type"] != "Seq Scan", scan
        bounds = scan.get("Index Cond", "")
        inside = scan["Node Type"] == "Bitmap Heap Scan" or ">=" in bounds or "= s.id" in bounds
        assert inside, scan  # reading an index from its start is a full scan too
    if name == "source_claimable":  # the rows come as they are read: no text goes through a sort
        assert not [node for node in nodes if "Sort" in node["Node Type"]]


def test_replayed_rows_are_read_by_their_ids(many: Pool) -> None:
    nodes = plan_of(many, "source_by_id", SOURCE, files=[*range(1, ROWS, ROWS // 500)])
    scans = [node for node in nodes if node.get("Relation Name") == "code_files"]
    assert scans and not [scan for scan in scans if scan["Node Type"] == "Seq Scan"]


def test_fingerprints_are_not_looked_for_in_all_of_the_ledger(many: Pool) -> None:
    nodes = plan_of(many, "fingerprints_missing", SOURCE, runs=[])
    assert not [node for node in nodes if node["Node Type"] == "Seq Scan" and node["Relation Name"] == "ledger"]


def test_a_verdict_does_not_read_all_fingerprints(many: Pool) -> None:
    """It does not read all ranges either, even in a session that planned the triggers on empty tables."""
    returned = "update codelupe.ledger set disposition = 'returned', reason = null where file_id <= %s"
    rows_read = "select relname, seq_tup_read from pg_stat_xact_user_tables where relname in ('fingerprints', 'chunks')"
    with many.transaction() as cursor:
        cursor.execute(returned, [0])
        cursor.execute(
            "insert into codelupe.fingerprints select %s, n, 'x', 'x', '{}' from generate_series(1, 20000) n", [STREAM]
        )
        cursor.execute(
            "insert into codelupe.chunks (stream, first_id, last_id, most_rows)"
            " select %s, n * 100, n * 100 + 99, 100 from generate_series(0, 200) n",
            [STREAM],
        )
        cursor.execute(rows_read)
        before = cursor.fetchall()
        cursor.execute(returned, [1000])
        cursor.execute(rows_read)
        assert cursor.fetchall() == before
        cursor.execute("select count(*) from codelupe.fingerprints")
        assert cursor.fetchone() == (20_000 - 980,)
        cursor.connection.rollback()


def test_a_view_is_read_by_its_index_too(many: Pool) -> None:
    with many.transaction() as cursor:
        cursor.execute(
            "create or replace view good_files as select id as number, content as body, language,"
            " quality_score as score from code_files where content <> ''"
        )
    source = check_source(many, Source.parse("good_files", "id=number,content=body,quality_score=score"))
    for name, values in STATEMENTS.items():
        nodes = plan_of(many, name, source, first_id=100_001, last_id=150_000, **values)
        read = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
        assert read <= {"held_out", "run_rows"}  # these two are empty
