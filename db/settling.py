"""Ends runs: publish, refuse, keep open or give back. Every verdict settles every row, in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from psycopg2 import extensions
from psycopg2.extras import execute_values

from db import trunk
from db.adapters import NewAdapter, insert_current
from db.errors import DatabaseError, ParentMoved, RowsRevoked, SettlementMismatch
from db.lease import Lease, fence
from db.pool import Pool
from db.revocations import revoked_among
from db.runs import move
from db.statements import QUERIES
from db.suspects import blame, clear

OUTCOMES_OF_ROLE = {
    "train": frozenset({"trained", "unused", "rejected"}),
    "held_out": frozenset({"held_out", "unused", "rejected"}),
    "replay": frozenset({"replayed", "unused", "rejected"}),
}
"""What can become of a row. Training on a held-out row is a mistake, and so is holding out a train row later:
its text would not be kept."""

NO_SETTINGS: Mapping[str, str] = {}
BATCH_ROWS = 1000
PROBLEMS_SHOWN = 10
BIGINT = "cast(%s as bigint)"
"""Not `%s::bigint`: Postgres reads `-9223372036854775808::bigint` as the negative of a number that is out of range."""


class Settled(Protocol):
    """What became of one row, as the trainer reports it."""

    @property
    def file_id(self) -> int: ...
    @property
    def outcome(self) -> str: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def tokens(self) -> int: ...


def publish(
    pool: Pool,
    lease: Lease,
    run_id: int,
    outcomes: Iterable[Settled],
    adapter: NewAdapter,
    report: Mapping[str, Any],
    *,
    settings: Mapping[str, str] = NO_SETTINGS,
) -> None:
    """Settle the rows, insert the adapter and make it current, all in one transaction.

    Outcomes of earlier held-out rows, which the run does not list, are passed over.

    Args:
        settings: by reason, a digest of the settings that a rejection depends on (db/void.py)

    Raises:
        ParentMoved: what the run was trained on from is no longer current.
        RowsRevoked: it has rows that must not be trained on any more.
        SettlementMismatch: the outcomes are not those of the run's rows.
        BadTransition: the run is not being judged.
    """
    with pool.transaction() as cursor:
        fence(cursor, lease)
        parent_version = move(cursor, lease, run_id, "published", report=report)
        _check_start(cursor, lease.stream, run_id, parent_version)
        plan = _Settlement(run_id=run_id, settings=settings)
        for outcome, role in _matched(cursor, run_id, outcomes):
            plan.add_kept(outcome, role, learned="trained")
        plan.write(cursor, lease.stream)
        clear(cursor, lease.stream, run_id)
        trunk.publish(cursor, lease.stream, run_id)
        insert_current(cursor, lease.stream, run_id, parent_version, adapter)


def keep_open(
    pool: Pool,
    lease: Lease,
    run_id: int,
    outcomes: Iterable[Settled],
    *,
    reason: str,
    report: Mapping[str, Any],
    settings: Mapping[str, str] = NO_SETTINGS,
) -> None:
    """Settle the rows of a candidate with too little evidence for or against it. It becomes the trunk.

    Rows that it was trained on are `learning`: a later run's verdict settles them.

    Raises:
        ParentMoved, RowsRevoked, SettlementMismatch, BadTransition: as for `publish`.
    """
    with pool.transaction() as cursor:
        fence(cursor, lease)
        parent_version = move(cursor, lease, run_id, "inconclusive", reason=reason, report=report)
        _check_start(cursor, lease.stream, run_id, parent_version)
        plan = _Settlement(run_id=run_id, settings=settings)
        for outcome, role in _matched(cursor, run_id, outcomes):
            plan.add_kept(outcome, role, learned="learning")
        plan.write(cursor, lease.stream)
        clear(cursor, lease.stream, run_id)
        trunk.add(cursor, lease.stream, run_id)


def refuse(
    pool: Pool,
    lease: Lease,
    run_id: int,
    outcomes: Iterable[Settled],
    *,
    reason: str,
    report: Mapping[str, Any],
    max_attempts: int,
    backoff_seconds: float,
    with_trunk: bool = True,
    settings: Mapping[str, str] = NO_SETTINGS,
) -> None:
    """Settle the rows of a candidate that is not published, and those of the trunk that it was trained on from.

    Rows that it was trained on are returned for `backoff_seconds`, doubled with each earlier attempt; the
    last of `max_attempts` rejects them as `no_gain`.

    Args:
        with_trunk: False for a run that was not trained, so that it says nothing about the trunk

    Raises:
        SettlementMismatch: the outcomes are not those of the run's rows.
        BadTransition: the run is not being judged.
    """
    with pool.transaction() as cursor:
        fence(cursor, lease)
        move(cursor, lease, run_id, "refused", reason=reason, report=report)
        cursor.execute(QUERIES["ledger_attempts"], {"stream": lease.stream, "run_id": run_id})
        attempts: dict[int, int] = dict(cursor.fetchall())
        plan = _Settlement(run_id=run_id, settings=settings)
        for outcome, role in _matched(cursor, run_id, outcomes):
            last = attempts.get(outcome.file_id, 0) + 1 >= max_attempts
            plan.add_refused(outcome, role, last_attempt=last)
        plan.write(cursor, lease.stream, backoff_seconds=backoff_seconds)
        clear(cursor, lease.stream, run_id)
        if with_trunk and trunk.is_start_of(cursor, lease.stream, run_id):
            trunk.refuse(cursor, lease.stream, max_attempts=max_attempts, backoff_seconds=backoff_seconds)


def give_back(
    pool: Pool,
    lease: Lease,
    run_id: int,
    *,
    state: Literal["returned", "failed"],
    reason: str,
    delay_seconds: float = 0.0,
    cause: str | None = None,
    suspects: Sequence[int] = (),
) -> int | None:
    """End a run without a verdict: its rows are returned, no attempt counted; held-out files stay held out.

    Args:
        suspects: rows one of which may have made it fail, because of `cause`. Where that leaves a single one, it is
            settled as quarantined; else they are looked for in the next runs (db.suspects).

    Returns:
        the quarantined row, if there is one

    Raises:
        BadTransition: the run has ended.
    """
    with pool.transaction() as cursor:
        fence(cursor, lease)
        move(cursor, lease, run_id, state, reason=reason)
        single = blame(cursor, lease.stream, run_id, cause or "unknown", suspects)
        parameters = {"stream": lease.stream, "run_id": run_id, "delay": delay_seconds}
        cursor.execute(QUERIES["ledger_give_back"], parameters)
        cursor.execute(QUERIES["run_rows_give_back"], parameters)
    return single


@dataclass(kw_only=True)
class _Settlement:
    """What a verdict writes: one list for each kind of change."""

    run_id: int
    settings: Mapping[str, str]
    """By reason, a digest of the settings that a rejection depends on."""
    run_rows: list[tuple[int, str, int | None]] = field(default_factory=list)
    """File, outcome, tokens."""
    settled: list[tuple[int, str, str | None]] = field(default_factory=list)
    """File, disposition, reason."""
    retried: list[int] = field(default_factory=list)
    no_gain: list[int] = field(default_factory=list)

    def add_kept(self, outcome: Settled, role: str, *, learned: Literal["trained", "learning"]) -> None:
        """Add a row of a candidate that is kept. `learned` is the disposition of rows that it was trained on."""
        self.run_rows.append((outcome.file_id, outcome.outcome, outcome.tokens))
        if role != "replay":
            file_id, disposition, reason = _disposition(outcome, role)
            self.settled.append((file_id, learned if disposition == "trained" else disposition, reason))

    def add_refused(self, outcome: Settled, role: str, *, last_attempt: bool) -> None:
        found = outcome.outcome
        if role == "train" and found == "trained":
            (self.no_gain if last_attempt else self.retried).append(outcome.file_id)
            found = "rejected" if last_attempt else "returned"
        elif role != "replay":
            self.settled.append(_disposition(outcome, role))
            found = "returned" if self.settled[-1][1] == "returned" else found
        self.run_rows.append((outcome.file_id, found, outcome.tokens))

    def write(self, cursor: extensions.cursor, stream: str, *, backoff_seconds: float = 0.0) -> None:
        run_id = self.run_id
        _update(
            cursor, "run_rows_settle", f"(%s, {BIGINT}, %s, {BIGINT})",
            [(run_id, file_id, outcome, tokens) for file_id, outcome, tokens in self.run_rows],
        )  # fmt: skip
        _update(
            cursor, "ledger_settle", f"(%s, {BIGINT}, {BIGINT}, %s, %s::text, %s::text)",
            [
                (stream, file_id, run_id, disposition, reason, self.settings.get(reason or ""))
                for file_id, disposition, reason in self.settled
            ],
        )  # fmt: skip
        _update(
            cursor, "ledger_retry", f"(%s, {BIGINT}, {BIGINT}, %s::double precision)",
            [(stream, file_id, run_id, backoff_seconds) for file_id in self.retried],
        )  # fmt: skip
        _update(
            cursor, "ledger_no_gain", f"(%s, {BIGINT}, {BIGINT})",
            [(stream, file_id, run_id) for file_id in self.no_gain],
        )  # fmt: skip


def _disposition(outcome: Settled, role: str) -> tuple[int, str, str | None]:
    """Where a row stands after a verdict (trained rows of a refused candidate apart)."""
    match outcome.outcome, role:
        case "rejected", _:
            return outcome.file_id, "rejected", outcome.reason or "unknown"
        case _, "held_out":
            return outcome.file_id, "held_out", None
        case "trained", _:
            return outcome.file_id, "trained", None
        case _:
            return outcome.file_id, "returned", None


def _matched(cursor: extensions.cursor, run_id: int, outcomes: Iterable[Settled]) -> Iterator[tuple[Settled, str]]:
    """Each outcome with its row's role; at the end, every open row of the run must have had exactly one.

    Raises:
        SettlementMismatch: after the last outcome, with all that did not match.
    """
    cursor.execute(QUERIES["run_rows_of"], {"run_id": run_id})
    rows: dict[int, tuple[str, str | None]] = {file_id: (role, done) for file_id, role, done in cursor.fetchall()}
    missing = {file_id for file_id, (_, done) in rows.items() if done is None}
    unknown: list[int] = []
    repeated: list[int] = []
    impossible: list[str] = []
    for outcome in outcomes:
        file_id = outcome.file_id
        if file_id not in rows:
            if outcome.outcome != "held_out":
                unknown.append(file_id)
        elif file_id not in missing:
            repeated.append(file_id)
        else:
            missing.discard(file_id)
            role = rows[file_id][0]
            if outcome.outcome in OUTCOMES_OF_ROLE[role]:
                yield outcome, role
            else:
                impossible.append(f"{file_id} ({role} row, {outcome.outcome})")
    found: tuple[tuple[str, Sequence[Any]], ...] = (
        ("without an outcome", sorted(missing)),
        ("not of this run", unknown),
        ("settled already or given twice", repeated),
        ("with an outcome that its role cannot have", impossible),
    )
    if problems := [f"{len(ids)} {what}: {_first(ids)}" for what, ids in found if ids]:
        raise SettlementMismatch(run_id, problems)


def _first(ids: Sequence[Any]) -> str:
    shown = ", ".join(str(item) for item in ids[:PROBLEMS_SHOWN])
    return shown + (", …" if len(ids) > PROBLEMS_SHOWN else "")


def _update(cursor: extensions.cursor, name: str, template: str, records: Sequence[tuple[Any, ...]]) -> None:
    """Update rows in batches; each must be there to be updated."""
    for start in range(0, len(records), BATCH_ROWS):
        batch = records[start : start + BATCH_ROWS]
        execute_values(cursor, QUERIES[name], batch, template=template, page_size=BATCH_ROWS)
        if cursor.rowcount != len(batch):
            raise DatabaseError(
                f"{len(batch) - cursor.rowcount} of {len(batch)} rows are not as {name} expects; "
                "nothing was settled (codelupe audit shows what differs)"
            )


def _check_start(cursor: extensions.cursor, stream: str, run_id: int, parent_version: int | None) -> None:
    """Check that the version and the trunk that the run was trained on from are the present ones, and not revoked."""
    _check_parent(cursor, stream, run_id, parent_version)
    trunk.check_head(cursor, stream, run_id)
    if found := revoked_among(cursor, stream, run_id) + trunk.revoked(cursor, stream):
        raise RowsRevoked(f"run {run_id} has rows that were revoked since it was claimed: files {_first(found)}")


def _check_parent(cursor: extensions.cursor, stream: str, run_id: int, parent_version: int | None) -> None:
    cursor.execute(QUERIES["adapter_current"], {"stream": stream})
    row = cursor.fetchone()
    current = None if row is None else row[0]
    if current != parent_version:
        raise ParentMoved(
            f"run {run_id} started from adapter {parent_version}, and {current} is current now: refuse it"
        )
