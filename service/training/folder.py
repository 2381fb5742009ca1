"""The folder of a training: which recipe and sources it is for, and how far it is.

FOLDER/training.json   what it was started with
       recipe.yaml     the recipe, as resolved; commands with CODELUPE_HOME=FOLDER use it
       runs/000001/    one run directory for each phase
       models/         published adapters, and a link to the current one
       postgres/ logs/ the embedded database and the log
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from db import embedded
from service.errors import PreconditionError, UsageError
from service.settings.environment import TRAINING as NAME
from service.settings.environment import TRAINING_RECIPE
from service.settings.home import Home, running_service
from service.training.sources import Part
from trainer.recipe import Recipe
from trainer.recipe_file import dump_recipe
from trainer.run_dir import read_json, write_json, write_text

Kind = Literal["training", "sweep", "range test"]


@dataclass(frozen=True, kw_only=True)
class TrainingFolder:
    """A folder that belongs to one training."""

    root: Path
    facts: dict[str, Any]
    """What it was started with: recipe and sources."""

    @property
    def home(self) -> Home:
        """Its places. They are those of a service, so that every command works on the folder."""
        return Home(self.root)

    @property
    def read(self) -> str | None:
        """The state of the sources (`fingerprint`) whose rows are all in its database. None: they are not."""
        return read_json(self.root / NAME).get("read") or None

    def note_read(self, sources: str) -> None:
        """Record that all rows are in the database."""
        write_json(self.root / NAME, {**self.facts, "read": sources})

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the recipe that commands in this folder use."""
        write_text(self.root / TRAINING_RECIPE, dump_recipe(recipe))

    def note_unfit(self) -> None:
        """Record that the rows cannot be trained on, if no run has begun. The next start reads the sources anew."""
        if not _has_runs(self.root):
            write_json(self.root / NAME, {**self.facts, "read": None, "unfit": True})


def open_folder(
    root: Path, recipe: Recipe, parts: Sequence[Part], *, kind: Kind = "training", smoke: bool = False
) -> TrainingFolder:
    """Make the folder of a training, or open that of an earlier start of the same one.

    Args:
        kind: a sweep's run is never trained itself, so a folder is for one kind only

    Raises:
        UsageError: the folder belongs to another training, or holds something else.
        PreconditionError: it cannot be written or read.
    """
    facts = {
        "format": 1,
        "kind": kind,
        "recipe": recipe.name,
        "recipe_sha256": hashlib.sha256(dump_recipe(recipe).encode()).hexdigest(),
        "smoke": smoke,
        "sources": [{"phase": part.phase, "paths": list(part.sources)} for part in parts],
    }
    path = root / NAME
    if root.exists() and not root.is_dir():
        raise UsageError(f"--to: {root} is a file. Choose a folder")
    if not path.exists() and root.exists() and any(root.iterdir()):
        raise UsageError(f"--to: {root} is not empty, and holds no training. Choose another folder")
    before, unfit = _facts(path, kind) if path.exists() else (None, False)
    if before is not None and (unfit or before != facts):
        if _has_runs(root):
            if before["kind"] != kind:
                raise UsageError(f"{root} holds a {before['kind']}, not a {kind}. Choose another folder with --to")
            what = "the sources" if before.get("sources") != facts["sources"] else "the recipe or an option"
            raise UsageError(
                f"{root} holds another {kind} ({before.get('recipe')}): {what} differ. To start anew, choose another "
                "folder with --to. To resume, give the same options as before"
            )
        _remove(root)  # an earlier command failed before it trained anything
        before = None
    if before is None:
        try:
            Home(root).prepare()
        except PreconditionError as error:
            raise PreconditionError(f"--to: {root} cannot be written. Choose another folder") from error
        write_json(path, {**facts, "read": None})
    return TrainingFolder(root=root, facts=facts)


def _has_runs(root: Path) -> bool:
    return any(root.glob("runs/[0-9]*"))


def _facts(path: Path, kind: Kind) -> tuple[dict[str, Any], bool]:
    """Return what a training was started with, and whether its rows were found unfit.

    Args:
        kind: that of a folder which does not say it, because an earlier release made it
    """
    try:
        record = dict(read_json(path))
        unfit = bool(record.pop("unfit", False))
        record.pop("read", None)
        return {"kind": kind, **record}, unfit
    except (OSError, ValueError, TypeError) as error:
        raise PreconditionError(f"{path} cannot be read ({error}). Choose another folder with --to") from error


def _remove(root: Path) -> None:
    """Remove a folder without runs.

    Raises:
        PreconditionError: another process works there.
    """
    if (pid := running_service(Home(root))) is not None:
        raise PreconditionError(f"process {pid} works in {root}. Wait for it, or choose another folder with --to")
    embedded.stop(Home(root).postgres)
    shutil.rmtree(root)
