"""Row 22: the service runs with settings under which nearly no row, or only a part of them, may be trained on.

Each round starts it with other settings, inserts files, and waits a while. In the end the settings are right again.
Every file must then be trained on once or held out: none may stay rejected.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from oracle import Broken
from psycopg2.extras import execute_values
from reused_ids import Rows, settle
from rows import Done, Row, Trials
from scene import Scene, code, scene, server

ROUNDS, SAMPLE_ROUNDS = 8, 3
FILES = 30
INSERT = """insert into code_files (repository, path, language, content, quality_score, license) values %s
returning id"""
SETTINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "right": (),
    "a licence that no file has": (("ALLOWED_LICENSES", "zlib"),),
    "a licence that some files have": (("ALLOWED_LICENSES", "mit"),),
    "a tiny MAX_LENGTH": (("MAX_LENGTH", "64"),),
}
SERVICE = (("SWEEP_INTERVAL", "0.3"), ("MAX_DATASET_SIZE", "60"))


def insert(one: Scene, chance: random.Random, rows: Rows) -> None:
    """Insert files. Two thirds have a licence."""
    first = one.made
    one.made += FILES
    texts = [code(n) for n in range(first, one.made)]
    records = [
        (f"r{n % 5}", f"p/{n}.py", "python", text, 90.0, chance.choice((None, "mit", "apache-2.0")))
        for n, text in enumerate(texts, first)
    ]
    with psycopg2.connect(one.url) as connection, connection.cursor() as cursor:
        ids = [file_id for (file_id,) in execute_values(cursor, INSERT, records, fetch=True)]
    connection.close()
    rows |= dict(zip(ids, texts, strict=True))


def rejected(one: Scene) -> list[tuple[str, int]]:
    with psycopg2.connect(one.url) as connection, connection.cursor() as cursor:
        cursor.execute("select reason, count(*) from codelupe.ledger where disposition = 'rejected' group by 1")
        found: list[tuple[str, int]] = cursor.fetchall()
    connection.close()
    return found


@contextmanager
def wrong_settings(folder: Path, sample: bool) -> Iterator[Trials]:
    with server(folder / "postgres") as url:

        def trial(number: int) -> Done:
            chance, done, rows = random.Random(f"settings {number}"), Counter[str](), Rows()
            with scene(folder / f"trial{number}", url, f"settings_{number}") as one:

                def start(name: str) -> None:
                    one.stop()
                    settings: tuple[tuple[str, str], ...] = (*SERVICE, *SETTINGS[name])
                    options: dict[str, Any] = {"settings": settings}
                    one.start(**options)

                for _ in range(SAMPLE_ROUNDS if sample else ROUNDS):
                    name = chance.choice(sorted(SETTINGS))
                    start(name)
                    insert(one, chance, rows)
                    time.sleep(chance.uniform(0.2, 2.5))
                    done[name] += 1
                start("right")
                settle(one, rows)
                one.check()
                if left := rejected(one):
                    raise Broken(f"rows stay rejected although the settings are right: {left}")
            return Done(count=len(rows), note=", ".join(f"{times} × {name}" for name, times in sorted(done.items())))

        yield Trials(number=1 if sample else 20, run=trial)


ROWS = {
    22: Row(fault="settings under which no row, or only some rows, may be trained on, with kills",
            unit="files", passes="with the right settings, each file is trained on once or held out",
            prepare=wrong_settings),
}  # fmt: skip
