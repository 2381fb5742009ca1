"""Prints, as one rank, what it holds of a model and an optimizer that are divided. Started by test_plan_shares.py."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import torch
from accelerate import Accelerator
from planning import batch_of, built

from trainer.fit.optimizer import make_optimizer
from trainer.fit.strategies import divide
from trainer.model.shards import local
from trainer.plan.memory import Choice
from trainer.recipe import Recipe
from trainer.recipe_file import load_recipe

WHOLE = Choice(micro_batch_tokens=64, checkpointing="none", offload=False)


def main(folder: Path, recipes: list[Path]) -> None:
    accelerator = Accelerator(cpu=True)
    found = {path.name: held(load_recipe(path), accelerator) for path in recipes}
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(found))


def held(recipe: Recipe, accelerator: Accelerator) -> Counter[str]:
    model = built(recipe, WHOLE)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(trained, recipe.training)
    divided = divide(recipe.distributed.strategy, model, optimizer, accelerator, recipe.training, draws=())
    divided.model(batch_of(64))[0].backward()
    found: Counter[str] = Counter()
    for parameter in model.parameters():
        found["adapter" if parameter.requires_grad else "weights"] += size(local(parameter))
        if parameter.grad is not None:
            found["gradients"] += size(local(parameter.grad))
    for module in model.modules():
        if (state := getattr(module, "quant_state", None)) is not None:
            constants = [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
            found["constants"] += sum(map(size, constants))
    divided.optimizer.step()
    for state in divided.optimizer.state.values():
        found["optimizer"] += sum(size(value) for value in state.values() if isinstance(value, torch.Tensor))
    return found


def size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]])
