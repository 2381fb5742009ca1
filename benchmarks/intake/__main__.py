"""How fast `codelupe drop` fills a local Postgres, and in how much memory; writes benchmarks/results/intake.md.

The files are Python's standard library over and over, cut to at most 8,000 characters, each with a line of its own. The
forms take turns, so that a slow minute of the machine hits all: python benchmarks/intake [files] [rounds]
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
    """The same files as a folder, as JSON lines and as Parquet; by the name of the form."""
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
    parser.add_argument("count", nargs="?", type=int, default=6000, help="files")
    parser.add_argument("rounds", nargs="?", type=int, default=5)
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
    """Most memory of a process that drops a source once, and of one that drops it MANY times: the rows are others each
    time, since the repository is. In MB."""
    commands = [[sys.executable, __file__, url, source, str(times)] for times in (1, MANY)]
    return [int(subprocess.run(each, stdout=subprocess.PIPE, check=True).stdout) / 1024 for each in commands]


def drop_once(url: str, source: str, times: int) -> None:
    """The child of `memory_of`."""
    pool = Pool(url)
    with pool.transaction() as cursor:
        cursor.execute("truncate code_files")
    for number in range(times):
        drop_paths(pool, [source], Given(repository=f"number {number}"))
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's, from before the exec
    print(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]


def report(rates: dict[str, list[float]], memory: dict[str, list[float]], count: int, size: int, rounds: int) -> None:
    rows = "\n".join(
        f"| {form} | {statistics.median(found):,.0f} | {min(found):,.0f}–{max(found):,.0f} "
        f"| {memory[form][0]:.0f} MB | {memory[form][1]:.0f} MB |"
        for form, found in rates.items()
    )
    page = (
        "# `codelupe drop` into a local Postgres\n\n"
        f"`python benchmarks/intake {count} {rounds}`: {count:,} files of {size / count:,.0f} bytes on average,\n"
        f"heuristic score included, embedded Postgres with fsync; {os.cpu_count()} cores, shared with other work, load "
        f"{os.getloadavg()[0]:.1f} at the end; the forms take turns.\n\n"
        f"| form | files a second (median) | range | most memory, {count:,} files | {count * MANY:,} files |\n"
        f"|---|---|---|---|---|\n{rows}\n"
    )
    (ROOT / "benchmarks" / "results" / "intake.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        drop_once(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main()
