"""Makes run directories as the service does, from short programs or the standard library."""

from __future__ import annotations

import functools
import hashlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from trainer.__main__ import run_command
from trainer.data.encoder import SampleEncoder, TokenSample
from trainer.data.tokenize import tokenize_rows
from trainer.model.base import resolve
from trainer.model.load import load_tokenizer
from trainer.model.tiny_corpus import is_pretraining_file, library_files
from trainer.recipe import Recipe, pinned
from trainer.recipe_file import dump_recipe, load_recipe, with_overrides
from trainer.records import EventTail, Row, json_line
from trainer.run_dir import RunDirectory, sha256_file, write_json, write_text

RECIPES = Path(__file__).parents[2] / "recipes"


def make_row(file_id: int, content: str, *, path: str | None = None, fresh: bool = True) -> Row:
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
    return Row(
        file_id=file_id,
        repository="demo",
        path=path or f"file_{file_id}.py",
        language="python",
        content=content,
        sha256=digest,
        fresh=fresh,
    )


def demo_rows(count: int, *, skip: int = 0) -> list[Row]:
    """Files of the standard library that the tiny base has not seen, of the length that the service takes."""
    texts = [item for item in library_files() if not is_pretraining_file(item[0]) and 50 <= len(item[1]) <= 4000]
    chosen = texts[skip : skip + count]
    return [make_row(skip + index, text, path=path) for index, (path, text) in enumerate(chosen, 1)]


def embedded(**overrides: Any) -> Recipe:
    """recipes/embedded.yaml, pinned; keys like `training__batch_size` override it."""
    recipe = load_recipe(RECIPES / "embedded.yaml")
    model, revision = resolve(recipe.base)
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return with_overrides(pinned(recipe, model=model, revision=revision), dotted)


def make_run(
    root: Path,
    recipe: Recipe,
    rows: Sequence[Row],
    held_out: Sequence[Row],
    *,
    replay: Sequence[Row] = (),
    parent: Path | None = None,
    run_id: int = 1,
    seed: int = 42,
    manifest: Mapping[str, Any] | None = None,
) -> RunDirectory:
    directory = RunDirectory(root)
    root.mkdir(parents=True)
    write_text(directory.recipe, dump_recipe(recipe))
    inputs = {"rows.jsonl": rows, "held_out.jsonl": held_out} | ({"replay.jsonl": replay} if replay else {})
    for name, records in inputs.items():
        write_text(root / name, "".join(json_line(asdict(row)) for row in records))
    if parent is not None:
        directory.parent.symlink_to(os.path.relpath(parent, root))
    facts: dict[str, Any] = {
        "files": {name: sha256_file(root / name) for name in ("recipe.yaml", *inputs)},
        "run_id": run_id,
        "stream": recipe.stream,
        "seed": seed,
        "parent_version": None if parent is None else run_id - 1,
        "parent_manifest_sha256": None if parent is None else sha256_file(parent / "MANIFEST.json"),
        "base": {"model": recipe.base.model, "revision": recipe.base.revision},
    }
    write_json(directory.manifest, facts | dict(manifest or {}))
    return directory


def program(index: int, lines: int = 14) -> str:
    """Return a short program in the usual style whose text resembles no other."""
    body = "".join(f"    total += values[{i}] * {index + i}  # term {i} of {index}\n" for i in range(lines - 3))
    return f"def combine_{index}(values):\n    total = {index}\n{body}    return total\n"


def short_rows(count: int, *, start: int = 1) -> list[Row]:
    return [make_row(start + i, program(start + i, 8 + (start + i) % 7)) for i in range(count)]


def short_recipe(**overrides: Any) -> Recipe:
    """Return the embedded recipe with few small steps in float32, so that results can be compared closely."""
    small = {
        "base__compute_dtype": "float32",
        "data__max_length": 384,
        "training__batch_size": 2,
        "training__gradient_accumulation_steps": 2,
        "evaluation__interval_fraction": 0.5,
        "evaluation__batch_size": 4,
        "lora__rank": 4,
        "lora__alpha": 8,
        "tracking__sample_predictions": 1,
        "tracking__tensorboard": False,
    }
    return embedded(**(small | overrides))


def short_run(root: Path, recipe: Recipe | None = None, **options: Any) -> RunDirectory:
    """A run of five steps on 20 short programs."""
    return make_run(root, recipe or short_recipe(), short_rows(20), short_rows(4, start=101), **options)


def run(directory: RunDirectory) -> int:
    """Train in this process; returns the exit code. accelerate would keep the process to its first precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return run_command(directory.root)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def events(directory: RunDirectory, name: str | None = None) -> list[dict[str, Any]]:
    return [event for event in EventTail(directory.events).new() if name in (None, event["event"])]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@functools.cache
def tokenizer() -> Any:
    return load_tokenizer(embedded().base)


@functools.cache
def encoder() -> SampleEncoder:
    return SampleEncoder(tokenizer())


def token_samples(count: int, *, start: int = 1, max_length: int = 384) -> list[TokenSample]:
    data = short_recipe(data__max_length=max_length).data
    return tokenize_rows(short_rows(count, start=start), encoder(), data, seed=42).samples
