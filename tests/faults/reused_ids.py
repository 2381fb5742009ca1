"""Row 20: other texts under ids that are settled, while the service works and is sometimes killed.

- The table is truncated, and its ids begin anew with other files.
- Rows are upserted, updated to a text of the same length, or deleted and inserted again.
- The table is restored from an older copy: some texts come back.

The oracle knows texts, not versions. It compares the id and sha256 of what the table holds in the end with what the
runs of the live adapter's lineage were given.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from oracle import Broken, lineage
from psycopg2.extras import execute_values
from rows import Done, Row, Trials
from scene import Scene, code, scene, server

from trainer.records import read_outcomes

ROUNDS, SAMPLE_ROUNDS = 12, 4
FILES = 40
"""Files that a round inserts."""
SETTLE_SECONDS = 120.0
SETTINGS = (("SWEEP_INTERVAL", "0.3"), ("MAX_DATASET_SIZE", "60"))
HYGIENE = (("duplicates", "none"),)
"""Row 20 is about ids. With duplicates allowed, only the id and its text say what was trained on."""
COLUMNS = "id, repository, path, language, content, quality_score"
INSERT = f"insert into code_files ({COLUMNS}) overriding system value values %s"
UPSERT = f"{INSERT} on conflict (id) do update set content = excluded.content, path = excluded.path"

Rows = dict[int, str]
"""The text of each row."""


class Producer:
    """Changes the table, and knows what it holds."""

    def __init__(self, url: str, seed: int) -> None:
        self.url, self.chance = url, random.Random(f"reused ids {seed}")
        self.made = 0
        self.rows: Rows = {}
        self.copy: Rows = {}
        self.changed = 0
        """Rows that got another text under their id."""
        self.known: dict[int, set[str]] = {}

    def run(self, name: str) -> None:
        """Do one of the operations below."""
        OPERATIONS[name](self)

    def insert(self) -> None:
        first = max(self.rows, default=0) + 1
        self.write({first + n: self.text() for n in range(FILES)})

    def truncate(self) -> None:
        self.copy = dict(self.rows)
        self.write({1 + n: self.text() for n in range(FILES)}, before="truncate code_files restart identity")

    def upsert(self) -> None:
        self.write({file_id: self.text() for file_id in self.some()}, statement=UPSERT)

    def same_length(self) -> None:
        """Update rows to texts of the same length."""
        texts = {
            n: self.rows[n].replace("return", self.chance.choice(("Return", "rEturn", "reTurn"))) for n in self.some()
        }
        self.write(texts, statement=UPSERT)

    def insert_again(self) -> None:
        """Delete rows, and insert others with their ids."""
        ids = self.some()
        self.write(
            {file_id: self.text() for file_id in ids}, before=f"delete from code_files where id in ({listed(ids)})"
        )

    def restore(self) -> None:
        """Put an older copy back. Some rows that the table has now are gone afterwards."""
        if self.copy:
            self.copy, old = dict(self.rows), self.copy
            self.write(old, before="truncate code_files")

    def rewrite(self) -> None:
        """Write every row anew, with the same texts."""
        self.write(dict(self.rows), before="truncate code_files")

    def write(self, rows: Rows, *, statement: str = INSERT, before: str = "") -> None:
        records = [(n, f"r{n % 5}", f"p/{hash_of(text)[:12]}.py", "python", text, 90.0) for n, text in rows.items()]
        with psycopg2.connect(self.url) as connection, connection.cursor() as cursor:
            if before:
                cursor.execute(before)
            execute_values(cursor, statement, records)
        connection.close()
        if before.startswith("truncate"):
            self.rows = {}
        self.rows |= rows
        for file_id, text in rows.items():
            texts = self.known.setdefault(file_id, set())
            self.changed += bool(texts) and text not in texts
            texts.add(text)

    def some(self) -> list[int]:
        return self.chance.sample(sorted(self.rows), min(len(self.rows), self.chance.randint(1, 20)))

    def text(self) -> str:
        self.made += 1
        return code(self.made)


OPERATIONS: dict[str, Callable[[Producer], None]] = {
    "insert": Producer.insert,
    "truncate": Producer.truncate,
    "upsert": Producer.upsert,
    "same_length": Producer.same_length,
    "insert_again": Producer.insert_again,
    "restore": Producer.restore,
    "rewrite": Producer.rewrite,
}


def listed(ids: list[int]) -> str:
    return ", ".join(map(str, ids))


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def texts_of(path: Path) -> dict[int, str]:
    """Return the sha256 of each row's text. The service compresses the rows of a run after its verdict."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        lines = path.read_bytes()
    except FileNotFoundError:
        lines = gzip.decompress(packed.read_bytes())
    return {row["file_id"]: hash_of(row["content"]) for row in map(json.loads, lines.splitlines())}


