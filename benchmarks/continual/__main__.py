"""`make bench-continual` compares ways to train one run after another, on a stream that shifts between languages.

Every strategy learns the same twelve batches, with three seeds. After each run it is measured on the held-out files of
all batches. A stopped benchmark goes on with the streams that are not complete.

It writes benchmarks/results/continual.md and continual.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from figures import figures, pairs_table, table
from sources import EXCERPT_CHARS, HELD_OUT_FILES, STOPPING_FILES, STREAM, TRAIN_FILES, UNSEEN, read_stream
from strategies import PAIRS, STRATEGIES
from streams import CHANGES, WORK, learn, records_of

RESULTS = ROOT / "benchmarks" / "results"
SEEDS = 3
INTRODUCTION = """\
# Strategies for training one run after another

`{command}` ran on {processor} with Python {python}, on {date}.

The model is the tiny model of `recipes/embedded.yaml` in 4 bits, with that recipe except for {changes}. The stream
has {runs} runs: {stream}. A run has {train} files to train on and {held_out} held-out ones, of at most {chars}
characters each. {stopping} held-out files choose the best step, and {judging} judge. No run trains on the unseen slice
({unseen}). Each strategy learns the stream with {seeds} seeds. All losses are in nats per token.

- *gain over the base*: the base's loss on a slice, minus the loss right after the slice's run. The share compares it
  with sequential training's.
- *gain in the run*: the loss right before the slice's run minus right after it. A strategy that remembers a language
  gains less when it comes back.
- *backward transfer*: the loss on an earlier slice right after its run, minus at the end. Above 0: better at the end.
  The interval is over the {earlier} earlier slices, each a mean over the seeds.
- *area*: the mean over all runs of the mean loss on the slices seen by then.
- *tokens*: training tokens of a stream. Replay takes the place of new tokens, except "on top".
- *seconds*: time of the training and its evaluations on one core, the fastest seed's. Compare tokens rather than
  seconds: other programs may have used the machine.

"""


OF_PAIRS = """\
Slice by slice, with 95 % intervals over the slices (each a mean over the seeds). Losses below 0 and backward transfer
above 0 are better."""


def learn_all(names: Sequence[str], seeds: int) -> None:
    """Learn the streams that are not complete, two at a time."""
    left = [(name, seed) for seed in range(1, seeds + 1) for name in names if not records_of(name, seed).exists()]
    print(f"· {len(left)} streams to learn", flush=True)
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        for number, future in enumerate(as_completed([pool.submit(learn, *stream) for stream in left]), 1):
            print(f"· {number} of {len(left)}: {future.result().stem}", flush=True)


def write_results(names: Sequence[str], seeds: int, command: str) -> None:
    """Write the table and all records of the complete streams."""
    complete = {
        name: [records_of(name, seed) for seed in range(1, seeds + 1) if records_of(name, seed).exists()]
        for name in names
    }
    streams = {
        name: [[json.loads(line) for line in path.open()] for path in paths]
        for name, paths in complete.items()
        if paths
    }
    if not streams:
        raise SystemExit("no stream is complete. Start without --table")
    slices = [found.name for found in STREAM]
    found = {name: figures(its, slices, UNSEEN.name) for name, its in streams.items()}
    text = INTRODUCTION.format(
        command=command, processor=processor(), python=platform.python_version(),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        changes=", ".join(f"`{s}.{key}: {value}`" for s, changes in CHANGES.items() for key, value in changes.items()),
        runs=len(STREAM), stream=", ".join(f"{its.name} ({its.distribution})" for its in STREAM),
        train=TRAIN_FILES, held_out=HELD_OUT_FILES, stopping=STOPPING_FILES, judging=HELD_OUT_FILES - STOPPING_FILES,
        chars=EXCERPT_CHARS, unseen=UNSEEN.distribution, seeds=seeds, earlier=len(STREAM) - 1,
    )  # fmt: skip
    written = table(found, {name: STRATEGIES[name].title for name in streams})
    pairs = pairs_table(PAIRS, streams, slices)
    (RESULTS / "continual.md").write_text(f"{text}{written}\n\n{OF_PAIRS}\n\n{pairs}\n")
    lines: list[dict[str, Any]] = [record for its in streams.values() for stream in its for record in stream]
    (RESULTS / "continual.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(written)


def processor() -> str:
    names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return f"{names[0] if names else 'an unknown processor'}, {len(names)} cores"


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-continual ARGS=…", description=__doc__.split("\n\n")[0])
    parser.add_argument("strategies", nargs="*", metavar="STRATEGY", help=f"default: all of {', '.join(STRATEGIES)}")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"streams of each strategy (default: {SEEDS})")
    parser.add_argument("--table", action="store_true", help="learn nothing; write what the complete streams give")
    parser.add_argument("--again", action="store_true", help="learn complete streams again")
    given = parser.parse_args()
    if unknown := [name for name in given.strategies if name not in STRATEGIES]:
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(STRATEGIES)}")
    if given.seeds < 1:
        parser.error(f"--seeds: {given.seeds} is not at least 1")
    names = [name for name in STRATEGIES if not given.strategies or name in given.strategies]
    (WORK / "streams").mkdir(parents=True, exist_ok=True)
    if not given.table:
        read_stream(WORK)
        if given.again:
            for name in names:
                for seed in range(1, given.seeds + 1):
                    records_of(name, seed).unlink(missing_ok=True)
        learn_all(names, given.seeds)
    arguments = [word for word in sys.argv[1:] if word not in ("--table", "--again")]
    command = f'make bench-continual ARGS="{" ".join(arguments)}"' if arguments else "make bench-continual"
    write_results(names, given.seeds, command)


if __name__ == "__main__":
    main()
