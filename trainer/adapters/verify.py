"""Checks a written model: its logits against those before it was written, and an answer from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.data.encoder import pad_id

TEXTS = (
    "import os\n\n\ndef find(path):\n    for name in os.listdir(path):\n",
    "Explain what a mutex is, and write an example in Rust.",
    "pub mod routes;\n\n/// Starts the server.\npub async fn start(",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
)
NEW_TOKENS = 24
TOLERANCE = 0.05
"""Largest difference, as a share of the logits' spread. Rounding to 16 bits in each layer stays below it."""


@dataclass(frozen=True, kw_only=True)
class LogitsCheck:
    """How far the logits of two models are apart. Each is a root mean square over all tokens and words."""

    difference: float
    """Difference of the two models, as a share of the logits' standard deviation."""
    effect: float
    """The same for the base with and without the adapter."""
    from_base: float
    """The same for the second model and the base alone. A merge that did nothing has 0."""
    tokens: int
    top_1: float
    """Share of the tokens with the same likeliest next word."""

    @property
    def same(self) -> bool:
        """Whether the difference is within the tolerance, and smaller than the distance from the base alone."""
        return self.difference <= TOLERANCE and (self.difference < self.from_base or self.effect == 0)

    def text(self) -> str:
        """Return one line for people."""
        return (
            f"logits differ by {100 * self.difference:.2f} % of their spread over {self.tokens} tokens (limit "
            f"{100 * TOLERANCE:g} %; the adapter itself changes them by {100 * self.effect:.2f} %), "
            f"the base alone is {100 * self.from_base:.2f} % away; same likeliest word for {100 * self.top_1:.1f} %"
        )


def verification_prompts(tokenizer: Any) -> list[list[int]]:
    """Return the ids of a few prompts, of which one is a chat if the tokenizer has a template."""
    prompts = [list(tokenizer.encode(text)) for text in TEXTS]
    if tokenizer.chat_template:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": TEXTS[1]}], tokenize=False, add_generation_prompt=True
        )
        prompts[1] = list(tokenizer.encode(chat, add_special_tokens=False))
    return prompts


@torch.inference_mode()
def logits_of(model: Any, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return the logits of each prompt: float32 [tokens, words] on the CPU."""
    return [model(input_ids=torch.tensor([list(ids)], device=model.device)).logits[0].float().cpu() for ids in prompts]


def compare_logits(
    before: Sequence[torch.Tensor], after: Sequence[torch.Tensor], base: Sequence[torch.Tensor]
) -> LogitsCheck:
    """Compare logits of the same prompts."""
    first, second, third = torch.cat(list(before)), torch.cat(list(after)), torch.cat(list(base))
    spread = first.std()
    return LogitsCheck(
        difference=float((first - second).square().mean().sqrt() / spread),
        effect=float((first - third).square().mean().sqrt() / spread),
        from_base=float((second - third).square().mean().sqrt() / spread),
        tokens=len(first),
        top_1=float((first.argmax(-1) == second.argmax(-1)).float().mean()),
    )


def differing(model: Any, digests: Mapping[str, str]) -> list[str]:
    """Return the names of the tensors that differ from `tensor_digests` of another model."""
    found = tensor_digests(model)
    return sorted(name for name in digests.keys() | found.keys() if digests.get(name) != found.get(name))


def tensor_digests(model: Any) -> dict[str, str]:
    """Return the sha256 of each tensor's bytes, by name."""
    return {
        name: hashlib.sha256(tensor.detach().cpu().contiguous().view(torch.uint8).numpy()).hexdigest()
        for name, tensor in model.state_dict().items()
    }


@torch.inference_mode()
def answer_from(model: Any, tokenizer: Any, prompt: Sequence[int]) -> str:
    """Return a greedy continuation of a prompt.

    Raises:
        RuntimeError: the model does not generate.
    """
    ids = torch.tensor([list(prompt)], device=model.device)
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False,
        use_cache=True, pad_token_id=pad_id(tokenizer),
    )  # fmt: skip
    return str(tokenizer.decode(output[0, len(prompt) :].tolist(), skip_special_tokens=True))
