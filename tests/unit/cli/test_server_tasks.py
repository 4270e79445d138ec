"""`trunkline tasks` on a running server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_cli import run_cli
from tests.tiny_registries import NEWER, digest_of, make_registry
from tests.tiny_servers import make_keys, make_service, running
from trunkline.client import Client

SAID = ("--why", "a test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_registry(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    tokens, keys = make_keys(ada=("admin",), reader=("infer",))
    with make_service(folder / "registry", keys=keys) as service, running(service) as (port, _):
        yield f"http://127.0.0.1:{port}", tokens


def test_versions_are_tried_activated_and_taken_back(
    server: tuple[str, dict[str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, tokens = server
    version = digest_of(folder / NEWER[0])
    with Client(url, key=tokens["ada"]) as client:
        client.register("intent", folder / NEWER[0], why="newer", version=version)
    monkeypatch.setenv("TRUNKLINE_API_KEY", tokens["ada"])
    canary = run_cli("tasks", "canary", url, "intent", version[:8], 5, *SAID)
    assert f"{version[:12]} answers 5% as canary; last entry 6" in canary.out
    assert "canary 5%" in run_cli("tasks", "list", url).out
    activated = run_cli("tasks", "activate", url, "intent", version, *SAID)
    assert activated.out == f"task 'intent': version {version[:12]} is active; last entry 7\n"
    listed = run_cli("tasks", "list", url, "--json").json()
    assert [each["task"]["version"] == version for each in listed] == [True, False]
    assert {each["state"] for each in listed[0]["versions"]} == {"active", "ready"}
    assert run_cli("tasks", "rollback", url, "intent", *SAID).code == 0
    assert run_cli("tasks", "remove", url, "intent", version, *SAID).code == 0
    assert "out of service" in run_cli("tasks", "remove", url, "slots", *SAID).out
    history = run_cli("tasks", "history", url, "--task", "intent").out
    assert [word for word in ("canary 5%", "rollback", "remove", "ada", "a test") if word not in history] == []
    # The folder tells the same, whoever reads it.
    of_folder = run_cli("tasks", "history", folder / "registry", "--json").json()
    of_server = run_cli("tasks", "history", url, "--json").json()
    assert [(each["seq"], each["action"], each["who"]) for each in of_server] == [
        (each["seq"], each["action"], each["who"]) for each in of_folder
    ]


def test_what_a_server_refuses_is_told(server: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    url, tokens = server
    monkeypatch.setenv("TRUNKLINE_API_KEY", tokens["reader"])
    refused = run_cli("tasks", "rollback", url, "intent", *SAID)
    assert (refused.code, "403" in refused.err) == (1, True)
    monkeypatch.delenv("TRUNKLINE_API_KEY")
    assert "401" in run_cli("tasks", "list", url).err
    monkeypatch.setenv("TRUNKLINE_API_KEY", tokens["ada"])
    assert "did you mean 'intent'?" in run_cli("tasks", "rollback", url, "intents", *SAID).err
    assert (
        "--who 'ada': is not taken for a server"
        in run_cli("tasks", "rollback", url, "intent", *SAID, "--who", "ada").err
    )


def test_a_server_that_is_not_there_is_told_with_its_address() -> None:
    done = run_cli("tasks", "list", "http://127.0.0.1:9")
    assert done.code == 1
    assert "http://127.0.0.1:9" in done.err
