"""Stores the fingerprints of claimed, trained and held-out files, and looks up similar files.

Everything happens in the transaction of a claim, so a claim that is rolled back leaves nothing behind. A trigger
deletes the fingerprint of a file that is rejected, quarantined or returned (migrations/0004).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg2.extras import execute_values

from db.claim import BATCH_ROWS, Claim
from db.rows import BadMetadata, digest, metadata_object
from db.statements import QUERIES


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Identifies a text and finds similar ones."""

    exact: bytes
    """The digest of the normalised text."""
    signature: bytes
    """The MinHash signature."""
    bands: tuple[int, ...]
    """Hashes of the parts of the signature, as signed 32-bit integers. Similar texts share at least one with high
    probability."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A stored file that shares a band with a queried file, so the two may be similar."""

    file_id: int
    """The id of the queried file."""
    exact: bytes
    signature: bytes
    is_own: bool
    """Whether it is an earlier version of the queried file."""


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """A trained or held-out text without a fingerprint."""

    file_id: int
    version: int
    content: str
    metadata: Mapping[str, Any]


Versions = Mapping[tuple[int, int], Fingerprint]
"""Fingerprints by file id and version."""


class Fingerprints:
    """The fingerprints of the stream of a claim."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim

    def candidates(self, queried: Versions) -> Iterator[Candidate]:
        """Yield the stored files that share a band with a queried file. A text is never a candidate for itself."""
        asked = [(*key, band) for key, fingerprint in queried.items() for band in fingerprint.bands]
        parameters = {
            "stream": self._claim.lease.stream,
            "files": [file_id for file_id, _, _ in asked],
            "versions": [version for _, version, _ in asked],
            "bands": [band for _, _, band in asked],
        }
        self._claim.cursor.execute(QUERIES["set_seqscan"], {"scan": "off"})
        found = self._claim.stream("candidates", QUERIES["fingerprints_alike"], parameters)
        for file_id, exact, signature, own in found:
            yield Candidate(file_id=file_id, exact=bytes(exact), signature=bytes(signature), is_own=own)
        self._claim.cursor.execute(QUERIES["set_seqscan"], {"scan": "on"})

    def remember(self, kept: Versions) -> None:
        """Store fingerprints."""
        records = [
            (self._claim.lease.stream, *key, found.exact, found.signature, list(found.bands))
            for key, found in kept.items()
        ]
        if records:
            execute_values(self._claim.cursor, QUERIES["fingerprints_insert"], records, page_size=BATCH_ROWS)

    def complete(self) -> None:
        """Mark all runs of the stream as complete, the run of this claim included, so that `missing` skips them."""
        self._claim.cursor.execute(QUERIES["fingerprints_complete"], {"stream": self._claim.lease.stream})

    def missing(self) -> Iterator[Unknown]:
        """Yield trained and held-out files without a fingerprint, with their text and metadata.

        These files come from runs of versions without fingerprints, or of times when the duplicate check was off. Files
        that were deleted from the source, that have another text by now, or that cannot be decoded, are skipped.
        """
        ours = {"stream": self._claim.lease.stream, "run_id": self._claim.run_id}
        self._claim.cursor.execute(QUERIES["fingerprints_incomplete"], ours)
        runs = [run_id for (run_id,) in self._claim.cursor.fetchall()]
        statement = self._claim.source.statement("fingerprints_missing")
        parameters = {**ours, "runs": runs, "max_chars": self._claim.eligibility.max_chars}
        for file_id, version, content, metadata, sha256 in self._claim.stream("missing", statement, parameters):
            if sha256 is not None and digest(content) != sha256:
                continue
            try:
                facts = metadata_object(metadata)
                yield Unknown(file_id=file_id, version=version, content=bytes(content).decode(), metadata=facts)
            except (UnicodeDecodeError, BadMetadata):
                continue
