"""What every contestant gets: the same model, samples, order, LoRA and optimizer. No project code in here.

work/model/          a Qwen2 of 5 M parameters with random weights
work/train.jsonl     {"input_ids", "labels"}: in the order in which they are trained
work/held_out.jsonl  the same, never trained on
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
    """float32 or bfloat16: what everybody computes in."""
    return sys.argv[2]


def samples(name: str) -> list[dict[str, list[int]]]:
    return [json.loads(line) for line in (work_folder() / f"{name}.jsonl").open()]


def set_threads() -> None:
    """As they are for everybody."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)


def load_model() -> Any:
    """The base, frozen by whoever adapts it."""
    import torch
    from transformers import AutoModelForCausalLM

    set_threads()
    return AutoModelForCausalLM.from_pretrained(work_folder() / "model", dtype=getattr(torch, dtype_name()))


def orders() -> Iterator[int]:
    """The referee's orders: how many steps to take; ends when told to finish."""
    for line in sys.stdin:
        word, *number = line.split()
        if word == "finish":
            return
        yield int(number[0])


def say(**facts: Any) -> None:
    """One line to the referee, past whatever libraries print."""
    print("\x1e" + json.dumps(facts), flush=True)
