"""Memory before the first activation: weights, constants, adapter, gradients, optimizer.

Exact for one process that holds everything. trainer/plan/sharding.py divides it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from trainer.model.base import NF4_BLOCK
from trainer.plan.model import Matrix, Model
from trainer.recipe import Base, Lora, Recipe, Training

NESTED_BLOCK = 256
"""NF4 scales that share one scale of their own in double quantization (bitsandbytes)."""
STATE_BLOCK = 256
"""Values of 8-bit optimizer state that share a scale (bitsandbytes)."""
LEAST_8BIT_VALUES = 4096
"""Smaller parameters keep their optimizer state in float32 (bitsandbytes' min_8bit_size)."""
CODE_BYTES = 256 * 4
"""A table of 256 float32 values: one for each matrix's nested scales, two for the whole optimizer."""


ADAPTER_BYTES = {"float32": 4, "bfloat16": 2}
"""By dtype of the adapter."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table."""

    name: str
    bytes: int
    kind: str
    """`static`, `paged` (static, but allocated outside torch), `kept`, `working` or `card`."""
    counted: bool = True
    """Whether it counts at the peak. Of layer and loss, only the larger one does."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes per element, and the settings that affect activations."""

    element: int
    """Of weights and activations in the compute dtype: 2 or 4."""
    rank: int
    dropout: bool
    sequence: int = 1
    """Cards that share a pack's tokens."""


def sizes_of(recipe: Recipe, *, element: int) -> Sizes:
    """The recipe's."""
    shared_by = recipe.distributed.shared_by(recipe.distributed.cards)
    return Sizes(element=element, rank=recipe.lora.rank, dropout=recipe.lora.dropout > 0, sequence=shared_by)


def static_lines(model: Model, recipe: Recipe, sizes: Sizes) -> list[Line]:
    """Memory before the first activation. Exact."""
    shapes = [shape for matrix in model.matrices if matrix.adapted for shape in adapter_shapes(matrix, recipe.lora)]
    optimizer, dtype = recipe.training.optimizer, recipe.training.adapter_dtype
    adapter = ADAPTER_BYTES[dtype] * sum(map(prod, shapes))
    by_name = {
        **weight_bytes(model, recipe.base, sizes),
        "embeddings": model.embeddings * sizes.element,
        "output head": model.head * sizes.element,
        "routers": model.routers * sizes.element,
        "norms, biases, positions": model.others * sizes.element + model.buffer_bytes,
        f"adapter ({dtype})": adapter,
        f"gradients ({dtype})": adapter,
        f"optimizer ({optimizer})": OPTIMIZER_BYTES[optimizer](shapes, recipe.training),
    }
    kinds = {f"optimizer ({paged})": "paged" for paged in PAGED}
    return [Line(name=name, bytes=size, kind=kinds.get(name, "static")) for name, size in by_name.items() if size]


def weight_bytes(model: Model, base: Base, sizes: Sizes) -> dict[str, int]:
    """The frozen matrices."""
    numels = [matrix.numel for matrix in model.matrices]
    if base.quantization == "none":
        return {"weights": sum(numels) * sizes.element}
    constants = sum(quantization_bytes(numel, double=base.double_quantization) for numel in numels)
    return {"weights (NF4)": sum(numels) // 2, "quantization constants": constants}


def quantization_bytes(numel: int, *, double: bool) -> int:
    """Constants of one NF4 matrix: its scales, and the table of the 16 values that four bits mean."""
    table, scales = 16 * 4, -(-numel // NF4_BLOCK)
    if not double:
        return table + 4 * scales
    return table + scales + 4 * -(-scales // NESTED_BLOCK) + CODE_BYTES + 4  # the last: the scales' mean


Shapes = list[tuple[int, int]]


def adapter_shapes(matrix: Matrix, lora: Lora) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of A and of B."""
    return (lora.rank, matrix.inputs), (matrix.outputs, lora.rank)


def _adamw_8bit_bytes(shapes: Shapes, _: Training) -> int:
    numels = [prod(shape) for shape in shapes]
    small = sum(8 * numel for numel in numels if numel < LEAST_8BIT_VALUES)
    large = [numel for numel in numels if numel >= LEAST_8BIT_VALUES]
    return small + sum(2 * numel + 8 * -(-numel // STATE_BLOCK) for numel in large) + (2 * CODE_BYTES if large else 0)


def _adamw_bytes(shapes: Shapes, _: Training) -> int:
    return sum(8 * prod(shape) + 4 for shape in shapes)  # two moments and the step count


def _paged_adamw_bytes(shapes: Shapes, _: Training) -> int:
    return sum(8 * prod(shape) for shape in shapes)  # its step count is no tensor


def _adafactor_bytes(shapes: Shapes, _: Training) -> int:
    return sum(4 * (rows + columns) + 4 for rows, columns in shapes)  # a moment per row and column, and the size


def _sgd_bytes(shapes: Shapes, training: Training) -> int:
    return sum(4 * prod(shape) for shape in shapes) if training.beta1 else 0


OPTIMIZER_BYTES: dict[str, Callable[[Shapes, Training], int]] = {
    "adamw_8bit": _adamw_8bit_bytes,
    "adamw": _adamw_bytes,
    "adamw_fused": _adamw_bytes,
    "paged_adamw": _paged_adamw_bytes,
    "paged_adamw_8bit": _adamw_8bit_bytes,
    "adafactor": _adafactor_bytes,
    "sgd": _sgd_bytes,
}
"""By the recipe's name, for a float32 adapter."""
PAGED = ("adamw_8bit", "paged_adamw", "paged_adamw_8bit")
"""Optimizers whose state can move to the host, if it is on a card."""
