"""Compiled decoder layers give the loss and the gradients of the others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState
from fitting import backward, checked
from planning import make_small, recipe_for
from run_folder import run, short_recipe, short_run, token_samples

from trainer.data.batches import collate
from trainer.model.attention import unpacked_attention
from trainer.train import load_model


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """accelerate remembers the precision of the first model in a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.long
@pytest.mark.parametrize("policy", ["none", "selective", "full"])
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_compiled_layers_give_the_same_gradients_for_packs_of_all_lengths(policy, tmp_path):
    """With the fused LoRA layers over 4-bit weights, and with checkpointing."""
    base, samples = make_small(tmp_path, "llama"), token_samples(6)
    packs = [collate(samples[:2]), collate(samples[2:5]), collate(samples[5:])]
    found = {}
    for compiled in (False, True):
        recipe = recipe_for(
            base, base__compute_dtype="float32", lora__dropout=0.0, training__checkpointing=policy,
            training__compile=compiled,
        )  # fmt: skip
        model = load_model(checked(recipe)).model
        found[compiled] = [backward(model, pack) for pack in packs]
    for (loss, gradient), (other_loss, other) in zip(found[True], found[False], strict=True):
        assert loss == pytest.approx(other_loss, rel=1e-5)
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] > 0
    before = counters["stats"]["unique_graphs"]
    causal = model.model.get_base_model()
    with unpacked_attention(causal), torch.no_grad():
        causal.generate(torch.arange(5)[None], max_new_tokens=3, do_sample=False)
    assert counters["stats"]["unique_graphs"] == before


def test_packs_run_compiled_and_generation_does_not(tmp_path, monkeypatch):
    """The compiler's tracing takes many seconds, so that here it only counts the calls."""
    calls = []

    def counted(forward, *, dynamic):
        assert dynamic
        return lambda *args, **kwargs: (calls.append(1), forward(*args, **kwargs))[1]

    monkeypatch.setattr(torch, "compile", counted)
    recipe = recipe_for(make_small(tmp_path, "llama"), training__checkpointing="full", training__compile=True)
    model = load_model(checked(recipe)).model
    backward(model, collate(token_samples(2)))
    assert len(calls) == 2 * 2  # both layers forward, and again when they are recomputed
    causal = model.model.get_base_model()
    with unpacked_attention(causal), torch.no_grad():
        causal.generate(torch.arange(5)[None], max_new_tokens=3, do_sample=False)
    assert len(calls) == 4


def test_without_a_compiler_the_run_ends_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(short_run(tmp_path / "run", short_recipe(training__compile=True))) == 2
    said = capsys.readouterr().err
    assert "training.compile needs a C++ compiler" in said and "apt-get install g++" in said
