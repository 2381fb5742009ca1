"""Measure how fast `codelupe drop` fills a local Postgres, and its memory: python benchmarks/intake [files] [rounds]

The files are copies of Python's standard library, cut at 8,000 characters, each with a unique first line. The forms
take turns, so that a slow minute of the machine affects all of them.

It writes benchmarks/results/intake.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), str(ROOT / "benchmarks" / "hygiene")]

import pyarrow
from planted import standard_library
from pyarrow import parquet

from db import embedded, migrate
from db.pool import Pool
from service.intake.drop import drop_paths
from service.intake.records import Given

MANY = 8


def make_sources(folder: Path, count: int) -> dict[str, str]:
    """Write the same files as a folder, as JSON lines and as Parquet. Return the path of each form."""
    library = standard_library()
    texts = [f"# file {n}\n{library[n % len(library)]}" for n in range(count)]
    files = folder / "files"
    for number, text in enumerate(texts):
        path = files / f"part{number // 500}" / f"file{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    names = [f"file{n}.py" for n in range(count)]
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"path": name, "content": text}) + "\n" for name, text in zip(names, texts, strict=True)
        )
    table = pyarrow.table({"path": names, "content": texts})
    parquet.write_table(table, folder / "rows.parquet", row_group_size=500)
    return {"folder": str(files), "jsonl": str(folder / "rows.jsonl"), "parquet": str(folder / "rows.parquet")}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/intake", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("count", nargs="?", type=int, default=6000, help="number of files")
    parser.add_argument("rounds", nargs="?", type=int, default=5, help="timed drops of each form")
    given = parser.parse_args()
    count, rounds = given.count, given.rounds
    folder = Path(tempfile.mkdtemp(prefix="codelupe-intake-"))
    sources = make_sources(folder, count)
    size = sum(path.stat().st_size for path in Path(sources["folder"]).rglob("*.py"))
    url = embedded.start(folder / "db")
    rates: dict[str, list[float]] = {form: [] for form in sources}
    try:
        pool = Pool(url)
        migrate.apply(pool)
        for _ in range(rounds):
            for form, source in sources.items():
                with pool.transaction() as cursor:
                    cursor.execute("truncate code_files")
                started = time.perf_counter()
                assert drop_paths(pool, [source], Given()).inserted == count
                rates[form].append(count / (time.perf_counter() - started))
        pool.close()
        memory = {form: memory_of(url, source) for form, source in sources.items()}
    finally:
        embedded.stop(folder / "db")
    report(rates, memory, count, size, rounds)


def memory_of(url: str, source: str) -> list[float]:
    """Return the peak memory in MB of a process that drops a source once, and of one that drops it MANY times.

    Each drop names another repository, so it inserts new rows.
    """
    commands = [[sys.executable, __file__, url, source, str(times)] for times in (1, MANY)]
    return [int(subprocess.run(each, stdout=subprocess.PIPE, check=True).stdout) / 1024 for each in commands]


def drop_once(url: str, source: str, times: int) -> None:
    """Drop a source `times` times and print the peak memory. `memory_of` runs this in a child process."""
    pool = Pool(url)
    with pool.transaction() as cursor:
        cursor.execute("truncate code_files")
    for number in range(times):
        drop_paths(pool, [source], Given(repository=f"number {number}"))
    status = Path("/proc/self/status").read_text()  # getrusage would include the parent's peak from before the exec
    print(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]


def report(rates: dict[str, list[float]], memory: dict[str, list[float]], count: int, size: int, rounds: int) -> None:
    rows = "\n".join(
        f"| {form} | {statistics.median(found):,.0f} | {min(found):,.0f}–{max(found):,.0f} "
        f"| {memory[form][0]:.0f} MB | {memory[form][1]:.0f} MB |"
        for form, found in rates.items()
    )
    page = (
        "# `codelupe drop` into a local Postgres\n\n"
        f"`python benchmarks/intake {count} {rounds}` drops {count:,} files of {size / count:,.0f} bytes on average.\n"
        "The time includes the heuristic score. The embedded Postgres uses fsync. The forms take turns.\n"
        f"The machine has {os.cpu_count()} cores and was shared with other work "
        f"(load {os.getloadavg()[0]:.1f} at the end).\n\n"
        f"| form | files per second (median) | range | peak memory, {count:,} files | "
        f"peak memory, {count * MANY:,} files |\n"
        f"|---|---|---|---|---|\n{rows}\n"
    )
    (ROOT / "benchmarks" / "results" / "intake.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        drop_once(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main()
