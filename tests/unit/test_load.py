"""The base in memory really has 4 bits, and an evaluation does not change it."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
from fitting import backward, loss_model
from run_folder import embedded, token_samples

from trainer.data.batches import collate
from trainer.errors import UnusableInput
from trainer.model import load
from trainer.model.base import linear_layers
from trainer.model.load import check_quantized, compute_dtype, load_base
from trainer.recipe import Base

CPU = torch.device("cpu")


def test_matrices_take_half_a_byte_a_weight():
    model = load_base(embedded().base, CPU)
    layers = linear_layers(model)
    assert len(layers) == 28
    for layer in layers.values():
        assert isinstance(layer, bnb.nn.Linear4bit) and layer.weight.dtype == torch.uint8
        assert layer.weight.numel() * 2 == layer.in_features * layer.out_features
        assert layer.weight.quant_state.quant_type == "nf4" and layer.weight.quant_state.nested
        assert layer.support_avx512bf16_for_cpu is False
    assert not any(p.requires_grad for p in model.parameters())
    assert model.get_input_embeddings().weight.dtype == compute_dtype(embedded().base, CPU)


def test_a_layer_that_stayed_in_16_bits_is_detected():
    model = load_base(embedded().base, CPU)
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(192, 512)
    with pytest.raises(UnusableInput, match=r"layers\.1\.mlp\.up_proj is Linear and was not quantized"):
        check_quantized(model, compute_dtype(embedded().base, CPU))


def test_a_fused_parameter_that_stayed_in_16_bits_is_detected():
    model = load_base(embedded().base, CPU)
    model.model.layers[0].mlp.experts = torch.nn.Parameter(torch.zeros(2, 64, 64))
    with pytest.raises(UnusableInput, match=r"experts stayed in torch\.float32"):
        check_quantized(model, compute_dtype(embedded().base, CPU))


def test_an_evaluation_does_not_change_the_gradients():
    model = loss_model()
    batch = collate(token_samples(3))
    model.train()
    loss_before, before = backward(model, batch)
    model.eval()
    with torch.no_grad():
        model(batch)
    model.train()
    loss_after, after = backward(model, batch)
    assert loss_before == loss_after and torch.equal(before, after)


def test_16_bits_when_the_recipe_says_none():
    model = load_base(embedded(base__quantization="none").base, CPU)
    assert not any(isinstance(module, bnb.nn.Linear4bit) for module in model.modules())


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_computes_in_bf16_if_the_processor_can(native, dtype, monkeypatch):
    monkeypatch.setattr(load, "_cpu_has_bf16", lambda: native)
    assert compute_dtype(Base(), CPU) == dtype
    assert compute_dtype(Base(compute_dtype="float32"), CPU) == torch.float32
    assert compute_dtype(Base(compute_dtype="bfloat16"), CPU) == torch.bfloat16


def test_a_base_that_cannot_be_loaded_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UnusableInput, match=str(tmp_path)):
        load_base(Base(model=str(tmp_path)), CPU)