def consumed(one: Scene) -> tuple[Counter[tuple[int, str]], set[tuple[int, str]]]:
    """Return what the lineage was trained on, and what it holds out, by id and sha256 of the text."""
    trained: Counter[tuple[int, str]] = Counter()
    held_out: set[tuple[int, str]] = set()
    for run in lineage(one.pointer, one.home.runs):
        texts, measured = texts_of(run.rows), texts_of(run.held_out)
        for outcome in read_outcomes(run.rows_outcome):
            if outcome.outcome == "trained":
                trained[outcome.file_id, texts[outcome.file_id]] += 1
            elif outcome.outcome == "held_out" and outcome.file_id in measured:
                held_out.add((outcome.file_id, measured[outcome.file_id]))
    return trained, held_out


def settle(one: Scene, rows: Rows) -> None:
    """Wait until every text of the table is trained on or held out.

    Raises:
        Broken: a text is not consumed in time, or one was trained on twice.
    """
    wanted = {(file_id, hash_of(text)) for file_id, text in rows.items()}
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        trained, held_out = consumed(one)
        twice = [key for key, times in trained.items() if times > 1]
        lost = sorted(wanted - {*trained} - held_out)
        if twice:
            raise Broken(f"{len(twice)} texts were trained on twice: {twice[:3]}")
        if not lost:
            return
        if time.monotonic() > deadline:
            raise Broken(f"{len(lost)} of {len(wanted)} texts were never trained on: {lost[:3]}; {one.log_tail()}")
        if one.service is None or one.service.ended(0.3):
            raise Broken(f"the service ended; {one.log_tail()}")


@contextmanager
def reused_ids(folder: Path, sample: bool) -> Iterator[Trials]:
    with server(folder / "postgres") as url:

        def trial(number: int) -> Done:
            with scene(folder / f"trial{number}", url, f"reused_{number}") as one:
                options: dict[str, Any] = {"settings": SETTINGS, "hygiene": HYGIENE}
                producer, done = Producer(one.url, number), Counter[str]()
                one.start(**options)
                producer.insert()
                for _ in range(SAMPLE_ROUNDS if sample else ROUNDS):
                    time.sleep(producer.chance.uniform(0, 1.5))
                    name = producer.chance.choice(sorted(OPERATIONS))
                    producer.run(name)
                    done[name] += 1
                    if producer.chance.random() < 0.3:
                        time.sleep(producer.chance.uniform(0, 0.3))
                        one.stop()
                        one.start(**options)
                        done["kill"] += 1
                settle(one, producer.rows)
                one.check()
            note = ", ".join(f"{times} {name}" for name, times in sorted(done.items()))
            return Done(count=producer.changed, note=note)

        yield Trials(number=1 if sample else 20, run=trial)


ROWS = {
    20: Row(fault="other texts under settled ids: TRUNCATE, restored copies, upserts, same lengths, with kills",
            unit="texts", passes="each text is trained on once or held out, and the audit passes",
            prepare=reused_ids),
}  # fmt: skip
