"""Fingerprints of what is trained, claimed or held out: look up what is alike, remember what is kept.

All of it happens in a claim's own transaction, so an undone claim leaves nothing behind. The database forgets a
fingerprint by itself when its row is rejected or returned (migrations/0002).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg2.extras import execute_values

from db.claim import BATCH_ROWS, Claim
from db.rows import BadMetadata, metadata_object
from db.statements import QUERIES


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What is kept of a text to know it again."""

    exact: bytes
    """Digest of the normalised text."""
    signature: bytes
    """The MinHash signature."""
    bands: tuple[int, ...]
    """Hashes of the signature's parts, 32 bits with sign; texts that are alike share at least one."""


@dataclass(frozen=True, kw_only=True)
class Alike:
    """A remembered file that shares a band with one that was asked about."""

    file_id: int
    """The one that was asked about."""
    exact: bytes
    signature: bytes


class Fingerprints:
    """The fingerprints of a claim's stream."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim

    def alike(self, asked: Mapping[int, Fingerprint]) -> Iterator[Alike]:
        """Remembered files, other than itself, that share a band with a file asked about; streamed."""
        pairs = [(file_id, band) for file_id, fingerprint in asked.items() for band in fingerprint.bands]
        parameters = {
            "stream": self._claim.lease.stream,
            "files": [file_id for file_id, _ in pairs],
            "bands": [band for _, band in pairs],
        }
        self._claim.cursor.execute(QUERIES["by_index"], {"scan": "off"})
        for file_id, exact, signature in self._claim.stream("alike", QUERIES["fingerprints_alike"], parameters):
            yield Alike(file_id=file_id, exact=bytes(exact), signature=bytes(signature))
        self._claim.cursor.execute(QUERIES["by_index"], {"scan": "on"})

    def remember(self, kept: Mapping[int, Fingerprint]) -> None:
        """Write fingerprints."""
        records = [
            (self._claim.lease.stream, file_id, found.exact, found.signature, list(found.bands))
            for file_id, found in kept.items()
        ]
        if records:
            execute_values(self._claim.cursor, QUERIES["fingerprints_insert"], records, page_size=BATCH_ROWS)

    def complete(self) -> None:
        """Remember that `missing` need not look at the runs again that there are, this claim's own included."""
        self._claim.cursor.execute(QUERIES["fingerprints_complete"], {"stream": self._claim.lease.stream})

    def missing(self) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
        """Trained and held-out files of which none is kept, with text and metadata: of runs before there were any, or
        while duplicates were not looked for. Those that the source no longer has, or that cannot be read, are left
        out."""
        ours = {"stream": self._claim.lease.stream, "run_id": self._claim.run_id}
        self._claim.cursor.execute(QUERIES["fingerprints_incomplete"], ours)
        runs = [run_id for (run_id,) in self._claim.cursor.fetchall()]
        statement = self._claim.source.statement("fingerprints_missing")
        for file_id, content, metadata in self._claim.stream("missing", statement, {**ours, "runs": runs}):
            try:
                yield file_id, bytes(content).decode(), metadata_object(metadata)
            except (UnicodeDecodeError, BadMetadata):
                continue
