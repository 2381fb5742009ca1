"""Loads a base's architecture without weights: from its folder, the local cache or the Hub, else from known shapes.

The shapes of Qwen2.5 and Qwen2.5-Coder are public (config.json on the Hub) and stored here, so that a
machine without a network can plan, too. They are used only when the Hub cannot be reached.
"""

from __future__ import annotations

from typing import Any

import torch
from httpx2 import HTTPError
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from transformers import AutoModelForCausalLM, Qwen2Config

from trainer.errors import UnusableInput
from trainer.model.base import load_skeleton, local_folder
from trainer.recipe import Base

HUB_SECONDS = 5.0
_COLUMNS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
            "vocab_size", "tie_word_embeddings")  # fmt: skip
QWEN_SHAPES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "0.5B": (896, 24, 14, 2, 4864, 151_936, True),
    "1.5B": (1536, 28, 12, 2, 8960, 151_936, True),
    "3B": (2048, 36, 16, 2, 11_008, 151_936, True),
    "7B": (3584, 28, 28, 4, 18_944, 152_064, False),
    "14B": (5120, 48, 40, 8, 13_824, 152_064, False),
    "32B": (5120, 64, 40, 8, 27_648, 152_064, False),
}
"""Qwen2.5 by size: the columns above."""


def architecture(base: Base) -> tuple[Any, str]:
    """Return a base's model on the meta device, and a description of its config's origin.

    Raises:
        UnusableInput: the base does not exist, or the Hub is unreachable and the shape is unknown.
    """
    if (folder := local_folder(base.model)) is not None:
        return load_skeleton(base.model, base.revision or ""), str(folder)
    try:
        cached = try_to_load_from_cache(base.model, "config.json", revision=base.revision)
    except HFValidationError as error:
        raise UnusableInput(f"base.model: {base.model} is neither a folder nor a Hub name (owner/name)") from error
    if isinstance(cached, str):
        return load_skeleton(base.model, base.revision or "main"), "the local cache"
    try:
        HfApi().model_info(base.model, revision=base.revision, timeout=HUB_SECONDS)
    except RepositoryNotFoundError as error:
        raise UnusableInput(f"base.model: {base.model} is neither on the Hub nor a local folder") from error
    except (HfHubHTTPError, HTTPError, OSError, ImportError) as error:  # ImportError: a SOCKS proxy
        if (size := known_size(base.model)) is None:
            raise UnusableInput(
                f"base.model: the Hub cannot be reached ({error}), and the shape of {base.model} is unknown. "
                f"Known shapes: Qwen/Qwen2.5-[Coder-]SIZE[-Instruct] with SIZE in {', '.join(QWEN_SHAPES)}"
            ) from error
        return known_architecture(size), f"the stored shape of Qwen2.5 {size} (the Hub cannot be reached)"
    return load_skeleton(base.model, base.revision or "main"), "the Hub"


def known_size(model: str) -> str | None:
    """Return the size in a Hub name of Qwen2.5 or Qwen2.5-Coder, if its shape is known."""
    owner, _, name = model.partition("/")
    size = name.removeprefix("Qwen2.5-").removeprefix("Coder-").removesuffix("-Instruct")
    return size if owner == "Qwen" and name.startswith("Qwen2.5-") and size in QWEN_SHAPES else None


def known_architecture(size: str) -> Any:
    """Qwen2.5 of a size, on the meta device."""
    config = Qwen2Config(**dict(zip(_COLUMNS, QWEN_SHAPES[size], strict=True)))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
