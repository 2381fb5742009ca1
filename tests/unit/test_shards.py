"""FSDP2: processes that divide model and optimizer give the result of one, whoever goes on from their checkpoints."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from run_folder import events, run, short_recipe, short_run, weights

from service.cycle.launch import TrainerProcess
from trainer.ranks import launch
from trainer.records import EventTail
from trainer.run_dir import RunDirectory, held_lock
from trainer.stop import StopRequest

FOUR = {
    "lora__dropout": 0.0,
    "lora__rank": 32,
    "training__gradient_accumulation_steps": 1,
    "distributed__processes": 2,
    "distributed__strategy": "fsdp2",
}


def losses(directory: RunDirectory, name: str) -> list[float]:
    return [event["loss"] for event in events(directory, name)]


@pytest.mark.parametrize(
    ("quantization", "dtype", "digits"),
    [("nf4", "float32", 1e-5), pytest.param("none", "bfloat16", 2e-3, marks=pytest.mark.long)],
)
def test_divided_weights_give_the_result_of_one_process(tmp_path, quantization, dtype, digits):
    """In bfloat16, one rounding of a gradient that is summed in another order moves the third digit."""
    how = FOUR | {"base__quantization": quantization, "base__compute_dtype": dtype, "training__optimizer": "adamw"}
    two = short_run(tmp_path / "two", short_recipe(**how, distributed__launcher="torchrun"))
    process = TrainerProcess(two, {})
    one = short_run(tmp_path / "one", short_recipe(**how))
    assert run(one) == 0
    assert process.wait(120) == 0, two.log.read_text()[-3000:]
    for name in ("step", "evaluation"):
        assert losses(two, name) == pytest.approx(losses(one, name), rel=digits), name
    ours, theirs = weights(one.adapter), weights(two.adapter)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=20 * digits)
    shards = sorted((two.checkpoints / "step-000005" / "optimizer").iterdir())
    assert len(shards) == 2 and all(path.suffix == ".safetensors" for path in shards)
    assert not any(path.name.startswith(".") for path in two.checkpoints.iterdir())


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
@pytest.mark.parametrize(("optimizer", "digits"), [("adamw", 1e-5), ("adamw_8bit", 1e-2)])
def test_a_checkpoint_of_two_processes_goes_on_with_one_and_with_four(tmp_path, optimizer, digits):
    """8-bit states have their scales in other places when they are divided otherwise."""
    how = FOUR | {"training__optimizer": optimizer, "training__num_epochs": 4}
    directory = short_run(tmp_path / "run", short_recipe(**how))
    assert go_on(directory, 2, until=3) == 75
    assert go_on(directory, 1, until=8) == 75
    assert go_on(directory, 4) == 0
    started = [event["resumed_from_step"] for event in events(directory, "started")]
    assert started[0] is None and 3 <= started[1] < started[2] < 20
    steps = [event["step"] for event in events(directory, "step")]
    assert steps == list(range(1, 21)), "nothing twice, nothing left out"
    whole = short_run(tmp_path / "whole", short_recipe(**how))
    assert run(whole) == 0
    assert losses(directory, "step") == pytest.approx(losses(whole, "step"), rel=digits)
