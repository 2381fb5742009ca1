"""Prints, as one rank of a shared pack, what it keeps for the backward pass and its peak. Started by
test_plan_shares.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from planning import Live, batch_of, built, storages

from trainer.model import attention, fused_lora, fused_mlp, loss
from trainer.model.batch import Batch
from trainer.model.processes import join_processes
from trainer.model.sequence import share_packs
from trainer.model.step import LossModel
from trainer.plan.memory import Choice
from trainer.recipe import Recipe
from trainer.recipe_file import load_recipe


def main(folder: Path, tokens: int) -> None:
    join_processes(torch.device("cpu"))
    attention.KERNELS["each"] = in_one_call
    fused_lora._draw = mask_of_a_card
    loss.CPU_POSITIONS = tokens
    loss._has_cache = lambda hidden: False
    fused_mlp.CPU_PIECE = 1 << 12
    shared = share_packs(2)
    found = measured(load_recipe(folder / "shared"), tokens, shared)
    (folder / f"kept-{shared.place}.json").write_text(json.dumps(found))


def measured(recipe: Recipe, tokens: int, shared: Any) -> dict[str, tuple[int, int]]:
    torch.manual_seed(0)  # the same pack
    batch, found = batch_of(tokens), {}
    for policy in ("none", "selective", "full"):
        model = built(recipe, Choice(micro_batch_tokens=tokens, checkpointing=policy, offload=False))
        model.shared = shared
        share = model.own_share(batch)
        found[policy] = kept(model, share), peak(model, share)
    return found


def kept(model: LossModel, share: Batch) -> int:
    saved, alive = {}, []
    weights = storages([*model.parameters(), *model.buffers()])

    def see(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)  # another tensor may reuse the address later
        saved.update({k: v for k, v in storages([tensor]).items() if k not in weights})
        return tensor

    documents = attention.documents(share, "each", model.shared)
    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        model.model.get_base_model().model(
            input_ids=share.ids, position_ids=share.positions, documents=documents, use_cache=False
        )
    return sum(size for address, size in saved.items() if address not in storages([share.ids, share.offsets]))


def peak(model: LossModel, share: Batch) -> int:
    known: set[int] = set()
    for _ in range(2):  # the first pass makes the gradients
        with Live(known) as live:
            model(share)[0].backward()
        known = {address for _, address in live.sizes.values()}
    return live.peak


def in_one_call(q: Any, k: Any, v: Any, scale: float, _documents: Any) -> torch.Tensor:
    """Attend as on a GPU: one call, and key heads are not repeated."""
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)[0].transpose(0, 1)


def mask_of_a_card(rows: torch.Tensor, rate: float) -> tuple[torch.Tensor, float]:
    return torch.empty_like(rows, dtype=torch.bool).bernoulli_(1.0 - rate), 1.0 - rate


main(Path(sys.argv[1]), int(sys.argv[2]))
