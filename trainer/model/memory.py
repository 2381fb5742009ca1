"""Memory use, and detection of out-of-memory errors."""

from __future__ import annotations

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
