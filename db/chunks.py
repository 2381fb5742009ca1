"""Counts the rows that wait in the source, by ranges of ids.

    -2⁶³ ├── 50,000 rows ──┼── 50,000 rows ──┼ … ┼── 10,000 to 20,000 rows ──┤ 2⁶³ - 1
             one at a time, the most overdue first        counted at each poll

The newest range is counted at each poll, the other ranges in turn. The ranges of a stream cover every possible id. So a
row is found at the latest when its range is counted, whatever its id and whenever it was committed, scored or returned.
The cost of a statement does not depend on the size of the table.
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
from db.versions import Compared, compare

LEAST_ID, GREATEST_ID = -(2**63), 2**63 - 1
WINDOW_ROWS, WINDOW_SECONDS = 10_000, 0.03
"""The newest range has between WINDOW_ROWS and twice as many rows, if the table has that many. It has fewer if counting
them takes much longer than WINDOW_SECONDS. Counting is slow for long compressed texts: Postgres must decompress them to
get their length."""
CHUNK_ROWS, CHUNK_SECONDS = 50_000, 0.15
"""The maximum number of rows in any other range. A larger range is split when it is counted. The maximum is lower if
counting takes much longer than CHUNK_SECONDS."""
LEAST_ROWS = 500
"""The maximum number of rows of a range is never reduced below this, however long counting takes."""
RECENT_CHUNKS, RECENT_FACTOR = 4, 10
"""The last RECENT_CHUNKS ranges before the newest are counted RECENT_FACTOR times as often, because late commits occur
there."""
COUNT_ROWS = 200_000
"""How many of the newest rows `count` reads."""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """The rows that wait. The newest range was counted just now, the others when they were last swept."""

    rows: int
    oldest_age_seconds: float | None
    """None if no rows wait, or if their creation times are unknown."""
    ineligible: Mapping[str, int]
    """Rows by reason: no_score, low_score, too_short, too_long, no_content."""
    unknown_ranges: int
    """Ranges that were never counted, or whose count is out of date because a run claimed or returned rows there. Their
    rows are not in the counts."""
    oldest_sweep_age_seconds: float | None
    """The age of the oldest count of a range. None if no range was counted."""
    at: datetime
    """The time of these totals, by the database's clock."""
    changed: int = 0
    """Settled rows in which this count found another text. They wait again."""


class _Range(NamedTuple):
    """A range of ids. Both ends are included."""

    first_id: int
    last_id: int
    most_rows: int
    """The range is split if it has more rows than this."""
    compared_to: int | None = None
    """The last row whose text was compared, for a source whose marks do not show every change."""


@dataclass(frozen=True, kw_only=True)
class _Count:
    """The counts of one range."""

    pending: int
    oldest: str | None
    """The time as text, because Postgres has times that Python's datetime cannot represent."""
    ineligible: dict[str, int]
    rests_until: str | None
    """When the first retry delay among the returned rows ends."""
    most_rows: int
    """`most_rows` of the range from now on."""
    marked: int = 0
    """Settled rows whose mark differs, so that their text must be compared."""
    compared_to: int | None = None
    """`compared_to` of the range from now on."""
    compare_on: bool = False
    """Whether there are texts left to compare, so that the range is due again at once."""
    changed: int = 0
    """Settled rows that were returned because their text had changed."""


