"""The section `experiment` of a recipe: what `codelupe experiment` compares (docs/experiment.md). (no torch)"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainer.recipe_values import number


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the trainings that are compared. Arms differ in the metadata only."""

    name: str
    metadata: bool = False
    """Whether the rows' facts are shown before the question (data.metadata)."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How much is trained."""

    name: str
    tasks: int = number(164, 1, 1_000_000)
    """Number of training tasks, from the start of the file. Up to data.min_held_out more are held out."""
    num_epochs: int = number(1, 1, 1000)
    gradient_accumulation_steps: int = number(1, 1, 65536)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Arms, stages, and how the arms are measured."""

    arms: tuple[Arm, ...] = (Arm(name="control"), Arm(name="experiment", metadata=True))
    """The first one is the control."""
    stages: tuple[Stage, ...] = (
        Stage(name="stage1", tasks=5),
        Stage(name="stage4", tasks=164, num_epochs=3, gradient_accumulation_steps=4),
    )
    samples_per_task: int = number(200, 1, 10_000)
    """Answers to each test task."""
    temperature: float = number(0.8, 0.0, 10.0)
    k: tuple[int, ...] = (1, 10, 100)
    """The pass@k to report, for each k that has at least as many answers."""


def experiment_problems(experiment: Experiment) -> Iterator[str]:
    """Yield contradictions between values."""
    named = {"arms": [arm.name for arm in experiment.arms], "stages": [stage.name for stage in experiment.stages]}
    for what, names in named.items():
        if not names:
            yield f"experiment.{what}: the list is empty"
        if twice := sorted({name for name in names if names.count(name) > 1}):
            yield f"experiment.{what}: the name {', '.join(twice)} occurs more than once"
        for name in names:
            if not name.replace("-", "_").isidentifier():
                yield f"experiment.{what}: {name!r} is part of file names. Use only letters, digits, - and _"
    if "base" in named["arms"]:
        yield "experiment.arms: 'base' stands for the base without an adapter. Choose another name"
    if experiment.k and min(experiment.k) < 1:
        yield f"experiment.k: {min(experiment.k)} is below the minimum, 1"
    if len(set(experiment.k)) != len(experiment.k):
        yield "experiment.k: a number occurs more than once"
    if experiment.temperature == 0 and experiment.samples_per_task > 1:
        yield (
            f"experiment.samples_per_task: {experiment.samples_per_task} answers at temperature 0 are all the same. "
            "Use 1, or a temperature above 0"
        )
