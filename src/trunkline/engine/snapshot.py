"""What answers at one moment: a trunk in segments between the exits in use, and one loaded branch for each task."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import Any

from trunkline.bundle.served import form_of, form_of_trunk
from trunkline.bundle.store import Bundle, StoredBranch, StoredTrunk
from trunkline.core.errors import MissingBranchError, nearest_hint
from trunkline.core.specs import BranchSpec
from trunkline.data.tokenize import Tokenizer
from trunkline.engine.backends.base import Backend, BranchPrograms, Program
from trunkline.engine.masks import Masks
from trunkline.model.config import EncoderConfig


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Some layers of the trunk as one program.

    Attributes:
        start: The first layer.
        stop: The exit that lies above the last one.
        digest: The trunk's chain value at ``stop``.
        run: States and bias of lines to states.
    """

    start: int
    stop: int
    digest: str
    run: Program


@dataclass(frozen=True, slots=True, eq=False)
class LoadedTrunk:
    """A trunk, ready to run.

    Attributes:
        config: Facts of the backbone.
        tokenizer: The backbone's.
        chain: The chain values up to its depth.
        embed: Token ids, type ids and positions to states.
        segments: From the embeddings to the deepest exit in use; none where every branch reads the embeddings.
        masks: Makes attention biases.
        form: As of `trunkline.bundle.served.form_of_trunk`; empty where the backend does not follow the gate.
    """

    config: EncoderConfig
    tokenizer: Tokenizer
    chain: tuple[str, ...]
    embed: Program
    segments: tuple[Segment, ...]
    masks: Masks
    form: str = ""

    def twin(self) -> "LoadedTrunk":
        """The same for another thread; weights are shared."""
        segments = tuple(replace(segment, run=segment.run.twin()) for segment in self.segments)
        return replace(self, embed=self.embed.twin(), segments=segments)

    def without_layers(self) -> "LoadedTrunk":
        """The same shapes at every exit, whatever the values: for warming branches on a trunk that is warm."""
        return replace(self, segments=tuple(replace(segment, run=_Same()) for segment in self.segments))


class _Same:
    """A program that gives back the states it gets."""

    def __call__(self, *inputs: Any) -> Any:
        return inputs[0]

    def twin(self) -> "_Same":
        return self


