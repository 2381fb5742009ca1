"""What `python -m trainer reward` is asked for, and its arguments. (no torch)"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("few_shot", "test", "validation", "train", "all")
METHODS = ("rejection", "grpo")


@dataclass(frozen=True, kw_only=True)
class RewardRequest:
    """What to train on rewards, and how."""

    recipe: Path
    to: Path
    """Folder of the training: new, or one of the same settings to go on with."""
    tasks: Path
    """JSONL in HumanEval's or MBPP's form."""
    split: str | None
    """Of MBPP. None: train."""
    method: str
    rounds: int
    samples_per_task: int
    adapter: Path | None
    """Adapter folder to start from. None: a new adapter."""
    evaluate: Path | None
    """A benchmark that measures the start and the result."""
    smoke: bool
    """Whether the tasks' own solutions count as answers, because a toy model has none."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `reward`."""
    parser.add_argument("recipe", type=Path)
    parser.add_argument("to", type=Path, help="folder of the training; the same command goes on where it stopped")
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--split", choices=SPLITS, help="of MBPP (default: train)")
    parser.add_argument("--method", choices=METHODS, default="rejection")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples-per-task", type=int, default=8)
    parser.add_argument("--adapter", type=Path, help="adapter folder to start from (default: a new adapter)")
    parser.add_argument("--evaluate", type=Path, help="benchmark that measures the start and the result")
    parser.add_argument("--smoke", action="store_true", help="the tasks' own solutions count as answers")


def request_from(chosen: argparse.Namespace) -> RewardRequest:
    """Return the request of parsed arguments."""
    return RewardRequest(
        recipe=chosen.recipe,
        to=chosen.to.absolute(),
        tasks=chosen.tasks,
        split=chosen.split,
        method=chosen.method,
        rounds=chosen.rounds,
        samples_per_task=chosen.samples_per_task,
        adapter=None if chosen.adapter is None else chosen.adapter.resolve(),
        evaluate=chosen.evaluate,
        smoke=chosen.smoke,
    )
