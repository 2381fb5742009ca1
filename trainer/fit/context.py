"""What a fit uses, and what it checks of every number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from trainer.data.batches import Windows
from trainer.data.encoder import TokenSample
from trainer.device_readings import DeviceReadings
from trainer.errors import Diverged
from trainer.evaluate.held_out import HeldOut
from trainer.events import Events
from trainer.fit.suspects import find_suspects
from trainer.fit.together import Together
from trainer.model.routing import Routing
from trainer.recipe import Recipe
from trainer.records import Failure, Suspects
from trainer.stop import StopRequest
from trainer.track.trackers import Trackers


@dataclass(frozen=True, kw_only=True)
class FitContext:
    """Objects that a fit uses."""

    recipe: Recipe
    accelerator: Accelerator
    model: Any
    """What computes the loss: a LossModel, wrapped by accelerate or DeepSpeed."""
    optimizer: Any
    together: Together
    windows: Windows
    held_out: HeldOut
    pad: int
    checkpoints: Path
    events: Events
    trackers: Trackers
    readings: DeviceReadings
    stop: StopRequest

    @property
    def adapted(self) -> Any:
        """The PEFT model inside."""
        return self.together.model.model

    @property
    def routing(self) -> Routing | None:
        """What follows the routers of a mixture of experts."""
        found: Routing | None = self.together.model.routing
        return found

    def members(self, step: int) -> list[TokenSample]:
        """Return the samples of a step, counted from 1, on all ranks."""
        return [self.windows.samples[index] for index in self.windows[step - 1].members]

    def check_finite(
        self, step: int, samples: Sequence[TokenSample], outside: Sequence[TokenSample], **values: float
    ) -> None:
        """Raises Diverged if a value from `samples` is not finite. `outside` are samples of other steps."""
        for what, value in values.items():
            if not math.isfinite(value):
                self.events.emit("non_finite", step=step, what=what)
                self.optimizer.zero_grad()
                raise Diverged(f"step {step}: {what} is {value}", self.suspects("non_finite", step, samples, outside))

    def suspects(
        self, reason: Failure, step: int, samples: Sequence[TokenSample], outside: Sequence[TokenSample]
    ) -> Suspects | None:
        """Return the rows that may have made a step fail."""
        return find_suspects(
            self.accelerator, self.model, self.optimizer, samples, outside=outside, reason=reason, step=step
        )
