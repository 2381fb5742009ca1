"""What all contestants share: the model, samples, order, LoRA and optimizer. This file uses no project code.

work/model/          a Qwen2 of 5 M parameters with random weights
work/train.jsonl     {"input_ids", "labels"} in training order
work/held_out.jsonl  the same format; never trained on
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH, ACCUMULATION = 4, 4
MAX_LENGTH = 1024
RATE = 1e-3
LORA: dict[str, Any] = {
    "r": 64,
    "lora_alpha": 128,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "task_type": "CAUSAL_LM",
}


def work_folder() -> Path:
    return Path(sys.argv[1])


def dtype_name() -> str:
    """Return the compute dtype of all contestants: float32 or bfloat16."""
    return sys.argv[2]


def samples(name: str) -> list[dict[str, list[int]]]:
    return [json.loads(line) for line in (work_folder() / f"{name}.jsonl").open()]


def set_threads() -> None:
    """Use all cores, as all contestants do."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)


def load_model() -> Any:
    """Load the base. The library that adds the adapter freezes it."""
    import torch
    from transformers import AutoModelForCausalLM

    set_threads()
    return AutoModelForCausalLM.from_pretrained(work_folder() / "model", dtype=getattr(torch, dtype_name()))


def orders() -> Iterator[int]:
    """Yield the number of steps of each order of the referee, until the order to finish."""
    for line in sys.stdin:
        word, *number = line.split()
        if word == "finish":
            return
        yield int(number[0])


def say(**facts: Any) -> None:
    """Send one line to the referee. Its first character tells it apart from lines that libraries print."""
    print("\x1e" + json.dumps(facts), flush=True)
