"""Generates the candidate's answers to a few held-out prompts, for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch

from trainer.data.encoder import IGNORED, TokenSample
from trainer.model.attention import unpacked_attention
from trainer.stop import StopRequest
from trainer.track.prediction import Prediction

MAX_NEW_TOKENS = 128


@torch.no_grad()
def predict(
    adapted: Any, tokenizer: Any, samples: Sequence[TokenSample], *, step: int, pad: int, stop: StopRequest
) -> list[tuple[Prediction, int]]:
    """Generate greedy answers, each with its number of tokens. Leaves the model in evaluation mode.

    Args:
        step: the step whose weights the model has

    Raises:
        Stopped: a stop was requested meanwhile.
    """
    adapted.eval()
    with unpacked_attention(adapted.get_base_model()):
        return [_answer(adapted, tokenizer, sample, step, pad, stop) for sample in samples]


def _answer(
    adapted: Any, tokenizer: Any, sample: TokenSample, step: int, pad: int, stop: StopRequest
) -> tuple[Prediction, int]:
    stop.check()
    start = _prompt_tokens(sample)
    wanted = sample.labels[start:][sample.labels[start:] != IGNORED]
    prompt = sample.ids[:start].long()[None].to(adapted.device)
    output = adapted.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=min(MAX_NEW_TOKENS, len(wanted)),
        do_sample=False,
        use_cache=True,
        eos_token_id=[tokenizer.eos_token_id, pad],  # some families end documents with the padding token
        pad_token_id=pad,
    )[0, start:]
    prediction = Prediction(
        step=step,
        file_id=sample.file_id,
        prompt=tokenizer.decode(sample.ids[:start].tolist()),
        expected=tokenizer.decode(wanted.tolist(), skip_special_tokens=True),
        answer=tokenizer.decode(output.tolist(), skip_special_tokens=True),
    )
    return prediction, len(output)


@torch.no_grad()
def answer_all(
    adapted: Any, tokenizer: Any, samples: Sequence[TokenSample], *, pad: int, max_new_tokens: int
) -> list[list[int]]:
    """Generate greedy answers to the samples' prompts in one batch, padded on the left. Returns the answers' ids.

    The model is in evaluation mode, and its attention is transformers' own.
    """
    prompts = [sample.ids[: _prompt_tokens(sample)].long() for sample in samples]
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    ends = {tokenizer.eos_token_id, pad}
    output = adapted.generate(
        input_ids=ids.to(adapted.device),
        attention_mask=mask.to(adapted.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=[*ends],
        pad_token_id=pad,
    )
    return [list(takewhile(lambda token: token not in ends, row)) for row in output[:, longest:].tolist()]


def _prompt_tokens(sample: TokenSample) -> int:
    """Tokens before the first one with loss. If all tokens have loss, the first half."""
    start = int((sample.labels != IGNORED).nonzero()[0])
    return start if start > 1 else max(1, sample.tokens // 2)
