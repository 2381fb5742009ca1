"""The commands adapters, rollback, connect and gc."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from db import adapters as adapter_table
from service.cli.console import JsonOption, RecipeOption, out, print_json, print_table, settings_for, when
from service.database import database
from service.errors import PreconditionError
from service.publish.editors import DEFAULT_URL, EDITORS, Connection, configuration
from service.publish.folders import retire
from service.publish.rollback import roll_back
from service.settings.home import Home, only_service, running_service


def adapters(recipe: RecipeOption = None, as_json: JsonOption = False) -> None:
    """List published adapters, newest first."""
    settings = settings_for(recipe)
    with database(settings) as pool:
        history = adapter_table.history(pool, settings.recipe.stream)
    if as_json:
        print_json([asdict(adapter) for adapter in history])
        return
    rows = [
        [a.version, "current" if a.is_current else "", a.parent_version, _loss(a, "current"), _loss(a, "candidate"),
         when(a.published_at)]
        for a in history
    ]  # fmt: skip
    print_table("adapters", ["version", "", "parent", "loss before", "loss after", "published at"], rows)


def _loss(adapter: adapter_table.Adapter, name: str) -> str:
    value = adapter.evaluation.get("losses", {}).get(name)
    return f"{value:.4f}" if isinstance(value, float) else ""


def rollback(
    version: Annotated[
        int, typer.Argument(help="Version to make current again (see `codelupe adapters`).", min=1, max=2**63 - 1)
    ],
    recipe: RecipeOption = None,
) -> None:
    """Make an earlier adapter current. A running service follows at its next poll."""
    settings = settings_for(recipe)
    with database(settings) as pool:
        out.print(roll_back(pool, Home(settings.home), settings.recipe.stream, version))


def connect(
    editor: Annotated[str, typer.Argument(help=f"One of {', '.join(EDITORS)}.")],
    url: Annotated[str, typer.Option(help="URL of the served API, as seen from the editor.")] = DEFAULT_URL,
    show_key: Annotated[bool, typer.Option("--show-key", help="Print VLLM_API_KEY instead of a placeholder.")] = False,
    recipe: RecipeOption = None,
) -> None:
    """Print an editor's configuration for the served model. stderr names the file it belongs in."""
    key = settings_for(recipe).vllm_api_key if show_key else None
    if show_key and key is None:
        raise PreconditionError("there is no key to show. Set VLLM_API_KEY")
    found = configuration(editor, Connection(url=url.rstrip("/"), key=key))
    print(found.text, end="")
    print(f"→ {found.advice}", file=sys.stderr)


def gc(recipe: RecipeOption = None) -> None:
    """Remove adapters beyond KEEP_ADAPTERS, and leftovers of interrupted writes."""
    settings = settings_for(recipe)
    home = Home(settings.home)
    if running_service(home) is not None:
        raise PreconditionError("the service is running and cleans up after each verdict. Stop it first")
    home.prepare()
    # No service may start meanwhile, because its claim looks like a leftover.
    with database(settings) as pool, only_service(home):
        here = adapter_table.history(pool, settings.recipe.stream, among=home.adapter_versions())
        removed = retire(home, here, settings.keep_adapters)
    for folder in removed:
        out.print(f"removed {folder}")
    out.print(f"{len(removed)} folders removed")
