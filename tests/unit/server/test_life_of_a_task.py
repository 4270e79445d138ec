"""Versions come, answer, are tried, go back and leave: over HTTP, on a pico registry."""

import asyncio
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.tiny_bundles import backbone_of, branch_digest, make_branch, make_bundle, put_branch
from tests.tiny_servers import ask, make_keys, make_service, with_settings
from trunkline.bundle.manifest import BRANCH_FILES
from trunkline.bundle.registry import Registry
from trunkline.bundle.store import read_branch, write_branch
from trunkline.server.operation import Service
from trunkline.server.settings import RequestLimits
from trunkline.wire import AnalyzeResponse

TOKENS, KEYS = make_keys(ada=("admin",), bob=("infer", "owner:intent"), cleo=("infer",))
TAR = {"Content-Type": "application/x-tar"}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    bundle = make_bundle(tmp_path, "intent", "slots")
    return Registry.create(tmp_path / "registry", bundle, who="ada", why="first")


@pytest.fixture
def service(registry: Registry) -> Iterator[Service]:
    with make_service(registry.path, keys=KEYS) as made:
        yield made


def branch_of(folder: Path, seed: int = 1, task: str = "intent") -> Path:
    return put_branch(folder / f"new-{task}-{seed}", task, backbone_of(), seed=seed)


def packed(folder: Path, *, prefix: str = "") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in BRANCH_FILES:
            archive.add(folder / name, prefix + name)
    return content.getvalue()


def upload(
    service: Service, content: bytes, *, task: str = "intent", token: str = "ada", **headers: str
) -> httpx.Response:
    path = f"/v1/tasks/{task}/versions?why=better"
    return ask(service, "POST", path, token=TOKENS[token], content=content, headers={**TAR, **headers})


def change(service: Service, what: str, *, task: str = "intent", token: str = "ada", **body: Any) -> httpx.Response:
    body = {"why": "because", **body}
    return ask(service, "POST", f"/v1/tasks/{task}/{what}", token=TOKENS[token], json=body)


def version_of(service: Service, key: str = "somebody", task: str = "intent") -> str:
    answer = ask(service, "POST", "/v1/analyze", token=TOKENS["cleo"], json={"texts": ["play a song"], "key": key})
    return msgspec.json.decode(answer.content, type=AnalyzeResponse).results[0][task].version


def states(service: Service) -> dict[str, str]:
    listed = ask(service, "GET", "/v1/tasks/intent/versions", token=TOKENS["ada"]).json()["versions"]
    return {each["version"]: each["state"] for each in listed}


def test_a_version_is_registered_activated_and_rolled_back(service: Service, tmp_path: Path) -> None:
    old = branch_digest("intent")
    slots = version_of(service, task="slots")
    registered = upload(service, packed(branch_of(tmp_path)))
    assert registered.status_code == 201, registered.text
    (new,) = set(states(service)) - {old}
    assert registered.json()["version"] == new
    assert states(service) == {old: "active", new: "ready"}
    assert version_of(service) == old
    assert change(service, "activate", version=new[:12]).json()["version"] == new
    assert version_of(service) == new
    assert states(service) == {old: "ready", new: "active"}
    assert change(service, "rollback").json()["version"] == old
    assert version_of(service) == old
    assert version_of(service, task="slots") == slots


