"""Recomputed activations give the same gradients, and offloaded ones free their memory."""

from __future__ import annotations

import gc

import pytest
import torch
from fitting import backward, loss_model
from run_folder import short_recipe, token_samples

from trainer.data.batches import collate
from trainer.model import checkpointing
from trainer.model.checkpointing import HostKeeper, checkpoint_layers, decoder_layers

POLICIES = [("selective", "never"), ("selective", "always"), ("full", "never"), ("full", "always")]


def model_with(policy: str, offload: str, **overrides):
    recipe = short_recipe(
        lora__dropout=0.2, base__compute_dtype="float32", training__checkpointing=policy,
        training__offload_checkpoints=offload, **overrides,
    )  # fmt: skip
    model = loss_model(recipe)
    model.train()
    return model


@pytest.mark.parametrize(("policy", "offload"), POLICIES)
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_every_policy_gives_the_gradients_of_none(policy, offload, quantization):
    batch = collate(token_samples(3))
    found = {}
    for name in (("none", "never"), (policy, offload)):
        model = model_with(*name, base__quantization=quantization)
        losses = []
        for seed in (7, 8):  # the second pass uses the host's buffers again
            torch.manual_seed(seed)
            losses.append(backward(model, batch))
        after = torch.rand(3)
        found[name] = (*losses, after)
    for expected, ours in zip(*found.values(), strict=True):
        if isinstance(expected, torch.Tensor):
            assert torch.equal(expected, ours)  # later dropout draws are unchanged too
        else:
            assert ours[0] == expected[0]
            torch.testing.assert_close(ours[1], expected[1], rtol=1e-5, atol=1e-7)


def test_what_each_policy_recomputes():
    model = loss_model().model
    layers = decoder_layers(model)
    assert len(layers) == 4
    assert checkpoint_layers(model, "none") == 0
    assert checkpoint_layers(model, "selective") == 3 * 4  # two norms and the MLP, not attention
    assert checkpoint_layers(loss_model().model, "full") == 4


def test_nothing_is_recomputed_without_gradients(monkeypatch):
    model = model_with("full", "always")
    monkeypatch.setattr(checkpointing, "checkpoint", None)
    with torch.no_grad():
        model(collate(token_samples(2)))
    with pytest.raises(TypeError):
        model(collate(token_samples(2)))


def test_host_buffers_are_reused_and_grow(monkeypatch):
    monkeypatch.setattr(checkpointing, "HOST_BLOCK_BYTES", 64)
    keeper = HostKeeper()
    weight = torch.randn(4, 4, requires_grad=True)

    def chain(rows: int) -> torch.Tensor:
        x = torch.randn(rows, 4)
        with keeper.hooks():
            for _ in range(3):
                x = (x @ weight).sin()
        return x.sum()

    for rows in (2, 2, 5):
        loss = chain(rows)
        assert not [buffer for buffer in keeper._free if len(buffer) == 0]
        loss.backward()
        del loss
        gc.collect()
        free = len(keeper._free)
    assert max(len(buffer) for buffer in keeper._free) >= 5 * 4 * 4
    chain(5)  # its backward pass never runs
    gc.collect()
    assert len(keeper._free) == free


def test_an_offloaded_tensor_comes_back_unchanged():
    keeper = HostKeeper()
    for tensor in (torch.randn(3, 5).T, torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(7).bfloat16()):
        back = keeper._unpack(keeper._pack(tensor))
        assert torch.equal(back, tensor) and back.data_ptr() != tensor.data_ptr()
    whole = torch.arange(5)
    assert keeper._pack(whole) is whole
