"""`make faults`: the fault suite in full, row by row. What passed is kept, so that a run can be taken up again.

python tests/faults                every row, from where the last time ended
python tests/faults 1 3            these rows
python tests/faults --sample       a few trials of each, as `make test` does it
python tests/faults --again 3      forget what row 3 has come to, and start it over
python tests/faults 14 --trials 41 42    these trials of row 14, counted from 1 as its lines do
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
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other's core are slower than one

from rows import Trials  # noqa: E402
from safeguards import MUTANTS  # noqa: E402
from suite import ROWS  # noqa: E402

WORK = ROOT / "build" / "faults"
MEASURED = (16, 18)
"""Rows that are passed by figures."""
RESULTS = ROOT / "benchmarks" / "results" / "faults.md"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One trial that was made."""

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
    """What a row has come to, by trial: the newest of each, of as many as the row had at last; the last made last."""
    path = WORK / f"row{number:02d}.jsonl"
    made = [Record(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    newest: dict[int, Record] = {}
    for record in made:
        newest.pop(record.trial, None)
        if record.trial < made[-1].of:
            newest[record.trial] = record
    return newest


def passed(number: int, trials: Trials) -> set[int]:
    """Trials of a row that need not be made again."""
    names = dict(enumerate(trials.names))
    return {
        trial for trial, record in records(number).items() if record.ok and record.note.startswith(names.get(trial, ""))
    }


def run(number: int, *, sample: bool, only: list[int]) -> bool:
    """Every trial of a row that has not passed yet, or `only` some, whatever they came to; whether all pass."""
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
            print(f"kept for whoever looks: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return not failures


def keep(number: int, record: Record) -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / f"row{number:02d}.jsonl").open("a") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def commit() -> str:
    """The commit that was tested, marked where the tree differs from it, these results apart."""
    git = ["git", "-C", str(ROOT)]
    named = subprocess.run([*git, "describe", "--always", "--exclude=*"], capture_output=True, text=True)
    others = ["--", ".", ":(exclude)benchmarks/results/faults.md"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", *others], capture_output=True).returncode == 1
    return f"{named.stdout.strip()}{'+' * changed}" if named.returncode == 0 else "unknown"


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def report() -> str:
    """The table of all rows."""
    lines = [
        "# Faults",
        "",
        f"`make faults` on {processor()}, {os.cpu_count()} cores. A trial that failed stays in the table until it has "
        "passed; the commits are those that were tested.",
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
    """What the trials of the rows with limits came to."""
    made = [(number, record) for number in MEASURED for _, record in sorted(records(number).items())]
    return [
        "",
        "## Figures",
        "",
        *(f"- {number}, {record.count:,} {ROWS[number].unit}: {record.note}" for number, record in made),
    ]


def safeguards() -> list[str]:
    """The table of row 19: what was seen to notice that each safeguard is gone."""
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
        "What row 19 removed, and what turned red.",
        "",
        "| safeguard | of | caught by |",
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
    parser.add_argument("rows", nargs="*", type=int, help=f"of {', '.join(map(str, sorted(ROWS)))}; all by default")
    parser.add_argument("--sample", action="store_true", help="a few trials of each, and no results kept")
    parser.add_argument("--trials", nargs="+", type=int, default=[], help="of the one row that is named")
    parser.add_argument("--hours", type=float, help="of row 18's soak, which is made again; 1 at least, and by default")
    parser.add_argument("--again", action="store_true", help="forget what these rows have come to")
    chosen = parser.parse_args()
    if unknown := [number for number in chosen.rows if number not in ROWS]:
        parser.error(f"there is no row {', '.join(map(str, unknown))}")
    if chosen.trials and (len(chosen.rows) != 1 or min(chosen.trials) < 1):
        parser.error("--trials are numbers from 1 of one row: name it")
    if chosen.again and (chosen.sample or chosen.trials):
        parser.error("--again is for whole rows: a sample keeps nothing, and --trials are made again anyway")
    if chosen.hours is not None:
        if chosen.rows != [18] or chosen.sample or not 1 <= chosen.hours < math.inf:
            parser.error("--hours are of row 18 in full, 1 at least: name the row")
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
