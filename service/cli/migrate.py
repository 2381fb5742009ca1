"""The command migrate, for an administrator of the database."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from db import migrate as migrations
from db import rights
from db.source import check_source
from service.cli.console import JsonOption, RecipeOption, out, print_json, settings_for
from service.database import database


def migrate(
    role: Annotated[
        str | None,
        typer.Option(help="Role of the service: give it the rights that it needs, and no others."),
    ] = None,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Apply the outstanding migrations, and grant a service's role its rights. Run it as an owner of the database."""
    settings = settings_for(recipe)
    with database(settings, migrated=False) as pool:
        applied = migrations.apply(pool, settings.source)
        granted = []
        if role is not None:
            check_source(pool, settings.source)  # a grant on a source that does not exist would be left out
            granted = rights.grant(pool, role, settings.source)
    if as_json:
        print_json({"applied": applied, "granted": granted})
        return
    out.print(f"applied: {', '.join(applied)}" if applied else "all migrations were applied before")
    for statement in granted:
        out.print(escape(statement))
    if role is not None and not granted:
        out.print(escape(f"the role {role} has all rights that it needs"))
