"""FSDP2 and ZeRO: processes that divide model and optimizer give the result of one, whoever goes on from their
checkpoints. Also ddp, where one process runs out of memory and all repeat the step."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes as bnb
import pytest
import torch
from accelerate import Accelerator
from run_folder import events, run, short_recipe, short_run, token_samples, weights
from torch.distributed.checkpoint.api import CheckpointException

from service.cycle.launch import TrainerProcess
from trainer.check import check_deepspeed
from trainer.errors import ShareNotSaved, UnusableInput
from trainer.evaluate.held_out import HeldOut
from trainer.fit import moments
from trainer.fit.checkpoint import flatten, unflatten
from trainer.fit.moments import whole_moments
from trainer.fit.zero import make_zero
from trainer.model.batch import Batch
from trainer.model.sequence import ALONE
from trainer.ranks import launch, rank_environment
from trainer.records import EventTail
from trainer.run_dir import RunDirectory, held_lock
from trainer.stop import StopRequest

ROOT = Path(__file__).parents[2]
FOUR = {
    "lora__dropout": 0.0,
    "lora__rank": 32,
    "training__gradient_accumulation_steps": 1,
    "distributed__processes": 2,
    "distributed__strategy": "fsdp2",
    "training__optimizer": "adamw",
}


def losses(directory: RunDirectory, name: str) -> list[float]:
    return [event["loss"] for event in events(directory, name)]


STRATEGIES = ["fsdp2", "zero2", "zero3"]
CLOSE = ("nf4", "float32")
"""Quantization and dtype of the runs that are trained in each test run."""


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Callable[[str, str], RunDirectory]:
    """The run that one process trains."""

    @functools.cache
    def trained(quantization: str, dtype: str) -> RunDirectory:
        recipe = short_recipe(**FOUR, base__quantization=quantization, base__compute_dtype=dtype)
        directory = short_run(tmp_path_factory.mktemp("runs") / "one", recipe)
        assert run(directory) == 0
        return directory

    return trained


RANK = """
import os, sys
import torch
from trainer.imports import import_trainer
import_trainer()
from trainer.model import step
forward = step.LossModel.forward
def short_of_memory(self, batch, **options):
    if root.endswith("/ddp") and os.environ["RANK"] == "1" and self.training and batch.tokens > 300:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return forward(self, batch, **options)
step.LossModel.forward = short_of_memory
from trainer.__main__ import main
codes = []
for root in sys.argv[1:]:
    codes.append(main(["run", root]))
sys.exit(max(codes))
"""
"""Trains one run after another. With ddp, the second process has memory for 300 tokens."""


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Callable[[str, str], dict[str, RunDirectory]]:
    """The runs that two processes train, one after another, by strategy. A start of each would take longer."""

    @functools.cache
    def trained(quantization: str, dtype: str) -> dict[str, RunDirectory]:
        folder = tmp_path_factory.mktemp("runs")
        how = FOUR | {"base__quantization": quantization, "base__compute_dtype": dtype}
        usable = [name for name in STRATEGIES if not name.startswith("zero") or importlib.util.find_spec("deepspeed")]
        if (quantization, dtype) == CLOSE:
            usable.insert(0, "ddp")
        runs = {
            name: short_run(folder / name, short_recipe(**how | {"distributed__strategy": name})) for name in usable
        }
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, *(str(directory.root) for directory in runs.values())],
                cwd=ROOT, stdin=subprocess.DEVNULL, env=os.environ | rank_environment(rank, 2, folder / "rendezvous"),
            )
            for rank in range(2)
        ]  # fmt: skip
        assert [rank.wait(200) for rank in ranks] == [0, 0]
        return runs

    return trained


def needs_deepspeed(strategy: str) -> None:
    if strategy.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed: pip install 'codelupe[deepspeed]'")


def test_a_share_that_cannot_be_written_is_an_error_like_others(monkeypatch, tmp_path):
    """torch's own is a BaseException: it would go past whoever reports that the run failed."""

    def fail(*_: object, **__: object) -> None:
        full = OSError(28, "No space left on device")
        raise CheckpointException("save", {1: (full, traceback.extract_stack())})

    monkeypatch.setattr(moments, "save", fail)
    monkeypatch.setattr(moments, "_of_shares", lambda *_: {})
    alone = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None))
    with pytest.raises(ShareNotSaved, match=r"process 1 could not write .*No space left on device"):
        moments.save_moments(tmp_path / "optimizer", alone, None)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [
        CLOSE,
        pytest.param("none", "float32", marks=pytest.mark.long),
        pytest.param("none", "bfloat16", marks=pytest.mark.long),
        pytest.param("nf4", "bfloat16", marks=pytest.mark.long),
    ],
)
def test_divided_weights_give_the_result_of_one_process(one, two, quantization, dtype, strategy):
    needs_deepspeed(strategy)
    alone, both = one(quantization, dtype), two(quantization, dtype)[strategy]
    assert [event["strategy"] for event in events(both, "strategy")] == [strategy]
    for name in ("step", "evaluation"):
        assert losses(both, name) == pytest.approx(losses(alone, name), rel=1e-5), name
    norms = [[event["grad_norm"] for event in events(which, "step")] for which in (alone, both)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5), "AdamW does not notice gradients of another size"
    ours, theirs = weights(alone.adapter), weights(both.adapter)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=2e-4)
    shards = sorted((both.checkpoints / "step-000005" / "optimizer").iterdir())
    assert len(shards) == 2 and all(path.suffix == ".safetensors" for path in shards)
    assert not any(path.name.startswith(".") for path in both.checkpoints.iterdir())


