"""Processes that share packs give the result of one, whatever lies across the cut."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folder import events, run, short_run, token_samples, tokenizer, weights
from toys import toy, toy_recipe
from transformers import Qwen2Config

from trainer.check import check_world
from trainer.data.batches import collate
from trainer.errors import RecipeError, UnusableInput
from trainer.model import sequence
from trainer.model.sequence import check_sequence, repeats
from trainer.model.toy import SHAPE, random_model
from trainer.ranks import rank_environment, ranks_for
from trainer.recipe import Recipe
from trainer.run_dir import RunDirectory

ROOT = Path(__file__).parents[2]
SHARED = {
    "training__gradient_accumulation_steps": 2,
    "training__learning_rate": 0.001,
    "training__num_epochs": 1,
    "training__optimizer": "adamw",
    "distributed__processes": 2,
    "distributed__sequence": 2,
}
WAYS = {
    "ddp": ("one_key", "none", "ddp"),
    "fsdp2": ("one_key", "none", "fsdp2"),
    "nf4": ("llama", "nf4", "fsdp2"),
    "zero2": ("one_key", "none", "zero2"),
    "zero3": ("one_key", "none", "zero3"),
}
"""What two processes train, one after another: base, quantization and strategy. `llama` has two key heads."""


@functools.cache
def one_key() -> Path:
    """Return a toy with four heads that share one key head."""
    folder = Path(tempfile.mkdtemp(prefix="toy-")) / "one-key"
    random_model(Qwen2Config(**SHAPE | {"num_key_value_heads": 1}, vocab_size=len(tokenizer()))).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def shared_recipe(base: str = "one_key", quantization: str = "none", strategy: str = "ddp", **more: Any) -> Recipe:
    folder = one_key() if base == "one_key" else toy(base)
    values = SHARED | {"distributed__strategy": strategy} | more
    return toy_recipe("qwen2", quantization, folder=folder, **values)

RANK = """
import sys
from trainer.imports import import_trainer
import_trainer()
from trainer.__main__ import main
sys.exit(max([main(["run", root]) for root in sys.argv[1:]]))
"""


def usable(how: tuple[str, str, str]) -> bool:
    return not how[2].startswith("zero") or importlib.util.find_spec("deepspeed") is not None


def train_together(folder: Path, runs: list[RunDirectory], processes: int = 2) -> None:
    """Train one run after another with so many processes."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *(str(directory.root) for directory in runs)], cwd=ROOT,
            stdin=subprocess.DEVNULL, env=os.environ | rank_environment(rank, processes, folder / "rendezvous"),
        )
        for rank in range(processes)
    ]  # fmt: skip
    assert [rank.wait(200) for rank in ranks] == [0] * processes


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> dict[str, RunDirectory]:
    folder = tmp_path_factory.mktemp("shared")
    runs = {name: short_run(folder / name, shared_recipe(*how)) for name, how in WAYS.items() if usable(how)}
    train_together(folder, list(runs.values()))
    return runs


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, RunDirectory]:
    folder = tmp_path_factory.mktemp("alone")
    runs = {name: short_run(folder / name, shared_recipe(*WAYS[name])) for name in ("ddp", "nf4")}
    assert [run(directory) for directory in runs.values()] == [0, 0]
    return runs | dict.fromkeys(("fsdp2", "zero2", "zero3"), runs["ddp"])


def compare(theirs: RunDirectory, ours: RunDirectory) -> None:
    for name, keys in (("step", ("loss", "grad_norm")), ("evaluation", ("loss", "token_accuracy"))):
        for key in keys:
            found = [[event[key] for event in events(directory, name)] for directory in (theirs, ours)]
            assert len(found[0]) > 1 and found[0] == pytest.approx(found[1], rel=1e-5), (name, key)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_that_share_packs_give_the_result_of_one(shared, alone, way):
    if not usable(WAYS[way]):
        pytest.skip("deepspeed is not installed: pip install 'codelupe[deepspeed]'")
    theirs, ours = shared[way], alone[way]
    (event,) = events(theirs, "strategy")
    assert (event["processes"], event["sequence"]) == (2, 2)
    compare(theirs, ours)
    assert theirs.rows_outcome.read_bytes() == ours.rows_outcome.read_bytes()
    for name, tensor in weights(ours.adapter).items():
        torch.testing.assert_close(weights(theirs.adapter)[name], tensor, rtol=0, atol=2e-4)
