"""Divides a model among the processes of a run with FSDP2, layer by layer, and gathers a divided adapter again.

    layer's weights   a share on each rank; the layer in use is gathered from all of them
    4-bit weights     the same, as bfloat16: a parameter of bytes cannot be divided. The bits stay what they are
    gradients         summed into the share of each rank

Not covered: experts in 4 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import torch
import torch.distributed as dist
from peft import set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer.errors import UnusableInput
from trainer.model.checkpointing import decoder_layers
from trainer.model.fused_lora import compute_unpacked
from trainer.model.mixture import quantized_experts


def shard_model(model: Any, device: torch.device) -> None:
    """Divide a LossModel among all ranks.

    Raises:
        UnusableInput: it has experts in 4 bits.
    """
    if quantized_experts(model):
        raise UnusableInput(
            "distributed.strategy: fsdp2 cannot divide experts in 4 bits. Use ddp, or base.quantization: none"
        )
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            store_as_bfloat16(module)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def store_as_bfloat16(layer: Any) -> None:
    """Store a layer's 4-bit weights as a plain parameter that can be divided. The bits stay what they are."""
    layer.quant_state = layer.weight.quant_state
    layer.weight = torch.nn.Parameter(layer.weight.data.flatten().view(torch.bfloat16), requires_grad=False)
    compute_unpacked(layer)


def is_divided(model: Any) -> bool:
    """Whether each rank holds a share of a model's weights, with FSDP2 or with DeepSpeed's stage 3."""
    return any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters())


@contextmanager
def gathered(model: Any, *, changing: bool = False) -> Iterator[None]:
    """Have all trained parameters of a model that DeepSpeed divides. Does nothing for another model.

    Args:
        changing: they are given other values, the same on all ranks
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if changing else None):
        yield


def own_share(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return this rank's share of a whole tensor, divided as another one is."""
    if not isinstance(like, DTensor):
        return tensor
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None).to_local()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor. Every rank takes part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Any) -> torch.Tensor:
    """Return this rank's share of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def set_adapter_weights(adapted: Any, weights: dict[str, torch.Tensor]) -> None:
    """Give an adapter its weights, by PEFT's file names. Each rank takes its share."""
    own = get_peft_model_state_dict(adapted)
    if not any(isinstance(tensor, DTensor) for tensor in own.values()):
        with gathered(adapted, changing=True):
            set_peft_model_state_dict(adapted, weights)
        return
    for name, tensor in own.items():
        local(tensor).copy_(own_share(weights[name], tensor))
