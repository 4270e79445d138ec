"""Hostile bytes on a connection: heads, lengths, chunks, paths, methods and clients that are slow or vanish."""

import json
import random
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote

from benchmarks.served import Served

TIMEOUT_S = 15.0
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_MOST_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Tried:
    """One hostile request.

    Attributes:
        kind: What was tried.
        statuses: Of the answers; none where the connection was closed without one.
        answer: Everything that came back, or its beginning.
        detail: What gRPC answered, as a word; empty over HTTP.
    """

    kind: str
    statuses: tuple[int, ...]
    answer: bytes
    detail: str = ""


Family: TypeAlias = Callable[[Served, random.Random, int], Iterator[Tried]]
"""Sends so many hostile requests of one sort."""


def exchange(server: Served, content: bytes, *, half_closed: bool = False, timeout_s: float = TIMEOUT_S) -> bytes:
    """Send bytes on a connection of their own; what came back until the server closed it."""
    with socket.create_connection((server.host, server.port), timeout=timeout_s) as connection:
        try:
            connection.sendall(content)
            if half_closed:
                connection.shutdown(socket.SHUT_WR)
            return received(connection)
        except OSError:  # The server had heard enough.
            return b""


def received(connection: socket.socket) -> bytes:
    """Everything until the other side closes, or says nothing for so long as the connection waits."""
    found = bytearray()
    try:
        while chunk := connection.recv(1 << 16):
            found += chunk
            if len(found) > _MOST_BYTES:
                break
    except (TimeoutError, ConnectionResetError):
        pass
    return bytes(found)


def tried(kind: str, answer: bytes) -> Tried:
    """What came back, as statuses."""
    return Tried(kind, tuple(int(each) for each in _STATUS.findall(answer)), answer[:100_000])


def request_bytes(
    server: Served, method: str, path: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None
) -> bytes:
    """A whole request that asks to close the connection; ``headers`` replace the usual ones of the same name."""
    all_headers = {
        "Host": f"{server.host}:{server.port}", "Connection": "close", "Content-Type": "application/json",
        "Content-Length": str(len(body)), **server.headers, **(headers or {}),
    }  # fmt: skip
    head = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("utf-8", "surrogateescape") + body


_WELL = json.dumps({"texts": ["play a song"]}).encode()
_LIVE = b"GET /health/live HTTP/1.1\r\nHost: h\r\n\r\n"


def heads(server: Served, rng: random.Random, n: int) -> Iterator[Tried]:
    """Request lines and headers that are none, too many, too long, or say what they should not."""
    makers: dict[str, Callable[[], bytes]] = {
        "random bytes": lambda: rng.randbytes(rng.randint(1, 3000)) + b"\r\n\r\n",
        "line": lambda: rng.choice(_LINES) + b"\r\nHost: h\r\nConnection: close\r\n\r\n",
        "many headers": lambda: _with(server, "".join(f"X-{i}: {i}\r\n" for i in range(rng.choice((100, 1000, 5000))))),
        "long header": lambda: _with(server, f"X-Long: {'x' * rng.choice((8_000, 40_000, 300_000))}\r\n"),
        "strange header": lambda: _with(server, rng.choice(_HEADERS)),
        "header bytes": lambda: _with(server, "X-Bytes: ") + rng.randbytes(rng.randint(1, 60)) + b"\r\n\r\n",
        "pipelined": lambda: _LIVE * rng.randint(2, 40) + rng.choice((b"", b"nonsense\r\n\r\n", rng.randbytes(40))),
        "half a head": lambda: request_bytes(server, "POST", "/v1/analyze", _WELL)[: rng.randint(1, 80)],
    }
    return _each(server, n, makers, half_closed=True)


def lengths(server: Served, rng: random.Random, n: int) -> Iterator[Tried]:
    """Content lengths and chunks that are wrong, doubled, too large, or never come."""

    def stated(length: str, body: bytes = _WELL) -> bytes:
        return request_bytes(server, "POST", "/v1/analyze", body, headers={"Content-Length": length})

    def chunked(chunks: bytes) -> bytes:
        content = request_bytes(server, "POST", "/v1/analyze", chunks, headers={"Transfer-Encoding": "chunked"})
        return re.sub(rb"Content-Length: \d+\r\n", b"" if rng.random() < 0.7 else b"Content-Length: 5\r\n", content)

    makers: dict[str, Callable[[], bytes]] = {
        "length": lambda: stated(rng.choice(_LENGTHS)),
        "two lengths": lambda: stated("27\r\nContent-Length: 3"),
        "shorter": lambda: stated(str(rng.randint(0, len(_WELL) - 1))),
        "longer": lambda: stated(str(len(_WELL) + rng.randint(1, 10**9))),
        "oversize": lambda: request_bytes(server, "POST", "/v1/analyze", b" " * (5 * 2**20)),
        "chunks": lambda: chunked(rng.choice(_CHUNKS)),
        "oversize in chunks": lambda: chunked((b"100000\r\n" + b" " * 2**20 + b"\r\n") * 5 + b"0\r\n\r\n"),
        "random chunks": lambda: chunked(rng.randbytes(rng.randint(0, 200))),
    }
    return _each(server, n, makers, half_closed=True)


