"""Row 9: two services share a stream. One is stopped until its lease expires, or a trainer outlives its service.

The second service has its own folder, but shares the runs and models of the first. This is like a shared volume whose
locks do not work across machines: only the lease separates the two services.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
from kills import await_trainers, send_signal, trainers
from oracle import Broken
from rows import Done, Row, Trials
from scene import Scene, Service, scene, server

LEASE_SECONDS = 1.2
TAKEOVER_SECONDS = 30.0


def second_home(one: Scene) -> Path:
    """Create a second home that shares the runs and models of the first."""
    home = one.folder / "second"
    home.mkdir()
    one.home.prepare()
    for name in ("runs", "models"):
        (home / name).symlink_to(one.options.home / name)
    return home


def lease_holder(one: Scene) -> str | None:
    """Return the holder of the stream's lease."""
    connection = psycopg2.connect(one.url)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "select holder from codelupe.leases where stream = %s and expires_at > clock_timestamp()", [one.stream]
        )
        row = cursor.fetchone()
    connection.close()
    return row[0] if row else None


def instance_id(home: Path) -> str | None:
    path = home / "instance-id"
    return path.read_text().strip() if path.exists() else None


def await_leader(one: Scene, services: list[Service]) -> Service:
    """Wait until a service holds the lease, and return it."""
    deadline = time.monotonic() + TAKEOVER_SECONDS
    while time.monotonic() < deadline:
        holder = lease_holder(one)
        for service in services:
            if holder is not None and instance_id(service.options.home) == holder:
                return service
        time.sleep(0.02)
    raise Broken(f"no service took the lease in {TAKEOVER_SECONDS:.0f} s; {one.log_tail()}")


@contextmanager
def two_services(folder: Path, sample: bool) -> Iterator[Trials]:
    number = 3 if sample else 50
    with server(folder / "postgres") as url:

        def trial(n: int) -> Done:
            chance = random.Random(n)
            with scene(folder / f"trial{n}", url, "two_services") as one:
                other = second_home(one)
                one.produce(30)
                both = [one.start(lease_seconds=LEASE_SECONDS)]
                time.sleep(0.3)
                both.append(one.start(lease_seconds=LEASE_SECONDS, home=other))
                try:
                    note = FAULTS[n % len(FAULTS)](one, both, chance)
                    one.produce(10)
                    one.service = await_leader(one, [service for service in both if service.process.exitcode is None])
                    one.settle()
                finally:
                    for service in both:
                        service.kill()
            return Done(note=note)

        yield Trials(number=number, run=trial)


def stopped_leader(one: Scene, both: list[Service], chance: random.Random) -> str:
    """Stop the leader, but not its trainer. Resume it after the other service has taken over."""
    first = await_leader(one, both)
    time.sleep(chance.uniform(0, 0.6))
    send_signal([first.process.pid or 0], signal.SIGSTOP)
    second = await_leader(one, [service for service in both if service is not first])
    time.sleep(chance.uniform(0, 1.0))
    one.produce(10)
    send_signal([first.process.pid or 0], signal.SIGCONT)
    time.sleep(chance.uniform(0, 1.0))
    one.check_pointer()
    return f"stopped leader {'first' if second is both[1] else 'second'}"


def stopped_with_its_trainer(one: Scene, both: list[Service], chance: random.Random) -> str:
    """Stop the leader and its trainer until the lease has expired, then resume both."""
    first = await_leader(one, both)
    time.sleep(chance.uniform(0, 0.6))
    pids = [first.process.pid or 0, *trainers(one)]
    stopped = send_signal(pids, signal.SIGSTOP)
    time.sleep(LEASE_SECONDS * 2)
    send_signal(pids, signal.SIGCONT)
    time.sleep(chance.uniform(0, 1.0))
    one.check_pointer()
    return "stopped with its trainer" if stopped > 1 else "stopped, no trainer at that moment"


def trainer_of_a_killed_service(one: Scene, both: list[Service], chance: random.Random) -> str:
    """Kill the leader while its trainer is stopped. Resume the trainer after the other service has taken over."""
    first = await_leader(one, both)
    while not send_signal(pids := await_trainers(one), signal.SIGSTOP):
        continue  # the trainer has just ended
    first.kill()
    await_leader(one, [service for service in both if service is not first])
    time.sleep(chance.uniform(0.1, 1.0))
    send_signal(pids, signal.SIGCONT)
    time.sleep(chance.uniform(0, 1.0))
    one.check_pointer()
    return f"{len(pids)} trainer of a killed service"


FAULTS = (stopped_leader, stopped_with_its_trainer, trainer_of_a_killed_service)
ROWS = {
    9: Row(fault="two services: the leader stopped past its lease and resumed; a trainer outlives its killed service",
           unit="times", passes="one publisher, one trainer per run", prepare=two_services),
}  # fmt: skip
