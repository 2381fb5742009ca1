"""8-bit AdamW over 16-bit parameters, rounded at random: a step too small for bfloat16 counts on the average.

    bfloat16 ─▶ float32 ─ AdamW ─▶ float32 ─▶ the bfloat16 below or above it, the nearer the likelier

Rounded to the nearest instead, most steps of a small learning rate change nothing: bfloat16 has 8 bits, so a weight
moves only for more than 1/512 of itself. One parameter at a time is float32, so this costs no memory to speak of.
"""

from __future__ import annotations

import hashlib
from typing import Any

import bitsandbytes as bnb
import torch

LOW_BITS = 16
"""Bits of a float32 that bfloat16 does not have."""


def round_at_random(exact: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """float32 → bfloat16, up with the probability of how far up it is: the mean of many is `exact`.

    A carry out of the low bits into the high ones is the step to the next bfloat16 away from zero (Gupta et al. 2015,
    section 3: stochastic rounding).
    """
    noise = torch.randint(0, 1 << LOW_BITS, exact.shape, dtype=torch.int32, device=exact.device, generator=generator)
    rounded = exact.contiguous().view(torch.int32).add(noise).bitwise_and_(-1 << LOW_BITS).view(torch.float32)
    return torch.where(exact.isfinite(), rounded, exact).to(torch.bfloat16)  # a carry would make a number of nan


class _Rounded:
    """What bitsandbytes' optimizers do for one parameter, around a float32 stand-in."""

    draws: tuple[int, ...] = ()
    """What the draws depend on besides step and parameter. Were they the same in every run, those of a stream would
    push the same weights every time."""

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
        # The same draws on all ranks, or their copies would drift apart; and the same after a resume.
        generator = torch.Generator(p.device).manual_seed(_seed(*self.draws, state["step"], gindex, pindex))
        p.copy_(round_at_random(exact.detach(), generator))


def _seed(*numbers: int) -> int:
    """32 bits, which is what a CPU's generator takes."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:4])


class RoundedAdamW8bit(_Rounded, bnb.optim.AdamW8bit):
    """On a CPU."""


class RoundedPagedAdamW8bit(_Rounded, bnb.optim.PagedAdamW8bit):
    """On a card: its state moves to host memory when the card is full."""