def test_requests_go_before_each_piece_of_a_new_version(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(service.analyzer.engine.loop, "give_way", waits.append)
    monkeypatch.setattr("trunkline.engine.engine.warm", lambda *_, **__: None)  # As many pieces as there are shapes.
    monkeypatch.setattr("trunkline.engine.engine._REPLAYED_TOKENS", 1)  # A piece for each.
    branch = branch_of(tmp_path)
    assert upload(service, packed(branch)).status_code == 201
    received, unpacked, read, copied, loaded, timed = 1, len(BRANCH_FILES), 1, len(BRANCH_FILES), 2, 1
    n_golden = len(read_branch(branch).golden.inputs)
    assert len(waits) == received + unpacked + read + copied + loaded + n_golden + timed


def test_a_canary_answers_its_share_of_the_keys_the_same_ones_every_time(service: Service, tmp_path: Path) -> None:
    old = branch_digest("intent")
    upload(service, packed(branch_of(tmp_path)))
    (new,) = set(states(service)) - {old}
    assert change(service, "canary", version=new, percent=30).status_code == 200
    keys = [f"user-{number}" for number in range(200)]
    routes = service.deployment.routes
    chosen = {key: routes.snapshot_for(key).branches["intent"].digest for key in keys}
    assert 30 < sum(digest == new for digest in chosen.values()) < 90
    assert {key: routes.snapshot_for(key).branches["intent"].digest for key in keys} == chosen
    one = next(key for key, digest in chosen.items() if digest == new)
    assert version_of(service, one) == new
    info = ask(service, "GET", "/v1/tasks/intent", token=TOKENS["cleo"]).json()
    assert (info["version"], info["canary"]) == (old, {"version": new, "percent": 30.0})
    assert change(service, "canary", version=new, percent=0).status_code == 200
    assert version_of(service, one) == old


def test_a_canary_loads_no_other_version(service: Service, tmp_path: Path) -> None:
    made = [upload(service, packed(branch_of(tmp_path, seed))).json()["version"] for seed in (1, 2, 3)]
    before = states(service)
    assert [before[version] for version in made] == ["stored", "ready", "ready"]
    change(service, "canary", version=made[2], percent=10)
    assert states(service) == {**before, made[2]: "canary"}
    change(service, "canary", version=made[2], percent=0)
    assert states(service) == before


def test_more_percent_keep_the_keys_that_had_the_canary(service: Service, tmp_path: Path) -> None:
    old = branch_digest("intent")
    upload(service, packed(branch_of(tmp_path)))
    (new,) = set(states(service)) - {old}

    def chosen(percent: float) -> set[int]:
        change(service, "canary", version=new, percent=percent)
        routes = service.deployment.routes
        return {n for n in range(300) if routes.snapshot_for(str(n)).branches["intent"].digest == new}

    assert chosen(10) < chosen(50)


def test_the_state_survives_a_restart(service: Service, registry: Registry, tmp_path: Path) -> None:
    upload(service, packed(branch_of(tmp_path)))
    (new,) = set(states(service)) - {branch_digest("intent")}
    change(service, "activate", version=new)
    with make_service(registry.path, keys=KEYS) as again:
        assert version_of(again) == new
        assert states(again) == states(service)


def test_every_change_is_in_the_history_with_who_and_why(service: Service, tmp_path: Path) -> None:
    upload(service, packed(branch_of(tmp_path)), token="bob")
    (new,) = set(states(service)) - {branch_digest("intent")}
    change(service, "activate", version=new, token="bob", why="it is better")
    history = ask(service, "GET", "/v1/tasks/intent/history", token=TOKENS["bob"]).json()["entries"]
    assert [(entry["who"], entry["action"], entry["why"]) for entry in history[-2:]] == [
        ("bob", "register", "better"),
        ("bob", "activate", "it is better"),
    ]
    assert ask(service, "GET", "/v1/history", token=TOKENS["cleo"]).status_code == 403


def test_a_task_can_be_taken_out_of_service_and_comes_back(service: Service) -> None:
    assert ask(service, "DELETE", "/v1/tasks/slots?why=broken", token=TOKENS["ada"]).json()["version"] is None
    assert ask(service, "GET", "/v1/tasks/slots", token=TOKENS["cleo"]).status_code == 404
    assert change(service, "rollback", task="slots").status_code == 200
    assert ask(service, "GET", "/v1/tasks/slots", token=TOKENS["cleo"]).status_code == 200


def test_a_version_that_answers_cannot_be_dropped_and_another_can(service: Service, tmp_path: Path) -> None:
    old = branch_digest("intent")
    upload(service, packed(branch_of(tmp_path)))
    (new,) = set(states(service)) - {old}
    path = "/v1/tasks/intent/versions/{}?why=old"
    assert ask(service, "DELETE", path.format(old), token=TOKENS["ada"]).status_code == 409
    assert ask(service, "DELETE", path.format(new), token=TOKENS["ada"]).status_code == 200
    assert set(states(service)) == {old}


def test_what_another_process_changes_is_taken_over(service: Service, registry: Registry, tmp_path: Path) -> None:
    new = registry.register(branch_of(tmp_path), who="ada", why="by hand")
    registry.activate("intent", new, who="ada", why="by hand")
    assert version_of(service) == branch_digest("intent")
    assert asyncio.run(service.deployment.follow())
    assert version_of(service) == new
    assert not asyncio.run(service.deployment.follow())


def test_what_could_not_be_taken_over_is_tried_again(
    service: Service, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = registry.register(branch_of(tmp_path), who="ada", why="by hand")
    registry.activate("intent", new, who="ada", why="by hand")

    def fail(*_: object, **__: object) -> None:
        raise OSError("too many open files")

    with monkeypatch.context() as broken:
        broken.setattr(service.analyzer.engine, "prepare", fail)
        with pytest.raises(OSError, match="too many"):
            asyncio.run(service.deployment.follow())
    assert version_of(service) == branch_digest("intent")
    assert asyncio.run(service.deployment.follow())
    assert version_of(service) == new


@pytest.mark.parametrize("form", ["w:gz", "w:xz", "zip"])
def test_a_packed_archive_with_a_flipped_byte_is_refused(service: Service, tmp_path: Path, form: str) -> None:
    folder, content = branch_of(tmp_path), io.BytesIO()
    if form == "zip":
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packing:
            for name in BRANCH_FILES:
                packing.write(folder / name, name)
    else:
        with tarfile.open(fileobj=content, mode=form) as archive:  # type: ignore[call-overload]
            for name in BRANCH_FILES:
                archive.add(folder / name, name)
    whole = content.getvalue()
    for place in range(len(whole) // 10, len(whole), len(whole) // 10):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        # Where only padding was hit, the files are whole.
        assert upload(service, bytes(damaged)).status_code in {201, 409, 413, 422}, place


@pytest.mark.parametrize(
    ("token", "task", "status"),
    [("ada", "slots", 200), ("bob", "intent", 200), ("bob", "slots", 403), ("cleo", "intent", 403)],
)
def test_only_owners_and_administrators_change_tasks(service: Service, token: str, task: str, status: int) -> None:
    answer = ask(service, "GET", f"/v1/tasks/{task}/versions", token=TOKENS[token])
    assert answer.status_code == status


def test_a_key_is_needed_and_must_be_known(service: Service) -> None:
    assert ask(service, "GET", "/v1/tasks").json()["error"]["code"] == "no_key"
    wrong = ask(service, "GET", "/v1/tasks", token="tl_guess")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "wrong_key")
    assert wrong.headers["www-authenticate"] == "Bearer"
    assert ask(service, "GET", "/v1/tasks", token=TOKENS["cleo"]).status_code == 200
    assert ask(service, "GET", "/health/ready").status_code == 200


@pytest.mark.parametrize("name", BRANCH_FILES)
def test_a_flipped_byte_in_any_file_is_refused_and_nothing_changes(service: Service, tmp_path: Path, name: str) -> None:
    folder = branch_of(tmp_path)
    digest = read_branch(folder).digest
    before = states(service)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 0x10
    (folder / name).write_bytes(bytes(content))
    path = f"/v1/tasks/intent/versions?why=better&version={digest}"
    answer = ask(service, "POST", path, token=TOKENS["ada"], content=packed(folder), headers=TAR)
    assert answer.status_code == 422, answer.text
    assert states(service) == before


def test_a_branch_that_answers_otherwise_than_it_says_is_refused(service: Service, tmp_path: Path) -> None:
    made = make_branch("intent", backbone_of(), seed=1)
    lines = json.loads(msgspec.json.encode(made.golden.logits))
    lines[0][0][0] += 0.5
    golden = msgspec.convert({**msgspec.to_builtins(made.golden), "logits": lines}, type(made.golden))
    write_branch(tmp_path / "wrong", made.spec, made.tensors, golden)
    before = states(service)
    answer = upload(service, packed(tmp_path / "wrong"))
    assert answer.status_code == 422
    assert "golden input 0" in answer.json()["error"]["message"]
    assert states(service) == before


def test_a_branch_of_another_task_is_refused(service: Service, tmp_path: Path) -> None:
    answer = upload(service, packed(branch_of(tmp_path, task="slots")), task="intent")
    assert answer.json()["error"]["code"] == "wrong_task"


def test_a_slow_branch_is_refused(service: Service, tmp_path: Path) -> None:
    service.deployment._settings = with_settings(service, max_branch_ms=1e-6).settings
    answer = upload(service, packed(branch_of(tmp_path)))
    assert answer.json()["error"]["code"] == "slow_branch"
    assert len(states(service)) == 1


def test_zip_archives_and_archives_with_a_folder_are_taken(service: Service, tmp_path: Path) -> None:
    assert upload(service, packed(branch_of(tmp_path), prefix="branch/")).status_code == 201
    folder, content = branch_of(tmp_path, 2), io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in BRANCH_FILES:
            archive.write(folder / name, name)
    assert upload(service, content.getvalue(), **{"Content-Type": "application/zip"}).status_code == 201
    assert len(states(service)) == 3


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, link, size
        archive.addfile(info, io.BytesIO(bytes(size)))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"no archive", "damaged_archive"),
        (b"", "damaged_archive"),
        (member("branch.json"), "incomplete_branch"),
        (member("../branch.json"), "foreign_file"),
        (member("/branch.json"), "foreign_file"),
        (member("a/b/branch.json"), "foreign_file"),
        (member("other.py"), "foreign_file"),
        (member("branch.json", tarfile.SYMTYPE, "/etc/passwd"), "foreign_file"),
        (member("branch.json", tarfile.LNKTYPE, "/etc/passwd"), "foreign_file"),
        (member("branch.json", tarfile.FIFOTYPE), "foreign_file"),
    ],
)
def test_an_archive_that_is_anything_else_is_refused(service: Service, content: bytes, code: str) -> None:
    answer = upload(service, content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)


