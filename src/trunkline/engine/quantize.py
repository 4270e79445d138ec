"""The precision gate: what a bundle's trunk and branches may be served in, judged by what their tasks lose."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from trunkline.bundle.files import require_inside
from trunkline.bundle.manifest import MANIFEST_NAME, Manifest, ServedPrecision, TaskGate, TrunkGate, check_manifest
from trunkline.bundle.merge import locked, swap_manifest
from trunkline.bundle.served import Served, write_ranges
from trunkline.bundle.store import Bundle, StoredBranch, StoredTrunk, open_bundle
from trunkline.core.errors import BundleError, SpecError
from trunkline.core.specs import Metric, Spec, TaskSpec
from trunkline.core.types import Example
from trunkline.data.read import read_part
from trunkline.data.split import sample_indices
from trunkline.engine.backends.base import Backend
from trunkline.engine.backends.choose import choose_backend
from trunkline.engine.engine import Engine
from trunkline.engine.evaluate import check_tasks
from trunkline.engine.snapshot import Snapshot, load_branch, load_trunk
from trunkline.model.score import score_predictions

TRUNK_TEXTS = 32
"""Train rows of each task that the trunk's ranges are found on."""
BRANCH_TEXTS = 128
_CANDIDATES: Mapping[ServedPrecision, tuple[ServedPrecision, ...]] = {"bf16": ("bf16",), "int8": ("int8", "bf16")}

ItemT = TypeVar("ItemT")


class QuantizeRequest(Spec, frozen=True, kw_only=True):
    """What is tried, and what it may cost.

    Attributes:
        precision: Of the trunk; branches are tried in it too, then in wider ones.
        max_loss: Most points that a task may lose against fp32, 0 or more.
        rows: Judge on a seeded sample of so many dev rows of each task; None takes all.
    """

    precision: Literal["bf16", "int8"] = "int8"
    max_loss: float = 0.5
    rows: int | None = None

    def __post_init__(self) -> None:
        """Refuse what nothing can be judged by."""
        if not (math.isfinite(self.max_loss) and self.max_loss >= 0):
            raise SpecError(f"max_loss: {self.max_loss} points are not allowed; give 0 or more")
        if self.rows is not None and self.rows < 1:
            raise SpecError(f"rows: {self.rows} is not allowed; give 1 or more, or leave it out for all dev rows")


class QuantizedTask(Spec, frozen=True, kw_only=True):
    """What the gate found about one task.

    Attributes:
        task: Its name.
        metric: Which metric.
        n_rows: Dev rows that were judged.
        points_fp32: With trunk and branch in fp32.
        points_trunk: With the trunk in the candidate precision, and the branch in fp32.
        precision: What the branch is served in; None where the task or another one refused the trunk.
        points: With both as they are served; None where the trunk was refused.
    """

    task: str
    metric: Metric
    n_rows: int
    points_fp32: float
    points_trunk: float
    precision: ServedPrecision | None = None
    points: float | None = None


