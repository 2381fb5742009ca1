"""Stages that every training starts with, one line each: the base model is resolved, and the stream bound to it."""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from db import embedded, streams
from db.errors import DatabaseError, StreamMismatch
from db.pool import Pool
from service import logs
from service.cycle.trainer_commands import prepare_base, with_absolute_folder
from service.database import shown_url
from service.errors import PreconditionError, UsageError
from service.logs import PrintProgress
from service.settings.home import Home
from service.settings.load import Settings
from service.web.board import Board, Snapshot
from trainer.recipe import Recipe, pinned
from trainer.recipe_file import dump_recipe


class Note(Protocol):
    """Records the result of a stage."""

    def __call__(self, text: str, /, **fields: Any) -> None: ...


@contextmanager
def stage(show: PrintProgress, name: str) -> Iterator[Note]:
    """Print one line for a stage, with its result and duration."""
    notes: list[tuple[str, dict[str, Any]]] = []
    began = time.monotonic()

    def note(text: str, /, **fields: Any) -> None:
        notes.append((text, fields))

    yield note
    for text, fields in notes:  # empty if the stage was interrupted
        show(name, text, **fields, seconds=round(time.monotonic() - began, 3))


def prepared_recipe(settings: Settings, show: PrintProgress, stop: threading.Event, board: Board) -> Recipe | None:
    """Resolve the base and pin it in the recipe. Returns None if `stop` is set meanwhile."""
    recipe = with_absolute_folder(settings.recipe)
    with stage(show, "base model") as note, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        logged = settings.log_format != "text"
        done = prepare_base(path, settings.trainer_secrets, stop, board.beat, capture_stderr=logged)
        for line in filter(str.strip, (done.stderr or "").splitlines()):
            logs.event("Base model", level=logging.WARNING, said=line)
        if stop.is_set():
            note("stopping")
            return None
        if done.returncode == 2:  # stderr has the reason
            raise UsageError(f"recipe {settings.recipe.name} does not fit the base model {settings.recipe.base.model}")
        if done.returncode != 0:
            raise PreconditionError(
                f"preparing the base model failed (exit code {done.returncode}). See the messages above"
            )
        facts = json.loads(done.stdout.splitlines()[-1])
        note(f"{facts['model']} at {facts['revision'][:12]}, {facts['parameters'] / 1e6:,.1f} M parameters", **facts)
    return pinned(recipe, model=facts["model"], revision=facts["revision"])


def adapter_shape(recipe: Recipe) -> dict[str, Any]:
    """Return what all adapters of a stream have in common besides their base.

    Trained routers are named only if there are any: older streams, and those without them, stay bound as they are.
    """
    lora = recipe.lora
    shape = {"rank": lora.rank, "alpha": lora.alpha, "targets": sorted(lora.targets)}
    return shape if recipe.moe.freeze_router else shape | {"routers": "trained"}


def bind_stream(pool: Pool, settings: Settings, recipe: Recipe) -> None:
    """Bind the stream to its source, base and LoRA shape. Fails if it is bound to others."""
    binding = streams.Binding(
        source=settings.source.name,
        base_model=recipe.base.model,
        base_revision=recipe.base.revision or "",
        lora=adapter_shape(recipe),
    )
    try:
        streams.bind(pool, recipe.stream, binding)
    except StreamMismatch as error:
        raise PreconditionError(str(error)) from error


def first_snapshot(settings: Settings) -> Snapshot:
    """Return what the board shows before anything has happened."""
    recipe = settings.recipe
    return Snapshot(
        stream=recipe.stream,
        model=recipe.base.model,
        batch_size=recipe.training.batch_size,
        lora_rank=recipe.lora.rank,
        min_new_files=settings.min_new_files,
    )


def database_url(settings: Settings, home: Home, stack: ExitStack, show: PrintProgress) -> str:
    """Return the URL of the database. Without one in the settings, the embedded database runs as long as the stack."""
    if settings.database_url is not None:
        show("database", shown_url(settings.database_url))
        return settings.database_url
    with stage(show, "database") as note:
        try:
            url = embedded.start(home.postgres)
        except DatabaseError as error:
            raise PreconditionError(str(error)) from error
        stack.callback(embedded.stop, home.postgres)
        note(f"embedded PostgreSQL in {home.postgres}", folder=str(home.postgres))
    return url
