"""Secrets give way to placeholders before a text reaches the run directory: a model must not learn a key by heart.

The patterns are detect-secrets'. Its scanner goes line by line through a list of filters; here each pattern goes once
over the whole text, and what has no pattern of its own (a password, a token of random characters) has to look random
and to stand beside a name that says what it is.
Not covered: secrets in pieces, passwords of letters alone, addresses of machines and people.
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
from detect_secrets.plugins.basic_auth import BasicAuthDetector
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

DETECTORS: tuple[type[RegexBasedDetector], ...] = (
    ArtifactoryDetector, AWSKeyDetector, AzureStorageKeyDetector, BasicAuthDetector, DiscordBotTokenDetector,
    GitHubTokenDetector, GitLabTokenDetector, JwtTokenDetector, MailchimpDetector, NpmDetector, OpenAIDetector,
    PypiTokenDetector, SendGridDetector, SlackDetector, SquareOAuthDetector, StripeDetector,
    TelegramBotTokenDetector, TwilioKeyDetector,
)  # fmt: skip
"""Left out: public IP addresses (59 in the standard library, none a secret), and three that find a name before a value,
as the keyword detector does, for ten times the time."""

PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?:\s*[\w-]+: [^\n]{0,200})*"
    r"((?:[^A-Za-z0-9+/-]{0,16}[A-Za-z0-9+/=]{16,})+(?:[^A-Za-z0-9+/-]{0,16}[A-Za-z0-9+/=]{1,15})?)"
)
"""The key's own characters, at least one line of them: code that only names the header stays as it is."""
NAMED = re.compile(
    r"(?i:api_?key|_key|pass|pwd|secret|token|auth|credential|private|signature|contrase)[^\n]{0,120}?[\"'`=]"
)
"""A line worth a look by the keyword and entropy detectors."""
ASSIGNED = re.compile(
    r"(?i:api_?key|_key|pass(?:word|wd|phrase)?|pwd|secret|token)\w*[\"'\])]{0,2}\s*(?::=|=>|[=:(])\s*@?"
    r"([\"'`])([^\"'`\s]{8,200})\1"
)
"""A quoted value after such a name: the keyword detector's own patterns miss Go's `:=` outside of Go's files, and
values that begin with a sign."""
RANDOM_RUN = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_=-]{32,200}(?![A-Za-z0-9+/_=-])")
LEAST_SECRET_CHARS = 8
LEAST_PASSWORD_BITS, LEAST_TOKEN_BITS = 2.5, 4.0
"""Shannon entropy of a character. Of a token less than detect-secrets' 4.5, as the line names it already."""

_KEYWORD = KeywordDetector()
_PATTERNS = [
    (re.sub(r"\W+", "_", str(detector.secret_type)).strip("_").upper(), pattern)
    for detector in DETECTORS
    for pattern in detector().denylist
]


def without_secrets(text: str, found: Counter[str]) -> str:
    """The text with placeholders (`REDACTED_GITHUB_TOKEN`) for its secrets; counts them by kind in `found`."""
    parts, end = [], 0
    for start, stop, kind in sorted(_spans(text)):
        if start < end or text.startswith("REDACTED_", start):
            continue
        found[kind] += 1
        parts += [text[end:start], f"REDACTED_{kind}"]
        end = stop
    return "".join([*parts, text[end:]]) if parts else text


def metadata_without_secrets(value: Any, found: Counter[str]) -> Any:
    """The same for every text of a row's metadata: a diff holds what its file held."""
    match value:
        case str():
            return without_secrets(value, found)
        case Mapping():
            return {key: metadata_without_secrets(item, found) for key, item in value.items()}
        case list():
            return [metadata_without_secrets(item, found) for item in value]
    return value


def _spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Places of secrets; they may overlap."""
    for match in PRIVATE_KEY.finditer(text):
        yield *match.span(1), "PRIVATE_KEY"
    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(text):
            groups = [match.span(number) for number, group in enumerate(match.groups(), 1) if group]
            for start, stop in groups or [match.span()]:
                while start < stop and text[start] in " \t\r\n=:\"'":  # a pattern may begin with what stands before
                    start += 1
                yield start, stop, kind
    for match in NAMED.finditer(text):
        start = text.rfind("\n", 0, match.start()) + 1
        stop = text.find("\n", match.end())
        yield from _named(text[start : stop if stop >= 0 else len(text)], start)


def _named(line: str, offset: int) -> Iterator[tuple[int, int, str]]:
    """Secrets of a line that says what it holds."""
    if len(line) > 1000:  # the detector's own patterns take the square of a line's length
        return
    values = [(value, "SECRET", LEAST_PASSWORD_BITS) for value in _KEYWORD.analyze_string(line)]
    values += [(match.group(2), "SECRET", LEAST_PASSWORD_BITS) for match in ASSIGNED.finditer(line)]
    values += [(value, "TOKEN", LEAST_TOKEN_BITS) for value in RANDOM_RUN.findall(line)]
    for value, kind, least_bits in values:
        if _looks_random(value, least_bits) and (place := line.find(value)) >= 0:
            yield offset + place, offset + place + len(value), kind


def _looks_random(value: str, least_bits: float) -> bool:
    """Not a word, a name, a path, an example or a place to fill in."""
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
    """Shannon entropy of a character of the text."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())
