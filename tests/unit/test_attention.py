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
