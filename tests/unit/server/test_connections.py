"""Connections of clients that do not do their part, over a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from trunkline.server.connections import MAX_HEAD_BYTES, WholeAnswers, protocol_of

READ_S = 0.2
LARGE = 8 * 2**20
CHUNKED = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


class Answering:
    """Answers everything with megabytes; knows when its client has gone."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * LARGE, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone.set()


@asynccontextmanager
async def connected(app: ASGIApp) -> AsyncIterator[socket.socket]:
    """A client whose socket takes in little."""
    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    loop, protocol = asyncio.get_running_loop(), protocol_of(READ_S)
    server = await loop.create_server(
        lambda: protocol(config=config, server_state=ServerState(), app_state={}),  # type: ignore[call-arg]
        "127.0.0.1",
        0,
    )
    async with server:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, server.sockets[0].getsockname())
            yield client


async def said(client: socket.socket) -> bytes:
    """Everything that comes until the connection is closed."""
    found = bytearray()
    async with asyncio.timeout(10 * READ_S):
        while chunk := await asyncio.get_running_loop().sock_recv(client, 1 << 16):
            found += chunk
    return bytes(found)


async def tell(client: socket.socket, content: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(client, content)


def test_a_client_that_leaves_an_answer_unread_is_dropped() -> None:
    async def run() -> None:
        app = Answering()
        async with connected(app) as client:
            await tell(client, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            async with asyncio.timeout(20 * READ_S):
                await app.gone.wait()

    asyncio.run(run())


def test_a_client_that_reads_slowly_but_reads_is_not_dropped() -> None:
    async def run() -> None:
        app, n = Answering(), 0
        async with connected(app) as client:
            await tell(client, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            while n < LARGE // 2:  # Longer than a client may take that reads nothing.
                await asyncio.sleep(READ_S / 40)
                for _ in range(10):
                    n += len(await asyncio.get_running_loop().sock_recv(client, 1 << 16))
            assert not app.gone.is_set()

    asyncio.run(run())


def test_a_head_that_does_not_end_in_time_is_not_waited_for() -> None:
    async def run() -> None:
        async with connected(Answering()) as client:
            await tell(client, b"GET / HTTP/1.1\r\nHost: h\r\n")
            assert await said(client) == b""

    asyncio.run(run())


def test_a_head_that_is_too_large_is_refused() -> None:
    async def run() -> None:
        async with connected(Answering()) as client:
            await tell(client, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (MAX_HEAD_BYTES // 6))
            assert (await said(client)).startswith(b"HTTP/1.1 400")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("begun", "more"), [(b"", b"a: b\r\n"), (b"", b"a"), (b"a: ", b"b")], ids=["lines", "a name", "a value"]
)
def test_what_comes_behind_a_body_does_not_fill_memory(begun: bytes, more: bytes) -> None:
    async def run() -> None:
        async with connected(Answering()) as client:
            await tell(client, CHUNKED + b"0\r\n" + begun)
            with suppress(ConnectionResetError, BrokenPipeError):
                for _ in range(16):
                    await tell(client, more * MAX_HEAD_BYTES)
                await said(client)  # Waits in vain where the connection is kept.

    asyncio.run(run())


@pytest.mark.parametrize("pause", [0.0, READ_S / 20])
def test_a_large_chunked_body_may_have_trailers(pause: float) -> None:
    sizes = list[int]()

    async def read(_scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            sizes.append(len(message["body"]))
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> None:
        chunk = b"x" * 2 * MAX_HEAD_BYTES
        async with connected(read) as client:
            size = b"%x\r\n" % len(chunk)
            for piece in (CHUNKED, size, chunk, b"\r\n" + size, chunk, b"\r\n0\r\nSum: 1\r\n\r\n"):
                await tell(client, piece)
                await asyncio.sleep(pause)
            assert (await said(client)).startswith(b"HTTP/1.1 200")
        assert sum(sizes) == 2 * len(chunk)

    asyncio.run(run())


@pytest.mark.parametrize("more", [b"\r\n", b"a piece of a body"])
def test_bytes_behind_an_answer_do_not_keep_a_connection(more: bytes) -> None:
    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> None:
        length = b"0" if more == b"\r\n" else b"1000"
        async with connected(answer) as client:
            await tell(client, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: " + length + b"\r\n\r\n")
            await asyncio.sleep(READ_S / 4)
            await tell(client, more)
            assert (await said(client)).startswith(b"HTTP/1.1 401")

    asyncio.run(run())


class Packets(asyncio.Transport):
    """What is sent, call by call."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.sent.append(data)

    def writelines(self, pieces: Iterable[bytes]) -> None:  # type: ignore[override]
        self.sent.append(b"".join(pieces))

    def close(self) -> None:
        self.sent.append(b"closed")


def test_the_head_of_an_answer_goes_with_the_first_of_its_body() -> None:
    packets = Packets()
    whole = WholeAnswers(packets)
    for answer in (b"1", b"2"):
        for piece in (b"head" + answer, b"body" + answer, b"more" + answer):
            whole.write(piece)
        whole.answer_ended()
    assert packets.sent == [b"head1body1", b"more1", b"head2body2", b"more2"]


def test_a_head_without_a_body_goes_when_the_answer_ends_or_the_connection() -> None:
    packets = Packets()
    whole = WholeAnswers(packets)
    whole.write(b"head1")
    whole.answer_ended()
    whole.write(b"head2")
    whole.close()
    assert packets.sent == [b"head1", b"head2", b"closed"]


def test_a_client_that_waits_for_a_word_before_its_body_gets_it() -> None:
    async def answer(_scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        headers = [(b"connection", b"close"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def run() -> None:
        async with connected(answer) as client:
            head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
            await tell(client, head)
            async with asyncio.timeout(10 * READ_S):
                word = await asyncio.get_running_loop().sock_recv(client, 1 << 16)
            assert word == b"HTTP/1.1 100 Continue\r\n\r\n"
            await tell(client, b"body")
            assert (await said(client)).endswith(b"\r\n\r\nbody")

    asyncio.run(run())


def test_an_answer_to_head_has_no_body_and_comes() -> None:
    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"connection", b"close"), (b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> None:
        async with connected(answer) as client:
            await tell(client, b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
            told = await said(client)
            assert told.startswith(b"HTTP/1.1 200")
            assert told.endswith(b"\r\n\r\n")

    asyncio.run(run())
