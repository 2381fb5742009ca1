"""Toy models of real architectures, and recipes for them."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from run_folder import embedded, short_rows

from trainer.data.encoder import SampleEncoder, TokenSample
from trainer.data.tokenize import tokenize_rows
from trainer.model.base import folder_revision
from trainer.model.load import load_tokenizer
from trainer.model.toy import make_toy
from trainer.recipe import Base, Recipe


@functools.cache
def toy(architecture: str) -> Path:
    """Return the folder of a toy model."""
    folder = Path(tempfile.mkdtemp(prefix="toy-")) / architecture
    make_toy(architecture, folder)
    return folder


def toy_recipe(architecture: str, quantization: str = "none", *, folder: Path | None = None, **more: Any) -> Recipe:
    """Return a recipe for short runs in float32 on a toy, or on a changed copy of it."""
    folder = folder or toy(architecture)
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    mlp = [] if architecture == "mixtral" else ["gate_proj", "up_proj", "down_proj"]
    values: dict[str, Any] = dict(
        base__model=str(folder),
        base__revision=folder_revision(folder),
        base__quantization=quantization,
        base__compute_dtype="float32",
        data__builders={"chunks": 1.0},
        data__max_length=384,
        training__batch_size=2,
        training__gradient_accumulation_steps=1,
        training__learning_rate=0.01,
        training__num_epochs=2,
        evaluation__interval_fraction=0.5,
        evaluation__threshold=0.0,
        lora__rank=8,
        lora__alpha=16,
        lora__dropout=0.0,
        lora__targets=attention + mlp,
        tracking__sample_predictions=0,
        tracking__tensorboard=False,
    )
    return embedded(**(values | more))


def toy_samples(architecture: str, count: int, *, start: int = 1) -> list[TokenSample]:
    """Return short programs in the toy's tokens."""
    encoder = SampleEncoder(load_tokenizer(Base(model=str(toy(architecture)))))
    return tokenize_rows(short_rows(count, start=start), encoder, toy_recipe(architecture).data, seed=1).samples
