"""Loads the statements of queries/*.sql by the name on their `-- name:` line, and writes JSON for their parameters.

In a statement, {braces} are filled with quoted identifiers or other fragments, %(names)s with values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from psycopg2.extras import Json


def read_queries(folder: Path) -> Mapping[str, str]:
    """Statements of every file of a folder by name, without their comments.

    Raises:
        ValueError: a name occurs twice.
    """
    queries: dict[str, str] = {}
    for path in sorted(folder.glob("*.sql")):
        parts = re.split(r"^-- name: (\w+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            if name in queries:
                raise ValueError(f"{path}: the name {name} occurs twice")
            lines = [line for line in text.splitlines() if not line.lstrip().startswith("--")]
            queries[name] = "\n".join(lines).strip().rstrip(";")
    return queries


def as_json(value: Mapping[str, Any]) -> Json:
    """A parameter for a column of JSON. Characters are written as they are: a SQL_ASCII database refuses `\\u` escapes
    of all but ASCII."""
    return Json(dict(value), dumps=partial(json.dumps, ensure_ascii=False))


QUERIES = read_queries(Path(__file__).with_name("queries"))
