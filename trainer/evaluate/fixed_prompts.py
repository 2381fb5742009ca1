"""Answers the recipe's own prompts with the candidate and with the base alone, for people to compare over the runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trainer.data.encoder import IGNORED, TokenSample
from trainer.recipe_tracking import Tracking
from trainer.samples.instruction import SYSTEM


def prompt_samples(tokenizer: Any, tracking: Tracking) -> list[TokenSample]:
    """Return the prompts' tokens. A base with a chat template is asked as a chat. Any other continues the prompt."""
    return [_asked(tokenizer, prompt) for prompt in tracking.prompts]


def answer_records(
    tokenizer: Any, tracking: Tracking, candidate: Sequence[list[int]], base: Sequence[list[int]]
) -> list[dict[str, str]]:
    """Return each prompt with two answers, given as ids: `candidate` and `base`."""
    texts = ([tokenizer.decode(ids, skip_special_tokens=True) for ids in answers] for answers in (candidate, base))
    return [
        {"prompt": prompt, "candidate": first, "base": second}
        for prompt, first, second in zip(tracking.prompts, *texts, strict=True)
    ]


def _asked(tokenizer: Any, prompt: str) -> TokenSample:
    """Return the prompt's tokens, followed by one with loss: that is where the answer begins."""
    text = prompt
    if tokenizer.chat_template:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"]
    ids = ids or [tokenizer.eos_token_id]
    labels = torch.tensor([*[IGNORED] * len(ids), 0], dtype=torch.int32)
    return TokenSample(file_id=0, ids=torch.tensor([*ids, 0], dtype=torch.int32), labels=labels, supervised=1)
