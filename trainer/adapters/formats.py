"""Exports an adapter in one of three forms. Each is tried before its folder appears under its name."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer.adapters.gguf import answer_from_gguf, convert, find_converter
from trainer.adapters.merge import merge
from trainer.adapters.verify import NEW_TOKENS, TEXTS, answer_from, verification_prompts
from trainer.errors import UnusableInput
from trainer.evaluate.transformers_engine import load_model
from trainer.model.base import resolve_for
from trainer.model.load import load_tokenizer
from trainer.recipe import Recipe
from trainer.run_dir import MANIFEST, RunDirectoryError, new_folder, verify_manifest, write_manifest, write_text


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export and how."""

    recipe: Recipe
    adapter: Path
    to: Path
    """A folder that does not exist yet."""
    form: str
    """A key of FORMS."""
    dtype: str = "auto"
    """Of merged weights."""
    card: str | None = None
    """README.md of a merged model."""
    converter: str | None = None
    """llama.cpp's converter. None: the one on PATH."""
    on_note: Callable[[str], None] = lambda _: None


def export(request: ExportRequest) -> dict[str, Any]:
    """Export. Returns what was written, as plain JSON values.

    Raises:
        UnusableInput: the folder exists, or the adapter cannot be exported.
        MissingTool: the converter to GGUF is missing.
    """
    if request.to.exists():
        raise UnusableInput(f"{request.to} exists already. Choose a new folder with --to")
    return {"format": request.form, **FORMS[request.form](request)}


def _merged(request: ExportRequest) -> dict[str, Any]:
    return asdict(merge(request.recipe, request.adapter, request.to, dtype=request.dtype, card=request.card))


def _adapter(request: ExportRequest) -> dict[str, Any]:
    """Copy the adapter, and let base and copy answer as training loads them."""
    recipe = resolve_for(request.recipe, request.adapter)
    tokenizer = load_tokenizer(recipe.base)
    with new_folder(request.to) as temporary:
        shutil.copytree(request.adapter, temporary, dirs_exist_ok=True)
        if (temporary / MANIFEST).is_file():
            try:
                verify_manifest(temporary)
            except RunDirectoryError as error:
                raise UnusableInput(f"the copy differs: {error}. Check the disk") from error
        model = load_model(recipe, temporary, request.on_note).eval()
        answer = answer_from(model, tokenizer, verification_prompts(tokenizer)[0])
    return {
        "folder": str(request.to), "base": recipe.base.model, "revision": recipe.base.revision, "answer": answer,
    }  # fmt: skip


def _gguf(request: ExportRequest) -> dict[str, Any]:
    """Merge in a folder that is removed again, and convert the result."""
    converter = find_converter(request.converter)  # before the merge, which takes minutes
    request.to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{request.to.name}.", suffix=".tmp", dir=request.to.parent) as scratch:
        made = _merged(replace(request, to=Path(scratch) / request.to.name))
        torch.cuda.empty_cache()
        with new_folder(request.to) as temporary:
            file = temporary / f"{request.to.name}-{made['dtype']}.gguf"
            request.on_note("converting to GGUF")
            tensors = convert(converter, Path(scratch) / request.to.name, file, dtype=made["dtype"])
            answer = answer_from_gguf(file, TEXTS[0], tokens=NEW_TOKENS)
            if request.card is not None:
                write_text(temporary / "README.md", request.card)
            write_manifest(temporary, base=made["base"], revision=made["revision"], dtype=made["dtype"])
    if answer is None:
        request.on_note(
            "llama-cli is not on PATH, so only the file's header was checked. Nothing was generated from it"
        )
    return {**made, "folder": str(request.to), "file": file.name, "tensors": tensors, "answer": answer}


FORMS: dict[str, Callable[[ExportRequest], dict[str, Any]]] = {"hf": _merged, "adapter": _adapter, "gguf": _gguf}
"""By name."""
