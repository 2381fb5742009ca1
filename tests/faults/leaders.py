"""Row 9: two services of one stream, one of them stopped beyond its lease; trainers that outlive their service.

The second service has a folder of its own whose runs and models are the first one's, as on a shared volume whose locks
do not reach from machine to machine: the lease alone keeps the two apart.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
from kills import met_trainers, send, trainers
from oracle import Broken
from rows import Done, Row, Trials
from scene import Scene, Service, scene, server

LEASE_SECONDS = 1.2
TAKEOVER_SECONDS = 30.0


def second_home(one: Scene) -> Path:
    """A folder with the first one's runs and models."""
    home = one.folder / "second"
    home.mkdir()
    one.home.prepare()
    for name in ("runs", "models"):
        (home / name).symlink_to(one.options.home / name)
    return home


def leader(one: Scene) -> str | None:
    """Who holds the stream."""
    connection = psycopg2.connect(one.url)
    with connection, connection.cursor() as cursor:
        cursor.execute("select holder from codelupe.leases where expires_at > clock_timestamp()")
        row = cursor.fetchone()
    connection.close()
    return row[0] if row else None


def instance(home: Path) -> str | None:
    path = home / "instance-id"
    return path.read_text().strip() if path.exists() else None


def leading(one: Scene, services: list[Service]) -> Service:
    """The service that holds the lease, as soon as one does."""
    deadline = time.monotonic() + TAKEOVER_SECONDS
    while time.monotonic() < deadline:
        holder = leader(one)
        for service in services:
            if holder is not None and instance(service.options.home) == holder:
                return service
        time.sleep(0.02)
    raise Broken(f"nobody took the lease in {TAKEOVER_SECONDS:.0f} s; {one.said()}")


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
                    one.service = leading(one, [service for service in both if service.process.exitcode is None])
                    one.settle()
                finally:
                    for service in both:
                        service.kill()
            return Done(note=note)

        yield Trials(number=number, run=trial)


def stopped_leader(one: Scene, both: list[Service], chance: random.Random) -> str:
    """The leader is stopped beyond its lease, and goes on when another has long taken over. Its trainer is not."""
    first = leading(one, both)
    time.sleep(chance.uniform(0, 0.6))
    send([first.process.pid or 0], signal.SIGSTOP)
    second = leading(one, [service for service in both if service is not first])
    time.sleep(chance.uniform(0, 1.0))
    one.produce(10)
    send([first.process.pid or 0], signal.SIGCONT)
    time.sleep(chance.uniform(0, 1.0))
    one.check_pointer()
    return f"stopped leader {'first' if second is both[1] else 'second'}"


def stopped_with_its_trainer(one: Scene, both: list[Service], chance: random.Random) -> str:
    """The same, its trainer with it."""
    first = leading(one, both)
    time.sleep(chance.uniform(0, 0.6))
    pids = [first.process.pid or 0, *trainers(one)]
    stopped = send(pids, signal.SIGSTOP)
    time.sleep(LEASE_SECONDS * 2)
    send(pids, signal.SIGCONT)
    time.sleep(chance.uniform(0, 1.0))
    one.check_pointer()
    return "stopped with its trainer" if stopped > 1 else "stopped, no trainer at that moment"


def trainer_of_a_killed_service(one: Scene, both: list[Service], chance: random.Random) -> str:
    """The leader is killed while its trainer cannot hear of it; the trainer goes on when another has taken over."""
    first = leading(one, both)
    while not send(pids := met_trainers(one), signal.SIGSTOP):
        continue  # it ended this moment
    first.kill()
    leading(one, [service for service in both if service is not first])
    time.sleep(chance.uniform(0.1, 1.0))
    send(pids, signal.SIGCONT)
    time.sleep(chance.uniform(0, 1.0))
    one.check_pointer()
    return f"{len(pids)} trainer of a killed service"


FAULTS = (stopped_leader, stopped_with_its_trainer, trainer_of_a_killed_service)
ROWS = {
    9: Row(fault="two services: the leader stopped beyond its lease, then resumed; a killed one's trainer alive",
           unit="times", passes="one publisher, one trainer a run", prepare=two_services),
}  # fmt: skip
