"""A small process that changes a registry without end, kills of it at random moments, and what must hold after each.

As a program, ``python -m benchmarks.kills_writer REGISTRY SEED BRANCH...``: says ``SEQ CHECK`` of every change that was
acknowledged, and goes on until it is killed.
"""

import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import ROOT
from trunkline.bundle.registry import Registry
from trunkline.bundle.store import read_branch
from trunkline.core.errors import RegistryError, TrunklineError

LONGEST_LIFE_S = 0.15
"""A writer lives so long at most after its first change; a change takes milliseconds."""
WHO = "a writer that will be killed"


def change_at_random(registry: Registry, branches: list[Path], rng: random.Random) -> bool:
    """Try one change; whether it was made."""
    task = rng.choice(list(registry.state.tasks))
    versions = list(registry.state.tasks[task].versions)
    said = {"who": WHO, "why": "a change among many"}
    before = registry.state.seq
    try:
        match rng.randrange(8):
            case 0 | 1:
                registry.register(rng.choice(branches), **said)
            case 2 | 3:
                registry.activate(task, rng.choice(versions), **said)
            case 4:
                registry.canary(task, rng.choice(versions), rng.choice((0.0, 5.0, 50.0)), **said)
            case 5:
                registry.rollback(task, **said)
            case 6:
                registry.remove(task, rng.choice(versions), **said)
            case _:
                registry.prune()
    except RegistryError:  # It does not fit the state: another one is tried.
        return False
    return registry.state.seq > before


def write_without_end(path: Path, branches: list[Path], seed: int) -> None:
    """Change a registry until the process is killed."""
    rng, registry = random.Random(seed), Registry.open(path)
    while True:
        if change_at_random(registry, branches, rng):
            last = registry.history()[-1]
            print(last.seq, last.check, flush=True)


@dataclass(slots=True)
class Kills:
    """What kills of the writer did.

    Attributes:
        n: Kills.
        acknowledged: Number of an entry to its check, of all changes that were acknowledged.
        n_unacknowledged: Changes that were on disk and whose writer was killed before it could say so.
        n_left: Temporary files and folders that were found after kills; the next writer removes them.
        lost: What was wrong, in words.
    """

    n: int = 0
    acknowledged: dict[int, str] = field(default_factory=dict)
    n_unacknowledged: int = 0
    n_left: int = 0
    lost: list[str] = field(default_factory=list)


def kill_writers(path: Path, branches: list[Path], *, n_kills: int, seed: int) -> Kills:
    """Start a writer, kill it at a random moment, look what is there, and again.

    Args:
        path: Of the registry, which goes on from kill to kill.
        branches: Folders that writers register from.
        n_kills: How many.
        seed: Of moments and changes.
    """
    rng, kills = random.Random(seed), Kills()
    for number in range(n_kills):
        seq_before = Registry.open(path).state.seq
        said = _one_life(path, branches, seed=rng.randrange(2**32), seconds=rng.uniform(0, LONGEST_LIFE_S))
        kills.n += 1
        fresh = {int(seq): check for seq, check in (line.split() for line in said)}
        kills.acknowledged |= fresh
        kills.lost += [f"kill {number}: {each}" for each in _wrong(path, kills, max(fresh, default=seq_before))]
    return kills


def _one_life(path: Path, branches: list[Path], *, seed: int, seconds: float) -> list[str]:
    """Lines that a writer said before it was killed, so many seconds after its first change."""
    command = [sys.executable, "-m", "benchmarks.kills_writer", str(path), str(seed), *map(str, branches)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None:
            raise RuntimeError("the writer has no output")
        first = process.stdout.readline()
        time.sleep(seconds)
        process.kill()
        rest = process.stdout.read()
    if not first:
        raise RuntimeError(f"the writer ended by itself with code {process.returncode}")
    # A line without its end was being said: whoever reads it does not count it.
    return [line for line in (first + rest).split("\n")[:-1] if line]


def _wrong(path: Path, kills: Kills, last_said: int) -> list[str]:
    """What is wrong with the registry after a kill."""
    kills.n_left += sum(1 for _ in path.rglob(".*.tmp-*"))
    try:
        registry = Registry.open(path)
    except TrunklineError as error:
        return [f"does not open: {error}"]
    entries = registry.history()
    gone = [seq for seq, check in kills.acknowledged.items() if seq >= len(entries) or entries[seq].check != check]
    wrong = [f"acknowledged change {seq} is gone" for seq in gone]
    more = registry.state.seq - last_said
    if more not in (0, 1):
        wrong.append(f"{more} changes beyond the last acknowledged one")
    kills.n_unacknowledged += more == 1
    return wrong + unreadable(registry)


def unreadable(registry: Registry) -> list[str]:
    """What of a registry cannot be read and verified: trunk, versions, folders that no version names."""
    wrong: list[str] = []
    try:
        registry.bundle().trunk()
    except TrunklineError as error:
        wrong.append(f"trunk: {error}")
    for task, present in registry.state.tasks.items():
        for version in present.versions:
            try:
                registry.bundle({task: version}).branch(task)
            except TrunklineError as error:
                wrong.append(f"{task} {version[:12]}: {error}")
    for folder in registry.path.glob("branches/*/[!.]*"):
        try:
            if read_branch(folder).digest != folder.name:
                wrong.append(f"{folder.name[:12]}: holds another branch")
        except TrunklineError as error:
            wrong.append(f"{folder.name[:12]}: half-written under a name that counts: {error}")
    return wrong


if __name__ == "__main__":
    write_without_end(Path(sys.argv[1]), [Path(each) for each in sys.argv[3:]], int(sys.argv[2]))
