"""The columns of records under their usual names, and their values as the database can store them."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

NAMES: Mapping[str, tuple[str, ...]] = {
    "content": ("content", "training_content", "text", "code", "body", "source", "source_code", "file_content"),
    "repository": ("repository", "repo", "repo_name", "repository_name", "max_stars_repo_name"),
    "path": ("path", "file_path", "filepath", "file_name", "filename", "max_stars_repo_path"),
    "language": ("language", "lang", "programming_language"),
    "license": ("license", "licence", "licenses", "detected_licenses", "max_stars_repo_licenses"),
    "commit_sha": ("commit_sha", "commit", "commit_id", "max_stars_repo_head_hexsha"),
    "phase": ("phase",),
    "quality_score": ("quality_score",),
    "metadata": ("metadata",),
}
"""Our columns, each with the names under which it is found, the first that has a value first. Case does not count."""
TEXT_ALONE = frozenset({"content", "training_content"})
"""The content's names that mean it alone. The others also stand beside turns: `source` says where these are from, and
`text` may hold the same turns in somebody's template."""
LARGEST_SCORE = 3e38
"""The database stores scores in single precision."""
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""An escaped NUL character in JSON. After an odd number of backslashes it is plain text."""


class BadValue(Exception):
    """A value that cannot be used. The text names the column."""


def by_our_names(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a record's values under our names. Other columns keep theirs, in lower case.

    Args:
        columns: the names that were given on the command line, by ours
    """
    found = {str(name).strip().lower(): value for name, value in record.items()}
    for ours, names in NAMES.items():
        wanted = (columns[ours].strip().lower(),) if ours in columns else names
        value = next((found[name] for name in wanted if found.get(name) not in (None, "")), None)
        if value is not None:
            found[ours] = value
        elif ours in columns:
            found.pop(ours, None)
    return found


def has_own_text(record: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    """Whether a record's text is under a name that means it alone, so that turns beside it are not trained on."""
    found = {str(name).strip().lower() for name, value in record.items() if value not in (None, "")}
    return not found.isdisjoint((columns["content"].strip().lower(),) if "content" in columns else TEXT_ALONE)


def unknown_columns(names: Iterable[str], columns: Mapping[str, str], known: Iterable[str]) -> list[str]:
    """Return the names that nothing is read from."""
    read = {name for ours, names in NAMES.items() if ours not in columns for name in names}
    read |= {name.strip().lower() for name in (*columns.values(), *known)}
    return sorted(name for name in map(str, names) if name.strip().lower() not in read)


def score(value: Any) -> float | None:
    """Return a score as a number, or None if there is none. Text such as "12.5" is read.

    Raises:
        BadValue: it is not a number, or beyond single precision.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise BadValue("quality_score is not a number")
    try:
        number = float(Decimal(value.strip()) if isinstance(value, str) else value)
    except OverflowError:
        raise BadValue("quality_score out of range") from None
    except (ValueError, InvalidOperation):
        raise BadValue("quality_score is not a number") from None
    if not abs(number) <= LARGEST_SCORE:
        raise BadValue("quality_score out of range")
    return number


def licence(value: Any) -> str | None:
    """Return a licence as text. Of a list, every licence must be allowed, because each covers a part of the repository.

    Raises:
        BadValue: it is neither text nor a list of texts.
    """
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        names = list(dict.fromkeys(name.strip() for name in value if name.strip()))
        return " AND ".join(name if len(names) == 1 or " " not in name else f"({name})" for name in names) or None
    return text("license", value)


def text(name: str, value: Any) -> str | None:
    """Return a column's text, or None if it is empty.

    Raises:
        BadValue: it is not text, or text that the database cannot store.
    """
    if value is None or value == "":
        return None
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        value = str(value)
    if not is_storable(value):
        raise BadValue(f"{name} is not text")
    return str(value)


def metadata(value: Any) -> dict[str, Any]:
    """Return metadata as JSON can write it. JSON text is read.

    Raises:
        BadValue: the database cannot store it.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {"text": value} if is_storable(value) and value.strip() else {}
    if isinstance(value, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        value = dict(value)  # a map of Arrow. JSON has no tuples
    if not isinstance(value, Mapping):
        return {}
    try:
        plain: dict[str, Any] = json.loads(json.dumps(_plain(value), allow_nan=False))
        good = is_storable(NUL.sub("\0", json.dumps(plain, ensure_ascii=False)))
    except (TypeError, ValueError, RecursionError):
        good = False
    if not good:
        raise BadValue("metadata cannot be stored")
    return plain


def _plain(value: Any) -> Any:
    """Return a value as JSON can write it. NaN and infinity become null, other types become text."""
    match value:
        case Mapping():
            return {str(name): _plain(item) for name, item in value.items()}
        case list() | tuple() | set():
            return [_plain(item) for item in value]
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return _plain(float(value)) if value == value.to_integral_value() or value.is_nan() else str(value)
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return base64.b64encode(value).decode()
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case str() | int() | None:
            return value
    return str(value)


def stored(name: str) -> str:
    """Return a file name as text. Bytes that are not UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode()


def is_storable(text: object) -> bool:
    """Whether Postgres can store it as text: no NUL characters, no lone surrogates."""
    if not isinstance(text, str) or "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
