"""What the commands share: their common options, and how they print."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.settings.load import Settings, chosen_recipe, load_settings

out = Console(soft_wrap=True, highlight=False)

RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe", help="Recipe file, or the name of one in recipes/. Default: CODELUPE_RECIPE, else embedded."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


def settings_for(recipe: Path | None, **flags: str | None) -> Settings:
    """The settings of a command; flags that are None were not given."""
    return load_settings(
        chosen_recipe(recipe), flags={name: value for name, value in flags.items() if value is not None}
    )


def print_json(value: Any) -> None:
    """One value on stdout; times in ISO form."""
    print(json.dumps(value, indent=1, default=_plain))


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table for people; None is an empty cell."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(escape("" if value is None else str(value)) for value in row))
    out.print(table)


def when(moment: datetime | None) -> str:
    """A time to the second."""
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else ""


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
