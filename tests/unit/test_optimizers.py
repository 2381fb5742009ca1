"""Each optimizer trains. What it remembers is in a checkpoint, and a resumed fit gives the same bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fitting import checked, make_fit
from run_folder import short_recipe

from trainer.errors import Stopped
from trainer.fit.checkpoint import newest_checkpoint
from trainer.fit.loop import Fit
from trainer.fit.optimizer import OPTIMIZERS, make_optimizer
from trainer.model.lora import adapter_weights
from trainer.recipe import Training
from trainer.train import load_model

RATES = {"sgd": 0.5}
"""The gradient's size does not matter to the others."""


def none_damaged(path, message):
    raise AssertionError(f"{path}: {message}")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_lowers_the_loss_and_resumes_with_the_same_bits(tmp_path, name):
    recipe = short_recipe(
        training__optimizer=name, training__learning_rate=RATES.get(name, 2e-3), training__max_steps=2,
        evaluation__interval_fraction=1.0, lora__rank=8,
    )  # fmt: skip
    straight = make_fit(tmp_path / "a", recipe, samples=12)
    expected = straight.run()
    assert expected.current is not None and expected.score_at(2).loss < expected.current.loss - 0.005

    stopped = make_fit(tmp_path / "b", recipe, samples=12)
    report = stopped._report_step

    def report_and_stop(**fields):
        report(**fields)
        if stopped.progress.step == 1:
            stopped.context.stop.request("test")

    stopped._report_step = report_and_stop
    with pytest.raises(Stopped):
        stopped.run()
    found = newest_checkpoint(tmp_path / "b" / "checkpoints", none_damaged)
    assert found is not None and found.progress.step == 1 and found.optimizer["state"]
    resumed = Fit(replace(make_fit(tmp_path / "b", recipe, samples=12).context), found)
    assert resumed.run() == expected
    left, right = adapter_weights(straight.context.adapted), adapter_weights(resumed.context.adapted)
    assert all(torch.equal(left[key], right[key]) for key in left)


def stepped(**training) -> torch.Tensor:
    """Return a parameter after two steps of different gradients."""
    parameter = torch.nn.Parameter(torch.ones(8, 8))
    optimizer = make_optimizer([parameter], Training(learning_rate=0.1, weight_decay=0.0, **training))
    for seed in (1, 2):
        parameter.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed)) * 1e-3
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "adamw" in name])
@pytest.mark.parametrize("changed", [{"beta1": 0.5}, {"beta2": 0.5}, {"epsilon": 1e-2}])
def test_every_adamw_takes_the_recipes_values(name, changed):
    assert not torch.allclose(stepped(optimizer=name), stepped(optimizer=name, **changed), rtol=1e-4)
    torch.testing.assert_close(
        stepped(optimizer=name, **changed), stepped(optimizer="adamw", **changed), rtol=1e-3, atol=1e-4
    )


def test_sgd_moves_by_rate_and_gradient_and_then_by_its_momentum():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer([parameter], Training(optimizer="sgd", learning_rate=0.1, weight_decay=0.0, beta1=0.5))
    places = []
    for _ in range(2):
        parameter.grad = torch.ones(1)
        optimizer.step()
        places.append(parameter.item())
    assert places == pytest.approx([-0.1, -0.1 - 0.1 * 1.5])


def test_adafactor_moves_a_parameter_of_zeros_at_the_recipes_rate():
    parameter = torch.nn.Parameter(torch.zeros(8, 4))
    optimizer = make_optimizer([parameter], Training(optimizer="adafactor", learning_rate=0.1, weight_decay=0.0))
    parameter.grad = torch.ones(8, 4)
    optimizer.step()
    assert parameter.mean().item() == pytest.approx(-0.1, rel=1e-3)


def test_the_fused_optimizer_is_fused():
    loaded = load_model(checked(short_recipe(training__optimizer="adamw_fused")))
    assert loaded.optimizer.optimizer.defaults["fused"] is True
