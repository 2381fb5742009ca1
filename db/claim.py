"""Claims rows for a run in one REPEATABLE READ transaction.

The ledger and all texts are read from the same snapshot, so changes that a producer makes in the meantime have no
effect on the run. A claim can take minutes, and the lease must be renewed during that time. The claim therefore only
reads the lease at the start, and locks it at the end.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Literal

from psycopg2 import extensions
from psycopg2.extras import execute_values

from db.chunks import GREATEST_ID, LEAST_ID
from db.errors import DatabaseError, Misconfigured
from db.lease import Lease, fence
from db.pool import Pool
from db.rows import BadMetadata, HeldOutPlace, HeldOutRow, LongName, SourceRow, digest, source_row
from db.statements import QUERIES, as_json
from db.suspects import excluded_suspects
from db.table import Eligibility, Source, resolved

BATCH_ROWS = 500
BATCH_CHARS = 20_000_000
"""The maximum number of characters that are read or written at once. For reading, every text counts as `max_chars`."""
PAGE_ROWS = 10_000
"""The minimum page size of a read, even if fewer rows are wanted: many of the rows may be put off."""
HELD_OUT_ROWS = 50
KEEP_ALIVE_SECONDS = 10.0

Role = Literal["train", "held_out", "replay"]


@contextmanager
def claim(
    pool: Pool,
    lease: Lease,
    source: Source,
    eligibility: Eligibility,
    *,
    limit: int,
    parent_version: int | None,
    trunk_run_id: int | None = None,
    seed: int,
) -> Iterator[Claim]:
    """Start a run and claim rows for it.

    The claim is committed when the block ends, and rolled back if the block raises or cancels the claim. If `source`
    does not come from `check_source`, its columns are looked up here. The commit needs a second connection of the pool.

    Raises:
        LeaseLost: the lease expired or was taken. It is checked at the start and before the commit.
        Misconfigured: the pool allows only one connection, or the source table cannot be used.
        Unavailable: if the connection was lost during the commit, use `runs.live` to find out whether it succeeded.
    """
    if pool.stats().limit < 2:
        raise Misconfigured("a claim needs two database connections. Set DB_POOL_MAX_CONN to at least 2")
    with pool.transaction(isolation="repeatable read") as cursor:
        fence(cursor, lease, lock=False)
        cursor.execute(QUERIES["claim_idle_limit"])
        source = resolved(cursor, source)
        cursor.execute(
            QUERIES["run_insert"],
            {
                "stream": lease.stream,
                "parent_version": parent_version,
                "trunk_run_id": trunk_run_id,
                "seed": seed,
                "epoch": lease.epoch,
            },
        )
        row = cursor.fetchone()
        assert row is not None
        claimed = Claim(
            cursor=cursor,
            lease=lease,
            source=source,
            eligibility=eligibility,
            limit=limit,
            run_id=row[0],
            began=row[1],
        )
        yield claimed
        if claimed.cancelled:
            claimed.close()
            cursor.connection.rollback()
            return
        claimed.flush()
        claimed.discard_counts()
        claimed.close()
        with pool.transaction() as guard:
            fence(guard, lease)
            guard.execute(QUERIES["training_request_clear"], {"stream": lease.stream, "began": claimed.began})
            cursor.connection.commit()


@dataclass(kw_only=True)
class Claim:
    """An open claim. Only the thread that opened it may call its methods."""

    cursor: extensions.cursor
    lease: Lease
    source: Source
    eligibility: Eligibility
    limit: int
    run_id: int
    began: datetime
    """The start time, by the database's clock."""
    phase: str | None = None
    """The phase whose rows are claimed. None: the stream has no phases."""
    cancelled: bool = False
    rejected: int = 0
    """Rows that the claim rejected, those that could not be decoded included."""
    put_off: int = 0
    """Rows left for a later run, because `admit` returned False or because they are excluded suspects."""

    def __post_init__(self) -> None:
        self._ledger: list[tuple[Any, ...]] = []
        self._run_rows: list[tuple[Any, ...]] = []
        self._held_out: list[tuple[Any, ...]] = []
        self._held_out_chars = 0
        self._open: list[extensions.cursor] = []
        self._ranges: list[int] = []
        self._heard = time.monotonic()

    def rows(self, admit: Callable[[SourceRow], bool] = lambda row: True) -> Iterator[SourceRow]:
        """Yield up to `limit` eligible rows that no run has. Rows are read as they are used.

        A row for which `admit` returns False stays pending and does not count towards `limit`. This method rejects rows
        that are not UTF-8 as `not_utf8` (a SQL_ASCII database can contain any bytes), rows with a name that is too long
        as `long_name`, and rows with unusable metadata as `bad_metadata`. Rejected rows count towards `limit`.

        Raises:
            Misconfigured: an id occurs twice. If the source is a view, it must give each row its own id.
        """
        left = self.limit
        excluded = excluded_suspects(self.cursor, self.lease.stream, self.source, self.eligibility)
        for record in self._records():
            if record[0] in excluded:
                self.put_off += 1
                continue
            row = self._decoded(record)
            if row is not None and not admit(row):
                self.put_off += 1
                continue
            if row is not None:
                yield row
            left -= 1
            if left == 0:
                return

    def waiting_by_phase(self) -> Counter[str]:
        """Count the claimable rows of each phase."""
        counts: Counter[str] = Counter()
        statement = self.source.statement("source_phases")
        for first_id, last_id in self._ranges_to_claim():
            parameters = {"stream": self.lease.stream, "first_id": first_id, "last_id": last_id}
            self.cursor.execute(statement, {**parameters, **self.eligibility.parameters()})
            counts.update(dict(self.cursor.fetchall()))
        return counts

    def enter_phase(self, phase: str) -> None:
        """Claim the rows of one phase only, and record this with the run."""
        self.phase = phase
        self.cursor.execute(QUERIES["run_phase"], {"run_id": self.run_id, "phase": phase})

    def _ranges_to_claim(self) -> list[tuple[int, int]]:
        """Return the ranges that have pending rows. Ranges that were never counted come last."""
        self.cursor.execute(QUERIES["chunks_to_claim"], {"stream": self.lease.stream, "greatest": GREATEST_ID})
        return self.cursor.fetchall() or [(LEAST_ID, GREATEST_ID)]

    def _records(self) -> Iterator[Sequence[Any]]:
        """Yield the claimable records of each range."""
        for first_id, last_id in self._ranges_to_claim():
            self._ranges.append(first_id)
            yield from self._records_of(first_id, last_id)

    def _records_of(self, first_id: int, last_id: int) -> Iterator[Sequence[Any]]:
        """Yield the records of a range by id, a page per statement. Without a limit, Postgres would sort texts."""
        statement = self.source.statement("source_claimable")
        page_rows = max(self.limit, PAGE_ROWS)
        found = page_rows
        while found == page_rows and first_id <= last_id:
            found = 0
            parameters = {
                "stream": self.lease.stream, "first_id": first_id, "last_id": last_id, "limit": page_rows,
                "phase": self.phase, **self.eligibility.parameters(),
            }  # fmt: skip
            for found, record in enumerate(self.stream("claim_rows", statement, parameters), 1):
                if found > 1 and record[0] < first_id:
                    raise Misconfigured(
                        f"the source table {self.source.table} has the id {record[0]} twice. Make its ids unique"
                    )
                first_id = record[0] + 1
                yield record

    def keep(self, row: SourceRow, role: Role) -> None:
        """Add a row to this run. `row.sha256` is recorded, which is that of the text as read from the source.

        A replay row stays settled by the run that trained on it. All other rows are claimed.
        """
        if row.held_out and role != "held_out":
            raise ValueError(f"file {row.file_id} was held out earlier and must never be trained on")
        if role != "replay":
            self._ledger.append((self.lease.stream, row.file_id, self.run_id, "claimed", None, None, row.mark, None))
        self._run_rows.append((self.run_id, row.file_id, role, row.sha256, None))
        if role == "held_out":
            self._held_out.append(
                (
                    self.lease.stream, row.file_id, self.run_id,
                    row.repository, row.path, row.language, row.content, digest(row.content.encode()),
                    as_json(row.metadata), row.version,
                )
            )  # fmt: skip
            self._held_out_chars += len(row.content)
        self._flush_full()

    def reject(self, row: SourceRow, reason: str, *, settings: str | None = None) -> None:
        """Settle a row as rejected, and record this under the run.

        Args:
            settings: a digest of the settings that the rejection depends on. It is void when they change (db/void.py)
        """
        self._reject(row.file_id, row.held_out, row.sha256, reason, row.mark, settings)

    def earlier_held_out(self, seed: int, max_chars: int, trunk: Sequence[int] = ()) -> Iterator[HeldOutRow]:
        """Yield settled held-out files of earlier runs, up to `max_chars` in total.

        First come all files of the runs in `trunk`, then files of each other run in turn. The order within a run
        depends on `seed` only. The first file is yielded whatever its length.
        """
        chars = 0
        parameters = {"stream": self.lease.stream, "seed": seed, "trunk": list(trunk)}
        order = (record[0] for record in self.stream("held_out_order", QUERIES["held_out_order"], parameters))
        for record in self._held_out_texts(order):
            row = HeldOutRow(
                file_id=record[0], repository=record[1], path=record[2], language=record[3],
                content=record[4], sha256=record[5], metadata=record[6], run_id=record[7],
            )  # fmt: skip
            if chars and chars + len(row.content) > max_chars:
                return
            chars += len(row.content)
            yield row

    def held_out_places(self) -> Iterator[HeldOutPlace]:
        """Yield repository and path of every held-out file of the stream."""
        for record in self.stream("held_out_places", QUERIES["held_out_places"], {"stream": self.lease.stream}):
            yield HeldOutPlace(file_id=record[0], repository=record[1], path=record[2])

    def _held_out_texts(self, order: Iterator[int]) -> Iterator[Sequence[Any]]:
        """Yield records of held-out files, a few per statement, so that Postgres does not sort all texts at once."""
        while files := list(islice(order, min(HELD_OUT_ROWS, self.most_texts()))):
            self.cursor.execute(QUERIES["held_out_texts"], {"stream": self.lease.stream, "files": files})
            yield from self.cursor.fetchall()

    def keep_alive(self) -> None:
        """Call this often. The server ends a claim that is idle for long, so that the next leader can claim."""
        if time.monotonic() - self._heard > KEEP_ALIVE_SECONDS:
            with self.cursor.connection.cursor() as cursor:
                cursor.execute("select 1")
            self._heard = time.monotonic()

    def cancel(self) -> None:
        """Roll the claim back when the block ends, without an error."""
        self.cancelled = True

    def flush(self) -> None:
        """Write the buffered records."""
        self._write("ledger_claim", self._ledger)
        self._write("run_rows_insert", self._run_rows)
        replaced = any(record[-1] > 0 for record in self._held_out)
        self._write("held_out_insert", self._held_out)
        self._held_out_chars = 0
        if replaced:
            self.cursor.execute(QUERIES["held_out_replace"], {"stream": self.lease.stream, "run_id": self.run_id})

    def discard_counts(self) -> None:
        """Discard the counts of the ranges that rows were read from."""
        parameters = {"stream": self.lease.stream, "ranges": self._ranges}
        self.cursor.execute(QUERIES["chunks_claimed_from"], parameters)

    def close(self) -> None:
        """Close the server-side cursors now. Otherwise an unfinished one would be closed in a later transaction."""
        for cursor in self._open:
            cursor.close()

    def _flush_full(self) -> None:
        if len(self._run_rows) >= BATCH_ROWS or self._held_out_chars >= BATCH_CHARS:
            self.flush()

    def _write(self, name: str, records: list[tuple[Any, ...]]) -> None:
        if not records:
            return
        execute_values(self.cursor, QUERIES[name], records, page_size=len(records))
        if self.cursor.rowcount != len(records):
            raise DatabaseError(
                f"run {self.run_id} could claim {self.cursor.rowcount} of {len(records)} rows ({name}), "
                "because another run has the others"
            )
        records.clear()

    def _reject(
        self, file_id: int, held_out: bool, sha256: str, reason: str, mark: int | None, settings: str | None = None
    ) -> None:
        self.rejected += 1
        role: Role = "held_out" if held_out else "train"
        entry = (self.lease.stream, file_id, self.run_id, "rejected", reason, self.began, mark, settings)
        self._ledger.append(entry)
        self._run_rows.append((self.run_id, file_id, role, sha256, "rejected"))
        self._flush_full()

    def _decoded(self, record: Sequence[Any]) -> SourceRow | None:
        """Return the row with its texts decoded. If that fails, reject the row and return None."""
        file_id, content, held_out, mark = record[0], record[4], record[6], record[10]
        try:
            return source_row(record)
        except UnicodeDecodeError:
            self._reject(file_id, held_out, digest(content), "not_utf8", mark)
        except LongName:
            self._reject(file_id, held_out, digest(content), "long_name", mark)
        except BadMetadata:
            self._reject(file_id, held_out, digest(content), "bad_metadata", mark)
        return None

    def stream(self, name: str, statement: Any, parameters: dict[str, Any]) -> Iterator[Sequence[Any]]:
        """Yield the records of a server-side cursor, so that memory never holds the whole result."""
        with self.cursor.connection.cursor(name=name) as cursor:
            self._open.append(cursor)
            cursor.itersize = min(BATCH_ROWS, self.most_texts())
            cursor.execute(statement, parameters)
            yield from cursor

    def most_texts(self) -> int:
        """How many texts may be in memory at once."""
        return max(1, BATCH_CHARS // self.eligibility.max_chars)
