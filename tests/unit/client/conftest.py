"""A server that answers as a test says, and both clients behind one face, on a clock that only sleeps move."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest

from trunkline.client import AsyncClient, Client
from trunkline.wire import Answer, LabelAnswer, Timings

TIMINGS = Timings(queue_ms=0.1, trunk_ms=2.0, branch_ms=0.5, decode_ms=0.1)
VERSION = "abcdef01" * 8


def answer(index: int = 0, label: str = "alarm", task: str = "intent") -> Answer:
    return LabelAnswer(
        index=index, task=task, version=VERSION, label_schema_version=1, truncated=False, timings=TIMINGS,
        label=label, confidence=0.9, abstained=False,
    )  # fmt: skip


def event(answer: Answer) -> bytes:
    return b'{"event":"answer","answer":' + msgspec.json.encode(answer) + b"}\n"


def end(n_answers: int) -> bytes:
    return b'{"event":"end","request_id":"r","n_answers":%d}\n' % n_answers


def refused(status: int, code: str, headers: dict[str, str] | None = None) -> httpx.Response:
    detail = {"code": code, "message": "intnt: is not served", "request_id": "r1"}
    return httpx.Response(status, json={"error": detail}, headers=headers)


class Chunks(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that comes in pieces; one that is an error is raised."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self._pieces = iter(pieces)
        self.n_read, self.is_closed = 0, False

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            self.n_read += 1
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.is_closed = True

    async def aclose(self) -> None:
        self.close()


def fresh(response: httpx.Response) -> httpx.Response:
    """A response as it was before a client took it: clients change them."""
    return httpx.Response(response.status_code, headers=response.headers, content=response.content)


class Server:
    """Gives its replies one after the other, the last one for ever, and keeps what it was asked."""

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        if callable(reply):
            reply = reply(request)
        return reply if isinstance(reply.stream, Chunks) else fresh(reply)

    @property
    def bodies(self) -> list[Any]:
        return [msgspec.json.decode(request.content) for request in self.asked]


class Face:
    """A client of either kind; methods of the asynchronous one are run to their end."""

    def __init__(self, kind: type[Any], runner: asyncio.Runner) -> None:
        self._kind, self._runner = kind, runner
        self.now, self.slept = 0.0, list[float]()

    def open(self, server: Callable[[httpx.Request], httpx.Response], **options: Any) -> "Face":
        self.client = self._kind(transport=httpx.MockTransport(server), **options)
        self.client._clock, self.client._sleep = (lambda: self.now), self._sleep
        return self

    def _sleep(self, seconds: float) -> Any:
        self.slept.append(seconds)
        self.now += seconds
        return asyncio.sleep(0) if self._kind is AsyncClient else None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, "aclose" if name == "close" and self._kind is AsyncClient else name)
        return lambda *args, **options: self.done(method(*args, **options))

    def done(self, result: Any) -> Any:
        return self._runner.run(result) if inspect.isawaitable(result) else result

    def take(self, stream: Any) -> Any:
        """The next answer of a stream; None at its end."""
        if self._kind is Client:
            return next(stream, None)

        async def step() -> Any:
            return await anext(stream, None)

        return self._runner.run(step())

    def all(self, stream: Any) -> list[Answer]:
        return list(iter(lambda: self.take(stream), None))

    def enter(self, stream: Any) -> Any:
        return stream.__enter__() if self._kind is Client else self._runner.run(stream.__aenter__())

    def close_stream(self, stream: Any) -> None:
        self.done(stream.close() if self._kind is Client else stream.aclose())


@pytest.fixture(params=[Client, AsyncClient], ids=["sync", "async"])
def face(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Face]:
    monkeypatch.delenv("TRUNKLINE_API_KEY", raising=False)
    with asyncio.Runner() as runner:
        made = Face(request.param, runner)
        yield made
        if "client" in vars(made):
            made.close()
