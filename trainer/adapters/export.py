"""Exports the candidate to a folder that PEFT, vLLM and the next run can load."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from trainer.model.base import source_of
from trainer.model.lora import adapter_weights
from trainer.recipe import Recipe
from trainer.recipe_file import recipe_dict
from trainer.run_dir import new_folder, sha256_file, write_json, write_manifest


def export_adapter(
    folder: Path,
    adapted: Any,
    tokenizer: Any,
    recipe: Recipe,
    *,
    facts: dict[str, Any],
    weights: dict[str, torch.Tensor] | None = None,
) -> str:
    """Write the adapter folder atomically. Returns the sha256 of its manifest.

    Args:
        facts: further entries of training_args.json, besides the recipe.
        weights: the adapter's, gathered from all ranks. None: this process has them
    """
    config = copy.copy(adapted.peft_config["default"])
    config.base_model_name_or_path, config.revision = source_of(recipe.base)
    config.target_modules = sorted(recipe.lora.targets)  # PEFT uses a set, whose order is not stable
    config.inference_mode = True
    with new_folder(folder) as temporary:
        config.save_pretrained(str(temporary))
        save_file(
            weights or adapter_weights(adapted), temporary / "adapter_model.safetensors", metadata={"format": "pt"}
        )
        tokenizer.save_pretrained(str(temporary))
        write_json(temporary / "training_args.json", {"recipe": recipe_dict(recipe), **facts})
        write_manifest(temporary)
    return sha256_file(folder / "MANIFEST.json")
