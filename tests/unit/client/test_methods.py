"""Each method sends what the server's reference says, and gives typed answers or errors."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.client.conftest import VERSION, Face, Server, answer, refused
from trunkline.bundle import manifest
from trunkline.client import AnalyzeResponse, Client
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
    ServerUnreachableError,
    SpecError,
    UnknownNameError,
)
from trunkline.wire import Change, HistoryEntry, TaskInfo, VersionInfo

CHANGE = {"task": "intent", "version": VERSION, "seq": 7}
TASK = {
    "task": "intent", "kind": "classification", "input": "text", "labels": ["alarm"], "label_schema_version": 1,
    "metric": "accuracy", "dev_metric": 91.5, "max_length": 64, "exit_layer": 3, "own_layers": 1, "version": VERSION,
    "precision": "bf16",
}  # fmt: skip
STORED = {
    "version": VERSION, "state": "active", "registered_at": "2026-01-01T00:00:00Z", "registered_by": "me",
    "label_schema_version": 1, "dev_metric": None, "exit_layer": 3, "own_layers": 1, "rollback": False,
}  # fmt: skip
ENTRY = {
    "seq": 1, "at": "2026-01-01T00:00:00Z", "who": "me", "action": "register", "task": "intent", "version": VERSION,
    "percent": None, "why": "first",
}  # fmt: skip


def json(value: Any, status: int = 200) -> Any:
    return lambda _request: httpx.Response(status, json=value)


def analyzed(_request: httpx.Request) -> httpx.Response:
    import msgspec

    response = AnalyzeResponse(request_id="r", results=[{"intent": answer()}])
    return httpx.Response(200, content=msgspec.json.encode(response))


@pytest.fixture
def branch(tmp_path: Path) -> Path:
    folder = tmp_path / "branch"
    folder.mkdir()
    for name in (*BRANCH_FILES, "notes.txt"):
        (folder / name).write_text(name * 1000)
    return folder


def test_analyze_gives_typed_answers_by_task(face: Face) -> None:
    response = face.open(Server(analyzed)).analyze(texts=["wake me up"])
    assert response.results[0]["intent"] == answer()


def test_analyze_sends_what_was_asked_and_leaves_the_rest_to_the_server(face: Face) -> None:
    server = Server(analyzed)
    face.open(server).analyze(
        pairs=(("a", "b"),), tasks=("intent",), probabilities=True, top_k=2, offsets="utf16", truncate=True,
        deadline_s=0.5, canary_key="u1",
    )  # fmt: skip
    assert server.bodies == [
        {
            "texts": None, "pairs": [["a", "b"]], "tasks": ["intent"], "probabilities": True, "top_k": 2,
            "offsets": "utf16", "truncate": True, "deadline_ms": 500.0, "key": "u1",
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"texts": "wake"}, DataError, "texts: is a single str; a list is taken"),
        ({"texts": ["a"], "tasks": "intent"}, DataError, "tasks: is a single str"),
        ({"texts": 5}, DataError, "texts: is of type int"),
        ({}, DataError, "neither texts nor pairs"),
        ({"texts": ["a"], "pairs": [("a", "b")]}, DataError, "both texts and pairs"),
        ({"texts": [1]}, SpecError, r"texts\[0\] is of type int, not str"),
        ({"texts": ["a"], "top_k": 0}, SpecError, "top_k"),
        ({"texts": ["a"], "deadline_s": float("nan")}, SpecError, "deadline_s nan is outside"),
        ({"texts": ["a"], "offsets": "utf8"}, SpecError, "codepoints, utf16"),
        ({"text": ["a"]}, UnknownNameError, "'text' is no option; did you mean 'texts'"),
        ({"texts": ["\ud800"]}, DataError, "is no Unicode"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_it_is_sent(
    face: Face, options: Any, kind: type[Exception], message: str
) -> None:
    server = Server(analyzed)
    face.open(server)
    with pytest.raises(kind, match=message):
        face.analyze(**options)
    assert server.asked == []


def test_tasks_and_one_task(face: Face) -> None:
    server = Server(json({"tasks": [TASK]}), json(TASK))
    face.open(server)
    (one,) = face.tasks()
    assert isinstance(one, TaskInfo)
    assert face.task("intent") == one
    assert [request.url.path for request in server.asked] == ["/v1/tasks", "/v1/tasks/intent"]


def test_tasks_that_rest_are_told_by_name(face: Face) -> None:
    face.open(Server(json({"tasks": [TASK], "resting": ["mood"]}), json({"tasks": [TASK]})))
    assert [face.resting_tasks(), face.resting_tasks()] == [["mood"], []]


def test_ready_is_false_while_the_server_says_so_and_is_not_asked_again(face: Face) -> None:
    server = Server(json({"status": "ready"}), refused(503, "not_ready", {"Retry-After": "1"}))
    face.open(server)
    assert [face.ready(), face.ready()] == [True, False]
    assert face.slept == []


def test_a_branch_is_uploaded_as_a_tar_of_its_four_files(face: Face, branch: Path) -> None:
    server = Server(json(CHANGE, 201))
    change = face.open(server).register("intent", branch, why="last week's texts & more")
    assert change == Change(task="intent", version=VERSION, seq=7)
    (request,) = server.asked
    assert request.headers["content-type"] == "application/x-tar"
    assert int(request.headers["content-length"]) == len(request.content)
    assert "transfer-encoding" not in request.headers
    assert request.url.params["why"] == "last week's texts & more"
    with tarfile.open(fileobj=io.BytesIO(request.content)) as archive:
        assert {member.name: (member.isreg(), member.mtime) for member in archive} == dict.fromkeys(
            BRANCH_FILES, (True, 0)
        )
        for name in BRANCH_FILES:
            member = archive.extractfile(name)
            assert member is not None
            assert member.read() == (branch / name).read_bytes()
    assert "version" not in request.url.params


def test_an_upload_may_say_which_digest_it_must_have(face: Face, branch: Path) -> None:
    server = Server(json(CHANGE, 201))
    face.open(server).register("intent", branch, why="first", version=VERSION)
    assert server.asked[0].url.params["version"] == VERSION


def test_a_retried_upload_is_sent_whole_again(face: Face, branch: Path) -> None:
    server = Server(refused(429, "overloaded"), json(CHANGE, 201))
    face.open(server).register("intent", branch, why="first")
    first, second = (request.content for request in server.asked)
    assert first == second


def test_a_folder_that_is_no_branch_is_refused_with_what_it_lacks(face: Face, branch: Path) -> None:
    (branch / "golden.json").unlink()
    face.open(Server(json(CHANGE)))
    with pytest.raises(BundleError, match=r"lacks golden\.json"):
        face.register("intent", branch, why="first")


def test_files_of_a_branch_are_those_of_the_bundle() -> None:
    assert BRANCH_FILES == manifest.BRANCH_FILES


@pytest.mark.parametrize(
    ("method", "args", "options", "request_line", "body"),
    [
        ("register_from", ("intent", "/srv/b"), {}, "POST /v1/tasks/intent/versions", {"source": "/srv/b"}),
        ("register_from", ("intent", "/srv/b"), {"version": VERSION}, "POST /v1/tasks/intent/versions",
         {"source": "/srv/b", "version": VERSION}),
        ("activate", ("intent", VERSION), {}, "POST /v1/tasks/intent/activate", {"version": VERSION}),
        ("canary", ("intent", VERSION), {"percent": 5}, "POST /v1/tasks/intent/canary",
         {"version": VERSION, "percent": 5.0}),
        ("rollback", ("intent",), {}, "POST /v1/tasks/intent/rollback", {}),
    ],
)  # fmt: skip
def test_a_change_is_sent_with_its_reason(
    face: Face, method: str, args: Any, options: Any, request_line: str, body: Any
) -> None:
    server = Server(json(CHANGE))
    assert getattr(face.open(server), method)(*args, **options, why="try it") == Change(**CHANGE)
    assert f"{server.asked[0].method} {server.asked[0].url.path}" == request_line
    (sent,) = server.bodies
    assert {name: value for name, value in sent.items() if value is not None} == {**body, "why": "try it"}


def test_a_task_or_one_of_its_versions_is_removed(face: Face) -> None:
    server = Server(json({**CHANGE, "version": None}))
    face.open(server)
    assert face.remove("intent", why="old").version is None
    face.remove("intent", VERSION, why="old")
    assert [(request.method, request.url.path, request.url.params["why"]) for request in server.asked] == [
        ("DELETE", "/v1/tasks/intent", "old"),
        ("DELETE", f"/v1/tasks/intent/versions/{VERSION}", "old"),
    ]


def test_versions_and_history(face: Face) -> None:
    server = Server(json({"task": "intent", "versions": [STORED]}), json({"entries": [ENTRY]}))
    face.open(server)
    assert face.versions("intent") == [VersionInfo(**STORED)]  # type: ignore[arg-type]
    assert face.history() == face.history("intent") == [HistoryEntry(**ENTRY)]  # type: ignore[arg-type]
    assert [request.url.path for request in server.asked] == [
        "/v1/tasks/intent/versions", "/v1/history", "/v1/tasks/intent/history",
    ]  # fmt: skip


def test_a_change_that_does_not_fit_is_refused_before_it_is_sent(face: Face) -> None:
    face.open(Server(json(CHANGE)))
    for ask in (
        lambda: face.activate("intent", "latest", why="x"),
        lambda: face.rollback("intent", why=""),
        lambda: face.remove("..", why="x"),
        lambda: face.canary("intent", VERSION, percent=101, why="x"),
    ):
        with pytest.raises(SpecError):
            ask()


def test_names_in_a_path_cannot_leave_it(face: Face) -> None:
    server = Server(json(TASK))
    face.open(server).task("a/../b?c#d")
    assert server.asked[0].url.raw_path == b"/v1/tasks/a%2F..%2Fb%3Fc%23d"


@pytest.mark.parametrize(
    ("status", "code", "kind", "builtin"),
    [
        (400, "invalid_request", ServerRefusedError, RuntimeError),
        (401, "no_key", KeyRefusedError, PermissionError),
        (403, "not_allowed", KeyRefusedError, PermissionError),
        (404, "unknown_name", NotServedError, LookupError),
        (429, "overloaded", ServerBusyError, RuntimeError),
        (500, "internal", ServerRefusedError, RuntimeError),
        (503, "stopping", ServerBusyError, RuntimeError),
    ],
)
def test_a_refusal_says_what_the_server_said(
    face: Face, status: int, code: str, kind: type[ClientError], builtin: type[Exception]
) -> None:
    face.open(Server(refused(status, code, {"Retry-After": "2"})), retries=0)
    with pytest.raises(kind, match=rf"intnt: is not served \({status} {code}, request r1\)") as caught:
        face.tasks()
    error = caught.value
    assert isinstance(error, builtin)
    assert (error.status, error.code, error.request_id, error.retry_after_s) == (status, code, "r1", 2.0)


def test_an_error_of_something_between_is_told_as_such(face: Face) -> None:
    face.open(Server(httpx.Response(413, text="<html>nginx")), base_url="http://proxy/trunk/")
    with pytest.raises(
        ServerRefusedError, match=r"http://proxy/trunk/v1/tasks: answered 413 .*'<html>nginx'"
    ) as caught:
        face.tasks()
    assert caught.value.code is None


def test_keys_that_a_newer_server_adds_are_ignored(face: Face) -> None:
    face.open(Server(json({"tasks": [{**TASK, "color": "blue"}], "next": None})))
    assert face.tasks()[0].task == "intent"


def test_a_kind_of_answer_that_is_not_known_is_told(face: Face) -> None:
    face.open(Server(json({"request_id": "r", "results": [{"intent": {"kind": "vector"}}]})))
    with pytest.raises(ServerAnswerError, match=r"'vector'.*install a newer trunkline"):
        face.analyze(texts=["a"])


def test_an_answer_that_is_no_json_is_told(face: Face) -> None:
    face.open(Server(httpx.Response(200, text="<html>")))
    with pytest.raises(ServerAnswerError, match="is not understood"):
        face.tasks()


def test_a_closed_client_says_so(face: Face) -> None:
    face.open(Server(json({"tasks": []}))).close()
    with pytest.raises(ServerUnreachableError, match="the client is closed"):
        face.tasks()


def test_the_key_of_the_environment_is_sent_and_never_shown(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_API_KEY", "tl_from_environment")
    server = Server(json({"tasks": []}))
    face.open(server).tasks()
    assert server.asked[0].headers["authorization"] == "Bearer tl_from_environment"
    assert "tl_from" not in f"{face.client!r} {vars(face.client)} {face.client._settings}"


def test_a_key_that_is_given_goes_before_the_environment(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_API_KEY", "tl_from_environment")
    server = Server(json({"tasks": []}))
    face.open(server, key="tl_given").tasks()
    assert server.asked[0].headers["authorization"] == "Bearer tl_given"


def test_without_a_key_none_is_sent(face: Face) -> None:
    server = Server(json({"tasks": []}))
    face.open(server).tasks()
    assert "authorization" not in server.asked[0].headers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "tl_x\n"}, "key: is empty or holds"),
        ({"key": ""}, "key: is empty or holds"),
        ({"base_url": "127.0.0.1:8000"}, "write it like http"),
        ({"base_url": "ftp://host"}, "is no address of HTTP"),
        ({"base_url": "http://me:secret@host"}, "holds a user name or password"),
        ({"base_url": "http://host?x=1"}, "leave out what follows"),
        ({"timeout_s": 0}, "timeout_s 0 is not allowed"),
        ({"retries": -1}, "retries -1 is outside"),
    ],
)
def test_a_client_that_cannot_work_is_not_made(options: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        Client(**options)
    assert "secret" not in str(caught.value)
    assert "tl_x" not in str(caught.value)


def test_importing_the_client_imports_nothing_heavy() -> None:
    code = (
        "import sys, trunkline.client; print(*sorted({'numpy', 'openvino', 'torch', 'starlette'} & set(sys.modules)))"
    )
    source = Path(__file__).resolve().parents[3] / "src"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=source)
    assert done.stdout.split() == []
