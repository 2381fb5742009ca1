"""The fused layer equals PEFT's: outputs, gradients, dropout, disabled adapter, 4-bit and plain weights."""

from __future__ import annotations

import pytest
import torch
from fitting import backward, gradients, loss_model
from run_folder import short_recipe, token_samples

from trainer.data.batches import collate
from trainer.model.fused_lora import _draw, _keep, fuse_adapter
from trainer.model.lora import adapter_weights

SAMPLES = token_samples(3)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_fused_layers_give_pefts_loss_and_gradient(quantization):
    recipe = short_recipe(lora__dropout=0.0, base__quantization=quantization)
    pefts, fused = loss_model(recipe), loss_model(recipe)
    assert fuse_adapter(fused.model) == 28
    expected_loss, expected = backward(pefts.train(), collate(SAMPLES))
    found_loss, found = backward(fused.train(), collate(SAMPLES))
    assert found_loss == pytest.approx(expected_loss, rel=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_in_16_bits_its_error_is_no_larger_than_pefts():
    truth = backward(loss_model(short_recipe(lora__dropout=0.0)), collate(SAMPLES))[1]
    errors = {}
    for fused in (False, True):
        model = loss_model(short_recipe(lora__dropout=0.0, base__compute_dtype="bfloat16"))
        if fused:
            fuse_adapter(model.model)
        with torch.autocast("cpu", torch.bfloat16):  # as accelerate runs it
            loss, _ = model(collate(SAMPLES))
        loss.backward()
        errors[fused] = ((gradients(model) - truth).norm() / truth.norm()).item()
    assert errors[True] < 1.25 * errors[False] and errors[True] < 0.1, errors


def test_dropout_is_one_mask_forward_and_backward():
    """Autograd over plain products gives the same gradients with the same mask."""
    recipe = short_recipe(lora__dropout=0.3)
    model = loss_model(recipe)
    fuse_adapter(model.model)
    layer = model.model.get_base_model().model.layers[0].mlp.up_proj
    x = torch.randn(2, 5, layer.in_features, requires_grad=True)
    layer.train()
    torch.manual_seed(3)
    y = layer(x)
    y.square().sum().backward()
    found = [x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad]
    x.grad = None
    model.zero_grad()
    torch.manual_seed(3)
    drawn, kept = _draw(x.detach().reshape(10, -1), 0.3)
    mask = _keep(drawn, x.detach().reshape(10, -1), 0.3)
    assert mask is not None and 0 < mask.float().mean() < 1
    inner = (x.reshape(10, -1) * mask / kept) @ layer.lora_A["default"].weight.T
    expected = layer.base_layer(x) + layer.scaling["default"] * (inner @ layer.lora_B["default"].weight.T).reshape(
        2, 5, -1
    )
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    expected.square().sum().backward()
    for ours, theirs in zip(
        found, [x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad], strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("rate", "kept"), [(0.05, 243 / 256), (0.5, 0.5), (0.001, 255 / 256)])
def test_the_mask_keeps_the_same_share_at_every_byte(rate, kept):
    rows = torch.empty(1000, 1001)
    drawn, share = _draw(rows, rate)
    mask = _keep(drawn, rows, rate)
    assert mask is not None and share == kept and mask.shape == (1000, 1001)
    by_byte = mask.flatten()[: 1000 * 1000].view(-1, 8).float().mean(0)  # a draw gives eight bytes
    assert (by_byte - kept).abs().max() < 0.01


def test_no_dropout_outside_training_and_none_without_a_rate():
    model = loss_model(short_recipe(lora__dropout=0.5))
    fuse_adapter(model.model)
    batch = collate(SAMPLES)
    with torch.no_grad():
        assert model.eval()(batch)[0] == model(batch)[0]
        assert model.train()(batch)[0] != model(batch)[0]
    assert _draw(torch.empty(3, 3), 0.0) == (None, 1.0) and _keep(None, torch.empty(3, 3), 0.0) is None


def test_the_adapter_can_be_turned_off_and_its_files_stay_pefts():
    model = loss_model()
    names = set(adapter_weights(model.model))
    batch = collate(SAMPLES)
    with torch.no_grad(), model.model.disable_adapter():
        without = model(batch)[0].item()
    fuse_adapter(model.model)
    assert set(adapter_weights(model.model)) == names
    with torch.no_grad():
        assert model(batch)[0].item() != pytest.approx(without, rel=1e-6)
        with model.model.disable_adapter():
            assert model(batch)[0].item() == without


def test_checkpointed_layers_draw_the_same_masks_again():
    recipe = short_recipe(lora__dropout=0.2)
    plain, saving = (
        loss_model(recipe),
        loss_model(short_recipe(lora__dropout=0.2, training__checkpointing="full")),
    )
    found = []
    for model in (plain, saving):
        fuse_adapter(model.model)
        torch.manual_seed(5)
        model.train()(collate(SAMPLES))[0].backward()
        found.append(gradients(model))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
