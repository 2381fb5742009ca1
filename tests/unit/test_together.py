"""Ranks that agree: one that runs out of memory makes all repeat the step with smaller passes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from run_folder import events, run, short_recipe, short_run

TRAIN = """
import os, sys
import torch
from trainer.imports import import_trainer
import_trainer()
from trainer.model import step
forward = step.LossModel.forward
def short_of_memory(self, batch, **options):
    if self.training and os.environ["RANK"] == "1" and batch.tokens > {most}:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return forward(self, batch, **options)
step.LossModel.forward = short_of_memory
from trainer.__main__ import main
sys.exit(main(["run", {root!r}]))
"""
RECIPE = {"lora__dropout": 0.0, "training__gradient_accumulation_steps": 1, "distributed__processes": 2}


def two_ranks(root: Path, folder: Path, most: int) -> list[int]:
    """Train with two ranks, of which the second has memory for so many tokens. Returns their exit codes."""
    from trainer.ranks import rank_environment

    base = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "PYTHONPATH": str(Path(__file__).parents[2])}
    code = TRAIN.format(most=most, root=str(root))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=base | rank_environment(rank, 2, folder / "rendezvous"),
        )
        for rank in range(2)
    ]  # fmt: skip
    return [rank.wait(120) for rank in ranks]


@pytest.mark.parametrize(("most", "code"), [(300, 0), (10, 3)])
def test_out_of_memory_on_one_rank_shrinks_the_step_of_all_or_ends_all(tmp_path, most, code):
    short = short_run(tmp_path / "short", short_recipe(**RECIPE))
    assert two_ranks(short.root, tmp_path, most) == [code, code]
    assert events(short, "out_of_memory")
    if code == 0:
        one = short_run(tmp_path / "one", short_recipe(**RECIPE))
        assert run(one) == 0
        expected, found = ([event["loss"] for event in events(which, "step")] for which in (one, short))
        assert found == pytest.approx(expected, rel=1e-5)
    else:
        assert short.suspects.exists()
