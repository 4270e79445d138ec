import getpass
import shutil
from pathlib import Path

import pytest

from tests.tiny_cli import run_cli
from tests.tiny_registries import NEWER, digest_of, make_registry
from trunkline.bundle.registry import Registry


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_registry(tmp_path_factory.mktemp("registries"))


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)


def test_a_version_is_added_tried_activated_and_taken_back(folder: Path) -> None:
    registry, version = folder / "registry", digest_of(folder / NEWER[0])
    said = ("--why", "a [bold] reason", "--who", "grace")
    added = run_cli("registry", "add", registry, folder / NEWER[0], *said)
    assert added.out == f"version {version} is registered; last entry 5\n"
    canary = run_cli("tasks", "canary", registry, "intent", version[:8], 5, *said)
    assert f"{version[:12]} answers 5% as canary; last entry 6" in canary.out
    assert "canary 5%" in run_cli("tasks", "list", registry).out
    activated = run_cli("tasks", "activate", registry, "intent", version, *said)
    assert activated.out == f"task 'intent': version {version[:12]} is active; last entry 7\n"
    assert "rollback goes here" in run_cli("tasks", "list", registry).out
    assert run_cli("tasks", "rollback", registry, "intent", *said).code == 0
    assert run_cli("tasks", "remove", registry, "intent", version, *said).code == 0
    assert f"branches/intent/{version}\n" in run_cli("registry", "prune", registry).out
    assert "out of service" in run_cli("tasks", "remove", registry, "intent", *said).out
    history = run_cli("tasks", "history", registry, "--task", "intent").out
    assert "a [bold] reason" in history
    assert [word for word in ("canary 5%", "rollback", "remove", "grace") if word not in history] == []


def test_a_registry_is_created_by_the_user_of_the_operating_system(folder: Path) -> None:
    created = run_cli("registry", "create", folder / "made", "--bundle", folder / "bundle")
    assert created.out == f"{folder / 'made'}: 2 tasks registered and active; last entry 4\n"
    entry = Registry.open(folder / "made").history()[0]
    assert (entry.who, entry.why) == (getpass.getuser(), "created from a bundle")


def test_a_user_without_a_name_is_told_by_number(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", unknown)
    assert run_cli("tasks", "remove", folder / "registry", "intent", "--why", "moved").code == 0
    assert Registry.open(folder / "registry").history()[-1].who.startswith("user ")


def test_state_and_history_are_printed_as_json(folder: Path) -> None:
    registry = folder / "registry"
    state = run_cli("tasks", "list", registry, "--json").json()
    assert sorted(state["tasks"]) == ["intent", "slots"]
    assert state["tasks"]["intent"]["active"] in state["tasks"]["intent"]["versions"]
    entries = run_cli("tasks", "history", registry, "--json").json()
    assert [entry["seq"] for entry in entries] == list(range(state["seq"] + 1))
    assert entries[0]["action"] == "create"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("activate", "intents", "0" * 8), "did you mean 'intent'?"),
        (("activate", "intent", "0" * 8), "has no version 00000000"),
        (("rollback", "intent"), "no version was active before"),
    ],
)
def test_what_is_refused_is_told(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    command, *rest = arguments
    done = run_cli("tasks", command, folder / "registry", *rest, "--why", "a test")
    assert done.code == 1
    assert message in done.err
    assert done.out == ""


def test_a_change_without_a_reason_is_refused(folder: Path) -> None:
    assert run_cli("tasks", "rollback", folder / "registry", "intent").code == 2
