"""The client against a server that is made up, in both of its forms."""

import asyncio
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.tiny_bundles import backbone_of, put_branch
from trunkline.bundle.manifest import BRANCH_FILES as REAL_BRANCH_FILES
from trunkline.client import AsyncClient, Client
from trunkline.client.archives import BRANCH_FILES
from trunkline.core.errors import (
    BundleError,
    ClientError,
    DataError,
    KeyRefusedError,
    NotServedError,
    ServerAnswerError,
    ServerBusyError,
    ServerRefusedError,
    ServerTimeoutError,
    ServerUnreachableError,
    SpecError,
    UnknownNameError,
)

FORMS = ("sync", "async")
ANSWER = {
    "kind": "label", "index": 0, "task": "intent", "version": "ab" * 32, "label_schema_version": 1, "truncated": False,
    "timings": {"queue_ms": 0.1, "trunk_ms": 1, "branch_ms": 0.2, "decode_ms": 0.01}, "label": "music",
    "confidence": 0.9, "abstained": False, "newer_key": 1,
}  # fmt: skip
RESPONSE = {"request_id": "r", "results": [{"intent": ANSWER}], "newer_key": 1}
CHANGE = {"task": "intent", "version": "ab" * 32, "seq": 7}


class Server:
    """Answers with what it was given, one after the other; remembers what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.asked]


def answering(value: Any, status: int = 200, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=value, headers=headers)


def refusing(status: int, code: str, **headers: str) -> httpx.Response:
    detail = {"code": code, "message": f"subject: {code}", "request_id": "r"}
    return answering({"error": detail}, status, **{name.replace("_", "-"): value for name, value in headers.items()})


def lines(*events: Any) -> httpx.Response:
    return httpx.Response(200, content=b"".join(json.dumps(event).encode() + b"\n" for event in events))


def call(form: str, server: Server, method: str, *args: Any, slept: list[float] | None = None, **options: Any) -> Any:
    """One method of a client in one of its forms; a stream is read to its end. Nobody sleeps."""
    slept = [] if slept is None else slept
    made = options.pop("made", {})
    if form == "sync":
        with Client(transport=httpx.MockTransport(server), **made) as client:
            client._sleep = slept.append
            found = getattr(client, method)(*args, **options)
            return list(found) if method == "stream" else found

    async def run() -> Any:
        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        async def answer(request: httpx.Request) -> httpx.Response:
            await request.aread()
            return server(request)

        async with AsyncClient(transport=httpx.MockTransport(answer), **made) as client:
            client._sleep = sleep
            if method == "stream":
                return [each async for each in client.stream(*args, **options)]
            return await getattr(client, method)(*args, **options)

    return asyncio.run(run())


@pytest.fixture(params=FORMS)
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return lambda *args, **options: call(request.param, *args, **options)


def test_texts_are_asked_and_typed_answers_come_back(ask: Callable[..., Any]) -> None:
    server = Server(answering(RESPONSE))
    found = ask(server, "analyze", texts=["hi"], tasks=["intent"], top_k=2, deadline_s=2.0, canary_key="me")
    assert found.results[0]["intent"].label == "music"
    (body,) = server.bodies
    assert 0 < body.pop("deadline_ms") <= 2000
    assert {name: value for name, value in body.items() if value} == {
        "texts": ["hi"], "tasks": ["intent"], "top_k": 2, "offsets": "codepoints", "key": "me",
    }  # fmt: skip


def test_a_busy_server_is_asked_again_when_it_wants_and_as_the_same_request(ask: Callable[..., Any]) -> None:
    server = Server(refusing(429, "overloaded", Retry_After="3"), refusing(503, "stopping"), answering(RESPONSE))
    slept: list[float] = []
    assert ask(server, "analyze", texts=["hi"], slept=slept).results
    assert 3 <= slept[0] < 4
    assert len({request.headers["x-request-id"] for request in server.asked}) == 1


def test_after_enough_retries_the_refusal_is_raised(ask: Callable[..., Any]) -> None:
    server = Server(*[refusing(429, "overloaded", Retry_After="1") for _ in range(3)])
    with pytest.raises(ServerBusyError, match="overloaded") as caught:
        ask(server, "analyze", texts=["hi"], made={"retries": 2})
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (429, "overloaded", 1.0)


def test_no_retry_begins_after_the_time_is_over(ask: Callable[..., Any]) -> None:
    server = Server(refusing(429, "overloaded", Retry_After="60"))
    with pytest.raises(ServerBusyError):
        ask(server, "analyze", texts=["hi"], made={"timeout_s": 5.0})
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_input", ServerRefusedError),
        (401, "wrong_key", KeyRefusedError),
        (403, "not_allowed", KeyRefusedError),
        (404, "unknown_name", NotServedError),
        (504, "deadline_exceeded", ServerTimeoutError),
    ],
)
def test_a_refusal_that_will_not_pass_is_raised_at_once(
    ask: Callable[..., Any], status: int, code: str, kind: type[ClientError]
) -> None:
    server = Server(refusing(status, code))
    with pytest.raises(kind, match=f"subject: {code}"):
        ask(server, "analyze", texts=["hi"])
    assert len(server.asked) == 1


def test_a_connection_that_breaks_is_made_again_for_questions_and_not_for_changes(ask: Callable[..., Any]) -> None:
    assert ask(Server(httpx.ReadError("broken"), answering(RESPONSE)), "analyze", texts=["hi"]).results
    server = Server(httpx.ReadError("broken"))
    with pytest.raises(ServerUnreachableError, match="may have been made"):
        ask(server, "rollback", "intent", why="worse")
    assert len(server.asked) == 1


def test_a_change_is_made_again_where_the_server_was_not_reached(ask: Callable[..., Any]) -> None:
    server = Server(httpx.ConnectError("refused"), answering(CHANGE))
    assert ask(server, "rollback", "intent", why="worse").seq == 7


def test_answers_of_a_stream_come_until_its_end(ask: Callable[..., Any]) -> None:
    server = Server(lines({"event": "answer", "answer": ANSWER}, {"event": "end", "request_id": "r", "n_answers": 1}))
    (answer,) = ask(server, "stream", texts=["hi"])
    assert answer.task == "intent"
    assert server.asked[0].headers["accept"] == "application/x-ndjson"


def test_a_stream_that_breaks_off_is_an_error_and_is_not_asked_again(ask: Callable[..., Any]) -> None:
    server = Server(lines({"event": "answer", "answer": ANSWER}))
    with pytest.raises(ServerUnreachableError):
        ask(server, "stream", texts=["hi"])
    assert len(server.asked) == 1


def test_an_error_in_a_stream_is_raised_as_what_it_is(ask: Callable[..., Any]) -> None:
    error = {"code": "deadline_exceeded", "message": "too late", "request_id": "r"}
    server = Server(lines({"event": "answer", "answer": ANSWER}, {"event": "error", "error": error}))
    with pytest.raises(ServerTimeoutError, match="too late"):
        ask(server, "stream", texts=["hi"])


def test_an_answer_of_another_kind_is_not_understood(ask: Callable[..., Any]) -> None:
    with pytest.raises(ServerAnswerError):
        ask(Server(answering({"results": 3})), "analyze", texts=["hi"])


def test_an_answer_of_something_in_between_says_so(ask: Callable[..., Any]) -> None:
    with pytest.raises(ServerRefusedError, match="without an error of Trunkline's"):
        ask(Server(httpx.Response(418, content=b"<html>")), "analyze", texts=["hi"])


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, DataError),
        ({"texts": "hi"}, DataError),
        ({"texts": ["a"], "pairs": [("a", "b")]}, DataError),
        ({"texts": ["a"], "task": ["x"]}, UnknownNameError),
        ({"texts": ["a"], "top_k": 0}, SpecError),
        ({"texts": ["a"], "deadline_s": -1}, SpecError),
        ({"texts": ["\ud800"]}, DataError),
    ],
)
def test_what_makes_no_sense_is_refused_before_it_is_sent(
    ask: Callable[..., Any], options: dict[str, Any], kind: type[Exception]
) -> None:
    server = Server()
    with pytest.raises(kind):
        ask(server, "analyze", **options)
    assert not server.asked


def test_a_branch_is_uploaded_as_it_lies_on_disk(ask: Callable[..., Any], tmp_path: Path) -> None:
    folder = put_branch(tmp_path / "branch", "intent", backbone_of())
    server = Server(answering(CHANGE, 201))
    assert ask(server, "register", "intent", folder, why="better").seq == 7
    (request,) = server.asked
    assert (request.headers["content-type"], request.url.params["why"]) == ("application/x-tar", "better")
    with tarfile.open(fileobj=io.BytesIO(request.content)) as archive:
        for name in REAL_BRANCH_FILES:
            member = archive.extractfile(name)
            assert member is not None
            assert member.read() == (folder / name).read_bytes()


def test_a_folder_that_is_no_branch_is_refused(ask: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"branch\.json"):
        ask(Server(), "register", "intent", tmp_path, why="better")


def test_the_files_of_a_branch_are_those_of_bundles() -> None:
    assert sorted(BRANCH_FILES) == sorted(REAL_BRANCH_FILES)


@pytest.mark.parametrize(
    ("method", "args", "options", "sent"),
    [
        ("activate", ("intent", "abcdef01"), {}, "POST /v1/tasks/intent/activate"),
        ("canary", ("intent", "abcdef01"), {"percent": 5}, "POST /v1/tasks/intent/canary"),
        ("remove", ("intent",), {}, "DELETE /v1/tasks/intent"),
        ("remove", ("intent", "abcdef01"), {}, "DELETE /v1/tasks/intent/versions/abcdef01"),
        ("register_from", ("intent", "/srv/x"), {}, "POST /v1/tasks/intent/versions"),
        ("rollback", ("a/b",), {}, "POST /v1/tasks/a%2Fb/rollback"),
    ],
)
def test_changes_go_where_they_belong(
    ask: Callable[..., Any], method: str, args: tuple[str, ...], options: dict[str, Any], sent: str
) -> None:
    server = Server(answering(CHANGE))
    assert ask(server, method, *args, why="because", **options).task == "intent"
    (request,) = server.asked
    assert f"{request.method} {request.url.raw_path.decode().partition('?')[0]}" == sent


def test_a_server_that_is_not_ready_is_an_answer(ask: Callable[..., Any]) -> None:
    assert ask(Server(answering({"status": "ready"})), "ready") is True
    assert ask(Server(refusing(503, "not_ready")), "ready") is False


def test_the_key_comes_from_the_environment_and_is_never_shown(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_API_KEY", "tl_secret")
    server = Server(answering({"tasks": []}))
    assert ask(server, "tasks") == []
    assert server.asked[0].headers["authorization"] == "Bearer tl_secret"
    assert "secret" not in repr(Client())
    assert "secret" not in repr(AsyncClient())


@pytest.mark.parametrize(
    "made", [{"base_url": "ftp://x"}, {"base_url": "http://u:p@x"}, {"key": "a b"}, {"timeout_s": 0}, {"retries": -1}]
)
def test_a_client_that_cannot_work_is_refused(made: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        Client(**made)


def test_the_client_needs_neither_numpy_nor_an_engine() -> None:
    code = "import sys, trunkline.client; print({'numpy', 'openvino', 'torch', 'tokenizers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