@dataclass(frozen=True, slots=True, eq=False)
class LoadedBranch:
    """A task's branch, ready to run; two versions of a task are two of these.

    Attributes:
        spec: What it is.
        digest: Of its files.
        programs: Runs it.
        form: As of `trunkline.bundle.served.form_of`; empty where the backend does not follow the gate.
    """

    spec: BranchSpec
    digest: str
    programs: BranchPrograms
    form: str = ""

    @property
    def cost_order(self) -> tuple[int, bool]:
        """Branches of one exit run in this order: what costs least answers first."""
        return self.spec.own_layers, self.programs.reads != "first"


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Trunk and branches that fit together; never changed, only replaced.

    Attributes:
        trunk: The trunk.
        branches: Task name to its branch.
        beside: Branch digest to further versions of tasks, ready on the same trunk for whoever asks for them.
    """

    trunk: LoadedTrunk
    branches: Mapping[str, LoadedBranch]
    beside: Mapping[str, LoadedBranch] = field(default_factory=dict)

    def choosing(self, versions: Mapping[str, str]) -> "Snapshot":
        """The same trunk with other versions of some tasks; rows asked of both run together.

        Args:
            versions: Task name to the digest of a branch that is loaded.

        Raises:
            MissingBranchError: A version is not loaded; the message names the nearest.
        """
        chosen = {task: self._version(task, digest) for task, digest in versions.items()}
        return replace(self, branches={**self.branches, **chosen})

    def _version(self, task: str, digest: str) -> LoadedBranch:
        loaded = (*self.branches.values(), *self.beside.values())
        of_task = {branch.digest: branch for branch in loaded if branch.spec.task == task}
        if digest not in of_task:
            raise MissingBranchError(
                f"task {task!r}: version {digest!r} is not loaded; {nearest_hint(digest, of_task)}; activate it first"
            )
        return of_task[digest]


def load_snapshot(
    bundle: Bundle,
    backend: Backend,
    *,
    tasks: Iterable[str] | None = None,
    before: Snapshot | None = None,
    beside: Iterable[Bundle] = (),
    before_each: Callable[[], None] = lambda: None,
) -> Snapshot:
    """Read, verify and compile a bundle, or some of its tasks.

    Args:
        bundle: Where trunk and branches lie.
        backend: Compiles them.
        tasks: Which branches; None loads all. Others are not read, and the trunk only as deep as these need it.
        before: What this one will replace: segments and branches that stay the same are shared with it, not loaded
            again.
        beside: States of the same bundle whose branches are loaded as well (`Snapshot.beside`).
        before_each: Is called before a branch is read and before it is compiled, and may let others go first.

    Raises:
        BundleError: A file is damaged, missing or does not fit (see `trunkline.bundle.store`).
    """
    names = list(bundle.manifest.tasks if tasks is None else tasks)
    kept = (*before.branches.values(), *before.beside.values()) if before else ()
    known = {(branch.digest, branch.form): branch for branch in kept}
    config = bundle.config()

    def loaded(state: Bundle, task: str) -> LoadedBranch:
        entry = state.manifest.tasks.get(task)
        form = form_of(state.manifest, task) if entry is not None and backend.as_gated else ""
        present = known.get((entry.branch if entry is not None else "", form))
        if present is not None:
            return present
        before_each()
        stored = state.branch(task)  # One at a time: these weights are let go before the next are read.
        before_each()
        return load_branch(stored, config, backend, form=form)

    branches = {task: loaded(bundle, task) for task in names}
    further = [loaded(state, task) for state in beside for task in state.manifest.tasks]
    exits = {branch.spec.exit_layer for branch in (*branches.values(), *further)}
    trunk = _trunk(bundle, backend, exits, before.trunk if before else None)
    return Snapshot(trunk, branches, {branch.digest: branch for branch in further})


def load_branch(branch: StoredBranch, config: EncoderConfig, backend: Backend, *, form: str = "") -> LoadedBranch:
    """Compile a branch that was read and verified.

    Args:
        branch: The branch.
        config: Facts of the backbone.
        backend: Compiles it.
        form: As of `trunkline.bundle.served.form_of`.
    """
    return LoadedBranch(branch.spec, branch.digest, backend.branch(branch, config), form)


def load_trunk(stored: StoredTrunk, backend: Backend, *, exits: Iterable[int], form: str = "") -> LoadedTrunk:
    """Compile a trunk up to the deepest exit, in segments between the exits.

    Args:
        stored: A trunk that was read and verified.
        backend: Compiles it.
        exits: After how many layers branches read.
        form: As of `trunkline.bundle.served.form_of_trunk`.
    """
    return LoadedTrunk(
        config=stored.config,
        tokenizer=stored.tokenizer,
        chain=stored.chain,
        embed=backend.embeddings(stored),
        segments=tuple(_segment(stored, backend, ends) for ends in pairwise(sorted({0, *exits}))),
        masks=Masks(stored.tensors.get("shared.relative_bias.weight"), backend.encode),
        form=form,
    )


def _trunk(bundle: Bundle, backend: Backend, exits: set[int], before: LoadedTrunk | None) -> LoadedTrunk:
    chain, form = bundle.manifest.trunk.chain, form_of_trunk(bundle.manifest) if backend.as_gated else ""
    if before is None or (before.chain[0], before.form) != (chain[0], form):
        return load_trunk(bundle.trunk(), backend, exits=exits, form=form)
    # Boundaries that are no longer needed stay: splitting and joining would load layers again.
    depth = max(exits, default=0)
    ends = {segment.stop for segment in before.segments if segment.stop <= depth}
    kept = {(segment.start, segment.digest): segment for segment in before.segments}
    wanted = [(start, stop) for start, stop in pairwise(sorted({0, *exits, *ends}))]
    stored = cache(bundle.trunk)
    segments = tuple(
        kept.get((start, chain[stop])) or _segment(stored(), backend, (start, stop)) for start, stop in wanted
    )
    if segments == before.segments and chain == before.chain:
        return before  # Rows of requests from before and after a swap may then run together.
    return LoadedTrunk(before.config, before.tokenizer, chain, before.embed, segments, before.masks, form)


def _segment(stored: StoredTrunk, backend: Backend, ends: tuple[int, int]) -> Segment:
    start, stop = ends
    return Segment(start, stop, stored.chain[stop], backend.layers(stored, range(start, stop)))
