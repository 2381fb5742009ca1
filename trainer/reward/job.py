"""What both methods work with, and what a method is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainer.evaluate.engines import Engine, Generation, Request, Sampling
from trainer.evaluate.execute import Runner
from trainer.evaluate.prompts import Style
from trainer.evaluate.suites import Task
from trainer.recipe import Recipe
from trainer.reward.answers import Answer, Asking, answer_tasks
from trainer.reward.request import RewardRequest
from trainer.reward.tasks import Tasks
from trainer.run_dir import MANIFEST, sha256_file
from trainer.stop import StopRequest

SEEDS_APART = 10_007
"""Two seeds share no round's seed: no number of rounds reaches this."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training on rewards."""

    request: RewardRequest
    recipe: Recipe
    """Its base is pinned."""
    tokenizer: Any
    tasks: Tasks
    style: Style
    runner: Runner
    stop: StopRequest

    def round_folder(self, number: int) -> Path:
        """Return the folder of a round, counted from 1."""
        return self.request.to / "rounds" / f"{number:04d}"

    def asking(self, number: int, adapter: Path | None) -> Asking:
        """Return how a round asks. Each round draws other answers."""
        reward, base = self.recipe.reward, self.recipe.base
        return Asking(
            tasks=self.tasks.all,
            style=self.style,
            samples_per_task=self.request.samples_per_task,
            sampling=Sampling(
                temperature=reward.temperature,
                max_tokens=reward.max_tokens,
                seed=self.recipe.training.seed * SEEDS_APART + number,
            ),
            facts={
                "base": {"model": base.model, "revision": base.revision},
                "adapter": None if adapter is None else sha256_file(adapter / MANIFEST),
            },
        )

    def answers(self, number: int, engine: Callable[[], Engine], *, adapter: Path | None = None) -> list[Answer]:
        """Answer and execute all tasks for a round."""
        asked = self.asking(number, adapter)

        def opened() -> Engine:
            return WithSolutions(engine(), self.tasks.all, self.style) if self.request.smoke else engine()

        return answer_tasks(asked, self.round_folder(number) / "answers", opened, self.runner, self.stop)


class Method(Protocol):
    """One way to learn from answers."""

    def answers(self, number: int) -> list[Answer]:
        """Answer all tasks with the adapter before a round."""
        ...

    def learn(self, number: int, answers: Sequence[Answer]) -> dict[str, Any]:
        """Train on a round's answers to training tasks. Returns facts for the round's report."""
        ...

    def settle(self, number: int) -> None:
        """Remove what no later round needs. The round has its report."""
        ...

    def finish(self) -> Path | None:
        """Return the folder of the adapter after the last round. None: nothing was trained."""
        ...


@dataclass(frozen=True)
class WithSolutions:
    """An engine whose first answer to each task is the task's own solution. Only for --smoke."""

    engine: Engine
    tasks: Sequence[Task]
    style: Style

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> Any:
        """Yield solutions, then answers."""
        solutions = {task.task_id: solution_text(task, self.style) for task in self.tasks}
        for request in requests:
            if request.sample == 0:
                yield Generation(
                    task_id=request.task_id, sample=0, text=solutions[request.task_id], tokens=0, seconds=0.0,
                    finish="stop",
                )  # fmt: skip
        yield from self.engine.answer([request for request in requests if request.sample], sampling)


def solution_text(task: Task, style: Style) -> str:
    """Return a task's solution as a model would answer."""
    if style == "completion":
        return task.solution
    return f"```python\n{task.program(task.solution).rstrip()}\n```"
