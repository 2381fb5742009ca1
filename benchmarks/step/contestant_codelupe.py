"""Runs this project's step. The third argument is `all`, or the one change of an ablation."""

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from trainer.imports import set_up_torch

set_up_torch()

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from world import (
    ACCUMULATION,
    BATCH,
    LORA,
    MAX_LENGTH,
    RATE,
    dtype_name,
    load_model,
    orders,
    samples,
    say,
    set_threads,
    work_folder,
)

from trainer.data.batches import collate, pack_samples
from trainer.data.encoder import IGNORED, TokenSample
from trainer.model.attention import choose_kernel, documents
from trainer.model.batch import Batch
from trainer.model.checkpointing import checkpoint_layers
from trainer.model.fused import fuse
from trainer.model.load import load_base
from trainer.model.step import LossModel
from trainer.recipe import Base

KIND = sys.argv[3]
KINDS = ("all", "peft-layers", "small-packs", "full-logits", "checkpointing-full", "nf4")
assert KIND in KINDS, f"{KIND!r} is not one of {', '.join(KINDS)}"


class FullLogits(LossModel):
    """Computes transformers' own logits at every position, and torch's cross entropy over them."""

    def forward(self, batch: Batch) -> tuple[torch.Tensor, None]:
        logits = self.model.get_base_model()(
            input_ids=batch.ids,
            position_ids=batch.positions,
            documents=documents(batch, self.kernel),
            use_cache=False,
        ).logits[0]
        labels = torch.full((batch.tokens,), IGNORED)
        labels[batch.predicting] = batch.labels
        return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum"), None


def token_samples(name: str) -> list[TokenSample]:
    found = []
    for number, sample in enumerate(samples(name)):
        ids, labels = (torch.tensor(sample[key], dtype=torch.int32) for key in ("input_ids", "labels"))
        found.append(TokenSample(file_id=number, ids=ids, labels=labels, supervised=int((labels[1:] != IGNORED).sum())))
    return found


def four_bit_model() -> Any:
    """Load the base as a recipe with 4-bit weights does."""
    set_threads()
    base = Base(model=str(work_folder() / "model"), quantization="nf4", compute_dtype=dtype_name())
    return load_base(base, torch.device("cpu"))


adapted = get_peft_model(four_bit_model() if KIND == "nf4" else load_model(), LoraConfig(**LORA))
if KIND != "peft-layers":
    fuse(adapted)
if KIND == "checkpointing-full":
    checkpoint_layers(adapted, "full")
kernel = choose_kernel(Base(), torch.device("cpu"), getattr(torch, dtype_name()))
model = (FullLogits if KIND == "full-logits" else LossModel)(adapted, kernel=kernel).train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
train = token_samples("train")
window = BATCH * ACCUMULATION
budget = MAX_LENGTH if KIND == "small-packs" else BATCH * MAX_LENGTH
autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype_name() == "bfloat16")


def step(number: int) -> int:
    members = [(number * window + place) % len(train) for place in range(window)]
    counted = sum(train[i].supervised for i in members)
    for pack in pack_samples(members, train, budget=budget, rank=0, world=1):
        with autocast:
            loss, _ = model(collate([train[i] for i in pack]))
        (loss / counted).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return sum(train[i].tokens for i in members)


say(ready=f"CodeLupe, {KIND}")
done = 0
for steps in orders():
    began, cpu_began, tokens = time.perf_counter(), time.process_time(), 0
    for _ in range(steps):
        tokens += step(done)
        done += 1
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    say(steps=steps, tokens=tokens, seconds=seconds, cpu_seconds=cpu_seconds)
adapted.save_pretrained(work_folder() / "results" / ("codelupe" if KIND == "all" else f"codelupe-{KIND}"))
say(done=True)
