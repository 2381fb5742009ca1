"""Computes the loss at supervised positions in chunks, and the hidden states' gradient in the forward pass.

    hidden [positions, width] ──@ head──▶ logits [chunk, words] ──▶ loss
            gradient [positions, width] ◀──@ head── softmax − target

The head is frozen, so a chunk's logits are needed only once. This takes two matrix products per chunk; recomputing the
chunk in the backward pass would take three. The logits of a whole batch never exist at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from trainer.model.sizes import rounded, sizes

CHUNK_LOGITS = 1 << 26
"""Maximum number of logits at once. With their softmax they take 512 MiB: 441 positions at a vocabulary of 152,064."""
CPU_POSITIONS = 256
"""Maximum positions per chunk on a CPU, so that the logits stay in its cache."""


def supervised_loss(
    hidden: torch.Tensor,
    head: Any,
    targets: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy, summed in float32.

    Args:
        hidden: [positions, width], supervised positions only
        head: a frozen linear layer without bias, width → words
        targets: int64 [positions]
        label_smoothing: share of the target that is spread evenly over the vocabulary (Szegedy et al. 2015, section 7)
        weights: float32 [positions]: factor of each position's loss, which may be negative. None: all are 1

    Returns:
        float32 [] loss in nats, int64 [] correct top-1 predictions (ties count as correct)
    """
    assert not head.weight.requires_grad and head.bias is None, "the gradient of the head is not computed here"
    loss, correct = _SupervisedLoss.apply(hidden, head.weight, targets, label_smoothing, weights)
    return loss, correct


class _SupervisedLoss(torch.autograd.Function):
    """Forward computes the loss and, if needed, its gradient. Backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        smoothing: float,
        weights: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = ctx.needs_input_grad[0]
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        gradient = torch.empty_like(hidden) if wanted else None
        room = _Room(hidden, weight)
        for part in _chunks(hidden, weight):
            logits = room.logits(hidden[part], weight)
            of_part, right, of_logits = _chunk(
                logits, targets[part], smoothing, None if weights is None else weights[part], in_place=room.kept
            )
            del logits  # free them before the gradient is cast
            loss += of_part
            correct += right
            if gradient is not None:
                gradient[part] = room.product(of_logits, weight)
            del of_logits  # free it before the next chunk
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss.to(gradient.dtype), None, None, None, None


def _has_cache(hidden: torch.Tensor) -> bool:
    return hidden.device.type == "cpu"


class _Room:
    """Memory for the logits of a chunk. On a CPU, all chunks use the same, which stays in its cache.

    The last chunk is filled to a size that comes again. Its products have rows that nobody reads.
    """

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor) -> None:
        self.kept, self.dtype = _has_cache(hidden), weight.dtype
        shape = (min(rounded(len(hidden)), CPU_POSITIONS), len(weight))
        self.narrow = torch.zeros(shape, dtype=weight.dtype) if self.kept else None
        self.wide = torch.empty(shape) if self.kept and weight.dtype != torch.float32 else None

    def logits(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the logits in float32."""
        rows, hidden = len(hidden), hidden.to(weight.dtype)
        if self.narrow is None:
            return (hidden @ weight.T).float()
        (size,) = sizes([rows], weight)
        made = torch.mm(F.pad(hidden, (0, 0, 0, size - rows)), weight.T, out=self.narrow[:size])[:rows]
        return made if self.wide is None else self.wide[:rows].copy_(made)

    def product(self, of_logits: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the hidden states, in the dtype of the head's weights."""
        rows = len(of_logits)
        if self.narrow is None or self.wide is None:
            return of_logits.to(self.dtype) @ weight
        self.narrow[:rows].copy_(of_logits)
        (size,) = sizes([rows], weight)
        return (self.narrow[:size] @ weight)[:rows]


@torch.no_grad()
def position_losses(hidden: torch.Tensor, head: Any, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of each position, without a gradient.

    Args:
        hidden: [positions, width], supervised positions only
        head: a linear layer without bias, width → words
        targets: int64 [positions]

    Returns:
        float32 [positions] losses in nats, bool [positions] whether the target is a top-1 prediction (ties count)
    """
    losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    correct = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
    room = _Room(hidden, head.weight)
    for part in _chunks(hidden, head.weight):
        logits = room.logits(hidden[part], head.weight)
        logits -= logits.gather(1, targets[part, None])  # subtract first: logits may be large
        losses[part] = torch.logsumexp(logits, dim=-1)
        correct[part] = logits.amax(dim=-1) == 0
    return losses, correct


def _chunks(hidden: torch.Tensor, weight: torch.Tensor) -> Iterator[slice]:
    """Yield the positions of each chunk of logits."""
    positions = max(1, CHUNK_LOGITS // weight.shape[0])
    if hidden.device.type == "cpu":
        positions = min(positions, CPU_POSITIONS)
    for start in range(0, len(hidden), positions):
        yield slice(start, start + positions)


def _chunk(
    logits: torch.Tensor, targets: torch.Tensor, smoothing: float, weights: torch.Tensor | None, *, in_place: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return loss, correct predictions and softmax − target of one chunk, all in float32.

    `in_place` puts the softmax where the logits are.

    The softmax's largest value is 1 / its normalizer. Using it saves one pass compared with logsumexp.
    """
    rows = torch.arange(len(targets), device=logits.device)
    highest, at_target = logits.amax(dim=-1), logits[rows, targets]
    mean = logits.mean(dim=-1) if smoothing else None
    gradient = torch.softmax(logits, dim=-1, out=logits if in_place else None)
    losses = highest - at_target - gradient.amax(dim=-1).log()  # subtract first: logits may be large
    if mean is not None:
        losses += smoothing * (at_target - mean)
        gradient -= smoothing / logits.shape[-1]
    gradient[rows, targets] -= 1.0 - smoothing
    if weights is not None:
        losses *= weights
        gradient *= weights[:, None]
    return losses.sum(), (at_target == highest).sum(), gradient
