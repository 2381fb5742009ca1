"""The section `reward` of a recipe: how `codelupe reward` trains (docs/reward.md). (no torch)"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.recipe_values import choice, number


@dataclass(frozen=True, kw_only=True)
class Reward:
    """How `codelupe reward` trains on what the sandbox says of the model's own answers (docs/reward.md)."""

    temperature: float = number(1.0, 0.01, 10.0)
    """Of the answers. The method grpo needs 1: its gradient is that of what was drawn."""
    max_tokens: int = number(512, 1, 1 << 16)
    """Maximum tokens of an answer."""
    style: str = choice("auto", "chat", "completion")
    """How a task is asked, as in docs/evaluation.md. `auto`: chat, if the base has a chat template."""
    batch_size: int = number(16, 1, 4096)
    """Answers that are generated together."""
    held_out_fraction: float = number(0.2, 0.01, 0.9)
    """Share of the tasks that are measured and never trained on. At least one task, and never all."""
    most_answers_per_task: int = number(4, 1, 10_000)
    """rejection: maximum number of distinct answers to a task that a round trains on."""
    learning_rate: float | None = number(None, 1e-9, 1.0)
    """The rate of all rounds. None: training.learning_rate."""
    partial: bool = False
    """grpo: whether a failed answer gets the share of assertions that hold. false: all or nothing."""
    divide_by_deviation: bool = False
    """grpo: whether advantages are divided by the standard deviation of their group."""
    kl: float = number(0.0, 0.0, 100.0)
    """grpo: how much each nat of distance from the start costs, as a part of the reward."""
