"""What is served: which version of each task answers whom, and how that changes while requests come in.

A change is made in this order: files are verified and written, programs are loaded, compared with their golden inputs
and warmed, the history gets its entry, one reference is replaced. Whatever fails, the state before goes on; a kill
leaves the state that the history tells.
"""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trunkline.bundle.registry import Registry
from trunkline.bundle.store import Bundle
from trunkline.bundle.versions import RegistryState, TaskState
from trunkline.core.errors import DigestMismatchError
from trunkline.engine.encoding import known_task
from trunkline.engine.engine import Engine
from trunkline.engine.measure import branch_seconds
from trunkline.engine.pace import Pace
from trunkline.engine.snapshot import Snapshot
from trunkline.server.aside import Aside
from trunkline.server.refusals import refuse
from trunkline.server.settings import Settings
from trunkline.wire import CanaryInfo, Change, HistoryEntry, TaskInfo, VersionInfo, VersionState

_PARTS = 10_000


@dataclass(frozen=True, slots=True)
class Routes:
    """Who answers at one moment.

    Attributes:
        snapshot: What most requests get.
        canaries: Task to a version and the percentage of requests that get it.
    """

    snapshot: Snapshot
    canaries: Mapping[str, CanaryInfo] = field(default_factory=dict)
    _variants: dict[frozenset[str], Snapshot] = field(default_factory=dict)

    def snapshot_for(self, key: str) -> Snapshot:
        """The versions that a request gets: the same for the same key, whatever else is asked."""
        if not self.canaries:
            return self.snapshot
        chosen = frozenset(task for task, canary in self.canaries.items() if _part(task, key) < canary.percent)
        if not chosen:
            return self.snapshot
        if chosen not in self._variants:
            versions = {task: self.canaries[task].version for task in chosen}
            self._variants[chosen] = self.snapshot.choosing(versions)
        return self._variants[chosen]


