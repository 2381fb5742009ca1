"""The OpenAPI document of /api/v1, made from the table of its endpoints."""

from __future__ import annotations

from dataclasses import MISSING, fields
from importlib.metadata import version
from typing import Any

from service.web.endpoint import Endpoint, Parameter
from service.web.schema import schema_of

ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string", "description": "What happened, and what to do."}},
    "required": ["error"],
}
MEANINGS = {
    400: "A parameter or the body is not allowed",
    401: "No token, or a wrong one",
    403: "Refused: no token is set, another site asks, or no origin is stated",
    404: "There is no such run or row",
    409: "The state does not allow it",
    429: "Too many requests read at once. Ask again in a moment",
    503: "The database does not answer, or is not ready. Ask again later",
}


def document(endpoints: list[Endpoint]) -> dict[str, Any]:
    """Return the document in OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "CodeLupe trainer",
            "version": version("codelupe"),
            "description": "What the page shows and can do. A row's text is given only to who presents CODELUPE_TOKEN. "
            "A POST needs the token, and an Origin header that names this service.",
        },
        "paths": {f"/api/v1/{endpoint.path}": _operation(endpoint) for endpoint in endpoints},
        "components": {
            "schemas": {"Error": ERROR, **{one.returns.__name__: schema_of(one.returns) for one in endpoints}},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    is_post = endpoint.body is not None
    operation: dict[str, Any] = {
        "operationId": endpoint.path.replace("/{run_id}", "_of_run").replace("/{file_id}", "_by_id").replace("/", "_"),
        "summary": endpoint.summary,
        "parameters": [_parameter(one) for one in endpoint.parameters],
        "responses": {
            "202" if is_post else "200": _answer(
                f"#/components/schemas/{endpoint.returns.__name__}", endpoint.returns.__doc__ or ""
            ),
            **{
                str(code): _answer("#/components/schemas/Error", MEANINGS[code])
                for code in sorted({400, 403, *endpoint.errors})
            },
        },
    }
    if endpoint.body is not None:
        body = schema_of(endpoint.body)
        body["required"] = [field.name for field in fields(endpoint.body) if field.default is MISSING]
        operation["requestBody"] = {
            "required": bool(body["required"]),
            "content": {"application/json": {"schema": body}},
        }
        operation["security"] = [{"token": []}]
        operation["parameters"] = [
            {"name": "Origin", "in": "header", "required": False, "schema": {"type": "string"},
             "description": "This service's own origin. Browsers send it."}
        ]  # fmt: skip
    elif 401 in endpoint.errors:
        operation["security"] = [{}, {"token": []}]
    return {"post" if is_post else "get": operation}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    if parameter.free_text:
        schema: dict[str, Any] = {"type": "string", "maxLength": 200, "pattern": "^[^\\u0000]*$"}
    elif parameter.choices is not None:
        schema = {"type": "string", "enum": list(parameter.choices)}
    else:
        schema = {"type": "integer", "minimum": parameter.least, "maximum": parameter.most}
        if parameter.default is not None:
            schema["default"] = parameter.default
    return {
        "name": parameter.name,
        "in": "path" if parameter.in_path else "query",
        "required": parameter.is_required,
        "description": parameter.help,
        "schema": schema,
    }


def _answer(reference: str, description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": {"$ref": reference}}}}
