"""Reads a base's matrices and widths from its architecture, for planning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.errors import UnusableInput
from trainer.model.base import check_targets, linear_layers
from trainer.model.checkpointing import decoder_layers
from trainer.recipe import Lora


class NotPlanned(UnusableInput):
    """Planning does not support this base."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One linear layer."""

    name: str
    """The last part of its name: `q_proj`."""
    inputs: int
    outputs: int
    adapted: bool

    @property
    def numel(self) -> int:
        """Number of weights."""
        return self.inputs * self.outputs


@dataclass(frozen=True, kw_only=True)
class Model:
    """Parameter counts and widths. No bytes, because these depend on the recipe."""

    matrices: tuple[Matrix, ...]
    """All linear layers except the head."""
    embeddings: int
    head: int
    """0 if the head shares the embeddings."""
    others: int
    """Norms and biases."""
    buffer_bytes: int
    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_width: int
    mlp: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Number of parameters of the base."""
        return sum(matrix.numel for matrix in self.matrices) + self.embeddings + self.head + self.others

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
    matrices = tuple(
        Matrix(
            name=name.rpartition(".")[2],
            inputs=layer.in_features,
            outputs=layer.out_features,
            adapted=name.rpartition(".")[2] in lora.targets,
        )
        for name, layer in linear_layers(skeleton).items()
    )
    embeddings, head = skeleton.get_input_embeddings().weight, skeleton.get_output_embeddings().weight
    config, layers = skeleton.config, len(decoder_layers(skeleton))
    _check_planable(skeleton, matrices, layers)
    total = sum(parameter.numel() for parameter in skeleton.parameters())
    tied = head is embeddings
    held = sum(matrix.numel for matrix in matrices) + embeddings.numel() + (0 if tied else head.numel())
    return Model(
        matrices=matrices,
        embeddings=embeddings.numel(),
        head=0 if tied else head.numel(),
        others=total - held,
        buffer_bytes=sum(buffer.numel() * buffer.element_size() for buffer in skeleton.buffers()),
        layers=layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        mlp=config.intermediate_size,
        vocabulary=embeddings.shape[0],
    )


def _check_planable(skeleton: Any, matrices: tuple[Matrix, ...], layers: int) -> None:
    """Check for a Llama or Qwen2 architecture: seven matrices per layer, all layers equal."""
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    if layers == 0 or [matrix.name for matrix in matrices] != names * layers:
        raise NotPlanned(
            f"plan: {type(skeleton).__name__} is not built of layers with {', '.join(names)} and cannot be planned "
            "yet. Set training.checkpointing and training.offload_checkpoints in the recipe instead of auto"
        )
