"""Loads a base's architecture without weights: from its folder, the local cache or the Hub, else from known shapes.

Some public shapes (config.json on the Hub) are stored here, so that a machine without a network can plan, too. They are
used only when the Hub cannot be reached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from httpx2 import HTTPError
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, Qwen2Config, Qwen3Config

from trainer.errors import UnusableInput
from trainer.model.base import load_skeleton, local_folder
from trainer.recipe import Base

HUB_SECONDS = 5.0
_COLUMNS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
            "vocab_size", "tie_word_embeddings")  # fmt: skip
Shape = tuple[int, int, int, int, int, int, bool]
QWEN_SHAPES: dict[str, Shape] = {
    "0.5B": (896, 24, 14, 2, 4864, 151_936, True),
    "1.5B": (1536, 28, 12, 2, 8960, 151_936, True),
    "3B": (2048, 36, 16, 2, 11_008, 151_936, True),
    "7B": (3584, 28, 28, 4, 18_944, 152_064, False),
    "14B": (5120, 48, 40, 8, 13_824, 152_064, False),
    "32B": (5120, 64, 40, 8, 27_648, 152_064, False),
}
"""Qwen2.5 by size: the columns above."""
OTHER_SHAPES: dict[str, tuple[Callable[..., Any], Shape, dict[str, Any]]] = {
    "Meta-Llama-3-8B": (LlamaConfig, (4096, 32, 32, 8, 14_336, 128_256, False), {}),
    "KAT-Dev": (Qwen3Config, (5120, 64, 64, 8, 25_600, 151_936, False), {"head_dim": 128}),
    "Mixtral-8x7B": (MixtralConfig, (4096, 32, 32, 8, 14_336, 32_000, False), {"sliding_window": None}),
    "Mixtral-8x22B": (MixtralConfig, (6144, 56, 48, 8, 16_384, 32_000, False), {"sliding_window": None}),
    "Mixtral-8x22B-Instruct": (MixtralConfig, (6144, 56, 48, 8, 16_384, 32_768, False), {"sliding_window": None}),
}
"""Class of the config, its columns, and what else differs from the class's defaults. KAT-Dev is a Qwen3 32B. Both
Mixtrals have 8 experts, of which a token uses 2."""
OTHER_NAMES = {
    "meta-llama/Meta-Llama-3-8B": "Meta-Llama-3-8B",
    "meta-llama/Meta-Llama-3-8B-Instruct": "Meta-Llama-3-8B",
    "Kwaipilot/KAT-Dev": "KAT-Dev",
    "mistralai/Mixtral-8x7B-v0.1": "Mixtral-8x7B",
    "mistralai/Mixtral-8x7B-Instruct-v0.1": "Mixtral-8x7B",
    "mistralai/Mixtral-8x22B-v0.1": "Mixtral-8x22B",
    "mistralai/Mixtral-8x22B-Instruct-v0.1": "Mixtral-8x22B-Instruct",
}
"""Hub names of the shapes above."""


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
        if (shape := known_shape(base.model)) is None:
            raise UnusableInput(
                f"base.model: the Hub cannot be reached ({error}), and the shape of {base.model} is unknown. "
                f"Known shapes: Qwen/Qwen2.5-[Coder-]SIZE[-Instruct] with SIZE in {', '.join(QWEN_SHAPES)}; "
                f"{', '.join(OTHER_NAMES)}"
            ) from error
        name = f"Qwen2.5 {shape}" if shape in QWEN_SHAPES else shape
        return known_architecture(shape), f"the stored shape of {name} (the Hub cannot be reached)"
    return load_skeleton(base.model, base.revision or "main"), "the Hub"


def known_shape(model: str) -> str | None:
    """Return the key of a Hub name's shape in QWEN_SHAPES or OTHER_SHAPES, if it is known."""
    owner, _, name = model.partition("/")
    size = name.removeprefix("Qwen2.5-").removeprefix("Coder-").removesuffix("-Instruct")
    if owner == "Qwen" and name.startswith("Qwen2.5-") and size in QWEN_SHAPES:
        return size
    return OTHER_NAMES.get(model)


def known_architecture(shape: str) -> Any:
    """Return the model of a known shape, on the meta device."""
    config: Callable[..., Any]
    config, columns, more = OTHER_SHAPES[shape] if shape in OTHER_SHAPES else (Qwen2Config, QWEN_SHAPES[shape], {})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config(**dict(zip(_COLUMNS, columns, strict=True)), **more))
