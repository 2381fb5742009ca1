"""Memory use, detection of out-of-memory errors, and which cards are used."""

from __future__ import annotations

import os

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a failed allocation, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator: can't allocate memory" in message or "CUDA out of memory" in message
    )


def peak_gpu_bytes(device: torch.device) -> int:
    """Peak memory of tensors on this GPU since the process started. 0 without a GPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def cards_in_use() -> list[str]:
    """Return the UUIDs of the cards that the run's processes on this machine use, as NVML needs them.

    Torch knows CUDA_VISIBLE_DEVICES and CUDA's own order of the cards, which is not NVML's.
    """
    if not torch.cuda.is_available():
        return []
    used = min(torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(used)]
