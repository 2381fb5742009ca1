"""Row 24: others use the same server. A pooler shares its sessions, a leader is lost or slow, a role has few rights."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg2
from bouncer import bouncer, found_by_others, program
from kills import send_signal
from leaders import instance_id, lease_holder, second_home
from oracle import Broken
from proxy import Proxy
from psycopg2.extensions import make_dsn
from rows import Done, Row, Trials
from scene import Scene, Service, scene, server

from db import rights
from db.pool import Pool
from service.cycle import leadership

ROLE = "few_rights"
REPLACED_WITHIN_SECONDS = 60.0
SHORT_LEASE_SECONDS = 2.0
SHORT_REPLACED_WITHIN_SECONDS = 25.0
"""With a short lease, the server's limit for a stopped write (15 s) is what takes longest."""
LOOKS = 8
"""How often another program looks. Each look may find another of the pooler's sessions."""


def check_others(url: str, fresh: dict[str, str]) -> None:
    """Check that another program finds a pooler's sessions as the server makes them.

    Raises:
        Broken: it finds something else.
    """
    for _ in range(LOOKS):
        found = found_by_others(url)
        if changed := {name: value for name, value in found.items() if value != fresh[name]}:
            raise Broken(f"another program found {changed}")


def behind_a_pooler(one: Scene, chance: random.Random) -> str:
    """Kill the service at a random moment. Other programs look before and after it."""
    fresh = found_by_others(one.url)
    with bouncer(one.url, pool_size=2) as pooled:
        one.options = replace(one.options, url=pooled)
        service = one.start()
        one.produce(20)
        deadline = time.monotonic() + chance.uniform(0.1, 1.5)
        while time.monotonic() < deadline:
            check_others(pooled, fresh)
        service.kill()
        check_others(pooled, fresh)
        ending = one.start()
        one.produce(8)
        one.settle()
        check_others(pooled, fresh)
        ending.terminate(30)
        check_others(pooled, fresh)
    return "pooler: killed"


def with_few_rights(one: Scene, chance: random.Random) -> str:
    """Run as a role that may only read the source and use our schema, and kill it at a random moment."""
    pool = Pool(one.url)
    with pool.transaction() as cursor:
        cursor.execute("select count(*) from pg_roles where rolname = %s", [ROLE])
        if cursor.fetchone() == (0,):
            cursor.execute(f"create role {ROLE} login")
    rights.grant(pool, ROLE, one.settings.source)
    with pool.transaction() as cursor:
        cursor.execute(f"revoke insert on code_files from {ROLE}")
    pool.close()
    before = relations(one.url)
    one.options = replace(one.options, url=str(make_dsn(one.url, user=ROLE)))
    service = one.start()
    one.produce(20)
    time.sleep(chance.uniform(0.1, 1.5))
    service.kill()
    service = one.start()
    one.produce(8)
    one.settle()
    service.terminate(30)
    if made := relations(one.url) - before:
        raise Broken(f"the service made {made}")
    return "few rights: killed"


def relations(url: str) -> set[str]:
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("select oid::regclass::text from pg_class where relnamespace::regnamespace::text !~ '^pg_'")
        return {name for (name,) in cursor.fetchall()}


# --- leaders ----------------------------------------------------------------------------------------------------


@contextmanager
def leader_and_standby(one: Scene, lease_seconds: float | None) -> Iterator[tuple[Service, Service, Proxy]]:
    """Start a leader, which reaches the server through a proxy, and a standby."""
    proxy = Proxy(one.url)
    both: list[Service] = []
    try:
        one.produce(20)
        options = {"lease_seconds": lease_seconds, "short_timeouts": True}
        both.append(one.start(url=proxy.url(one.url), **options))
        await_holder(one, both[0], 30.0)
        both.append(one.start(home=second_home(one), **options))
        yield both[0], both[1], proxy
    finally:
        for service in both:
            send_signal([service.process.pid or 0], signal.SIGCONT)
            service.kill()
        time.sleep(0.2)  # the proxy's links end with their clients
        proxy.close()