def paths(server: Served, rng: random.Random, n: int) -> Iterator[Tried]:
    """Paths that lead out, hold what no path holds, or name nobody; methods that nobody has; keys that are none."""

    def path() -> str:
        place = rng.choice(_PLACES)
        task, version = rng.choice(_NAMES), rng.choice(_NAMES)
        return place.replace("{task}", task).replace("{version}", version)

    makers: dict[str, Callable[[], bytes]] = {
        "path": lambda: request_bytes(server, rng.choice(("GET", "POST", "DELETE")), path(), _WELL),
        "random path": lambda: request_bytes(server, "GET", "/" + quote(rng.randbytes(rng.randint(1, 200)))),
        "method": lambda: request_bytes(server, rng.choice(_METHODS), "/v1/analyze", _WELL),
        "key": lambda: request_bytes(server, "POST", path(), _WELL, headers={"Authorization": rng.choice(_KEYS)}),
        "form of answer": lambda: request_bytes(
            server, "POST", "/v1/analyze", _WELL, headers={"Accept": rng.choice(_ACCEPT)}
        ),
        "request id": lambda: request_bytes(server, "GET", "/v1/tasks", headers={"X-Request-Id": rng.choice(_NAMES)}),
        "content type": lambda: request_bytes(
            server, "POST", "/v1/analyze", _WELL, headers={"Content-Type": rng.choice(_ACCEPT)}
        ),
    }
    return _each(server, n, makers, half_closed=False)


def vanishing(server: Served, rng: random.Random, n: int) -> Iterator[Tried]:
    """Clients that close their connection in the middle: of a head, of a body, of an answer, of a stream."""
    body = json.dumps({"texts": [f"text {rng.random()}" for _ in range(32)]}).encode()
    content = request_bytes(server, "POST", "/v1/analyze", body, headers={"Accept": "application/x-ndjson"})
    for _ in range(n):
        with socket.create_connection((server.host, server.port), timeout=TIMEOUT_S) as connection:
            connection.sendall(content[: rng.choice((rng.randint(1, len(content)), len(content)))])
            if rng.random() < 0.5:
                time.sleep(rng.uniform(0, 0.02))
            if rng.random() < 0.3:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        yield Tried("vanished", (), b"")


def slow(server: Served, n: int) -> Iterator[Tried]:
    """Many connections at once that trickle a head or a body, say nothing, or do not read their answer."""
    body = json.dumps(
        {"texts": ["what is the weather in paris tomorrow?"] * 500, "probabilities": True, "top_k": 1000}
    ).encode()
    whole = request_bytes(server, "POST", "/v1/analyze", body, headers={"Accept": "application/x-ndjson"})
    opened: list[tuple[str, socket.socket, bytes]] = []
    for number in range(n):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(TIMEOUT_S)
        connection.connect((server.host, server.port))
        kind = ("slow head", "slow body", "silent", "reads nothing")[
            number % 4 if number < 40 or n < 40 else number % 3
        ]
        start = {"slow head": 20, "slow body": len(whole) // 2, "silent": 0, "reads nothing": len(whole)}[kind]
        connection.sendall(whole[:start])
        opened.append((kind, connection, whole[start:]))
    for _ in range(13):
        time.sleep(1.0)
        for place, (kind, connection, left) in enumerate(opened):
            if kind.startswith("slow"):
                _send_quietly(connection, left[:1])
                opened[place] = (kind, connection, left[1:])
    for kind, connection, _ in opened:
        connection.settimeout(1.0)
        yield tried(kind, received(connection))
        connection.close()


def _send_quietly(connection: socket.socket, content: bytes) -> None:
    try:
        connection.sendall(content)
    except OSError:  # Closed by the server: what was to be seen.
        return


def _each(server: Served, n: int, makers: Mapping[str, Callable[[], bytes]], *, half_closed: bool) -> Iterator[Tried]:
    kinds = list(makers)
    for number in range(n):
        kind = kinds[number % len(kinds)]
        yield tried(kind, exchange(server, makers[kind](), half_closed=half_closed))


def _with(server: Served, headers: str) -> bytes:
    return request_bytes(server, "POST", "/v1/analyze", _WELL)[: -len(_WELL) - 2] + headers.encode() + b"\r\n" + _WELL


_LINES = (
    b"GET / HTTP/9.9", b"GET /", b"GET", b"", b" / HTTP/1.1", b"GET  /  HTTP/1.1", b"get / http/1.1",
    b"\x16\x03\x01\x02",
    b"PRI * HTTP/2.0", b"GET /\x00 HTTP/1.1", b"GET http://elsewhere/ HTTP/1.1", b"CONNECT a:443 HTTP/1.1",
    b"OPTIONS * HTTP/1.1", b"GET \xff\xfe HTTP/1.1", b"GET /" + b"a" * 40_000 + b" HTTP/1.1",
    b"GET //elsewhere HTTP/1.1",
    b"GET /v1/tasks?" + b"a=b&" * 4_000 + b" HTTP/1.1", b"A" * 70_000, b"GET /?%zz HTTP/1.1", b"GET /#x HTTP/1.1",
)  # fmt: skip
_HEADERS = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n",
    "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n", "Expect: 100-continue\r\n",
    "Expect: nonsense\r\n", "Content-Encoding: gzip\r\n", "Transfer-Encoding: gzip\r\n", "Host: a\r\nHost: b\r\n",
    " folded: header\r\n", "no colon\r\n", ": no name\r\n", "Name : space\r\n", "X: a\rb\r\n", "X: a\nY: b\r\n",
    "Authorization: Basic eDp5\r\n", "Cookie: " + "a=b; " * 500 + "\r\n", "Range: bytes=0-\r\n", "Te: trailers\r\n",
    "X-Forwarded-For: 1.2.3.4, <script>\r\n", 'Forwarded: for="[::1]"\r\n', "X-Request-Id: a\r\nX-Request-Id: b\r\n",
)  # fmt: skip
_LENGTHS = ("-1", "+27", "0x1b", "27.0", "1e1", "", " ", "99999999999999999999", "2147483648", "4294967297", "27, 27",
            "９", "27 27", "NaN", "0", "00027", "4194305")  # fmt: skip
