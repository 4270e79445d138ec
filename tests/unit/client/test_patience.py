"""When a call is made again, when it is not, and that the whole ends in time."""

from typing import Any

import httpx
import pytest

from tests.unit.client.conftest import Chunks, Face, Server, fresh, refused
from trunkline.client.calls import activate_call, tasks_call
from trunkline.client.patience import Patience
from trunkline.client.replies import retry_after_s
from trunkline.client.settings import read_settings
from trunkline.core.errors import ClientError, ServerBusyError, ServerTimeoutError, ServerUnreachableError

VERSION = "abcdef01"
CHANGED = httpx.Response(200, json={"task": "intent", "version": VERSION, "seq": 7})
NO_TASKS = httpx.Response(200, json={"tasks": []})
NO_RESULTS = httpx.Response(200, json={"request_id": "r", "results": []})
BAD_GATEWAY = httpx.Response(502, text="<html>")


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"), httpx.ConnectTimeout("slow"), httpx.ReadError("reset"),
        httpx.RemoteProtocolError("gone"), refused(429, "overloaded"), refused(503, "stopping"), BAD_GATEWAY,
        httpx.Response(503, text="down"), httpx.Response(504, text="late"),
    ],
)  # fmt: skip
def test_a_question_is_asked_again_until_it_is_answered(face: Face, failure: Any) -> None:
    server = Server(failure, failure, NO_TASKS)
    assert face.open(server).tasks() == []
    assert len(face.slept) == 2
    assert len({request.headers["x-request-id"] for request in server.asked}) == 1


@pytest.mark.parametrize(
    "failure",
    [refused(504, "deadline_exceeded"), refused(500, "internal"), refused(400, "invalid_input"), refused(404, "x")],
)
def test_what_will_not_pass_is_told_at_once(face: Face, failure: Any) -> None:
    face.open(Server(failure))
    with pytest.raises(ClientError):
        face.tasks()
    assert face.slept == []


def test_a_deadline_that_passed_at_the_server_is_a_timeout(face: Face) -> None:
    face.open(Server(refused(504, "deadline_exceeded")))
    with pytest.raises(TimeoutError):
        face.analyze(texts=["a"], deadline_s=0.1)


@pytest.mark.parametrize(
    "failure", [httpx.ConnectError("refused"), refused(429, "overloaded"), refused(503, "stopping")]
)
def test_a_change_is_made_again_where_nothing_was_done(face: Face, failure: Any) -> None:
    assert face.open(Server(failure, CHANGED)).activate("intent", VERSION, why="x").seq == 7


@pytest.mark.parametrize(
    "failure", [httpx.ReadError("reset"), httpx.ReadTimeout("slow"), BAD_GATEWAY, httpx.Response(503, text="down")]
)
def test_a_change_is_not_made_again_where_it_may_have_been_done(face: Face, failure: Any) -> None:
    server = Server(failure, CHANGED)
    face.open(server)
    with pytest.raises(ClientError):
        face.activate("intent", VERSION, why="x")
    assert len(server.asked) == 1


def test_a_change_that_may_have_been_made_says_so(face: Face) -> None:
    face.open(Server(httpx.ReadError("reset")))
    with pytest.raises(ServerUnreachableError, match="may have been made: look at the history"):
        face.activate("intent", VERSION, why="x")


def test_retries_end_and_the_last_error_is_told_with_its_cause(face: Face) -> None:
    server = Server(httpx.ConnectError("refused"))
    face.open(server, retries=2)
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:8000/v1/tasks: the server cannot be reached") as e:
        face.tasks()
    assert isinstance(e.value.__cause__, httpx.ConnectError)
    assert len(server.asked) == 3


def test_waits_are_drawn_from_windows_that_grow(face: Face) -> None:
    face.open(Server(httpx.ConnectError("refused")), retries=8, timeout_s=1000)
    with pytest.raises(ServerUnreachableError):
        face.tasks()
    windows = [min(0.25 * 2**attempt, 8) for attempt in range(8)]
    assert [0 <= slept <= window for slept, window in zip(face.slept, windows, strict=True)] == [True] * 8
    assert len(set(face.slept)) == 8


