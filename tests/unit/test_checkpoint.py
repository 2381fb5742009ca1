"""Checkpoints are complete or absent, verified and exact."""

from __future__ import annotations

import pytest
import torch
from fitting import make_fit
from run_folder import short_recipe

from trainer.errors import Stopped
from trainer.evaluate.score import Score
from trainer.fit.checkpoint import (
    Checkpoint,
    checkpoints,
    flatten,
    load_adapter,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    unflatten,
)
from trainer.fit.loop import Fit
from trainer.fit.progress import Progress
from trainer.model.lora import adapter_weights
from trainer.recipe import Evaluation
from trainer.run_dir import RunDirectoryError


def checkpoint(step: int, losses: dict[int, float] | None = None) -> Checkpoint:
    progress = Progress()
    for at, loss in (losses or {}).items():
        progress.step = at
        progress.record(Score(loss=loss, token_accuracy=0.1, tokens=1), Evaluation())
    progress.step = step
    return Checkpoint(
        progress=progress,
        adapter={"lora": torch.full((2, 3), float(step))},
        optimizer={"state": {0: {"step": step, "state1": torch.arange(4, dtype=torch.uint8)}}, "param_groups": []},
        random={"cpu.0": torch.get_rng_state()},
    )


def none_damaged(path, message):
    raise AssertionError(f"{path}: {message}")


def test_nested_state_survives_as_flat_tensors():
    state = {
        "state": {0: {"step": 3, "m": torch.randn(2), "deep": {"code": torch.zeros(4, dtype=torch.uint8)}}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95), "params": [0, 1], "fused": None, "name": "a"}],
    }
    tensors, shape = flatten(state)
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()) and len(tensors) == 2
    back = unflatten(tensors, shape)
    assert back["state"][0]["step"] == 3 and back["param_groups"][0]["betas"] == [0.9, 0.95]
    assert torch.equal(back["state"][0]["deep"]["code"], state["state"][0]["deep"]["code"])
    with pytest.raises(TypeError, match="object cannot be stored"):
        flatten({"a": object()})


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(3, {0: 2.0, 3: 1.0}))
    assert sorted(file.name for file in path.iterdir()) == [
        "MANIFEST.json",
        "adapter.safetensors",
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
    ]
    loaded = load_checkpoint(path)
    assert loaded.progress == checkpoint(3, {0: 2.0, 3: 1.0}).progress
    assert loaded.optimizer["state"][0]["state1"].tolist() == [0, 1, 2, 3]


def test_the_best_and_the_last_are_kept(tmp_path):
    losses = {0: 5.0}
    for step, loss in [(2, 3.0), (4, 1.0), (6, 2.0), (8, 4.0)]:
        losses[step] = loss
        save_checkpoint(tmp_path, checkpoint(step, losses))
    assert {path.name for path in checkpoints(tmp_path)} == {"step-000004", "step-000008"}


def test_the_newest_are_kept_besides_the_best(tmp_path):
    for step in (2, 3, 4, 5, 6):
        save_checkpoint(tmp_path, checkpoint(step, {0: 5.0, 2: 1.0}), newest=3)
    assert sorted(path.name[-1] for path in checkpoints(tmp_path)) == ["2", "4", "5", "6"]


@pytest.mark.parametrize("file", ["adapter.safetensors", "state.json", "MANIFEST.json"])
def test_a_damaged_newest_checkpoint_is_skipped(tmp_path, file):
    save_checkpoint(tmp_path, checkpoint(2, {0: 5.0, 2: 1.0}))
    newest = save_checkpoint(tmp_path, checkpoint(4, {0: 5.0, 2: 1.0, 4: 2.0}))
    data = bytearray((newest / file).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (newest / file).write_bytes(data)
    damaged = []
    found = newest_checkpoint(tmp_path, lambda path, message: damaged.append((path, message)))
    assert found is not None and found.progress.step == 2
    assert [path for path, _ in damaged] == [newest]
    with pytest.raises(RunDirectoryError):
        load_checkpoint(newest)


def test_the_best_weights_are_verified_before_they_become_the_result(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(2, {0: 5.0, 2: 1.0}))
    assert load_adapter(tmp_path, 2).keys() == checkpoint(2).adapter.keys()
    data = bytearray((path / "adapter.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "adapter.safetensors").write_bytes(data)
    with pytest.raises(RunDirectoryError, match="has changed"):
        load_adapter(tmp_path, 2)


def test_a_checkpoint_without_its_best_step_is_not_used(tmp_path):
    best = save_checkpoint(tmp_path, checkpoint(2, {0: 5.0, 2: 1.0}))
    save_checkpoint(tmp_path, checkpoint(4, {0: 5.0, 2: 1.0, 4: 2.0}))
    (best / "adapter.safetensors").unlink()
    assert newest_checkpoint(tmp_path, lambda *_: None) is None


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    (tmp_path / ".step-000009.123.tmp").mkdir()
    assert newest_checkpoint(tmp_path, none_damaged) is None
    assert newest_checkpoint(tmp_path / "missing", none_damaged) is None


@pytest.mark.parametrize(("optimizer", "stop_after"), [("adamw_8bit", 1), ("adamw_8bit", 3)])
def test_stopping_and_resuming_gives_the_same_bits(tmp_path, optimizer, stop_after):
    recipe = short_recipe(training__optimizer=optimizer, lora__rank=32, lora__dropout=0.1)
    straight = make_fit(tmp_path / "a", recipe)
    expected = straight.run()

    stopped = make_fit(tmp_path / "b", recipe)
    report = stopped._report_step

    def report_and_stop(**fields):
        report(**fields)
        if stopped.progress.step == stop_after:
            stopped.context.stop.request("test")

    stopped._report_step = report_and_stop
    with pytest.raises(Stopped):
        stopped.run()
    torch.manual_seed(999)
    again = make_fit(tmp_path / "b", recipe)
    found = newest_checkpoint(tmp_path / "b" / "checkpoints", none_damaged)
    assert found is not None and found.progress.step == stop_after
    resumed = Fit(again.context, found)
    progress = resumed.run()
    assert progress == expected
    left, right = adapter_weights(straight.context.adapted), adapter_weights(resumed.context.adapted)
    assert all(torch.equal(left[name], right[name]) for name in left)
