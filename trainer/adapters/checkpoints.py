"""Makes an adapter folder of a run's checkpoint, which has weights but no adapter_config.json."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from trainer.errors import UnusableInput
from trainer.model.lora import lora_config
from trainer.recipe_file import load_recipe, recipe_dict
from trainer.run_dir import RunDirectory, RunDirectoryError, verify_manifest, write_json

CHECKPOINT_WEIGHTS = "adapter.safetensors"


def as_adapter(folder: Path, scratch: Path) -> Path:
    """Return an adapter folder as it is, and for a checkpoint a new folder in its place.

    Args:
        folder: an adapter, or `checkpoints/step-…` of a run directory
        scratch: where the new folder goes

    Raises:
        UnusableInput: the checkpoint is damaged, or its run has no recipe.
    """
    if not (folder / CHECKPOINT_WEIGHTS).is_file():
        return folder
    try:
        verify_manifest(folder)
    except RunDirectoryError as error:
        raise UnusableInput(f"the checkpoint cannot be used: {error}. Its run may have gone on meanwhile") from error
    recipe = load_recipe(RunDirectory(folder.parent.parent).recipe)
    scratch.mkdir(parents=True)
    with safe_open(folder / CHECKPOINT_WEIGHTS, "pt") as weights:
        routers = sorted({name.split(".")[-2] for name in weights.keys() if ".lora_" not in name})  # noqa: SIM118
    lora_config(recipe.lora, routers=routers).save_pretrained(str(scratch))
    (scratch / "adapter_model.safetensors").symlink_to((folder / CHECKPOINT_WEIGHTS).resolve())
    write_json(scratch / "training_args.json", {"recipe": recipe_dict(recipe)})
    return scratch
