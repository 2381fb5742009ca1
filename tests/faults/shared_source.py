"""Row 25: two streams read one source, and two services share each of them. Leaders are killed at random moments.

All four services use one database. Of each two, one leads and the other stands by. A new service in the killed one's
folder stands by next.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2
from leaders import LEASE_SECONDS, await_leader, second_home
from oracle import Broken
from rows import Done, Row, Trials
from scene import Scene, Service, new_database, server

STREAMS = ("embedded-qwen2", "another-qwen2")
SETTLE_SECONDS = 120.0
OVERLAPS = """
select r.stream, w.file_id, count(*) from codelupe.run_rows w join codelupe.runs r using (run_id)
where r.ended_at is null and w.role <> 'replay' group by 1, 2 having count(*) > 1
union all
select stream, null, count(*) from codelupe.runs where ended_at is null group by 1 having count(*) > 1
"""


@dataclass
class Pair:
    """A stream, with the service that leads and the one that stands by."""

    one: Scene
    services: list[Service]

    def kill_leader(self) -> None:
        """Kill the leader. Its folder gets a new service, which stands by."""
        leader = await_leader(self.one, self.services)
        leader.kill()
        place = self.services.index(leader)
        self.services[place] = self.one.start(home=leader.options.home, lease_seconds=LEASE_SECONDS)


def pair(folder: Path, url: str, stream: str) -> Pair:
    one = Scene(folder, url, given=(("CODELUPE_STREAM", stream),))
    other = second_home(one)
    return Pair(one, [one.start(lease_seconds=LEASE_SECONDS), one.start(lease_seconds=LEASE_SECONDS, home=other)])


def produce(pairs: list[Pair], files: int) -> None:
    """Insert files once. Each stream must consume all of them."""
    ids = pairs[0].one.produce(files)
    for each in pairs[1:]:
        each.one.log.add(ids)


def check_overlaps(url: str) -> None:
    """Check that no row is in two live runs of a stream, and that no stream has two live runs."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(OVERLAPS)
        if found := cursor.fetchall():
            raise Broken(f"claims overlap: {found[:10]}")


def killed_leaders(pairs: list[Pair], url: str, chance: random.Random, kills: int) -> str:
    produce(pairs, 20)
    for _ in range(kills):
        until = time.monotonic() + chance.uniform(0, 1.5)
        while time.monotonic() < until:
            check_overlaps(url)
            time.sleep(0.02)
        chance.choice(pairs).kill_leader()
        produce(pairs, 6)
        check_overlaps(url)
    for each in pairs:
        each.one.service = await_leader(each.one, each.services)
        each.one.settle(SETTLE_SECONDS)
    check_overlaps(url)
    return f"four services: {kills} leaders killed"


@contextmanager
def four_services(folder: Path, sample: bool) -> Iterator[Trials]:
    with server(folder / "postgres") as url:

        def trial(number: int) -> Done:
            database = new_database(url, "four_services")
            pairs: list[Pair] = []
            try:
                for place, stream in enumerate(STREAMS):
                    pairs.append(pair(folder / f"trial{number}" / str(place), database, stream))
                return Done(note=killed_leaders(pairs, database, random.Random(number), 2 if sample else 6))
            finally:
                for service in [service for each in pairs for service in each.services]:
                    service.kill()

        yield Trials(number=1 if sample else 20, run=trial)


ROWS = {
    25: Row(fault="four services, two streams on one source: leaders killed at random moments", unit="times",
            passes="each stream consumes every row once; no row in two live runs of a stream", prepare=four_services),
}  # fmt: skip
