"""On a GPU: a micro-batch never makes the CPU wait for the device, with any attention kernel."""

from __future__ import annotations

import pytest
import torch
from test_memory_on_a_card import base, on_card, recipe_with, step  # noqa: F401  (base is a fixture)
from test_memory_on_a_card import pytestmark as needs_a_card

from trainer.data.batches import collate
from trainer.data.encoder import IGNORED, TokenSample

pytestmark = needs_a_card


def pack():
    """Return a pack of three documents. A third of each has no loss."""
    samples = []
    for number, length in enumerate((700, 1500, 37)):
        ids = torch.randint(0, 32_000, (length,), dtype=torch.int32)
        labels = ids.clone()
        labels[: length // 3] = IGNORED
        samples.append(TokenSample(file_id=number, ids=ids, labels=labels, supervised=length - length // 3))
    return collate(samples)


@pytest.mark.parametrize("policy", ["none", "selective", "full"])
def test_a_micro_batch_never_waits_for_the_device(base, policy):  # noqa: F811
    model = on_card(recipe_with(base, policy, "never"))
    batch = pack().pin_memory()
    step(model, batch.to(torch.device("cuda")))  # the first use loads the kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            loss, _ = model(batch.to(torch.device("cuda")))
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
