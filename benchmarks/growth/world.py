"""Builds a source table with many rows, most of them settled, in the benchmark's own embedded Postgres."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
from psycopg2 import extensions, sql

from db import embedded, lease, migrate, streams
from db.files import NewFile, insert_files
from db.pool import Pool
from db.table import Source
from service.settings.home import Home

STREAM = "growth"
BATCH_ROWS = 1_000_000
POOR_EVERY, SCATTERED_EVERY = 97, 400
"""One row in 97 has too low a score. One in 400 gets its score late, after all its neighbours are settled."""

ROWS = """
insert into code_files (repository, path, language, content, quality_score)
select 'owner/' || n %% 50000, 'src/' || n || '.py', 'python', repeat(md5(n::text), 2),
       case when n %% %(poor)s = 0 then 20 when n %% %(scattered)s = 0 then null else 90 end
from generate_series(%(first)s, %(last)s) n
"""
SETTLED = """
insert into codelupe.ledger (stream, file_id, run_id, disposition, reason, settled_at, mark)
select %(stream)s, id, %(run)s, 'rejected', 'near_duplicate', now(), {mark}
from code_files s where id between %(first)s and %(last)s and id %% %(poor)s <> 0 and id %% %(scattered)s <> 0
"""
WITH_HASH = 500_000
"""The hash of the first rows is recorded as well, so that their texts can be compared."""
HASHES = """
insert into codelupe.run_rows (run_id, file_id, role, content_sha256, outcome)
select %(run)s, id, 'train', encode(sha256(convert_to(content, 'UTF8')), 'hex'), 'rejected'
from code_files where id <= %(last)s and id %% %(poor)s <> 0 and id %% %(scattered)s <> 0
"""


def build(folder: Path, rows: int, files: int) -> str:
    """Build the table unless the folder has it, and return the server's URL. The last `files` rows are code."""
    url = embedded.start(folder)
    pool = Pool(url)
    migrate.apply(pool)
    if streams.get(pool, STREAM) is None:
        connection = psycopg2.connect(url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("set session_replication_role = replica")  # skips 40 million foreign key checks
            _settled_rows(cursor, rows)
            cursor.execute("select codelupe.recount()")
        insert_files(pool, code_files(files))
        connection.close()
        settle_down(url)
        bind(pool)
    pool.close()
    return url


def settle_down(url: str) -> None:
    """Vacuum and checkpoint. Otherwise the first reader would have to do this work."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for work in ("vacuum (analyze) code_files", "vacuum (analyze) codelupe.ledger", "analyze", "checkpoint"):
            cursor.execute(work)
    connection.close()


def bind(pool: Pool) -> None:
    """Bind the stream. A bound stream marks the table as complete."""
    streams.bind(pool, STREAM, streams.Binding(source="code_files", base_model="m", base_revision="r", lora={}))


def take_lease(pool: Pool, home: Home) -> lease.Lease:
    """Take the stream's lease for the whole benchmark, even if a killed benchmark still holds it."""
    with pool.transaction() as cursor:
        cursor.execute("delete from codelupe.leases")
    held = lease.acquire(pool, STREAM, home.instance(), 24 * 3600)
    assert held is not None
    return held


def stop(folder: Path) -> None:
    """Stop the server. The table stays on disk."""
    embedded.stop(folder)


def forget(pool: Pool) -> None:
    """Reset the stream: only the rows that were settled from the start stay settled."""
    with pool.transaction() as cursor:
        cursor.execute("delete from codelupe.chunks")
        cursor.execute("delete from codelupe.ledger where run_id > (select min(run_id) from codelupe.runs)")
        cursor.execute("delete from codelupe.held_out")
        cursor.execute("delete from codelupe.fingerprints")
        cursor.execute("update code_files set quality_score = null where quality_score = 91")


def score_scattered_rows(pool: Pool) -> None:
    """Give the scattered rows their scores. Rows that an earlier claim gave back are not claimed for a day."""
    with pool.transaction() as cursor:
        cursor.execute("set local statement_timeout = 0")
        cursor.execute(
            "update codelupe.ledger set not_before = now() + interval '1 day' where disposition = 'returned'"
        )
        cursor.execute("update code_files set quality_score = 91 where quality_score is null")
        cursor.execute("update codelupe.chunks set pending = 0, looked_at = null, due_at = '-infinity'")


def let_all_be_due(pool: Pool) -> None:
    """Make all ranges due, as if the interval between two looks had passed."""
    with pool.transaction() as cursor:
        cursor.execute("update codelupe.chunks set due_at = now() where due_at > now()")


def forget_marks(pool: Pool) -> None:
    """Forget the marks of the first rows, as if the table had been restored from a dump."""
    with pool.transaction() as cursor:
        cursor.execute("update codelupe.ledger set mark = null where file_id <= %s", [WITH_HASH])
        cursor.execute("update codelupe.chunks set due_at = '-infinity' where last_id <= %s", [WITH_HASH])


def count_ranges(pool: Pool) -> int:
    """Return the number of ranges of ids of the stream."""
    return _number(pool, "select count(*) from codelupe.chunks")


def count_rows(pool: Pool, run_id: int, *, refused: bool) -> int:
    """Return the number of rows in a run, or of rows that it refused."""
    return _number(
        pool, f"select count(*) from codelupe.run_rows where run_id = {run_id} and (outcome is not null) = {refused}"
    )


def _number(pool: Pool, statement: str) -> int:
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(statement)
        row = cursor.fetchone()
    assert row is not None
    return int(row[0])


def _settled_rows(cursor: extensions.cursor, rows: int) -> None:
    cursor.execute(
        "insert into codelupe.runs (stream, state, seed, epoch, ended_at)"
        " values (%s, 'failed', 0, 0, now()) returning run_id",
        [STREAM],
    )
    found = cursor.fetchone()
    assert found is not None
    for first in range(1, rows + 1, BATCH_ROWS):
        began = time.perf_counter()
        last = min(rows, first + BATCH_ROWS - 1)
        values = {"first": first, "last": last, "poor": POOR_EVERY, "scattered": SCATTERED_EVERY}
        settled = sql.SQL(SETTLED).format(mark=Source(has_xmin=True).mark())
        for statement in (ROWS, settled):
            cursor.execute(statement, {**values, "stream": STREAM, "run": found[0]})
        print(f"rows to {last:,}: {time.perf_counter() - began:.1f} s", flush=True)
    cursor.execute(HASHES, {"run": found[0], "last": WITH_HASH, "poor": POOR_EVERY, "scattered": SCATTERED_EVERY})


def poor_files(count: int) -> Iterator[NewFile]:
    """Yield files whose score is too low, so that the number of waiting rows stays the same."""
    for number in range(count):
        yield NewFile(repository="poor", path=f"{number}.py", language="python", content="x" * 200, quality_score=1.0)


def code_files(count: int) -> Iterator[NewFile]:
    """Yield modules of random functions. Each has a different text of 1,500 to 3,000 characters."""
    for number in range(count):
        yield NewFile(
            repository=f"new/{number % 2000}", path=f"src/module_{number}.py", language="python",
            content=code(number), quality_score=90.0,
        )  # fmt: skip


VERBS = ("read", "write", "merge", "split", "count", "sort", "find", "drop", "parse", "join", "pack", "scan", "fold")
NOUNS = ("row", "page", "node", "edge", "token", "frame", "queue", "table", "index", "block", "field", "stream", "leaf")


def code(seed: int) -> str:
    """Return a Python module for a seed. Two modules have few token sequences in common."""
    chance = random.Random(seed)

    def name() -> str:
        return f"{chance.choice(VERBS)}_{chance.choice(NOUNS)}_{chance.randrange(1000)}"

    parts = []
    for _ in range(chance.randrange(8, 16)):
        one, two, three = name(), name(), name()
        parts.append(
            f"def {one}({two}, {three}={chance.randrange(10**6)}):\n"
            f"    if {two} {chance.choice('<>')} {three}:\n"
            f"        return {name()}({three} {chance.choice('+-*/')} {chance.randrange(10**6)})\n"
            f"    return [{name()}({two}) for {two} in {three}]\n"
        )
    return "\n".join(parts)