_CHUNKS = (
    b"", b"0\r\n\r\n", b"5\r\nabc", b"zz\r\nabc\r\n0\r\n\r\n", b"-1\r\n\r\n", b"FFFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n",
    b"7fffffffffffffff\r\nabc", b"3;ext=" + b"x" * 9000 + b"\r\nabc\r\n0\r\n\r\n", b"3\r\nabcd\r\n0\r\n\r\n",
    b"3\nabc\n0\n\n",
    b"1b\r\n" + _WELL[:27] + b"\r\n0\r\nTrailer: x\r\n\r\n", b"0\r\n" + b"T: x\r\n" * 3000 + b"\r\n",
    b" 3\r\nabc\r\n0\r\n\r\n",
)  # fmt: skip
_PLACES = (
    "/v1/tasks/{task}", "/v1/tasks/{task}/versions", "/v1/tasks/{task}/activate", "/v1/tasks/{task}/history",
    "/v1/tasks/{task}/rollback", "/v1/tasks/{task}/canary", "/v1/tasks/{task}/versions/{version}", "/{task}/{version}",
    "/v2/models/{task}", "/v2/models/{task}/ready", "/v2/models/{task}/versions/{version}/infer", "/docs/{task}",
    "/v2/repository/models/{task}/load", "/v2/repository/models/{task}/unload", "/v2/models/{task}/infer",
)  # fmt: skip
_NAMES = (
    "..", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e", "%00", "%ff%fe", "%", "%zz", "a" * 5000,
    "%0d%0aX:%20y",
    "${jndi:ldap://x}", "{{7*7}}", "';drop table", "<script>", "%F0%9F%92%A9", "~root", ".", "", " ", "con",
    "a/b/c", "__proto__",
    "-1", "0" * 64, "ffffffff", "intent\\..\\x", "*", "?", "#", "&a=b", "a;b=c", "%u0041", "\u202e", "\udcff", "x\ty",
)  # fmt: skip
_METHODS = (
    "TRACE",
    "CONNECT",
    "OPTIONS",
    "HEAD",
    "PATCH",
    "PUT",
    "get",
    "POST!",
    "A" * 300,
    "PROPFIND",
    "M-SEARCH",
    "\x00",
)
_KEYS = (
    "", "Bearer", "Bearer ", "Bearer x", "Basic eDp5", "Bearer " + "x" * 9000, "Bearer \udcff\udcfe", "bearer\tx",
    "Token x",
    "Bearer tl_ tl_", "Bearer " + "tl_" + "A" * 43, "Negotiate YII=",
)  # fmt: skip
_ACCEPT = (
    "", "*/*", "text/html", "application/x-ndjson", "text/event-stream", "a", "/", "text/*;q=0", "application/json;q=2",
    "x" * 5000, ",,,,", "application/octet-stream", "\udcff", "application/x-tar", "multipart/form-data; boundary=x",
    "application/zip", "application/gzip", "application/x-www-form-urlencoded", "application/json; charset=utf-16",
)  # fmt: skip
