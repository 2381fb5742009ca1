"""Reads a base's matrices and widths from its architecture, for planning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from trainer.errors import UnusableInput
from trainer.model.base import check_targets
from trainer.model.checkpointing import decoder_layers
from trainer.recipe import Lora


class NotPlanned(UnusableInput):
    """Planning does not support this base."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One linear layer, or one of a mixture's, which all experts have, stored as one tensor."""

    name: str
    """The last part of its name: `q_proj`."""
    inputs: int
    outputs: int
    adapted: bool
    experts: int = 1
    """Number of experts that it is stored for."""
    used: int = 1
    """Number of experts that a token goes through."""

    @property
    def numel(self) -> int:
        """Number of weights."""
        return self.inputs * self.outputs * self.experts

    @property
    def active(self) -> int:
        """Number of weights that a token is multiplied with."""
        return self.inputs * self.outputs * self.used


@dataclass(frozen=True, kw_only=True)
class Model:
    """Parameter counts and widths. No bytes, because these depend on the recipe."""

    matrices: tuple[Matrix, ...]
    """All linear layers except the head, and experts, layer by layer."""
    embeddings: int
    head: int
    """0 if the head shares the embeddings."""
    others: int
    """Norms and biases."""
    routers: int
    """Of mixtures."""
    buffer_bytes: int
    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_width: int
    head_norms: bool
    """Whether queries and keys are normalized, as in Qwen3."""
    mlp: int
    """Width of the MLP, or of one expert."""
    experts: int
    """Of a mixture, else 0."""
    experts_used: int
    """Number of experts that a token goes through. 0 if the MLP is no mixture."""
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Number of parameters of the base."""
        return sum(matrix.numel for matrix in self.matrices) + self.embeddings + self.head + self.others + self.routers

    @property
    def layer_matrices(self) -> tuple[Matrix, ...]:
        """Matrices of one layer. All layers are equal."""
        return self.matrices[: len(self.matrices) // self.layers]


def read_model(skeleton: Any, lora: Lora) -> Model:
    """Read a model on the meta device.

    Raises:
        UnusableInput: the model lacks a LoRA target.
        NotPlanned: the architecture is not supported yet.
    """
    check_targets(skeleton, lora)
    config, layers = skeleton.config, decoder_layers(skeleton)
    matrices = tuple(matrix for layer in layers for matrix in _matrices(layer, config, lora))
    _check_planable(skeleton, matrices, len(layers))
    embeddings, head = skeleton.get_input_embeddings().weight, skeleton.get_output_embeddings().weight
    routers = sum(p.numel() for name, p in skeleton.named_parameters() if name.endswith("mlp.gate.weight"))
    total = sum(parameter.numel() for parameter in skeleton.parameters())
    tied = head is embeddings
    held = sum(matrix.numel for matrix in matrices) + embeddings.numel() + (0 if tied else head.numel()) + routers
    return Model(
        matrices=matrices,
        embeddings=embeddings.numel(),
        head=0 if tied else head.numel(),
        others=total - held,
        routers=routers,
        buffer_bytes=sum(buffer.numel() * buffer.element_size() for buffer in skeleton.buffers()),
        layers=len(layers),
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        head_norms=hasattr(layers[0].self_attn, "q_norm"),
        mlp=next(matrix.inputs for matrix in matrices if matrix.name == "down_proj"),
        experts=max(matrix.experts for matrix in matrices) if routers else 0,
        experts_used=config.num_experts_per_tok if routers else 0,
        vocabulary=embeddings.shape[0],
    )


def _matrices(layer: Any, config: Any, lora: Lora) -> Iterator[Matrix]:
    """Yield a decoder layer's matrices: its linear layers, then its experts, which are three-dimensional."""
    for name, module in layer.named_modules():
        if isinstance(module, torch.nn.Linear):
            short = name.rpartition(".")[2]
            yield Matrix(
                name=short, inputs=module.in_features, outputs=module.out_features, adapted=short in lora.targets
            )
    for name, parameter in layer.named_parameters():
        if parameter.ndim == 3:
            experts, outputs, inputs = parameter.shape
            yield Matrix(
                name=name.rpartition(".")[2], inputs=inputs, outputs=outputs, adapted=False,
                experts=experts, used=config.num_experts_per_tok,
            )  # fmt: skip


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LAYERS = ([*ATTENTION, "gate_proj", "up_proj", "down_proj"], [*ATTENTION, "gate_up_proj", "down_proj"])
"""Matrices of a layer of Llama, Qwen2 and Qwen3, and of Mixtral."""


def _check_planable(skeleton: Any, matrices: tuple[Matrix, ...], layers: int) -> None:
    """Check that all layers are built like Llama's or Mixtral's."""
    names = [matrix.name for matrix in matrices]
    if layers == 0 or names not in [of_layer * layers for of_layer in LAYERS]:
        raise NotPlanned(
            f"plan: {type(skeleton).__name__} is not built of layers with {', '.join(LAYERS[0])} (or the experts of "
            "Mixtral) and cannot be planned yet. Set training.checkpointing and training.offload_checkpoints in the "
            "recipe instead of auto"
        )
