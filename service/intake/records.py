"""Makes rows of records: their text or their turns, and what they say about themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from db.files import NewFile
from service.intake import fields
from service.intake.fields import BadValue, by_our_names, is_storable, stored
from service.intake.formats import Skipped, read_records
from service.intake.languages import language
from service.intake.quality import quality_score
from service.intake.turns import COLUMNS as TURN_COLUMNS
from service.intake.turns import BadTurns, turns_in
from service.source_files import plain, plain_values, pointer
from trainer.conversations import MESSAGES, Turn, as_messages, readable

CONVERSATION_SCORE = 80.0
"""Score of a conversation without one. The heuristic judges code."""
NO_TEXT, NOT_TEXT = "row has no `content`", "not text"


@dataclass(frozen=True, kw_only=True)
class Given:
    """Defaults and overrides given on the command line."""

    score: float | None = None
    """None: use the record's own score, else the heuristic (service/intake/quality.py)."""
    repository: str | None = None
    """For rows without a repository. None: use the name of the folder or file."""
    phase: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """The records' own names of columns, by ours."""
    include_vendored: bool = False
    """Whether to take what is in folders of other people's code, such as `node_modules`."""

    def score_of(self, content: str) -> float:
        return quality_score(content) if self.score is None else self.score


@dataclass(kw_only=True)
class Columns:
    """The columns that a file of records has, and those that nothing was read from."""

    seen: Counter[str] = field(default_factory=Counter)

    def unknown(self, given: Given) -> list[str]:
        return fields.unknown_columns(self.seen, given.columns, TURN_COLUMNS)


def read_file(
    path: Path, given: Given, columns: Columns, *, name: str | None = None, repository: str | None = None
) -> Iterator[NewFile | Skipped]:
    """Yield the rows of a file of records.

    Args:
        columns: filled with the names of the records' columns
        name, repository: for rows without path or repository. Default: the file's name.
    """

    def wanted(column: str) -> bool:
        return not fields.unknown_columns([column], given.columns, TURN_COLUMNS)

    for number, record in enumerate(read_records(path, wanted), 1):
        if isinstance(record, str):
            yield record
            continue
        columns.seen.update(map(str, record))
        yield from_record(record, Path(name or path.name), number, given, repository)


def from_record(
    record: Mapping[str, Any], path: Path, number: int, given: Given, otherwise: str | None = None
) -> NewFile | Skipped:
    """Return a record as a row, or why it is skipped.

    `path` and `number` form the path of a record without one. `otherwise` is its default repository.
    """
    known = by_our_names(record, given.columns)
    try:
        turns = None if fields.has_own_text(record, given.columns) else turns_in(known)
        return _row(known, turns, path, number, given, otherwise)
    except (BadValue, BadTurns) as error:
        return str(error)


def _row(
    known: Mapping[str, Any],
    turns: Sequence[Turn] | None,
    path: Path,
    number: int,
    given: Given,
    otherwise: str | None,
) -> NewFile | Skipped:
    metadata = fields.metadata(known.get("metadata"))
    content = known.get("content")
    if turns is None and content is None:
        return NO_TEXT
    if turns is not None:
        content = readable(turns)
        metadata[MESSAGES] = as_messages(turns)
    if not isinstance(content, str) or not is_storable(content):
        return NOT_TEXT
    content, metadata = plain(content), plain_values(metadata)
    if turns is None and (other := pointer(content)) is not None:
        return other
    own_path = fields.text("path", known.get("path"))
    spoken = fields.text("language", known.get("language"))
    if spoken is None and turns is None:
        spoken = language(own_path or "", content)
    score = fields.score(known.get("quality_score"))
    if score is None:
        score = given.score_of(content) if turns is None or given.score is not None else CONVERSATION_SCORE
    repository = fields.text("repository", known.get("repository")) or given.repository or otherwise
    return NewFile(
        repository=repository or stored(path.name.split(".")[0]),
        path=own_path or stored(f"{path}:{number}"),
        language=(spoken or "text").lower(),
        content=content,
        quality_score=score,
        license=fields.licence(known.get("license")),
        commit_sha=fields.text("commit_sha", known.get("commit_sha")),
        phase=given.phase or fields.text("phase", known.get("phase")),
        metadata=metadata,
    )
