"""Generates the candidate's answers to a few held-out prompts, for people to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch

from trainer.data.encoder import IGNORED, TokenSample
from trainer.model.attention import unpacked_attention
from trainer.stop import StopRequest
from trainer.track.prediction import Prediction

MAX_NEW_TOKENS = 128


def predict(
    adapted: Any,
    tokenizer: Any,
    samples: Sequence[TokenSample],
    *,
    step: int,
    pad: int,
    stop: StopRequest,
    budget: int,
) -> list[tuple[Prediction, int]]:
    """Generate greedy answers, each with its number of tokens. Leaves the model in evaluation mode.

    Args:
        step: the step whose weights the model has
        budget: most tokens of a batch, padding and answers included. A longer sample has a batch of its own

    Raises:
        Stopped: a stop was requested meanwhile.
    """
    adapted.eval()
    answers: list[list[int]] = []
    with unpacked_attention(adapted.get_base_model()):
        for batch in _batches(samples, budget):
            stop.check()
            limits = [_limit(sample) for sample in batch]
            found = _generate(adapted, tokenizer, batch, pad=pad, max_new_tokens=max(limits))
            answers += [_to_end(ids[:limit], _ends(tokenizer, pad)) for ids, limit in zip(found, limits, strict=True)]
    return [
        (_prediction(tokenizer, sample, answer, step), len(answer))
        for sample, answer in zip(samples, answers, strict=True)
    ]


def answer_all(
    adapted: Any, tokenizer: Any, samples: Sequence[TokenSample], *, pad: int, max_new_tokens: int
) -> list[list[int]]:
    """Generate greedy answers to the samples' prompts in one batch. Returns the answers' ids, without the end.

    The model is in evaluation mode, and its attention is transformers' own.
    """
    ends = _ends(tokenizer, pad)
    found = _generate(adapted, tokenizer, samples, pad=pad, max_new_tokens=max_new_tokens)
    return [list(takewhile(lambda token: token not in ends, row)) for row in found]


@torch.no_grad()
def _generate(
    adapted: Any, tokenizer: Any, samples: Sequence[TokenSample], *, pad: int, max_new_tokens: int
) -> list[list[int]]:
    """Generate greedy answers in one batch, padded on the left. Returns what follows the prompts, padding included."""
    prompts = [sample.ids[: _prompt_tokens(sample)].long() for sample in samples]
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    output = adapted.generate(
        input_ids=ids.to(adapted.device),
        attention_mask=mask.to(adapted.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=[*_ends(tokenizer, pad)],
        pad_token_id=pad,
    )
    found: list[list[int]] = output[:, longest:].tolist()
    return found


def _batches(samples: Sequence[TokenSample], budget: int) -> Iterator[list[TokenSample]]:
    """Divide the samples, in their order, into batches within the budget."""
    batch: list[TokenSample] = []
    for sample in samples:
        grown = [*batch, sample]
        longest = max(map(_prompt_tokens, grown)) + max(map(_limit, grown))
        if batch and len(grown) * longest > budget:
            yield batch
            grown = [sample]
        batch = grown
    if batch:
        yield batch


def _limit(sample: TokenSample) -> int:
    """The most tokens of a sample's answer."""
    return min(MAX_NEW_TOKENS, len(_wanted(sample)))


def _wanted(sample: TokenSample) -> torch.Tensor:
    """The sample's own answer."""
    labels = sample.labels[_prompt_tokens(sample) :]
    return labels[labels != IGNORED]


def _ends(tokenizer: Any, pad: int) -> set[int]:
    """The tokens that end an answer. Some families end documents with the padding token."""
    return {tokenizer.eos_token_id, pad}


def _to_end(ids: list[int], ends: set[int]) -> list[int]:
    """Return the ids up to the first end, which is included."""
    return ids[: next((at + 1 for at, token in enumerate(ids) if token in ends), len(ids))]


def _prediction(tokenizer: Any, sample: TokenSample, answer: list[int], step: int) -> Prediction:
    return Prediction(
        step=step,
        file_id=sample.file_id,
        prompt=tokenizer.decode(sample.ids[: _prompt_tokens(sample)].tolist()),
        expected=tokenizer.decode(_wanted(sample).tolist(), skip_special_tokens=True),
        answer=tokenizer.decode(answer, skip_special_tokens=True),
    )


def _prompt_tokens(sample: TokenSample) -> int:
    """Tokens before the first one with loss. If all tokens have loss, the first half."""
    start = int((sample.labels != IGNORED).nonzero()[0])
    return start if start > 1 else max(1, sample.tokens // 2)
