"""Database URLs: their parts, and a form without the password for people to read."""

from __future__ import annotations

import re
from urllib.parse import quote, urlencode

import psycopg2
from psycopg2 import extensions

from db.errors import Misconfigured

_SECRETS = ("password", "sslpassword")


def parsed_url(url: str) -> dict[str, str]:
    """The parts of a URL. libpq's messages about a bad one repeat pieces of its password; not kept."""
    try:
        parts: dict[str, str] = extensions.parse_dsn(url)
    except psycopg2.Error:
        parts = {}
    cut_short = "@" in parts.get("host", "") + (parts.get("dbname", "") if "://" in url else "")
    if not parts or cut_short or not re.fullmatch(r"[\d,]*", parts.get("port", "")):
        raise Misconfigured(
            "the database URL cannot be read; it should look like "
            "postgresql://user:password@host:5432/database, with special characters of the password "
            "percent-encoded (@ is %40, / is %2F)"
        )
    return parts


def safe_url(url: str) -> str:
    """The database URL for people to read: its password hidden, its form (URL or key=value) kept."""
    try:
        parts = parsed_url(url)
    except Misconfigured:
        return "(a database URL that cannot be read)"
    shown = {key: "***" if key in _SECRETS else value for key, value in parts.items()}
    if "://" not in url.split("=")[0]:
        return str(extensions.make_dsn(**shown))
    user, password = quote(shown.pop("user", ""), safe=""), ":***" if shown.pop("password", None) else ""
    at = "@" if user or password else ""
    host = "" if shown.get("host", "").startswith("/") else shown.pop("host", "")
    port = f":{shown.pop('port')}" if host and "port" in shown else ""
    path = quote(shown.pop("dbname", ""), safe="")
    query = f"?{urlencode(shown, safe='*/', quote_via=quote)}" if shown else ""
    return f"postgresql://{user}{password}{at}{host}{port}/{path}{query}"
