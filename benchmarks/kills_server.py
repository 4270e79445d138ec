"""Kills of a whole server that answers and is changed over HTTP, each followed by a restart."""

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.kills_writer import unreadable
from benchmarks.served import Served
from benchmarks.uploads import TAR, branch_files_of, tar_of
from trunkline.bundle.registry import Registry
from trunkline.core.errors import TrunklineError

N_ASKERS = 2
LONGEST_LIFE_S = 1.5
ASKED = {"texts": ["play a song in paris"]}
OPTIONS = ("--ready-versions", "3", "--threads", "1")


@dataclass(slots=True)
class ServerKills:
    """What kills of the server did.

    Attributes:
        n: Kills.
        n_acknowledged: Changes that were answered with success.
        n_answers: Answers before kills.
        restart_s: From each start after a kill to listening.
        lost: What was wrong, in words.
    """

    n: int = 0
    n_acknowledged: int = 0
    n_answers: int = 0
    restart_s: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def kill_servers(path: Path, branches: list[Path], *, n_kills: int, seed: int) -> ServerKills:
    """Serve a registry, change and ask, kill, look at the registry, serve it again.

    Args:
        path: Of the registry.
        branches: Folders of versions that are uploaded; of one task.
        n_kills: How many.
        seed: Of moments and changes.
    """
    rng, found = random.Random(seed), ServerKills()
    server = Served(path, *OPTIONS)
    try:
        for number in range(n_kills):
            said = _until_killed(server, branches, rng, found)
            found.n += 1
            wrong = _judge(path, said)
            began = time.perf_counter()
            server = Served(path, *OPTIONS)
            found.restart_s.append(time.perf_counter() - began)
            found.lost += [f"kill {number}: {each}" for each in wrong + _serves_the_last(server, path)]
    finally:
        server.kill()
    return found


def _until_killed(server: Served, branches: list[Path], rng: random.Random, found: ServerKills) -> list[dict[str, Any]]:
    """Changes that were acknowledged before the kill."""
    said: list[dict[str, Any]] = []
    changed = threading.Event()

    def change() -> None:
        _until_gone(server, lambda client: _one_change(client, branches, rng), acknowledged, (409,), found)

    def acknowledged(answer: httpx.Response) -> None:
        said.append(answer.json())
        changed.set()

    def ask() -> None:
        _until_gone(server, lambda client: client.post("/v1/analyze", json=ASKED), answered, (), found)

    def answered(_: httpx.Response) -> None:
        found.n_answers += 1

    callers: list[Callable[[], None]] = [change, *[ask] * N_ASKERS]
    threads = [threading.Thread(target=each) for each in callers]
    for thread in threads:
        thread.start()
    if not changed.wait(30):
        found.lost.append("no change was acknowledged within 30 s")
    time.sleep(rng.uniform(0, LONGEST_LIFE_S))
    server.kill()
    for thread in threads:
        thread.join()
    found.n_acknowledged += len(said)
    return said


def _until_gone(
    server: Served,
    act: Callable[[httpx.Client], httpx.Response],
    succeeded: Callable[[httpx.Response], None],
    expected: tuple[int, ...],
    found: ServerKills,
) -> None:
    """Act again and again until the server is gone; what is neither success nor expected is a finding."""
    with suppress(httpx.TransportError), httpx.Client(base_url=server.url, headers=server.headers) as client:
        while True:
            answer = act(client)
            if answer.is_success:
                succeeded(answer)
            elif answer.status_code not in expected:
                found.lost.append(f"{answer.request.url.path}: {answer.status_code}: {answer.text[:300]}")


def _one_change(client: httpx.Client, branches: list[Path], rng: random.Random) -> httpx.Response:
    folder = rng.choice(branches)
    task = branch_task(folder)
    versions = client.get(f"/v1/tasks/{task}/versions").json()["versions"]
    version, why = rng.choice(versions)["version"], {"why": "a change among many"}
    at = f"/v1/tasks/{task}"
    match rng.randrange(6):
        case 0 | 1:
            return client.post(f"{at}/versions", params=why, content=tar_of(branch_files_of(folder)), headers=TAR)
        case 2:
            return client.post(f"{at}/activate", json={"version": version, **why})
        case 3:
            return client.post(f"{at}/canary", json={"version": version, "percent": 50, **why})
        case 4:
            return client.post(f"{at}/rollback", json=why)
        case _:
            return client.delete(f"{at}/versions/{version}", params=why)


def branch_task(folder: Path) -> str:
    """The task of a branch folder whose name begins with it."""
    return folder.name.partition("-")[0]


def _judge(path: Path, said: list[dict[str, Any]]) -> list[str]:
    """What is wrong with the registry after a kill."""
    try:
        registry = Registry.open(path)
    except TrunklineError as error:
        return [f"does not open: {error}"]
    entries = registry.history()
    gone = [each["seq"] for each in said if each["seq"] >= len(entries) or entries[each["seq"]].task != each["task"]]
    wrong = [f"acknowledged change {seq} is gone" for seq in gone]
    more = registry.state.seq - max((each["seq"] for each in said), default=registry.state.seq)
    if more not in (0, 1):
        wrong.append(f"{more} changes beyond the last acknowledged one")
    return wrong + unreadable(registry)


def _serves_the_last(server: Served, path: Path) -> list[str]:
    """What is wrong with what a server answers after its restart."""
    tasks, wrong = Registry.open(path).state.tasks, []
    with httpx.Client(base_url=server.url, headers=server.headers) as client:
        served = {each["task"]: each["version"] for each in client.get("/v1/tasks").json()["tasks"]}
        if served != {task: each.active for task, each in tasks.items() if each.active is not None}:
            wrong.append(f"serves {served} after its restart, which is not the registry's state")
        answer = client.post("/v1/analyze", json=ASKED)
        if not answer.is_success:
            return [*wrong, f"a request after the restart was answered with {answer.status_code}: {answer.text[:300]}"]
        for task, each in answer.json()["results"][0].items():
            canary = tasks[task].canary
            if each["version"] not in (tasks[task].active, canary.version if canary else None):
                wrong.append(f"{task} was answered by {each['version'][:12]}, which is neither active nor canary")
    return wrong
