"""The numbers that an optimizer keeps for each parameter, divided among any number of ranks.

8-bit optimizers keep codes for blocks of 256 numbers, and a block may belong to two ranks. Therefore a divided state is
saved as float32, and each rank makes its codes of its own share again. With the same shares they are the same.

ZeRO divides the numbers otherwise, in a row over all parameters. They are saved as fsdp2 divides them, one parameter at
a time, so that any strategy goes on from the checkpoints of another.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb_functional
import torch
import torch.distributed as dist
from bitsandbytes.optim.optimizer import Optimizer8bit
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from trainer.errors import ShareNotSaved
from trainer.fit.together import Together
from trainer.fit.zero import ZeroTogether
from trainer.model.shards import local, own_share

BLOCK = 256
"""Numbers of an 8-bit state that share a scale."""
KEPT = ("exp_avg", "exp_avg_sq", "momentum_buffer", "state1", "state2")
"""Names of what optimizers keep for each number of a parameter."""
PACKED = "__bnb_optimizer_quant_state__"
"""Under it, state_dict() of an 8-bit optimizer has its codes and scales."""
Moments = dict[str, torch.Tensor]
"""By place of the parameter and name, as `12.exp_avg`: shares, or whole tensors where nothing is divided."""


def save_moments(folder: Path, together: Together, optimizer: torch.optim.Optimizer) -> None:
    """Write the state of all ranks to a new folder: each rank a file with its share."""
    if together.accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    together.accelerator.wait_for_everyone()
    state = _of_zero(together, optimizer) if isinstance(together, ZeroTogether) else _of_shares(together, optimizer)
    try:
        save(state, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:  # no Exception: without this, the run would end without its `failed` event
        rank, (cause, _) = next(iter(error.failures.items()))
        raise ShareNotSaved(f"process {rank} could not write its share of the checkpoint ({cause})") from error


def _of_shares(together: Together, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    state: dict[str, Any] = {}
    names = dict.fromkeys(
        name for _, share in together.pairs for name in optimizer.state.get(share, {}) if name in KEPT
    )
    for place, (parameter, share) in enumerate(together.pairs):
        assert isinstance(parameter, DTensor)
        for name in names:  # a rank without a share takes part, too
            kept = optimizer.state.get(share)
            numbers = torch.zeros_like(share, dtype=torch.float32) if not kept else _numbers(kept, name)
            state[f"{place}.{name}"] = _divided(numbers.view_as(share), parameter)
    return state


def _of_zero(together: ZeroTogether, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    kept, mesh = optimizer.state[together.flat], _mesh(together)
    vectors = {name: _numbers(kept, name).flatten() for name in kept if name in KEPT}
    return {
        f"{place}.{name}": distribute_tensor(
            together.whole_numbers(place, vector), mesh, [Shard(0)], src_data_rank=None
        )
        for name, vector in vectors.items()
        for place in range(len(together.parameters))
    }


def _mesh(together: Together) -> DeviceMesh:
    return init_device_mesh(together.accelerator.device.type, (together.accelerator.num_processes,))


def load_moments(folder: Path, together: Together) -> Moments:
    """Read each rank's share of a saved state, whoever saved it. With ZeRO: all of it, to host memory."""
    reader = HuggingFaceStorageReader(str(folder))
    state: dict[str, Any] = {}
    parameters = together.trained()
    for key in reader.read_metadata().state_dict_metadata:
        place = int(key.partition(".")[0])
        if isinstance(together, ZeroTogether):
            state[key] = torch.zeros(together.shapes[place])
            continue
        parameter = parameters[place]
        zeros = torch.zeros_like(local(parameter.data), dtype=torch.float32, device="cpu")
        state[key] = _divided(zeros, parameter) if isinstance(parameter, DTensor) else zeros
    load(state, storage_reader=reader, no_dist=not dist.is_initialized())
    return {key: local(tensor) for key, tensor in state.items()}


