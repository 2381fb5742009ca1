"""`make bench-ranks` compares a run of two processes with the same run of one.

Each round trains one run directory of the tiny model with one process, with ddp and with fsdp2, in turn, so that a slow
minute of the machine affects all of them. A step has the same samples in each. The result has tokens per second, their
ratios, and the seconds that the launcher adds before and after the training.

It writes benchmarks/results/ranks-<machine>.md.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "cycle")]

from made_run import HELD_OUT, ROWS, make_run, processor

from trainer.records import EventTail
from trainer.run_dir import RunDirectory

SKIPPED_STEPS = 2
"""First steps that do not count, because they are slower."""
TWO = {"distributed.launcher": "torchrun", "distributed.processes": 2, "training.gradient_accumulation_steps": 1}
WAYS: dict[str, dict[str, Any]] = {
    "one process": {"training.gradient_accumulation_steps": 2},
    "ddp": TWO,
    "fsdp2": TWO | {"distributed.strategy": "fsdp2"},
}
INTRODUCTION = """\
# Two processes against one, on {processor}

`make bench-ranks ARGS={rounds}` trained a run {rounds} times in each way, in turn: the tiny model of
recipes/embedded.yaml, {rows} files to train on and {held_out} held-out files. One process has {cores} threads, each of
two has {each}. Two exchange over gloo. The load average was {before} before and {after} after: if it was
above {cores} before, other programs shared the cores. Figures are medians, and ratios are of medians.

"""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run."""

    speed: float
    """Tokens per second of the median step."""
    before: float
    """Seconds from the launch to the event `started`."""
    after: float
    """Seconds from the last event to the end of the launched process."""
    all: float
    """Seconds from the launch to its end."""


def train(root: Path) -> Measured:
    """Train a run directory to its end, as the service starts it."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("OMP_NUM_THREADS", None)
    directory, launch = RunDirectory(root), time.time()
    with directory.log.open("w") as log:
        done = subprocess.run(
            [sys.executable, "-m", "trainer", "run", str(root)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, check=False,
            env=environment,
        )  # fmt: skip
    end = time.time()
    if done.returncode != 0:
        raise SystemExit(f"the trainer ended with {done.returncode}:\n{directory.log.read_text()}")
    events = list(EventTail(directory.events).new())
    started = next(event["time"] for event in events if event["event"] == "started")
    speeds = [event["tokens_per_second"] for event in events if event["event"] == "step"][SKIPPED_STEPS:]
    return Measured(
        speed=statistics.median(speeds), before=started - launch, after=end - events[-1]["time"], all=end - launch
    )


def measure(rounds: int) -> dict[str, list[Measured]]:
    """Train each way's run in turn. The first round does not count: it fills the page cache."""
    found: dict[str, list[Measured]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for way, changes in WAYS.items():
                root = Path(folder) / "run"
                make_run(root, {"tracking.tensorboard": False, **changes})
                measured = train(root)
                shutil.rmtree(root)
                if number:
                    found[way].append(measured)
            print(f"· round {number} of {rounds}", flush=True)
    return found


def table(found: Mapping[str, Sequence[Measured]]) -> str:
    """Return a table of medians, with a row for each way."""
    lines = [
        "| | tokens per second | of one process | seconds before the run | seconds after it | all seconds |",
        "|---|---|---|---|---|---|",
    ]
    whole = statistics.median(run.speed for run in found["one process"])
    for way, runs in found.items():
        speed, *seconds = (
            statistics.median(getattr(run, name) for run in runs) for name in ("speed", "before", "after", "all")
        )
        lines.append(f"| {way} | {speed:,.0f} | {speed / whole:.2f} | {' | '.join(f'{s:.2f}' for s in seconds)} |")
    return "\n".join(lines)


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-ranks ARGS=…", description=__doc__.split("\n\n")[0])
    parser.add_argument("rounds", nargs="?", type=int, default=7, help="number of runs of each way")
    rounds, before = parser.parse_args().rounds, load()
    text = table(measure(rounds))
    cores = len(os.sched_getaffinity(0))
    facts = {"rows": ROWS, "held_out": HELD_OUT, "cores": cores, "each": max(1, cores // 2)}
    name = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
    target = ROOT / "benchmarks" / "results" / f"ranks-{name}.md"
    target.write_text(
        INTRODUCTION.format(processor=processor(), rounds=rounds, before=before, after=load(), **facts) + text + "\n"
    )
    print(f"{text}\n· {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
