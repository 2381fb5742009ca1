"""Attention by document: each sample of a pack attends only to itself.

    pack      | a a a a | b b | c c c |      boundaries are plain integers (`Documents`), made once per batch
    a token attends to earlier ones of its own sample; no mask over the whole pack is built

On a GPU, one call handles all documents (flash-attn's or torch's varlen kernel). On a CPU, each document has its own.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

from trainer.errors import UnusableInput
from trainer.model.attention_each import attend_each
from trainer.model.batch import Batch
from trainer.model.sequence import ALONE, SharedBy, repeats, to_heads, to_tokens
from trainer.recipe import Base

NAME = "by_document"
"""Its name in transformers. For a name without a mask function, transformers builds no mask."""


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Boundaries of the samples in a pack, and the attention kernel."""

    lengths: tuple[int, ...]
    offsets: torch.Tensor
    """int32 [documents + 1] on the device, for kernels that take them."""
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, Documents], torch.Tensor]
    shared: SharedBy
    """The processes that share the pack."""


def documents(batch: Batch, kernel: str, shared: SharedBy = ALONE) -> Documents:
    """Return the boundaries of one batch on the device. Those of a share are the whole pack's."""
    return Documents(lengths=batch.lengths, offsets=batch.offsets, attend=KERNELS[kernel], shared=shared)


def _each(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, docs: Documents) -> torch.Tensor:
    return attend_each(q, k, v, scale, docs.lengths)


def _torch_varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, docs: Documents) -> torch.Tensor:
    """Use torch's own kernel. Causal means a window of all tokens before and none after."""
    from torch.nn.attention.varlen import varlen_attn

    longest = max(docs.lengths)
    out = varlen_attn(
        q, k, v, docs.offsets, docs.offsets, longest, longest,
        scale=scale, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    assert isinstance(out, torch.Tensor)
    return out


def _flash_attn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, docs: Documents) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    longest = max(docs.lengths)
    out: torch.Tensor = flash_attn_varlen_func(
        q, k, v, docs.offsets, docs.offsets, longest, longest, softmax_scale=scale, causal=True
    )
    return out


KERNELS = {"each": _each, "torch_varlen": _torch_varlen, "flash_attn": _flash_attn}
"""Attention kernels by name. q: [tokens, heads, width]; k, v: [tokens, key heads, width]."""


def by_document(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    documents: Documents,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface. query: [1, heads, tokens, width]; returns [1, tokens, heads, width]."""
    assert attention_mask is None and dropout == 0.0
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    shared = documents.shared
    if shared.size == 1:
        return documents.attend(q, k, v, scaling, documents)[None], None
    times = repeats(k.shape[1], shared.size)
    if times > 1:
        k, v = k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)
    q, k, v = (to_heads(tensor, shared) for tensor in (q, k, v))
    return to_tokens(documents.attend(q, k, v, scaling, documents), shared)[None], None


AttentionInterface.register(NAME, by_document)


def choose_kernel(base: Base, device: torch.device, dtype: torch.dtype) -> str:
    """Choose the kernel for `base.attention`. `auto` takes flash-attn if it is installed, else torch's own.

    Raises:
        UnusableInput: flash attention is requested but not available.
    """
    on_gpu = device.type == "cuda" and dtype != torch.float32
    available = on_gpu and importlib.util.find_spec("flash_attn") is not None
    match base.attention:
        case "flash_attention_2" if not available:
            raise UnusableInput(
                "base.attention: flash_attention_2 needs a CUDA device, 16-bit compute and the package flash-attn. "
                "Use attention: auto to use it only if it is installed"
            )
        case "auto" | "flash_attention_2" if available:
            return "flash_attn"
        case _:
            return "torch_varlen" if on_gpu else "each"


def attend_by_document(causal: Any) -> None:
    """Switch a model to attention by document.

    Raises:
        UnusableInput: a layer uses sliding-window attention, which is not supported.
    """
    kinds = set(getattr(causal.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise UnusableInput(f"base.model: layers of {', '.join(sorted(kinds))}. Only full attention is supported")
    causal.set_attn_implementation(NAME)


@contextmanager
def unpacked_attention(causal: Any) -> Iterator[None]:
    """Use ordinary attention in the block, for generation with a cache instead of packs."""
    before = causal.config._attn_implementation
    causal.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        causal.set_attn_implementation(before)
