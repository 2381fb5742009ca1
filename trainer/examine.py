"""Examines a run's adapter in a fresh process: whole, finite, changed, bounded, as measured, and able to generate.

Not covered: whether the adapter is better. The held-out losses and the gate decide that.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar

from trainer.check import Checked, check_run
from trainer.data.batches import collate
from trainer.data.encoder import SampleEncoder, TokenSample, pad_id
from trainer.data.tokenize import tokenize_rows
from trainer.errors import UnusableInput
from trainer.evaluate.fixed_prompts import answer_prompts
from trainer.evaluate.judged_suites import judge_suites
from trainer.evaluate.predictions import answer_all
from trainer.model.attention import choose_kernel
from trainer.model.load import compute_dtype, load_tokenizer
from trainer.model.lora import add_adapter, relative_norms
from trainer.model.quantized import load_kept
from trainer.model.step import LossModel
from trainer.recipe import Base
from trainer.records import SampleEvaluation, read_evaluation, read_rows
from trainer.run_dir import MANIFEST, RunDirectory, RunDirectoryError, sha256_file, verify_manifest, write_json
from trainer.stop import StopRequest

PROMPTS, NEW_TOKENS = 8, 64
LONGEST_PERIOD, LOOPING_TOKENS = 16, 48
"""An answer loops if its last 48 tokens repeat a sequence of at most 16 tokens."""
WEIGHTS = "adapter_model.safetensors"


def examine(directory: RunDirectory, stop: StopRequest) -> None:
    """Write examination.json. A candidate that cannot be used is a finding there, not an error.

    Raises:
        UnusableInput: an input of the run is missing or changed, or a suite cannot be executed.
        Stopped: a stop was requested.
    """
    began = time.monotonic()
    disable_progress_bar()
    checked = check_run(directory)
    found: dict[str, Any] = {"format": 1, "run_id": checked.run_id}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = load_kept(
        checked.recipe.base, device, lambda _event, /, **_fields: None
    )  # its errors say nothing of the adapter
    try:
        verify_manifest(directory.adapter)
        found["manifest_sha256"] = sha256_file(directory.adapter / MANIFEST)
        weights = load_file(directory.adapter / WEIGHTS)
        found |= {"weights": _weights(weights, checked)}
        if not found["weights"]["not_finite"]:
            found |= _used(directory, checked, base, stop)
    except (RunDirectoryError, UnusableInput, SafetensorError) as error:
        found["failure"] = str(error)
    if "generation" in found and checked.recipe.evaluation.suites:
        found["suites"] = judge_suites(directory, checked, stop)
    write_json(directory.examination, found | {"seconds": round(time.monotonic() - began, 3)})


def _weights(weights: Mapping[str, torch.Tensor], checked: Checked) -> dict[str, Any]:
    """Count the tensors that are not finite, and those that differ from the start of the fit.

    Without a parent, the fit began with B = 0. An adapter whose B is still 0 has no effect.
    """
    if checked.parent is None:
        changed = {name: bool(tensor.any()) for name, tensor in weights.items() if "lora_B" in name}
    else:
        before = load_file(checked.parent / WEIGHTS)
        changed = {name: name not in before or not torch.equal(t, before[name]) for name, t in weights.items()}
    return {
        "tensors": len(changed),
        "changed": sum(changed.values()),
        "not_finite": [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())],
    }


def _used(directory: RunDirectory, checked: Checked, base: Any, stop: StopRequest) -> dict[str, Any]:
    """Load the adapter as a later run does, repeat a few measurements, and let it answer a few prompts."""
    recipe = checked.recipe
    adapted = add_adapter(base, recipe.lora, parent=directory.adapter, seed=checked.seed, moe=recipe.moe)
    adapted.eval()
    norms = relative_norms(adapted)
    largest = max(norms, key=lambda name: norms[name] if math.isfinite(norms[name]) else math.inf)
    tokenizer = load_tokenizer(recipe.base)
    judged = _judged_samples(directory, checked, tokenizer)
    generation = _generation(adapted, tokenizer, [sample for sample, _ in judged], stop)
    if answers := answer_prompts(adapted, tokenizer, recipe.tracking, stop):
        write_json(directory.answers, {"format": 1, "run_id": checked.run_id, "prompts": answers})
    return {
        "norm": {"largest": _finite(norms[largest]), "module": largest},
        "generation": generation,
        "measured_again": _measured_again(adapted, recipe.base, judged),
    }


def _judged_samples(
    directory: RunDirectory, checked: Checked, tokenizer: Any
) -> list[tuple[TokenSample, SampleEvaluation | None]]:
    """Return one sample of each of a few judged files, with what the run measured for it.

    The measurement is None where the file's samples cannot be told apart, or where the run did not write them.
    """
    lines: dict[tuple[int, int], list[SampleEvaluation]] = defaultdict(list)
    for line in read_evaluation(directory.evaluation):
        lines[line.file_ids[0], line.tokens].append(line)
    judged = list(dict.fromkeys(file_id for file_id, _ in lines))[:PROMPTS]
    rows = [row for row in read_rows(directory.held_out) if not judged or row.file_id in judged][:PROMPTS]
    data = replace(checked.recipe.data, rename_fraction=0.0)
    samples = tokenize_rows(rows, SampleEncoder(tokenizer), data, seed=checked.seed).samples
    first: dict[int, tuple[TokenSample, SampleEvaluation | None]] = {}
    for sample in samples:
        found = lines[sample.file_id, sample.supervised]
        first.setdefault(sample.file_id, (sample, found[0] if len(found) == 1 else None))
    return list(first.values())


@torch.no_grad()
def _measured_again(
    adapted: Any, base: Base, judged: Sequence[tuple[TokenSample, SampleEvaluation | None]]
) -> dict[str, Any]:
    """Return the largest difference between the losses now and those of the run, in nats per token.

    The run measured what it had in memory. This is what it wrote to the disk. None: a loss is not finite.
    """
    device = adapted.device
    model = LossModel(adapted, kernel=choose_kernel(base, device, compute_dtype(base, device)))
    differences = []
    for sample, line in judged:
        if line is not None:
            losses, _ = model.eval()(collate([sample]).to(device), by_sample=True)
            differences.append(abs(float(losses[0]) - line.loss["candidate"]) / line.tokens)
    finite = all(map(math.isfinite, differences))
    return {"samples": len(differences), "largest_difference": max(differences, default=0.0) if finite else None}


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


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
