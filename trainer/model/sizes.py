"""Sizes that come again, because the first product of a size takes milliseconds on a CPU.

torch computes products of 16 bits with oneDNN, which compiles a kernel for each size of matrix. Packs and documents
have new lengths all the time, so compiling took a fifth of a step. Rounded up, most lengths have been there before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

SMALLEST = 32
"""All sizes are multiples of it."""
IN_AN_OCTAVE = 16
"""Sizes from one power of two to the next. More of them compile more often; fewer compute more filling."""


def rounded(size: int) -> int:
    """Return the next size that comes again. Above 512, it is at most 1/16 larger."""
    octave = 1 << (size - 1).bit_length()
    step = max(SMALLEST, octave // (2 * IN_AN_OCTAVE))
    return -(-size // step) * step


def sizes(lengths: Sequence[int], like: torch.Tensor) -> list[int]:
    """Return the size of each length in products of a tensor's kind: rounded where kernels are compiled for sizes."""
    return [rounded(length) for length in lengths] if compiled_by_size(like) else list(lengths)


def compiled_by_size(tensor: torch.Tensor) -> bool:
    """Whether products of the tensor's kind have a kernel for each size."""
    return tensor.device.type == "cpu" and tensor.dtype in (torch.bfloat16, torch.float16)
