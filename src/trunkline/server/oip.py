"""The Open Inference Protocol, version 2, whatever it comes over: tasks as models, texts and answers as tensors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import trunkline
from trunkline.core.errors import DataError, MissingBranchError, SpecError, UnknownNameError, nearest_hint
from trunkline.engine.encoding import known_task
from trunkline.engine.snapshot import LoadedBranch, Snapshot
from trunkline.server.analyze import Question
from trunkline.server.oip_tensors import (
    LONGEST_NAME,
    Given,
    Tensor,
    read_examples,
    values_of,
    wanted_outputs,
)
from trunkline.server.operation import Service
from trunkline.server.refusals import refuse

NAME, PLATFORM = "trunkline", "trunkline"
VERSION = trunkline.__version__
EXTENSIONS = ("binary_tensor_data", "model_repository", "parameters")
LOAD_REASON, UNLOAD_REASON = "loaded over the model repository", "unloaded over the model repository"

_SHORTEST_VERSION = 8
_LONGEST_KEY = 256
_LONGEST_WAIT_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Inference:
    """One call for answers.

    Attributes:
        task: The model.
        version: Digest of a version or its first digits; empty for the one that answers.
        inputs: Tensors.
        outputs: Names of the tensors that are wanted, with what is said about each; none for all.
        parameters: Of the request.
    """

    task: str
    version: str
    inputs: Sequence[Given]
    outputs: Sequence[tuple[str, Mapping[str, Any]]]
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks, and when.

    Attributes:
        caller: Name of the key.
        request_id: Decides between versions where no key does.
        arrived: On the engine's clock.
        within_ms: The client waits no longer than this; None where it did not say.
    """

    caller: str
    request_id: str
    arrived: float
    within_ms: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Inferred:
    """Answers to one call: in the order asked, of the version that answered."""

    task: str
    version: str
    outputs: Sequence[Tensor]


def find_task(service: Service, task: str, version: str, key: str = "") -> tuple[Snapshot, LoadedBranch]:
    """Who answers.

    Args:
        service: What is served.
        task: Name of a task.
        version: Digest of a version that is loaded, or its first eight digits or more; empty for whichever answers.
        key: Decides between the active version and a canary.

    Raises:
        UnknownNameError: The task is not served.
        MissingBranchError: The version is not loaded.
        SpecError: It is no version, or several begin so.
    """
    routes = service.deployment.routes
    known_task(_short(task), routes.snapshot.branches)
    if not version:
        snapshot = routes.snapshot_for(key)
        return snapshot, snapshot.branches[task]
    branch = _find_version(routes.snapshot, task, version[:LONGEST_NAME])
    return routes.snapshot.choosing({task: branch.digest}), branch


def versions_of(service: Service, task: str) -> list[str]:
    """Versions of a task that can be asked; the active one first."""
    snapshot = service.deployment.routes.snapshot
    return [branch.digest for branch in _loaded(snapshot, task)]


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of the repository's index."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str = ""


def index(service: Service, *, ready: bool) -> list[Listed]:
    """Which tasks there are.

    Args:
        service: What is served.
        ready: Whether those that do not answer are left out.
    """
    found = [Listed(task.task, task.version, "READY") for task in service.deployment.tasks()]
    if ready:
        return found
    resting = service.deployment.resting().items()
    return [*found, *(Listed(task, version, "UNAVAILABLE", "out of service") for task, version in resting)]


async def load(service: Service, task: str, parameters: Iterable[str], *, who: str, request_id: str) -> None:
    """Let a task answer again; errors as of `Deployment.resume`.

    Raises:
        ServerError: 400: the call brings a model of its own.
    """
    named = sorted(parameters)
    if named:
        raise refuse(
            400, "invalid_request", f"parameter {named[0][:LONGEST_NAME]!r}: is given to load; none is allowed; "
            "register versions with POST /v1/tasks/TASK/versions",
        )  # fmt: skip
    change = await service.deployment.resume(_short(task), who=who, why=LOAD_REASON)
    service.record("activate", change, who=who, request_id=request_id)


