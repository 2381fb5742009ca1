"""Rows 6 to 8: the server restarts, its processes are terminated, and the network fails.

The service has two connections and needs both at the same time, so a single leaked slot stops it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import psycopg2
from kills import CYCLE_SECONDS, GRACE_SECONDS, Lineages
from oracle import Broken
from proxy import Proxy
from rows import Done, Row, Trials
from scene import Scene, server

from db import embedded
from trainer.run_dir import read_json

RECOVERY_SECONDS = 30.0
"""The limit for a recovery, measured from when the server can be reached again."""
SILENCE_SECONDS = 10.0
"""A service with short timeouts is degraded after this time without an answer to a statement or a new connection."""
SETTINGS = (("DB_POOL_MAX_CONN", "2"),)


class Served(Lineages):
    """Lineages that check the service after each trial, and check for leaked connections when the service ends."""

    def __init__(self, folder: Path, url: str, name: str, last: int, **options: Any) -> None:
        super().__init__(folder, url, name, last, settings=SETTINGS, **options)
        self._proxy: Proxy | None = options.get("proxy")
        self._seen = 0
        """How many log lines were written before the trial."""

    def running(self, number: int) -> Scene:
        """Return the scene of a trial, with its service running."""
        one = self.of(number)
        if one.service is None or one.service.process.exitcode is not None:
            options = {key: value for key, value in self._options.items() if key != "proxy"}
            if self._proxy is not None:
                one.options = replace(one.options, url=self._proxy.url(one.url))
            one.start(status_file=one.folder / "status", **options)
            await_status(one, lambda seen: True, 30.0, "the service does not start")
        self._seen = len(self._lines(one))
        return one

    def _lines(self, one: Scene) -> list[str]:
        """Return the lines of the service's log."""
        return one.home.log_file.read_text().splitlines() if one.home.log_file.exists() else []

    def recovered(self, number: int, seconds: float = RECOVERY_SECONDS) -> float:
        """Wait until new rows are consumed and every slot is free. Return the seconds until the rows were consumed."""
        one, began = self.of(number), time.monotonic()
        one.produce(4)
        one.settle(seconds)
        took = time.monotonic() - began
        await_status(one, is_idle, 10.0, "not every slot was released")
        if paused := [line for line in self._lines(one)[self._seen :] if " Paused " in line]:
            raise Broken(f"the service paused, as if a person had to act: {paused[0]}")
        if number % 10 == 9 or number == self._last:
            assert one.service is not None
            one.service.terminate(GRACE_SECONDS)
            seen = read_json(one.folder / "status")
            if seen["in_use"] or seen["taken"]:
                raise Broken(f"the service ended with connections in use: {seen}")
            self.close()
        return took


def await_status(one: Scene, good: Callable[[dict[str, Any]], bool], seconds: float, otherwise: str) -> None:
    """Wait until the service's status file satisfies a condition."""
    deadline, path = time.monotonic() + seconds, one.folder / "status"
    while not path.exists() or not good(read_json(path)):
        if time.monotonic() > deadline:
            raise Broken(f"{otherwise}: {read_json(path) if path.exists() else 'no status'}; {one.log_tail()}")
        time.sleep(0.02)


def is_idle(seen: dict[str, Any]) -> bool:
    """Return whether only the listening connection is in use, as counted by the pool and by psycopg2."""
    return bool(seen["status"] == "healthy" and seen["in_use"] == seen["taken"] <= 1 and not seen["waiting"])


# --- row 6: restarts ------------------------------------------------------------------------------------------


@contextmanager
def restarts(folder: Path, sample: bool) -> Iterator[Trials]:
    """Alternate fast restarts (sessions are terminated) with immediate ones (the server recovers as after a crash)."""
    number = 2 if sample else 100
    with server(folder / "postgres", durable=True) as url:
        served = Served(folder, url, "restarts", number - 1)

        def trial(n: int) -> Done:
            chance, one = random.Random(n), served.running(n)
            one.produce(chance.randrange(4, 30))
            time.sleep(chance.uniform(0, CYCLE_SECONDS))
            what = (signal.SIGINT, signal.SIGQUIT)[n % 2]
            outage = chance.choice((0.0, 0.0, 1.0, 5.0))
            restart(folder / "postgres", what, 0.0 if sample else outage)
            took = served.recovered(n)
            return Done(note=f"{what.name}, {outage:g} s down, {took:.1f} s")

        yield Trials(number=number, run=trial)
        served.close()


