"""Planted secrets of every kind are replaced by placeholders. Real code stays unchanged."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "hygiene"))

from planted import SECRETS, leaks, planted_secrets, standard_library

from service.admission.secrets import metadata_without_secrets, without_secrets

TEXTS = standard_library(300)


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
        "throw new APDUException (status)",
        'url = f"postgresql://{user}:{password}@{host}"',
        "url = f'https://{quote(user)}:{quote(password)!s}@{host}:{port}/'",
        "DATABASE_URL=postgres://app:${PASSWORD}@db/app",
        "redis://:$REDIS_PASSWORD@redis:6379",
        "amqp://guest:$password@mq",
        '"mysql://%(user)s:%(password)s@%(host)s/%(db)s"',
        '"http://%s:%s@%s" % (user, password, host)',
        "mongodb+srv://<user>:<password>@cluster0.mongodb.net",
        "https://{{ user }}:{{ password }}@host https://{{user}}:{{password}}@host",
        'system "curl https://#{user}:#{password}@host"',
        "ftp://%USER%:%PASSWORD%@host ftp://$(USER):$(PASSWORD)@host",
        "https://user:***@host https://user:xxxx@host",
        "see http://localhost:3000/@scope/package and https://host:8080/?mail=me@example.org",
        'token = "hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"; key = "sk-ant-your-key-goes-right-here"',
        'task = "global-abcdefghijklmnopqrstuv1"; ask = "risk-1234567890abcdef1234567890abcdef"',
        'sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"',
    ],
)
def test_text_that_only_looks_like_a_secret(line: str):
    assert without_secrets(line, Counter()) == line


KEY_LINES = ["9bFlIkpYt5HfavHYMD5hzcS7hsPRxCcQPDRMQYnrLx571dR+", "G8zOppZ2LmEWxunJLZm/NYwuBxiCLOR8qMdBB+ZssOSys/TV"]
KEY = ["-----BEGIN RSA PRIVATE KEY-----", *KEY_LINES, "-----END RSA PRIVATE KEY-----"]
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.dBjftJeZ4CVPmB92K27uhbUJU1p1r"


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        ('x = "ghp_aB3dE6gH9jaB3dE6gH9jaB3dE6gH9jkL2mN5"', ["aB3dE6gH9jaB3dE6gH9jaB3dE6gH9jkL2mN5"]),
        ('x = "glpat-aB3dE6gH9jkL2mN5pQ7r"', ["aB3dE6gH9jkL2mN5pQ7r"]),
        ('token = "AKIAIOSFODNN7QWERTYU+more9stuff7123"', ["+more9stuff7123"]),
        ('password = "hunt3r2x9Q"; backup_password = "hunt3r2x9Q"', ["hunt3r2x9Q"]),
        ("x = 1\r" * 200 + 'password = "hunt3r2x9Q"\r', ["hunt3r2x9Q"]),
        (f'"Bearer {JWT}"', JWT.split(".")),
        ("\n".join(f"-{line}" for line in KEY), KEY_LINES),
        ("\n".join(f"+{line}" for line in KEY), KEY_LINES),
        ("\n".join(" " * 20 + line for line in KEY), KEY_LINES),
        ('x = "AKC1abcdefghijk2"\ny', ["abcdefghijk2"]),
        ("//npm.example/:_authToken=npm_aB3dE6gH9jkL2mN5 # x", ["aB3dE6gH9jkL2mN5"]),
        ('x("sk-ant-api03-aB3dE6gH9j-kL2m_N5pQ7raB3dE6AA")', ["aB3dE6gH9j", "N5pQ7raB3dE6AA"]),
        ('x("hf_aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH")', ["aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH"]),
        ('x("AIzaSyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q")', ["SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q"]),
        ('x("glpat-aB3dE6gH9jkL2mN5pQ7raB3dE6g.01.0w1x2y3z4")', ["aB3dE6gH9jkL2mN5pQ7raB3dE6g", "0w1x2y3z4"]),
        ('x("npm_aB3dE6gH9jkL2mN5pQ7raB3dE6gH9jkL2mN5")', ["aB3dE6gH9jkL2mN5pQ7r"]),
        ('x("xoxc-aB3dE6gH9jkL2"), x("xoxe.xoxp-1-aB3dE6gH9jkL2")', ["aB3dE6gH9jkL2"]),
        ('x("sk_test_aB3dE6gH9jkL2mN5pQ7r"), x("rk_live_zB3dE6gH9jkL2mN5pQ7rrr")', ["aB3dE6gH9j", "zB3dE6gH9j"]),
        ('x("github_pat_11ABCDEFG0aB3dE6gH9jkL_mN5pQ7r")', ["aB3dE6gH9jkL", "mN5pQ7r"]),
        ('x("gsk_aB3dE6gH9jkL2mN5pQ7raB3dE6gH9jkL2mN5pQ7r")', ["aB3dE6gH9jkL2mN5pQ7r"]),
        ('x = "sk-proj-aB3dE6gH9jkL2mN5pQ7rT3BlbkFJaB3dE6gH9jkL2mN5pQ7r"', ["aB3dE6gH9jkL2mN5pQ7r"]),
    ],
)
def test_no_part_of_a_secret_remains(text: str, secrets: list[str]):
    clean = without_secrets(text, Counter())
    assert not any(leaks(clean, secret) for secret in secrets), clean
    assert clean.count('"') == text.count('"') and clean[-1] == text[-1]


@pytest.mark.parametrize(
    ("before", "password", "after"),
    [
        ("postgres://app:", "aB3d&E6gH!9jkL", "@db"),
        ("postgres://app:", "aB3d/E6g?H9j#kL", "@db:5432/app"),
        ("x = 'https://app:", "a#1", "@db/?mail=me@example.org'"),
        ("postgres://app:", "aB3d@E6gH", "@db/app"),
        ("postgres://app:", "$ecret1", "@db/app"),
        ('"mysql://app:', "aB3d'E6gH", '@db"'),
        ("redis://:", "aB3d{E6gH$x", "@db"),
        ("https://{user}:", "aB3dE6gH", "@{host}/"),
        ("one http://a:b/c and ftp://me:", "hunter2", "@[::1]:21/"),
    ],
)
def test_a_password_of_a_url_may_have_any_characters(before: str, password: str, after: str):
    found: Counter[str] = Counter()
    clean = without_secrets(before + password + after, found)
    assert clean == f"{before}REDACTED_BASIC_AUTH_CREDENTIALS{after}" and found.total() == 1


def test_the_placeholder_names_the_kind():
    found: Counter[str] = Counter()
    text = 'a = 1\nkey = "AKIAQ4WJX7ZN2LMKD5TB"\nb = 2\n'
    assert without_secrets(text, found) == 'a = 1\nkey = "REDACTED_AWS_ACCESS_KEY"\nb = 2\n'
    assert found == {"AWS_ACCESS_KEY": 1}


@pytest.mark.parametrize(
    "piece", ["/", "a", "secret=", "eyJ", "sk-a", "xoxb-1-", "glpat-", "://a:", "AP1", "-----BEGIN PRIVATE KEY-----"]
)
def test_the_time_is_not_quadratic_in_the_length(piece: str):
    many, began = piece * (100_000 // len(piece)), time.process_time()
    without_secrets(f"{many}\npassword = {many}", Counter())
    assert time.process_time() - began < 2


def test_metadata_is_searched():
    found: Counter[str] = Counter()
    given = {"diff": '+password = "x9K!mQ72#pL"', "n": 1, "list": [{"a": "fine"}, None], f"ghp_{'a1' * 18}": 0}
    clean = metadata_without_secrets(given, found)
    assert clean.pop("REDACTED_GITHUB_TOKEN") == 0
    assert clean == {"diff": '+password = "REDACTED_SECRET"', "n": 1, "list": [{"a": "fine"}, None]}
    assert found.total() == 2