def test_out_of_memory_on_one_process_shrinks_the_step_of_all(one, two):
    alone, short = one(*CLOSE), two(*CLOSE)["ddp"]
    assert events(short, "out_of_memory")
    assert losses(short, "step") == pytest.approx(losses(alone, "step"), rel=1e-5)


def test_a_run_starts_its_processes_and_gives_the_result_of_one(one, tmp_path):
    alone = one(*CLOSE)
    launched = FOUR | {"distributed__strategy": "ddp", "distributed__launcher": "torchrun"}
    both = short_run(tmp_path / "two", short_recipe(**launched))
    process = TrainerProcess(both, {})
    assert process.wait(120) == 0, both.log.read_text()[-3000:]
    assert events(both, "started")[0]["world_size"] == 2
    for name in ("step", "evaluation"):
        assert losses(both, name) == pytest.approx(losses(alone, name), rel=1e-5), name
    assert alone.rows_outcome.read_bytes() == both.rows_outcome.read_bytes()


def test_zero_without_deepspeed_is_refused_before_loading(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recipe = short_recipe(**FOUR | {"distributed__strategy": "zero3"})
    with pytest.raises(UnusableInput, match=r"zero3 needs DeepSpeed.*pip install 'codelupe\[deepspeed\]'"):
        check_deepspeed(recipe, 2)
    check_deepspeed(recipe, 1)
    check_deepspeed(short_recipe(**FOUR), 2)


def test_zero_refuses_a_base_with_experts():
    config = SimpleNamespace(num_local_experts=4, num_experts_per_tok=2)
    model = SimpleNamespace(model=SimpleNamespace(get_base_model=lambda: SimpleNamespace(config=config)))
    with pytest.raises(UnusableInput, match="zero2 cannot train a base with experts"):
        make_zero(model, None, None, stage=2)


class Full(torch.nn.Module):
    """A model that never has enough memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.passes = 0
        self.shared = ALONE

    def own_share(self, batch: Batch) -> Batch:
        return batch

    def forward(self, *_: object, **__: object) -> None:
        self.passes += 1
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("divided", [False, True])
def test_one_process_makes_no_other_held_out_passes_than_the_rest(divided):
    """The others would wait for weights that it does not ask for."""
    model = Full()
    if divided:
        model.weight.ds_id = 0  # as DeepSpeed marks what it divides
    with pytest.raises(torch.OutOfMemoryError):
        HeldOut(Accelerator(), model, token_samples(4), budget=2000, stop=StopRequest()).measure()
    assert (model.passes == 1) == divided


def test_the_whole_state_of_an_8_bit_optimizer_is_read_from_a_checkpoint():
    parameter = torch.nn.Parameter(torch.zeros(5000))
    optimizer = bnb.optim.AdamW8bit([parameter])
    parameter.grad = torch.linspace(-1, 1, 5000)
    optimizer.step()
    moments, scalars = whole_moments(unflatten(*flatten(optimizer.state_dict())))
    assert scalars["step"] == 1
    assert moments.keys() == {"0.state1", "0.state2"}
    torch.testing.assert_close(moments["0.state1"], 0.1 * parameter.grad, rtol=0, atol=2e-3)


def go_on(directory: RunDirectory, processes: int, until: int | None = None) -> int:
    """Train with so many processes, and ask them to stop after a step."""
    stop, tail = StopRequest(), EventTail(directory.events)
    tail.new()
    ended = threading.Event()

    def watch() -> None:
        while until is not None and not ended.is_set():
            if any(event["event"] == "step" and event["step"] >= until for event in tail.new()):
                stop.request("the test asked")
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        with held_lock(directory.lock, wait_seconds=10) as lock:
            return launch(directory, processes, stop, lock)
    finally:
        ended.set()
        thread.join()


@pytest.mark.long
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("optimizer", "digits"), [("adamw", 1e-5), ("adamw_8bit", 3e-3)])
def test_a_checkpoint_of_two_processes_goes_on_with_one_and_with_four(tmp_path, optimizer, digits, strategy):
    """8-bit states have their scales in other places when they are divided otherwise."""
    needs_deepspeed(strategy)
    how = FOUR | {"training__optimizer": optimizer, "training__num_epochs": 4, "distributed__strategy": strategy}
    directory = short_run(tmp_path / "run", short_recipe(**how))
    assert go_on(directory, 2, until=2) == 75
    assert go_on(directory, 2, until=5) == 75
    assert go_on(directory, 1, until=9) == 75
    assert go_on(directory, 4) == 0
    started = [event["resumed_from_step"] for event in events(directory, "started")]
    assert started[0] is None and 2 <= started[1] < started[2] < started[3] < 20
    steps = [event["step"] for event in events(directory, "step")]
    assert steps == list(range(1, 21)), "nothing twice, nothing left out"
    whole = short_run(tmp_path / "whole", short_recipe(**how))
    assert run(whole) == 0
    assert losses(directory, "step") == pytest.approx(losses(whole, "step"), rel=digits)
