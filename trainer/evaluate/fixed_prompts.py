"""Answers the recipe's own prompts with the candidate and with the base alone, for people to compare over the runs."""

from __future__ import annotations

from typing import Any

import torch

from trainer.data.encoder import IGNORED, TokenSample, pad_id
from trainer.evaluate.predictions import answer_all
from trainer.recipe_tracking import Tracking
from trainer.samples.instruction import SYSTEM
from trainer.stop import StopRequest


def answer_prompts(adapted: Any, tokenizer: Any, tracking: Tracking, stop: StopRequest) -> list[dict[str, str]]:
    """Return each prompt with two greedy answers: `candidate` and `base`.

    A base with a chat template is asked as a chat. Any other continues the prompt. The model is in evaluation mode.

    Raises:
        Stopped: a stop was requested meanwhile.
    """
    if not tracking.prompts:
        return []
    samples = [_asked(tokenizer, prompt) for prompt in tracking.prompts]

    def answers() -> list[str]:
        stop.check()
        found = answer_all(adapted, tokenizer, samples, pad=pad_id(tokenizer), max_new_tokens=tracking.prompt_tokens)
        return [tokenizer.decode(ids, skip_special_tokens=True) for ids in found]

    candidate = answers()
    with adapted.disable_adapter():
        base = answers()
    return [
        {"prompt": prompt, "candidate": first, "base": second}
        for prompt, first, second in zip(tracking.prompts, candidate, base, strict=True)
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
