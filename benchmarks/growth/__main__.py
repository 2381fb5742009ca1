"""`make bench-growth` measures polls, sweeps and claims on a source table with many rows.

It builds the table once and keeps its folder, which takes 10 GB for 20 million rows. To choose the size and the folder:
make bench-growth ARGS="--rows 2000000 --folder /mnt/large". Each claim runs in the service's own loop, in a separate
process. Afterwards the claimed rows are given back, so that the benchmark can run again.

It writes benchmarks/results/growth.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import world

from db import chunks
from db.files import insert_files
from db.lease import Lease, release
from db.pool import Pool
from db.source import Eligibility, Source
from service.settings.home import Home

ELIGIBLE = Eligibility(quality_threshold=70, min_chars=50, max_chars=8000)
SOURCE = Source()
POLLS = 200
COMPARED_LOOKS = 100
LEAST_ROWS, LEAST_FILES = 500_000, 1000
"""The smallest sizes with which MIN_NEW_FILES rows of the recipe wait at each claim."""
BYTES_PER_ROW = 500
"""Disk space per row: source, ledger, their indexes, and room for the write-ahead log."""

PAGE = """\
# Cost as the table grows

`make bench-growth ARGS="--rows {rows} --files {files}"` ran on {day} on {processor}. The load was {load:.1f} at the
end, because other work ran at the same time. The embedded Postgres used fsync and 128 MB of shared buffers.

The table holds {rows:,} rows of 64 characters, most of them settled, followed by {files:,} files of code. After the
last sweep, {pending:,} rows were pending and {ineligible:,} were ineligible, in {ranges:,} ranges of ids. Times are in
milliseconds and include the commit:

| operation | count | median | 95th percentile | maximum |
|---|---|---|---|---|
{timed}

Before the first poll, the stream has no counts yet. Each look of a sweep covers one range. A vacuum and a checkpoint
ran before the first poll. In the looks of the last line every mark differs, so that each also compares 2,000 texts.

The claims ran in the service's own loop, in a separate process, with hygiene (near duplicates, secrets, licences).
Memory is resident memory. It was measured after the imports and the start, at its peak until the claim's commit
(VmHWM), and after the claim. The scattered rows are one in 400, in every range. They are refused for their length.

| waiting rows | claimed | refused | polls and sweeps before, s | claim, s | before, MiB | peak, MiB | after, MiB |
|---|---|---|---|---|---|---|---|
{claims}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/growth", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000_000, help="rows that are settled, or whose score is too low")
    parser.add_argument("--files", type=int, default=100_000, help="files to claim")
    parser.add_argument("--folder", type=Path, default=ROOT / "var" / "bench-growth", help="folder for the database")
    options = parser.parse_args()
    if options.rows < LEAST_ROWS or options.files < LEAST_FILES:
        parser.error(
            f"a claim needs at least {LEAST_ROWS} --rows (one in 400 waits, scattered) and {LEAST_FILES} --files"
        )
    folder: Path = options.folder.resolve() / f"{options.rows}-{options.files}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "home").exists() and shutil.disk_usage(folder).free < BYTES_PER_ROW * options.rows:
        sys.exit(
            f"{folder} needs {BYTES_PER_ROW * options.rows / 1e9:.0f} GB of free space. "
            "Choose another --folder or fewer --rows"
        )
    url = world.build(folder / "postgres", options.rows, options.files)
    home = Home(folder / "home")
    home.prepare()
    try:
        found = measure(url, home)
        found["claims"] = [claim(url, home, which) for which in ("the newest", "scattered")]
    finally:
        world.stop(folder / "postgres")
    report(found, options.rows, options.files)


# --- polls and sweeps ---------------------------------------------------------------------------------------


