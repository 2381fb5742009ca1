"""Finds duplicates of rows that are trained, claimed or held out: exact ones by hash, near ones by MinHash.

Exact duplicates have equal text after each run of whitespace is replaced by one space. Comments and case count.
Near duplicates have sets of token 5-grams whose Jaccard similarity reaches the recipe's threshold. MinHash with 125
permutations estimates the similarity (standard error 0.04). Locality-sensitive hashing with 25 bands of 5 finds the
pairs: 99 of 100 at a similarity of 0.7, and 9,999 of 10,000 at 0.8.

A change (a row with a `diff` in its metadata) is compared by message and diff. Its whole file would be a near
duplicate of the file itself and of every other change to it.

Not covered: code with all identifiers renamed; a copy of a held-out file in the history of a file with another name.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rensa import RMinHash

from db.fingerprints import Fingerprint, Fingerprints
from db.source import Claim, SourceRow
from service.admission.tokens import CODE_TOKEN, gram_hashes, token_hashes
from trainer.conversations import readable, turns_of
from trainer.recipe import Hygiene

GRAM_TOKENS = 5
BANDS, BAND_ROWS = 25, 5
PERMUTATIONS = BANDS * BAND_ROWS
SEED = 1
"""The fingerprints in the database depend on these numbers and on rensa's algorithm. Do not change them, or known files
are no longer recognized. A test compares with a stored signature."""
CATCH_UP_ROWS, CATCH_UP_CHARS = 200, 2_000_000
"""Limits of one batch in `catch_up`: rows and characters."""

DUPLICATE, NEAR_DUPLICATE = "duplicate", "near_duplicate"

Version = tuple[int, int]
"""A row's id, and how many earlier texts it had."""

_BAND_FACTORS = np.array([pow(0x9E3779B97F4A7C15, n + 1, 2**64) for n in range(BAND_ROWS)], np.uint64)


def fingerprints(texts: Sequence[str]) -> list[Fingerprint]:
    """The fingerprint of each text."""
    grams = [np.unique(gram_hashes(token_hashes(text, CODE_TOKEN), GRAM_TOKENS)) for text in texts]
    offsets = np.cumsum([0, *(len(found) for found in grams)]).tolist()
    flat = np.concatenate([np.zeros(0, np.uint64), *grams])
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, PERMUTATIONS, SEED)
    signatures = np.array(matrix.to_rows(), dtype="<u4").reshape(len(texts), PERMUTATIONS)
    parts = signatures.reshape(len(texts), BANDS, BAND_ROWS).astype(np.uint64)
    places = np.arange(1, BANDS + 1, dtype=np.uint64) << np.uint64(32)
    mixed = ((parts ^ places[:, None]) * _BAND_FACTORS).sum(axis=2, dtype=np.uint64)
    bands = (mixed >> np.uint64(32)).astype(np.uint32).view(np.int32)
    return [
        Fingerprint(
            exact=hashlib.sha256(" ".join(text.split()).encode("utf-8", "surrogatepass")).digest()[:16],
            signature=signature.tobytes(),
            bands=tuple(sorted(set(band.tolist()))),
        )
        for text, signature, band in zip(texts, signatures, bands, strict=True)
    ]


def text_to_compare(content: str, metadata: Mapping[str, Any]) -> str:
    """The compared part of a row: turns of a conversation, message and diff of a change, else the content."""
    turns = turns_of(content, metadata)
    if turns:
        return readable(turns)
    diff, message = metadata.get("diff"), metadata.get("message")
    if not isinstance(diff, str) or not diff.strip():
        return content
    return f"{message}\n{diff}" if isinstance(message, str) else diff


def similarity(one: bytes, other: bytes) -> float:
    """Estimated Jaccard similarity of two signatures."""
    return float(np.mean(np.frombuffer(one, "<u4") == np.frombuffer(other, "<u4")))


class Duplicates:
    """Finds duplicates within one claim, and between the claim and all earlier rows."""

    def __init__(self, claim: Claim, hygiene: Hygiene) -> None:
        self._known = Fingerprints(claim)
        self._on = hygiene.duplicates != "none"
        self._near = hygiene.near_duplicate_jaccard if hygiene.duplicates == "near" else None

    def catch_up(self, beat: Callable[[], None], clean: Callable[[str], str]) -> int:
        """Store the fingerprints that trained and held-out rows lack. Returns the number of such rows.

        `reasons` stores the fingerprints of later rows, so the next claims find nothing to do here. `clean` is
        applied to each text before the comparison.
        """
        batch: dict[Version, str] = {}
        count = chars = 0
        for known in self._known.missing() if self._on else ():
            beat()
            batch[known.file_id, known.version] = clean(text_to_compare(known.content, known.metadata))
            count += 1
            chars += len(known.content)
            if len(batch) == CATCH_UP_ROWS or chars >= CATCH_UP_CHARS:
                self._remember(batch)
                batch, chars = {}, 0
        self._remember(batch)
        if self._on:
            self._known.complete()
        return count

    def reasons(self, rows: Sequence[SourceRow]) -> list[str | None]:
        """Return for each row why it is a duplicate, or None. Stores the fingerprints of rows with None."""
        if not self._on or not rows:
            return [None] * len(rows)
        found = fingerprints([text_to_compare(row.content, row.metadata) for row in rows])
        made = {(row.file_id, row.version): fingerprint for row, fingerprint in zip(rows, found, strict=True)}
        reasons = self._earlier(made)
        kept: dict[Version, Fingerprint] = {}
        by_band: dict[int, list[Version]] = defaultdict(list)
        for key, fingerprint in made.items():
            if reasons[key] is None:
                near = {other for band in fingerprint.bands for other in by_band[band]}
                said = {self._reason(fingerprint, kept[other].exact, kept[other].signature) for other in near}
                reasons[key] = next((reason for reason in (DUPLICATE, NEAR_DUPLICATE) if reason in said), None)
            if reasons[key] is None:
                kept[key] = fingerprint
                for band in fingerprint.bands:
                    by_band[band].append(key)
        self._known.remember(kept)
        return list(reasons.values())

    def _earlier(self, made: Mapping[Version, Fingerprint]) -> dict[Version, str | None]:
        """Compare with all earlier files. A new version of a row may be similar to the earlier one, but not equal."""
        # A claim has one version of each row.
        by_file = {file_id: fingerprint for (file_id, _), fingerprint in made.items()}
        reasons: dict[int, str | None] = dict.fromkeys(by_file)
        for other in self._known.candidates(made):
            if reasons[other.file_id] != DUPLICATE:
                found = self._reason(by_file[other.file_id], other.exact, other.signature)
                if found == DUPLICATE or not other.is_own:
                    reasons[other.file_id] = found or reasons[other.file_id]
        return {(file_id, version): reasons[file_id] for file_id, version in made}

    def _remember(self, texts: Mapping[Version, str]) -> None:
        self._known.remember(dict(zip(texts, fingerprints(list(texts.values())), strict=True)))

    def _reason(self, one: Fingerprint, exact: bytes, signature: bytes) -> str | None:
        if one.exact == exact:
            return DUPLICATE
        if self._near is not None and similarity(one.signature, signature) >= self._near:
            return NEAR_DUPLICATE
        return None
