"""DeepSpeed's ZeRO: the ranks divide optimizer and gradients (zero2), and the weights, too (zero3).

DeepSpeed divides the model, sums the gradients after each pass, and gives this rank's share of them to one of our
optimizers. Windows, passes, learning rate, clipping, checkpoints and stopping stay what they are for the other
strategies. Its configuration files, launcher, schedulers and checkpoints are not used, and none of its extensions
is compiled.

The optimizer has one flat float32 vector on each rank:

    zero2   all trained parameters in a row, cut into as many parts as there are ranks
    zero3   this rank's part of each trained parameter, in a row
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
import torch.distributed as dist
from accelerate import Accelerator

from trainer.errors import UnusableInput
from trainer.fit.together import Together
from trainer.model.checkpointing import decoder_layers
from trainer.model.mixture import mixture_of
from trainer.model.shards import store_as_bfloat16

BUCKET_NUMBERS = 1 << 24
"""Gradients are summed in pieces of so many numbers."""
WHOLE_NUMBERS = 1 << 14
"""With zero3, parameters with fewer numbers stay whole on each rank: gathering a norm costs more than it saves."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Numbers of a trained parameter that this rank's optimizer has."""

    place: int
    """Place of the parameter among the trained ones."""
    start: int
    """Place of the first number in the parameter, counted in a row."""
    count: int
    offset: int
    """Place of the first number in the rank's vector."""


class ZeroTogether(Together):
    """The ranks of a fit whose model DeepSpeed divides."""

    def __init__(self, model: Any, accelerator: Accelerator, optimizer: torch.optim.Optimizer, *, stage: int) -> None:
        super().__init__(model, accelerator, sharded=True)
        self.parameters = self.trained()
        self.shapes = [parameter.shape for parameter in self.parameters]
        self.engine = _engine(model, accelerator, optimizer, stage)
        self.zero: Any = self.engine.optimizer
        flats = self.zero.fp32_partitioned_groups_flat if stage == 3 else self.zero.single_partition_of_fp32_groups
        (self.flat,) = flats
        self.pieces = list(self._parts() if stage == 3 else self._cuts())

    def _cuts(self) -> Iterator[Piece]:
        """Yield this rank's pieces of all parameters in a row."""
        (offsets,), (size,) = self.zero.round_robin_bit16_offsets, self.zero.partition_size
        (order,) = self.zero.round_robin_bit16_groups
        places = {id(parameter): place for place, parameter in enumerate(self.parameters)}
        low = dist.get_rank() * size
        for parameter, begin in zip(order, offsets, strict=True):
            first, last = max(begin, low), min(begin + parameter.numel(), low + size)
            if first < last:
                place = places[id(parameter)]
                yield Piece(place=place, start=first - begin, count=last - first, offset=first - low)

    def _parts(self) -> Iterator[Piece]:
        """Yield this rank's part of each parameter. The last part of one may be filled up."""
        places = {id(parameter): place for place, parameter in enumerate(self.parameters)}
        (order,), offset = self.zero.fp16_groups, 0
        for parameter in order:
            size = parameter.partition_numel()
            start = dist.get_rank() * size
            if (count := min(size, parameter.ds_numel - start)) > 0:
                yield Piece(place=places[id(parameter)], start=start, count=count, offset=offset)
            offset += size

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a pass to this rank's share of the window's. Every rank takes part."""
        self.engine.backward(loss)

    def sum_gradients(self) -> None:
        """The passes have summed the gradients. Put this rank's share where the optimizer takes it from."""
        self.zero.finalize_gradient_accumulation_boundary()

    def clip(self, limit: float) -> float:
        """Scale the gradients to a norm of at most `limit`, and return their norm before."""
        return self.clip_shares([grad for group in self.zero.averaged_gradients.values() for grad in group], limit)

    def weights_changed(self) -> None:
        """Take the adapter's weights into the optimizer's vector, after they were loaded."""
        self.zero.refresh_fp32_params()

    def whole_numbers(self, place: int, flat: torch.Tensor) -> torch.Tensor:
        """Return all numbers of a parameter from the vectors of all ranks. Every rank takes part."""
        shape = self.shapes[place]
        whole = torch.zeros(shape.numel(), dtype=torch.float32, device=flat.device)
        for piece in self.pieces:
            if piece.place == place:
                whole[piece.start : piece.start + piece.count] = flat[piece.offset : piece.offset + piece.count]
        dist.all_reduce(whole)
        return whole.view(shape)

    def own_numbers(self, place: int, whole: torch.Tensor, flat: torch.Tensor) -> None:
        """Copy this rank's numbers of a whole parameter into its vector."""
        row = whole.flatten().to(flat.device)
        for piece in self.pieces:
            if piece.place == place:
                flat[piece.offset : piece.offset + piece.count] = row[piece.start : piece.start + piece.count]


def make_zero(model: Any, accelerator: Accelerator, optimizer: torch.optim.Optimizer, *, stage: int) -> ZeroTogether:
    """Divide a LossModel and its optimizer among all ranks.

    Raises:
        UnusableInput: it has experts, of which a rank may use others than the rest.
    """
    if mixture_of(model.model.get_base_model().config) is not None:
        raise UnusableInput(
            f"distributed.strategy: zero{stage} cannot train a base with experts, because the ranks use different ones "
            "in a pass. Use ddp or fsdp2"
        )
    return ZeroTogether(model, accelerator, optimizer, stage=stage)


def _engine(model: Any, accelerator: Accelerator, optimizer: torch.optim.Optimizer, stage: int) -> Any:
    deepspeed = _deepspeed(accelerator.device)
    if stage == 3:
        for module in model.modules():
            if isinstance(module, bnb.nn.Linear4bit):
                store_as_bfloat16(module)
        for layer in decoder_layers(model):  # gathered whole: the fused adapter reads the weights of its parts
            deepspeed.utils.set_z3_leaf_module(layer, True)
        causal = model.model.get_base_model()
        causal.get_input_embeddings().register_forward_hook(_with_gradient)
        head = causal.get_output_embeddings()
        deepspeed.zero.register_external_parameter(model, head.weight)  # the loss reads it
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=_config(stage))
    return engine


def _with_gradient(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """Give the first layer an input with a gradient. Without one, DeepSpeed takes the layer for done before it is."""
    return output.requires_grad_() if torch.is_grad_enabled() else output


def _deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed, which then uses the process group of the run."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled for a minute: gloo serves
    return deepspeed


def _config(stage: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # passes are summed until the optimizer's step
        "zero_allow_untested_optimizer": True,
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 1 << 60,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "reduce_bucket_size": BUCKET_NUMBERS,
            "allgather_bucket_size": BUCKET_NUMBERS,
            "stage3_prefetch_bucket_size": BUCKET_NUMBERS,
            "stage3_param_persistence_threshold": WHOLE_NUMBERS,
            "sub_group_size": 1 << 60,  # one vector
            "memory_efficient_linear": False,  # it replaces torch's own, and rounds to 16 bits before it adds a bias
        },
    }
