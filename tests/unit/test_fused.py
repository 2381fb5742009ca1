"""Fused parts of a layer compute what the family's own parts compute, and leave other families' parts alone."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from fitting import gradients, loss_model
from run_folder import short_recipe, token_samples
from torch import nn
from toys import toy_recipe, toy_samples
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as rotate_neighbours
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm, apply_rotary_pos_emb

from trainer.data.batches import collate
from trainer.model import fused_mlp, fused_rotary
from trainer.model.fused import fuse
from trainer.model.fused_lora import forget_outputs
from trainer.model.fused_mlp import fuse_mlps
from trainer.model.fused_norm import fuse_norms
from trainer.model.fused_rotary import fuse_rotary

LAYERS = {"qwen2": 2, "qwen3": 2, "llama": 2, "mixtral": 2}


@pytest.mark.parametrize("architecture", LAYERS)
def test_every_family_has_the_loss_and_the_gradients_of_its_own_parts(architecture: str, monkeypatch):
    monkeypatch.setattr(fused_mlp, "CPU_PIECE", 1 << 12)  # several pieces
    own, fused = (loss_model(toy_recipe(architecture)) for _ in range(2))
    parts = fuse_mlps(fused.model), fuse_norms(fused.model), fuse_rotary(fused.model)
    layers, norms = LAYERS[architecture], 4 if architecture == "qwen3" else 2
    assert parts == (0 if architecture == "mixtral" else layers, norms * layers + 1, layers)
    fuse(fused.model)
    batch = collate(toy_samples(architecture, 3))
    found = []
    for model in (own, fused):
        loss, _ = model.train()(batch)
        loss.backward()
        found.append((loss.item(), gradients(model)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=2e-5)


def test_in_16_bits_a_norm_and_a_rotation_are_no_worse_than_transformers():
    torch.manual_seed(0)
    norm = Qwen2RMSNorm(64).requires_grad_(False)
    norm.weight.data.uniform_(0.5, 2.0)
    x = torch.randn(1, 7, 64)
    errors = []
    for fused in (False, True):
        module = copy.deepcopy(norm).bfloat16()
        if fused:
            assert fuse_norms(nn.ModuleList([module])) == 1
        exact, rounded = (t.requires_grad_() for t in (x.bfloat16().float(), x.bfloat16()))
        truth, found = copy.deepcopy(norm)(exact), module(rounded)
        truth.square().sum().backward()
        found.float().square().sum().backward()
        errors.append([(found - truth).norm().item(), (rounded.grad - exact.grad).norm().item()])
    assert all(ours <= 1.1 * theirs for theirs, ours in zip(*errors, strict=True)), errors


def test_a_rotation_and_its_gradient():
    torch.manual_seed(0)
    q, k, angles = torch.randn(1, 4, 9, 16), torch.randn(1, 2, 9, 16), torch.randn(1, 9, 16)
    found = []
    for rotate in (apply_rotary_pos_emb, fused_rotary.rotate):
        inputs = [tensor.clone().requires_grad_() for tensor in (q, k)]
        outputs = rotate(*inputs, angles.cos(), angles.sin())
        sum((one * one.detach().cos()).sum() for one in outputs).backward()
        found.append([*outputs, *(one.grad for one in inputs)])
    torch.testing.assert_close(found[1], found[0])


def test_what_another_family_computes_is_left_alone():
    gemma = GemmaRMSNorm(16).requires_grad_(False)
    gemma.weight.data.fill_(0.5)
    trained = Qwen2RMSNorm(16)
    assert fuse_norms(nn.ModuleList([gemma, trained])) == 0
    assert not fused_rotary._same(rotate_neighbours)
    model = loss_model(toy_recipe("llama")).model
    for layer in model.get_base_model().model.layers:
        layer.mlp.act_fn = nn.GELU()
    assert fuse_mlps(model) == 0


def test_swiglu_of_a_transposed_gate():
    torch.manual_seed(0)
    gate, up = (torch.randn(6, 5, 4).transpose(0, 2).requires_grad_() for _ in range(2))  # no view of its rows exists
    fused_mlp._SwiGlu.apply(gate, up).square().sum().backward()
    found = gate.grad, up.grad
    gate.grad = up.grad = None
    (nn.functional.silu(gate) * up).square().sum().backward()
    torch.testing.assert_close(found, (gate.grad, up.grad))


def test_transformers_functions_stay_as_they_are():
    model = loss_model(toy_recipe("llama")).model
    attention = model.get_base_model().model.layers[0].self_attn
    before = type(attention).forward.__globals__["apply_rotary_pos_emb"]
    fuse(model)
    assert type(attention).forward.__globals__["apply_rotary_pos_emb"] is before
    assert attention.forward.__func__.__globals__["apply_rotary_pos_emb"] is fused_rotary.rotate


@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_a_failed_pass_lets_go_of_its_memory(part: str):
    """Outputs that wait for their calls hold the graph of the pass."""
    model = loss_model(toy_recipe("llama"))
    fuse(model.model)
    layer = model.model.get_base_model().model.layers[0]
    first = layer.self_attn.q_proj if part == "attention" else layer.mlp.gate_proj
    x = torch.randn(1, 3, first.in_features, requires_grad=True)
    held = weakref.ref(hidden := x * 2)
    first(hidden)
    del hidden
    gc.collect()
    assert held() is not None, "nothing waits, so this test shows nothing"
    forget_outputs(model.model)
    assert held() is None


@pytest.mark.parametrize("policy", ["selective", "full"])
def test_a_recomputation_that_stops_early_holds_nothing(policy: str):
    model = loss_model(short_recipe(lora__dropout=0.0))
    fuse(model.model)
    from trainer.model.checkpointing import checkpoint_layers

    checkpoint_layers(model.model, policy, offload=False)
    loss, _ = model.train()(collate(token_samples(2)))
    loss.backward()
    groups = {module.fused_group for module in model.modules() if hasattr(module, "fused_group")}
    assert groups and all(group.input is None and not group.waiting for group in groups)


def test_layers_with_the_same_input_are_computed_once(monkeypatch):
    from trainer.model import fused_lora

    calls: list[int] = []
    outputs = fused_lora._outputs
    monkeypatch.setattr(fused_lora, "_outputs", lambda modules, x: (calls.append(len(modules)), outputs(modules, x))[1])
    model = loss_model(toy_recipe("llama"))
    fuse(model.model)
    model.train()(collate(toy_samples("llama", 2)))
    assert calls == [3, 1, 2, 1] * 2
