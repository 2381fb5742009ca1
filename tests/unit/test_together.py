"""Ranks that agree: one that has too little memory, or a loss that is not finite, ends all."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from run_folder import events, short_recipe, short_run

TRAIN = """
import os, sys
import torch
from trainer.imports import import_trainer
import_trainer()
from trainer.model import step
forward = step.LossModel.forward
def short_of_memory(self, batch, **options):
    second = self.training and os.environ["RANK"] == "1"
    if second and batch.tokens > {most}:
        raise torch.OutOfMemoryError("CUDA out of memory")
    loss, correct = forward(self, batch, **options)
    return (loss * {factor} if second else loss), correct
step.LossModel.forward = short_of_memory
from trainer.__main__ import main
sys.exit(main(["run", {root!r}]))
"""
RECIPE = {"lora__dropout": 0.0, "training__gradient_accumulation_steps": 1, "distributed__processes": 2}


def two_ranks(root: Path, folder: Path, *, most: int, factor: str = "1.0") -> list[int]:
    """Train with two ranks, of which the second has memory for so many tokens, and its loss a factor. Returns their
    exit codes."""
    from trainer.ranks import rank_environment

    base = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "PYTHONPATH": str(Path(__file__).parents[2])}
    code = TRAIN.format(most=most, factor=factor, root=str(root))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=base | rank_environment(rank, 2, folder / "rendezvous"),
        )
        for rank in range(2)
    ]  # fmt: skip
    return [rank.wait(120) for rank in ranks]


@pytest.mark.long  # test_shards.py has a step that fits with smaller passes
def test_out_of_memory_on_one_rank_with_the_smallest_passes_ends_all(tmp_path):
    short = short_run(tmp_path / "short", short_recipe(**RECIPE))
    assert two_ranks(short.root, tmp_path, most=10) == [3, 3]
    assert events(short, "out_of_memory") and short.suspects.exists()


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2", "zero3"])
def test_a_loss_of_one_rank_that_is_not_finite_ends_all(tmp_path, strategy):
    if strategy.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed: pip install 'codelupe[deepspeed]'")
    directory = short_run(tmp_path / "run", short_recipe(**RECIPE, distributed__strategy=strategy))
    assert two_ranks(directory.root, tmp_path, most=10**6, factor="float('nan')") == [4, 4]
    (event,) = events(directory, "non_finite")
    assert event["step"] == 1 and directory.suspects.exists()
