"""Model families: control tokens by role, detected by the tokenizer's vocabulary. (no torch)"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from trainer.samples.sample import Role

PREFIX_FIRST: tuple[Role, ...] = ("fim_prefix", "fim_suffix", "fim_middle")
SUFFIX_FIRST: tuple[Role, ...] = ("fim_suffix", "fim_prefix", "fim_middle")


@dataclass(frozen=True, kw_only=True)
class Family:
    """Control tokens that a model family was pre-trained with."""

    tokens: Mapping[Role, str | None]
    """Token by role. None: the family uses no token for this role. A missing role is not supported."""
    fim_order: tuple[Role, ...] = PREFIX_FIRST
    """Order of the parts of a fill-in-the-middle sample."""


FAMILIES: dict[str, Family] = {
    "qwen": Family(
        tokens={
            "fim_prefix": "<|fim_prefix|>",
            "fim_suffix": "<|fim_suffix|>",
            "fim_middle": "<|fim_middle|>",
            "fim_end": "<|endoftext|>",
            "repo_name": "<|repo_name|>",
            "file_sep": "<|file_sep|>",
            "end": "<|endoftext|>",
        }
    ),
    "codegemma": Family(
        tokens={
            "fim_prefix": "<|fim_prefix|>",
            "fim_suffix": "<|fim_suffix|>",
            "fim_middle": "<|fim_middle|>",
            "fim_end": "<|file_separator|>",
            "file_sep": "<|file_separator|>",
            "end": "<eos>",
        }
    ),
    "starcoder2": Family(
        tokens={
            "fim_prefix": "<fim_prefix>",
            "fim_suffix": "<fim_suffix>",
            "fim_middle": "<fim_middle>",
            "fim_end": "<|endoftext|>",
            "repo_name": "<repo_name>",
            "file_sep": "<file_sep>",
            "end": "<|endoftext|>",
        }
    ),
    "starcoder": Family(
        tokens={
            "fim_prefix": "<fim_prefix>",
            "fim_suffix": "<fim_suffix>",
            "fim_middle": "<fim_middle>",
            "fim_end": "<|endoftext|>",
            "repo_name": "<reponame>",
            "end": "<|endoftext|>",
        }
    ),
    "codellama": Family(
        tokens={
            "fim_prefix": "▁<PRE>",
            "fim_suffix": "▁<SUF>",
            "fim_middle": "▁<MID>",
            "fim_end": "▁<EOT>",
            "end": "</s>",
        }
    ),
    "deepseek": Family(
        tokens={
            "fim_prefix": "<｜fim▁begin｜>",
            "fim_suffix": "<｜fim▁hole｜>",
            "fim_middle": "<｜fim▁end｜>",
            "fim_end": "<｜end▁of▁sentence｜>",
            "end": "<｜end▁of▁sentence｜>",
        }
    ),
    "codestral": Family(
        tokens={
            "fim_prefix": "[PREFIX]",
            "fim_suffix": "[SUFFIX]",
            "fim_middle": None,
            "fim_end": "</s>",
            "end": "</s>",
        },
        fim_order=SUFFIX_FIRST,
    ),
    "llama3": Family(tokens={"end": "<|end_of_text|>"}),
}
"""By name. The first family whose tokens are all in the vocabulary is chosen."""


def family_of(vocabulary: Collection[str], *, end_token: str | None) -> Family:
    """Return the family of a vocabulary. The fallback only has the tokenizer's own end token."""
    for family in FAMILIES.values():
        if all(token is None or token in vocabulary for token in family.tokens.values()):
            return family
    return Family(tokens={"end": end_token} if end_token else {})
