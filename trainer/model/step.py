"""Model and loss in one module: what is wrapped for many processes, and what every forward pass goes through."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer.data.encoder import IGNORED
from trainer.errors import UnusableInput

CHUNK_LOGITS = 1 << 26
"""Logits that exist at once: 256 MiB in float32, 441 positions of a vocabulary of 152,064."""


class LossModel(nn.Module):
    """A causal language model with its loss, taken at supervised positions only and in chunks.

    The logits of a whole batch never exist: hidden states are selected first, and each chunk's logits are made
    again for the backward pass.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss and count of right predictions.

        Args:
            ids, mask, labels: int64 [samples, longest], as in `Batch`; labels are shifted already.
        """
        causal = self.model.get_base_model()
        hidden = causal.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        supervised = labels != IGNORED
        return chunked_loss(hidden[supervised], causal.get_output_embeddings(), labels[supervised])


def chunked_loss(hidden: torch.Tensor, head: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy, summed in float32.

    Args:
        hidden: [positions, width]
        labels: int64 [positions], none of them IGNORED

    Returns:
        float32 [] in nats, int64 [] right predictions
    """
    loss = hidden.float().sum() * 0.0  # no position at all still gives a gradient, of zero
    correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
    positions = max(1, CHUNK_LOGITS // head.weight.shape[0])
    if len(labels) <= positions:  # all at once is no more than a chunk: nothing has to be made again
        part = _chunk_loss(hidden, head, labels)
        return loss + part[0], correct + part[1]
    for start in range(0, len(labels), positions):
        stop = start + positions
        part = checkpoint(_chunk_loss, hidden[start:stop], head, labels[start:stop], use_reentrant=False)
        loss = loss + part[0]
        correct = correct + part[1]
    return loss, correct


def _chunk_loss(hidden: torch.Tensor, head: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = head(hidden.to(head.weight.dtype)).float()
    with torch.autocast(hidden.device.type, enabled=False):
        loss = F.cross_entropy(logits, labels, reduction="sum")
    return loss, (logits.detach().argmax(-1) == labels).sum()


@torch.no_grad()
def check_head(model: Any) -> None:
    """Raises UnusableInput unless the head on the last hidden states gives the model's own logits.

    Families that scale or cap their logits would otherwise be trained on a loss that is not theirs.
    """
    model.eval()  # dropout would tell the two apart
    causal = model.get_base_model()
    ids = torch.arange(8, device=causal.device)[None]
    own = causal(input_ids=ids, use_cache=False).logits.float()
    hidden = causal.model(input_ids=ids, use_cache=False).last_hidden_state
    ours = causal.get_output_embeddings()(hidden).float()
    model.train()
    if not torch.allclose(own, ours, rtol=1e-3, atol=1e-3):
        raise UnusableInput(f"base.model: {type(causal).__name__} changes its logits after the head; not supported")