def test_the_server_says_when_to_come_again(face: Face) -> None:
    face.open(Server(refused(429, "overloaded", {"Retry-After": "3"}), NO_TASKS)).tasks()
    assert 3 <= face.slept[0] <= 3.25


def test_a_wait_beyond_the_time_of_the_call_is_not_begun(face: Face) -> None:
    face.open(Server(refused(503, "stopping", {"Retry-After": "60"}), NO_TASKS), timeout_s=30)
    with pytest.raises(ServerBusyError) as caught:
        face.tasks()
    assert caught.value.retry_after_s == 60
    assert face.slept == []


def test_attempts_share_the_time_of_the_call(face: Face) -> None:
    timeouts = []

    def slow(request: httpx.Request) -> httpx.Response:
        timeouts.append(request.extensions["timeout"]["read"])
        face.now += 4
        return refused(429, "overloaded")

    face.open(slow, timeout_s=10, retries=9)
    with pytest.raises(ServerTimeoutError):
        face.tasks()
    assert timeouts == [10, *(pytest.approx(10 - 4 * n - sum(face.slept[:n])) for n in range(1, len(timeouts)))]
    assert len(timeouts) == 3


def test_a_deadline_holds_for_all_attempts_together(face: Face) -> None:
    def slow(_request: httpx.Request) -> httpx.Response:
        face.now += 0.6
        return refused(429, "overloaded")

    server = Server(slow)
    face.open(server, retries=9)
    with pytest.raises(ServerBusyError):
        face.analyze(texts=["a"], deadline_s=2)
    told = [body["deadline_ms"] for body in server.bodies]
    assert told[0] == 2000
    assert told[1] == pytest.approx(1e3 * (2 - 0.6 - face.slept[0]))
    assert face.now < 2.6


def test_a_body_that_trickles_ends_in_time(face: Face) -> None:
    class Trickle(Chunks):
        def __iter__(self) -> Any:
            while True:
                face.now += 1
                yield b" "

    face.open(Server(httpx.Response(200, stream=Trickle())), timeout_s=5)
    with pytest.raises(ServerTimeoutError, match="no whole answer within 5 s"):
        face.tasks()
    assert face.now == 5


def test_a_registration_may_have_its_own_time(face: Face) -> None:
    timeouts = []

    def server(request: httpx.Request) -> httpx.Response:
        timeouts.append(request.extensions["timeout"]["read"])
        return fresh(CHANGED)

    face.open(server).register_from("intent", "/srv/b", why="x", timeout_s=600)
    assert timeouts == [600]


def test_a_connection_that_is_not_taken_leaves_time_for_another_try() -> None:
    settings = read_settings("http://h", key=None, timeout_s=30, retries=3)
    patience = Patience(tasks_call(), settings, lambda: 0.0)
    assert dict(patience) == {"connect": 5, "read": 30, "write": 30, "pool": 30}


@pytest.mark.parametrize(
    ("stated", "seconds"),
    [
        ("7", 7.0), ("", None), ("soon", None), ("-1", None), ("Thu, 01 Jan 2026 00:00:09 GMT", 9.0),
        ("Wed, 01 Jan 2025 00:00:00 GMT", 0.0),
    ],
)  # fmt: skip
def test_retry_after_is_a_number_or_a_date(stated: str, seconds: float | None) -> None:
    headers = httpx.Headers({"Retry-After": stated, "Date": "Wed, 01 Jan 2026 00:00:00 GMT"})
    assert retry_after_s(headers) == seconds


def test_a_retry_is_logged_without_what_was_asked(face: Face, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="trunkline.client")
    face.open(Server(refused(429, "overloaded"), NO_RESULTS)).analyze(texts=["a secret"])
    assert "POST /v1/analyze: attempt 1 failed (ServerBusyError)" in caplog.text
    assert "secret" not in caplog.text


def test_calls_have_ids_of_their_own() -> None:
    ids = {activate_call("intent", VERSION, why="x").request_id for _ in range(3)}
    assert len(ids) == 3
