"""Say what each part of an optimizer step costs, from torch's profiler.

Every operation belongs to one part. Its name or that of the nearest operation around it decides, and for a matrix
product its shapes:

    optimizer                    what is inside of the range OPTIMIZER
    loss                         the head's products, and what is inside of the loss's function
    attention                    the attention kernels
    dequantize                   bitsandbytes' unpacking of 4-bit weights
    adapter products             products with a side as long as the rank, or as that of two or three joined adapters
    base products                the other products
    adapter, element by element  what else is inside of the fused layer: dropout, casts
    copies and sums              copies between host and card, embedding, gradients that are added up
    norms, rotary, activation    all that is left, residual sums included

On a GPU the seconds are those of the kernels. On a CPU they are those of the operations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from trainer.model import checkpointing

Facts = dict[str, Any]
OPTIMIZER = "bench: optimizer"
RECOMPUTED = "bench: recomputed"
NORMS = "norms, rotary, activation"
BASE, ADAPTER, LOSS, ATTENTION = "base products", "adapter products", "loss", "attention"
REST = "copies and sums"
PARTS = ("dequantize", BASE, ADAPTER, "adapter, element by element", ATTENTION, NORMS, LOSS, "optimizer", REST)
BY_NAME = (
    ("dequantize", ("dequantize",)),
    (ATTENTION, ("varlen", "flash", "scaled_dot_product", "attention", "_Attention")),
    (LOSS, ("_SupervisedLoss",)),
    ("optimizer", (OPTIMIZER,)),
    ("adapter, element by element", ("_FusedLora",)),
    (REST, ("AccumulateGrad", "embedding", "Embedding", "Memcpy", "cudaMemcpy")),
    (NORMS, (RECOMPUTED,)),
)
"""Parts by a piece of an operation's name. What is recomputed runs inside of a backward function, so it has a name."""
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "aten::baddbmm_")


def costs_of(step: Callable[[], Any], *, rank: int, vocabulary: int, device: torch.device) -> Facts:
    """Run a step under the profiler. Returns the seconds, FLOPs and calls of each part; FLOPs only of products."""
    on_card = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    with _recomputing_named(), profile(activities=activities, record_shapes=True, acc_events=True) as profiler:
        step()
    events = profiler.events()
    seconds: dict[str, float] = defaultdict(float)
    flops: dict[str, float] = defaultdict(float)
    attended = 0
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue
        own = (event.self_device_time_total if on_card else event.self_cpu_time_total) / 1e6
        attended += event.name in FORWARD_ATTENTION
        if own > 0:
            part, work = part_of(event, rank=rank, vocabulary=vocabulary)
            seconds[part] += own
            flops[part] += work
    kernels = [event for event in events if event.device_type == DeviceType.CUDA and not _is_range(event)]
    busy = sum(event.device_time_total for event in kernels) / 1e6
    if on_card:  # kernels that no operation launched
        seconds[REST] += max(0.0, busy - sum(seconds.values()))
    return {
        "seconds": {part: seconds[part] for part in PARTS},
        "flops": {part: flops[part] for part in PARTS if flops[part]},
        "attention_calls": attended,
    }


FORWARD_ATTENTION = (
    "torch_attn::_varlen_attn",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "flash_attn::_flash_attn_varlen_forward",
)
"""The operations that attend once, of one layer (with varlen kernels) or of one document."""


def part_of(event: Any, *, rank: int, vocabulary: int) -> tuple[str, float]:
    """Return the part that an operation belongs to, and the FLOPs of a matrix product."""
    part = _part_around(event)
    product = _product(event)
    if product is None:
        return part, 0.0
    sides, flops = product
    if part in (ATTENTION, LOSS, "optimizer"):
        return part, flops
    joined = {rank, 2 * rank, 3 * rank}
    return (ADAPTER if joined.intersection(sides) else LOSS if vocabulary in sides else BASE), flops


def _part_around(event: Any) -> str:
    """Return the part that the nearest name says."""
    around = event
    while around is not None:
        part = next((part for part, names in BY_NAME if any(name in around.name for name in names)), None)
        if part is not None:
            return part
        around = around.cpu_parent
    return NORMS


def _product(event: Any) -> tuple[tuple[int, ...], float] | None:
    """Return the sides and the FLOPs of a matrix product."""
    if event.name not in PRODUCTS or not event.input_shapes:
        return None
    left, right = [shape for shape in event.input_shapes if len(shape) in (2, 3)][-2:]
    batch = left[0] if len(left) == 3 else 1
    sides = (left[-2], left[-1], right[-1])
    return sides, 2.0 * batch * sides[0] * sides[1] * sides[2]


def _is_range(event: Any) -> bool:
    return bool(getattr(event, "is_user_annotation", False)) or event.name.startswith("bench: ")


@contextmanager
def _recomputing_named() -> Iterator[None]:
    """Put a range around what is recomputed, which would else count as part of the function that asked for it."""
    original = checkpointing.checkpoint

    def named(function: Callable[..., Any], *given: Any, **options: Any) -> Any:
        def run(*args: Any, **more: Any) -> Any:
            with record_function(RECOMPUTED):
                return function(*args, **more)

        return original(run, *given, **options)

    with patch.object(checkpointing, "checkpoint", named):
        yield
