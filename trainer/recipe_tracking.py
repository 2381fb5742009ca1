"""The section `tracking` of a recipe: what a run shows to people. (no torch)"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.recipe_values import choice, names, number


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Trackers for a run's curves, and answers to read (docs/tracking.md)."""

    wandb_project: str = "codelupe-qwen-training"
    wandb_adapter: str = choice("reference", "upload", "off")
    """A published adapter as W&B's artifact. `reference`: its path, lineage and checksums. `upload`: its files too."""
    tensorboard: bool = True
    sample_predictions: int = number(3, 0, 1000)
    """Number of held-out prompts that the candidate answers at the end, for people to read. 0 disables them."""
    prompts: tuple[str, ...] = names()
    """Prompts that the examination of each candidate answers, and the base too. The page shows them to everybody."""
    prompt_tokens: int = number(96, 1, 4096)
    """Maximum tokens of such an answer."""
