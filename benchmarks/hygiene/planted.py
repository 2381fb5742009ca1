"""Makes the cases to plant among real code: edited copies and secrets. All of them follow from a seed."""

from __future__ import annotations

import base64
import json
import random
import string
import sysconfig
from collections.abc import Callable
from pathlib import Path

LETTERS, DIGITS = string.ascii_letters, string.digits
BASE64 = LETTERS + DIGITS + "+/"


def standard_library(limit: int | None = None, *, most_chars: int = 8000, least_lines: int = 20) -> list[str]:
    """Return files of the running interpreter's standard library, cut after a whole line at `most_chars` characters."""
    root = Path(sysconfig.get_path("stdlib"))
    texts = []
    for path in sorted(root.rglob("*.py")):
        if "site-packages" in path.parts or "lib2to3" in path.parts:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        text = text[: text.rfind("\n", 0, most_chars) + 1] if len(text) > most_chars else text
        if text.count("\n") >= least_lines:
            texts.append(text)
    random.Random(1).shuffle(texts)
    return texts[:limit]


# --- copies -------------------------------------------------------------------------------------------------


def edited_copy(text: str, chance: random.Random) -> str:
    """Return a realistic copy: some lines are added or deleted, and the line ends may differ."""
    lines = text.split("\n")
    for _ in range(max(1, len(lines) // 60)):
        place = chance.randrange(len(lines))
        match chance.randrange(3):
            case 0:
                lines.insert(place, "    # changed by hand on purpose")
            case 1:
                lines.insert(place, f"    value_{chance.randrange(1000)} = None")
            case _:
                del lines[place]
    return chance.choice(("\n", "\r\n")).join(lines)


# --- secrets ------------------------------------------------------------------------------------------------


def _chars(chance: random.Random, alphabet: str, count: int) -> str:
    return "".join(chance.choices(alphabet, k=count))


def _token(chance: random.Random, alphabet: str, count: int) -> str:
    """Return random characters with at least one digit and one letter, as in nearly every real token."""
    while True:
        found = _chars(chance, alphabet, count)
        if any(map(str.isdigit, found)) and any(map(str.isalpha, found)):
            return found


def _word(chance: random.Random, count: int) -> str:
    return _token(chance, LETTERS + DIGITS, count)


def _jwt(chance: random.Random) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    claims = {"sub": _chars(chance, DIGITS, 10), "name": _chars(chance, LETTERS, 8)}
    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}.{_chars(chance, LETTERS + DIGITS, 43)}"


def _private_key(chance: random.Random) -> str:
    kind = chance.choice(("RSA ", "EC ", "OPENSSH ", ""))
    body = (
        "\n".join(_chars(chance, BASE64, 64) for _ in range(chance.randrange(3, 12)))
        + "\n"
        + _chars(chance, BASE64, 14)
        + "=="
    )
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n-----END {kind}PRIVATE KEY-----"


def _password(chance: random.Random) -> str:
    return _token(chance, LETTERS + DIGITS + "!#*+-_@", chance.randrange(10, 20))


def _odd_password(chance: random.Random) -> str:
    """Return a password with characters that a URL should escape, and many do not."""
    return _word(chance, 6) + chance.choice("&!$*,;=+()'/?#@") + _word(chance, 7)


Plant = Callable[[random.Random], tuple[str, str]]
"""Makes a line of code with a secret, and the secret's own text."""


def _in(template: str, make: Callable[[random.Random], str]) -> Plant:
    def plant(chance: random.Random) -> tuple[str, str]:
        secret = make(chance)
        return template.replace("§", secret), secret

    return plant


SECRETS: dict[str, Plant] = {
    "AWS access key": _in('aws_access_key_id = "§"', lambda c: "AKIA" + _chars(c, string.ascii_uppercase + DIGITS, 16)),
    "AWS secret key": _in('AWS_SECRET_ACCESS_KEY = "§"', lambda c: _token(c, BASE64, 40)),
    "GitHub token": _in('headers = {"Authorization": "token §"}', lambda c: "ghp_" + _word(c, 36)),
    "GitLab token": _in("curl --header 'PRIVATE-TOKEN: §'", lambda c: "glpat-" + _word(c, 20)),
    "Slack token": _in('client = WebClient("§")', lambda c: f"xoxb-{_chars(c, DIGITS, 12)}-{_word(c, 24)}"),
    "Stripe key": _in('stripe.api_key = "§"', lambda c: "sk_live_" + _word(c, 24)),
    "npm token": _in("//registry.npmjs.org/:_authToken=§", lambda c: "npm_" + _word(c, 36)),
    "SendGrid key": _in('SendGridAPIClient("§")', lambda c: f"SG.{_word(c, 22)}.{_word(c, 43)}"),
    "Twilio key": _in('client = Client("§", sid)', lambda c: "SK" + _token(c, "0123456789abcdef", 32)),
    "JSON web token": _in('bearer = "§"', _jwt),
    "private key": _in('KEY = """§"""', _private_key),
    "URL with password": _in('url = "postgresql://app:§@db.example.org:5432/app"', lambda c: _word(c, 14)),
    "URL with odd password": _in('url = "postgresql://app:§@db.example.org:5432/app"', lambda c: _odd_password(c)),
    "Anthropic key": _in('client = Anthropic("§")', lambda c: "sk-ant-api03-" + _word(c, 40)),
    "OpenAI key": _in('client = OpenAI("§")', lambda c: "sk-proj-" + _word(c, 60)),
    "Hugging Face token": _in('login("§")', lambda c: "hf_" + _chars(c, LETTERS, 34)),
    "Google key": _in('maps = Client("§")', lambda c: "AIza" + _word(c, 35)),
    "npm token, bare": _in('publish("§")', lambda c: "npm_" + _word(c, 36)),
    "GitHub token, fine-grained": _in('Github("§")', lambda c: f"github_pat_{_word(c, 22)}_{_word(c, 59)}"),
    "password, Python": _in('PASSWORD = "§"', _password),
    "password, dict": _in("config = {'db_password': '§', 'port': 5432}", _password),
    "password, call": _in('connect(host="db", user="app", password="§")', _password),
    "password, JavaScript": _in("const dbPassword = '§';", _password),
    "password, Go": _in('password := "§"', _password),
    "API key, hex": _in('API_KEY = "§"', lambda c: _token(c, "0123456789abcdef", 32)),
    "API key, base64": _in('apiKey: "§",', lambda c: _token(c, BASE64, 40)),
    "secret key": _in("SECRET_KEY = '§'", lambda c: _token(c, LETTERS + DIGITS + "!@#$^&*-_=+", 50)),
    "token": _in('AUTH_TOKEN = "§"', lambda c: _word(c, 40)),
}  # fmt: skip


def planted_secrets(texts: list[str], count: int, seed: int = 5) -> list[tuple[str, str, str]]:
    """Return tuples of a kind, a text with a secret in one line, and the secret. The kinds take turns."""
    chance = random.Random(seed)
    kinds = list(SECRETS)
    found = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        line, secret = SECRETS[kind](chance)
        lines = texts[number % len(texts)].split("\n")
        lines.insert(chance.randrange(len(lines)), line)
        found.append((kind, "\n".join(lines), secret))
    return found


def leaks(text: str, secret: str) -> bool:
    """Whether the text still has eight consecutive characters of the secret. A prefix like `ghp_` is no leak."""
    lines = [line for line in secret.split("\n") if "-----" not in line]
    return any(line[place : place + 8] in text for line in lines for place in range(len(line) - 7))
