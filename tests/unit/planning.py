"""Models whose bytes are counted: the tiny base and a wider one with random weights."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from run_folder import embedded
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, Qwen2Config, Qwen3Config

from trainer.model.batch import Batch
from trainer.model.checkpointing import checkpoint_layers
from trainer.model.fused import fuse
from trainer.model.load import load_base
from trainer.model.lora import add_adapter
from trainer.model.shapes import architecture
from trainer.model.step import LossModel
from trainer.plan.memory import Choice
from trainer.plan.model import Model, read_model
from trainer.plan.static import Sizes, sizes_of
from trainer.recipe import Recipe

ELEMENT = {"float32": 4, "bfloat16": 2}


def make_wide(folder: Path) -> Path:
    """Make a model that is wider than deep, as real ones are, with a separate head and random weights."""
    config = Qwen2Config(
        hidden_size=384, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, intermediate_size=1024,
        vocab_size=8192, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


SMALL = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 256, "vocab_size": 4096, "tie_word_embeddings": False,
}  # fmt: skip
ARCHITECTURES = {
    "llama": lambda: LlamaConfig(**SMALL),
    "qwen3": lambda: Qwen3Config(**SMALL, head_dim=64),
    "mixtral": lambda: MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
}


def make_small(folder: Path, name: str) -> Path:
    """Make a small model of an architecture, with random weights."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(ARCHITECTURES[name](), dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def recipe_for(model: str | Path, **overrides: Any) -> Recipe:
    recipe = embedded(**overrides)
    return replace(recipe, base=replace(recipe.base, model=str(model), revision=None))


def planned(recipe: Recipe) -> tuple[Model, Sizes]:
    """Return what a plan reads of the model, for the recipe's dtype."""
    sizes = sizes_of(recipe, element=ELEMENT[recipe.base.compute_dtype])
    return read_model(architecture(recipe.base)[0], recipe.lora), sizes


def built(recipe: Recipe, choice: Choice) -> LossModel:
    """Return the real model in training mode."""
    adapted = add_adapter(
        load_base(recipe.base, torch.device("cpu")),
        recipe.lora,
        parent=None,
        seed=0,
        dtype=getattr(torch, recipe.training.adapter_dtype),
    )
    fuse(adapted)
    checkpoint_layers(adapted, choice.checkpointing, offload=choice.offload)
    model = LossModel(adapted)
    model.train()
    return model


def batch_of(tokens: int) -> Batch:
    """Return a batch of one document with every token supervised."""
    ids = torch.randint(0, 4000, (1, tokens))
    return Batch(
        ids=ids,
        positions=torch.arange(tokens)[None],
        lengths=(tokens,),
        offsets=torch.tensor([0, tokens], dtype=torch.int32),
        predicting=torch.arange(tokens),
        labels=ids[0],
    )


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Return bytes by address. Each storage counts once."""
    found = [tensor.untyped_storage() for tensor in tensors if isinstance(tensor, torch.Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


class Live(TorchDispatchMode):
    """Counts the live bytes of tensors that the block creates, and their peak."""

    def __init__(self, known: Iterable[int] = ()) -> None:
        super().__init__()
        self.known = set(known)
        self.sizes: dict[int, tuple[int, int]] = {}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.sizes or storage.data_ptr() in self.known:
            return
        self.sizes[storage._cdata] = (storage.nbytes(), storage.data_ptr())
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, key: int) -> None:
        self.bytes -= self.sizes.pop(key, (0, 0))[0]
