"""Lets the referee start and stop transformers' Trainer, and trainers built on it, between optimizer steps."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback
from world import orders, say


class Referee(TrainerCallback):
    """Waits for orders before a step, and reports when they are done."""

    def __init__(self) -> None:
        self._orders = orders()
        self._left, self._steps, self._began, self._tokens = 0, 0, 0.0, 0
        self._cpu_began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._left:
            return
        self._left = self._steps = next(self._orders, 0)
        if not self._left:
            control.should_training_stop = True
        self._began, self._tokens = time.perf_counter(), int(state.num_input_tokens_seen)
        self._cpu_began = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self._left:
            return
        self._left -= 1
        if not self._left:
            seconds = time.perf_counter() - self._began
            tokens = int(state.num_input_tokens_seen) - self._tokens
            say(steps=self._steps, tokens=tokens, seconds=seconds, cpu_seconds=time.process_time() - self._cpu_began)
