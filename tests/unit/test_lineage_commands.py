"""The arguments of `codelupe lineage` and `revoke`."""

import pytest

from db.revocations import Subject
from service.cli.ledger import _subject, revoke
from service.errors import UsageError

BYTES = "a\udcffb"
"""A byte that is not UTF-8, as Python passes it on."""


@pytest.mark.parametrize(
    ("file", "subject"),
    [
        ("12", Subject(file_id=12)),
        ("-9223372036854775808", Subject(file_id=-(2**63))),
        ("9223372036854775808", Subject(path="9223372036854775808")),
        ("src/a.py", Subject(path="src/a.py")),
    ],
)
def test_a_number_that_fits_is_an_id(file: str, subject: Subject):
    assert _subject(file, None) == subject


@pytest.mark.parametrize(("file", "sha256"), [(None, None), ("1", "a" * 64), (None, "zz"), (BYTES, None)])
def test_an_impossible_subject_is_an_error(file: str | None, sha256: str | None):
    with pytest.raises(UsageError):
        _subject(file, sha256)


def test_a_reason_is_text():
    with pytest.raises(UsageError, match="--reason"):
        revoke("12", reason=BYTES)
