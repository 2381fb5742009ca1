"""The experts of a mixture in 4 bits and in 16: what is stored, and the gradients through them."""

from __future__ import annotations

import pytest
import torch
from fitting import backward
from run_folder import short_recipe
from test_routing import mixture_model
from torch.nn.utils import parametrize
from toys import toy_recipe, toy_samples

from trainer.data.batches import collate
from trainer.errors import UnusableInput
from trainer.model.compiled import _holds_experts
from trainer.model.load import load_base
from trainer.model.mixture import check_experts, check_router, expert_weights, is_mixture, quantized_experts
from trainer.model.quantized import copies_folder, load_kept

CPU = torch.device("cpu")
WEIGHTS = 2 * 8 * 3 * 64 * 128
"""Of all experts of the toy: layers, experts, matrices, sides."""


@pytest.mark.parametrize(("quantization", "size"), [("nf4", WEIGHTS // 2), ("none", WEIGHTS * 4)])
def test_every_expert_is_stored_as_required(quantization, size):
    base = load_base(toy_recipe("mixtral", quantization).base, CPU)
    quantized = quantization == "nf4"
    assert check_experts(base, torch.float32, quantized=quantized) == size
    assert len(quantized_experts(base)) == (2 if quantized else 0)
    with pytest.raises(UnusableInput, match="experts"):
        check_experts(base, torch.float32, quantized=not quantized)
    with pytest.raises(UnusableInput, match=r"torch\.float32"):
        check_experts(base, torch.bfloat16, quantized=quantized)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_experts_are_not_compiled(quantization):
    base = load_base(toy_recipe("mixtral", quantization).base, CPU)
    assert [name for name, module in base.named_modules() if _holds_experts(module)] == [
        "model.layers.0.mlp.experts",
        "model.layers.1.mlp.experts",
    ]


def test_experts_in_16_bits_are_accepted_as_such():
    base = load_base(toy_recipe("mixtral", base__compute_dtype="bfloat16").base, CPU)
    assert check_experts(base, torch.bfloat16, quantized=False) == WEIGHTS * 2


def test_double_quantization_is_as_the_recipe_says():
    base = load_base(toy_recipe("mixtral", "nf4", base__double_quantization=False).base, CPU)
    with pytest.raises(UnusableInput, match="double_quantization"):
        check_experts(base, torch.float32, quantized=True, nested=True)


def test_gradients_through_experts_in_4_bits_equal_those_through_their_values():
    batch = collate(toy_samples("mixtral", 3))
    packed, plain = mixture_model(50.0, quantization="nf4"), mixture_model(50.0, quantization="nf4")
    for module in quantized_experts(plain):
        for name in list(module.parametrizations):
            values = getattr(module, name).clone()
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
            setattr(module, name, torch.nn.Parameter(values, requires_grad=False))
    assert not quantized_experts(plain)
    loss, found = backward(packed, batch)
    expected_loss, expected = backward(plain, batch)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    other, _ = backward(mixture_model(50.0), batch)
    assert abs(other - loss) > 1e-4  # 4 bits are not the original


@pytest.mark.parametrize("policy", ["none", "selective", "full"])
def test_unpacked_experts_are_not_kept_for_the_backward_pass(policy):
    model, batch = mixture_model(1.0, quantization="nf4", policy=policy), collate(toy_samples("mixtral", 1))
    kept: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(batch)
    assert kept and not [shape for shape in kept if sorted(shape) in ([8, 64, 256], [8, 64, 128])]


def test_a_mixture_in_4_bits_has_no_kept_copy(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    events: list[str] = []
    base = load_kept(toy_recipe("mixtral", "nf4").base, CPU, lambda event, /, **_: events.append(event))
    assert quantized_experts(base) and not events and not copies_folder().exists()


def test_only_a_mixture_has_experts():
    assert is_mixture(toy_recipe("mixtral").base) and not is_mixture(toy_recipe("qwen3").base)
    assert expert_weights(load_base(toy_recipe("llama").base, CPU)) == {}


def test_a_router_cannot_be_trained_without_experts():
    check_router(toy_recipe("mixtral", moe__freeze_router=False))
    check_router(short_recipe())
    with pytest.raises(UnusableInput, match=r"tiny-qwen2 has no experts.* Set it to true"):
        check_router(short_recipe(moe__freeze_router=False))