def restart(data_folder: Path, how: signal.Signals, outage_seconds: float) -> None:
    """Stop the server, wait for the outage to pass, and start it again. Return when it answers."""
    postmaster = psutil.Process(int((data_folder / "pgdata" / "postmaster.pid").read_text().split()[0]))
    os.kill(postmaster.pid, how)
    deadline = time.monotonic() + 60
    while postmaster.is_running() and postmaster.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            raise RuntimeError("the server does not end")
        time.sleep(0.01)
    time.sleep(outage_seconds)
    embedded.start(data_folder)


# --- row 7: its processes are terminated ----------------------------------------------------------------------

MOMENTS = {
    "idle": "state = 'idle'",
    "in transaction": "(state = 'idle in transaction' or state = 'active' and query not ilike 'commit%')",
    "in COMMIT": "state = 'active' and query ilike 'commit%'",
}
SLOW_COMMIT = """
create function public.slow_commit() returns trigger language plpgsql as $$ begin
    perform pg_sleep(0.1); return null;
end $$;
create constraint trigger slow_commit after insert or update on codelupe.runs
    deferrable initially deferred for each row execute function public.slow_commit();
"""
"""Makes a COMMIT take longer, because deferred triggers run inside it."""
TERMINATE = """
select count(pg_terminate_backend(pid)) from pg_stat_activity
where datname = current_database() and application_name like 'codelupe:%'
  and application_name not like '% sentinel' and {moment}
"""


