"""Changes of a served registry at a steady rate: new versions uploaded; activate, canary, rollback among ready ones."""

import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np

from benchmarks.engine_swaps import write_shifted
from benchmarks.uploads import TAR, branch_files_of, tar_of
from trunkline.bundle.store import open_bundle

WHY = {"why": "a change under load"}
_CHUNK = 1 << 20
SMALLEST_SHIFT, LARGEST_SHIFT = 0.002, 0.02
"""A new version has other biases in its head, by so much: its probabilities differ by a fourth of that at most."""


@dataclass(frozen=True, slots=True)
class Made:
    """One change.

    Attributes:
        kind: upload, activate, canary or rollback.
        began: Seconds since the epoch.
        done: When it was acknowledged.
        seq: Of its entry in the history; None where it failed.
        failure: What was answered then.
    """

    kind: str
    began: float
    done: float
    seq: int | None
    failure: str = ""


@dataclass(slots=True)
class Changer:
    """Makes changes; the tasks take turns. It can be sent to another process and back.

    Attributes:
        url: Of the server whose versions change.
        headers: That name an administrator.
        tasks: Whose versions change, in turn.
        rng: Chooses.
        made: Every change.
    """

    url: str
    headers: dict[str, str]
    tasks: list[str]
    rng: random.Random
    made: list[Made] = field(default_factory=list)
    _n_turns: int = 0

    def run(self, kinds: list[str], archives: list[Path], seconds: float) -> Self:
        """Make changes, equally far apart; one that is late begins at once.

        Args:
            kinds: Of changes, in order.
            archives: Of branches, as `make_versions` gives them, one for each upload.
            seconds: In all.
        """
        began, left = time.time(), iter(archives)
        with httpx.Client(base_url=self.url, headers=self.headers, timeout=120) as client:
            for number, kind in enumerate(kinds):
                time.sleep(max(0.0, began + seconds * number / len(kinds) - time.time()))
                self.made.append(self._upload(client, next(left)) if kind == "upload" else self._change(client, kind))
        return self

    def _upload(self, client: httpx.Client, archive: Path) -> Made:
        task, headers = archive.name.partition("-")[0], {**TAR, "Content-Length": str(archive.stat().st_size)}
        at = f"/v1/tasks/{task}/versions"
        return _made("upload", client, "POST", at, params=WHY, content=_chunks(archive), headers=headers)

    def _change(self, client: httpx.Client, wanted: str) -> Made:
        """One that is possible: the wanted kind where the task has a version for it."""
        task = self.tasks[self._n_turns % len(self.tasks)]
        self._n_turns += 1
        versions = client.get(f"/v1/tasks/{task}/versions").json()["versions"]
        ready = [each["version"] for each in versions if each["state"] == "ready"]
        canaries = [each["version"] for each in versions if each["state"] == "canary"]
        at = f"/v1/tasks/{task}"
        if wanted == "rollback":
            made = _made("rollback", client, "POST", f"{at}/rollback", json=WHY)
            if not made.failure.startswith("409"):  # No version was active before: another change is made.
                return made
        if wanted == "canary" or (not ready and canaries):
            version = self.rng.choice(ready or canaries)
            percent = self.rng.choice((5, 50)) if ready else 0
            return _made("canary", client, "POST", f"{at}/canary", json={"version": version, "percent": percent, **WHY})
        return _made("activate", client, "POST", f"{at}/activate", json={"version": self.rng.choice(ready), **WHY})


def shuffled_kinds(n: int, n_uploads: int, rng: random.Random) -> list[str]:
    """Kinds of changes in random order: uploads, and of the rest as many of one kind as of another."""
    others = [("activate", "canary", "rollback")[number % 3] for number in range(n - n_uploads)]
    kinds = ["upload"] * n_uploads + others
    rng.shuffle(kinds)
    return kinds


def make_versions(bundle_path: Path, folder: Path, n: int) -> list[Path]:
    """Archives of ``n`` branches that differ from those of a bundle, named by their tasks, which take turns."""
    bundle = open_bundle(bundle_path)
    tasks, archives, written = list(bundle.manifest.tasks), [], folder / "branch"
    for number, amount in enumerate(np.linspace(SMALLEST_SHIFT, LARGEST_SHIFT, n)):
        task = tasks[number % len(tasks)]
        write_shifted(written, bundle.branch(task), float(amount))
        archives.append(folder / f"{task}-{number}.tar")
        archives[-1].write_bytes(tar_of(branch_files_of(written)))
        shutil.rmtree(written)
    return archives


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _made(kind: str, client: httpx.Client, method: str, path: str, **content: Any) -> Made:
    began = time.time()
    answer = client.request(method, path, **content)
    if answer.is_success:
        return Made(kind, began, time.time(), answer.json()["seq"])
    return Made(kind, began, time.time(), None, f"{answer.status_code}: {answer.text[:300]}")
