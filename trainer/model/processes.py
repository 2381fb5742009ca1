"""Joins this process with the others of its run."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from trainer.ranks import RENDEZVOUS
from trainer.world_size import world_size

WAIT_SECONDS = 1800
"""How long a process waits for the others: rank 0 writes checkpoints and answers prompts meanwhile. The launcher ends
all when one is gone, so nobody waits as long for that."""


def join_processes(device: torch.device) -> None:
    """Join the process group of the run: over the launcher's file, or as torchrun says. Alone, do nothing."""
    if world_size() == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    meeting = os.environ.get(RENDEZVOUS)
    dist.init_process_group(
        "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo",
        init_method=f"file://{meeting}" if meeting else "env://",
        rank=int(os.environ["RANK"]),
        world_size=world_size(),
        timeout=timedelta(seconds=WAIT_SECONDS),
    )
