"""OpenAPI 3.1 of the server, made from the table of operations and the types on the wire."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

import trunkline
from trunkline.server.operation import Operation
from trunkline.wire import Event

_REF = "#/components/schemas/{name}"
_ERRORS = {
    "400": "The request says something that is not allowed.",
    "401": "No API key, or one that is not known.",
    "403": "The key does not allow this.",
    "404": "A task or version that is not there; the message names the nearest.",
    "408": "The body came too slowly.",
    "413": "More bytes, texts, characters or tokens than are allowed.",
    "415": "The body is compressed.",
    "429": "The queue is full; see Retry-After.",
    "503": "Not ready, or about to stop; see Retry-After.",
    "504": "The deadline passed.",
}
_CHANGE_ERRORS = {
    "409": "It does not fit the present state.",
    "422": "The branch is damaged, incomplete, of another trunk, or answers otherwise than it should.",
}


def openapi(operations: Sequence[Operation]) -> dict[str, Any]:
    """The document.

    Args:
        operations: All that the server offers.
    """
    types = [
        each
        for operation in operations
        for each in (operation.asks, operation.answers, operation.errors.body)
        if each is not None
    ]
    unique = list(dict.fromkeys([*types, Event]))
    schemas, components = msgspec.json.schema_components(unique, ref_template=_REF)
    of_type = dict(zip(unique, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation, of_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Trunkline",
            "version": trunkline.__version__,
            "summary": "Many tasks on one encoder, in one pass.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}},
        },
    }


def _described(operation: Operation, of_type: dict[Any, Any]) -> dict[str, Any]:
    told = (operation.handler.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
    changes = _CHANGE_ERRORS if operation.needs == "owner" else {}
    errors = {**_ERRORS, **changes} if operation.needs != "nothing" else {
        "503": _ERRORS["503"]
    }  # fmt: skip
    body_of_errors = {"application/json": {"schema": of_type[operation.errors.body]}}
    described: dict[str, Any] = {
        "operationId": operation.handler.__name__ if operation.path != "/v1/history" else "list_all_history",
        "summary": operation.summary,
        "description": " ".join(told.split()),
        "tags": [operation.tag],
        "parameters": _parameters(operation),
        "responses": {
            str(operation.status): {"description": "Done.", "content": _answers(operation, of_type)},
            **{status: {"description": words, "content": body_of_errors} for status, words in errors.items()},
        },
    }
    if "{version}" in operation.path:
        described["operationId"] += "_version"
    if operation.needs != "nothing":
        described["security"] = [{"key": []}, {}]
    if operation.asks is not None:
        content: dict[str, Any] = {"application/json": {"schema": of_type[operation.asks]}}
        if operation.example is not None:
            content["application/json"]["example"] = operation.example
        content |= {
            kind: {"schema": {"type": "string", "format": "binary", "description": words}}
            for kind, words in operation.other_bodies.items()
        }
        described["requestBody"] = {"required": True, "content": content}
    return described


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)(?::\w+)?}", operation.path)
    ]
    in_query = [
        {"name": name, "in": "query", "required": False, "description": words, "schema": {"type": "string"}}
        for name, words in operation.query.items()
    ]
    return in_path + in_query


def _answers(operation: Operation, of_type: dict[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.answers is not None:
        content["application/json"] = {"schema": of_type[operation.answers]}
    for kind, words in operation.other_answers.items():
        is_stream = kind in {"application/x-ndjson", "text/event-stream"}
        schema = of_type[Event] if is_stream else {"type": "string"}
        content[kind] = {"schema": {**schema, "description": words}}
    return content or {"application/json": {"schema": {"type": "object"}}}
