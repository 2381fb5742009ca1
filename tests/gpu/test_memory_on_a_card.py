"""On a GPU: offloaded checkpoints give the same gradients, and a plan predicts the measured peak."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from planning import batch_of, recipe_for

from trainer.fit.optimizer import make_optimizer
from trainer.model.attention import choose_kernel
from trainer.model.checkpointing import checkpoint_layers
from trainer.model.fused import fuse
from trainer.model.load import load_base
from trainer.model.lora import add_adapter
from trainer.model.shapes import architecture
from trainer.model.step import LossModel
from trainer.plan.cards import CARDS
from trainer.plan.choose import possible_plans
from trainer.plan.model import read_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TOKENS = 4096


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return the folder of a model with 0.6 B random parameters."""
    folder = tmp_path_factory.mktemp("card")
    config = Qwen2Config(
        hidden_size=2560, num_hidden_layers=8, num_attention_heads=20, num_key_value_heads=4, intermediate_size=6912,
        vocab_size=32_768, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def on_card(recipe):
    device = torch.device("cuda")
    adapted = add_adapter(load_base(recipe.base, device), recipe.lora, parent=None, seed=0)
    fuse(adapted)
    training = recipe.training
    checkpoint_layers(adapted, training.checkpointing, offload=training.offload_checkpoints == "always")
    model = LossModel(adapted, kernel=choose_kernel(recipe.base, device, torch.bfloat16))
    model.train()
    return model


def step(model, batch) -> float:
    with torch.autocast("cuda", torch.bfloat16):
        loss, _ = model(batch)
    loss.backward()
    return loss.item()


def recipe_with(base, policy: str, offload: str):
    return recipe_for(
        base, base__compute_dtype="bfloat16", lora__rank=64, data__max_length=TOKENS, training__batch_size=1,
        training__gradient_accumulation_steps=1, training__checkpointing=policy,
        training__offload_checkpoints=offload,
    )  # fmt: skip


@pytest.mark.parametrize("policy", ["selective", "full"])
def test_offloaded_checkpoints_give_the_same_gradients(base, policy):
    batch = batch_of(TOKENS).to(torch.device("cuda"))
    found = []
    for offload in ("never", "always"):
        model = on_card(recipe_with(base, policy, offload))
        for seed in (1, 2, 3):  # buffers are reused while copies are in progress
            model.zero_grad()
            torch.manual_seed(seed)
            step(model, batch)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        del model
        torch.cuda.empty_cache()
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("policy", "offload"), [("none", "never"), ("selective", "never"), ("full", "never"), ("full", "always")]
)
def test_the_measured_peak_matches_the_plan(base, policy, offload):
    recipe = recipe_with(base, policy, offload)
    shape = read_model(architecture(recipe.base)[0], recipe.lora)
    (plan,) = possible_plans(shape, recipe, CARDS["h200"])
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = on_card(recipe)
    optimizer = make_optimizer(model.parameters(), recipe.training)
    batch = batch_of(TOKENS).to(torch.device("cuda"))
    step(model, batch)
    optimizer.step()
    torch.cuda.reset_peak_memory_stats()
    step(model, batch)
    measured = torch.cuda.max_memory_allocated() - before
    assert plan.allocated_bytes == pytest.approx(measured, rel=0.05)
