"""The rows that a claim reads, and the decoding of their bytes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_METADATA_BYTES = 4_000_000
"""Longer metadata is not read."""
DEEPEST_METADATA = 100
"""Levels of metadata. The claim walks through them by recursion, and Python has room for some hundred."""


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """An eligible row of the source that no run has."""

    file_id: int
    repository: str | None
    path: str | None
    language: str
    """In lower case. `text` if the table has no value."""
    content: str
    sha256: str
    """The sha256 of the content as it was read from the source."""
    quality_score: float
    held_out: bool
    """Whether the file was held out by an earlier run, so that it is never trained on."""
    attempts: int
    """How many refused candidates were trained on the row."""
    license: str | None = None
    mark: int | None = None
    """Tells whether the source row may have changed since (db/table.py)."""
    version: int = 0
    """How many earlier texts of the row were settled."""
    trained_texts: frozenset[str] = frozenset()
    """The sha256 of each earlier text of the row that was trained on. Such a row is not held out to fill up a run."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Further data from the producer. Empty if the source has no such column, or if its value is not a JSON object."""


@dataclass(frozen=True, kw_only=True)
class HeldOutRow:
    """A held-out file of an earlier run, with its text as it was claimed."""

    file_id: int
    repository: str | None
    path: str | None
    language: str
    content: str
    sha256: str
    metadata: Mapping[str, Any]
    run_id: int
    """The run that held the file out."""


@dataclass(frozen=True, kw_only=True)
class HeldOutPlace:
    """The repository and path of a held-out file."""

    file_id: int
    repository: str | None
    path: str | None


class BadMetadata(Exception):
    """The metadata of a row cannot be used: it is too large, nested too deeply, or cannot be stored as jsonb."""


class LongName(Exception):
    """The repository, path, language or license of a row is too long. The statement has not read it."""


_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""Matches the escape of a NUL character. A json column can contain it, but the jsonb column of `held_out` cannot."""


def text_of(value: Any) -> str | None:
    """Decode a name.

    Raises:
        LongName: it is too long.
        UnicodeDecodeError: the bytes are not UTF-8.
    """
    if value is None:
        return None
    found = bytes(value)
    if found == b"\0":
        raise LongName
    return found.decode()


def metadata_object(value: Any) -> Mapping[str, Any]:
    """Parse a JSON object. Returns an empty mapping for null and for JSON that is not an object.

    Raises:
        BadMetadata: the metadata cannot be used.
        UnicodeDecodeError: the bytes are not UTF-8.
    """
    if value is None:
        return {}
    text = bytes(value).decode()  # empty if there are more than MAX_METADATA_BYTES
    try:
        found = json.loads(text)
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()  # Python reads 1e999 as infinity
    except (ValueError, RecursionError) as error:
        raise BadMetadata from error
    if _NUL.search(text) or _is_too_deep(found, text):
        raise BadMetadata
    return found if isinstance(found, dict) else {}


def _is_too_deep(value: Any, text: str) -> bool:
    """Whether the value of a JSON text has more levels than DEEPEST_METADATA."""
    if text.count("[") + text.count("{") <= DEEPEST_METADATA:
        return False
    level, depth = [value], 0
    while level:
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level, depth = [item for items in inner for item in items], depth + bool(inner)
        if depth > DEEPEST_METADATA:
            return True
    return False


def source_row(record: Sequence[Any]) -> SourceRow:
    """Decode a record of `source_claimable` or `source_by_id`.

    Raises:
        UnicodeDecodeError: a text is not UTF-8.
        LongName: a name is too long.
        BadMetadata: the metadata cannot be used.
    """
    file_id, repository, path, language, content, score, held_out, attempts, license, metadata = record[:10]
    mark, version, trained_texts = record[10:]
    return SourceRow(
        file_id=file_id,
        repository=text_of(repository),
        path=text_of(path),
        language=(text_of(language) or "text").strip().lower() or "text",
        content=bytes(content).decode(),
        sha256=digest(content),
        quality_score=float(score),  # as text: a numeric can be beyond double precision
        held_out=held_out,
        attempts=attempts,
        license=text_of(license),
        mark=mark,
        version=version,
        trained_texts=frozenset(trained_texts),
        metadata=metadata_object(metadata),
    )


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
