"""From errors to what a client is told: status, code, message; never a traceback."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from trunkline.core.errors import (
    BundleError,
    CancelledRequestError,
    ClosedError,
    DataError,
    DeadlineError,
    DigestMismatchError,
    MissingBranchError,
    NonFiniteError,
    QueueFullError,
    RegistryError,
    SpecError,
    TrunklineError,
    UnknownNameError,
    nearest_hint,
)

# The first that fits; what is not here is a fault of the server.
_KNOWN: tuple[tuple[type[TrunklineError], int, str], ...] = (
    (QueueFullError, 429, "overloaded"),
    (DeadlineError, 504, "deadline_exceeded"),
    (CancelledRequestError, 499, "cancelled"),
    (ClosedError, 503, "stopping"),
    (UnknownNameError, 404, "unknown_name"),
    (MissingBranchError, 404, "unknown_version"),
    (RegistryError, 409, "conflict"),
    (NonFiniteError, 500, "not_finite"),
    (DigestMismatchError, 422, "damaged_branch"),
    (BundleError, 422, "refused_branch"),
    (DataError, 400, "invalid_input"),
    (SpecError, 400, "invalid_request"),
)
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.+?)`")


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a client is told.

    Attributes:
        status: Of HTTP.
        code: For programs.
        message: For people.
        headers: Further ones, for example ``Retry-After``.
    """

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)


class ServerError(TrunklineError):
    """A request that is refused, with what its client is told; the message says why.

    Attributes:
        refusal: What the client is told.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refuse(status: int, code: str, message: str, **headers: str) -> ServerError:
    """An error to raise; names of headers are written with ``_`` for ``-``."""
    return ServerError(
        Refusal(status, code, message, {name.replace("_", "-"): value for name, value in headers.items()})
    )


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told about an error; nothing of what was not meant for it."""
    if isinstance(error, ServerError):
        return error.refusal
    for kind, status, code in _KNOWN:
        if isinstance(error, kind):
            headers = {"Retry-After": "1"} if status in {429, 503} else {}
            return Refusal(status, code, str(error), headers)
    message = (
        "server: the request failed for a reason of the server's own; its log names it by the request id; try again"
    )
    return Refusal(500, "internal", message)


def malformed(error: msgspec.MsgspecError, fields: Iterable[str]) -> ServerError:
    """A body that is not what was asked for.

    Args:
        error: As msgspec raised it.
        fields: What is known, so that the nearest can be named.
    """
    told = str(error)
    unknown = _UNKNOWN_FIELD.search(told)
    if unknown is not None:
        hint = nearest_hint(unknown[1][:64], fields)
        return refuse(400, "unknown_field", f"body: field {unknown[1][:64]!r} is not known; {hint}")
    return refuse(400, "invalid_request", f"body: {told[:300]}; see /openapi.json for what is allowed")
