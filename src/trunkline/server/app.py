"""The ASGI application: routes, and one edge around all of them."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

import msgspec
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trunkline.core.errors import TrunklineError
from trunkline.server import admin_api, answers_api, health_api, oip_rest, tei
from trunkline.server.bodies import ClientGoneError
from trunkline.server.openapi import openapi
from trunkline.server.operation import (
    OWN_ERRORS,
    Asked,
    ErrorForm,
    JsonResponse,
    Operation,
    Service,
    authorize,
    first_part,
    request_id_of,
)
from trunkline.server.refusals import Refusal, refusal_of, refuse

_ROUTE, _REQUEST_ID, _ARRIVED = "trunkline.route", "trunkline.request_id", "trunkline.arrived"
UNKNOWN_ROUTE = "unknown"
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
_GONE = 499
"""Counted where nobody was left to be told, as other servers count it."""

OPERATIONS: tuple[Operation, ...] = (
    *answers_api.OPERATIONS,
    *admin_api.OPERATIONS,
    *oip_rest.OPERATIONS,
    *tei.OPERATIONS,
    *health_api.OPERATIONS,
)
"""Everything that the server offers over HTTP."""


def make_app(service: Service, operations: Sequence[Operation] = OPERATIONS) -> ASGIApp:
    """The application.

    Args:
        service: What handlers work with.
        operations: What it offers.
    """
    document = msgspec.json.encode(openapi(operations))

    async def show_openapi(asked: Asked) -> Response:  # noqa: ARG001 - every handler gets what was asked
        return Response(document, media_type="application/json")

    described = Operation("GET", "/openapi.json", show_openapi, "This document", "operations", needs="nothing")
    every = (*operations, described)
    endpoints = {operation: _endpoint(service, operation) for operation in every}
    errors = {operation.beginning: operation.errors for operation in operations}
    app: ASGIApp = Edge(Routes(endpoints), service, errors)
    if service.settings.cors_origins:
        app = CORSMiddleware(
            app, allow_origins=service.settings.cors_origins, allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type"], expose_headers=["x-request-id"],
        )  # fmt: skip
    return app


def _endpoint(service: Service, operation: Operation) -> Endpoint:
    handler: Callable[[Asked], Awaitable[Response]] = operation.handler

    async def endpoint(request: Request) -> Response:
        scope = request.scope
        scope[_ROUTE] = operation.path
        caller = authorize(service, request, operation.needs)
        return await handler(Asked(service, request, caller, scope[_REQUEST_ID], scope[_ARRIVED]))

    return endpoint


class Routes:
    """From a request to its endpoint: paths without names at once, others as Starlette finds them."""

    def __init__(self, endpoints: Mapping[Operation, Endpoint]) -> None:
        """Take what each operation does."""
        self._fixed = {
            (operation.method, operation.path): endpoint
            for operation, endpoint in endpoints.items()
            if "{" not in operation.path
        }
        of_path: dict[str, dict[str, Endpoint]] = {}
        for operation, endpoint in endpoints.items():
            of_path.setdefault(operation.path, {})[operation.method] = endpoint
        # One route a path, so that one of another method tells all that are offered there. Starlette answers HEAD
        # wherever it answers GET; bodies are left out by the server.
        routes = [Route(path, _by_method(methods), methods=list(methods)) for path, methods in of_path.items()]
        self._router = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on where it is none of HTTP."""
        endpoint = self._fixed.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if endpoint is None:
            await self._router(scope, receive, send)
            return
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


def _by_method(endpoints: Mapping[str, Endpoint]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return endpoint


class Edge:
    """Around every request: its id, its errors, its count and its line in the log."""

    def __init__(self, app: ASGIApp, service: Service, errors: Mapping[str, ErrorForm]) -> None:
        """Wrap the routes.

        Args:
            app: The routes.
            service: What handlers work with.
            errors: How errors are told below the first part of a path, whether the rest of it is known or not.
        """
        self._app = app
        self._service = service
        self._errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; other things than HTTP are passed on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = request_id_of(_given_id(scope))
        scope["app"], scope[_REQUEST_ID], scope[_ARRIVED] = self, request_id, self._service.analyzer.now()
        header = (b"x-request-id", request_id.encode())
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], header]
            await send(message)

        try:
            refusal = await self._run(scope, receive, told)
            if refusal is not None and not status:
                await self._refused(refusal, scope)(scope, receive, told)
        except ClientGoneError:
            status = _GONE  # Also where an answer had begun.
        finally:
            self._count(scope, request_id, status or _GONE, time.perf_counter() - started)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> Refusal | None:
        """Run the routes; what they raise before an answer began is told to the client, if that is still there."""
        try:
            await self._app(scope, receive, send)
        except ClientGoneError:
            raise
        except HTTPException as error:
            return refusal_of(_of_http(error, scope))
        except Exception as error:  # noqa: BLE001 - told to the client, and logged
            return self._service.failed(error, scope[_REQUEST_ID])
        return None

    def _count(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = scope.get(_ROUTE, UNKNOWN_ROUTE)
        method = scope["method"] if route != UNKNOWN_ROUTE else "any"
        self._service.count(route=route, method=method, status=status, seconds=seconds, request_id=request_id)

    def _refused(self, refusal: Refusal, scope: Scope) -> Response:
        form = self._errors.get(first_part(scope["path"]), OWN_ERRORS)
        body = form.make(refusal, scope[_REQUEST_ID])
        return JsonResponse(body, status_code=refusal.status, headers=dict(refusal.headers))


def _given_id(scope: Scope) -> str | None:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), None)


def _of_http(error: HTTPException, scope: Scope) -> TrunklineError:
    path = scope["path"][:100]
    if error.status_code == 405:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        return refuse(
            405, "method_not_allowed", f"{scope['method'][:20]} {path!r}: is not offered; allowed here: {allowed}; see "
            "/docs", Allow=allowed,
        )  # fmt: skip
    return refuse(error.status_code, "not_found", f"{path!r}: there is no such path; see /docs for all of them")
