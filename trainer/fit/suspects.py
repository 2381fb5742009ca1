"""Finds the rows that make a step fail. Tries each sample alone, without an optimizer step.

another step's sample fails, too     ─▶ no row: the weights or the machine are the cause
some samples fail alone              ─▶ their rows
none does                            ─▶ all rows of the step: they only fail together
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from trainer.data.batches import collate
from trainer.data.encoder import TokenSample
from trainer.model.memory import is_out_of_memory
from trainer.records import Failure, Suspects


def find_suspects(
    accelerator: Accelerator,
    model: Any,
    optimizer: Any,
    samples: Sequence[TokenSample],
    *,
    outside: Sequence[TokenSample],
    reason: Failure,
    step: int,
) -> Suspects | None:
    """Return the rows that may have made a step fail, or None if no row did. Discards gradients.

    With several processes, samples cannot be tried alone. Then all rows of the step are suspects.

    Args:
        samples: those of the step
        outside: samples of other steps. The shortest one shows whether weights and machine work
    """

    def fails(sample: TokenSample) -> bool:
        return failure_of(accelerator, model, optimizer, sample) == reason

    found: list[TokenSample] = []
    if accelerator.num_processes == 1:
        if outside and fails(min(outside, key=lambda sample: sample.tokens)):
            return None
        found = [sample for sample in samples if fails(sample)]
    ids = {file_id for sample in found or samples for file_id, _ in sample.shares}
    return Suspects(reason=reason, step=step, file_ids=tuple(sorted(ids)))


def failure_of(accelerator: Accelerator, model: Any, optimizer: Any, sample: TokenSample) -> Failure | None:
    """Run one sample forward and backward. Returns the failure, or None."""
    try:
        loss, _ = model(collate([sample]).to(accelerator.device))
        accelerator.backward(loss / max(1, sample.supervised))
        norm = float(accelerator.clip_grad_norm_(model.parameters(), math.inf))
        return None if math.isfinite(loss.item()) and math.isfinite(norm) else "non_finite"
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return "out_of_memory"
    finally:
        optimizer.zero_grad()
        torch.cuda.empty_cache()