async def unload(service: Service, task: str, *, who: str, request_id: str) -> None:
    """Take a task out of service; errors as of `Deployment.remove`."""
    change = await service.deployment.remove(_short(task), None, who=who, why=UNLOAD_REASON)
    service.record("remove", change, who=who, request_id=request_id)


async def infer(service: Service, asked: Inference, asking: Asking) -> Inferred:
    """Answer; errors as of `Analyzer.all_answers`.

    Raises:
        UnknownNameError: The task is not served.
        MissingBranchError: The version is not loaded.
        DataError: Inputs, outputs or parameters are not what the task takes and gives.
        ServerError: 413: there are more texts than allowed.
    """
    key = _parameter(asked.parameters, "key", str) or asking.request_id
    if len(key) > _LONGEST_KEY:
        raise DataError(f"parameter 'key': has {len(key)} characters; {_LONGEST_KEY} are allowed; send a shorter one")
    snapshot, branch = find_task(service, asked.task, asked.version, key)
    forms = wanted_outputs(branch.spec, asked.outputs)
    question = Question(
        examples=read_examples(branch.spec, asked.inputs, service.settings.limits.texts),
        tasks=(asked.task,),
        caller=asking.caller,
        arrived=asking.arrived,
        probabilities=any(form.name == "probabilities" for form in forms),
        truncate=bool(_parameter(asked.parameters, "truncate", bool)),
        deadline_ms=_deadline_ms(asked.parameters, asking.within_ms),
    )
    answers = sorted(await service.analyzer.all_answers(question, snapshot), key=lambda answer: answer.index)
    return Inferred(asked.task, branch.digest, [Tensor(form, values_of(form, answers)) for form in forms])


def _short(task: str) -> str:
    """A name that the nearest may be looked for to."""
    if len(task) > LONGEST_NAME:
        raise UnknownNameError(
            f"task {task[:LONGEST_NAME]!r}…: has {len(task)} characters; up to {LONGEST_NAME} are allowed; check "
            "the name"
        )
    return task


def _loaded(snapshot: Snapshot, task: str) -> list[LoadedBranch]:
    beside = (branch for branch in snapshot.beside.values() if branch.spec.task == task)
    unique = {branch.digest: branch for branch in (snapshot.branches[task], *beside)}
    return list(unique.values())


def _find_version(snapshot: Snapshot, task: str, version: str) -> LoadedBranch:
    loaded = _loaded(snapshot, task)
    found = [branch for branch in loaded if branch.digest.startswith(version)]
    if len(found) == 1 and len(version) >= _SHORTEST_VERSION:
        return found[0]
    if found:
        raise SpecError(
            f"task {task!r}: version {version!r} names {len(found)} by fewer digits than it should; give "
            f"{_SHORTEST_VERSION} or more"
        )
    hint = nearest_hint(version, (branch.digest for branch in loaded))
    raise MissingBranchError(f"task {task!r}: version {version!r} is not loaded; {hint}; or leave it out")


def _parameter(parameters: Mapping[str, Any], name: str, kind: type) -> Any:
    value = parameters.get(name)
    if value is None or type(value) is kind:
        return value
    raise DataError(f"parameter {name!r}: is of type {type(value).__name__}; {kind.__name__} is allowed; send that")


def _deadline_ms(parameters: Mapping[str, Any], within_ms: float | None) -> float | None:
    timeout_us = _parameter(parameters, "timeout", int) or 0  # 0 stands for none in the protocol.
    if not 0 <= timeout_us <= _LONGEST_WAIT_US:
        raise DataError(
            f"parameter 'timeout': lies outside 0 (none) to {_LONGEST_WAIT_US} microseconds; choose a number between"
        )
    given = [each for each in (timeout_us / 1e3 or None, within_ms) if each is not None]
    return min((*given, _LONGEST_WAIT_US / 1e3)) if given else None
