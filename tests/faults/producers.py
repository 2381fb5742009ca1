"""Row 5: eight difficult producers insert rows at the same time while the service claims them.

- Transactions commit late, so that higher ids appear first.
- Ids are drawn long before use, or lie far above the sequence or below zero.
- Some transactions are rolled back.
- Scores are set later, by another transaction.

In each of these cases, a reader that only remembers the last id it saw would lose rows.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
from kills import GRACE_SECONDS
from oracle import Broken, Count, ProducerLog
from psycopg2.extras import execute_values
from rows import Done, Row, Trials
from scene import Scene, in_process, scene, server

PRODUCERS = 8
OPEN_AT_ONCE = 4
"""How many transactions a producer keeps open. It commits them in any order."""
LONGEST_OPEN_SECONDS = 1.5
SETTLE_SECONDS = 180.0
LOOK_SECONDS = 3.0
"""The pause between two counts. A count reads the outcomes of every run."""
SETTINGS = (("MAX_DATASET_SIZE", "4000"), ("SWEEP_INTERVAL", "2"))
HYGIENE = (("duplicates", "none"), ("secrets", "keep"))
"""This row does not test hygiene, which would take most of the time."""
INSERT = """
insert into code_files (id, repository, path, language, content, quality_score) values %s returning id
"""
INSERT_NEXT = """
insert into code_files (repository, path, language, content, quality_score) values %s returning id
"""
BODY = "def f{0}_{1}(a, b):\n" + "".join(f"    v{n} = a.g{n}(b, {{1}} + {n})\n" for n in range(8)) + "    return v0\n"


@dataclass(frozen=True, kw_only=True)
class Open:
    """An open transaction."""

    due: float
    connection: Any
    eligible: list[int]
    """Ids that a commit makes eligible."""
    unscored: list[int]
    """Ids that still need a score after a commit."""
    undone: list[int]
    """Ids that still need a score after a rollback."""


class Producer:
    """A producer. It logs the ids that its COMMITs made eligible, after each COMMIT has returned."""

    def __init__(self, url: str, number: int, rows: int, log: ProducerLog, seed: int) -> None:
        self.url, self.number, self.wanted, self.log = url, number, rows, log
        self.chance = random.Random(f"{seed} {number}")
        self.made = self.eligible = 0
        self.drawn: list[int] = []
        self.idle = [psycopg2.connect(url) for _ in range(OPEN_AT_ONCE)]
        self.open: list[Open] = []
        self.unscored: list[int] = []
        """Ids of committed rows that are not eligible yet."""

    def run(self) -> None:
        """Produce until the wanted number of rows is eligible."""
        while self.eligible < self.wanted:
            self._commit_due()
            if self.idle:
                self.chance.choice((self._insert, self._insert, self._score, self._draw))()
            else:
                time.sleep(0.01)
        while self.open:
            self._commit_due()
            time.sleep(0.01)
        for connection in self.idle:
            connection.close()

    def _insert(self) -> None:
        """Insert rows with the next ids, with ids drawn earlier or with chosen ids. A few rows have no score."""
        size, how = self.chance.randrange(1, 120), self.chance.choice(("next", "next", "drawn", "beyond", "below"))
        rows = [self._row() for _ in range(size)]
        if how == "drawn":
            self.chance.shuffle(self.drawn)
            ids, self.drawn = self.drawn[:size], self.drawn[size:]
        else:
            sign = {"beyond": 1, "below": -1}.get(how, 0)
            ids = [sign * (10**12 + (self.made - n) * PRODUCERS + self.number) for n in range(size)] if sign else []
        rows = rows[: len(ids)] if how != "next" else rows
        if not rows:
            return
        connection = self.idle.pop()
        with connection.cursor() as cursor:
            if how == "next":
                ids = [number for (number,) in execute_values(cursor, INSERT_NEXT, rows, fetch=True)]
            else:
                execute_values(cursor, INSERT, [(number, *row) for number, row in zip(ids, rows, strict=True)])
        scored = [number for number, row in zip(ids, rows, strict=True) if (row[-1] or 0.0) >= 70.0]
        self._leave_open(connection, eligible=scored, unscored=sorted(set(ids) - set(scored)), undone=[])

    def _row(self) -> tuple[Any, ...]:
        self.made += 1
        score = self.chance.choices((90.0, None, 10.0), (8, 1, 1))[0]
        repository, path = f"r{self.made % 40}", f"{self.number}/{self.made}.py"
        return repository, path, "python", BODY.format(self.number, self.made), score

    def _score(self) -> None:
        """Set scores of rows that were committed with a low score or none."""
        self.chance.shuffle(self.unscored)
        ids, self.unscored = self.unscored[:40], self.unscored[40:]
        if ids:
            connection = self.idle.pop()
            with connection.cursor() as cursor:
                cursor.execute("update code_files set quality_score = 80 where id = any(%s)", [ids])
            self._leave_open(connection, eligible=ids, unscored=[], undone=ids)

    def _draw(self) -> None:
        """Draw ids for later use."""
        if len(self.drawn) < 500:
            connection = self.idle[-1]
            with connection, connection.cursor() as cursor:
                sequence = "pg_get_serial_sequence('code_files', 'id')"
                cursor.execute(f"select nextval({sequence}) from generate_series(1, 100)")
                self.drawn += [number for (number,) in cursor.fetchall()]

    def _leave_open(self, connection: Any, **ids: list[int]) -> None:
        late = self.chance.choice((0.0, 0.0, self.chance.uniform(0, LONGEST_OPEN_SECONDS)))
        self.open.append(Open(due=time.monotonic() + late, connection=connection, **ids))

    def _commit_due(self) -> None:
        for one in [one for one in self.open if one.due <= time.monotonic()]:
            self.open.remove(one)
            if self.chance.random() < 0.1:
                one.connection.rollback()
                self.unscored += one.undone
            else:
                one.connection.commit()
                self.log.add(one.eligible)
                self.eligible += len(one.eligible)
                self.unscored += one.unscored
            self.idle.append(one.connection)


def produce(url: str, number: int, rows: int, log: Path, seed: int) -> None:
    """Run a producer in its own process."""
    Producer(url, number, rows, ProducerLog(log), seed).run()


def settled(one: Scene, seconds: float) -> Count:
    """Wait until the service has consumed every logged row. Return the remaining differences.

    Call this only after the producers have ended: a row can be consumed before its producer has logged it.
    """
    deadline = time.monotonic() + seconds
    while not (found := one.counted()).settled and time.monotonic() < deadline:
        if found.twice or found.phantom or one.service is None or one.service.ended(LOOK_SECONDS):
            break
    return found


@contextmanager
def producers(folder: Path, sample: bool) -> Iterator[Trials]:
    number, rows = (1, 800) if sample else (8, 25_000)
    with server(folder / "postgres") as url:

        def trial(n: int) -> Done:
            with scene(folder / f"trial{n}", url, f"producers_{n}") as one:
                one.start(settings=SETTINGS, hygiene=HYGIENE)
                log = one.folder / "produced"
                each = -(-rows // PRODUCERS)
                processes = [in_process(produce, one.url, p, each, log, n) for p in range(PRODUCERS)]
                for process in processes:
                    process.join()
                if any(process.exitcode for process in processes):
                    raise RuntimeError(f"producers ended with {[process.exitcode for process in processes]}")
                made = one.log.ids()
                left = settled(one, SETTLE_SECONDS)
                if not left.settled:
                    raise Broken(f"{left}; {one.log_tail()}")
                one.check()
                assert one.service is not None
                one.service.terminate(GRACE_SECONDS)
                runs = len(list(one.home.runs.iterdir()))
            return Done(count=made.total(), note=f"{runs} runs, ids from {min(made)} to {max(made)}")

        yield Trials(number=number, run=trial)


ROWS = {
    5: Row(fault=f"{PRODUCERS} concurrent producers: late commits, ids drawn early, chosen ids, rollbacks, late scores",
           unit="rows", passes="0 lost, 0 twice, 0 phantom", prepare=producers),
}  # fmt: skip
