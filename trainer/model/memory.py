"""Device and host memory: what a step used, and whether an error means that there was too little."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator: can't allocate memory" in message or "CUDA out of memory" in message
    )


def peak_gpu_bytes(device: torch.device) -> int:
    """Most memory that tensors took on this GPU since the process started; 0 without one."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
