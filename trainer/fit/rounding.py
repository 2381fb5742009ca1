"""8-bit AdamW for 16-bit parameters with stochastic rounding, so that small steps count on average.

    bfloat16 ─▶ float32 ─ AdamW ─▶ float32 ─▶ the bfloat16 below or above it; the nearer one is likelier

With rounding to nearest, most steps at a small learning rate would change nothing: bfloat16 has 8 significant bits, so
a weight only changes by more than 1/512 of itself. Only one parameter at a time is float32, so memory use is small.
"""

from __future__ import annotations

import hashlib
from typing import Any

import bitsandbytes as bnb
import torch

LOW_BITS = 16
"""Bits of float32 that bfloat16 lacks."""


def round_stochastically(exact: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Round float32 to bfloat16. The probability of rounding up is the fraction, so the mean is `exact`.

    A carry out of the low bits into the high ones is the step to the next bfloat16 away from zero (Gupta et al. 2015,
    section 3: stochastic rounding).
    """
    noise = torch.randint(0, 1 << LOW_BITS, exact.shape, dtype=torch.int32, device=exact.device, generator=generator)
    rounded = exact.contiguous().view(torch.int32).add(noise).bitwise_and_(-1 << LOW_BITS).view(torch.float32)
    return torch.where(exact.isfinite(), rounded, exact).to(torch.bfloat16)  # a carry could turn nan into a number


class _Rounded:
    """Runs bitsandbytes' update of one parameter on a float32 copy."""

    draws: tuple[int, ...] = ()
    """Seed of the draws, besides step and parameter. It differs per run, or all runs of a stream would round the same
    weights the same way."""

    def update_step(self, group: Any, p: torch.Tensor, gindex: int, pindex: int) -> None:
        """Overrides Optimizer2State.update_step."""
        assert p.dtype == torch.bfloat16 and p.grad is not None
        exact = torch.nn.Parameter(p.detach().float())
        exact.grad = p.grad.float()
        state = self.state[p]  # type: ignore[attr-defined]
        self.state[exact] = state  # type: ignore[attr-defined]
        try:
            super().update_step(group, exact, gindex, pindex)  # type: ignore[misc]
        finally:
            del self.state[exact]  # type: ignore[attr-defined]
        # The same draws on all ranks, or their copies would diverge; and the same after a resume.
        generator = torch.Generator(p.device).manual_seed(_seed(*self.draws, state["step"], gindex, pindex))
        p.copy_(round_stochastically(exact.detach(), generator))


def _seed(*numbers: int) -> int:
    """Return a 32-bit seed, as the CPU generator requires."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:4])


class RoundedAdamW8bit(_Rounded, bnb.optim.AdamW8bit):
    """For CPUs."""


class RoundedPagedAdamW8bit(_Rounded, bnb.optim.PagedAdamW8bit):
    """For GPUs. Its state moves to host memory when the GPU is full."""
