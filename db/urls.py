"""Database URLs: their parts, and a form without the password for people to read."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlencode

import psycopg2
from psycopg2 import extensions

from db.errors import Misconfigured

_SECRETS = ("password", "sslpassword")

_INSTEAD = {
    "schema": "a schema is named in SOURCE_TABLE (schema.table), or with options=-csearch_path%3Dschema",
    "search_path": "use options=-csearch_path%3Dschema",
    "currentSchema": "a schema is named in SOURCE_TABLE (schema.table), or with options=-csearch_path%3Dschema",
    "pgbouncer": "a pooler needs no option: the service notices it",
    "connection_limit": "use DB_POOL_MAX_CONN",
    "pool_size": "use DB_POOL_MAX_CONN",
}
"""What to use instead of the options of other clients."""
_PAIR = re.compile(r"\s*(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)*)(?=\s|$)", re.DOTALL)


def parsed_url(url: str) -> dict[str, str]:
    """The parts of a URL. libpq's messages about a bad one repeat pieces of its password; not kept."""
    try:
        parts: dict[str, str] = extensions.parse_dsn(url)
    except psycopg2.Error:
        if unknown := _unknown_options(url):
            raise Misconfigured(_remove(unknown)) from None
        parts = {}
    cut_short = "@" in parts.get("host", "") + (parts.get("dbname", "") if "://" in url else "")
    if not parts or cut_short or not re.fullmatch(r"[\d,]*", parts.get("port", "")):
        raise Misconfigured(
            "the database URL cannot be read; it should look like "
            "postgresql://user:password@host:5432/database, with special characters of the password "
            "percent-encoded (@ is %40, / is %2F)"
        )
    return parts


def _unknown_options(url: str) -> list[str]:
    """The options that libpq does not know. Empty where the text may be a part of the password, or is unreadable."""
    if re.match(r"\w+://", url):
        _, login, rest = re.fullmatch(r"(\w*://)([^@/]*@)?(.*)", url, re.DOTALL).groups()  # type: ignore[union-attr]
        base, _, query = rest.partition("?")
        if not _is_readable(f"postgresql://{base}") or (login is None and "@" in query):  # a password with a slash
            return []
        names = [unquote(pair.partition("=")[0]) for pair in query.split("&")]
        return [name for name in names if _is_name(name) and not _is_readable(f"postgresql:///?{name}=true")]
    names, end, after_password = [], 0, False
    while end < len(url.rstrip()):
        pair = _PAIR.match(url, end)
        if pair is None or (after_password and not _is_readable(f"{pair[1]}=1")):  # a password with a space
            return []
        names.append(pair[1])
        after_password = pair[1] in _SECRETS and not pair[2].startswith("'")
        end = pair.end()
    return [name for name in names if _is_name(name) and not _is_readable(f"{name}=1")]


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[\w.-]{1,40}", text) is not None


def _is_readable(url: str) -> bool:
    try:
        parts = extensions.parse_dsn(url)
    except psycopg2.Error:
        return False
    return bool(re.fullmatch(r"[\d,]*", parts.get("port", "")))


def _remove(options: list[str]) -> str:
    named = ", ".join(f"{name} ({_INSTEAD[name]})" if name in _INSTEAD else name for name in options)
    what, them = ("an option", "it") if len(options) == 1 else ("options", "them")
    return (
        f"the database URL has {what} that Postgres' client library does not know: {named}. "
        f"Remove {them} from DATABASE_URL"
    )


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
