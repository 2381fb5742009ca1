"""What waits in the source, by ranges of its ids: the newest is counted at each poll, the others in turn.

    -2⁶³ ├── 50,000 rows ──┼── 50,000 rows ──┼ … ┼── 10,000 to 20,000 rows ──┤ 2⁶³ - 1
             one at a time, the most overdue first        the window: each poll

The ranges of a stream cover every id there can be. So a row is found, whatever its id and whenever it was committed,
scored or returned, at the latest when its range's turn comes; and no statement's cost depends on the table's size.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from psycopg2 import extensions

from db.lease import Lease, fence
from db.pool import Pool
from db.statements import QUERIES, as_json
from db.table import Eligibility, Source, resolved

LEAST_ID, GREATEST_ID = -(2**63), 2**63 - 1
WINDOW_ROWS, WINDOW_SECONDS = 10_000, 0.03
"""The newest range holds so many rows at least, where there are as many, and fewer than twice as many; fewer where a
look at them takes longer: to tell whether a long text is too long, it has to be unpacked."""
CHUNK_ROWS, CHUNK_SECONDS = 50_000, 0.15
"""Most rows that one look at another range reads; where it has more, the rest becomes a range of its own. Fewer where a
look takes longer."""
LEAST_ROWS = 500
"""Not fewer, however long a look takes."""
RECENT_CHUNKS, RECENT_FACTOR = 4, 10
"""So many ranges before the newest have their turn so much more often: it is there that commits come late."""
COUNT_ROWS = 200_000
"""Newest rows that `count` looks at."""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """What waits: the newest rows as they are, the others as they were when they were last looked at."""

    rows: int
    oldest_age_seconds: float | None
    """None where nothing waits, or where the table does not know when its rows came."""
    ineligible: Mapping[str, int]
    """Rows by reason: no_score, low_score, too_short, too_long, no_content."""
    unknown_ranges: int
    """Ranges that nobody has looked at, or not since a run took rows there or gave some back; their rows are not in
    the counts."""
    looked_age_seconds: float | None
    """How long ago the look at a range was that is longest ago; None where there was none."""
    at: datetime
    """When this was said, by the database's clock."""