def poll(pool: Pool, lease: Lease, source: Source, eligibility: Eligibility) -> Pending:
    """Count the newest range, and return the totals of all ranges.

    Raises:
        LeaseLost: the lease expired, or another service took it.
    """
    with pool.transaction() as cursor:
        fence(cursor, lease)
        ranges = _Ranges(cursor, resolved(cursor, source), eligibility, lease.stream)
        ranges.run("chunks_forget")
        newest = ranges.newest()
        if newest.first_id > LEAST_ID and ranges.nth("source_nth_newest", newest, 1) is None:
            ranges.run("chunks_begin_anew")  # the table was emptied, and its ids may begin anew
            newest = ranges.newest()
        if ranges.nth("source_nth_newest", newest, 2 * newest.most_rows) is not None:
            begin = ranges.nth("source_nth_newest", newest, newest.most_rows)
            if begin is not None and begin > newest.first_id:
                newest = ranges.split_newest(newest, begin)
        counted = ranges.look(newest, WINDOW_SECONDS, WINDOW_ROWS)
        ranges.store(newest, counted, interval_seconds=0)
        return replace(ranges.totals(), changed=counted.changed)


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
    """Count the range that is most overdue, and return the totals of all ranges. Return None if no range is due.

    Args:
        interval_seconds: the time between two counts of a range.
        urgent: count only ranges without a valid count.
        confirm: also count ranges whose pending rows were counted before this time.

    Raises:
        LeaseLost: the lease expired, or another service took it.
    """
    with pool.transaction() as cursor:
        fence(cursor, lease)
        ranges = _Ranges(cursor, resolved(cursor, source), eligibility, lease.stream)
        ranges.run("chunk_due", due="-infinity" if urgent else None, confirm=confirm)
        row = cursor.fetchone()
        if row is None:
            return None
        chunk = _Range(*row)
        end = ranges.nth("source_nth", chunk, chunk.most_rows)
        if end is not None and end < chunk.last_id:
            chunk = ranges.split(chunk, end)
        counted = ranges.look(chunk, CHUNK_SECONDS, CHUNK_ROWS)
        ranges.store(chunk, counted, interval_seconds=interval_seconds)
        return replace(ranges.totals(), changed=counted.changed)


def count(pool: Pool, source: Source, eligibility: Eligibility, stream: str) -> int:
    """Count the rows that wait, without a lease. This writes nothing. It counts up to COUNT_ROWS of the newest rows,
    and uses the stored counts of the other ranges."""
    with pool.transaction(read_only=True) as cursor:
        ranges = _Ranges(cursor, resolved(cursor, source), eligibility, stream)
        ranges.run("chunk_newest")
        row = cursor.fetchone()
        newest = _Range(row[0] if row else LEAST_ID, GREATEST_ID, COUNT_ROWS)
        begin = ranges.nth("source_nth_newest", newest, COUNT_ROWS)
        counted = ranges.count(newest if begin is None else newest._replace(first_id=begin))
        return counted.pending + ranges.totals(without=newest.first_id).rows


def discard_counts(pool: Pool, lease: Lease) -> None:
    """Discard the counts of all ranges with pending rows, so that they are counted again.

    Call this when a claim did not find the rows that were counted.

    Raises:
        LeaseLost: the lease expired, or another service took it.
    """
    with pool.transaction() as cursor:
        fence(cursor, lease)
        cursor.execute(QUERIES["chunks_discard"], {"stream": lease.stream})


