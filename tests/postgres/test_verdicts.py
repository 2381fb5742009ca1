"""Runs from claim to verdict, adapters, and the audit that proves the ledger."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from world import ADAPTER, ELIGIBLE, STREAM, Outcome, claim_all, fill

from db import adapters, runs, settling
from db.audit import audit
from db.chunks import count
from db.errors import BadTransition, DatabaseError, LeaseLost, ParentMoved, SettlementMismatch
from db.lease import Lease, acquire, fence
from db.pool import Pool
from db.runs import TRANSITIONS
from db.source import Source

SOURCE = Source()
Query = Callable[..., list[Any]]


def judged(pool: Pool, lease: Lease, **options: Any) -> tuple[int, list[int]]:
    """Return a run that is ready for its verdict."""
    run_id, files = claim_all(pool, lease, **options)
    runs.advance(pool, lease, run_id, "training")
    runs.advance(pool, lease, run_id, "judging")
    return run_id, files


def published(pool: Pool, lease: Lease, *, parent: int | None = None, **options: Any) -> int:
    """Publish a run with every row trained on ten tokens."""
    held_out = options.get("held_out", ())
    run_id, files = judged(pool, lease, parent=parent, **options)
    outcomes = [Outcome(file_id=n, outcome="held_out" if n in held_out else "trained") for n in files]
    trained = len(files) - len(held_out)
    settling.publish(pool, lease, run_id, outcomes, ADAPTER, {"train": {"tokens_published": 10 * trained}})
    return run_id


def ledger(query: Query) -> dict[int, tuple[str, str | None]]:
    return {n: (disposition, reason) for n, disposition, reason in query(
        "select file_id, disposition, reason from codelupe.ledger")}  # fmt: skip


def run_rows(query: Query, run_id: int) -> dict[int, tuple[str | None, int | None]]:
    return {n: (outcome, tokens) for n, outcome, tokens in query(
        "select file_id, outcome, tokens from codelupe.run_rows where run_id = %s", run_id)}  # fmt: skip


# --- publish ------------------------------------------------------------------------------------------------


def test_publish_settles_every_row_and_makes_the_adapter_current(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 5)
    run_id, _ = judged(pool, lease, held_out=(4,))
    outcomes = [
        Outcome(file_id=1, outcome="trained", tokens=70),
        Outcome(file_id=2, outcome="unused", tokens=0),
        Outcome(file_id=3, outcome="rejected", reason="too_few_lines", tokens=0),
        Outcome(file_id=4, outcome="held_out", tokens=9),
        Outcome(file_id=5, outcome="trained", tokens=30),
        Outcome(file_id=999, outcome="held_out"),
    ]
    report = {"train": {"tokens_published": 100}}
    settling.publish(pool, lease, run_id, outcomes, ADAPTER, report)
    assert ledger(query) == {
        1: ("trained", None),
        2: ("returned", None),
        3: ("rejected", "too_few_lines"),
        4: ("held_out", None),
        5: ("trained", None),
    }
    assert run_rows(query, run_id) == {
        1: ("trained", 70), 2: ("unused", 0), 3: ("rejected", 0), 4: ("held_out", 9), 5: ("trained", 30),
    }  # fmt: skip
    assert query("select attempts, not_before from codelupe.ledger where file_id = 2") == [(0, None)]
    run = runs.get(pool, run_id)
    assert run is not None
    assert (run.state, run.report, run.ended_at is not None) == ("published", report, True)
    current = adapters.current(pool, STREAM)
    assert current is not None
    assert (current.version, current.parent_version, current.folder) == (run_id, None, "v1")
    totals = runs.totals(pool, STREAM)
    assert (totals.runs, totals.rows, totals.rejected) == (
        {"published": 1},
        {"trained": 2, "returned": 1, "rejected": 1, "held_out": 1},
        {"too_few_lines": 1},
    )
    assert (totals.trained_rows, totals.trained_tokens, totals.last_trained_id) == (2, 100, 5)
    assert totals.last_success_at == run.ended_at
    assert totals.last_run_seconds is not None
    found = audit(pool, SOURCE, ELIGIBLE, STREAM)
    assert found.problems == []
    assert (found.total, found.pending, found.claimed, found.ineligible, found.gone) == (5, 1, 0, {}, 0)
    assert found.settled == {"trained": 2, "rejected:too_few_lines": 1, "held_out": 1}
    assert (found.published_runs, found.trained_rows, found.trained_tokens, found.held_out) == (1, 2, 100, 1)


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ([(1, "trained")], r"1 without an outcome: 2"),
        ([(1, "trained"), (2, "trained"), (7, "trained")], r"1 not of this run: 7"),
        ([(1, "trained"), (1, "trained"), (2, "trained")], r"given twice: 1"),
        ([(1, "held_out"), (2, "trained")], r"1 \(train row, held_out\)"),
        ([(1, "trained"), (2, "replayed")], r"2 \(train row, replayed\)"),
    ],
)
def test_outcomes_that_do_not_match_settle_nothing(
    pool: Pool, lease: Lease, query: Query, outcomes: list[tuple[int, str]], said: str
) -> None:
    fill(pool, 2)
    run_id, _ = judged(pool, lease)
    told = [Outcome(file_id=number, outcome=outcome) for number, outcome in outcomes]
    with pytest.raises(SettlementMismatch, match=said):
        settling.publish(pool, lease, run_id, told, ADAPTER, {})
    with pytest.raises(SettlementMismatch, match=said):
        settling.refuse(pool, lease, run_id, told, reason="worse", report={}, max_attempts=3, backoff_seconds=1)
    assert ledger(query) == {1: ("claimed", None), 2: ("claimed", None)}
    assert adapters.current(pool, STREAM) is None
    run = runs.live(pool, STREAM)
    assert run is not None and run.state == "judging"


def test_a_held_out_row_that_was_trained_on_is_no_outcome(pool: Pool, lease: Lease) -> None:
    fill(pool, 1)
    run_id, _ = judged(pool, lease, held_out=(1,))
    with pytest.raises(SettlementMismatch, match="held_out row, trained"):
        settling.publish(pool, lease, run_id, [Outcome(file_id=1, outcome="trained")], ADAPTER, {})


def test_a_moved_parent_publishes_nothing(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 1)
    first = published(pool, lease)
    fill(pool, 1)
    second = published(pool, lease, parent=first)
    fill(pool, 1)
    run_id, files = judged(pool, lease, parent=second)
    adapters.roll_back(pool, STREAM, first)
    outcomes = [Outcome(file_id=number, outcome="trained") for number in files]
    with pytest.raises(ParentMoved, match=f"adapter {second}, and {first} is current"):
        settling.publish(pool, lease, run_id, outcomes, ADAPTER, {})
    current = adapters.current(pool, STREAM)
    assert current is not None and current.version == first
    assert [(a.version, a.is_current) for a in adapters.history(pool, STREAM)] == [
        (second, False),
        (first, True),
    ]
    assert [a.version for a in adapters.history(pool, STREAM, limit=1)] == [second]
    assert [a.version for a in adapters.history(pool, STREAM, among=[first, 77])] == [first]
    with pytest.raises(DatabaseError, match="no adapter 77"):
        adapters.roll_back(pool, STREAM, 77)
    current = adapters.current(pool, STREAM)
    assert current is not None and current.version == first  # retiring it was undone with the rest
    settling.give_back(pool, lease, run_id, state="returned", reason="its parent moved")
    assert ledger(query)[3] == ("returned", None)
    assert audit(pool, SOURCE, ELIGIBLE, STREAM).problems == []


def test_many_rows_settle_fast(pool: Pool, lease: Lease, query: Query) -> None:
    query(
        "insert into code_files (content, quality_score) "
        "select repeat('x', 60) || n, 90 from generate_series(1, 10000) n"
    )
    started = time.monotonic()
    run_id = published(pool, lease, limit=10000)
    assert time.monotonic() - started < 30
    assert runs.totals(pool, STREAM).trained_rows == 10000
    assert audit(pool, SOURCE, ELIGIBLE, STREAM).problems == []
    assert run_id


def test_a_row_that_left_the_run_is_not_settled(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 2)
    run_id, files = judged(pool, lease)
    query("update codelupe.ledger set disposition = 'returned', settled_at = now() where file_id = 1")
    with pytest.raises(DatabaseError, match="1 of 2 rows are not as ledger_settle expects"):
        settling.publish(pool, lease, run_id, [Outcome(file_id=n, outcome="trained") for n in files], ADAPTER, {})
    assert ledger(query) == {1: ("returned", None), 2: ("claimed", None)}


def test_a_rollback_waits_for_a_publication_under_way(pool: Pool, lease: Lease) -> None:
    """Otherwise the publication could find its parent current and then undo the rollback."""
    fill(pool, 1)
    first = published(pool, lease)
    fill(pool, 1)
    published(pool, lease, parent=first)
    order: list[str] = []

    def roll_back() -> None:
        adapters.roll_back(pool, STREAM, first)
        order.append("rolled back")

    thread = threading.Thread(target=roll_back)
    with pool.transaction() as cursor:
        fence(cursor, lease)
        thread.start()
        time.sleep(0.5)
        order.append("published")
    thread.join()
    assert order == ["published", "rolled back"]


# --- refuse and give back -----------------------------------------------------------------------------------


def test_refused_rows_wait_longer_each_time_and_end_as_no_gain(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 4)
    for attempt, delay in ((1, 100), (2, 200)):
        run_id, files = judged(pool, lease, held_out=(4,))
        outcomes = [
            Outcome(file_id=n, outcome={2: "unused", 3: "rejected", 4: "held_out"}.get(n, "trained"), reason="bad")
            for n in files
        ]
        settling.refuse(
            pool, lease, run_id, outcomes, reason="worse by 0.1", report={"a": 1},
            max_attempts=3, backoff_seconds=100,
        )  # fmt: skip
        assert query(
            "select attempts, extract(epoch from not_before - settled_at)::int from codelupe.ledger where file_id = 1"
        ) == [(attempt, delay)]
        assert run_rows(query, run_id)[1] == ("returned", 10)
        assert run_rows(query, run_id)[2] == ("returned", 10)
        assert query("select attempts, not_before from codelupe.ledger where file_id = 2") == [(0, None)]
        query("update codelupe.ledger set not_before = now() where not_before is not null")
    assert ledger(query)[3] == ("rejected", "bad")
    assert ledger(query)[4] == ("held_out", None)
    run_id, files = judged(pool, lease)
    assert files == [1, 2]
    outcomes = [Outcome(file_id=n, outcome="trained") for n in files]
    settling.refuse(pool, lease, run_id, outcomes, reason="worse", report={}, max_attempts=3, backoff_seconds=100)
    assert ledger(query)[1] == ("rejected", "no_gain")
    assert ledger(query)[2] == ("returned", None)
    assert run_rows(query, run_id) == {1: ("rejected", 10), 2: ("returned", 10)}
    run = runs.get(pool, run_id)
    assert run is not None and (run.state, run.reason) == ("refused", "worse")
    assert audit(pool, SOURCE, ELIGIBLE, STREAM).problems == []
    assert runs.totals(pool, STREAM).trained_rows == 0


def test_returning_rows_counts_no_attempt(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 2)
    run_id, _ = claim_all(pool, lease, held_out=(1,))
    settling.give_back(pool, lease, run_id, state="failed", reason="diverged", delay_seconds=60)
    assert query("select disposition, attempts, not_before > now() from codelupe.ledger") == [("returned", 0, True)] * 2
    assert [outcome for outcome, _ in run_rows(query, run_id).values()] == ["returned"] * 2
    assert query("select file_id from codelupe.held_out") == [(1,)]
    assert audit(pool, SOURCE, ELIGIBLE, STREAM).problems == []
    assert [(run.state, run.reason) for run in runs.history(pool, STREAM)] == [("failed", "diverged")]


# --- states -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", TRANSITIONS)
def test_only_legal_transitions(pool: Pool, lease: Lease, query: Query, state: str) -> None:
    run_id, _ = claim_all(pool, lease)
    ended = not TRANSITIONS[state]
    query("update codelupe.runs set state = %s, ended_at = case when %s then now() end", state, ended)
    attempts: dict[str, Callable[[], None]] = {
        "training": lambda: runs.advance(pool, lease, run_id, "training"),
        "judging": lambda: runs.advance(pool, lease, run_id, "judging"),
        "published": lambda: settling.publish(pool, lease, run_id, [], ADAPTER, {}),
        "refused": lambda: settling.refuse(
            pool, lease, run_id, [], reason="r", report={}, max_attempts=1, backoff_seconds=1
        ),
        "returned": lambda: settling.give_back(pool, lease, run_id, state="returned", reason="r"),
        "failed": lambda: settling.give_back(pool, lease, run_id, state="failed", reason="r"),
    }
    for to, attempt in attempts.items():
        if to not in TRANSITIONS[state]:
            with pytest.raises(BadTransition, match=f"is {state} and cannot become {to}"):
                attempt()
    with pytest.raises(BadTransition, match="has no run 404"):
        runs.advance(pool, lease, 404, "training")


def test_launches_and_heartbeats(pool: Pool, lease: Lease, query: Query) -> None:
    run_id, _ = claim_all(pool, lease)
    assert [runs.count_launch(pool, lease, run_id) for _ in range(2)] == [1, 2]
    runs.heartbeat(pool, lease, run_id)
    assert query("select heartbeat_at is not null from codelupe.runs") == [(True,)]
    settling.give_back(pool, lease, run_id, state="returned", reason="r")
    with pytest.raises(BadTransition, match="not live"):
        runs.heartbeat(pool, lease, run_id)


def test_every_write_is_fenced(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 1)
    run_id, _ = judged(pool, lease)
    query("update codelupe.leases set expires_at = now() - interval '1 s'")
    done = [Outcome(file_id=1, outcome="trained")]
    writes: list[Callable[[], object]] = [
        lambda: runs.advance(pool, lease, run_id, "judging"),
        lambda: runs.count_launch(pool, lease, run_id),
        lambda: runs.heartbeat(pool, lease, run_id),
        lambda: settling.publish(pool, lease, run_id, done, ADAPTER, {}),
        lambda: settling.refuse(pool, lease, run_id, done, reason="r", report={}, max_attempts=1, backoff_seconds=1),
        lambda: settling.give_back(pool, lease, run_id, state="returned", reason="r"),
        lambda: claim_all(pool, lease),
    ]
    for write in writes:
        with pytest.raises(LeaseLost):
            write()
    assert acquire(pool, STREAM, "another", 60) is not None
    for write in writes:
        with pytest.raises(LeaseLost):
            write()
    run = runs.live(pool, STREAM)
    assert run is not None and run.state == "judging"


def test_the_lease_cannot_change_hands_during_a_write(pool: Pool, lease: Lease, query: Query) -> None:
    """A takeover between the check and the commit waits for the commit."""
    query("update codelupe.leases set expires_at = clock_timestamp() + interval '0.3 s'")
    order: list[str] = []

    def take() -> None:
        time.sleep(0.6)
        while acquire(pool, STREAM, "another", 60) is None:
            time.sleep(0.05)
        order.append("taken")

    thread = threading.Thread(target=take)
    with pool.transaction() as cursor:
        fence(cursor, lease)
        thread.start()
        time.sleep(1.2)
        order.append("written")
    thread.join()
    assert order == ["written", "taken"]


def test_run_rows_are_append_only(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 1)
    published(pool, lease)
    for statement in (
        "delete from codelupe.run_rows",
        "update codelupe.run_rows set outcome = 'unused'",
        "update codelupe.run_rows set content_sha256 = 'x'",
    ):
        with pytest.raises(DatabaseError, match="append-only"):
            query(statement)


# --- the audit ----------------------------------------------------------------------------------------------


def test_the_audit_counts_every_class(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 3)
    first = published(pool, lease, held_out=(2,))
    fill(pool, 2, quality_score=1.0)
    fill(pool, 2)
    claim_all(pool, lease, parent=first, limit=1)
    query("delete from code_files where id = 1")
    found = audit(pool, SOURCE, ELIGIBLE, STREAM)
    assert (found.total, found.pending, found.claimed, found.gone) == (6, 1, 1, 1)
    assert found.ineligible == {"low_score": 2}
    assert found.settled == {"trained": 1, "held_out": 1}
    assert found.problems == []
    assert count(pool, SOURCE, ELIGIBLE, STREAM) == 1


PLANTED = {
    "claimed by a run that has ended: files 4": (
        "update codelupe.runs set state = 'failed', ended_at = now() where state = 'claimed'",
    ),
    "their run does not list them: files 5": (
        "insert into codelupe.ledger (stream, file_id, run_id, disposition) "
        "select 'qwen', 5, max(run_id), 'claimed' from codelupe.runs",
    ),
    "in more than one published run: files 1": (
        "insert into codelupe.runs (stream, state, seed, epoch, ended_at) values ('qwen', 'published', 1, 1, now())",
        "insert into codelupe.run_rows select max(r.run_id), 1, 'train', '', 'trained', 10 from codelupe.runs r",
    ),
    "trained in the ledger, but not in a published run: files 5": (
        "insert into codelupe.ledger (stream, file_id, run_id, disposition, settled_at) "
        "select 'qwen', 5, min(run_id), 'trained', now() from codelupe.runs",
    ),
    "in a published run, but not in the ledger: files 1": (
        "update codelupe.ledger set disposition = 'returned' where file_id = 1",
    ),
    "do not add up to the tokens of their report: runs": (
        """update codelupe.runs set report = '{"train": {"tokens_published": 21}}'
        where state = 'published'""",
    ),
    "have no adapter: runs": (
        "insert into codelupe.runs (stream, state, seed, epoch, ended_at) values ('qwen', 'published', 1, 1, now())",
    ),
    "no text to evaluate on: files 3": ("delete from codelupe.held_out",),
    "held-out files were trained on: files 1": (
        "insert into codelupe.held_out (stream, file_id, run_id, language, content, content_sha256) "
        "select 'qwen', 1, min(run_id), 'c', 'c', '' from codelupe.runs",
    ),
}


@pytest.mark.parametrize("said", PLANTED)
def test_the_audit_finds(pool: Pool, lease: Lease, query: Query, said: str) -> None:
    fill(pool, 3)
    first = published(pool, lease, held_out=(3,))
    fill(pool, 2)
    claim_all(pool, lease, parent=first, limit=1)
    assert audit(pool, SOURCE, ELIGIBLE, STREAM).problems == []
    for statement in PLANTED[said]:
        query(statement)
    problems = audit(pool, SOURCE, ELIGIBLE, STREAM).problems
    assert any(said in problem for problem in problems), problems
