"""A real server process: answers, streams, drains, survives kills, and drops clients that are slow or vanish."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import psutil
import pytest

from benchmarks.served import Served
from benchmarks.uploads import TAR, branch_files_of, tar_of
from tests.tiny_registries import NEWER, make_registry

TEXTS = {"texts": ["play a song", "book a table in paris"]}
WHY = {"why": "a test"}
READ_S = 0.5
NDJSON = {"Accept": "application/x-ndjson"}


class Impatient(Served):
    """Waits half a second only."""

    program = (
        "import sys; from pathlib import Path; from trunkline.server.run import serve; "
        "from trunkline.server.settings import RequestLimits, Settings; "
        f"serve(Path(sys.argv[2]), Settings(port=0, grpc_port=0, limits=RequestLimits(read_s={READ_S})), print)"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_registry(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    """One for all tests that leave it as it was."""
    with Impatient(folder / "registry") as found:
        yield found


def analyze(server: Served) -> dict[str, str]:
    """Task to the version that answers."""
    answer = httpx.post(f"{server.url}/v1/analyze", json=TEXTS, headers=server.headers)
    assert answer.status_code == 200, answer.text
    return {task: each["version"] for task, each in answer.json()["results"][0].items()}


def upload(server: Served, folder: Path) -> str:
    """Register a version of task ``intent``; its digest."""
    content = tar_of(branch_files_of(folder))
    at = f"{server.url}/v1/tasks/intent/versions"
    answer = httpx.post(at, params=WHY, content=content, headers={**server.headers, **TAR}, timeout=30)
    assert answer.status_code == 201, answer.text
    versions = httpx.get(at, headers=server.headers).json()["versions"]
    return str(versions[-1]["version"])


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def connections(server: Served) -> int:
    """Connections that the server holds open."""
    return sum(each.status == psutil.CONN_ESTABLISHED for each in psutil.Process(server.pid).net_connections("tcp"))


def large_request(server: Served, accept: str) -> bytes:
    """What is answered with more than a socket takes in that nobody reads."""
    body = json.dumps({"texts": ["play a song"] * 500, "probabilities": True, "top_k": 9}).encode()
    head = f"POST /v1/analyze HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {server.admin}\r\nAccept: {accept}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def connect(server: Served, *, buffer_bytes: int = 4096) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    connection.settimeout(10)
    connection.connect((server.host, server.port))
    return connection


def test_it_answers_at_once_and_as_a_stream(server: Served) -> None:
    assert set(analyze(server)) == {"intent", "slots"}
    at, headers = f"{server.url}/v1/analyze", {**server.headers, **NDJSON}
    with httpx.stream("POST", at, json=TEXTS, headers=headers) as answer:
        events = [json.loads(line) for line in answer.iter_lines()]
    assert [each["event"] for each in events] == ["answer"] * 4 + ["end"]


def test_sigterm_finishes_what_runs_and_ends_with_code_0(folder: Path) -> None:
    with Served(folder / "registry") as server, connect(server) as connection:
        connection.sendall(large_request(server, "application/json"))
        time.sleep(0.05)
        threading.Thread(target=server.terminate).start()
        answer = bytearray()
        while chunk := connection.recv(1 << 16):
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 200")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["results"][499]
        assert server.terminate() == 0


def test_a_kill_and_a_restart_keep_the_state(tmp_path: Path) -> None:
    folder = make_registry(tmp_path)
    with Served(folder / "registry") as server:
        version = upload(server, folder / NEWER[0])
        at = f"{server.url}/v1/tasks/intent/activate"
        assert httpx.post(at, json={"version": version, **WHY}, headers=server.headers).status_code == 200
        server.kill()
    with Served(folder / "registry") as server:
        assert analyze(server)["intent"] == version


def test_a_client_that_vanishes_in_the_middle_of_a_stream_is_forgotten(server: Served) -> None:
    before = connections(server)
    with connect(server) as connection:
        connection.sendall(large_request(server, "application/x-ndjson"))
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert connections(server) == before + 1
    assert eventually(lambda: connections(server) == before)
    assert analyze(server)


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_a_client_that_reads_nothing_is_dropped(server: Served, accept: str) -> None:
    before = connections(server)
    with connect(server) as connection:
        connection.sendall(large_request(server, accept))
        assert eventually(lambda: connections(server) == before + 1)
        assert eventually(lambda: connections(server) == before, 5 + 2 * READ_S)
    assert analyze(server)


@pytest.mark.parametrize("said", [b"", b"POST /v1/analyze HTTP/1.1\r\nHost: h\r\n"])
def test_a_connection_whose_head_does_not_end_is_closed(server: Served, said: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(said)
        began = time.monotonic()
        assert connection.recv(100) == b""
        assert time.monotonic() - began < READ_S + 2


def test_a_body_that_stops_is_refused(server: Served) -> None:
    with connect(server) as connection:
        connection.sendall(large_request(server, "*/*")[:400])
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server: Served) -> None:
    head = (
        f"POST /v1/analyze HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {server.admin}\r\nContent-Length: 99999999\r\n"
    )
    with connect(server) as connection:
        connection.sendall(head.encode() + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_bytes_that_are_no_message_are_refused_over_grpc(server: Served) -> None:
    with grpc.insecure_channel(f"{server.host}:{server.grpc_port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff", timeout=10, metadata=[("authorization", server.headers["Authorization"])])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in server.log()


def test_versions_come_and_go_while_others_ask(tmp_path: Path) -> None:
    folder = make_registry(tmp_path)
    stopped, failed, seen = threading.Event(), [], set()

    def ask() -> None:
        with httpx.Client(headers=server.headers) as client:
            while not stopped.is_set():
                answer = client.post(f"{server.url}/v1/analyze", json=TEXTS)
                if answer.status_code != 200:
                    failed.append(answer.text)
                else:
                    seen.add(answer.json()["results"][0]["intent"]["version"])

    with Served(folder / "registry") as server:
        versions = [analyze(server)["intent"], *(upload(server, folder / name) for name in NEWER[:2])]
        asking = [threading.Thread(target=ask) for _ in range(2)]
        for thread in asking:
            thread.start()
        try:
            for number in range(20):
                version = versions[(number + 1) % 3]
                at = f"{server.url}/v1/tasks/intent/activate"
                answer = httpx.post(at, json={"version": version, **WHY}, headers=server.headers, timeout=30)
                assert answer.status_code == 200, answer.text
                assert analyze(server)["intent"] == version
        finally:
            stopped.set()
            for thread in asking:
                thread.join()
    assert not failed
    assert seen == set(versions)
