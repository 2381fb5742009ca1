"""Finds the adapter that a command names: `base`, `current`, `previous`, a version, a folder, or a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from db.adapters import Adapter
from service.errors import PreconditionError, UsageError
from service.publish.serving import version_name
from service.settings.home import Home

CONFIG = "adapter_config.json"
CHECKPOINT = "adapter.safetensors"
"""The weights in a checkpoint of a run directory."""
WORDS = ("base", "current", "previous")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """An adapter, or the base."""

    label: str
    """Short name for folders and tables: `base`, `v000003` or the folder's name."""
    folder: Path | None
    """None: the base alone."""
    served_name: str | None
    """The name under which the service loads it into vLLM. None: it does not."""


def choose_adapter(word: str, home: Home, history: Callable[[], Sequence[Adapter]]) -> Chosen:
    """Return the adapter of a word. Only words that need it ask for the stream's `history`, newest first.

    Raises:
        UsageError: no such version or folder.
        PreconditionError: no adapter was published yet, or its folder is gone.
    """
    if word == "base":
        return Chosen(label="base", folder=None, served_name=None)
    if word in WORDS:
        return _published(_word(word, history()), home)
    if word.isdecimal() and len(word) < 19:
        versions = history()
        found = next((adapter for adapter in versions if adapter.version == int(word)), None)
        if found is None:
            raise UsageError(f"the stream has no adapter {word}; `codelupe adapters` lists them")
        return _published(found, home)
    folder = Path(word)
    if not (folder / CONFIG).is_file():
        raise UsageError(
            f"{word!r} is neither {', '.join(WORDS)}, nor a version, nor an adapter folder (with {CONFIG})"
        )
    folder = folder.resolve()
    return Chosen(label=folder.name, folder=folder, served_name=None)


def found_models(home: Home, history: Sequence[Adapter]) -> list[Chosen]:
    """Return what can be compared: the base, published versions, candidates, and checkpoints of runs and replays."""
    versions = [adapter for adapter in history if home.adapter(adapter.version).is_dir()]
    found = [choose_adapter("base", home, lambda: history), *(_published(adapter, home) for adapter in versions)]
    for runs in (home.runs, home.root / "replays"):
        folders = [*runs.glob("*/adapter"), *runs.glob("*/checkpoints/step-*")]
        for folder in sorted(one for one in folders if (one / CONFIG).is_file() or (one / CHECKPOINT).is_file()):
            label = str(folder.relative_to(home.root)).replace("/checkpoints/", "/")
            found.append(Chosen(label=label, folder=folder.absolute(), served_name=None))
    return found


def choose_model(word: str, home: Home, history: Callable[[], Sequence[Adapter]]) -> Chosen:
    """Return the model of a word: what `choose_adapter` knows, a label of `found_models`, or a checkpoint's folder.

    Raises:
        UsageError, PreconditionError: as `choose_adapter`.
    """
    if (Path(word) / CHECKPOINT).is_file():
        folder = Path(word).resolve()
        return Chosen(label=f"{folder.parent.parent.name}/{folder.name}", folder=folder, served_name=None)
    if "/" in word or word.startswith("v"):
        for one in found_models(home, history()):
            if one.label == word:
                return one
    return choose_adapter(word, home, history)


def _word(word: str, history: Sequence[Adapter]) -> Adapter:
    current = next((adapter for adapter in history if adapter.is_current), None)
    if current is None:
        raise PreconditionError("no adapter was published yet. The name `base` stands for the base alone")
    if word == "current":
        return current
    earlier = [adapter for adapter in history if adapter.version < current.version]
    if not earlier:
        raise PreconditionError(
            f"there is no adapter before version {current.version}. The name `base` stands for the base alone"
        )
    return max(earlier, key=lambda adapter: adapter.version)


def _published(adapter: Adapter, home: Home) -> Chosen:
    folder = home.adapter(adapter.version)
    if not folder.is_dir():
        raise PreconditionError(
            f"{folder} does not exist: retention removes old versions (KEEP_ADAPTERS). Restore it from a backup"
        )
    return Chosen(label=folder.name, folder=folder.absolute(), served_name=version_name(adapter.version))