@contextmanager
def terminations(folder: Path, sample: bool) -> Iterator[Trials]:
    """Terminate the service's server processes in three kinds of moments."""
    of_each = 1 if sample else 100
    number = of_each * len(MOMENTS)
    with server(folder / "postgres") as url:
        served = Served(folder, url, "terminations", number - 1, short_timeouts=True)

        def trial(n: int) -> Done:
            chance, one = random.Random(n), served.running(n)
            moment = list(MOMENTS)[n // of_each]
            connection = psycopg2.connect(one.url)
            connection.autocommit = True
            with closing(connection), connection.cursor() as cursor:
                cursor.execute("select to_regproc('public.slow_commit') is null")
                if cursor.fetchone() == (True,):
                    cursor.execute(SLOW_COMMIT)
                one.produce(chance.randrange(4, 30))
                time.sleep(chance.uniform(0, CYCLE_SECONDS))
                ended = terminate(cursor, moment, lambda: one.produce(4))
            took = served.recovered(n)
            return Done(note=f"{moment}: {ended} terminated, {took:.1f} s")

        yield Trials(number=number, run=trial)
        served.close()


def terminate(cursor: Any, moment: str, go_on: Callable[[], object]) -> int:
    """Try until some processes are in this kind of moment, and terminate them. Return how many."""
    deadline, again = time.monotonic() + 20, time.monotonic() + 1
    while time.monotonic() < deadline:
        cursor.execute(TERMINATE.format(moment=MOMENTS[moment]))
        (ended,) = cursor.fetchone()
        if ended:
            return int(ended)
        if time.monotonic() > again:  # the last run ended too early
            go_on()
            again = time.monotonic() + 1
    raise RuntimeError(f"no process of the service was {moment}")


# --- row 8: the network ---------------------------------------------------------------------------------------


def reset(one: Scene, proxy: Proxy, chance: random.Random) -> str:
    """Cut every connection on both sides, or only on the service's side, so that the server keeps its locks."""
    server_too = chance.random() < 0.5
    one.produce(chance.randrange(4, 30))
    time.sleep(chance.uniform(0, CYCLE_SECONDS))
    proxy.reset(server_too=server_too)
    return "both sides" if server_too else "one side"


def black_hole(one: Scene, proxy: Proxy, chance: random.Random) -> str:
    """Drop the bytes of all connections, or only of existing ones, without closing any."""
    everything = chance.random() < 0.5
    one.produce(chance.randrange(4, 30))
    time.sleep(chance.uniform(0, CYCLE_SECONDS))
    proxy.black_hole(new_ones=everything)
    if everything:
        began = time.monotonic()
        await_status(one, degraded, SILENCE_SECONDS, "health does not say that the database is silent")
        return f"everything, degraded after {time.monotonic() - began:.1f} s"
    return "old connections"


def degraded(seen: dict[str, Any]) -> bool:
    return seen["status"] == "degraded" and "database" in seen["reason"]


def latency(one: Scene, proxy: Proxy, chance: random.Random) -> str:
    """Delay every answer by two seconds for a while."""
    one.produce(chance.randrange(4, 30))
    time.sleep(chance.uniform(0, CYCLE_SECONDS))
    proxy.delay(2.0)
    time.sleep(6.0)
    check_no_outage(one)
    return ""


def byte_sliced(one: Scene, proxy: Proxy, chance: random.Random) -> str:
    """Send every byte as its own packet during a whole cycle."""
    proxy.slices()
    one.produce(chance.randrange(4, 30))
    one.settle()
    check_no_outage(one)
    return ""


def check_no_outage(one: Scene) -> None:
    """Check that the service did not take a slow network for an outage."""
    if "Database unavailable" in one.log_tail():
        raise Broken(f"the service gave up on a slow network: {one.log_tail()}")


def lost_commit(one: Scene, proxy: Proxy, chance: random.Random) -> str:
    """Let a COMMIT through, but lose its answer. The connection then breaks or stays silent."""
    after = chance.choice(("reset", "hole"))
    proxy.lose_answer(after, number=chance.randrange(1, 9))
    for _ in range(10):
        one.produce(chance.randrange(4, 30))
        if proxy.lost.wait(2.0):
            return after
    raise RuntimeError("there was no COMMIT")


NETWORKS: dict[Callable[[Scene, Proxy, random.Random], str], bool] = {
    reset: True,
    black_hole: True,
    latency: False,
    byte_sliced: False,
    lost_commit: True,
}
"""The network faults, and whether the service has short timeouts. If so, two seconds count as silence."""
SAMPLED = (reset, black_hole, byte_sliced)
"""The other faults take longer. test_lost_commit.py covers each COMMIT of a cycle."""


@contextmanager
def network(folder: Path, sample: bool) -> Iterator[Trials]:
    of_each = 1 if sample else 50
    networks = SAMPLED if sample else tuple(NETWORKS)
    with server(folder / "postgres") as url:
        proxy = Proxy(url)
        lineages = [
            Served(folder, url, what.__name__, of_each - 1, short_timeouts=NETWORKS[what], proxy=proxy)
            for what in networks
        ]

        def trial(n: int) -> Done:
            which, number = divmod(n, of_each)
            what, served = networks[which], lineages[which]
            one = served.running(number)
            try:
                note = what(one, proxy, random.Random(n))
            finally:
                proxy.heal()
            took = served.recovered(number)
            return Done(note=f"{what.__name__} {note}, {took:.1f} s")

        yield Trials(number=of_each * len(networks), run=trial)
        for served in lineages:
            served.close()
        proxy.close()


ROWS = {
    6: Row(fault="Postgres restarted, alternating fast and immediate", unit="restarts",
           passes="trains again in < 30 s, no slot leaked", prepare=restarts),
    7: Row(fault="`pg_terminate_backend`: idle, in a transaction, in COMMIT", unit="times",
           passes="no slot leaked, 0 lost, 0 twice", prepare=terminations),
    8: Row(fault="connection reset, black-holed, 2 s late or byte by byte; the answer to a COMMIT lost", unit="times",
           passes="no hang past its deadline, 0 lost, 0 twice", prepare=network),
}  # fmt: skip
