"""What a claim reads: rows of the source, held-out files, and their bytes decoded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_METADATA_BYTES = 4_000_000


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """An eligible row that no run has."""

    file_id: int
    repository: str | None
    path: str | None
    language: str
    """Lower case; `text` where the table has none."""
    content: str
    sha256: str
    """Of the content's UTF-8 bytes, as they were read."""
    quality_score: float
    held_out: bool
    """The stream decided earlier that this file is never trained on."""
    attempts: int
    """How many refused candidates had it."""
    license: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the producer knows besides; empty where the source has no such column, or no object in it."""


@dataclass(frozen=True, kw_only=True)
class HeldOutRow:
    """A held-out file of an earlier run, as it was claimed then."""

    file_id: int
    repository: str | None
    path: str | None
    language: str
    content: str
    sha256: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class HeldOutPlace:
    """Where a held-out file is."""

    file_id: int
    repository: str | None
    path: str | None


class BadMetadata(Exception):
    """Metadata that cannot go along with its row: too much, too deep, or not fit to be written again."""


_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""The escape of a NUL character, which json can hold and the jsonb of `held_out` cannot."""


def text_of(value: Any) -> str | None:
    return None if value is None else bytes(value).decode()


def metadata_object(value: Any) -> Mapping[str, Any]:
    """A JSON object from its bytes; empty for null and for JSON that is no object."""
    if value is None:
        return {}
    if len(value) > MAX_METADATA_BYTES:
        raise BadMetadata
    text = bytes(value).decode()
    try:
        found = json.loads(text)
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()  # 1e999 is infinite to Python
    except (ValueError, RecursionError) as error:
        raise BadMetadata from error
    if _NUL.search(text):
        raise BadMetadata
    return found if isinstance(found, dict) else {}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
