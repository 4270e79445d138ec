"""`server-kills`: writers and servers that are killed at any moment, disks that fail: the last good version serves."""

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import Benchmark, Measured
from benchmarks.kills_files import CALLS, KINDS, Change, fail_every_call
from benchmarks.kills_server import kill_servers
from benchmarks.kills_writer import kill_writers
from benchmarks.pages import measured_by, picture, publish
from tests.tiny_registries import NEWER, SAID, make_registry
from trunkline.bundle.registry import Registry

N_KILLS, N_SERVER_KILLS = 200, 10
N_QUICK_KILLS, N_QUICK_SERVER_KILLS, QUICK_EVERY = 20, 2, 3
SEED = 20251125
LOST_MEANS = (
    "acknowledged changes that are gone, registries that do not open, states beyond what was acknowledged by more than "
    "the one change that was being made, versions that do not verify, folders under their final names that are not "
    "whole, writers that cannot go on, servers that do not serve the registry's state after their restart"
)


def measure(*, quick: bool, out: Path) -> Measured:  # noqa: ARG001 - every benchmark is told where its result goes
    """Kills of a writer, of a server, and every file operation that may fail, on a registry of a few kilobytes."""
    n_kills, n_servers, every = (
        (N_QUICK_KILLS, N_QUICK_SERVER_KILLS, QUICK_EVERY) if quick else (N_KILLS, N_SERVER_KILLS, 1)
    )
    print(f"seed {SEED}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_registry(Path(temporary))
        newer = [folder / name for name in NEWER]
        changes = _changes(folder)
        failures = fail_every_call(folder / "registry", changes, every=every)
        print(f"{failures.n} file operations failed, {len(failures.lost)} findings", flush=True)
        writers = kill_writers(folder / "registry", [*newer, folder / "mood"], n_kills=n_kills, seed=SEED)
        print(f"{writers.n} writers killed, {len(writers.lost)} findings", flush=True)
        _settle(folder)
        servers = kill_servers(folder / "registry", newer, n_kills=n_servers, seed=SEED)
    lost = failures.lost + writers.lost + servers.lost
    return Measured(
        figures={
            "kills": float(writers.n + servers.n),
            "lost": float(len(lost)),
            "failed_operations": float(failures.n),
        },
        details={
            "seed": SEED,
            "lost": lost[:50],
            "lost_means": LOST_MEANS,
            "writers": {
                "n_kills": writers.n,
                "n_acknowledged": len(writers.acknowledged),
                "n_unacknowledged": writers.n_unacknowledged,
                "n_left": writers.n_left,
            },
            "servers": {
                "n_kills": servers.n,
                "n_acknowledged": servers.n_acknowledged,
                "n_answers": servers.n_answers,
                "restart_s": servers.restart_s,
            },
            "files": {
                "kinds": KINDS,
                "changes": list(changes),
                "by_call": {name: failures.by_call[name] for name in CALLS if name in failures.by_call},
                "n_taken_back": failures.n_taken_back,
                "n_made": failures.n_made,
            },
        },
    )


def _changes(folder: Path) -> dict[str, Change]:
    """Every kind of change, each possible in the registry as it is left here."""
    registry = Registry.open(folder / "registry")
    second, third = (registry.register(folder / name, **SAID) for name in NEWER[:2])
    registry.activate("intent", second, **SAID)
    return {
        "register": lambda registry: registry.register(folder / NEWER[2], **SAID),
        "activate": lambda registry: registry.activate("intent", third, **SAID),
        "canary": lambda registry: registry.canary("intent", third, 5.0, **SAID),
        "rollback": lambda registry: registry.rollback("intent", **SAID),
        "remove a version": lambda registry: registry.remove("intent", third, **SAID),
        "remove a task": lambda registry: registry.remove("intent", **SAID),
    }


def _settle(folder: Path) -> None:
    """Have versions of the task that the server's callers change, whatever the writers left."""
    registry = Registry.open(folder / "registry")
    for name in NEWER:
        registry.register(folder / name, **SAID)


def markdown_table(result: dict[str, Any]) -> str:
    """What was killed, and what was found."""
    figures, details = result["figures"], result["details"]
    writers, servers, files = details["writers"], details["servers"], details["files"]
    again = f"listens again after {median(servers['restart_s']):.1f} s"
    rows = (
        ("kill -9 of a writer", f"{writers['n_kills']}", f"{writers['n_acknowledged']} acknowledged changes"),
        ("kill -9 of a server that answers and is changed", f"{servers['n_kills']}",
         f"{servers['n_acknowledged']} acknowledged changes, {servers['n_answers']} answers; {again}"),
        ("file operations that failed", f"{figures['failed_operations']:.0f}",
         f"{files['n_taken_back']} left the state before, {files['n_made']} the one after"),
        ("**lost**", f"**{figures['lost']:.0f}**", "to be 0"),
    )  # fmt: skip
    lines = ["| | times | |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*lines, "", measured_by(result)])


def draw(result: dict[str, Any], path: Path) -> None:
    """Which calls failed."""
    by_call = result["details"]["files"]["by_call"]
    with picture(path, width=7, height=2.6) as figure:
        axes = figure.subplots()
        axes.barh(list(by_call), list(by_call.values()), color="tab:blue")
        axes.invert_yaxis()
        axes.set_xlabel("times that the call failed, or the process ended there")


BENCHMARK = Benchmark(
    name="server-kills",
    purpose="200 kill -9 of writers and servers, every file operation that may fail: nothing is lost",
    measure=measure,
    after=lambda path: publish(path, "server-kills", table=markdown_table, draw=draw),
)
