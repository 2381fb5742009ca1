"""Examines a run's adapter in a fresh process: whole, finite, changed, bounded, and able to generate.

Not covered: whether the adapter is better. The held-out losses and the gate decide that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar

from trainer.check import Checked, check_run
from trainer.data.encoder import SampleEncoder, TokenSample, pad_id
from trainer.data.tokenize import tokenize_rows
from trainer.errors import UnusableInput
from trainer.evaluate.predictions import answer_all
from trainer.model.load import load_tokenizer
from trainer.model.lora import add_adapter, relative_norms
from trainer.model.quantized import load_kept
from trainer.records import read_rows
from trainer.run_dir import RunDirectory, RunDirectoryError, verify_manifest, write_json
from trainer.stop import StopRequest

PROMPTS, NEW_TOKENS = 8, 64
LONGEST_PERIOD, LOOPING_TOKENS = 16, 48
"""An answer loops if its last 48 tokens repeat a sequence of at most 16 tokens."""
WEIGHTS = "adapter_model.safetensors"


def examine(directory: RunDirectory, stop: StopRequest) -> None:
    """Write examination.json. A candidate that cannot be used is a finding there, not an error.

    Raises:
        UnusableInput: an input of the run is missing or changed.
        Stopped: a stop was requested.
    """
    began = time.monotonic()
    disable_progress_bar()
    checked = check_run(directory)
    found: dict[str, Any] = {"format": 1, "run_id": checked.run_id}
    try:
        verify_manifest(directory.adapter)
        weights = load_file(directory.adapter / WEIGHTS)
        found |= {"weights": _weights(weights, checked)}
        if not found["weights"]["not_finite"]:
            found |= _used(directory, checked, stop)
    except (RunDirectoryError, UnusableInput, SafetensorError, OSError) as error:
        found["failure"] = str(error)
    write_json(directory.examination, found | {"seconds": round(time.monotonic() - began, 3)})


def _weights(weights: Mapping[str, torch.Tensor], checked: Checked) -> dict[str, Any]:
    """Count the tensors that are not finite, and those that differ from the start of the fit.

    Without a parent, the fit began with B = 0. An adapter whose B is still 0 has no effect.
    """
    before = load_file(checked.parent / WEIGHTS) if checked.parent else {}
    trained = [name for name in weights if checked.parent or "lora_B" in name]
    return {
        "tensors": len(trained),
        "changed": sum(not torch.equal(weights[name], before.get(name, torch.zeros(()))) for name in trained)
        if checked.parent
        else sum(bool(weights[name].any()) for name in trained),
        "not_finite": [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())],
    }


def _used(directory: RunDirectory, checked: Checked, stop: StopRequest) -> dict[str, Any]:
    """Load base and adapter as a later run does, and let them answer a few held-out prompts."""
    recipe = checked.recipe
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = load_kept(recipe.base, device, lambda _event, /, **_fields: None)
    adapted = add_adapter(base, recipe.lora, parent=directory.adapter, seed=checked.seed)
    adapted.eval()
    norms = relative_norms(adapted)
    largest = max(norms, key=lambda name: norms[name])
    tokenizer = load_tokenizer(recipe.base)
    return {
        "norm": {"largest": norms[largest], "module": largest},
        "generation": _generation(adapted, tokenizer, _prompts(directory, checked, tokenizer), stop),
    }


def _prompts(directory: RunDirectory, checked: Checked, tokenizer: Any) -> list[TokenSample]:
    """Return a sample of each of the first held-out files."""
    encoder = SampleEncoder(tokenizer)
    samples: dict[int, TokenSample] = {}
    rows = read_rows(directory.held_out)
    while len(samples) < PROMPTS and (some := list(islice(rows, PROMPTS))):
        for sample in tokenize_rows(some, encoder, checked.recipe.data, seed=checked.seed).samples:
            samples.setdefault(sample.file_id, sample)
    return list(samples.values())[:PROMPTS]


def _generation(adapted: Any, tokenizer: Any, prompts: Sequence[TokenSample], stop: StopRequest) -> dict[str, Any]:
    pad = pad_id(tokenizer)
    control = set(tokenizer.added_tokens_decoder) - {tokenizer.eos_token_id, pad}

    def counts() -> dict[str, int]:
        stop.check()
        answers = answer_all(adapted, tokenizer, prompts, pad=pad, max_new_tokens=NEW_TOKENS)
        return {
            "tokens": sum(map(len, answers)),
            "leaking": sum(bool(control & set(answer)) for answer in answers),
            "looping": sum(loops(answer) for answer in answers),
        }

    candidate = counts()
    with adapted.disable_adapter():
        return {"prompts": len(prompts), "candidate": candidate, "anchor": counts()}


def loops(answer: Sequence[int]) -> bool:
    """Whether the last LOOPING_TOKENS tokens repeat a sequence of at most LONGEST_PERIOD tokens."""
    tail = list(answer[-LOOPING_TOKENS:])
    return len(tail) == LOOPING_TOKENS and any(_repeats(tail, period) for period in _periods())


def _periods() -> Iterator[int]:
    yield from range(1, LONGEST_PERIOD + 1)


def _repeats(tail: Sequence[int], period: int) -> bool:
    return all(tail[index] == tail[index - period] for index in range(period, len(tail)))
