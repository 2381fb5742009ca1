"""Resolves the base model by name, and checks that the recipe fits it."""

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
from trainer.recipe import TINY_BASE, Base, Lora, Recipe, pinned
from trainer.run_dir import MANIFEST, RunDirectoryError, read_json, sha256_file, verify_manifest

TINY_FOLDER = Path(__file__).parent / "tiny"
NF4_BLOCK = 64
"""Weights per scale in NF4. A matrix must be a whole number of blocks."""


@dataclass(frozen=True, kw_only=True)
class ResolvedBase:
    """A resolved base model."""

    model: str
    """Hub name, absolute folder or `tiny-qwen2`, as stored in the recipe."""
    revision: str
    """Commit of the Hub repository, or hash of the folder's content."""
    parameters: int


def prepare_base(recipe: Recipe) -> ResolvedBase:
    """Resolve the recipe's base, and check by its config that the recipe fits it.

    Raises:
        UnusableInput: the model does not exist, its config cannot be loaded, it lacks a LoRA target, or its matrices
            cannot be quantized.
    """
    model, revision = resolve(recipe.base)
    skeleton = load_skeleton(model, revision)
    check_targets(skeleton, recipe.lora)
    if recipe.base.quantization == "nf4":
        check_quantizable(skeleton)
    return ResolvedBase(model=model, revision=revision, parameters=sum(p.numel() for p in skeleton.parameters()))


def resolve(base: Base) -> tuple[str, str]:
    """Return a base's name and revision. A pinned revision must match the actual one."""
    folder = local_folder(base.model)
    if folder is None:
        return base.model, _hub_commit(base.model, base.revision)
    revision = folder_revision(folder)
    if base.revision is not None and base.revision != revision:
        raise UnusableInput(
            f"base.revision: {base.model} is pinned to {base.revision}, but the folder's content is now {revision}. "
            "Restore the old files, or start a new stream"
        )
    return (TINY_BASE if base.model == TINY_BASE else str(folder)), revision


def resolve_for(recipe: Recipe, adapter: Path | None) -> Recipe:
    """Pin a recipe's base for an adapter: to the revision that the adapter was trained on, else the recipe's.

    Raises:
        UnusableInput: the folder does not match its manifest, or the adapter was trained on another base.
    """
    revision = None if adapter is None else check_base_of(adapter, recipe)
    if recipe.base.revision is None and revision is not None:
        recipe = pinned(recipe, model=recipe.base.model, revision=revision)
    model, commit = resolve(recipe.base)
    return pinned(recipe, model=model, revision=commit)


def check_base_of(adapter: Path, recipe: Recipe) -> str | None:
    """Return the revision of the recipe's base that an adapter was trained on, or None if its folder does not say.

    Raises:
        UnusableInput: the folder does not match its manifest, or the adapter was trained on another base.
    """
    if (adapter / MANIFEST).is_file():
        try:
            verify_manifest(adapter)
        except RunDirectoryError as error:
            raise UnusableInput(f"{error}. Restore the folder from a backup") from error
    model, revision = _trained_on(adapter)
    if model is not None and model != recipe.base.model and not _moved(model, recipe.base.model):
        raise UnusableInput(
            f"{adapter} was trained on {model}, but the recipe {recipe.name} has {recipe.base.model}. "
            "Use the recipe with which it was trained (--recipe)"
        )
    return revision


def _trained_on(adapter: Path) -> tuple[str | None, str | None]:
    """The base and its revision in the folder's training_args.json, if there is one."""
    try:
        base = read_json(adapter / "training_args.json")["recipe"]["base"]
        return str(base["model"]), None if base["revision"] is None else str(base["revision"])
    except (OSError, ValueError, KeyError, TypeError):  # an adapter of another trainer
        return None, None


def _moved(before: str, now: str) -> bool:
    """Whether two names are folders. A folder may have moved; its revision says whether it is the same base."""
    return local_folder(now) is not None and Path(before).is_absolute()


def local_folder(model: str) -> Path | None:
    """Return the folder of a base's name, or None for a Hub name."""
    if model == TINY_BASE:
        return TINY_FOLDER
    try:
        path = Path(model).expanduser()
        if path.is_dir():
            return path.resolve()
    except (OSError, RuntimeError) as error:  # a name that is too long, or ~name of an unknown user
        raise UnusableInput(f"base.model: {model[:200]} is not a usable name ({error})") from error
    if model.startswith(("/", "./", "../", "~")):
        raise UnusableInput(f"base.model: the folder {model} does not exist")
    return None


def folder_revision(folder: Path) -> str:
    """Hash the names and contents of all files below a folder. 40 hex digits, as in a commit."""
    digest = hashlib.sha256()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path, folder)]
    if not any(path.name == "config.json" for path in files):
        raise UnusableInput(f"base.model: {folder} has no config.json")
    for path in files:
        digest.update(f"{path.relative_to(folder)}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()[:40]


def source_of(base: Base) -> tuple[str, str | None]:
    """Return the arguments of `from_pretrained`: a folder without revision, or a Hub name and its commit."""
    folder = local_folder(base.model)
    return (base.model, base.revision) if folder is None else (str(folder), None)


def load_skeleton(model: str, revision: str) -> Any:
    """Build the architecture without weights, on the meta device."""
    source, commit = source_of(Base(model=model, revision=revision))
    try:
        config = AutoConfig.from_pretrained(source, revision=commit, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UnusableInput(f"base.model: {model} cannot be loaded as a causal language model ({error})") from error


def linear_layers(model: Any) -> dict[str, torch.nn.Linear]:
    """Return the linear layers by full name, without the output head."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def check_targets(model: Any, lora: Lora) -> None:
    """Raises UnusableInput if a LoRA target is not a linear layer. The message lists the layers."""
    there = {name.rpartition(".")[2] for name in linear_layers(model)}
    if missing := [target for target in lora.targets if target not in there]:
        raise UnusableInput(
            f"lora.targets: {', '.join(missing)} occurs nowhere in {type(model).__name__}. "
            f"Its linear layers are {', '.join(sorted(there))}"
        )


def check_quantizable(model: Any) -> None:
    """Raises UnusableInput if a matrix is not a whole number of NF4 blocks."""
    for name, layer in linear_layers(model).items():
        if layer.weight.numel() % NF4_BLOCK:
            raise UnusableInput(
                f"base.quantization: {name} has {layer.weight.numel()} weights, which is not a multiple of "
                f"{NF4_BLOCK}. Use quantization: none for this base"
            )


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)


def _hub_commit(model: str, revision: str | None) -> str:
    """Return a Hub repository's commit: from the Hub, or from the local cache if the Hub is unreachable."""
    try:
        commit = HfApi().model_info(model, revision=revision).sha
        assert commit is not None
        return commit
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError, ValueError) as error:
        message = " ".join(str(error).split())
        raise UnusableInput(
            f"base.model: {model} (revision {revision or 'main'}) is neither available on the Hub nor a local folder: "
            f"{message}. Check the name. A gated model needs HF_TOKEN"
        ) from error
    except (HfHubHTTPError, HTTPError, OSError, ImportError) as error:  # ImportError: a SOCKS proxy
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent.name
        raise UnusableInput(
            f"base.model: {model} is not in the local cache, and the Hub cannot be reached ({error}). "
            "Go online once, or name a folder that holds the model"
        ) from error
