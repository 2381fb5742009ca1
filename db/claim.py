"""Claim rows for a run: one snapshot, in which the run, the ledger and the texts agree.

Every row is read from the same REPEATABLE READ snapshot as the ledger, so nothing that a producer does
meanwhile changes what is trained. The lease is looked at first and locked at the end alone: a claim can last
minutes, and the renewals must go on.
"""

from __future__ import annotations

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
from db.rows import BadMetadata, HeldOutPlace, HeldOutRow, SourceRow, digest, metadata_object, text_of
from db.statements import QUERIES, as_json
from db.suspects import left_alone
from db.table import Eligibility, Source, resolved

BATCH_ROWS = 500
BATCH_CHARS = 20_000_000
"""Of texts that are read at once, where each is as long as it may be, or written at once."""
PAGE_ROWS = 10_000
"""Rows that one statement looks for at least: with a small limit, many may be put off."""
HELD_OUT_ROWS = 50

Role = Literal["train", "held_out"]


@contextmanager
def claim(
    pool: Pool,
    lease: Lease,
    source: Source,
    eligibility: Eligibility,
    *,
    limit: int,
    parent_version: int | None,
    seed: int,
) -> Iterator[Claim]:
    """Start a run and claim rows for it; committed when the block ends, undone when it raises or cancels.

    `source` may come from `check_source` or not; in the latter case its columns are looked up here. For the
    moment of the commit a second connection of the pool is needed.

    Raises:
        LeaseLost: at the start, or before the commit.
        Unavailable: after a lost connection it is unknown whether the commit arrived; `runs.live` tells.
    """
    if pool.stats().limit < 2:
        raise Misconfigured("a claim needs two connections: DB_POOL_MAX_CONN must be at least 2")
    with pool.transaction(isolation="repeatable read") as cursor:
        fence(cursor, lease, lock=False)
        source = resolved(cursor, source)
        cursor.execute(
            QUERIES["run_insert"],
            {"stream": lease.stream, "parent_version": parent_version, "seed": seed, "epoch": lease.epoch},
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
        claimed.forget_counts()
        claimed.close()
        with pool.transaction() as guard:
            fence(guard, lease)
            guard.execute(QUERIES["training_request_clear"], {"stream": lease.stream, "began": claimed.began})
            cursor.connection.commit()


@dataclass(kw_only=True)
class Claim:
    """An open claim. Its methods belong to the thread that opened it."""

    cursor: extensions.cursor
    lease: Lease
    source: Source
    eligibility: Eligibility
    limit: int
    run_id: int
    began: datetime
    """By the database's clock."""
    cancelled: bool = False
    rejected: int = 0
    """Rows settled at once, those whose bytes are not UTF-8 included."""
    put_off: int = 0
    """Rows that were left for a later run: `admit` did not take them, or they are the other half of some suspects."""

    def __post_init__(self) -> None:
        self._ledger: list[tuple[Any, ...]] = []
        self._run_rows: list[tuple[Any, ...]] = []
        self._held_out: list[tuple[Any, ...]] = []
        self._held_out_chars = 0
        self._open: list[extensions.cursor] = []
        self._ranges: list[int] = []

    def rows(self, admit: Callable[[SourceRow], bool] = lambda row: True) -> Iterator[SourceRow]:
        """Eligible rows that no run has, at most `limit` of them, read as they are used.

        A row that `admit` does not take stays pending and does not count. One whose bytes are not UTF-8 (a SQL_ASCII
        database holds any) is rejected here, as `not_utf8`; one with unusable metadata as `bad_metadata`.

        Raises:
            Misconfigured: an id occurs twice; a view has to give each row its own.
        """
        left = self.limit
        others = left_alone(self.cursor, self.lease.stream, self.source, self.eligibility)
        for record in self._records():
            if record[0] in others:
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

    def _records(self) -> Iterator[Sequence[Any]]:
        """Claimable records, range by range where some are known to be; a range nobody has looked at comes last."""
        parameters = {"stream": self.lease.stream, "greatest": GREATEST_ID}
        self.cursor.execute(QUERIES["chunks_to_claim"], parameters)
        for first_id, last_id in self.cursor.fetchall() or [(LEAST_ID, GREATEST_ID)]:
            self._ranges.append(first_id)
            yield from self._records_of(first_id, last_id)

    def _records_of(self, first_id: int, last_id: int) -> Iterator[Sequence[Any]]:
        """A range's records by id, a page a statement: sorted without a limit, the texts would go through the sort."""
        statement = self.source.statement("source_claimable")
        page_rows = max(self.limit, PAGE_ROWS)
        found = page_rows
        while found == page_rows and first_id <= last_id:
            found = 0
            parameters = {
                "stream": self.lease.stream, "first_id": first_id, "last_id": last_id, "limit": page_rows,
                **vars(self.eligibility),
            }  # fmt: skip
            for found, record in enumerate(self.stream("claim_rows", statement, parameters), 1):
                if found > 1 and record[0] < first_id:
                    raise Misconfigured(
                        f"the source table {self.source.table} has the id {record[0]} twice; ids must be unique"
                    )
                first_id = record[0] + 1
                yield record

    def keep(self, row: SourceRow, role: Role) -> None:
        """Claim a row for this run. The ledger keeps the sha256 of what was read, whatever was replaced in it since."""
        if row.held_out and role == "train":
            raise ValueError(f"file {row.file_id} was held out earlier and must never be trained on")
        self._ledger.append((self.lease.stream, row.file_id, self.run_id, "claimed", None, None))
        self._run_rows.append((self.run_id, row.file_id, role, row.sha256, None))
        if role == "held_out":
            self._held_out.append(
                (
                    self.lease.stream, row.file_id, self.run_id,
                    row.repository, row.path, row.language, row.content, digest(row.content.encode()),
                    as_json(row.metadata),
                )
            )  # fmt: skip
            self._held_out_chars += len(row.content)
        self._flush_full()

    def reject(self, row: SourceRow, reason: str) -> None:
        """Settle a row as not to be trained on, with the run as its witness."""
        self._reject(row.file_id, row.held_out, row.sha256, reason)

    def earlier_held_out(self, seed: int, max_chars: int) -> Iterator[HeldOutRow]:
        """Settled held-out files of earlier runs, in a seeded order, up to `max_chars` together.

        The first one comes whatever its length.
        """
        chars = 0
        parameters = {"stream": self.lease.stream, "seed": seed}
        order = (record[0] for record in self.stream("held_out_order", QUERIES["held_out_order"], parameters))
        for record in self._held_out_texts(order):
            row = HeldOutRow(
                file_id=record[0], repository=record[1], path=record[2], language=record[3],
                content=record[4], sha256=record[5], metadata=record[6],
            )  # fmt: skip
            if chars and chars + len(row.content) > max_chars:
                return
            chars += len(row.content)
            yield row

    def held_out_places(self) -> Iterator[HeldOutPlace]:
        """Where every held-out file of the stream is."""
        for record in self.stream("held_out_places", QUERIES["held_out_places"], {"stream": self.lease.stream}):
            yield HeldOutPlace(file_id=record[0], repository=record[1], path=record[2])

    def _held_out_texts(self, order: Iterator[int]) -> Iterator[Sequence[Any]]:
        """Records of held-out files, a few at a time: sorted together, all texts would go through the sort."""
        while files := list(islice(order, min(HELD_OUT_ROWS, self._most_texts()))):
            self.cursor.execute(QUERIES["held_out_texts"], {"stream": self.lease.stream, "files": files})
            yield from self.cursor.fetchall()

    def cancel(self) -> None:
        """Undo everything when the block ends, without an error."""
        self.cancelled = True

    def flush(self) -> None:
        """Write what is still in hand."""
        self._write("ledger_claim", self._ledger)
        self._write("run_rows_insert", self._run_rows)
        self._write("held_out_insert", self._held_out)
        self._held_out_chars = 0

    def forget_counts(self) -> None:
        """What waits in the ranges that rows were read from is unknown from now on."""
        parameters = {"stream": self.lease.stream, "ranges": self._ranges}
        self.cursor.execute(QUERIES["chunks_claimed_from"], parameters)

    def close(self) -> None:
        """Close the server-side cursors: a half-read one would be closed in a later transaction."""
        for cursor in self._open:
            cursor.close()

    def _flush_full(self) -> None:
        if len(self._ledger) >= BATCH_ROWS or self._held_out_chars >= BATCH_CHARS:
            self.flush()

    def _write(self, name: str, records: list[tuple[Any, ...]]) -> None:
        if not records:
            return
        execute_values(self.cursor, QUERIES[name], records, page_size=len(records))
        if self.cursor.rowcount != len(records):
            raise DatabaseError(
                f"run {self.run_id} could claim {self.cursor.rowcount} of {len(records)} rows ({name}): "
                "another run has the others"
            )
        records.clear()

    def _reject(self, file_id: int, held_out: bool, sha256: str, reason: str) -> None:
        self.rejected += 1
        role: Role = "held_out" if held_out else "train"
        self._ledger.append((self.lease.stream, file_id, self.run_id, "rejected", reason, self.began))
        self._run_rows.append((self.run_id, file_id, role, sha256, "rejected"))
        self._flush_full()

    def _decoded(self, record: Sequence[Any]) -> SourceRow | None:
        """The row with its texts decoded; None where that fails (it is rejected then)."""
        file_id, repository, path, language, content, score, held_out, attempts, license, metadata = record
        sha256 = digest(content)
        try:
            return SourceRow(
                file_id=file_id,
                repository=text_of(repository),
                path=text_of(path),
                language=(text_of(language) or "text").strip().lower() or "text",
                content=bytes(content).decode(),
                sha256=sha256,
                quality_score=score,
                held_out=held_out,
                attempts=attempts,
                license=text_of(license),
                metadata=metadata_object(metadata),
            )
        except UnicodeDecodeError:
            self._reject(file_id, held_out, sha256, "not_utf8")
        except BadMetadata:
            self._reject(file_id, held_out, sha256, "bad_metadata")
        return None

    def stream(self, name: str, statement: Any, parameters: dict[str, Any]) -> Iterator[Sequence[Any]]:
        """Records of a server-side cursor: the table never lies in memory whole."""
        with self.cursor.connection.cursor(name=name) as cursor:
            self._open.append(cursor)
            cursor.itersize = min(BATCH_ROWS, self._most_texts())
            cursor.execute(statement, parameters)
            yield from cursor

    def _most_texts(self) -> int:
        """How many may be in memory at once."""
        return max(1, BATCH_CHARS // self.eligibility.max_chars)
