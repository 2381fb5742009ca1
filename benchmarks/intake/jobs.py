"""Measure `codelupe drop` with several reading processes: python benchmarks/intake/jobs.py [files] [rounds]

The files are those of benchmarks/intake. Postgres runs on the same cores. The numbers of processes take turns.

It writes benchmarks/results/intake-jobs.md.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "hygiene")]

from planted import standard_library

from db import embedded, migrate
from db.pool import Pool
from service.intake.drop import drop_paths, read_sources
from service.intake.records import Given

JOBS = (1, 2, 4)


def main() -> None:
    count, rounds = (int(value) for value in [*sys.argv[1:], 20_000, 3][:2])
    folder = Path(tempfile.mkdtemp(prefix="codelupe-intake-"))
    library = standard_library()
    for number in range(count):
        path = folder / "files" / f"part{number // 500}" / f"file{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# file {number}\n{library[number % len(library)]}", encoding="utf-8")
    source = [str(folder / "files")]
    read: dict[int, list[float]] = {jobs: [] for jobs in JOBS}
    dropped: dict[int, list[float]] = {jobs: [] for jobs in JOBS}
    url = embedded.start(folder / "db")
    try:
        pool = Pool(url)
        migrate.apply(pool)
        for _ in range(rounds):
            for jobs in JOBS:
                began = time.perf_counter()
                assert sum(1 for _ in read_sources(source, Given(), jobs=jobs)) == count
                read[jobs].append(count / (time.perf_counter() - began))
                with pool.transaction() as cursor:
                    cursor.execute("truncate code_files")
                began = time.perf_counter()
                assert drop_paths(pool, source, Given(), jobs=jobs).inserted == count
                dropped[jobs].append(count / (time.perf_counter() - began))
        pool.close()
    finally:
        embedded.stop(folder / "db")
        shutil.rmtree(folder)
    rows = "\n".join(f"| {jobs} | {of(read[jobs])} | {of(dropped[jobs])} |" for jobs in JOBS)
    page = (
        "# `codelupe drop --jobs`\n\n"
        f"`python benchmarks/intake/jobs.py {count} {rounds}` read a folder of {count:,} files, and dropped it\n"
        f"into Postgres with fsync on {os.cpu_count()} cores with other work (load {os.getloadavg()[0]:.1f}).\n"
        "Files per second: median and range. The start of the processes is included.\n\n"
        f"| jobs | read only | read and inserted |\n|---|---|---|\n{rows}\n"
    )
    (ROOT / "benchmarks" / "results" / "intake-jobs.md").write_text(page, encoding="utf-8")
    print(page)


def of(rates: list[float]) -> str:
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f}–{max(rates):,.0f})"


if __name__ == "__main__":
    main()
