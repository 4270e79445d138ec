"""What the server offers, as a table: routes, authorization and OpenAPI are made from it."""

import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from trunkline.server.analyze import Analyzer
from trunkline.server.bodies import decode_body, read_body, refuse_encoded
from trunkline.server.deployment import Deployment
from trunkline.server.keys import Caller, Keyring
from trunkline.server.metrics import Metrics
from trunkline.server.refusals import Refusal, refusal_of, refuse
from trunkline.server.settings import Settings
from trunkline.wire import Change, ErrorBody, ErrorDetail

Needs: TypeAlias = Literal["nothing", "infer", "owner", "changes"]
"""Whose key it takes: nobody's; anybody's; the owner's of the task in the path; anybody's who changes tasks."""
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
_LONGEST_ID = 64
_IDS = random.Random()


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """What handlers work with."""

    deployment: Deployment
    analyzer: Analyzer
    keyring: Keyring
    settings: Settings
    metrics: Metrics
    log: logging.Logger

    def count(self, *, route: str, method: str, status: int, seconds: float, request_id: str) -> None:
        """Count a request that is over, and log it where that is wanted or it failed."""
        self.metrics.requested(route, method, status, seconds)
        failed = status >= 500
        if failed or self.settings.access_log:
            self.log.log(
                logging.WARNING if failed else logging.INFO,
                "request",
                extra={
                    "request_id": request_id,
                    "method": method,
                    "route": route,
                    "status": status,
                    "ms": round(1e3 * seconds, 3),
                },
            )

    def failed(self, error: BaseException, request_id: str) -> Refusal:
        """What a client is told about an error; it is counted where there was no room, logged where it is a fault."""
        refusal = refusal_of(error)
        if refusal.status == 429:
            self.metrics.refused(refusal.code)
        if refusal.status == 500:
            self.log.error("request failed", exc_info=error, extra={"request_id": request_id})
        return refusal

    def record(self, action: str, change: Change, *, who: str, request_id: str) -> None:
        """Count and log a change of tasks."""
        self.metrics.changed(action)
        self.log.info(
            "task changed",
            extra={
                "action": action,
                "task": change.task,
                "version": change.version,
                "seq": change.seq,
                "who": who,
                "request_id": request_id,
            },
        )


class Asked(msgspec.Struct, frozen=True, eq=False):
    """A request that may be answered.

    Attributes:
        service: What handlers work with.
        request: As it came; its body is unread.
        caller: Who asks.
        request_id: Also in the answer's header ``X-Request-Id``.
        arrived: On the engine's clock.
    """

    service: Service
    request: Request
    caller: Caller
    request_id: str
    arrived: float

    async def body(self) -> bytes:
        """The body within the usual limits; errors as of `trunkline.server.bodies.read_body`."""
        refuse_encoded(self.request)
        limits = self.service.settings.limits
        return await read_body(self.request, max_bytes=limits.body_bytes, seconds=limits.read_s)

    async def decoded(self, body_type: type[Any]) -> Any:
        """The body as a type; errors as of `trunkline.server.bodies.decode_body` besides."""
        return decode_body(await self.body(), body_type)

    @property
    def task(self) -> str:
        """The task in the path."""
        return str(self.request.path_params["task"])


Handler: TypeAlias = Callable[[Asked], Awaitable[Response]]


def _own_error(refusal: Refusal, request_id: str) -> ErrorBody:
    return ErrorBody(error=ErrorDetail(code=refusal.code, message=refusal.message, request_id=request_id))


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """How a protocol tells errors.

    Attributes:
        body: Type of the JSON body.
        make: Makes it, of what is told and the id of the request.
    """

    body: type[msgspec.Struct]
    make: Callable[[Refusal, str], msgspec.Struct]


OWN_ERRORS = ErrorForm(ErrorBody, _own_error)


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One thing the server does.

    Attributes:
        method: Of HTTP.
        path: With names in braces.
        handler: Does it.
        summary: One line.
        tag: Which group it belongs to.
        needs: Whose key it takes.
        asks: Type of the JSON body; None takes none.
        answers: Type of the JSON answer; None where it is another form.
        status: Of success.
        example: A body that works with the sample bundle.
        other_bodies: Further content types that are taken, with what they hold.
        other_answers: Further content types that are given, with what they hold.
        query: Names of query parameters, with what they mean.
        errors: How errors are told; the same for all paths that begin alike.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    tag: str
    needs: Needs = "infer"
    asks: Any = None
    answers: Any = None
    status: int = 200
    example: Any = None
    other_bodies: Mapping[str, str] = field(default_factory=dict)
    other_answers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    errors: ErrorForm = OWN_ERRORS

    @property
    def beginning(self) -> str:
        """The first part of the path."""
        return first_part(self.path)


def first_part(path: str) -> str:
    """What stands between the first two slashes of a path."""
    return path.lstrip("/").partition("/")[0]


def request_id_of(given: str | None) -> str:
    """The id that the client gave its request, where it is harmless; else a new one."""
    if given and len(given) <= _LONGEST_ID and _ID_CHARACTERS.issuperset(given):
        return given
    return f"{_IDS.getrandbits(128):032x}"


def authorize(service: Service, request: Request, needs: Needs) -> Caller:
    """Who asks, if it may.

    Raises:
        ServerError: 401: there is no key, or it is not known; 403: it does not allow this.
    """
    if needs == "nothing":
        return Caller("", frozenset())
    caller = service.keyring.caller(request.headers.get("authorization"))
    require(service, caller, needs, task=request.path_params.get("task", ""))
    return caller


def _allows(caller: Caller, needs: Needs, task: str) -> bool:
    match needs:
        case "nothing":
            return True
        case "infer":
            return caller.may_infer()
        case "owner":
            return caller.may_change(task)
        case "changes":
            return caller.may_see_changes()


def require(service: Service, caller: Caller, needs: Needs, *, task: str) -> None:
    """Refuse a caller whose key does not allow something.

    Raises:
        ServerError: 403: it does not.
    """
    if _allows(caller, needs, task):
        return
    if service.keyring.is_open:
        raise refuse(
            403, "no_keys", "server: has no API keys, so nobody may change tasks; start it with --keys FILE "
            "(make one with `trunkline keys new NAME --scope admin`)",
        )  # fmt: skip
    wanted = (
        f"owner:{task} or admin" if needs == "owner" else "admin, or owner of a task" if needs == "changes" else needs
    )
    raise refuse(
        403, "not_allowed", f"key {caller.name!r}: has scopes {', '.join(sorted(caller.scopes)) or 'none'}; this needs "
        f"{wanted}; ask an administrator for a key",
    )  # fmt: skip


class JsonResponse(Response):
    """A value as JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode it."""
        return msgspec.json.encode(content)