class _Ranges:
    """The ranges of one stream, within one transaction."""

    def __init__(self, cursor: extensions.cursor, source: Source, eligibility: Eligibility, stream: str) -> None:
        self._cursor, self._source, self._stream, self._limits = cursor, source, stream, eligibility.parameters()
        known = {name: limit for name, limit in self._limits.items() if limit is not None}
        self._fixed = {"stream": stream, "eligibility": as_json(known), "greatest": GREATEST_ID}

    def run(self, name: str, **values: Any) -> None:
        self._cursor.execute(QUERIES[name], {**self._fixed, **values})

    def newest(self) -> _Range:
        """Return the newest range. If the stream has no ranges, insert one that covers all ids."""
        self.run("chunk_newest")
        row = self._cursor.fetchone()
        if row is None:
            newest = _Range(LEAST_ID, GREATEST_ID, WINDOW_ROWS)
            self.run("chunk_insert", **newest._asdict())
            return newest
        return _Range(row[0], GREATEST_ID, row[1], row[2])

    def split_newest(self, newest: _Range, begin: int) -> _Range:
        """Let the newest range begin at `begin`. The ids before that go to the previous range."""
        self.run("chunk_begin_at", first_id=newest.first_id, begin=begin)
        most_rows = min(CHUNK_ROWS, newest.most_rows * CHUNK_ROWS // WINDOW_ROWS)
        self.run("chunk_extend", before=newest.first_id - 1, end=begin - 1, most_rows=most_rows)
        if self._cursor.fetchone() is None:
            self.run("chunk_insert", first_id=newest.first_id, last_id=begin - 1, most_rows=most_rows)
        return newest._replace(first_id=begin)

    def split(self, chunk: _Range, end: int) -> _Range:
        """Let a range end at `end`. The ids after that become a range of their own."""
        self.run("chunk_end_at", first_id=chunk.first_id, end=end)
        self.run("chunk_insert", first_id=end + 1, last_id=chunk.last_id, most_rows=chunk.most_rows)
        return chunk._replace(last_id=end)

    def nth(self, name: str, chunk: _Range, rows: int) -> int | None:
        """The id of row number `rows` of a range. The statement decides from which end the rows are numbered."""
        self._cursor.execute(self._source.statement(name), {**chunk._asdict(), "rows": rows})
        row = self._cursor.fetchone()
        return None if row is None else int(row[0])

    def look(self, chunk: _Range, seconds: float, most_rows: int) -> _Count:
        """Count the rows of a range, and return settled rows whose text has changed."""
        counted = self.count_timed(chunk, seconds, most_rows)
        changed, left = 0, False
        if counted.marked:
            marked = self._compare(chunk.first_id, chunk.last_id, every=False)
            changed, left = marked.changed, not marked.is_complete
        compared_to = None
        if not self._source.has_xmin:
            begin = chunk.first_id if chunk.compared_to is None else max(chunk.first_id, chunk.compared_to + 1)
            turn = self._compare(begin, chunk.last_id, every=True)
            changed += turn.changed
            compared_to = None if turn.is_complete else turn.last_id
        most_rows = counted.most_rows
        counted = self.count(chunk) if changed else counted
        return replace(counted, most_rows=most_rows, changed=changed, compare_on=left, compared_to=compared_to)

    def _compare(self, first_id: int, last_id: int, *, every: bool) -> Compared:
        return compare(self._cursor, self._source, self._stream, first_id, last_id, every=every)

    def count_timed(self, chunk: _Range, seconds: float, most_rows: int) -> _Count:
        """Count the rows of a range, and adapt `most_rows` so that a count takes about `seconds`.

        A slow count is repeated once, because one slow count may be chance and a split is never undone.
        """
        fastest = float("inf")
        for _ in range(2):
            started = time.monotonic()
            counted = self.count(chunk)
            fastest = min(fastest, time.monotonic() - started)
            if fastest < 2 * seconds:
                break
        if fastest >= 2 * seconds:
            return replace(counted, most_rows=max(LEAST_ROWS, int(chunk.most_rows * seconds / fastest)))
        if fastest < seconds / 4:
            return replace(counted, most_rows=min(most_rows, 2 * chunk.most_rows))
        return counted

    def count(self, chunk: _Range) -> _Count:
        """Count the rows of a range that no run has."""
        parameters = {**self._fixed, **self._limits, **chunk._asdict()}
        self._cursor.execute(self._source.statement("source_count_range"), parameters)
        counts: dict[str, int] = {}
        oldest: str | None = None
        rests_until: str | None = None
        for reason, rows, since, until in self._cursor.fetchall():
            counts[reason] = rows
            if not reason:
                oldest, rests_until = since, until
        return _Count(
            pending=counts.pop("", 0),
            marked=counts.pop("changed", 0),
            oldest=oldest,
            rests_until=rests_until,
            ineligible={reason: rows for reason, rows in counts.items() if rows},
            most_rows=chunk.most_rows,
        )

    def store(self, chunk: _Range, counted: _Count, *, interval_seconds: float) -> None:
        """Store the counts of a range, and schedule its next count."""
        self.run(
            "chunk_store",
            first_id=chunk.first_id,
            interval=interval_seconds,
            recent=RECENT_CHUNKS + 1,
            recent_factor=RECENT_FACTOR,
            **{**vars(counted), "ineligible": as_json(counted.ineligible)},
        )

    def totals(self, *, without: int | None = None) -> Pending:
        """Add up the stored counts of all ranges. `without` excludes the range that starts at this id."""
        self.run("chunks_sum", without=without)
        row = self._cursor.fetchone()
        assert row is not None
        self.run("chunks_ineligible")
        return Pending(
            rows=row[0],
            oldest_age_seconds=row[1],
            oldest_sweep_age_seconds=row[2],
            unknown_ranges=row[3],
            at=row[4],
            ineligible=dict(self._cursor.fetchall()),
        )
