"""The base model by name: which files it is, whether the recipe fits it, and how it is written down."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from httpx2 import HTTPError
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.errors import UnusableInput
from trainer.recipe import TINY_BASE, Base, Lora, Recipe
from trainer.run_dir import sha256_file

TINY_FOLDER = Path(__file__).parent / "tiny"
NF4_BLOCK = 64
"""Weights that share one scale in NF4: a matrix needs a whole number of such blocks."""


@dataclass(frozen=True, kw_only=True)
class ResolvedBase:
    """A base that was found."""

    model: str
    """Hub name, absolute folder or `tiny-qwen2`: what the recipe keeps."""
    revision: str
    """Commit of the Hub repository, or a hash of the folder's content."""
    parameters: int


def prepare_base(recipe: Recipe) -> ResolvedBase:
    """Find the base of a recipe, and check from its config alone that the recipe fits it.

    Raises:
        UnusableInput: there is no such model, its config cannot be loaded, a LoRA target does not occur in it, or
            its matrices cannot be quantized.
    """
    model, revision = resolve(recipe.base)
    skeleton = load_skeleton(model, revision)
    check_targets(skeleton, recipe.lora)
    if recipe.base.quantization == "nf4":
        check_quantizable(skeleton)
    return ResolvedBase(model=model, revision=revision, parameters=sum(p.numel() for p in skeleton.parameters()))


def resolve(base: Base) -> tuple[str, str]:
    """Name and revision of a base. A revision that the recipe pins must be the one that is there."""
    folder = local_folder(base.model)
    if folder is None:
        return base.model, _hub_commit(base.model, base.revision)
    revision = folder_revision(folder)
    if base.revision is not None and base.revision != revision:
        raise UnusableInput(
            f"base.revision: {base.model} is pinned to {base.revision}, and the folder's content is now {revision}. "
            "Put the old files back, or start a new stream"
        )
    return (TINY_BASE if base.model == TINY_BASE else str(folder)), revision


def local_folder(model: str) -> Path | None:
    """The folder that a base's name means, or None for a Hub name."""
    if model == TINY_BASE:
        return TINY_FOLDER
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if model.startswith(("/", "./", "../", "~")):
        raise UnusableInput(f"base.model: the folder {model} does not exist")
    return None


def folder_revision(folder: Path) -> str:
    """A hash of every file below a folder: names and content. 40 hex digits, as a commit has."""
    digest = hashlib.sha256()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path, folder)]
    if not any(path.name == "config.json" for path in files):
        raise UnusableInput(f"base.model: {folder} has no config.json")
    for path in files:
        digest.update(f"{path.relative_to(folder)}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()[:40]


def source_of(base: Base) -> tuple[str, str | None]:
    """What `from_pretrained` takes: a folder and no revision, or a Hub name and its commit."""
    folder = local_folder(base.model)
    return (base.model, base.revision) if folder is None else (str(folder), None)


def load_skeleton(model: str, revision: str) -> Any:
    """The architecture without weights, on the meta device."""
    source, commit = source_of(Base(model=model, revision=revision))
    try:
        config = AutoConfig.from_pretrained(source, revision=commit, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UnusableInput(f"base.model: {model} is no causal language model that can be loaded ({error})") from error


def linear_layers(model: Any) -> dict[str, torch.nn.Linear]:
    """Linear layers of a model by full name, without the output head."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def check_targets(model: Any, lora: Lora) -> None:
    """Raises UnusableInput for a LoRA target that names no linear layer, with the names that there are."""
    there = {name.rpartition(".")[2] for name in linear_layers(model)}
    if missing := [target for target in lora.targets if target not in there]:
        raise UnusableInput(
            f"lora.targets: {', '.join(missing)} occurs nowhere in {type(model).__name__}; "
            f"its linear layers are {', '.join(sorted(there))}"
        )


def check_quantizable(model: Any) -> None:
    """Raises UnusableInput for a matrix that NF4 cannot hold in whole blocks."""
    for name, layer in linear_layers(model).items():
        if layer.weight.numel() % NF4_BLOCK:
            raise UnusableInput(
                f"base.quantization: {name} has {layer.weight.numel()} weights, which is not a multiple of "
                f"{NF4_BLOCK}; use quantization: none for this base"
            )


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)


def _hub_commit(model: str, revision: str | None) -> str:
    """The commit of a Hub repository: asked of the Hub, or read from the local cache when it cannot be reached."""
    try:
        commit = HfApi().model_info(model, revision=revision).sha
        assert commit is not None
        return commit
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError, ValueError) as error:
        message = " ".join(str(error).split())
        raise UnusableInput(
            f"base.model: {model} (revision {revision or 'main'}) is not to be had from the Hub, nor a folder here: "
            f"{message}. Check the name; a gated model needs HF_TOKEN"
        ) from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent.name
        raise UnusableInput(
            f"base.model: {model} is not in the local cache and the Hub cannot be reached ({error}). "
            "Go online once, or name a folder that holds the model"
        ) from error
