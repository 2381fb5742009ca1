"""`make bench-cycle` measures the time from a run's launch to its first step.

The benchmark starts the trainer on a run directory of the tiny model and kills it after the first step. It repeats
this and reports the median of each part, read from events.jsonl. Given other checkouts, it starts them in turn, so
that a slow minute of the machine affects all of them: make bench-cycle ARGS="7 ../other-checkout".

It writes benchmarks/results/cycle-<machine>.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "cycle")]

from made_run import HELD_OUT, ROWS, make_run, processor

from trainer.records import EventTail
from trainer.run_dir import RunDirectory

INTRODUCTION = """\
# From the trainer's launch to its first step, on {processor}

`make bench-cycle ARGS={rounds}` measures {rounds} starts of each commit, in turn. The figures are medians.
The model is the tiny model of recipes/embedded.yaml, with {rows} files to train on and {held_out} held-out files.
All files are in the page cache. Commits that keep a 4-bit copy of the base find it in place.

"""
PARTS = {
    "start of the process, imports": ("launch", "started"),
    "check": ("started", "check end"),
    "samples and model": ("check end", "fit begin"),
    "evaluation before the first step": ("fit begin", "evaluation"),
    "first step": ("evaluation", "step"),
    "all": ("launch", "step"),
}
"""Maps each part to the marks at its beginning and its end."""


def marks_of_start(checkout: Path, run: Path, cache: Path) -> dict[str, float]:
    """Start a checkout's trainer and kill it after its first step. Return the seconds from the launch to each mark."""
    directory = RunDirectory(run)
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "XDG_CACHE_HOME": str(cache)}
    environment.pop("PYTHONPATH", None)
    launch = time.time()
    with directory.log.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer", "run", str(run)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=checkout,
            env=environment,
        )
    try:
        marks, tail = {"launch": 0.0}, EventTail(directory.events)
        while "step" not in marks:
            if process.poll() is not None:
                raise SystemExit(f"the trainer of {checkout} ended early:\n{directory.log.read_text()}")
            for event in tail.new():
                marks.setdefault(_name(event), event["time"] - launch)
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    return marks


def _name(event: dict[str, Any]) -> str:
    return f"{event['stage']} {event['state']}" if event["event"] == "stage" else str(event["event"])


def measure(checkouts: Sequence[Path], rounds: int) -> list[list[dict[str, float]]]:
    """Return the marks of every start, one list per checkout.

    The first start of each checkout does not count. It fills the page cache and creates the copy of the base.
    """
    found: list[list[dict[str, float]]] = [[] for _ in checkouts]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        make_run(made)
        for number in range(rounds + 1):
            for checkout, marks in zip(checkouts, found, strict=True):
                run = Path(shutil.copytree(made, Path(folder) / "run"))
                seen = marks_of_start(checkout, run, Path(folder) / "cache")
                shutil.rmtree(run)
                if number:
                    marks.append(seen)
            print(f"· round {number} of {rounds}", flush=True)
    return found


def table(names: Sequence[str], found: Sequence[Sequence[dict[str, float]]]) -> str:
    """Return a table of medians in seconds, with a row per part and a column per checkout."""
    lines = [f"| seconds | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for part, (begin, end) in PARTS.items():
        medians = [statistics.median(marks[end] - marks[begin] for marks in starts) for starts in found]
        lines.append(f"| {part} | {' | '.join(f'{seconds:.2f}' for seconds in medians)} |")
    return "\n".join(lines)


def revision(checkout: Path) -> str:
    """Return the checkout's commit, marked as dirty if files differ from it."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or checkout.name


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-cycle ARGS=…", description=__doc__.split("\n\n")[0])
    parser.add_argument("rounds", nargs="?", type=int, default=7, help="number of starts of each checkout")
    parser.add_argument("checkouts", nargs="*", type=Path, help="other checkouts to compare with")
    given = parser.parse_args()
    for other in given.checkouts:
        if not (other / "trainer").is_dir():
            parser.error(f"{other} is not a checkout of this project")
    rounds, checkouts = given.rounds, [*(other.resolve() for other in given.checkouts), ROOT]
    text = table([revision(checkout) for checkout in checkouts], measure(checkouts, rounds))
    name = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
    target = ROOT / "benchmarks" / "results" / f"cycle-{name}.md"
    target.write_text(
        INTRODUCTION.format(processor=processor(), rounds=rounds, rows=ROWS, held_out=HELD_OUT) + text + "\n"
    )
    print(f"{text}\n· {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
