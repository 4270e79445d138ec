"""`trunkline tasks` on a running server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_cli import run_cli
from tests.tiny_registries import NEWER, digest_of, make_registry
from tests.tiny_registries import SAID as SAID_BY
from tests.tiny_servers import make_keys, make_service, running
from trunkline.bundle.registry import Registry
from trunkline.cli.tasks import tasks_of
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
    assert "rollback goes here" in run_cli("tasks", "list", url).out
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


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, dict[str, str]]]:
    """A server, its registry and keys: ``intent`` has a canary, ``slots`` was taken out of service, ``mood`` is new."""
    folder = make_registry(tmp_path_factory.mktemp("varied"))
    registry = Registry.open(folder / "registry")
    newer, newest, _ = (registry.register(folder / name, **SAID_BY) for name in (*NEWER[:2], "mood"))
    registry.activate("intent", newer, **SAID_BY)
    registry.canary("intent", newest, 5, **SAID_BY)
    registry.remove("slots", **SAID_BY)
    tokens, keys = make_keys(ada=("admin",), bob=("infer", "owner:slots"))
    with make_service(registry.path, keys=keys) as service, running(service) as (port, _):
        yield f"http://127.0.0.1:{port}", registry.path, tokens


def test_a_server_is_listed_as_its_folder_is(
    varied: tuple[str, Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, path, tokens = varied
    monkeypatch.setenv("TRUNKLINE_API_KEY", tokens["ada"])
    with tasks_of(str(path), who="") as of_folder, tasks_of(url, who="") as of_server:
        expected, found = of_folder.listing(), of_server.listing()
    assert found.hidden == ()
    assert len(found.rows) == 5
    for row, seen in zip(sorted(expected.rows), sorted(found.rows), strict=True):
        assert (*seen[:2], *seen[3:]) == (*row[:2], *row[3:])
        assert seen[2].endswith(row[2])
    assert sum(row[2].endswith("rollback goes here") for row in found.rows) == 2
    listed = run_cli("tasks", "list", url, "--json").json()
    assert [(each["name"], each["task"] is None, len(each["versions"])) for each in listed] == [
        ("intent", False, 3), ("slots", True, 1), ("mood", True, 1),
    ]  # fmt: skip


def test_of_tasks_of_others_what_answers_is_listed(
    varied: tuple[str, Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, path, tokens = varied
    intent = Registry.open(path).state.tasks["intent"]
    monkeypatch.setenv("TRUNKLINE_API_KEY", tokens["bob"])
    with tasks_of(url, who="") as tasks:
        listing = tasks.listing()
    assert [(row[0], row[1], row[2]) for row in listing.rows if row[0] != "slots"] == [
        ("intent", (intent.active or "")[:12], "active"),
        ("intent", intent.canary.version[:12] if intent.canary else "", "canary 5%"),
        ("mood", "", "out of service"),
    ]
    assert [row[2].partition(", ")[2] for row in listing.rows if row[0] == "slots"] == ["rollback goes here"]
    done = run_cli("tasks", "list", url)
    assert done.code == 0
    for task in ("intent", "mood"):
        assert f"task '{task}': versions that do not answer, and who registered which, are not shown" in done.out
        assert f"this needs owner:{task} or admin" in done.out
    assert "task 'slots': versions" not in done.out
    hidden = {each["name"]: each["hidden"] for each in run_cli("tasks", "list", url, "--json").json()}
    assert {task: "403 not_allowed" in (why or "") for task, why in hidden.items()} == {
        "intent": True, "slots": False, "mood": True,
    }  # fmt: skip


def test_a_server_that_is_not_there_is_told_with_its_address() -> None:
    done = run_cli("tasks", "list", "http://127.0.0.1:9")
    assert done.code == 1
    assert "http://127.0.0.1:9" in done.err
