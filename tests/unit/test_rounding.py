"""A 16-bit adapter learns like a float32 one, even if single steps are smaller than its precision."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
from fitting import checked, make_fit
from run_folder import short_recipe

from trainer.errors import RecipeError
from trainer.fit.optimizer import make_optimizer
from trainer.fit.rounding import round_stochastically
from trainer.recipe_file import parse_recipe, recipe_dict
from trainer.train import load_model

RATE = 2e-5
STEPS = 12


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rounding_goes_to_a_neighbour_and_is_unbiased():
    exact = torch.randn(1000, generator=generator()) * torch.logspace(-6, 3, 1000)
    draws = torch.stack([round_stochastically(exact, generator(seed)) for seed in range(400)]).float()
    gap = exact.abs() * 2**-7  # of bfloat16, at the most
    assert bool(((draws - exact).abs() < gap).all())
    counts = [len(column.unique()) for column in draws.T]
    assert max(counts) == 2 and sum(counts) > 1900  # few lie so close to a neighbour that the other is never drawn
    assert bool(((draws.mean(0) - exact).abs() < 0.2 * gap).all())


def test_values_that_bfloat16_can_hold_are_kept():
    held = torch.tensor([0.0, -0.0, 1.0, -3.5, 2.0**-130, float("inf"), -float("inf")])
    assert torch.equal(round_stochastically(held, generator()), held.bfloat16())
    nan = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000], dtype=torch.int32).view(torch.float32)
    assert bool(round_stochastically(nan, generator()).isnan().all())


def moved(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Return how far each number moved in STEPS steps of the same gradient."""
    before = parameter.detach().float().clone()
    slope = torch.randn(parameter.shape, generator=generator(1)).sign()
    for _ in range(STEPS):
        parameter.grad = slope.to(parameter.dtype)
        optimizer.step()
    return (before - parameter.detach().float()) * slope


def test_small_steps_add_up_where_rounding_to_nearest_loses_them():
    start = torch.empty(256, 256).uniform_(-0.02, 0.02, generator=generator())  # as lora_A starts
    training = short_recipe(
        training__adapter_dtype="bfloat16", training__learning_rate=RATE, training__weight_decay=0.0
    ).training
    exact, rounded, nearest = (torch.nn.Parameter(start.to(d)) for d in (torch.float32, torch.bfloat16, torch.bfloat16))
    of_exact = moved(exact, bnb.optim.AdamW8bit([exact], lr=RATE, weight_decay=0.0))
    of_rounded = moved(rounded, make_optimizer([rounded], training))
    of_nearest = moved(nearest, bnb.optim.AdamW8bit([nearest], lr=RATE, weight_decay=0.0))
    assert of_exact.mean() == pytest.approx(STEPS * RATE, rel=0.05)
    assert of_rounded.mean() == pytest.approx(of_exact.mean().item(), rel=0.02)
    assert (of_nearest == 0).float().mean() > 0.3  # the defect that stochastic rounding avoids
    assert rounded.dtype == torch.bfloat16


def test_every_rank_rounds_alike():
    training = short_recipe(training__adapter_dtype="bfloat16").training
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)  # each rank has its own
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 5000).bfloat16())
        moved(parameter, make_optimizer([parameter], training))
        found.append(parameter.detach())
    assert torch.equal(*found)


def test_a_stream_of_short_runs_moves_every_weight():
    """Each run has a new optimizer, whose steps are counted from one again."""
    training = short_recipe(training__adapter_dtype="bfloat16", training__learning_rate=RATE).training
    parameter = torch.nn.Parameter(torch.ones(5000).bfloat16())
    for run_id in range(100):
        optimizer = make_optimizer([parameter], training, draws=(42, run_id))
        for _ in range(3):
            parameter.grad = -torch.ones_like(parameter)
            optimizer.step()
    assert (parameter == 1).float().mean() < 0.6  # it would be 0.99 if every run had the same draws


def test_a_fit_with_a_16_bit_adapter_learns(tmp_path):
    recipe = short_recipe(training__adapter_dtype="bfloat16")
    loaded = load_model(checked(recipe))
    trained = [p for p in loaded.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.bfloat16}
    progress = make_fit(tmp_path / "sixteen", recipe, loaded=loaded).run()
    whole = make_fit(tmp_path / "whole").run()
    assert progress.anchor is not None and progress.best_step > 0
    gain, of_whole = (progress.anchor.loss - p.score_at(p.best_step).loss for p in (progress, whole))
    assert gain > 0 and gain == pytest.approx(of_whole, rel=0.1)


def test_no_optimizer_that_rounds_to_the_nearest():
    data = recipe_dict(short_recipe())
    data["training"] |= {"adapter_dtype": "bfloat16", "optimizer": "adamw"}
    with pytest.raises(RecipeError, match="adapter_dtype: bfloat16 needs optimizer: adamw_8bit"):
        parse_recipe(data, where="test")
