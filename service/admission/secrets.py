"""Replaces secrets by placeholders before a text reaches the run directory, so that no model memorizes a key.

The patterns come from detect-secrets. Its scanner runs filters line by line; here each pattern runs once over the
whole text. Secrets without a pattern (passwords, random tokens) are detected if they look random and a name beside
them says that they are secret.

Not covered: secrets split into parts, passwords of letters only, passwords in lines over 1,000 characters, and
addresses of machines and people.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from detect_secrets.filters.heuristic import is_potential_uuid, is_sequential_string, is_templated_secret
from detect_secrets.plugins.artifactory import ArtifactoryDetector
from detect_secrets.plugins.aws import AWSKeyDetector
from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
from detect_secrets.plugins.base import RegexBasedDetector
from detect_secrets.plugins.discord import DiscordBotTokenDetector
from detect_secrets.plugins.github_token import GitHubTokenDetector
from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
from detect_secrets.plugins.jwt import JwtTokenDetector
from detect_secrets.plugins.keyword import KeywordDetector
from detect_secrets.plugins.mailchimp import MailchimpDetector
from detect_secrets.plugins.npm import NpmDetector
from detect_secrets.plugins.openai import OpenAIDetector
from detect_secrets.plugins.pypi_token import PypiTokenDetector
from detect_secrets.plugins.sendgrid import SendGridDetector
from detect_secrets.plugins.slack import SlackDetector
from detect_secrets.plugins.square_oauth import SquareOAuthDetector
from detect_secrets.plugins.stripe import StripeDetector
from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
from detect_secrets.plugins.twilio import TwilioKeyDetector

from service.admission.secret_formats import key_spans, url_password_spans

DETECTORS: tuple[type[RegexBasedDetector], ...] = (
    ArtifactoryDetector, AWSKeyDetector, AzureStorageKeyDetector, DiscordBotTokenDetector,
    GitHubTokenDetector, GitLabTokenDetector, JwtTokenDetector, MailchimpDetector, NpmDetector, OpenAIDetector,
    PypiTokenDetector, SendGridDetector, SlackDetector, SquareOAuthDetector, StripeDetector,
    TelegramBotTokenDetector, TwilioKeyDetector,
)  # fmt: skip
"""detect-secrets' patterns except five. Public IP addresses are left out: the standard library has 59, and none is a
secret. Three others find what the keyword detector finds, in ten times the time. That of URLs with passwords takes
templates for passwords, and misses some characters (secret_formats.py has one)."""

IN_GROUP: frozenset[type[RegexBasedDetector]] = frozenset({AWSKeyDetector, NpmDetector})
"""Patterns whose group is the secret. In all other patterns a group is only a part of it: `(ghp|gho)_…`."""
_WORD = "[A-Za-z0-9_=-]"
BOUNDED: dict[type[RegexBasedDetector], tuple[re.Pattern[str], ...]] = {
    JwtTokenDetector: (re.compile(rf"(?<!{_WORD})eyJ{_WORD}+\.{_WORD}+\.?"),),
    NpmDetector: (re.compile(r"/:_authToken=\s*(npm_[^\s\"'`]+|[A-Fa-f0-9-]{36})"),),
    OpenAIDetector: (re.compile(r"sk-[A-Za-z0-9_-]{0,200}[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20}"),),
}
"""Replace detect-secrets' own patterns, whose time grows with the square of the text's length."""
NEEDS_DIGIT: frozenset[type[RegexBasedDetector]] = frozenset({ArtifactoryDetector})
"""Patterns that also match ordinary words: `APDUException`."""
REST = re.compile(r"[\w+/=-]{0,1000}")
"""Extends a match to the end of the secret. Patterns stop at the minimum length, and JWT's omits the signature."""
BETWEEN = r"(?:[^A-Za-z0-9+/-]{0,16}(?:\n[ \t]{0,200}-?[ \t]{0,200})?)"
"""What may separate the lines of a key: quotes, an indent, a diff's minus. A diff's plus looks like base64."""
PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?:\s*[\w-]+: [^\n]{0,200})*"
    rf"((?:{BETWEEN}[A-Za-z0-9+/=]{{16,}})+(?:{BETWEEN}[A-Za-z0-9+/=]{{1,15}})?)"
)
"""At least one line of the key itself is required. Code that only mentions the header stays unchanged."""
LINE = re.compile(r"[^\r\n]+")
LONGEST_LINE_CHARS = 1000
"""Longer lines are skipped: the keyword detector's time grows with the square of a line's length."""
NAMED = re.compile(
    r"(?i:api_?key|_key|pass|pwd|secret|token|auth|credential|private|signature|contrase).{0,120}?[\"'`=]"
)
"""Preselects lines for the keyword and entropy detectors."""
ASSIGNED = re.compile(
    r"(?i:api_?key|_key|pass(?:word|wd|phrase)?|pwd|secret|token)\w*[\"'\])]{0,2}\s*(?::=|=>|[=:(])\s*@?"
    r"([\"'`])([^\"'`\s]{8,200})\1"
)
"""A quoted value after such a name. The keyword detector's own patterns miss Go's `:=` in other files, and values that
begin with a punctuation character."""
RANDOM_RUN = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_=-]{32,200}(?![A-Za-z0-9+/_=-])")
LEAST_SECRET_CHARS = 8
LEAST_PASSWORD_BITS, LEAST_TOKEN_BITS = 2.5, 4.0
"""Minimum Shannon entropy per character. 4.0 is below detect-secrets' 4.5, because the line names the secret."""

