"""Replaces the parts of a model's layers that train slowly. Their results stay the same.

    fused_lora.py     a frozen linear layer and its adapter; those with the same input together
    fused_mlp.py      SwiGLU
    fused_norm.py     RMSNorm
    fused_rotary.py   rotary positions

Each covers what it knows to compute, and leaves other families' parts alone.
"""

from __future__ import annotations

from typing import Any

from trainer.model.fused_lora import fuse_adapter
from trainer.model.fused_mlp import fuse_mlps
from trainer.model.fused_norm import fuse_norms
from trainer.model.fused_rotary import fuse_rotary


def fuse(adapted: Any, *, compiled: bool = False) -> None:
    """Fuse what can be fused. Call before `compile_layers` and `checkpoint_layers`.

    Args:
        compiled: torch.compile fuses all but the linear layers itself
    """
    if not compiled:
        fuse_mlps(adapted)
        fuse_norms(adapted)
        fuse_rotary(adapted)
    fuse_adapter(adapted)
