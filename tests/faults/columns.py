"""Row 21: values in the source's columns that break a cast, an encoding or a memory limit, in columns of many types."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg2
from malformed import SETTLE_SECONDS, settled
from oracle import Broken
from rows import Done, Row, Trials
from scene import HERE, Scene, code, new_database, server

from db import chunks
from db.pool import Pool

sys.path.append(str(HERE.parent))
from column_values import CASES, MADE, Case, create_table, insert_row

TABLE = "files"
ROWS_A_TRIAL, ORDINARY = 250, 60
TRIALS, HUGE_TRIALS = 40, 1
HUGE_BYTES = 200 * 10**6
MOST_GROWTH_BYTES = 150 * 2**20
"""How much memory the service may need at most beyond that of its start. A single value that is read takes more."""
SETTINGS = {"SOURCE_TABLE": TABLE, "MAX_DATASET_SIZE": "1000"}
COLUMNS = tuple({case.column: None for case in CASES})


def insert(one: Scene, cases: dict[str, Case], odd: list[dict[str, str]]) -> Counter[str]:
    """Create the table and insert ordinary and odd rows. Return the expected number of unused rows by reason."""
    expected: Counter[str] = Counter()
    connection = psycopg2.connect(one.url)
    with connection, connection.cursor() as cursor:
        cursor.execute(MADE)
        cursor.execute(create_table(TABLE, {name: case.type for name, case in cases.items()}))
        rows = [*({} for _ in range(ORDINARY)), *odd]
        random.Random(len(odd)).shuffle(rows)
        for number, values in enumerate(rows, 1):
            cursor.execute(insert_row(TABLE, number, cases, values), {"content": code(number)})
            for name, value in values.items():
                expected[cases[name].values[value]] += 1
        cursor.execute(f"create unique index on {TABLE} (id)")
    connection.close()
    del expected[""]
    return expected


def run(one: Scene, rows: int, expected: Counter[str]) -> None:
    """Run the service until every row is settled or ineligible, and compare the reasons with the expected ones."""
    settings = SETTINGS
    one.start(settings=tuple(settings.items()))
    found = settled(one, rows, settings, SETTLE_SECONDS)
    reasons = Counter(found.ineligible)
    for name, count in found.settled.items():
        if name.startswith("rejected:"):
            reasons[name.removeprefix("rejected:")] += count
        elif name not in ("trained", "held_out"):
            raise Broken(f"{count} rows are {name}")
    if reasons != expected:
        raise Broken(f"unused rows by reason: {dict(reasons)}, expected {dict(expected)}")
    from scene import settings_of

    made = settings_of(type(one.options)(url=one.url, home=one.options.home, settings=tuple(settings.items())))
    pool = Pool(one.url)
    try:
        if waiting := chunks.count(pool, made.source, made.eligibility, one.stream):
            raise Broken(f"{waiting} rows still wait")
    finally:
        pool.close()


def many_values(one: Scene, number: int, rows: int) -> Done:
    """Insert rows with one odd value each. Each column has one of its types."""
    chance = random.Random(number)
    cases = {name: chance.choice([case for case in CASES if case.column == name]) for name in COLUMNS}
    if cases["path"].type == "colour":  # too few places to hold some out
        cases["path"] = next(case for case in CASES if case.column == "path")
    odd: list[dict[str, str]] = []
    while len(odd) < rows:
        name = chance.choice(COLUMNS)
        value = {name: chance.choice(list(cases[name].values))}
        once = name == "id" or "0000000" in value[name]  # ids are unique, and the longest values slow
        if not once or value not in odd:
            odd.append(value)
    expected = insert(one, cases, odd)
    run(one, ORDINARY + rows, expected)
    types = ", ".join(case.type for case in cases.values())
    return Done(count=rows, note=f"{types}: {expected.total()} unused")


def huge_values(one: Scene) -> Done:
    """Insert a value of 200 MB into each column, and check the service's memory."""
    huge = f"repeat('x', {HUGE_BYTES})"
    reasons = {"repository": "long_name", "path": "long_name", "language": "long_name", "license": "long_name",
               "content": "too_long", "metadata": "bad_metadata"}  # fmt: skip
    cases = {
        name: Case(column=name, type="text", values={huge: reason})
        for name, reason in reasons.items()
        if name != "metadata"
    }
    cases["metadata"] = Case(column="metadata", type="jsonb", good="'{}'", values={f"to_jsonb({huge})": "bad_metadata"})
    expected = insert(one, cases, [{name: value} for name, case in cases.items() for value in case.values])
    run(one, ORDINARY + len(cases), expected)
    assert one.service is not None
    most = peak_bytes(one.service.process.pid or 0)
    limit = psutil.Process().memory_info().rss + MOST_GROWTH_BYTES  # the service began as a copy of this process
    if most > limit:
        raise Broken(f"the service needed {most / 2**20:.0f} MiB for values of 200 MB, more than {limit / 2**20:.0f}")
    return Done(count=len(cases), note=f"200 MB each; the service's peak was {most / 2**20:.0f} MiB")


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise Broken(f"the peak memory of process {pid} is unknown")


@contextmanager
def odd_columns(folder: Path, sample: bool) -> Iterator[Trials]:
    number = 2 if sample else TRIALS + HUGE_TRIALS

    def trial(n: int) -> Done:
        one = Scene(folder / f"trial{n}", new_database(url, f"columns_{n}"))
        try:
            if n >= TRIALS:
                return huge_values(one)
            return many_values(one, n, 40 if sample else ROWS_A_TRIAL)
        finally:
            one.stop()

    with server(folder / "postgres") as url:
        yield Trials(number=number, run=trial)


ROWS = {
    21: Row(fault="values that break a cast or a limit, in columns of many types: scores beyond single and double "
            "precision, ids at both ends, times out of range, 200 MB in each column", unit="rows",
            passes="each row used, or not used for the expected reason; no pause; no value of 200 MB in memory",
            prepare=odd_columns),
}  # fmt: skip
