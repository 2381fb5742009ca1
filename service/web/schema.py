"""JSON of dataclasses, and its schema: what /api/v1 answers, and what its OpenAPI document promises."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Schema = dict[str, Any]

_SIMPLE: Mapping[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    datetime: {"type": "string", "format": "date-time"},
    type(None): {"type": "null"},
    Any: {},
}


def dumps(value: Any) -> str:
    """Return strict JSON. Times are in ISO format, and numbers that are not finite are null."""
    try:
        return json.dumps(value, default=_shallow, allow_nan=False, separators=(",", ":"))
    except ValueError:  # a number is not finite, which is rare: only then every value is looked at
        return json.dumps(plain(value), allow_nan=False, separators=(",", ":"))


def _shallow(value: Any) -> Any:
    """Return what JSON does not know as something that it knows. Its parts follow."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} has no form in JSON")


def plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in fields(value)})
    match value:
        case bool() | int() | str() | None:
            return value
        case float():
            return value if math.isfinite(value) else None
        case datetime():
            return value.isoformat()
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
    raise TypeError(f"{value!r} has no form in JSON")


def schema_of(kind: Any) -> Schema:
    """Return the JSON schema of a type: a dataclass, a container of such, or a simple type.

    A number may be null where it is not finite, as `plain` writes it.
    """
    if kind in _SIMPLE:
        return dict(_SIMPLE[kind]) if kind is not float else {"type": ["number", "null"]}
    if is_dataclass(kind) and isinstance(kind, type):
        return _object(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(one) for one in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (list, tuple, Sequence):
        return {"type": "array", "items": schema_of(arguments[0])}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": schema_of(arguments[1])}
    if kind in (dict, list):
        return {"type": "object" if kind is dict else "array"}
    raise TypeError(f"{kind!r} has no schema")


def _object(kind: type) -> Schema:
    hints = get_type_hints(kind)
    return {
        "type": "object",
        "properties": {field.name: schema_of(hints[field.name]) for field in fields(kind)},
        "required": [field.name for field in fields(kind)],
        "additionalProperties": False,
    }


def from_json(kind: type, given: Any) -> Any:
    """Parse the JSON body of a request into a dataclass with simple fields.

    Raises:
        ValueError: says what is missing, unknown or of a wrong type.
    """
    if not isinstance(given, dict):
        raise ValueError("the body must be a JSON object")
    hints, values = get_type_hints(kind), {}
    names = [field.name for field in fields(kind)]
    if unknown := sorted(given.keys() - set(names)):
        raise ValueError(f"unknown: {', '.join(unknown)}. Allowed: {', '.join(names) or 'nothing'}")
    for field in fields(kind):
        if field.name not in given:
            if field.default is MISSING:
                raise ValueError(f"{field.name} is missing")
            continue
        value = given[field.name]
        if type(value) is not hints[field.name]:
            raise ValueError(
                f"{field.name} must be of type {hints[field.name].__name__}, not {json.dumps(value)[:100]}"
            )
        values[field.name] = value
    return kind(**values)
