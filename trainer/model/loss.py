"""The loss at supervised positions, in chunks, with the gradient of the hidden states made in the forward pass.

    hidden [positions, width] ──@ head──▶ logits [chunk, words] ──▶ loss
            gradient [positions, width] ◀──@ head── softmax − target

The head is frozen, so a chunk's logits are needed once: two matrix products a chunk instead of the three of a chunk
that is made again for the backward pass. All logits of a batch never exist.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

CHUNK_LOGITS = 1 << 26
"""Logits that exist at once, with their softmax 512 MiB: 441 positions of a vocabulary of 152,064."""
CPU_POSITIONS = 128
"""Positions at once on a CPU, at the most: their logits stay in its cache from one pass over them to the next."""


def supervised_loss(
    hidden: torch.Tensor, head: Any, targets: torch.Tensor, *, label_smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy, summed in float32.

    Args:
        hidden: [positions, width], of supervised positions alone
        head: a frozen linear layer without bias, width → words
        targets: int64 [positions]
        label_smoothing: share of the target that is spread evenly over all words (Szegedy et al. 2015, section 7)

    Returns:
        float32 [] in nats, int64 [] right predictions: those where no word is likelier than the target
    """
    assert not head.weight.requires_grad and head.bias is None, "the head's own gradient is not made here"
    loss, correct = _SupervisedLoss.apply(hidden, head.weight, targets, label_smoothing)
    return loss, correct


class _SupervisedLoss(torch.autograd.Function):
    """Forward makes the loss and, where it is wanted, its gradient; backward only scales that."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = ctx.needs_input_grad[0]
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        gradient = torch.empty_like(hidden) if wanted else None
        positions = max(1, CHUNK_LOGITS // weight.shape[0])
        if hidden.device.type == "cpu":
            positions = min(positions, CPU_POSITIONS)
        for start in range(0, len(targets), positions):
            part = slice(start, start + positions)
            logits = F.linear(hidden[part].to(weight.dtype), weight).float()
            of_part, right, of_logits = _chunk(logits, targets[part], smoothing)
            del logits  # or they would stand beside the gradient's cast
            loss += of_part
            correct += right
            if gradient is not None:
                gradient[part] = of_logits.to(weight.dtype) @ weight
            del of_logits  # or it would stand beside the next chunk's
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss.to(gradient.dtype), None, None, None


def _chunk(
    logits: torch.Tensor, targets: torch.Tensor, smoothing: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, right predictions and softmax − target of one chunk; all float32.

    The sum that a softmax divides by is read off its largest value, which is one over it: a pass less than logsumexp.
    """
    rows = torch.arange(len(targets), device=logits.device)
    highest, at_target = logits.amax(dim=-1), logits[rows, targets]
    gradient = torch.softmax(logits, dim=-1)
    loss = (highest - at_target - gradient.amax(dim=-1).log()).sum()  # differences first: logits may be large
    if smoothing:
        loss += smoothing * (at_target - logits.mean(dim=-1)).sum()
        gradient -= smoothing / logits.shape[-1]
    gradient[rows, targets] -= 1.0 - smoothing
    return loss, (at_target == highest).sum(), gradient
