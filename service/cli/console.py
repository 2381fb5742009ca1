"""Options and output shared by the commands."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.settings.environment import chosen_recipe
from service.settings.load import Settings, load_settings
from service.visible import visible


class _Out(Console):
    """Prints texts without the control characters that they hold."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(visible(one) if isinstance(one, str) else one for one in objects), **options)


out = _Out(soft_wrap=True, highlight=False)

RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe", help="Recipe file, or the name of one in recipes/. Default: CODELUPE_RECIPE, else embedded."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


def settings_for(recipe: Path | None, **flags: str | None) -> Settings:
    """Load a command's settings. A flag that is None was not given."""
    return load_settings(
        chosen_recipe(recipe), flags={name: value for name, value in flags.items() if value is not None}
    )


def print_json(value: Any) -> None:
    """Print one value as JSON on stdout, with times in ISO format."""
    print(json.dumps(value, indent=1, default=_plain))


def print_table(title: str | None, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table. None gives an empty cell. Without `columns` the table has no header."""
    table = Table(
        *map(visible, columns), title=title and visible(title), title_justify="left", show_header=bool(columns)
    )
    for row in rows:
        table.add_row(*(escape(visible("" if value is None else str(value))) for value in row))
    out.print(table)


def when(moment: datetime | None) -> str:
    """Format a time to the second."""
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else ""


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