class _Range(NamedTuple):
    """Ids between two, both of them included."""

    first_id: int
    last_id: int
    most_rows: int
    """How many rows one look may read."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """One look at a range."""

    pending: int
    oldest: str | None
    """As the database writes it: it knows times that Python does not."""
    ineligible: dict[str, int]
    rests_until: str | None
    """When the next of the returned rows that still rest may be claimed."""
    most_rows: int
    """How many rows the next look may read."""


def poll(pool: Pool, lease: Lease, source: Source, eligibility: Eligibility) -> Pending:
    """Look at the newest rows; what waits there and, as far as is known, elsewhere.

    Raises:
        LeaseLost: another service looks after the stream.
    """
    with pool.transaction() as cursor:
        fence(cursor, lease)
        looking = _Looking(cursor, resolved(cursor, source), eligibility, lease.stream)
        looking.run("chunks_forget")
        newest = looking.newest_range()
        if looking.nth("source_nth_newest", newest, 2 * newest.most_rows) is not None:
            begin = looking.nth("source_nth_newest", newest, newest.most_rows)
            if begin is not None and begin > newest.first_id:
                newest = looking.cut_newest(newest, begin)
        found = looking.look(newest, WINDOW_SECONDS, WINDOW_ROWS)
        looking.store(newest, found, interval_seconds=0)
        return looking.known()


def sweep(
    pool: Pool,
    lease: Lease,
    source: Source,
    eligibility: Eligibility,
    *,
    interval_seconds: float,
    urgent: bool = False,
    confirm: datetime | None = None,
) -> Pending | None:
    """Look at the range that is most overdue; None where none is due.

    `interval_seconds` lies between two looks at a range. With `urgent` only ranges are due of which nothing is known;
    with `confirm` also those where rows were counted before that time.

    Raises:
        LeaseLost: another service looks after the stream.
    """
    with pool.transaction() as cursor:
        fence(cursor, lease)
        looking = _Looking(cursor, resolved(cursor, source), eligibility, lease.stream)
        looking.run("chunk_due", due="-infinity" if urgent else None, confirm=confirm)
        row = cursor.fetchone()
        if row is None:
            return None
        chunk = _Range(*row)
        end = looking.nth("source_nth", chunk, chunk.most_rows)
        if end is not None and end < chunk.last_id:
            chunk = looking.cut(chunk, end)
        found = looking.look(chunk, CHUNK_SECONDS, CHUNK_ROWS)
        looking.store(chunk, found, interval_seconds=interval_seconds)
        return looking.known()


def count(pool: Pool, source: Source, eligibility: Eligibility, stream: str) -> int:
    """Rows that wait, for who has no lease: nothing is written, and more of the newest rows are looked at."""
    with pool.transaction(read_only=True) as cursor:
        looking = _Looking(cursor, resolved(cursor, source), eligibility, stream)
        looking.run("chunk_newest")
        row = cursor.fetchone()
        newest = _Range(row[0] if row else LEAST_ID, GREATEST_ID, COUNT_ROWS)
        begin = looking.nth("source_nth_newest", newest, COUNT_ROWS)
        found = looking.count(newest if begin is None else newest._replace(first_id=begin))
        return found.pending + looking.known(without=newest.first_id).rows


def distrust(pool: Pool, lease: Lease) -> None:
    """A claim did not find the rows that were counted: wherever some were, they are to be counted again."""
    with pool.transaction() as cursor:
        fence(cursor, lease)
        cursor.execute(QUERIES["chunks_distrust"], {"stream": lease.stream})


class _Looking:
    """The statements of one transaction on one stream's ranges."""

    def __init__(self, cursor: extensions.cursor, source: Source, eligibility: Eligibility, stream: str) -> None:
        self._cursor, self._source, self._limits = cursor, source, vars(eligibility)
        self._fixed = {"stream": stream, "eligibility": as_json(self._limits), "greatest": GREATEST_ID}

    def run(self, name: str, **values: Any) -> None:
        self._cursor.execute(QUERIES[name], {**self._fixed, **values})

    def newest_range(self) -> _Range:
        """The range without an end; made, over all ids, where the stream has none."""
        self.run("chunk_newest")
        row = self._cursor.fetchone()
        if row is None:
            newest = _Range(LEAST_ID, GREATEST_ID, WINDOW_ROWS)
            self.run("chunk_insert", **newest._asdict())
            return newest
        return _Range(row[0], GREATEST_ID, row[1])

    def cut_newest(self, newest: _Range, begin: int) -> _Range:
        """Let the newest range begin at `begin`. What is before becomes part of the range before it."""
        self.run("chunk_begin_at", first_id=newest.first_id, begin=begin)
        most_rows = min(CHUNK_ROWS, newest.most_rows * CHUNK_ROWS // WINDOW_ROWS)
        self.run("chunk_extend", before=newest.first_id - 1, end=begin - 1, most_rows=most_rows)
        if self._cursor.fetchone() is None:
            self.run("chunk_insert", first_id=newest.first_id, last_id=begin - 1, most_rows=most_rows)
        return newest._replace(first_id=begin)

    def cut(self, chunk: _Range, end: int) -> _Range:
        """Let a range end at `end`. What is after becomes a range of its own."""
        self.run("chunk_end_at", first_id=chunk.first_id, end=end)
        self.run("chunk_insert", first_id=end + 1, last_id=chunk.last_id, most_rows=chunk.most_rows)
        return chunk._replace(last_id=end)

    def nth(self, name: str, chunk: _Range, rows: int) -> int | None:
        """The id of the `rows`-th row of a range, from its begin or its end."""
        self._cursor.execute(self._source.statement(name), {**chunk._asdict(), "rows": rows})
        row = self._cursor.fetchone()
        return None if row is None else int(row[0])

    def look(self, chunk: _Range, seconds: float, most_rows: int) -> _Found:
        """Count a range's rows, and see whether as many can be read in about so many seconds.

        A range that took long is counted twice: once may be chance, and what was cut stays cut.
        """
        fastest = float("inf")
        for _ in range(2):
            started = time.monotonic()
            found = self.count(chunk)
            fastest = min(fastest, time.monotonic() - started)
            if fastest < 2 * seconds:
                break
        if fastest >= 2 * seconds:
            return replace(found, most_rows=max(LEAST_ROWS, int(chunk.most_rows * seconds / fastest)))
        if fastest < seconds / 4:
            return replace(found, most_rows=min(most_rows, 2 * chunk.most_rows))
        return found

    def count(self, chunk: _Range) -> _Found:
        """Rows of a range that no run has."""
        self._cursor.execute(self._source.statement("source_look"), {**self._fixed, **self._limits, **chunk._asdict()})
        counts: dict[str, int] = {}
        oldest: str | None = None
        rests_until: str | None = None
        for reason, rows, since, until in self._cursor.fetchall():
            counts[reason] = rows
            if not reason:
                oldest, rests_until = since, until
        return _Found(
            pending=counts.pop("", 0),
            oldest=oldest,
            rests_until=rests_until,
            ineligible={reason: rows for reason, rows in counts.items() if rows},
            most_rows=chunk.most_rows,
        )

    def store(self, chunk: _Range, found: _Found, *, interval_seconds: float) -> None:
        """Remember a look."""
        self.run(
            "chunk_store",
            first_id=chunk.first_id,
            interval=interval_seconds,
            recent=RECENT_CHUNKS + 1,
            recent_factor=RECENT_FACTOR,
            **{**vars(found), "ineligible": as_json(found.ineligible)},
        )

    def known(self, *, without: int | None = None) -> Pending:
        """The sums of all ranges, but for one."""
        self.run("chunks_sum", without=without)
        row = self._cursor.fetchone()
        assert row is not None
        self.run("chunks_ineligible")
        return Pending(
            rows=row[0],
            oldest_age_seconds=row[1],
            looked_age_seconds=row[2],
            unknown_ranges=row[3],
            at=row[4],
            ineligible=dict(self._cursor.fetchall()),
        )
