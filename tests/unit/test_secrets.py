"""Secrets give way to placeholders: planted ones of every kind, and nothing else in real code."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "hygiene"))

from planted import SECRETS, planted_secrets, standard_library

from service.intake.secrets import metadata_without_secrets, without_secrets

TEXTS = standard_library(300)


def leaks(text: str, secret: str) -> bool:
    """Whether a part of the secret that says something is still there."""
    return any(len(line) >= 8 and "-----" not in line and line in text for line in secret.split("\n"))


def test_planted_secrets_of_every_kind_are_replaced():
    missed: Counter[str] = Counter()
    for kind, text, secret in planted_secrets(TEXTS, 210):
        found: Counter[str] = Counter()
        clean = without_secrets(text, found)
        missed[kind] += leaks(clean, secret)
        assert without_secrets(clean, Counter()) == clean
        assert clean.count("\n") >= text.count("\n") - secret.count("\n")
    assert missed.total() <= 2, missed
    assert set(missed) == set(SECRETS)


def test_real_code_stays_as_it_is():
    changed = [text for text in TEXTS if without_secrets(text, Counter()) != text]
    assert len(changed) <= 1


@pytest.mark.parametrize(
    "line",
    [
        'password = "password"',
        'password = getpass.getpass("Password: ")',
        'api_key = os.environ["API_KEY_2"]',
        'token = f"{prefix}_{number:08x}"',
        'SECRET = "<your secret 1 here>"',
        'key = "${API_KEY_1}"',
        'auth_token = "123e4567-e89b-12d3-a456-426614174000"',
        'header = "-----BEGIN RSA PRIVATE KEY-----"\nfooter = "-----END RSA PRIVATE KEY-----"',
        'alphabet_key = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"',
        'sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"',
    ],
)
def test_what_only_looks_like_one(line: str):
    assert without_secrets(line, Counter()) == line


def test_what_is_left_says_what_was_there():
    found: Counter[str] = Counter()
    text = 'a = 1\nkey = "AKIAQ4WJX7ZN2LMKD5TB"\nb = 2\n'
    assert without_secrets(text, found) == 'a = 1\nkey = "REDACTED_AWS_ACCESS_KEY"\nb = 2\n'
    assert found == {"AWS_ACCESS_KEY": 1}


def test_a_long_line_takes_no_long_time():
    without_secrets("password = " + "a" * 400_000 + "\n" + "secret=" * 50_000, Counter())


def test_metadata_is_looked_through():
    found: Counter[str] = Counter()
    given = {"diff": '+password = "x9K!mQ72#pL"', "n": 1, "list": [{"a": "fine"}, None]}
    clean = metadata_without_secrets(given, found)
    assert clean == {"diff": '+password = "REDACTED_SECRET"', "n": 1, "list": [{"a": "fine"}, None]}
    assert found.total() == 1
