"""Two processes under torchrun give the windows, losses and weights of one process, which accumulates more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_folder import events, make_run, run, short_recipe, short_rows, short_run, weights
from toys import toy_recipe

from trainer.check import check_world
from trainer.recipe_file import with_overrides

ROOT = Path(__file__).parents[2]


def under_torchrun(root: Path, processes: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
               "-m", "trainer", "run", str(root)]  # fmt: skip
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=one_thread, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.long  # test_shards.py compares two processes of the launcher with one
@pytest.mark.parametrize(
    ("base", "close", "far"),
    [({}, 1e-4, 2e-4), ({"base__quantization": "none", "base__compute_dtype": "bfloat16"}, 1e-3, 2e-3)],
    ids=["nf4, float32", "plain, bfloat16"],
)
def test_two_processes_give_the_result_of_one(tmp_path, base, close, far):
    recipe = short_recipe(lora__dropout=0.0, training__gradient_accumulation_steps=1, distributed__processes=2, **base)
    recipe = with_overrides(recipe, {"tracking.tensorboard": True})
    one, two = (short_run(tmp_path / name, recipe) for name in ("one", "two"))
    under_torchrun(one.root, 1)  # a process of its own: accelerate keeps the dtype of a process's first run
    under_torchrun(two.root, 2)
    assert len(list((two.root / "tensorboard").iterdir())) == 1, "only the first process has trackers"
    assert events(two, "started")[0]["world_size"] == 2
    for name, key in (("step", "loss"), ("evaluation", "loss")):
        expected, found = ([event[key] for event in events(which, name)] for which in (one, two))
        assert found == pytest.approx(expected, rel=close), name
    ours, theirs = weights(one.adapter), weights(two.adapter)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=far)


def test_processes_that_cannot_share_a_step_equally_are_refused_before_loading(tmp_path, monkeypatch):
    directory = short_run(tmp_path / "run", short_recipe(distributed__processes=3))
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert run(directory) == 2
    (failed,) = events(directory, "failed")
    assert "takes 12 samples" in failed["message"] and "5 processes cannot share" in failed["message"]
    assert "Start 1 or 2 or 3 or 4 or 6 or 12 of them" in failed["message"]
    assert not [event for event in events(directory, "stage") if event.get("stage") == "model"]
    check_world(short_recipe(distributed__processes=3), 6)


@pytest.mark.long
def test_two_processes_balance_experts_as_one(tmp_path):
    """The last step has one sample, so the second process has an empty pack there."""
    recipe = toy_recipe(
        "mixtral", moe__freeze_router=False, moe__auxiliary_loss_weight=1.0, distributed__processes=2,
        training__learning_rate=0.002,
    )  # fmt: skip
    one, two = (make_run(tmp_path / name, recipe, short_rows(9), short_rows(3, start=101)) for name in ("one", "two"))
    assert run(one) == 0
    under_torchrun(two.root, 2)
    for key in ("loss", "aux_loss"):
        expected, found = ([event[key] for event in events(which, "step")] for which in (one, two))
        assert found == pytest.approx(expected, rel=1e-4), key
    expected, found = ([event["layers"] for event in events(which, "experts")] for which in (one, two))
    assert found == expected
    ours, theirs = weights(one.adapter), weights(two.adapter)
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=2e-4)
