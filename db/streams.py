"""A stream is a lineage of adapters, bound for ever to a source, a base@revision and a LoRA shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg2 import extensions

from db.errors import StreamMismatch
from db.pool import Pool
from db.statements import QUERIES, as_json
from db.table import CHANNEL


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What every adapter of a stream has in common."""

    source: str
    """Name of the source table and its columns."""
    base_model: str
    base_revision: str
    lora: Mapping[str, Any]
    """The adapter's shape, as plain JSON values."""


def bind(pool: Pool, stream: str, binding: Binding) -> None:
    """Bind a new stream, or make sure that it is bound to the same.

    Raises:
        StreamMismatch: it is bound to something else; lists every difference.
    """
    with pool.transaction() as cursor:
        cursor.execute(
            QUERIES["stream_create"],
            {
                "stream": stream,
                "source": binding.source,
                "base_model": binding.base_model,
                "base_revision": binding.base_revision,
                "lora": as_json(binding.lora),
            },
        )
        bound = _get(cursor, stream)
    assert bound is not None
    if problems := _differences(bound, binding):
        raise StreamMismatch(stream, problems)


def get(pool: Pool, stream: str) -> Binding | None:
    """What a stream is bound to; None before its first binding."""
    with pool.transaction(read_only=True) as cursor:
        return _get(cursor, stream)


def request_training(pool: Pool, stream: str) -> None:
    """Ask for a run as soon as possible, whatever the minimum of new files. A waiting service notices it at once."""
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["training_request"], {"stream": stream})
        cursor.execute(QUERIES["files_notify"], {"channel": CHANNEL})


def training_requested(pool: Pool, stream: str) -> datetime | None:
    """When a run was last asked for; None when nobody did since the last claim."""
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(QUERIES["training_requested"], {"stream": stream})
        row = cursor.fetchone()
    return None if row is None else row[0]


def _get(cursor: extensions.cursor, stream: str) -> Binding | None:
    cursor.execute(QUERIES["stream_get"], {"stream": stream})
    row = cursor.fetchone()
    if row is None:
        return None
    source, base_model, base_revision, lora = row
    return Binding(source=source, base_model=base_model, base_revision=base_revision, lora=lora)


def _differences(bound: Binding, wanted: Binding) -> list[str]:
    """One line for each value that differs; JSON has no tuples, so sequences are compared as lists."""
    before, after = _flat(bound), _flat(wanted)
    return [
        f"{key}: the stream has {before.get(key)!r}, the recipe {after.get(key)!r}"
        for key in (*before, *(key for key in after if key not in before))
        if before.get(key) != after.get(key)
    ]


def _flat(binding: Binding) -> dict[str, Any]:
    shape = {f"lora.{key}": list(value) if isinstance(value, tuple) else value for key, value in binding.lora.items()}
    return {
        "source": binding.source,
        "base.model": binding.base_model,
        "base.revision": binding.base_revision,
        **shape,
    }
