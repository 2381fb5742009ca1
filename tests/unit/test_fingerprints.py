"""Equal texts have equal fingerprints, similar texts share a band, and the algorithm never changes."""

from __future__ import annotations

import hashlib
import re
import sysconfig
from pathlib import Path

import pytest

from db.fingerprints import Unknown
from service.admission import duplicates
from service.admission.duplicates import BANDS, Duplicates, fingerprints, similarity
from trainer.recipe import Hygiene

TEXT = Path(sysconfig.get_path("stdlib"), "heapq.py").read_text(encoding="utf-8")[:6000]


def jaccard(one: str, other: str) -> float:
    """Return the exact similarity, computed with sets of tuples."""
    sets = []
    for text in (one, other):
        tokens = re.findall(r"\w+|[^\w\s]", text)
        sets.append({tuple(tokens[n : n + 5]) for n in range(len(tokens) - 4)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_stored_signatures_stay_valid():
    """Another algorithm would recognise no stored file. Then all fingerprints would have to be computed again."""
    (found,) = fingerprints(["def add(a, b):\n    return a + b\n"])
    assert hashlib.sha256(found.signature + repr(found.bands).encode()).hexdigest()[:16] == "c8a34cc214760c8d"
    assert found.exact.hex() == hashlib.sha256(b"def add(a, b): return a + b").hexdigest()[:32]


@pytest.mark.parametrize(
    ("change", "exact"),
    [
        (lambda text: text.replace("\n", "\r\n"), True),
        (lambda text: text.replace("    ", "\t") + "\n\n", True),
        (lambda text: text.upper(), False),
        (lambda text: "# a comment\n" + text, False),
    ],
    ids=["line ends", "blanks", "case", "comment"],
)
def test_whitespace_does_not_change_a_fingerprint(change, exact):
    one, other = fingerprints([TEXT, change(TEXT)])
    assert (one.exact == other.exact) is exact


def test_the_estimate_is_near_the_true_similarity():
    lines = TEXT.split("\n")
    for removed in (2, 10, 30, 60):
        other = "\n".join(lines[removed:] + [f"other_{n} = {n} * {n + 1}" for n in range(removed)])
        a, b = fingerprints([TEXT, other])
        assert abs(similarity(a.signature, b.signature) - jaccard(TEXT, other)) < 0.15


def test_similar_texts_share_a_band_and_others_do_not():
    lines = TEXT.split("\n")
    other = "\n".join(line for number, line in enumerate(lines) if number % 25)
    assert jaccard(TEXT, other) > 0.7
    a, b, c = fingerprints([TEXT, other, "import os\n\nprint(os.environ)\n"])
    assert set(a.bands) & set(b.bands) and not set(a.bands) & set(c.bands)
    assert len(a.bands) == BANDS


def test_a_fingerprint_does_not_depend_on_the_batch():
    assert fingerprints(["", "x", TEXT])[2] == fingerprints([TEXT])[0]
    assert fingerprints([]) == []


def test_a_text_without_tokens_has_a_fingerprint_too():
    assert len(fingerprints(["", " \n", "é"])) == 3


def test_long_old_rows_are_fingerprinted_in_small_batches_and_the_lease_is_renewed(monkeypatch: pytest.MonkeyPatch):
    told: list[int] = []
    """How many were remembered at once; 0: the lease was renewed."""
    monkeypatch.setattr(duplicates, "CATCH_UP_CHARS", 3 * len(TEXT))
    catching_up = Duplicates(None, Hygiene())  # type: ignore[arg-type]
    known = catching_up._known
    monkeypatch.setattr(
        known, "missing", lambda: (Unknown(file_id=n, version=0, content=TEXT, metadata={}) for n in range(7))
    )
    monkeypatch.setattr(known, "remember", lambda found: told.append(len(found)))
    monkeypatch.setattr(known, "complete", lambda: None)
    assert catching_up.catch_up(lambda: told.append(0), lambda text: text) == 7
    assert told == [0, 0, 0, 3, 0, 0, 0, 3, 0, 1]
