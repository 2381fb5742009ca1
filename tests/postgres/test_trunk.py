"""The trunk: rows of open verdicts, and how a later verdict, a rollback or a revocation settles them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from world import ADAPTER, ELIGIBLE, STREAM, Outcome, fill

from db import adapters, revocations, runs, settling, trunk
from db.audit import audit
from db.errors import ParentMoved, RowsRevoked
from db.lease import Lease
from db.pool import Pool
from db.revocations import Subject
from db.source import Source, claim

SOURCE = Source()
Query = Callable[..., list[Any]]


def judged(pool: Pool, lease: Lease, *, count: int = 4, held_out: int = 1) -> tuple[int, list[int]]:
    """Claim new files on the present start, and bring the run to its verdict."""
    fill(pool, count)
    current, found = adapters.current(pool, STREAM), trunk.trunk(pool, STREAM)
    with claim(
        pool, lease, SOURCE, ELIGIBLE, limit=100, seed=1,
        parent_version=current.version if current else None,
        trunk_run_id=found.head if found else None,
    ) as claimed:  # fmt: skip
        files = []
        for number, row in enumerate(claimed.rows()):
            claimed.keep(row, "held_out" if row.held_out or number < held_out else "train")
            files.append(row.file_id)
        run_id = claimed.run_id
    runs.advance(pool, lease, run_id, "training")
    runs.advance(pool, lease, run_id, "judging")
    return run_id, files


def told(query: Query, run_id: int, *, unused: int | None = None) -> list[Outcome]:
    rows = query("select file_id, role from codelupe.run_rows where run_id = %s", run_id)
    return [
        Outcome(
            file_id=n, outcome="held_out" if role == "held_out" else "unused" if n == unused else "trained",
            tokens=10 if role == "train" and n != unused else 0,
        )
        for n, role in rows
    ]  # fmt: skip


def report(outcomes: list[Outcome]) -> dict[str, Any]:
    return {"train": {"tokens_published": sum(one.tokens for one in outcomes if one.outcome == "trained")}}


def opened(pool: Pool, lease: Lease, query: Query, **options: Any) -> int:
    run_id, _ = judged(pool, lease)
    outcomes = told(query, run_id, **options)
    settling.keep_open(pool, lease, run_id, outcomes, reason="too few files", report=report(outcomes))
    return run_id


def published(pool: Pool, lease: Lease, query: Query) -> int:
    run_id, _ = judged(pool, lease)
    outcomes = told(query, run_id)
    settling.publish(pool, lease, run_id, outcomes, ADAPTER, report(outcomes))
    return run_id


def refused(pool: Pool, lease: Lease, query: Query, *, max_attempts: int = 3) -> int:
    run_id, _ = judged(pool, lease)
    settling.refuse(
        pool, lease, run_id, told(query, run_id), reason="worse", report={}, max_attempts=max_attempts,
        backoff_seconds=600,
    )  # fmt: skip
    return run_id


def dispositions(query: Query) -> dict[str, int]:
    return dict(query("select disposition || coalesce(':' || reason, ''), count(*) from codelupe.ledger group by 1"))


def problems(pool: Pool) -> list[str]:
    return audit(pool, SOURCE, ELIGIBLE, STREAM).problems


def test_an_open_run_keeps_its_rows_and_returns_unused_ones(pool: Pool, lease: Lease, query: Query) -> None:
    run_id = opened(pool, lease, query, unused=4)
    assert dispositions(query) == {"held_out": 1, "learning": 2, "returned": 1}
    assert trunk.trunk(pool, STREAM) == trunk.Trunk(run_ids=(run_id,), parent_version=None)
    run = runs.get(pool, run_id)
    assert run is not None and (run.state, run.reason) == ("inconclusive", "too few files")
    assert runs.totals(pool, STREAM).trained_tokens == 0 and problems(pool) == []
    assert audit(pool, SOURCE, ELIGIBLE, STREAM).settled == {"held_out": 1, "learning": 2}


def test_a_publication_settles_every_row_of_the_trunk(pool: Pool, lease: Lease, query: Query) -> None:
    base = published(pool, lease, query)
    first, second = opened(pool, lease, query), opened(pool, lease, query)
    assert trunk.trunk(pool, STREAM) == trunk.Trunk(run_ids=(first, second), parent_version=base)
    last = published(pool, lease, query)
    assert dispositions(query) == {"held_out": 4, "trained": 12} and trunk.trunk(pool, STREAM) is None
    assert [(run.run_id, run.trunk_run_id, run.published_in) for run in runs.history(pool, STREAM)] == [
        (last, second, None), (second, first, last), (first, None, last), (base, None, None),
    ]  # fmt: skip
    totals = runs.totals(pool, STREAM)
    assert (totals.trained_rows, totals.trained_tokens) == (12, 120) and problems(pool) == []


def test_the_same_rows_are_not_claimed_again_while_they_are_open(pool: Pool, lease: Lease, query: Query) -> None:
    opened(pool, lease, query)
    _, files = judged(pool, lease, count=2)
    assert files == [5, 6]


@pytest.mark.parametrize(("max_attempts", "left"), [(3, "returned"), (1, "rejected:no_gain")])
def test_a_refusal_settles_every_row_of_the_trunk(
    pool: Pool, lease: Lease, query: Query, max_attempts: int, left: str
) -> None:
    opened(pool, lease, query)
    refused(pool, lease, query, max_attempts=max_attempts)
    assert dispositions(query) == {"held_out": 2, left: 6} and trunk.trunk(pool, STREAM) is None
    assert query("select distinct attempts from codelupe.ledger where disposition <> 'held_out'") == [(1,)]
    waits = query("select distinct not_before > now() from codelupe.ledger where disposition = 'returned'")
    assert waits == ([(True,)] if left == "returned" else []) and problems(pool) == []


def test_a_run_that_was_not_trained_says_nothing_about_the_trunk(pool: Pool, lease: Lease, query: Query) -> None:
    first = opened(pool, lease, query)
    run_id, _ = judged(pool, lease, count=1, held_out=1)
    settling.refuse(
        pool, lease, run_id, told(query, run_id), reason="no row was left", report={}, max_attempts=3,
        backoff_seconds=600, with_trunk=False,
    )  # fmt: skip
    assert trunk.trunk(pool, STREAM) == trunk.Trunk(run_ids=(first,), parent_version=None) and problems(pool) == []


def test_a_failed_run_leaves_the_trunk(pool: Pool, lease: Lease, query: Query) -> None:
    opened(pool, lease, query)
    run_id, _ = judged(pool, lease)
    settling.give_back(pool, lease, run_id, state="failed", reason="it crashed")
    assert dispositions(query) == {"held_out": 1, "learning": 3, "returned": 4} and problems(pool) == []


def test_a_trunk_that_is_given_up_returns_its_rows_without_an_attempt(pool: Pool, lease: Lease, query: Query) -> None:
    opened(pool, lease, query)
    assert trunk.give_up(pool, lease) == 3
    assert query("select distinct attempts, not_before from codelupe.ledger") == [(0, None)]
    assert dispositions(query) == {"held_out": 1, "returned": 3} and problems(pool) == []


@pytest.mark.parametrize("end", ["publish", "keep_open"])
def test_a_run_whose_trunk_was_given_up_is_not_kept(pool: Pool, lease: Lease, query: Query, end: str) -> None:
    first = opened(pool, lease, query)
    run_id, _ = judged(pool, lease)
    trunk.give_up(pool, lease)
    outcomes = told(query, run_id)
    with pytest.raises(ParentMoved, match=f"from the open candidate of run {first}"):
        if end == "publish":
            settling.publish(pool, lease, run_id, outcomes, ADAPTER, report(outcomes))
        else:
            settling.keep_open(pool, lease, run_id, outcomes, reason="", report={})


def test_an_open_run_whose_parent_moved_is_not_kept(pool: Pool, lease: Lease, query: Query) -> None:
    first, second = published(pool, lease, query), published(pool, lease, query)
    run_id, _ = judged(pool, lease)
    adapters.roll_back(pool, STREAM, first)
    with pytest.raises(ParentMoved, match=f"adapter {second}"):
        settling.keep_open(pool, lease, run_id, told(query, run_id), reason="", report={})


def test_a_revoked_row_of_the_trunk_gives_it_up(pool: Pool, lease: Lease, query: Query) -> None:
    opened(pool, lease, query)
    run_id, _ = judged(pool, lease)
    revocations.revoke(pool, SOURCE, STREAM, Subject(file_id=2), reason="asked for")
    assert trunk.trunk(pool, STREAM) is None and dispositions(query)["returned"] == 3
    with pytest.raises(ParentMoved):
        settling.publish(pool, lease, run_id, told(query, run_id), ADAPTER, {})


def test_a_returned_held_out_file_may_have_a_fingerprint(pool: Pool, lease: Lease, query: Query) -> None:
    run_id, files = judged(pool, lease)
    settling.give_back(pool, lease, run_id, state="failed", reason="it crashed")
    with pool.transaction() as cursor:
        cursor.execute(
            "insert into codelupe.fingerprints (stream, file_id, exact, signature, bands)"
            " values (%s, %s, '', '', '{}')", (STREAM, files[0]),
        )  # fmt: skip
    assert problems(pool) == []


def test_a_revocation_of_a_held_out_row_leaves_the_trunk(pool: Pool, lease: Lease, query: Query) -> None:
    opened(pool, lease, query)
    revocations.revoke(pool, SOURCE, STREAM, Subject(file_id=1), reason="asked for")
    assert trunk.trunk(pool, STREAM) is not None


def test_a_revoked_text_that_the_run_itself_has_is_found(pool: Pool, lease: Lease, query: Query) -> None:
    run_id, files = judged(pool, lease)
    revocations.revoke(pool, SOURCE, STREAM, Subject(file_id=files[-1]), reason="asked for")
    with pytest.raises(RowsRevoked):
        settling.keep_open(pool, lease, run_id, told(query, run_id), reason="", report={})


def test_lineage_finds_the_version_that_published_a_row_of_the_trunk(pool: Pool, lease: Lease, query: Query) -> None:
    first = opened(pool, lease, query)
    version = published(pool, lease, query)
    found = revocations.lineage(pool, SOURCE, STREAM, Subject(file_id=2))
    assert [use.run_id for use in found.uses] == [first]
    assert [(one.version, one.directly) for one in found.adapters] == [(version, True)]
    revocations.revoke(pool, SOURCE, STREAM, Subject(file_id=2), reason="asked for", begin_anew=True)
    assert dispositions(query) == {"held_out": 2, "returned": 5, "rejected:revoked": 1} and problems(pool) == []


def test_held_out_files_of_the_trunk_come_first_and_then_each_run_in_turn(
    pool: Pool, lease: Lease, query: Query
) -> None:
    for _ in range(3):
        fill(pool, 6)
        run_id, _ = judged(pool, lease, count=0, held_out=3)
        settling.publish(pool, lease, run_id, told(query, run_id), ADAPTER, report(told(query, run_id)))
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=1, seed=1, parent_version=3) as claimed:
        every = [row.run_id for row in claimed.earlier_held_out(1, 10**6)]
        first = [row.run_id for row in claimed.earlier_held_out(1, 10**6, trunk=[2])]
        claimed.cancel()
    assert [sorted(every[n : n + 3]) for n in (0, 3, 6)] == [[1, 2, 3]] * 3
    assert first[:3] == [2, 2, 2] and [sorted(first[n : n + 2]) for n in (3, 5, 7)] == [[1, 3]] * 3
