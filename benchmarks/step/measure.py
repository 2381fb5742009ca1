"""Prints the held-out losses of adapters in float32. With --matmul, prints the rate of the model's products."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch


def matmul_gflops(dtype: torch.dtype) -> float:
    """Return the rate of the gate projection for a pack of 4,096 tokens: the median of ten measurements."""
    torch.set_num_threads(os.cpu_count() or 1)
    left, right = torch.randn(4096, 256, dtype=dtype), torch.randn(704, 256, dtype=dtype).T
    seconds = []
    for _ in range(12):
        began = time.perf_counter()
        for _ in range(10):
            left @ right
        seconds.append((time.perf_counter() - began) / 10)
    return 2 * 4096 * 256 * 704 / statistics.median(seconds[2:]) / 1e9


def losses(work: Path, names: list[str]) -> dict[str, float]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    samples = [json.loads(line) for line in (work / "held_out.jsonl").open()]
    found = {}
    for name in ["base", *names]:
        model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
        if name != "base":
            model = PeftModel.from_pretrained(model, work / "results" / name)
        total, counted = 0.0, 0
        with torch.no_grad():
            for sample in samples:
                ids, labels = (torch.tensor(sample[key]) for key in ("input_ids", "labels"))
                logits = model.eval()(input_ids=ids[None]).logits[0, :-1]
                total += torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum").item()
                counted += int((labels[1:] != -100).sum())
        found[name] = total / counted
    return found


if sys.argv[1] == "--matmul":
    print(matmul_gflops(getattr(torch, sys.argv[2])))
else:
    print(json.dumps(losses(Path(sys.argv[1]), sys.argv[3:])))
