"""Activation checkpointing by policy: what is kept for the backward pass, and what is made again.

What it costs on the 14B (hidden 5,120, MLP 13,824, LoRA rank 256 with dropout, 16 bit), per token and layer, with the
sequence at 4,096 tokens:

    none        everything: 239 KiB, nothing made again
    selective   attention's half, with its projections: 86 KiB; norms and MLP are made again, 0.45 GFLOP
    full        the layer's input: 10 KiB; the whole layer is made again, 0.64 GFLOP

Why selective keeps attention and not the MLP: with its norm, attention's half holds 76 KiB and the MLP's 163 (it is
mostly four tensors of 13,824). A byte kept spares about as much in either, 2.4 and 2.8 GFLOP a MB, so the smaller half
is the one that fits beside more tokens. And what attention's half spares grows with the length (its own products take
0.04 GFLOP a token at 4,096 and 0.34 at 32,768), at a lower share of a card's rate than the MLP's large products reach.
Norms cost next to nothing to make again, and would hold a float32 copy of their input.
"""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

HOST_BLOCK_BYTES = 16 << 20
"""Host buffers are a whole number of these long: packs differ in length, and page-locking memory is slow."""
IN_FLIGHT = 2
"""Inputs that may wait on the device for their copy to the host: one is copied while the next is made."""


def checkpoint_layers(model: Any, policy: str, *, offload: bool = False) -> int:
    """Make a model's layers keep less; returns how many modules are made again.

    Args:
        policy: a name in POLICIES
        offload: keep what a checkpoint saves in host memory (page-locked where there is a GPU)
    """
    keeper = HostKeeper() if offload else None
    modules = [chosen for layer in decoder_layers(model) for chosen in POLICIES[policy](layer)]
    for module in modules:
        module.forward = _made_again(module.forward, keeper)
    return len(modules)


def decoder_layers(model: Any) -> list[torch.nn.Module]:
    """The repeated layers of a model."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


POLICIES: dict[str, Callable[[torch.nn.Module], list[torch.nn.Module]]] = {
    "none": lambda _: [],
    "selective": lambda layer: [child for name, child in layer.named_children() if "attn" not in name],
    "full": lambda layer: [layer],
}
"""By name: the modules of one layer whose inputs alone are kept."""


def _made_again(forward: Callable[..., Any], keeper: HostKeeper | None) -> Callable[..., Any]:
    """A forward pass that keeps its input alone, where there will be a backward pass."""

    @functools.wraps(forward)
    def kept_by_input(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        with nullcontext() if keeper is None else keeper.hooks():
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return kept_by_input


class HostKeeper:
    """Keeps tensors of a forward pass in host memory until the backward pass asks for them, the last one first.

        main stream   layer 1 │ layer 2 │ layer 3 │ … │ back 3  │ back 2  │ back 1
        side stream           │ 1 out   │ 2 out   │ … │ 2 in    │ 1 in    │

    A tensor that is copied out is held until the main stream has waited for its copy, so its memory is never used again
    too early; one that is asked for starts the copy of the one before it. On a CPU the same without streams.
    """

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []
        self._leaving: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()
        self._side: torch.cuda.Stream | None = None
        self._last: weakref.ref[_Kept] | None = None

    def hooks(self) -> AbstractContextManager[None]:
        """What autograd saves inside this block goes to the host."""
        return saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> _Kept | torch.Tensor:
        if not tensor.is_floating_point() or tensor.numel() == 0:
            return tensor
        kept = _Kept(tensor, self._buffer(tensor), self._free, self._last)
        self._last = weakref.ref(kept)
        if tensor.device.type != "cuda":
            kept.host.copy_(tensor)
            return kept
        main, side = torch.cuda.current_stream(tensor.device), self._stream(tensor.device)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            kept.host.copy_(tensor, non_blocking=True)
            self._leaving.append((tensor, side.record_event()))
        self._let_go(main, leave=IN_FLIGHT)
        return kept

    def _unpack(self, kept: _Kept | torch.Tensor) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        if kept.device.type != "cuda":
            return kept.host.clone()
        main = torch.cuda.current_stream(kept.device)
        self._let_go(main, leave=0)
        tensor, arrived = kept.returning or self._fetch(kept, main)
        kept.returning = None
        main.wait_event(arrived)
        before = kept.before() if kept.before is not None else None
        if before is not None and before.returning is None:
            before.returning = self._fetch(before, main)
        return tensor

    def _fetch(self, kept: _Kept, main: torch.cuda.Stream) -> tuple[torch.Tensor, torch.cuda.Event]:
        """Start the copy back, into memory that belongs to the main stream."""
        tensor = torch.empty(kept.shape, dtype=kept.dtype, device=kept.device)
        side = self._stream(kept.device)
        side.wait_stream(main)  # what used this memory before is done then
        with torch.cuda.stream(side):
            tensor.copy_(kept.host, non_blocking=True)
            return tensor, side.record_event()

    def _let_go(self, main: torch.cuda.Stream, *, leave: int) -> None:
        """Free the device's memory of all but the newest tensors, in the main stream's order."""
        while len(self._leaving) > leave:
            tensor, copied = self._leaving.popleft()
            main.wait_event(copied)
            del tensor

    def _buffer(self, tensor: torch.Tensor) -> torch.Tensor:
        """Host memory for a tensor, uint8: one that is free and long enough, else a new one instead of a short one."""
        wanted = tensor.numel() * tensor.element_size()
        for index, buffer in enumerate(self._free):
            if len(buffer) >= wanted:
                return self._free.pop(index)
        if self._free:
            self._free.pop()
        length = -(-wanted // HOST_BLOCK_BYTES) * HOST_BLOCK_BYTES
        return torch.empty(length, dtype=torch.uint8, pin_memory=tensor.device.type == "cuda")

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if self._side is None:
            self._side = torch.cuda.Stream(device)
        return self._side


class _Kept:
    """One tensor in host memory, for as long as autograd's graph holds it: also when the backward pass never comes."""

    def __init__(
        self, tensor: torch.Tensor, buffer: torch.Tensor, free: list[torch.Tensor], before: weakref.ref[_Kept] | None
    ) -> None:
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device
        self.buffer, self.free = buffer, free
        self.host = buffer[: tensor.numel() * tensor.element_size()].view(tensor.dtype).view(tensor.shape)
        self.before = before
        """The one that was kept just before it: the backward pass asks for that one next."""
        self.returning: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def __del__(self) -> None:
        if self.returning is not None:  # a copy that nobody came for may still be writing into its memory
            torch.cuda.current_stream(self.device).wait_event(self.returning[1])
        self.free.append(self.buffer)
