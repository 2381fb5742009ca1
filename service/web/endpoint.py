"""How an endpoint of /api/v1 is described, checked and answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flask import Flask, Response, request

from db.errors import DatabaseError, Unavailable
from service.errors import ServiceError
from service.web.guard import refusal, unauthorized
from service.web.schema import dumps, from_json
from service.web.views import Busy, NotFound

MAX_ID = 2**63 - 1
MAX_BODY_BYTES = 10_000


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter in the path or in the query."""

    name: str
    help: str
    default: int | None = None
    least: int = 1
    most: int = MAX_ID
    choices: tuple[str, ...] | None = None
    """A text with these values. None: an integer."""
    free_text: bool = False
    is_required: bool = False
    in_path: bool = False


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One endpoint. `answer` gets the checked parameters, or the body of a POST."""

    path: str
    summary: str
    returns: type
    answer: Callable[..., Any]
    parameters: tuple[Parameter, ...] = ()
    body: type | None = None
    """None: a GET."""
    errors: tuple[int, ...] = ()


class BadRequest(Exception):
    """A parameter or the body is not allowed."""


def add_api(app: Flask, found: list[Endpoint], *, token: str | None, document: Mapping[str, Any]) -> None:
    """Add the endpoints, and the OpenAPI document that describes them."""
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    for endpoint in found:
        rule = f"/api/v1/{endpoint.path.replace('{', '<').replace('}', '>')}"
        method = "GET" if endpoint.body is None else "POST"
        app.add_url_rule(rule, f"v1 {endpoint.path}", _view(endpoint, token), methods=[method])
    app.add_url_rule("/api/v1/openapi.json", "v1 openapi", lambda: _json(document))


def _view(endpoint: Endpoint, token: str | None) -> Callable[..., Response]:
    def view(**path: str) -> Response:
        if "Authorization" in request.headers and 401 in endpoint.errors and (refused := unauthorized(token)):
            return refused
        try:
            if endpoint.body is not None:
                return _json(endpoint.answer(_body(endpoint.body)), 202)
            return _json(endpoint.answer(**_parameters(endpoint, path)))
        except BadRequest as error:
            return refusal(400, str(error))
        except NotFound as error:
            return refusal(404, str(error))
        except Busy as error:
            return _later(429, str(error), 1)
        except ServiceError as error:
            return refusal(409, str(error))
        except Unavailable as error:
            return _later(503, str(error), 5)
        except DatabaseError as error:
            return refusal(409 if 409 in endpoint.errors else 503, str(error))

    return view


def _later(status: int, error: str, seconds: int) -> Response:
    answer = refusal(status, error)
    answer.headers["Retry-After"] = str(seconds)
    return answer


def _body(kind: type) -> Any:
    data = request.get_data()
    try:
        return from_json(kind, json.loads(data) if data else {})
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body cannot be used: {error}") from error


def _parameters(endpoint: Endpoint, path: Mapping[str, str]) -> dict[str, Any]:
    known = {parameter.name for parameter in endpoint.parameters if not parameter.in_path}
    if unknown := sorted(set(request.args) - known):
        raise BadRequest(f"unknown parameter {unknown[0][:100]!r}. Allowed: {', '.join(sorted(known)) or 'none'}")
    values = {}
    for parameter in endpoint.parameters:
        given = path.get(parameter.name) if parameter.in_path else request.args.get(parameter.name)
        values[parameter.name] = _value(parameter, given)
    return values


def _value(parameter: Parameter, given: str | None) -> Any:
    if given is None:
        if parameter.is_required:
            raise BadRequest(f"{parameter.name} is missing")
        return parameter.default
    if parameter.free_text:
        if "\0" in given or len(given) > 200:
            raise BadRequest(f"{parameter.name} must be a text of at most 200 characters")
        return given
    if parameter.choices is not None:
        if given not in parameter.choices:
            raise BadRequest(f"{parameter.name}={given[:100]} is not one of {', '.join(parameter.choices)}")
        return given
    digits = given.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 20):
        raise BadRequest(f"{parameter.name}={given[:100]} is not an integer")
    if not parameter.least <= int(given) <= parameter.most:
        raise BadRequest(f"{parameter.name}={given} is not between {parameter.least} and {parameter.most}")
    return int(given)


def _json(value: Any, status: int = 200) -> Response:
    return Response(dumps(value), status=status, content_type="application/json")
