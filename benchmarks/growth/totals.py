"""Measure the kept totals on a ledger with many rows: python benchmarks/growth/totals.py --rows 2000000

It compares them with reading the whole ledger, and claims and settles 1,000 rows with the triggers that keep them and
without. The two take turns. It writes benchmarks/results/totals.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import psycopg2
import world
from psycopg2 import extensions
from psycopg2.extras import execute_values

from db import runs
from db.pool import Pool
from db.settling import BIGINT
from db.statements import QUERIES

ROUNDS = 25
BATCH = 1000
LEDGER_READ = """
select disposition, reason, count(*), max(file_id) from codelupe.ledger where stream = %s group by disposition, reason
"""
TRIGGERS = [(table, f"keep_totals_{event}") for table in ("ledger", "run_rows") for event in ("insert", "update")]
PAGE = """\
# Totals on a large ledger

`python benchmarks/growth/totals.py --rows {rows}` ran on {day}, on {cores} cores with other work
(load {load:.1f}). The embedded Postgres used fsync and 128 MB of shared buffers. The ledger has {ledger:,} rows.
Times are in milliseconds and include the commit.

| operation | count | median | maximum |
|---|---|---|---|
{lines}

The last line counts all totals again, as the migration does once. Nobody writes to the ledger meanwhile.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/growth/totals.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows of the ledger")
    parser.add_argument("--folder", type=Path, default=ROOT / "var" / "bench-growth", help="folder for the database")
    given = parser.parse_args()
    folder = given.folder.resolve() / f"{given.rows}-1000" / "postgres"
    folder.mkdir(parents=True, exist_ok=True)
    url = world.build(folder, given.rows, 1000)
    try:
        report(measure(url), url, given.rows)
    finally:
        world.stop(folder)


def measure(url: str) -> dict[str, list[float]]:
    pool = Pool(url)
    connection = psycopg2.connect(url)
    world.settle_down(url)
    found: dict[str, list[float]] = {}
    with connection.cursor() as cursor:
        one(cursor, "update codelupe.runs set state = 'failed', ended_at = now() where ended_at is null")
        run_id = one(cursor, "insert into codelupe.runs (stream, seed, epoch) values (%s, 1, 1) returning run_id")
        connection.commit()
        for number in range(2 * ROUNDS):
            kept = number % 2 == 0
            for table, trigger in TRIGGERS:
                cursor.execute(f"alter table codelupe.{table} {'enable' if kept else 'disable'} trigger {trigger}")
            connection.commit()
            ids = [10**9 + number * BATCH + n for n in range(BATCH)]
            how = "totals kept" if kept else "without"
            timed(found, f"claim of 1,000 rows, {how}", lambda: claim(cursor, run_id, ids))  # noqa: B023
            timed(found, f"verdict on 1,000 rows, {how}", lambda: settle(cursor, run_id, ids))  # noqa: B023
            cursor.execute("delete from codelupe.ledger where file_id = any(%s)", [ids])
            connection.commit()
        for table, trigger in TRIGGERS:
            cursor.execute(f"alter table codelupe.{table} enable trigger {trigger}")
        connection.commit()
        for _ in range(ROUNDS):
            timed(found, "totals, before a fold", lambda: runs.totals(pool, world.STREAM) and None)
        timed(found, "fold", lambda: runs.fold_totals(pool, world.STREAM))
        for _ in range(ROUNDS):
            timed(found, "totals, folded", lambda: runs.totals(pool, world.STREAM) and None)
        for _ in range(5):
            timed(found, "the whole ledger read instead", lambda: cursor.execute(LEDGER_READ, [world.STREAM]))
        connection.commit()
        for _ in range(3):
            timed(found, "all counted again", lambda: recount(cursor))
    connection.close()
    pool.close()
    return found


def one(cursor: extensions.cursor, statement: str) -> int:
    cursor.execute(statement, [world.STREAM] if "%s" in statement else None)
    return int(cursor.fetchone()[0]) if cursor.description else 0  # type: ignore[index]


def timed(found: dict[str, list[float]], name: str, work: Callable[[], None]) -> None:
    began = time.perf_counter()
    work()
    found.setdefault(name, []).append((time.perf_counter() - began) * 1000)


def claim(cursor: extensions.cursor, run_id: int, ids: list[int]) -> None:
    """Write what a claim writes, in its batches of 500."""
    for part in (ids[:500], ids[500:]):
        ledger = [(world.STREAM, n, run_id, "claimed", None, None, 1, None) for n in part]
        execute_values(cursor, QUERIES["ledger_claim"], ledger, page_size=500)
        rows = [(run_id, n, "train", "0" * 64, None) for n in part]
        execute_values(cursor, QUERIES["run_rows_insert"], rows, page_size=500)
    cursor.connection.commit()


def settle(cursor: extensions.cursor, run_id: int, ids: list[int]) -> None:
    """Write what a verdict writes."""
    rows = [(run_id, n, "trained", 500) for n in ids]
    template = f"(%s, {BIGINT}, %s, {BIGINT})"
    execute_values(cursor, QUERIES["run_rows_settle"], rows, template=template, page_size=BATCH)
    ledger = [(world.STREAM, n, run_id, "trained", None, None) for n in ids]
    template = f"(%s, {BIGINT}, {BIGINT}, %s, %s::text, %s::text)"
    execute_values(cursor, QUERIES["ledger_settle"], ledger, template=template, page_size=BATCH)
    cursor.connection.commit()


def recount(cursor: extensions.cursor) -> None:
    cursor.execute("select codelupe.recount()")
    cursor.connection.commit()


def report(found: dict[str, list[float]], url: str, rows: int) -> None:
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        ledger = one(cursor, "select count(*) from codelupe.ledger")
    lines = "\n".join(
        f"| {name} | {len(each)} | {statistics.median(each):,.1f} | {max(each):,.1f} |" for name, each in found.items()
    )
    page = PAGE.format(rows=rows, day=f"{datetime.now(UTC):%Y-%m-%d}", cores=os.cpu_count(),
                       load=os.getloadavg()[0], ledger=ledger, lines=lines)  # fmt: skip
    (ROOT / "benchmarks" / "results" / "totals.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
