"""Toy models: the true classes of real bases, with a few hundred thousand random weights.

    python -m trainer toy mixtral ~/toy-mixtral      then base.model: ~/toy-mixtral

They show on any machine whether a recipe works with its base's architecture. They have learned nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.utils.logging import disable_progress_bar

from trainer.errors import UnusableInput
from trainer.model.base import local_folder
from trainer.model.toy_tokenizers import llama_tokenizer, mixtral_tokenizer, tiny_tokenizer
from trainer.run_dir import new_folder

SEED = 0
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
"""All matrix sides are multiples of 64, the NF4 block size."""


@dataclass(frozen=True, kw_only=True)
class Toy:
    """How a toy of one architecture is made."""

    config: Callable[..., PreTrainedConfig]
    tokenizer: Callable[[], Any]
    shape: dict[str, Any]
    """What the architecture adds to SHAPE, or has instead."""


TOYS: dict[str, Toy] = {
    "qwen2": Toy(config=Qwen2Config, tokenizer=tiny_tokenizer, shape={"tie_word_embeddings": True}),
    "qwen3": Toy(config=Qwen3Config, tokenizer=tiny_tokenizer, shape={"tie_word_embeddings": True, "head_dim": 32}),
    "mixtral": Toy(
        config=MixtralConfig,
        tokenizer=mixtral_tokenizer,
        shape={
            "hidden_size": 64,
            "intermediate_size": 128,
            "head_dim": 32,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "sliding_window": None,
        },
    ),
    "llama": Toy(config=LlamaConfig, tokenizer=llama_tokenizer, shape={"rope_theta": 500_000.0}),
}
"""By architecture, which is the `model_type` of a base's config.json."""

KNOWN_BASES = {
    "Qwen/Qwen2.5-*": "qwen2",
    "Kwaipilot/KAT-Dev*": "qwen3",
    "mistralai/Mixtral-8x*": "mixtral",
    "meta-llama/Meta-Llama-3-*": "llama",
}
"""Architectures of Hub names, which are known without a network."""


def architecture_of(model: str) -> str:
    """Return the architecture of a base: a key of TOYS.

    Args:
        model: Hub name, folder, `tiny-qwen2`, or a key of TOYS

    Raises:
        UnusableInput: the base cannot be read, or there is no toy of its architecture.
    """
    folder = local_folder(model)
    found = next((name for pattern, name in KNOWN_BASES.items() if fnmatchcase(model, pattern)), None)
    if folder is None and found is not None:
        return found
    if folder is None and "/" not in model:
        return known_toy(model)
    try:
        found = AutoConfig.from_pretrained(str(folder or model), trust_remote_code=False).model_type
    except (OSError, ValueError, KeyError) as error:
        raise UnusableInput(f"base.model: the config of {model} cannot be read ({error})") from error
    return known_toy(str(found))


def known_toy(architecture: str) -> str:
    """Return the name. Raises UnusableInput if there is no toy of this architecture."""
    if architecture not in TOYS:
        raise UnusableInput(f"there is no toy of the architecture {architecture}. There are {', '.join(TOYS)}")
    return architecture


def make_toy(architecture: str, out: Path) -> int:
    """Write a toy model to a new folder: always the same weights. Returns the number of its parameters.

    Raises:
        UnusableInput: the architecture is unknown, or the folder exists.
    """
    toy = TOYS[known_toy(architecture)]
    if out.exists():
        raise UnusableInput(f"{out} exists already. Choose a new folder")
    tokenizer = toy.tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = toy.config(**(SHAPE | toy.shape | ends), vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    model = random_model(config)
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=tokenizer.pad_token_id, **ends)
    disable_progress_bar()
    with new_folder(out) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return sum(parameter.numel() for parameter in model.parameters())


def random_model(config: PreTrainedConfig) -> Any:
    """Create a model with seeded weights in bfloat16, as real bases are stored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
