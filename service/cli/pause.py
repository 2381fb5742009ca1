"""The commands pause and resume."""

from __future__ import annotations

from typing import Annotated

import typer

from db import holds
from service.cli.console import RecipeOption, out, settings_for
from service.database import database


def pause(
    now: Annotated[
        bool, typer.Option("--now", help="Also save a checkpoint of the run in progress and stop its training.")
    ] = False,
    recipe: RecipeOption = None,
) -> None:
    """Start no new run until `codelupe resume`. Without --now, a run in progress goes on to its verdict."""
    settings = settings_for(recipe)
    stream = settings.recipe.stream
    with database(settings) as pool:
        holds.hold(pool, stream, stop_training=now)
    out.print(f"{stream} is paused. `codelupe resume` ends the pause")


def resume(recipe: RecipeOption = None) -> None:
    """End the pause. A run that was stopped goes on from its last checkpoint."""
    settings = settings_for(recipe)
    stream = settings.recipe.stream
    with database(settings) as pool:
        was_paused = holds.release(pool, stream)
    out.print(f"{stream} goes on" if was_paused else f"{stream} was not paused")