class Deployment:
    """An engine, and a registry where tasks are to come and go; a bundle alone stays as it is.

    Attributes:
        aside: Where changes are prepared and made.
        routes: Who answers now.
    """

    def __init__(self, engine: Engine, source: Bundle | Registry, settings: Settings) -> None:
        """Take what was opened, and load what is kept ready.

        Args:
            engine: With all active versions of the source.
            source: A bundle, or the registry that decides.
            settings: Of the server.

        Raises:
            BundleError: A version that is to answer cannot be used.
        """
        self._engine = engine
        self._registry = source if isinstance(source, Registry) else None
        self._settings = settings
        self.aside = Aside()
        self._lock = threading.Lock()
        self.routes = Routes(engine.snapshot)
        self._followed = -1
        if self._registry is not None:
            self._follow(self._registry.state)

    @property
    def is_registry(self) -> bool:
        """Whether tasks can change."""
        return self._registry is not None

    def close(self) -> None:
        """Finish the change that runs and take no other."""
        self.aside.close()

    def task(self, name: str) -> TaskInfo:
        """One task as it is served.

        Raises:
            UnknownNameError: There is no such task; the message names the nearest.
        """
        routes = self.routes
        branch = known_task(name, routes.snapshot.branches)
        spec = branch.spec
        return TaskInfo(
            task=name,
            kind=spec.kind,
            input=spec.input,
            labels=spec.labels,
            label_schema_version=spec.label_schema_version,
            metric=spec.metric,
            dev_metric=spec.provenance.dev_metric,
            max_length=spec.max_length,
            exit_layer=spec.exit_layer,
            own_layers=spec.own_layers,
            version=branch.digest,
            precision=branch.form.partition("/")[2].partition(" ")[0] or self._engine.backend.precision,
            canary=routes.canaries.get(name),
        )

    def tasks(self) -> list[TaskInfo]:
        """All tasks, in the order of the bundle."""
        return [self.task(name) for name in self.routes.snapshot.branches]

    def versions(self, task: str) -> list[VersionInfo]:
        """All versions of a task, oldest first.

        Raises:
            UnknownNameError: There is no such task.
            ServerError: 409: a bundle is served, which has no versions.
        """
        state = known_task(task, self._changing().state.tasks)
        ready = self.routes.snapshot.beside
        return [
            VersionInfo(
                version=digest,
                state=_state_of(digest, state, ready=digest in ready),
                registered_at=version.at,
                registered_by=version.who,
                label_schema_version=version.entry.label_schema_version,
                dev_metric=version.entry.dev_metric,
                exit_layer=version.entry.exit_layer,
                own_layers=version.entry.own_layers,
                rollback=digest == state.rollback_target,
            )
            for digest, version in state.versions.items()
        ]

    def history(self, task: str | None = None) -> list[HistoryEntry]:
        """Every change, oldest first; of one task where it is named."""
        return [
            HistoryEntry(
                seq=entry.seq,
                at=entry.at,
                who=entry.who,
                action=entry.action,
                task=entry.task,
                version=entry.version,
                percent=entry.percent,
                why=entry.why,
            )
            for entry in self._changing().history(task)
        ]

    async def register(self, task: str, folder: Path, *, who: str, why: str, expected: str | None = None) -> Change:
        """Take a branch in, verified and loaded, without letting it answer; errors as of `Registry.register`.

        Args:
            task: Whose version it is to be.
            folder: Holds the four files of a branch.
            who: Asks for it.
            why: For the history.
            expected: The digest, or its first digits, that the branch must have; None takes any.
        """

        def change(registry: Registry) -> str:
            pace = self._engine.pace()

            def check(bundle: Bundle) -> None:
                (found,) = bundle.manifest.tasks
                if found != task:
                    raise refuse(
                        422, "wrong_task", f"branch: is of task {found!r}; it was sent to {task!r}; send it to its own"
                    )
                digest = bundle.manifest.tasks[task].branch
                if expected is not None and not digest.startswith(expected):
                    raise DigestMismatchError(
                        f"branch of task {task!r}: its files have digest {digest}; {expected} was announced; they were "
                        "damaged on their way: send them again"
                    )
                snapshot = self._load(bundle, pace)
                self._check_speed(snapshot, digest, pace)

            return registry.register(folder, who=who, why=why, check=check, before_each=pace)

        return await self._change(task, change)

    async def activate(self, task: str, version: str, *, who: str, why: str) -> Change:
        """Let a version answer; errors as of `Registry.activate`."""

        def change(registry: Registry) -> None:
            self._load(registry.bundle({task: version}))
            registry.activate(task, version, who=who, why=why)

        return await self._change(task, change)

    async def canary(self, task: str, version: str, percent: float, *, who: str, why: str) -> Change:
        """Let a version answer a part of the requests; errors as of `Registry.canary`."""

        def change(registry: Registry) -> None:
            self._load(registry.bundle({task: version}))
            registry.canary(task, version, percent, who=who, why=why)

        return await self._change(task, change)

    async def rollback(self, task: str, *, who: str, why: str) -> Change:
        """Let the version answer that answered before; errors as of `Registry.rollback`."""

        def change(registry: Registry) -> None:
            target = known_task(task, registry.state.tasks).rollback_target
            if target is not None:
                self._load(registry.bundle({task: target}))
            registry.rollback(task, who=who, why=why)

        return await self._change(task, change)

    async def resume(self, task: str, *, who: str, why: str) -> Change:
        """Let a task that is out of service answer again; one that answers stays as it is.

        Its version is the one that was active last, of a task that never answered the newest; errors as of
        `Registry.activate`.
        """

        def change(registry: Registry) -> None:
            state = known_task(task, registry.state.tasks)
            if state.active is not None:
                return
            version = _next_version(state)
            self._load(registry.bundle({task: version}))
            if state.former:
                registry.rollback(task, who=who, why=why)
            else:
                registry.activate(task, version, who=who, why=why)

        return await self._change(task, change)

    def resting(self) -> dict[str, str]:
        """Tasks that are registered and do not answer, with the version that `resume` would take."""
        tasks = self._registry.state.tasks if self._registry is not None else {}
        return {task: _next_version(state) for task, state in tasks.items() if state.active is None}

    async def remove(self, task: str, version: str | None, *, who: str, why: str) -> Change:
        """Take a task out of service, or drop a version; errors as of `Registry.remove`."""
        return await self._change(task, lambda registry: registry.remove(task, version, who=who, why=why))

    async def follow(self) -> bool:
        """Take over what somebody else wrote into the registry; whether there was anything.

        Raises:
            BundleError: What it names cannot be used; the state before goes on.
        """
        registry = self._registry
        if registry is None:
            return False

        def refresh() -> bool:
            with self._lock:
                registry.refresh()
                behind = registry.state.seq != self._followed
                if behind:  # Also where an earlier try failed.
                    self._follow(registry.state)
                return behind

        return await self.aside.change(refresh)

    def _changing(self) -> Registry:
        if self._registry is None:
            raise refuse(
                409,
                "not_a_registry",
                "server: serves a bundle, whose tasks stay as they are; make a registry of it with "
                "`trunkline registry create`, and serve that",
            )
        return self._registry

    async def _change(self, task: str, change: Callable[[Registry], str | None]) -> Change:
        """Make a change, which gives the version that it registered, and take it over."""
        registry = self._changing()

        def run() -> Change:
            with self._lock:
                registered = change(registry)
                self._follow(registry.state)
            active = registry.state.tasks[task].active if task in registry.state.tasks else None
            return Change(task=task, version=registered or active, seq=registry.state.seq)

        return await self.aside.change(run)

    def _load(self, bundle: Bundle, pace: Pace | None = None) -> Snapshot:
        """Have a version ready, verified and warm, before anything says that it answers.

        Args:
            bundle: A state of the registry with that version alone.
            pace: See `Engine.prepare`.
        """
        registry = self._changing()
        beside = [bundle, *self._beside(registry.state)]
        snapshot = self._engine.prepare(registry.bundle(), beside=beside, pace=pace)
        self._engine.switch(snapshot)
        return snapshot

    def _check_speed(self, snapshot: Snapshot, version: str, pace: Pace) -> None:
        branch, limit_ms = snapshot.beside[version], self._settings.max_branch_ms
        trunk, backend = snapshot.trunk.twin(), self._engine.backend
        took_ms = 1e3 * branch_seconds(branch, trunk, backend, enough_s=limit_ms / 1e3, before_each=pace)
        if took_ms > limit_ms:
            task = branch.spec.task
            raise refuse(
                422,
                "slow_branch",
                f"branch of task {task!r}: takes {took_ms:.0f} ms for one text; {limit_ms:.0f} ms "
                "are allowed; use fewer layers, or raise --max-branch-ms",
            )

    def _follow(self, state: RegistryState) -> None:
        """Make the engine what the registry says."""
        registry = self._changing()
        snapshot = self._engine.prepare(registry.bundle(), beside=self._beside(state))
        self._engine.switch(snapshot)
        canaries = {
            task: CanaryInfo(version=of_task.canary.version, percent=of_task.canary.percent)
            for task, of_task in state.tasks.items()
            if of_task.canary is not None
        }
        self.routes = Routes(snapshot, canaries)
        self._followed = state.seq

    def _beside(self, state: RegistryState) -> list[Bundle]:
        """Versions that are kept loaded: canaries, and of each task the last ones that anything happened to.

        After the start nothing is loaded only to be ready: what was dropped to make room does not come back by itself.
        """
        registry = self._changing()
        recent: dict[str, dict[str, None]] = {}
        for entry in reversed(registry.history()):
            if entry.task is not None and entry.version is not None:
                recent.setdefault(entry.task, {}).setdefault(entry.version)
        is_start, present = self._followed < 0, self._engine.snapshot
        loaded = {*present.beside, *(branch.digest for branch in present.branches.values())}
        chosen: list[Bundle] = []
        for task, of_task in state.tasks.items():
            canary = [of_task.canary.version] if of_task.canary is not None else []
            ready = [
                each
                for each in recent[task]
                if each in of_task.versions and each not in (of_task.active, *canary) and (is_start or each in loaded)
            ][: self._settings.ready_versions]
            chosen += [registry.bundle({task: version}) for version in (*canary, *ready)]
        return chosen


def _part(task: str, key: str) -> float:
    """Where a key lies between 0 and 100 for a task; independent from task to task."""
    digest = hashlib.blake2b(f"{task}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (100 * _PARTS) / _PARTS


def _next_version(state: TaskState) -> str:
    return state.rollback_target or list(state.versions)[-1]


def _state_of(digest: str, state: TaskState, *, ready: bool) -> VersionState:
    if digest == state.active:
        return "active"
    if state.canary is not None and digest == state.canary.version:
        return "canary"
    return "ready" if ready else "stored"


async def keep_following(deployment: Deployment, told: Callable[[Exception], None], *, seconds: float) -> None:
    """Look again and again whether the registry was changed by somebody else; runs until it is cancelled."""
    while True:
        await asyncio.sleep(seconds)
        started = time.monotonic()
        try:
            await deployment.follow()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next look may find it mended
            told(error)
            await asyncio.sleep(min(60.0, 10 * (time.monotonic() - started)))