def measure(url: str, home: Home) -> dict[str, Any]:
    """Return the milliseconds of each poll and each look at a range.

    The first figures are of a stream without counts, the last ones of a stream that is up to date.
    """
    pool = Pool(url)
    lease = world.take_lease(pool, home)
    world.forget(pool)
    world.settle_down(url)
    found: dict[str, Any] = {"first poll": milliseconds(lambda: poll(pool, lease), 1)}
    found["first sweep"] = sweep_all(pool, lease, 3600.0)
    found["poll, nothing new"] = milliseconds(lambda: poll(pool, lease), POLLS)
    found["poll, 500 new rows each"] = polls_of_new_rows(pool, lease)
    world.let_all_be_due(pool)
    found["sweep"] = sweep_all(pool, lease, 3600.0)
    found["pending"], found["ineligible"] = (known := poll(pool, lease)).rows, sum(known.ineligible.values())
    found["ranges"] = world.count_ranges(pool)
    world.forget_marks(pool)
    world.settle_down(url)
    found["texts compared"] = sweep_due(pool, lease, COMPARED_LOOKS)
    release(pool, lease)
    pool.close()
    return found


def poll(pool: Pool, lease: Lease) -> chunks.Pending:
    return chunks.poll(pool, lease, SOURCE, ELIGIBLE)


def polls_of_new_rows(pool: Pool, lease: Lease) -> list[float]:
    """Time polls that each find new rows."""
    values: list[float] = []
    for _ in range(POLLS // 4):
        insert_files(pool, world.poor_files(500))
        values += milliseconds(lambda: poll(pool, lease), 1)
    return values


def sweep_all(pool: Pool, lease: Lease, interval_seconds: float) -> list[float]:
    """Look at every due range, one after the other, and return the milliseconds of each look."""
    values: list[float] = []
    while True:
        started = time.perf_counter()
        if chunks.sweep(pool, lease, SOURCE, ELIGIBLE, interval_seconds=interval_seconds) is None:
            return values
        values.append(1000 * (time.perf_counter() - started))


def sweep_due(pool: Pool, lease: Lease, most: int) -> list[float]:
    """Look at the ranges that are most overdue, and return the milliseconds of each look."""

    def look() -> None:
        chunks.sweep(pool, lease, SOURCE, ELIGIBLE, interval_seconds=3600.0)

    return milliseconds(look, most)


def milliseconds(work: Callable[[], Any], times: int) -> list[float]:
    values = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        values.append(1000 * (time.perf_counter() - started))
    return values


# --- claims -------------------------------------------------------------------------------------------------


def claim(url: str, home: Home, which: str) -> dict[str, Any]:
    """Run one claim in a process (service_claim.py), and return the facts that it reports."""
    environment = {**os.environ, "DATABASE_URL": url, "CODELUPE_HOME": str(home.root), "CODELUPE_STREAM": world.STREAM}
    script = Path(__file__).with_name("service_claim.py")
    done = subprocess.run(
        [sys.executable, str(script), which], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(which, found, flush=True)
    return found


# --- the page -----------------------------------------------------------------------------------------------


def report(found: dict[str, Any], rows: int, files: int) -> None:
    names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    timed = "\n".join(
        f"| {what} | {len(found[what]):,} | {statistics.median(found[what]):,.1f} | "
        f"{sorted(found[what])[len(found[what]) * 95 // 100]:,.1f} | {max(found[what]):,.1f} |"
        for what in (
            "first poll",
            "poll, nothing new",
            "poll, 500 new rows each",
            "first sweep",
            "sweep",
            "texts compared",
        )
    )
    claims = "\n".join(
        f"| {one['which']} | {one['rows']:,} | {one['refused']:,} | {one['waiting_seconds']:.1f} | "
        f"{one['claim_seconds']:.1f} | {one['before_mib']:.0f} | {one['peak_mib']:.0f} | {one['after_mib']:.0f} |"
        for one in found["claims"]
    )
    page = PAGE.format(
        rows=rows,
        files=files,
        day=f"{datetime.now(UTC):%Y-%m-%d}",
        processor=f"{names[0] if names else 'unknown processor'}, {os.cpu_count()} cores",
        load=os.getloadavg()[0],
        timed=timed,
        claims=claims,
        **{name: found[name] for name in ("pending", "ineligible", "ranges")},
    )
    (ROOT / "benchmarks" / "results" / "growth.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
