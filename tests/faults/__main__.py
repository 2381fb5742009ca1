"""`make faults` runs the full fault suite, row by row. It keeps the results, so that a later run continues.

python tests/faults                run every row, from where the last run stopped
python tests/faults 1 3            run these rows
python tests/faults --sample       run a few trials of each row, as `make test` does
python tests/faults --again 3      delete the results of row 3, and start it again
python tests/faults 14 --trials 41 42    run these trials of row 14 (the printed lines count from 1)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread is faster than several that compete for the cores

from rows import Trials  # noqa: E402
from safeguards import MUTANTS  # noqa: E402
from suite import ROWS  # noqa: E402

WORK = ROOT / "build" / "faults"
MEASURED = (16, 18)
"""Rows whose limits are measured figures."""
RESULTS = ROOT / "benchmarks" / "results" / "faults.md"


@dataclass(frozen=True, kw_only=True)
class Record:
    """The result of one trial."""

    trial: int
    of: int
    """How many trials the row has."""
    count: int
    ok: bool
    note: str
    seconds: float
    commit: str
    date: str


def records(number: int) -> dict[int, Record]:
    """Return the newest result of each trial of a row, the latest last. Drop trials that the row no longer has."""
    path = WORK / f"row{number:02d}.jsonl"
    made = [Record(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    newest: dict[int, Record] = {}
    for record in made:
        newest.pop(record.trial, None)
        if record.trial < made[-1].of:
            newest[record.trial] = record
    return newest


def passed(number: int, trials: Trials) -> set[int]:
    """Return the trials of a row that need no repetition."""
    names = dict(enumerate(trials.names))
    return {
        trial for trial, record in records(number).items() if record.ok and record.note.startswith(names.get(trial, ""))
    }


def run(number: int, *, sample: bool, only: list[int]) -> bool:
    """Run the trials of a row that have not passed yet. Return whether all pass.

    Args:
        only: run these trials instead, even if they have passed
    """
    row, tested = ROWS[number], commit()
    folder = Path(tempfile.mkdtemp(prefix=f"faults{number}-"))
    failures = 0
    try:
        with row.prepare(folder, sample) as trials:
            if unknown := [place for place in only if place > trials.number]:
                sys.exit(f"row {number} has {trials.number} trials; there is no {', '.join(map(str, unknown))}")
            done_before = set() if sample else passed(number, trials)
            for trial in [place - 1 for place in only] or sorted(set(range(trials.number)) - done_before):
                began = time.monotonic()
                try:
                    done = trials.run(trial)
                    count, ok, note = done.count, True, done.note
                except Exception as error:  # noqa: BLE001  (a trial that fails is a result)
                    count, ok, note = 0, False, f"{type(error).__name__}: {error}"
                    traceback.print_exc()
                    failures += 1
                seconds = time.monotonic() - began
                print(f"row {number}, {trial + 1} of {trials.number}: {'ok' if ok else 'FAILED'} "
                      f"{note.splitlines()[0] if note else ''} ({seconds:.1f} s)", flush=True)  # fmt: skip
                if not sample:
                    keep(number, Record(trial=trial, of=trials.number, count=count, ok=ok, note=note[:2000],
                                        seconds=round(seconds, 2), commit=tested, date=today()))  # fmt: skip
    finally:
        if failures:
            print(f"files kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return not failures


def keep(number: int, record: Record) -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / f"row{number:02d}.jsonl").open("a") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def commit() -> str:
    """Return the tested commit, with a + if the tree differs from it. The results file does not count."""
    git = ["git", "-C", str(ROOT)]
    named = subprocess.run([*git, "describe", "--always", "--exclude=*"], capture_output=True, text=True)
    others = ["--", ".", ":(exclude)benchmarks/results/faults.md"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", *others], capture_output=True).returncode == 1
    return f"{named.stdout.strip()}{'+' * changed}" if named.returncode == 0 else "unknown"


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def report() -> str:
    """Return the results of all rows as Markdown."""
    lines = [
        "# Faults",
        "",
        f"`make faults` on {processor()}, {os.cpu_count()} cores. A failed trial stays in the table until it passes. "
        "The commits are those that were tested.",
        "",
        "| # | fault | passes where | count | failures | hours | date | commit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, row in sorted(ROWS.items()):
        made = list(records(number).values())
        good = [record for record in made if record.ok]
        of = made[-1].of if made else 0
        reached = f"{sum(record.count for record in good):,} {row.unit}" if made else "not run"
        if made and len(good) < of:
            reached += f" ({len(good)} of {of} trials)"
        dates = sorted({record.date for record in made})
        commits = list(dict.fromkeys(record.commit for record in made))
        lines.append(
            f"| {number} | {row.fault} | {row.passes} | {reached} | {len(made) - len(good)} "
            f"| {sum(record.seconds for record in made) / 3600:.2f} | {' – '.join(dates[:1] + dates[1:][-1:])} "
            f"| {', '.join(commits[-3:])} |"
        )
    return "\n".join([*lines, *figures(), *safeguards()]) + "\n"


def figures() -> list[str]:
    """Return the figures of the measured rows."""
    made = [(number, record) for number in MEASURED for _, record in sorted(records(number).items())]
    return [
        "",
        "## Figures",
        "",
        *(f"- {number}, {record.count:,} {ROWS[number].unit}: {record.note}" for number, record in made),
    ]


def safeguards() -> list[str]:
    """Return the table of row 19: the test that failed without each safeguard."""
    made = records(19).values()
    seen = dict(record.note.split(": ", 1) for record in made if record.ok)
    unseen = {record.note.split(": ", 2)[1] for record in made if not record.ok and record.note.count(": ") > 1}
    rows = [
        (name, mutant.file, f"`{seen[name]}`" if name in seen else "**nothing**" if name in unseen else "not run")
        for name, mutant in MUTANTS.items()
    ]
    return [
        "",
        "## Safeguards",
        "",
        "Row 19 removed each safeguard. The last column names the test that failed.",
        "",
        "| safeguard | file | caught by |",
        "|---|---|---|",
        *(f"| {name} | {file} | {by} |" for name, file, by in rows),
    ]


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make faults", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", nargs="*", type=int, help=f"from {', '.join(map(str, sorted(ROWS)))}; default: all")
    parser.add_argument("--sample", action="store_true", help="run a few trials of each row, and keep no results")
    parser.add_argument("--trials", nargs="+", type=int, default=[], help="run these trials of the one named row")
    parser.add_argument("--hours", type=float, help="repeat row 18 for this many hours; at least 1, default: 1")
    parser.add_argument("--again", action="store_true", help="delete the results of these rows first")
    chosen = parser.parse_args()
    if unknown := [number for number in chosen.rows if number not in ROWS]:
        parser.error(f"there is no row {', '.join(map(str, unknown))}")
    if chosen.trials and (len(chosen.rows) != 1 or min(chosen.trials) < 1):
        parser.error("--trials needs exactly one row, and numbers from 1")
    if chosen.again and (chosen.sample or chosen.trials):
        parser.error("--again is for whole rows. A sample keeps no results, and --trials always repeats its trials")
    if chosen.hours is not None:
        if chosen.rows != [18] or chosen.sample or not 1 <= chosen.hours < math.inf:
            parser.error("--hours needs row 18 without --sample, and at least 1 hour")
        os.environ["FAULTS_HOURS"] = str(chosen.hours)
        chosen.trials = [1]
    numbers = chosen.rows or sorted(ROWS)
    good = True
    for number in numbers:
        if chosen.again:
            (WORK / f"row{number:02d}.jsonl").unlink(missing_ok=True)
        good &= run(number, sample=chosen.sample, only=chosen.trials)
        if not chosen.sample:
            RESULTS.write_text(report(), encoding="utf-8")
    print(report() if not chosen.sample else ("all passed" if good else "some FAILED"))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