def scalars_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what is equal on all ranks: the groups, and the number of steps."""
    steps = [float(kept["step"]) for kept in optimizer.state.values() if "step" in kept]
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    return {"step": steps[0] if steps else 0.0, "param_groups": groups}


def whole_moments(state: Mapping[str, Any]) -> tuple[Moments, dict[str, Any]]:
    """Return the numbers and scalars of an optimizer's state_dict(), of which each rank holds all."""
    by_place = {place: {**kept, **kept.get(PACKED, {})} for place, kept in state["state"].items()}
    moments = {
        f"{place}.{name}": _numbers(kept, name) for place, kept in by_place.items() for name in kept if name in KEPT
    }
    steps = [float(kept["step"]) for kept in state["state"].values() if "step" in kept]
    groups = [{name: value for name, value in group.items() if name != "params"} for group in state["param_groups"]]
    return moments, {"step": steps[0] if steps else 0.0, "param_groups": groups}


@torch.no_grad()
def set_moments(together: Together, optimizer: Any, moments: Moments, scalars: Mapping[str, Any]) -> None:
    """Give an optimizer its state. Whole numbers are divided as the parameters are."""
    for group, found in zip(optimizer.param_groups, scalars["param_groups"], strict=True):
        group.update({name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})
    if isinstance(together, ZeroTogether):
        _fill_zero(together, optimizer, moments, scalars["step"])
        return
    owned = together.pairs or [(parameter, parameter) for parameter in together.trained()]
    if isinstance(optimizer, Optimizer8bit):
        optimizer.fill_qmap()
    for place, (parameter, share) in enumerate(owned):
        numbers = {name: moments[f"{place}.{name}"] for name in KEPT if f"{place}.{name}" in moments}
        if not numbers or not share.numel():
            continue
        mine = {
            name: tensor if tensor.shape == share.shape and parameter is share else _share(tensor, parameter, share)
            for name, tensor in numbers.items()
        }
        _fill(optimizer, place, share, mine, scalars["step"])


def _fill_zero(together: ZeroTogether, optimizer: Any, moments: Moments, step: float) -> None:
    """Give the optimizer of this rank's vector its numbers of whole moments."""
    if isinstance(optimizer, Optimizer8bit):
        optimizer.fill_qmap()
    vectors: Moments = {}
    for key, tensor in moments.items():
        place, _, name = key.partition(".")
        vector = vectors.setdefault(name, torch.zeros_like(together.flat, dtype=torch.float32))
        together.own_numbers(int(place), tensor, vector)
    if not vectors:
        return
    (group,) = optimizer.param_groups
    between_steps, group["params"] = group["params"], [together.flat]  # zero3 empties it, and bitsandbytes reads it
    _fill(optimizer, 0, together.flat, vectors, step)
    group["params"] = between_steps


def _share(tensor: torch.Tensor, parameter: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return this rank's share of a whole state. A share stays as it is."""
    if tensor.shape == parameter.shape and parameter.shape != share.shape:
        return own_share(tensor, parameter)
    return tensor.view_as(share)


def _fill(optimizer: Any, place: int, share: torch.Tensor, numbers: Moments, step: float) -> None:
    if not isinstance(optimizer, Optimizer8bit) and "state1" not in numbers:
        kept = {name: tensor.to(share.device, share.dtype, copy=True) for name, tensor in numbers.items()}
        if "momentum_buffer" not in numbers:
            kept["step"] = torch.tensor(step)
        optimizer.state[share] = kept
        return
    optimizer.init_state(optimizer.param_groups[0], share, 0, place)
    kept = optimizer.state[share]
    kept["step"] = int(step)
    for name, tensor in numbers.items():
        number = name[-1]
        if kept[name].dtype == torch.uint8:
            codes, scales = bnb_functional.quantize_blockwise(
                tensor.to(share.device).float().contiguous(), code=kept[f"qmap{number}"], blocksize=BLOCK
            )
            kept[name].copy_(codes.view_as(kept[name]))
            kept[f"absmax{number}"].copy_(scales.absmax)
        else:
            kept[name].copy_(tensor.view_as(kept[name]))


def _numbers(kept: Mapping[str, Any], name: str) -> torch.Tensor:
    """Return what an optimizer keeps under a name, as float32."""
    tensor = kept[name]
    if tensor.dtype != torch.uint8:
        return tensor.float()
    number = name[-1]
    return bnb_functional.dequantize_blockwise(
        tensor, absmax=kept[f"absmax{number}"], code=kept[f"qmap{number}"], blocksize=BLOCK
    )


def _divided(share: torch.Tensor, parameter: DTensor) -> DTensor:
    """Return a rank's share as a part of the whole, divided as a parameter is."""
    return DTensor.from_local(
        share, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape,
        stride=parameter.stride(),
    )  # fmt: skip
