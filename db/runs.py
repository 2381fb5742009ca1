"""Reads runs, and changes their state. Every write checks the lease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from psycopg2 import extensions

from db.errors import BadTransition
from db.lease import Lease, fence
from db.pool import Pool
from db.statements import QUERIES, as_json

FOLDED_FROM = 100
"""Rows of counts from which a fold adds them up. There are about 50 reasons."""

State = Literal["claimed", "training", "judging", "published", "refused", "inconclusive", "failed", "returned"]

TRANSITIONS: Mapping[str, frozenset[str]] = {
    "claimed": frozenset({"training", "returned", "failed"}),
    "training": frozenset({"judging", "returned", "failed"}),
    "judging": frozenset({"published", "refused", "inconclusive", "returned", "failed"}),
    "published": frozenset(),
    "refused": frozenset(),
    "inconclusive": frozenset(),
    "failed": frozenset(),
    "returned": frozenset(),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run: one cycle from the claim to the verdict."""

    run_id: int
    stream: str
    state: State
    parent_version: int | None
    """The adapter that training continues from. None if there was no current adapter."""
    seed: int
    launches: int
    """How often the trainer was started."""
    reason: str | None
    """Why the run was refused, inconclusive, failed or returned."""
    report: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    trunk_run_id: int | None = None
    """The inconclusive run whose candidate training continues from. None: it continues from `parent_version`."""
    published_in: int | None = None
    """The version that was published with what this inconclusive run had learned."""
    phase: str | None = None
    """The phase of a curriculum whose rows the run has. None: the stream has no phases."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """The totals of a stream."""

    runs: dict[str, int]
    """Runs by state."""
    rows: dict[str, int]
    """Ledger rows by disposition."""
    rejected: dict[str, int]
    """Rejected rows by reason."""
    trained_rows: int
    trained_tokens: int
    """The tokens of published runs, replayed rows included."""
    last_trained_id: int | None
    """The highest id of a trained row. Rows with lower ids may still wait."""
    last_success_at: datetime | None
    last_run_seconds: float | None
    """From the first launch to the verdict."""
    refusals_in_a_row: int = 0
    """How many of the last verdicts refused a candidate, without another verdict in between."""


# --- reading
# --------------------------------------------------------------------------------------------------


def get(pool: Pool, run_id: int) -> Run | None:
    """Return a run, or None if it does not exist."""
    return next(iter(_runs(pool, "run_get", {"run_id": run_id})), None)


def live(pool: Pool, stream: str) -> Run | None:
    """Return the run of the stream that has not ended, or None."""
    return next(iter(_runs(pool, "run_live", {"stream": stream})), None)


def history(pool: Pool, stream: str, limit: int = 20) -> list[Run]:
    """List the runs of a stream, newest first."""
    return _runs(pool, "run_history", {"stream": stream, "limit": limit})


def unsettled(pool: Pool, run_id: int) -> set[int]:
    """Return the rows of a run that have no outcome yet, without replayed ones."""
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(QUERIES["run_rows_of"], {"run_id": run_id})
        return {file_id for file_id, role, outcome in cursor.fetchall() if role != "replay" and outcome is None}


def settled(pool: Pool, run_id: int) -> dict[int, tuple[str | None, int | None]]:
    """Return the outcome and the tokens of each row of a run."""
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(QUERIES["run_rows_settled"], {"run_id": run_id})
        return {file_id: (outcome, tokens) for file_id, outcome, tokens in cursor.fetchall()}


def totals(pool: Pool, stream: str) -> Totals:
    """Return the totals of a stream from one snapshot. They are kept as they change: no row of the ledger is read."""
    parameters = {"stream": stream}
    with pool.transaction(isolation="repeatable read", read_only=True) as cursor:
        cursor.execute(QUERIES["totals_runs"], parameters)
        runs = cursor.fetchall()
        cursor.execute(QUERIES["totals_rows"], parameters)
        rows = cursor.fetchall()
        cursor.execute(QUERIES["totals_trained"], parameters)
        trained = cursor.fetchone()
        cursor.execute(QUERIES["totals_last_run_seconds"], parameters)
        seconds = cursor.fetchone()
        cursor.execute(QUERIES["totals_refusals_in_a_row"], parameters)
        (refusals,) = cursor.fetchone() or (0,)
    assert trained is not None
    dispositions: dict[str, int] = {}
    for disposition, _, count in rows:
        dispositions[disposition] = dispositions.get(disposition, 0) + count
    return Totals(
        runs={state: count for state, count, _ in runs},
        rows=dispositions,
        rejected={reason: count for disposition, reason, count in rows if disposition == "rejected"},
        trained_rows=trained[0],
        trained_tokens=trained[1],
        last_trained_id=trained[4],
        last_success_at=next((ended for state, _, ended in runs if state == "published"), None),
        last_run_seconds=seconds[0] if seconds else None,
        refusals_in_a_row=refusals,
    )


def fold_totals(pool: Pool, stream: str) -> None:
    """Add up the counts that changes of the ledger have left behind. The totals stay the same, and nobody waits."""
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["totals_unfolded"], {"stream": stream})
        if (cursor.fetchone() or (0,))[0] > FOLDED_FROM:
            cursor.execute(QUERIES["totals_fold"], {"stream": stream})


# --- state changes
# -----------------------------------------------------------------------------------------------


def advance(pool: Pool, lease: Lease, run_id: int, to: Literal["training", "judging"]) -> None:
    """Move a live run to its next state.

    Raises:
        BadTransition: the run cannot change to this state.
    """
    with pool.transaction() as cursor:
        fence(cursor, lease)
        move(cursor, lease, run_id, to)


def count_launch(pool: Pool, lease: Lease, run_id: int) -> int:
    """Count one start of the trainer, and return the number of starts so far."""
    return int(_touch(pool, lease, run_id, "run_launch"))


def heartbeat(pool: Pool, lease: Lease, run_id: int) -> None:
    """Record that a service is supervising the run."""
    _touch(pool, lease, run_id, "run_heartbeat")


def move(
    cursor: extensions.cursor,
    lease: Lease,
    run_id: int,
    to: State,
    *,
    reason: str | None = None,
    report: Mapping[str, Any] | None = None,
) -> int | None:
    """Change the state of a run, and return its parent version. No other code changes the state."""
    cursor.execute(QUERIES["run_lock"], {"run_id": run_id, "stream": lease.stream})
    row = cursor.fetchone()
    if row is None:
        raise BadTransition(f"the stream {lease.stream} has no run {run_id}")
    state, parent_version = row
    if to not in TRANSITIONS[state]:
        raise BadTransition(f"run {run_id} is {state} and cannot become {to}")
    cursor.execute(
        QUERIES["run_move"],
        {
            "run_id": run_id,
            "state": to,
            "reason": reason,
            "report": None if report is None else as_json(report),
            "ended": not TRANSITIONS[to],
        },
    )
    return None if parent_version is None else int(parent_version)


def _touch(pool: Pool, lease: Lease, run_id: int, name: str) -> Any:
    with pool.transaction() as cursor:
        fence(cursor, lease)
        cursor.execute(QUERIES[name], {"run_id": run_id, "stream": lease.stream})
        row = cursor.fetchone()
        if row is None:
            raise BadTransition(f"run {run_id} of the stream {lease.stream} is not live")
    return row[0]


def _runs(pool: Pool, name: str, parameters: Mapping[str, Any]) -> list[Run]:
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(QUERIES[name], dict(parameters))
        return [_run(row) for row in cursor.fetchall()]


def _run(row: Sequence[Any]) -> Run:
    (
        run_id, stream, state, parent_version, seed, launches, reason, report, created_at, started_at,
        ended_at, trunk_run_id, published_in, phase,
    ) = row  # fmt: skip
    return Run(
        run_id=run_id, stream=stream, state=state, parent_version=parent_version, seed=seed,
        launches=launches, reason=reason, report=report, created_at=created_at, started_at=started_at,
        ended_at=ended_at, trunk_run_id=trunk_run_id, published_in=published_in, phase=phase,
    )  # fmt: skip
