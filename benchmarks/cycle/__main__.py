"""`make bench-cycle` measures where the time of a cycle goes, in the trainer and from a claim to its adapter.

It trains a run directory of the tiny model to its end, and runs `codelupe up --once` on an empty folder. It repeats
both and reports the median of each part (cycle_parts.py). Given other checkouts, it runs them in turn, so that a
slow minute of the machine affects all of them: make bench-cycle ARGS="5 ../other-checkout". OMP_NUM_THREADS is kept.

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
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "cycle")]

from cycle_parts import service_parts, trainer_parts
from made_run import HELD_OUT, ROWS, make_run, processor

STEPS = 4

INTRODUCTION = """\
# Where the time of a cycle goes, on {processor}

`make bench-cycle ARGS={rounds}` measures {rounds} cycles of each commit, in turn. The figures are medians.
The model is the tiny model of recipes/embedded.yaml. All files are in the page cache, and the 4-bit copy of the base
is in place. OMP_NUM_THREADS is {threads}. The load average was {before} before and {after} after.

"""
TRAINER = """\
## The trainer

One run of {steps} steps, with {rows} files to train on and {held_out} held-out files.

"""
SERVICE = """\

## From the claim to the published adapter

`codelupe up --once` on an empty folder: the embedded database, and the demo corpus.

"""


def measure(checkouts: Sequence[Path], rounds: int) -> list[list[tuple[dict[str, float], dict[str, float]]]]:
    """Return the seconds by part of the trainer and of the service, for each round of each checkout.

    The first round does not count. It fills the page cache and creates the copy of the base.
    """
    found: list[list[tuple[dict[str, float], dict[str, float]]]] = [[] for _ in checkouts]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        make_run(made, {"training.max_steps": STEPS})
        for number in range(rounds + 1):
            for checkout, rounds_of_it in zip(checkouts, found, strict=True):
                run = Path(shutil.copytree(made, Path(folder) / "run"))
                home = Path(folder) / "home"
                seen = (trainer_parts(checkout, run, Path(folder)), service_parts(checkout, home, Path(folder)))
                for used in (run, home):
                    shutil.rmtree(used)
                if number:
                    rounds_of_it.append(seen)
            print(f"· round {number} of {rounds}", flush=True)
    return found


def table(names: Sequence[str], found: Sequence[Sequence[dict[str, float]]]) -> str:
    """Return a table of medians in seconds, with a row per part and a column per checkout."""
    lines = [f"| seconds | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for part in found[0][0]:
        medians = [statistics.median(seen[part] for seen in rounds) for rounds in found]
        lines.append(f"| {part} | {' | '.join(f'{seconds:.2f}' for seconds in medians)} |")
    return "\n".join(lines)


def revision(checkout: Path) -> str:
    """Return the checkout's commit, marked as dirty if files differ from it."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or checkout.name


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-cycle ARGS=…", description=__doc__.split("\n\n")[0])
    parser.add_argument("rounds", nargs="?", type=int, default=5, help="number of cycles of each checkout")
    parser.add_argument("checkouts", nargs="*", type=Path, help="other checkouts to compare with")
    given = parser.parse_args()
    for other in given.checkouts:
        if not (other / "trainer").is_dir():
            parser.error(f"{other} is not a checkout of this project")
    rounds, checkouts, before = given.rounds, [*(other.resolve() for other in given.checkouts), ROOT], load()
    names, found = [revision(checkout) for checkout in checkouts], measure(checkouts, rounds)
    trainer, service = ([[seen[which] for seen in rounds] for rounds in found] for which in (0, 1))
    text = TRAINER.format(steps=STEPS, rows=ROWS, held_out=HELD_OUT) + table(names, trainer) + "\n"
    text += SERVICE + table(names, service) + "\n"
    name = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
    target = ROOT / "benchmarks" / "results" / f"cycle-{name}.md"
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    facts = {"processor": processor(), "rounds": rounds, "threads": threads, "before": before, "after": load()}
    target.write_text(INTRODUCTION.format(**facts) + text)
    print(f"{text}\n· {target.relative_to(ROOT)}")


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
