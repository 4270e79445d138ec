"""Over real connections of this host: they are used again, closed early, and given up in time."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.unit.client.conftest import Face, answer, end, event


class Handler(BaseHTTPRequestHandler):
    """``/v1/tasks`` answers, ``/v1/analyze`` streams until its client goes, anything else never answers."""

    protocol_version = "HTTP/1.1"
    server: "Fake"

    def setup(self) -> None:
        super().setup()
        self.server.n_connections += 1

    def do_GET(self) -> None:
        if self.path == "/v1/tasks":
            self._send(b'{"tasks":[]}')
        else:
            self.server.finished.wait(10)

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["content-length"]))
        if b'"whole"' in asked:
            self._send(event(answer()) + end(1))
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while not self.server.finished.wait(0.01):
                line = event(answer())
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        except OSError:
            self.server.left.set()
        self.close_connection = True

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as http.server has it
        """Say nothing."""


class Fake(ThreadingHTTPServer):
    """Counts connections, and knows that a client left."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.n_connections = 0
        self.left, self.finished = threading.Event(), threading.Event()


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.finished.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def real(face: Face, fake: Fake) -> Face:
    face.client = face._kind(f"http://127.0.0.1:{fake.server_port}", timeout_s=5)
    return face


def test_connections_are_used_again_by_streams_too(real: Face, fake: Fake) -> None:
    real.tasks()
    assert real.all(real.client.stream(texts=["whole"])) == [answer()]
    real.tasks()
    assert fake.n_connections == 1


def test_a_stream_that_is_left_early_ends_at_the_server(real: Face, fake: Fake) -> None:
    stream = real.client.stream(texts=["endless"])
    assert real.take(stream) == answer()
    real.close_stream(stream)
    assert fake.left.wait(5)


def test_a_server_that_does_not_answer_is_given_up_in_time(face: Face, fake: Fake) -> None:
    face.client = face._kind(f"http://127.0.0.1:{fake.server_port}", timeout_s=0.05)
    with pytest.raises(TimeoutError, match=r"no whole answer within 0\.05 s"):
        face.task("intent")


def test_nobody_who_listens_is_told_with_the_address(face: Face) -> None:
    face.client = face._kind("http://127.0.0.1:9", retries=0)
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9/v1/tasks: the server cannot be reached"):
        face.tasks()
