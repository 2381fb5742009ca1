"""A source table of many rows, most of them settled, in an embedded Postgres of the benchmark's own."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
from psycopg2 import extensions

from db import embedded, lease, migrate, streams
from db.files import NewFile, insert_files
from db.pool import Pool
from service.settings.home import Home

STREAM = "growth"
BATCH_ROWS = 1_000_000
POOR_EVERY, SCATTERED_EVERY = 97, 400
"""One row in so many has too low a score, or has its score only now, after all its neighbours were settled."""

ROWS = """
insert into code_files (repository, path, language, content, quality_score)
select 'owner/' || n %% 50000, 'src/' || n || '.py', 'python', repeat(md5(n::text), 2),
       case when n %% %(poor)s = 0 then 20 when n %% %(scattered)s = 0 then null else 90 end
from generate_series(%(first)s, %(last)s) n
"""
SETTLED = """
insert into codelupe.ledger (stream, file_id, run_id, disposition, reason, settled_at)
select %(stream)s, n, %(run)s, 'rejected', 'near_duplicate', now()
from generate_series(%(first)s, %(last)s) n where n %% %(poor)s <> 0 and n %% %(scattered)s <> 0
"""


def build(folder: Path, rows: int, files: int) -> str:
    """Make the table unless the folder has it; returns the server's URL. `files` rows at its end are real code."""
    url = embedded.start(folder)
    pool = Pool(url)
    migrate.apply(pool)
    if streams.get(pool, STREAM) is None:
        connection = psycopg2.connect(url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("set session_replication_role = replica")  # 40 million checks of foreign keys left out
            _settled_rows(cursor, rows)
        insert_files(pool, code_files(files))
        connection.close()
        settle_down(url)
        bind(pool)
    pool.close()
    return url


def settle_down(url: str) -> None:
    """What writing left to be done later, done: it would be done by whoever reads first."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for work in ("vacuum (analyze) code_files", "vacuum (analyze) codelupe.ledger", "checkpoint"):
            cursor.execute(work)
    connection.close()


def bind(pool: Pool) -> None:
    """The stream, bound: the table is complete."""
    streams.bind(pool, STREAM, streams.Binding(source="code_files", base_model="m", base_revision="r", lora={}))


def take_lease(pool: Pool, home: Home) -> lease.Lease:
    """The right to write to the stream, for as long as the benchmark lasts; an earlier one may have been killed."""
    with pool.transaction() as cursor:
        cursor.execute("delete from codelupe.leases")
    held = lease.acquire(pool, STREAM, home.instance(), 24 * 3600)
    assert held is not None
    return held


def stop(folder: Path) -> None:
    """Stop the server; the table stays."""
    embedded.stop(folder)


def forget(pool: Pool) -> None:
    """As if nothing had been looked at or claimed but what was settled from the start."""
    with pool.transaction() as cursor:
        cursor.execute("delete from codelupe.chunks")
        cursor.execute("delete from codelupe.ledger where run_id > (select min(run_id) from codelupe.runs)")
        cursor.execute("delete from codelupe.held_out")
        cursor.execute("delete from codelupe.fingerprints")
        cursor.execute("update code_files set quality_score = null where quality_score = 91")


def score_scattered_rows(pool: Pool) -> None:
    """The scores come for which rows all over the table have waited; what an earlier run gave back rests."""
    with pool.transaction() as cursor:
        cursor.execute("set local statement_timeout = 0")
        cursor.execute(
            "update codelupe.ledger set not_before = now() + interval '1 day' where disposition = 'returned'"
        )
        cursor.execute("update code_files set quality_score = 91 where quality_score is null")
        cursor.execute("update codelupe.chunks set pending = 0, looked_at = null, due_at = '-infinity'")


def let_all_be_due(pool: Pool) -> None:
    """As if the time between two looks had passed."""
    with pool.transaction() as cursor:
        cursor.execute("update codelupe.chunks set due_at = now() where due_at > now()")


def count_ranges(pool: Pool) -> int:
    """Ranges of ids that the stream has."""
    return _number(pool, "select count(*) from codelupe.chunks")


def count_rows(pool: Pool, run_id: int, *, refused: bool) -> int:
    """Rows that a run has, or that it refused."""
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
        for statement in (ROWS, SETTLED):
            cursor.execute(statement, {**values, "stream": STREAM, "run": found[0]})
        print(f"rows to {last:,}: {time.perf_counter() - began:.1f} s", flush=True)


def poor_files(count: int) -> Iterator[NewFile]:
    """Files that are not good enough, so that what waits stays the same."""
    for number in range(count):
        yield NewFile(repository="poor", path=f"{number}.py", language="python", content="x" * 200, quality_score=1.0)


def code_files(count: int) -> Iterator[NewFile]:
    """Modules of random functions, each with a text of its own, of 1.5 to 3 thousand characters."""
    for number in range(count):
        yield NewFile(
            repository=f"new/{number % 2000}", path=f"src/module_{number}.py", language="python",
            content=code(number), quality_score=90.0,
        )  # fmt: skip


VERBS = ("read", "write", "merge", "split", "count", "sort", "find", "drop", "parse", "join", "pack", "scan", "fold")
NOUNS = ("row", "page", "node", "edge", "token", "frame", "queue", "table", "index", "block", "field", "stream", "leaf")


def code(seed: int) -> str:
    """A Python module by a seed: two of them share few runs of tokens."""
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