_KEYWORD = KeywordDetector()
_PATTERNS = [
    (re.sub(r"\W+", "_", str(detector.secret_type)).strip("_").upper(), pattern, detector)
    for detector in DETECTORS
    for pattern in (BOUNDED[detector] if detector in BOUNDED else detector().denylist)
]


def without_secrets(text: str, found: Counter[str]) -> str:
    """Return the text with placeholders (`REDACTED_GITHUB_TOKEN`) for secrets. Adds their number by kind to `found`."""
    parts, end = [], 0
    for start, stop, kind in _merged(_spans(text)):
        found[kind] += 1
        parts += [text[end:start], f"REDACTED_{kind}"]
        end = stop
    return "".join([*parts, text[end:]]) if parts else text


def metadata_without_secrets(value: Any, found: Counter[str]) -> Any:
    """Do the same for every string in a row's metadata. A diff holds the secrets of its file."""
    match value:
        case str():
            return without_secrets(value, found)
        case Mapping():
            return {without_secrets(key, found): metadata_without_secrets(item, found) for key, item in value.items()}
        case list():
            return [metadata_without_secrets(item, found) for item in value]
    return value


def _merged(spans: Iterator[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """Yield the spans in order, and overlapping spans as one. The first span gives the kind."""
    left = sorted(((start, stop, (order, kind)) for order, (start, stop, kind) in enumerate(spans)), reverse=True)
    while left:
        start, stop, named = left.pop()
        while left and left[-1][0] < stop:
            _, other_stop, other_named = left.pop()
            stop, named = max(stop, other_stop), min(named, other_named)
        yield start, stop, named[1]


def _spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the spans of secrets, known formats first. Spans may overlap."""
    for match in PRIVATE_KEY.finditer(text):
        yield *match.span(1), "PRIVATE_KEY"
    yield from key_spans(text)
    yield from url_password_spans(text)
    for kind, pattern, detector in _PATTERNS:
        for match in pattern.finditer(text):
            if (span := _secret(text, match, detector)) is not None:
                yield *span, kind
    for line in LINE.finditer(text):
        if len(line.group()) <= LONGEST_LINE_CHARS and NAMED.search(line.group()):
            yield from _named(line.group(), line.start())


def _secret(text: str, match: re.Match[str], detector: type[RegexBasedDetector]) -> tuple[int, int] | None:
    """Return the span of the secret within a match. The match may include surrounding characters."""
    if detector in IN_GROUP and match.lastindex:
        start, stop = match.span(1)
    else:
        start, stop = match.span()
        while start < stop and text[start] in " \t\r\n=:\"'":
            start += 1
        while start < stop and text[stop - 1] in " \t\r\n\"'":
            stop -= 1
        if stop == match.end():
            stop = REST.match(text, stop).end()  # type: ignore[union-attr]  # it matches everywhere
    if detector in NEEDS_DIGIT and not any(map(str.isdigit, text[start:stop])):
        return None
    return None if start == stop or text.startswith("REDACTED_", start) else (start, stop)


def _named(line: str, offset: int) -> Iterator[tuple[int, int, str]]:
    """Yield the secrets of a line that names them, at any position."""
    values = [(value, "SECRET", LEAST_PASSWORD_BITS) for value in _KEYWORD.analyze_string(line)]
    values += [(match.group(2), "SECRET", LEAST_PASSWORD_BITS) for match in ASSIGNED.finditer(line)]
    values += [(value, "TOKEN", LEAST_TOKEN_BITS) for value in RANDOM_RUN.findall(line)]
    for value, kind, least_bits in values:
        if _looks_random(value, least_bits) and not value.startswith("REDACTED_"):
            for place in re.finditer(re.escape(value), line):
                yield offset + place.start(), offset + place.end(), kind


def _looks_random(value: str, least_bits: float) -> bool:
    """Whether a value looks random: not a word, name, path, example or placeholder."""
    return (
        len(value) >= LEAST_SECRET_CHARS
        and any(map(str.isdigit, value))
        and any(map(str.isalpha, value))
        and not re.search(r"\s|[(){}<>\[\]]|\.\w+\.|://|%[sd]|^\$\w+$|\$\{", value)
        and not is_templated_secret(value)
        and not is_sequential_string(value)
        and not is_potential_uuid(value)
        and _entropy_bits(value) >= least_bits
    )


def _entropy_bits(value: str) -> float:
    """Shannon entropy per character, in bits."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())