class QuantizeReport(Spec, frozen=True, kw_only=True):
    """The verdict.

    Attributes:
        path: The bundle.
        precision: What the trunk was judged in.
        trunk: The same in words: ``int8 but for ffn.down`` where a task refused int8 in all dense layers.
        max_loss: Most points that a task was allowed to lose.
        n_texts: Texts that the trunk's ranges were found on now; 0 where it has none or kept those it had.
        refused: Tasks that lose more with the trunk alone; where there are any, and the trunk itself was judged, the
            bundle stays as it was.
        tasks: What each task reached.
    """

    path: str
    precision: ServedPrecision
    trunk: str
    max_loss: float
    n_texts: int
    refused: tuple[str, ...]
    tasks: tuple[QuantizedTask, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """What a branch is served in, and what its task reaches so."""

    served: Served
    points: float


@dataclass(frozen=True, slots=True, eq=False)
class _OnTrunk:
    """What the trunk is served in, on how many texts its ranges were found, and what tasks reach on it."""

    served: Served
    n_texts: int
    points: Mapping[str, float]
    refused: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Judge:
    """Bundle and rows, read once."""

    trunk: StoredTrunk
    branches: Mapping[str, StoredBranch]
    dev: Mapping[str, list[Example]]
    train: Mapping[str, list[Example]]

    def points(self, trunk: Served, branches: Mapping[str, Served], backend: Backend) -> dict[str, float]:
        """What tasks reach when trunk and branches are served so."""
        config = self.trunk.config
        loaded = {
            task: load_branch(replace(self.branches[task], served=served), config, backend)
            for task, served in branches.items()
        }
        exits = {branch.spec.exit_layer for branch in loaded.values()}
        snapshot = Snapshot(load_trunk(replace(self.trunk, served=trunk), backend, exits=exits), loaded)
        backend.settle()
        with Engine(snapshot, backend) as engine:
            return {
                task: score_predictions(branch.spec, engine.answers(self.dev[task], task), self.dev[task])
                for task, branch in loaded.items()
            }

    def served(self, precision: ServedPrecision, task: str | None = None) -> tuple[Served, int]:
        """A candidate, of the trunk or a task's branch, and how many texts its ranges were found on."""
        if precision != "int8":
            return Served(precision), 0
        # Nothing but int8 needs it, and the torch backend serves without OpenVINO.
        from trunkline.engine.backends.observe import find_ranges

        branch = None if task is None else self.branches[task]
        texts = {task: BRANCH_TEXTS} if task is not None else dict.fromkeys(self.branches, TRUNK_TEXTS)
        rows = [
            row
            for name, count in texts.items()
            for row in self.trunk.tokenizer.encode(
                sample(self.train[name], count), max_length=self.branches[name].spec.max_length
            )
        ]
        return Served(precision, find_ranges(self.trunk, rows, branch=branch)), len(rows)


def quantize(
    path: Path,
    tasks: Sequence[TaskSpec],
    request: QuantizeRequest | None = None,
    *,
    on_step: Callable[[str], None] = lambda _: None,
) -> QuantizeReport:
    """Judge a bundle in a narrower precision, and have it served so where no task loses too much.

    With all tasks of the bundle the trunk is judged: it is accepted when every task stays within ``max_loss`` points of
    its fp32 dev metric; where int8 is refused, it is tried again without the second dense layer of each feed-forward
    part. Then each branch is tried on top, the narrowest precision first. With some of the tasks the
    trunk stays as it was accepted before, and these tasks are judged on it: that is for tasks that came later.

    Args:
        path: The bundle.
        tasks: Where the tasks' rows are, each task once: dev rows to judge by, train rows to find ranges on.
        request: What is tried; None takes the defaults.
        on_step: Told what is being done.

    Returns:
        The verdict. Nothing is written for refused tasks, and nothing at all where the trunk was judged and refused.

    Raises:
        UnknownNameError: The bundle has no such task.
        SpecError: A task file speaks of another kind of task than the branch or lacks train or dev rows; this machine
            does not compute in the precision; or tasks are missing and the trunk was not accepted in it before.
        DataError: The rows are wrong.
        BundleError: The bundle is damaged, or another writer changed it in the meantime.
    """
    request = request or QuantizeRequest()
    bundle = open_bundle(path)
    judges_trunk = _check(bundle.manifest, tasks, request)
    narrow = choose_backend("openvino")
    if request.precision == "bf16" and narrow.precision != "bf16":
        raise SpecError("precision 'bf16': this processor does not compute in it; choose int8, or another machine")
    judge = _read(bundle, tasks, request.rows)
    on_step("measuring in fp32")
    fp32 = judge.points(Served(), dict.fromkeys(judge.branches, Served()), choose_backend("openvino", precision="fp32"))
    trunk = _judge_trunk(judge, request, fp32, narrow, candidates=judges_trunk, on_step=on_step)
    accepted = not (trunk.refused and judges_trunk)
    chosen = _choose_branches(judge, request, fp32, narrow, trunk=trunk, on_step=on_step) if accepted else {}
    report = QuantizeReport(
        path=str(path),
        precision=request.precision,
        trunk=_described(trunk.served),
        max_loss=request.max_loss,
        n_texts=trunk.n_texts,
        refused=trunk.refused,
        tasks=tuple(_task(judge, task, fp32[task], trunk.points[task], chosen.get(task)) for task in fp32),
    )
    if chosen:
        _write(bundle, report, trunk.served if judges_trunk else None, chosen)
    return report


def sample(rows: Sequence[ItemT], count: int | None) -> list[ItemT]:
    """A seeded sample of rows in their order; all of them for None, or where there are no more."""
    return [rows[number] for number in sample_indices(len(rows), count)]


def _check(manifest: Manifest, tasks: Sequence[TaskSpec], request: QuantizeRequest) -> bool:
    """Refuse what could not be judged; says whether the trunk is to be judged, that is, whether every task is there."""
    check_tasks(manifest, tasks, "dev")
    check_tasks(manifest, tasks, "train")
    missing = sorted(manifest.tasks.keys() - {task.name for task in tasks})
    accepted = None if manifest.trunk.gate is None else manifest.trunk.precision
    if missing and accepted != request.precision:
        state = "was accepted in no precision yet" if accepted is None else f"was accepted in {accepted}"
        raise SpecError(
            f"precision {request.precision!r}: the trunk {state}, and is judged by every task of the bundle; give the "
            f"task files of {', '.join(missing)} too"
        )
    if not tasks:
        raise SpecError("quantize: no task was given; tasks are what precision is judged by; name task files")
    return not missing


def _judge_trunk(
    judge: _Judge,
    request: QuantizeRequest,
    fp32: Mapping[str, float],
    backend: Backend,
    *,
    candidates: bool,
    on_step: Callable[[str], None],
) -> _OnTrunk:
    """The first candidate that no task refuses, or the last one; without candidates the trunk as it is served."""
    trunk, n_texts = judge.served(request.precision) if candidates else (judge.trunk.served, 0)
    for served in _less_and_less(trunk) if candidates else (trunk,):
        on_step(f"measuring with the trunk in {_described(served)}")
        points = judge.points(served, dict.fromkeys(judge.branches, Served("fp32")), backend)
        refused = tuple(task for task in fp32 if fp32[task] - points[task] > request.max_loss)
        if not refused:
            break
    return _OnTrunk(served, n_texts, points, refused)


def _choose_branches(
    judge: _Judge,
    request: QuantizeRequest,
    fp32: Mapping[str, float],
    backend: Backend,
    *,
    trunk: _OnTrunk,
    on_step: Callable[[str], None],
) -> dict[str, _Choice]:
    """The narrowest precision in which each task that accepted the trunk keeps to its least points."""
    chosen = {task: _Choice(Served("fp32"), trunk.points[task]) for task in fp32 if task not in trunk.refused}
    least = {task: fp32[task] - request.max_loss for task in chosen}
    for precision in _CANDIDATES[request.precision]:
        waits = any(choice.served.precision == "fp32" for choice in chosen.values())
        if waits and precision in {"int8", backend.precision}:
            on_step(f"measuring with branches in {precision}")
            chosen |= _passed(judge, trunk.served, least, chosen, precision, backend)
    return chosen


def _less_and_less(trunk: Served) -> Iterator[Served]:
    """An int8 trunk, and then one whose last dense product of each layer, which loses most, is not int8."""
    yield trunk
    fewer = {name: known for name, known in trunk.ranges.items() if not name.endswith("ffn.down")}
    if fewer:
        yield replace(trunk, ranges=fewer)


def _described(trunk: Served) -> str:
    whole = trunk.precision != "int8" or any(name.endswith("ffn.down") for name in trunk.ranges)
    return f"{trunk.precision}" if whole else "int8 but for ffn.down"


def _read(bundle: Bundle, tasks: Sequence[TaskSpec], rows: int | None) -> _Judge:
    return _Judge(
        trunk=bundle.trunk(),
        branches={task.name: bundle.branch(task.name) for task in tasks},
        dev={task.name: sample(read_part(task, "dev"), rows) for task in tasks},
        train={task.name: read_part(task, "train") for task in tasks},
    )


def _passed(
    judge: _Judge,
    trunk: Served,
    least: Mapping[str, float],
    chosen: Mapping[str, _Choice],
    precision: ServedPrecision,
    backend: Backend,
) -> dict[str, _Choice]:
    """Branches, of those that are still in fp32, that reach the least points in a narrower precision."""
    waiting = [task for task, choice in chosen.items() if choice.served.precision == "fp32"]
    tried = {task: judge.served(precision, task)[0] for task in waiting}
    # A branch without dense layers of its own has nothing to gain from int8.
    tried = {task: served for task, served in tried.items() if precision != "int8" or served.ranges}
    points = judge.points(trunk, tried, backend) if tried else {}
    return {task: _Choice(tried[task], points[task]) for task in tried if points[task] >= least[task]}


def _task(judge: _Judge, task: str, fp32: float, on_trunk: float, choice: _Choice | None) -> QuantizedTask:
    return QuantizedTask(
        task=task,
        metric=judge.branches[task].spec.metric,
        n_rows=len(judge.dev[task]),
        points_fp32=fp32,
        points_trunk=on_trunk,
        precision=None if choice is None else choice.served.precision,
        points=None if choice is None else choice.points,
    )


def _write(bundle: Bundle, report: QuantizeReport, trunk: Served | None, chosen: Mapping[str, _Choice]) -> None:
    """Keep the verdict in the manifest; without ``trunk`` that part stays as it is."""
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    with locked(bundle.path) as current:
        manifest = current.manifest
        _require_unchanged(bundle, manifest)
        if trunk is not None:
            gate = TrunkGate(
                made_at=made_at, chain=manifest.trunk.chain[-1], max_loss=report.max_loss, n_texts=report.n_texts
            )
            entry = msgspec.structs.replace(manifest.trunk, gate=gate, **_served_fields(bundle.path, "trunk", trunk))
            manifest = msgspec.structs.replace(manifest, trunk=entry)
        tasks = dict(manifest.tasks)
        for each in report.tasks:
            if each.task in chosen and each.points is not None:
                gate_of_task = TaskGate(
                    made_at=made_at,
                    max_loss=report.max_loss,
                    n_rows=each.n_rows,
                    points_fp32=each.points_fp32,
                    points_trunk=each.points_trunk,
                    points=each.points,
                )
                fields = _served_fields(bundle.path, f"branches/{each.task}", chosen[each.task].served)
                tasks[each.task] = msgspec.structs.replace(tasks[each.task], gate=gate_of_task, **fields)
        manifest = msgspec.structs.replace(manifest, tasks=tasks)
        check_manifest(manifest, f"{bundle.path / MANIFEST_NAME}")
        swap_manifest(bundle.path, manifest)


def _served_fields(root: Path, folder: str, served: Served) -> dict[str, str | None]:
    if served.precision == "int8":
        require_inside(root, folder)
        return {"precision": "int8", "ranges": write_ranges(root, folder, served.ranges)}
    return {"precision": served.precision, "ranges": None}


def _require_unchanged(bundle: Bundle, manifest: Manifest) -> None:
    if manifest != bundle.manifest:
        raise BundleError(
            f"bundle {str(bundle.path)!r}: another writer changed it while its precision was judged; the verdict is of "
            "what was there before, and nothing was written; quantize it again"
        )
