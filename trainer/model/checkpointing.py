"""Activation checkpointing by policy: which activations are kept, and which are recomputed.

Costs on the 14B model (hidden 5,120, MLP 13,824, LoRA rank 256 with dropout, 16 bit), per token and layer, with the
sequence at 4,096 tokens:

    none        everything: 177 KiB, nothing is recomputed
    selective   attention with its projections: 76 KiB; norms and MLP are recomputed, 0.45 GFLOP
    full        the layer's input: 10 KiB; the whole layer is recomputed, 0.64 GFLOP

Why `selective` keeps attention and not the MLP: with their norms, attention holds 56 KiB and the MLP 121 KiB (mostly
three tensors of 13,824). Per MB kept, both save about the same work, 3.3 and 3.8 GFLOP. The smaller half leaves room
for more tokens. The savings of attention also grow with the length: its own products take 0.04 GFLOP per token at 4,096
and 0.34 at 32,768, and they run less efficiently than the MLP's large products. Norms are cheap to recompute, and
keeping them would hold another copy of their output.
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

from trainer.model.mixture import quantized_experts

HOST_BLOCK_BYTES = 16 << 20
"""Host buffers are rounded up to this size for reuse: page-locking is slow, and packs vary in length."""
IN_FLIGHT = 2
"""Inputs that may wait on the device for their copy to the host. One is copied while the next is computed."""


def checkpoint_layers(model: Any, policy: str, *, offload: bool = False) -> int:
    """Apply a checkpointing policy to a model. Returns the number of recomputed modules.

    Experts in 4 bits are recomputed under every policy. Else the unpacked experts of all layers would be kept.

    Args:
        policy: a name in POLICIES
        offload: keep saved inputs in host memory (page-locked with a GPU)
    """
    keeper = HostKeeper() if offload else None
    modules = [chosen for layer in decoder_layers(model) for chosen in POLICIES[policy](layer)]
    if policy == "none":
        modules = quantized_experts(model)
    for module in modules:
        module.forward = _recomputed(module.forward, keeper)
    return len(modules)


def decoder_layers(model: Any) -> list[torch.nn.Module]:
    """Return the repeated layers of a model."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


POLICIES: dict[str, Callable[[torch.nn.Module], list[torch.nn.Module]]] = {
    "none": lambda _: [],
    "selective": lambda layer: [child for name, child in layer.named_children() if "attn" not in name],
    "full": lambda layer: [layer],
}
"""Maps a policy to the modules of a layer that keep only their inputs."""


def _recomputed(forward: Callable[..., Any], keeper: HostKeeper | None) -> Callable[..., Any]:
    """Wrap a forward pass so that it keeps only its input, if a backward pass follows."""

    @functools.wraps(forward)
    def kept_by_input(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        with nullcontext() if keeper is None else keeper.hooks():
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return kept_by_input


class HostKeeper:
    """Offloads tensors of a forward pass to host memory. The backward pass fetches them in reverse order.

        main stream   layer 1 │ layer 2 │ layer 3 │ … │ back 3  │ back 2  │ back 1
        side stream           │ 1 out   │ 2 out   │ … │ 2 in    │ 1 in    │

    A tensor's device memory is held until the main stream has waited for its copy, so it is not reused too early. Each
    fetch also starts the copy of the next tensor. On a CPU there are no streams.
    """

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []
        self._leaving: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()
        self._side: torch.cuda.Stream | None = None
        self._last: weakref.ref[_Kept] | None = None

    def hooks(self) -> AbstractContextManager[None]:
        """Offload what autograd saves in this block."""
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
        self._release(main, leave=IN_FLIGHT)
        return kept

    def _unpack(self, kept: _Kept | torch.Tensor) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        if kept.device.type != "cuda":
            return kept.host.clone()
        main = torch.cuda.current_stream(kept.device)
        self._release(main, leave=0)
        tensor, arrived = kept.returning or self._fetch(kept, main)
        kept.returning = None
        main.wait_event(arrived)
        before = kept.before() if kept.before is not None else None
        if before is not None and before.returning is None:
            before.returning = self._fetch(before, main)
        return tensor

    def _fetch(self, kept: _Kept, main: torch.cuda.Stream) -> tuple[torch.Tensor, torch.cuda.Event]:
        """Start the copy to the device, into memory of the main stream."""
        tensor = torch.empty(kept.shape, dtype=kept.dtype, device=kept.device)
        side = self._stream(kept.device)
        side.wait_stream(main)  # wait for the previous use of this memory
        with torch.cuda.stream(side):
            tensor.copy_(kept.host, non_blocking=True)
            return tensor, side.record_event()

    def _release(self, main: torch.cuda.Stream, *, leave: int) -> None:
        """Free the device memory of all but the newest `leave` tensors, in the main stream's order."""
        while len(self._leaving) > leave:
            tensor, copied = self._leaving.popleft()
            main.wait_event(copied)
            del tensor

    def _buffer(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a uint8 host buffer: a free one that is long enough, else a new one in place of a short one."""
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
    """One offloaded tensor. It lives as long as autograd's graph, even without a backward pass."""

    def __init__(
        self, tensor: torch.Tensor, buffer: torch.Tensor, free: list[torch.Tensor], before: weakref.ref[_Kept] | None
    ) -> None:
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device
        self.buffer, self.free = buffer, free
        self.host = buffer[: tensor.numel() * tensor.element_size()].view(tensor.dtype).view(tensor.shape)
        self.before = before
        """The tensor kept just before. The backward pass fetches it next."""
        self.returning: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def __del__(self) -> None:
        if self.returning is not None:  # an unused copy may still be writing to this memory
            torch.cuda.current_stream(self.device).wait_event(self.returning[1])
        self.free.append(self.buffer)