def test_an_archive_larger_than_allowed_is_refused_packed_or_unpacked(service: Service) -> None:
    small = with_settings(service, limits=RequestLimits(archive_bytes=1000))
    assert upload(small, bytes(2000)).status_code == 413
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("branch.safetensors", bytes(100_000))
    answer = upload(small, content.getvalue(), **{"Content-Type": "application/zip"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "archive_too_large")


def test_a_branch_is_registered_from_an_allowed_folder_alone(service: Service, tmp_path: Path) -> None:
    folder = branch_of(tmp_path / "allowed")
    body = {"source": str(folder), "why": "better"}
    path = "/v1/tasks/intent/versions"
    closed = ask(service, "POST", path, token=TOKENS["ada"], json=body)
    assert (closed.status_code, closed.json()["error"]["code"]) == (403, "source_not_allowed")
    opened = with_settings(service, sources=(str(tmp_path / "allowed"), "memory://branches"))
    assert ask(opened, "POST", path, token=TOKENS["ada"], json=body).status_code == 201
    outside = {**body, "source": str(tmp_path / "allowed" / ".." / "elsewhere")}
    assert ask(opened, "POST", path, token=TOKENS["ada"], json=outside).status_code == 403
    for source in ("memory://branches-evil/x", "memory://branches/../x", "simplecache::memory://branches/x"):
        assert ask(opened, "POST", path, token=TOKENS["ada"], json={**body, "source": source}).status_code == 403


def test_a_branch_is_fetched_from_an_allowed_address(service: Service, tmp_path: Path) -> None:
    import fsspec

    folder = branch_of(tmp_path)
    files = fsspec.filesystem("memory")
    for name in BRANCH_FILES:
        files.pipe(f"/branches/one/{name}", (folder / name).read_bytes())
    opened = with_settings(service, sources=("memory://branches",))
    body = {"source": "memory://branches/one", "why": "better"}
    answer = ask(opened, "POST", "/v1/tasks/intent/versions", token=TOKENS["ada"], json=body)
    assert answer.status_code == 201, answer.text
    body["source"] = "memory://branches/none"
    answer = ask(opened, "POST", "/v1/tasks/intent/versions", token=TOKENS["ada"], json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unreadable_source")


@pytest.mark.parametrize(
    ("what", "body", "status"),
    [
        ("activate", {"version": "abcdef012345"}, 404),
        ("activate", {"version": "short"}, 400),
        ("activate", {}, 400),
        ("canary", {"version": "abcdef012345", "percent": 101}, 400),
        ("rollback", {}, 409),
        ("rollback", {"why": ""}, 400),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(
    service: Service, what: str, body: dict[str, Any], status: int
) -> None:
    before = states(service)
    assert change(service, what, **body).status_code == status
    assert states(service) == before


def test_a_change_that_cannot_be_written_changes_nothing(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(service, packed(branch_of(tmp_path)))
    (new,) = set(states(service)) - {branch_digest("intent")}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trunkline.bundle.registry.append_entry", full)
    answer = change(service, "activate", version=new)
    assert answer.status_code >= 400
    monkeypatch.undo()
    assert version_of(service) == branch_digest("intent")
    assert change(service, "activate", version=new).status_code == 200
