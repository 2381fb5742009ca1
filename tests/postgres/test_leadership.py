"""A leader that is gone is replaced within a minute. One that is only slow is not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from world import ELIGIBLE, STREAM, fill, look_around

from db import lease as leases
from db import sentinel
from db.errors import LeaseLost, Unavailable
from db.lease import Lease, fence
from db.pool import Pool
from db.source import Source, claim
from db.statements import QUERIES
from service.cycle import leadership
from service.cycle.leadership import Leadership
from service.web.board import STALE_HEARTBEAT_SECONDS

REPLACED_WITHIN_SECONDS = 60.0
STANDBY_SECONDS = 2.0
"""The longest that a standby waits after the lease has expired (Daemon._standby)."""
SHORT_LEASE = 1.2


def seconds_in(query: str) -> float:
    found = re.search(r"'(\d+)s'", QUERIES[query])
    assert found is not None
    return float(found[1])


def test_the_times_add_up() -> None:
    lease, stand_in = leadership.LEASE_SECONDS, leadership.STAND_IN_SECONDS
    assert lease + STANDBY_SECONDS + 5 <= REPLACED_WITHIN_SECONDS
    # What a leader that is gone has locked is free by then.
    assert seconds_in("lease_idle_limit") < lease and seconds_in("claim_idle_limit") <= lease
    # The thread's first try, a lost connection, and a second try.
    lost = sentinel.PROBE_AFTER_SECONDS + 2 * (sentinel.ANSWER_SECONDS + sentinel.CHECK_SECONDS)
    assert stand_in > leadership.RENEW_SECONDS
    assert stand_in + lost + 2 * stand_in / leadership.CHECKS < lease
    assert lease < STALE_HEARTBEAT_SECONDS


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leadership, "LEASE_SECONDS", SHORT_LEASE)
    monkeypatch.setattr(leadership, "RENEW_SECONDS", SHORT_LEASE / 4)
    monkeypatch.setattr(leadership, "STAND_IN_SECONDS", SHORT_LEASE / 3)


@pytest.fixture
def leader(pool: Pool, short_lease: None) -> Iterator[Leadership]:
    made = Leadership(pool, STREAM, "a", lambda: True)
    assert made.acquire()
    yield made
    made.release()


def taken_after(pool: Pool, seconds: float) -> float | None:
    """How long it takes until another holder gets the lease. None if it takes longer."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if leases.acquire(pool, STREAM, "b", 60) is not None:
            return time.monotonic() - began
        time.sleep(0.1)
    return None


def test_a_leader_whose_loop_is_busy_keeps_the_lease(pool: Pool, leader: Leadership) -> None:
    assert taken_after(pool, 3 * SHORT_LEASE) is None
    leader.renew()
    assert leader.lease.epoch == 1


def test_a_leader_whose_loop_hangs_loses_it(pool: Pool, short_lease: None) -> None:
    hanging = Leadership(pool, STREAM, "a", lambda: False)
    assert hanging.acquire()
    taken = taken_after(pool, 10)
    assert taken is not None and taken < 2 * SHORT_LEASE
    with pytest.raises(LeaseLost):
        hanging.renew()
    hanging.release()
    found = leases.holder(pool, STREAM)
    assert found is not None and found[0] == "b"


def test_a_write_that_takes_longer_than_the_lease_keeps_it(pool: Pool, leader: Leadership) -> None:
    """The write locks the lease. The renewal waits for it, and counts from when it began to wait."""
    with pool.transaction() as cursor:
        fence(cursor, leader.lease)
        time.sleep(SHORT_LEASE)
        assert taken_after(pool, SHORT_LEASE) is None
    time.sleep(0.2)  # a standby looks once a second; the renewal that waits needs a moment
    assert taken_after(pool, SHORT_LEASE) is None
    leader.renew()
    assert leader.lease.epoch == 1


def test_a_released_lease_is_not_renewed(pool: Pool, leader: Leadership) -> None:
    leader.release()
    taken = taken_after(pool, 5)
    assert taken is not None and taken < 0.5


def test_a_claim_that_stops_does_not_hold_up_the_next_leader(
    pool: Pool, lease: Lease, monkeypatch: pytest.MonkeyPatch, query: Callable[..., list[Any]]
) -> None:
    """Its transaction holds the stream's one open run. The server ends it when nothing is heard of it."""
    monkeypatch.setitem(QUERIES, "claim_idle_limit", QUERIES["claim_idle_limit"].replace("45s", "600ms"))  # type: ignore[arg-type]
    monkeypatch.setattr("db.claim.KEEP_ALIVE_SECONDS", 0.1)
    fill(pool, 4)
    look_around(pool, lease)

    def slow_claim(*, alive: bool) -> None:
        with claim(pool, lease, Source(), ELIGIBLE, limit=10, parent_version=None, seed=1) as claimed:
            for row in claimed.rows():
                claimed.keep(row, "train")
                for _ in range(5):
                    time.sleep(0.15)
                    if alive:
                        claimed.keep_alive()
            if not alive:
                time.sleep(1)

    with pytest.raises(Unavailable):
        slow_claim(alive=False)
    assert query("select count(*) from codelupe.runs") == [(0,)]
    slow_claim(alive=True)
    assert query("select count(*) from codelupe.runs") == [(1,)]
