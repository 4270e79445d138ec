"""Bodies of requests: read within bytes and seconds, decoded with care; and clients that go away meanwhile."""

import asyncio
import math
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.types import Message

from trunkline.core.errors import TrunklineError
from trunkline.server.refusals import malformed, refuse

BodyT = TypeVar("BodyT", bound=msgspec.Struct)
_WHOLE_S = 60.0
"""A body that comes byte by byte ends, too."""
_LOOK_AFTER_S = 0.25
"""Most requests are answered before; only then somebody looks whether their client is still there."""
ALL_HERE = "trunkline.all_here"
"""In the scope of a request once all of its body has come: nobody need watch the time while it is read."""


class ClientGoneError(TrunklineError):
    """The client closed its connection; nobody is left to be told."""


class Body:
    """The body of a request, piece by piece; ``seconds`` hold for each, ``whole_s`` for all.

    Attributes:
        is_read: Whether there is no more.
    """

    def __init__(self, request: Request, *, max_bytes: int, seconds: float, whole_s: float = math.inf) -> None:
        """Take a request whose body is unread.

        Raises:
            ServerError: 413: it says that it is larger.
        """
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > max_bytes:
            raise _too_large(stated, max_bytes)
        self.is_read = False
        self._receive, self._max_bytes = request.receive, max_bytes
        self._seconds, self._whole_s = seconds, whole_s
        self._clock = asyncio.get_running_loop().time
        self._ends = self._clock() + whole_s
        self._total = 0

    async def piece(self) -> bytes:
        """The next one.

        Raises:
            ServerError: 413: all are larger; 408: it took longer.
            ClientGoneError: The connection was closed.
        """
        try:
            async with asyncio.timeout_at(min(self._clock() + self._seconds, self._ends)):
                message = await self._receive()
        except TimeoutError as error:
            waited = self._seconds if self._clock() < self._ends else self._whole_s
            raise refuse(
                408, "slow_body", f"body: nothing came, or it was not whole, for {waited:g} s; send it faster, or less",
                Connection="close",
            ) from error  # fmt: skip
        piece = _piece_of(message, self._total, self._max_bytes)
        self._total += len(piece)
        self.is_read = not message.get("more_body", False)
        return piece


def _piece_of(message: Message, n_before: int, max_bytes: int) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientGoneError("client: closed the connection before its request was read; nothing was done")
    piece: bytes = message.get("body", b"")
    if n_before + len(piece) > max_bytes:
        raise _too_large(f"more than {max_bytes}", max_bytes)
    return piece


async def read_body(request: Request, *, max_bytes: int, seconds: float) -> bytes:
    """The whole body; errors as of `Body`."""
    if ALL_HERE in request.scope:
        return _piece_of(await request.receive(), 0, max_bytes)
    body = Body(request, max_bytes=max_bytes, seconds=seconds, whole_s=_WHOLE_S)
    pieces = [await body.piece()]
    while not body.is_read:
        pieces.append(await body.piece())
    return b"".join(pieces)


def refuse_encoded(request: Request) -> None:
    """Refuse a compressed body, which could be a thousand times larger than it looks.

    Raises:
        ServerError: 415: it is compressed.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise refuse(
            415, "compressed_body", f"header Content-Encoding: is {encoding[:40]!r}; identity is allowed; send the "
            "body as it is",
        )  # fmt: skip


def decode_body(content: bytes, body_type: type[BodyT]) -> BodyT:
    """JSON into its type: unknown keys refused, nesting no deeper than the type's.

    Raises:
        ServerError: 400: it is something else; the message names the nearest field.
    """
    try:
        return msgspec.json.decode(content, type=body_type)
    except msgspec.MsgspecError as error:
        raise malformed(error, [each.encode_name for each in msgspec.structs.fields(body_type)]) from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise refuse(400, "invalid_request", f"body: is no JSON ({str(error)[:200]}); send a JSON object") from error


class while_there:  # noqa: N801 - read as a statement, as contextlib's are
    """Cancel what runs inside when the client closes its connection; the body must have been read.

    Raises:
        ClientGoneError: It did.
    """

    def __init__(self, request: Request) -> None:
        """Watch over this request."""
        self._request = request
        self._watcher: asyncio.Task[None] | None = None
        self._is_gone = False

    async def __aenter__(self) -> None:
        """Begin to watch, once it has taken a while."""
        self._loop = asyncio.get_running_loop()
        self._current = asyncio.current_task()
        self._timer = self._loop.call_later(_LOOK_AFTER_S, self._begin)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Watch no more."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # It knows this watch: no garbage in a circle.
        if self._is_gone and isinstance(error, asyncio.CancelledError) and self._current is not None:
            self._current.uncancel()
            raise ClientGoneError(
                "client: closed the connection before it was answered; the rest is not run"
            ) from error

    def _begin(self) -> None:
        self._watcher = self._loop.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        if self._current is not None:
            self._current.cancel()


def _too_large(found: str, allowed: int) -> TrunklineError:
    return refuse(
        413, "body_too_large", f"body: has {found} bytes; {allowed} are allowed; send less at a time",
        Connection="close",
    )  # fmt: skip
