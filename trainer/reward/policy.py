"""The model that both answers and learns: it draws answers, and takes one step on them.

    loss = 1 / (answers × max_tokens) · Σ over answers  − advantage · Σ over its tokens  log p(token)

Each token of a round has the same weight, whatever the length of its answer (Liu et al. 2025, Dr. GRPO). An answer is
used once, right after it was drawn by the same weights. The ratio of the two policies, which Shao et al. 2024
(equation 3) clip, is therefore 1, and the gradient of their objective is this one. That holds without dropout only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict

from trainer.check import Checked
from trainer.data.batches import collate, pack_budget, pack_samples
from trainer.data.encoder import IGNORED, TokenSample
from trainer.errors import Diverged, OutOfMemory
from trainer.evaluate.engines import Generation, Request, Sampling
from trainer.evaluate.held_out import HeldOut
from trainer.evaluate.prompts import cut
from trainer.evaluate.transformers_engine import TransformersEngine
from trainer.fit.checkpoint import flatten, unflatten
from trainer.fit.optimizer import set_learning_rate
from trainer.model.attention import unpacked_attention
from trainer.model.lora import adapter_weights
from trainer.model.memory import is_out_of_memory
from trainer.recipe import Recipe
from trainer.run_dir import read_json, write_json
from trainer.stop import StopRequest, write_stderr
from trainer.train import load_model

Key = tuple[str, int]


class RememberingEngine(TransformersEngine):
    """Keeps the token ids of each answer: text that is encoded again may give others."""

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int, on_note: Callable[[str], None]) -> None:
        super().__init__(model, tokenizer, batch_size=batch_size, on_note=on_note)
        self.ids: dict[Key, tuple[list[int], list[int]]] = {}
        """Ids of the prompt and of what was drawn after it, with its end token."""

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Generation]:
        """Answer with ordinary attention, and leave the model ready for packs."""
        self._model.eval()
        with unpacked_attention(self._model.get_base_model()):
            yield from super().answer(requests, sampling)

    def _generation(self, request: Request, ids: list[int], ends: Sequence[int], seconds: float) -> Generation:
        end = next((place for place, token in enumerate(ids) if token in ends), None)
        drawn = ids if end is None else ids[: end + 1]
        stops = request.question.stops
        self.ids[request.task_id, request.sample] = (self._ids(request.question), self._up_to_stop(drawn, stops))
        return super()._generation(request, ids, ends, seconds)

    def _up_to_stop(self, ids: list[int], stops: Sequence[str]) -> list[int]:
        """Return the ids up to the first stop in their text, with those that spell it. The rest changes nothing."""
        if not stops or not self._stops(ids, stops):
            return ids
        low, high = 1, len(ids)
        while low < high:  # once a stop is there, it stays
            middle = (low + high) // 2
            low, high = (low, middle) if self._stops(ids[:middle], stops) else (middle + 1, high)
        return ids[:low]

    def _stops(self, ids: list[int], stops: Sequence[str]) -> bool:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cut(text, stops) != text


class Policy:
    """Base, adapter and optimizer."""

    def __init__(self, recipe: Recipe, tokenizer: Any, *, start: Path | None, stop: StopRequest) -> None:
        recipe = replace(recipe, lora=replace(recipe.lora, dropout=0.0))
        checked = Checked(
            recipe=recipe, run_id=0, seed=recipe.training.seed, parent=start, current=start, trunk=frozenset(),
            parent_version=None,
        )  # fmt: skip
        self.loaded = load_model(checked)
        self.stop = stop
        self.budget = pack_budget(self.loaded.recipe)
        """Tokens per forward pass. Halved when memory runs out."""
        self.start = adapter_weights(self.adapted)
        self.engine = RememberingEngine(
            self.adapted, tokenizer, batch_size=recipe.reward.batch_size, on_note=write_stderr
        )

    @property
    def adapted(self) -> Any:
        """The PEFT model inside."""
        return self.loaded.together.model.model

    def step(self, samples: Sequence[TokenSample], *, divide_by: float, rate: float) -> float:
        """Take one step on samples, whose weights are their advantages. Returns the norm of the gradient.

        Raises:
            Diverged: the gradient is not finite.
            OutOfMemory: a single answer does not fit.
        """
        accelerator, model, optimizer = self.loaded.accelerator, self.loaded.model, self.loaded.optimizer
        self.gradients(samples, divide_by=divide_by)
        limit = self.loaded.recipe.training.max_grad_norm or math.inf
        norm = float(accelerator.clip_grad_norm_(model.parameters(), limit))
        if not math.isfinite(norm):
            optimizer.zero_grad()
            raise Diverged(f"the norm of the gradient is {norm}. Lower reward.learning_rate")
        set_learning_rate(optimizer, rate)
        optimizer.step()
        optimizer.zero_grad()
        return norm

    def gradients(self, samples: Sequence[TokenSample], *, divide_by: float) -> None:
        """Compute the gradients of the loss. When memory runs out, repeat with half as many tokens per pass."""
        while True:
            self.loaded.model.train()
            self.loaded.optimizer.zero_grad()
            packs = pack_samples(range(len(samples)), samples, budget=self.budget, rank=0, world=1)
            try:
                for pack in packs:
                    self.stop.check()
                    batch = collate([samples[place] for place in pack]).to(self.loaded.accelerator.device)
                    loss, _ = self.loaded.model(batch)
                    self.loaded.accelerator.backward(loss / divide_by)
                return
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if all(len(pack) == 1 for pack in packs):
                    raise OutOfMemory("there is no memory for one answer. Lower reward.max_tokens") from error
            torch.cuda.empty_cache()
            self.budget //= 2

    def log_probabilities(self, samples: Sequence[TokenSample]) -> list[float]:
        """Return the log-probability of each sample's answer, in nats."""
        held = HeldOut(self.loaded.accelerator, self.loaded.model, samples, budget=self.budget, stop=self.stop)
        return [-score.loss_sum for score in held.by_sample()]

    def log_probabilities_at_start(self, samples: Sequence[TokenSample]) -> list[float]:
        """Return the same for the weights before the first round."""
        own = adapter_weights(self.adapted)
        set_peft_model_state_dict(self.adapted, self.start)
        try:
            return self.log_probabilities(samples)
        finally:
            set_peft_model_state_dict(self.adapted, own)

    def save(self, folder: Path) -> None:
        """Write adapter and optimizer."""
        from safetensors.torch import save_file

        tensors, scalars = flatten(self._optimizer.state_dict())
        save_file(adapter_weights(self.adapted), folder / "adapter.safetensors")
        save_file(tensors, folder / "optimizer.safetensors")
        write_json(folder / "state.json", scalars)

    def restore(self, folder: Path) -> None:
        """Read adapter and optimizer."""
        from safetensors.torch import load_file

        set_peft_model_state_dict(self.adapted, load_file(folder / "adapter.safetensors"))
        state = unflatten(load_file(folder / "optimizer.safetensors"), read_json(folder / "state.json"))
        self._optimizer.load_state_dict(state)

    @property
    def _optimizer(self) -> Any:
        return getattr(self.loaded.optimizer, "optimizer", self.loaded.optimizer)


def token_sample(prompt: Sequence[int], drawn: Sequence[int], advantage: float = 1.0) -> TokenSample:
    """Return an answer with loss on what was drawn."""
    return TokenSample(
        file_id=0,
        ids=torch.tensor([*prompt, *drawn], dtype=torch.int32),
        labels=torch.tensor([IGNORED] * len(prompt) + [*drawn], dtype=torch.int32),
        supervised=len(drawn),
        weight=advantage,
    )
