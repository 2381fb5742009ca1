"""Bisection finds a row that makes every run fail, and settles no other row."""

from __future__ import annotations

import random

import pytest
from world import ADAPTER, ELIGIBLE, Outcome, claim_all, fill

from db import audit, runs, settling
from db.source import Source


class Stream:
    """Plays runs against the ledger."""

    def __init__(self, pool, lease, query):
        self.pool, self.lease, self.query = pool, lease, query
        self.parent = None

    def claim(self):
        run_id, files = claim_all(self.pool, self.lease, parent=self.parent)
        runs.advance(self.pool, self.lease, run_id, "training")
        return run_id, files

    def fail(self, run_id, suspects, cause="non_finite"):
        return settling.give_back(
            self.pool, self.lease, run_id, state="failed", reason="it fails", cause=cause, suspects=suspects
        )

    def publish(self, run_id, files):
        runs.advance(self.pool, self.lease, run_id, "judging")
        outcomes = [Outcome(file_id=file_id, outcome="trained") for file_id in files]
        report = {"train": {"tokens_published": 10 * len(files)}}
        settling.publish(self.pool, self.lease, run_id, outcomes, ADAPTER, report)
        self.parent = run_id

    def ledger(self):
        return dict(self.query("select file_id, disposition || coalesce(':' || reason, '') from codelupe.ledger"))

    def suspects(self):
        return [n for (n,) in self.query("select file_id from codelupe.suspects order by 1")]


@pytest.fixture
def stream(pool, lease, query):
    return Stream(pool, lease, query)


def test_the_only_suspect_is_quarantined_and_the_others_wait(stream, pool):
    fill(pool, 6)
    run_id, files = stream.claim()
    assert stream.fail(run_id, [files[2]], "out_of_memory") == files[2]
    assert stream.ledger() == {n: "quarantined:out_of_memory" if n == files[2] else "returned" for n in files}
    found = audit.audit(pool, Source(), ELIGIBLE, stream.lease.stream)
    assert (found.problems, found.pending, found.settled) == ([], 5, {"quarantined:out_of_memory": 1})
    assert stream.claim()[1] == [n for n in files if n != files[2]]
    assert runs.totals(pool, stream.lease.stream).rows["quarantined"] == 1


def test_a_claim_takes_half_of_the_suspects_and_all_the_others(stream, pool):
    fill(pool, 12)
    run_id, files = stream.claim()
    assert stream.fail(run_id, files[:5]) is None
    assert set(stream.ledger().values()) == {"returned"}
    run_id, taken = stream.claim()
    assert taken == files[:3] + files[5:]
    stream.publish(run_id, taken)
    assert stream.suspects() == files[3:5]
    assert stream.claim()[1] == files[3:4]


def test_suspects_that_cannot_be_claimed_do_not_block_other_rows(stream, pool, query):
    fill(pool, 8)
    run_id, files = stream.claim()
    stream.fail(run_id, files[:4])
    query("delete from code_files where id = any(%s)", files[:2])
    query("update code_files set quality_score = 1 where id = %s", files[2])
    run_id, taken = stream.claim()
    assert taken == files[3:]


def test_a_returned_run_names_no_suspects(stream, pool):
    fill(pool, 4)
    run_id, files = stream.claim()
    stream.fail(run_id, files)
    run_id, _ = stream.claim()
    settling.give_back(stream.pool, stream.lease, run_id, state="returned", reason="a lease was lost")
    assert stream.suspects() == files


@pytest.mark.parametrize("seed", range(6))
def test_bisection_finds_the_rows_and_loses_no_other(stream, pool, seed):
    """A window of eight rows fails if it contains a culprit. The trainer does not know which row it is."""
    chance = random.Random(seed)
    fill(pool, 30)
    culprits = set(chance.sample(range(1, 31), chance.choice((1, 1, 2))))
    seen = set()
    for _ in range(40):
        run_id, files = stream.claim()
        state = (tuple(files), tuple(stream.suspects()))
        assert state not in seen, "the same run again"
        seen.add(state)
        order = chance.sample(files, len(files))
        windows = [order[i : i + 8] for i in range(0, len(order), 8)]
        failed = next((window for window in windows if culprits & set(window)), None)
        if failed is None:
            stream.publish(run_id, files)
        else:
            stream.fail(run_id, failed)
        if not any(word in ("returned", "claimed") for word in stream.ledger().values()):
            break
    words = stream.ledger()
    quarantined = {n for n, word in words.items() if word == "quarantined:non_finite"}
    assert culprits <= quarantined and len(quarantined) <= len(culprits) + 1
    assert {n for n, word in words.items() if word == "trained"} == set(range(1, 31)) - quarantined
    assert stream.suspects() == []
    assert audit.audit(pool, Source(), ELIGIBLE, stream.lease.stream).problems == []