def await_holder(one: Scene, service: Service, within: float) -> float:
    """Wait until a service holds the lease. Return the seconds."""
    began = time.monotonic()
    while time.monotonic() - began < within:
        holder = lease_holder(one)
        if holder is not None and holder == instance_id(service.options.home):
            return time.monotonic() - began
        time.sleep(0.05)
    raise Broken(f"the service does not lead after {within:.0f} s; {one.log_tail()}")


def kill(leader: Service, proxy: Proxy) -> None:
    leader.kill()


def stop(leader: Service, proxy: Proxy) -> None:
    send_signal([leader.process.pid or 0], signal.SIGSTOP)


def cut_off(leader: Service, proxy: Proxy) -> None:
    proxy.black_hole(new_ones=True)


def lost_leader(
    one: Scene, chance: random.Random, lose: Callable[[Service, Proxy], None], lease_seconds: float | None
) -> str:
    """Lose the leader at a random moment, and time the takeover. Then bring it back."""
    limit = REPLACED_WITHIN_SECONDS if lease_seconds is None else SHORT_REPLACED_WITHIN_SECONDS
    with leader_and_standby(one, lease_seconds) as (leader, standby, proxy):
        time.sleep(chance.uniform(0.2, 3.0))
        lose(leader, proxy)
        seconds = await_holder(one, standby, limit)
        one.produce(8)
        send_signal([leader.process.pid or 0], signal.SIGCONT)
        proxy.heal()
        one.service = standby
        one.settle(120)
    return f"leader lost ({lose.__name__}): replaced after {seconds:.0f} s"


def slow_leader(one: Scene, chance: random.Random, lease_seconds: float | None) -> str:
    """Stop the leader for less than the lease. It stays the leader."""
    lease = leadership.LEASE_SECONDS if lease_seconds is None else lease_seconds
    with leader_and_standby(one, lease_seconds) as (leader, standby, _):
        time.sleep(chance.uniform(0.2, 1.0))
        send_signal([leader.process.pid or 0], signal.SIGSTOP)
        time.sleep(lease / 2.5)
        send_signal([leader.process.pid or 0], signal.SIGCONT)
        until = time.monotonic() + lease
        while time.monotonic() < until:
            if lease_holder(one) == instance_id(standby.options.home):
                raise Broken("a slow leader was replaced")
            time.sleep(0.05)
        one.service = leader
        one.settle()
    return "leader slow: not replaced"


@contextmanager
def neighbours(folder: Path, sample: bool) -> Iterator[Trials]:
    lease_seconds = SHORT_LEASE_SECONDS if sample else None
    others: list[Callable[[Scene, random.Random], str]] = [
        lambda one, chance: lost_leader(one, chance, kill, lease_seconds),
        lambda one, chance: lost_leader(one, chance, cut_off, lease_seconds),
    ]
    faults: list[Callable[[Scene, random.Random], str]] = [
        *([behind_a_pooler] if program() else []),  # without pgbouncer, the row has fewer trials
        with_few_rights,
        lambda one, chance: lost_leader(one, chance, stop, lease_seconds),
        lambda one, chance: slow_leader(one, chance, lease_seconds),
        *([] if sample else others),
    ]
    with server(folder / "postgres") as url:

        def trial(number: int) -> Done:
            with scene(folder / f"trial{number}", url, f"neighbours_{number}") as one:
                return Done(note=faults[number % len(faults)](one, random.Random(number)))

        yield Trials(number=len(faults) if sample else 10 * len(faults), run=trial)


ROWS = {
    24: Row(fault="others on the same server: a pooler, a lost or a slow leader, a role of few rights", unit="times",
            passes="others find nothing of ours; a standby leads within 60 s, but not instead of a slow leader",
            prepare=neighbours),
}  # fmt: skip
