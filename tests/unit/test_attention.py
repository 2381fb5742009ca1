"""Attention over packs: each document sees only itself, and `auto` picks the right kernel."""

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


def inputs(heads: int, key_heads: int) -> tuple[torch.Tensor, ...]:
    """q, k, v in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(LENGTHS), n, 32, generator=generator) for n in (heads, key_heads, key_heads))
    return q.bfloat16(), k.bfloat16(), v.bfloat16()


def test_other_documents_and_later_tokens_change_nothing():
    q, k, v = inputs(6, 2)
    docs = documents(PACK, "each")
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
    assert choose_kernel(Base(), cpu, torch.bfloat16) == "each"
    assert set(KERNELS) == {"each", "torch_varlen", "flash_attn"}
    with pytest.raises(UnusableInput, match="flash_attention_2 needs a CUDA device"):
        choose_kernel(short_recipe(base__attention="flash_attention_2").base, cpu, torch.bfloat16)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_gradients_in_blocks_are_those_of_whole_documents(dtype: torch.dtype, close: float, key_heads: int):
    """The reference computes each document's whole matrix of scores, in float64."""
    q, k, v = (tensor.to(dtype).requires_grad_() for tensor in inputs(6, key_heads))
    exact = [tensor.detach().double().requires_grad_() for tensor in (q, k, v)]
    of_out = torch.randn(sum(LENGTHS), 6, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    docs = documents(PACK, "each")
    out, whole = docs.attend(q, k, v, SCALE, docs), whole_documents(*exact)
    out.backward(of_out)
    whole.backward(of_out.double())
    for ours, theirs in [(out, whole), *((a.grad, b.grad) for a, b in zip((q, k, v), exact, strict=True))]:
        assert (ours.double() - theirs).norm() < close * theirs.norm()


def whole_documents(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    parts = []
    for of_q, of_k, of_v in zip(*(tensor.split(LENGTHS) for tensor in (q, k, v)), strict=True):
        of_k, of_v = (tensor.repeat_interleave(6 // k.shape[1], dim=1) for tensor in (of_k, of_v))
        scores = torch.einsum("qhw,khw->hqk", of_q, of_k) * SCALE
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        parts.append(torch.einsum("hqk,khw->qhw", scores.masked_fill(future, -torch.inf).softmax(-1), of_v))
    return torch.cat(parts)
