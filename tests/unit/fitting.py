"""Builds a fit on short programs without a run directory, for tests that look inside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from run_folder import short_recipe, token_samples, tokenizer

from trainer.check import Checked
from trainer.data.encoder import IGNORED, TokenSample, pad_id
from trainer.device_readings import DeviceReadings
from trainer.evaluate.held_out import HeldOut
from trainer.events import Events
from trainer.fit.context import FitContext
from trainer.fit.loop import Fit
from trainer.model.attention import unpacked_attention
from trainer.model.batch import Batch
from trainer.model.checkpointing import checkpoint_layers
from trainer.model.load import load_base
from trainer.model.lora import add_adapter
from trainer.model.step import LossModel
from trainer.plan.device import fitted
from trainer.recipe import Recipe
from trainer.stop import StopRequest
from trainer.train import Loaded, load_model, make_windows


class NoTrackers:
    """Trackers that keep what they receive."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        self.logged.append((step, values))

    def predictions(self, step: int, predictions: list[Any]) -> None:
        self.logged.append((step, {}))

    def close(self) -> None:
        self.logged.append((-1, {}))


def checked(recipe: Recipe, *, seed: int = 42, parent: Path | None = None) -> Checked:
    return Checked(
        recipe=recipe, run_id=1, seed=seed, parent=parent, current=parent, trunk=frozenset(), parent_version=None
    )


def make_fit(folder: Path, recipe: Recipe | None = None, *, loaded: Loaded | None = None, samples: int = 16) -> Fit:
    recipe = recipe or short_recipe()
    loaded = loaded or load_model(checked(recipe))
    folder.mkdir(exist_ok=True)
    stop = StopRequest()
    events = Events(folder / "events.jsonl")
    pad = pad_id(tokenizer())
    return Fit(
        FitContext(
            recipe=recipe,
            accelerator=loaded.accelerator,
            model=loaded.model,
            optimizer=loaded.optimizer,
            together=loaded.together,
            windows=make_windows(token_samples(samples), recipe, seed=1),
            held_out=HeldOut(loaded.accelerator, loaded.model, token_samples(4, start=101), budget=900, stop=stop),
            pad=pad,
            checkpoints=folder / "checkpoints",
            events=events,
            trackers=NoTrackers(),  # type: ignore[arg-type]
            readings=DeviceReadings(events),
            stop=stop,
        ),
        None,
    )


def loss_model(recipe: Recipe | None = None) -> LossModel:
    """Return an adapted base with its loss. Matrix B is not zero, so that every parameter has a gradient."""
    recipe, _ = fitted(recipe or short_recipe(lora__dropout=0.0), torch.device("cpu"))
    adapted = add_adapter(
        load_base(recipe.base, torch.device("cpu")),
        recipe.lora,
        parent=None,
        seed=0,
    )
    training = recipe.training
    checkpoint_layers(adapted, training.checkpointing, offload=training.offload_checkpoints == "always")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
    return LossModel(adapted)


def gradients(model: torch.nn.Module) -> torch.Tensor:
    """Return all gradients in one vector and clear them."""
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    vector = torch.cat([p.grad.flatten() for p in trained])
    model.zero_grad()
    return vector


def reference(model: LossModel, samples: Sequence[TokenSample]) -> torch.Tensor:
    """Return the summed loss as transformers computes it: sample by sample, with all logits and its own attention."""
    causal = model.model.get_base_model()
    total = torch.zeros(())
    with unpacked_attention(causal):
        for sample in samples:
            logits = causal(input_ids=sample.ids.long()[None], use_cache=False).logits[0, :-1].float()
            total = total + F.cross_entropy(logits, sample.labels[1:].long(), reduction="sum", ignore_index=IGNORED)
    return total


def backward(model: LossModel, batch: Batch) -> tuple[float, torch.Tensor]:
    loss, _ = model(batch)
    loss.backward()
    return loss.item(), gradients(model)
