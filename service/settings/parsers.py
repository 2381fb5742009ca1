"""Parsers for the variables. Each raises ValueError with a description of the allowed values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

Parser = Callable[[str], Any]


@dataclass(frozen=True, kw_only=True)
class Price:
    """What electricity costs."""

    per_kwh: float
    currency: str
    """As it is to be shown: EUR, $, … Empty: not said."""


def whole(low: int, high: int | None = None) -> Parser:
    """A whole number within limits."""

    def parse(text: str) -> int:
        allowed = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
        if not re.fullmatch(r"[+-]?\d{1,18}", text):
            raise ValueError(allowed)
        value = int(text)
        if value < low or (high is not None and value > high):
            raise ValueError(allowed)
        return value

    return parse


def number(low: float, *, above: bool = False) -> Parser:
    """A finite number, at least (or above) `low`."""

    def parse(text: str) -> float:
        allowed = f"a number {'above' if above else 'of at least'} {low:g}" if math.isfinite(low) else "a finite number"
        try:
            value = float(text)
        except ValueError:
            raise ValueError(allowed) from None
        if not math.isfinite(value) or value < low or (above and value == low):
            raise ValueError(allowed)
        return value

    return parse


def boolean(text: str) -> bool:
    """true or false, and their usual spellings."""
    match text.lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
    raise ValueError("true or false")


def postgres_url(text: str) -> str:
    """A Postgres URL or a key=value connection string."""
    if not re.match(r"postgres(ql)?://", text) and not re.match(r"\s*\w+\s*=", text):
        raise ValueError("postgresql://user:password@host:port/database")
    return text


def web_address(text: str) -> str:
    """An http or https address, without the slash at its end."""
    allowed = "http://host:port or https://host"
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        httpx.URL(text).host.encode("idna")  # as a connection does
    except (ValueError, httpx.InvalidURL):  # invalid port, unclosed bracket, or a host like a..b
        raise ValueError(allowed) from None
    if not good or parts.query or parts.fragment or parts.username is not None or re.search(r"\s", text):
        raise ValueError(allowed)
    return text.rstrip("/")


def key(text: str) -> str:
    """Text that can be sent in a header."""
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("ASCII letters, digits and punctuation, without spaces")
    return text


def wandb_name(text: str) -> str:
    """Name of a project or an entity at W&B."""
    if len(text) > 128 or re.search(r"[/\\#?%:\s]", text):
        raise ValueError("at most 128 characters, without spaces and / \\ # ? % :")
    return text


def price(text: str) -> Price:
    """A price, and its currency if that is said: "0.32 EUR"."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([^\s\d.,]{1,10})?", text)
    if found is None:
        raise ValueError("a price per kWh and its currency, such as 0.32 EUR")
    return Price(per_kwh=float(found[1]), currency=found[2] or "")


def listed(text: str) -> tuple[str, ...]:
    """Comma-separated names."""
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not found:
        raise ValueError("a comma-separated list")
    return found


def some_of(*names: str) -> Parser:
    """A comma-separated choice of a few short names, or `none`."""

    def parse(text: str) -> tuple[str, ...]:
        found = tuple(dict.fromkeys(name for name in re.split(r"[\s,]+", text.lower()) if name))
        if found == ("none",):
            return ()
        if not found or not set(found) <= set(names):
            raise ValueError(f"a comma-separated choice of {', '.join(names)}; or none")
        return found

    return parse


def alert_addresses(text: str) -> tuple[str, ...]:
    """Addresses of apprise, separated by spaces or commas. An address may contain commas itself."""
    found = tuple(filter(None, re.split(r"[\s,]+(?=[A-Za-z0-9]+://)", text.strip().strip(","))))
    if not found or not all(re.fullmatch(r"[A-Za-z][A-Za-z0-9]*://\S*", address) for address in found):
        raise ValueError("addresses of apprise such as jsons://host/path, separated by spaces (docs/monitoring.md)")
    return found


def one_of(*names: str) -> Parser:
    """One of a few short names."""

    def parse(text: str) -> str:
        if text.lower() not in names:
            raise ValueError(" or ".join(names))
        return text.lower()

    return parse


def server_address(text: str) -> str:
    """Address of an OpenAI-compatible server, without /v1."""
    return web_address(text).removesuffix("/v1")


def folder(text: str) -> Path:
    """A folder, made absolute."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:  # ~name of an unknown user
        raise ValueError("a folder; no user has this name") from None


def plain(text: str) -> str:
    """Unchanged text."""
    return text
