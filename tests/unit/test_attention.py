"""Attention over packs: blocks give what the whole gives, documents see themselves alone, and `auto` picks rightly."""

from __future__ import annotations

import pytest
import torch
from run_folder import short_recipe

from trainer.data.batches import collate
from trainer.data.encoder import TokenSample
from trainer.errors import UnusableInput
from trainer.model.attention import KERNELS, choose_kernel, documents
from trainer.recipe import Base

LENGTHS = (300, 1, 37, 129)
SCALE = 32**-0.5
PACK = collate([TokenSample(file_id=n, ids=torch.zeros(n), labels=torch.zeros(n), supervised=n - 1) for n in LENGTHS])
SHAPES = [(4, 4), (6, 2), (7, 1)]
"""Heads, and key heads among them."""


def inputs(heads: int, key_heads: int) -> tuple[torch.Tensor, ...]:
    """q, k, v in bfloat16, with scores that reach 60: a rounded score would be a wrong weight."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(LENGTHS), n, 32, generator=generator) for n in (heads, key_heads, key_heads))
    return tuple(x.bfloat16().requires_grad_() for x in (4 * q, 3 * k, v))


def attended(kernel: str, given: tuple[torch.Tensor, ...], grad: torch.Tensor) -> list[torch.Tensor]:
    """Output and the three gradients."""
    docs = documents(PACK, kernel)
    with torch.autocast("cpu", torch.bfloat16, enabled=given[0].dtype == torch.bfloat16):
        out = docs.attend(*given, SCALE, docs)
    return [out, *torch.autograd.grad(out, given, grad.to(out.dtype))]


def error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.detach().double() - truth).norm() / truth.norm())


@pytest.mark.parametrize(("heads", "key_heads"), SHAPES)
def test_blocks_are_as_near_to_the_truth_as_torchs_own(heads, key_heads):
    given = inputs(heads, key_heads)
    grad = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    truth = attended("each", tuple(x.detach().double().requires_grad_() for x in given), grad.double())
    of_torch = [error(*pair) for pair in zip(attended("each", given, grad), truth, strict=True)]
    of_blocks = [error(*pair) for pair in zip(attended("blocked", given, grad), truth, strict=True)]
    assert all(ours < 1.5 * theirs for ours, theirs in zip(of_blocks, of_torch, strict=True)), (of_blocks, of_torch)


@pytest.mark.parametrize("kernel", ["each", "blocked"])
def test_other_documents_and_later_tokens_change_nothing(kernel):
    q, k, v = (x.detach() for x in inputs(6, 2))
    docs = documents(PACK, kernel)
    before = docs.attend(q, k, v, SCALE, docs)
    start = LENGTHS[0] + LENGTHS[1]
    for tensor in (q, k, v):
        tensor[:start] += 1
        tensor[start + 20 :] -= 1
    after = docs.attend(q, k, v, SCALE, docs)
    assert torch.equal(after[start : start + 20], before[start : start + 20])
    assert not torch.equal(after[start + 20 :], before[start + 20 :])


def test_what_auto_means_on_a_cpu():
    cpu = torch.device("cpu")
    assert choose_kernel(Base(), cpu, torch.float32) == "each"
    assert choose_kernel(Base(), cpu, torch.bfloat16) == "blocked"
    assert set(KERNELS) == {"each", "blocked", "torch_varlen", "flash_attn"}
    with pytest.raises(UnusableInput, match="flash_attention_2 needs a CUDA device"):
        choose_kernel(short_recipe(base__attention="flash_attention_2").base, cpu, torch.bfloat16)
