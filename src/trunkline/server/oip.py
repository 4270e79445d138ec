"""The Open Inference Protocol, version 2, whatever it comes over: tasks as models, texts and answers as tensors.

Everything a client says about sizes is compared with what is there before anything is cut out, decoded or reserved.
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

import trunkline
from trunkline.core.errors import DataError, MissingBranchError, SpecError, UnknownNameError, nearest_hint
from trunkline.core.specs import BranchSpec
from trunkline.core.types import Example
from trunkline.engine.encoding import known_task
from trunkline.engine.snapshot import LoadedBranch, Snapshot
from trunkline.server.analyze import Question
from trunkline.server.operation import Service
from trunkline.server.refusals import refuse
from trunkline.wire import Answer

NAME, PLATFORM = "trunkline", "trunkline"
VERSION = trunkline.__version__
EXTENSIONS = ("binary_tensor_data", "model_repository", "parameters")
LOAD_REASON, UNLOAD_REASON = "loaded over the model repository", "unloaded over the model repository"

Datatype: TypeAlias = Literal["BYTES", "FP32"]
_LENGTH = struct.Struct("<I")
_ANY = -1
_SHORTEST_VERSION = 8
_LONGEST_NAME = 64
"""Of tasks, inputs and outputs; what is longer is cut before it is told or the nearest is looked for."""
_LONGEST_KEY = 256
_LONGEST_WAIT_US = 3_600_000_000
_SHARED_MEMORY = "shared_memory_region"


@dataclass(frozen=True, slots=True)
class TensorForm:
    """What a tensor of a task looks like; sizes of -1 are free."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Given:
    """An input as a client sent it: nothing of it is checked.

    Attributes:
        name: Of the input.
        datatype: Of its elements.
        shape: Of the tensor.
        elements: Its elements one by one; None where they are packed.
        packed: Its elements as bytes, each with its length before it.
        parameters: What is said about it.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    elements: Sequence[str | bytes] | None = None
    packed: bytes = b""
    parameters: Mapping[str, Any] = field(default_factory=dict)


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
class Tensor:
    """An output.

    Attributes:
        form: Its name and datatype, and which sizes are free.
        values: Strings of BYTES, rows or numbers of FP32.
    """

    form: TensorForm
    values: Sequence[Any]

    @property
    def shape(self) -> list[int]:
        """Of the values."""
        return [len(self.values), *self.form.shape[1:]]

    def packed(self) -> bytes:
        """The values as bytes: little-endian, strings with their lengths before them."""
        if self.form.datatype == "FP32":
            return np.asarray(self.values, dtype="<f4").tobytes()
        encoded = [value.encode() for value in self.values]
        return b"".join(part for each in encoded for part in (_LENGTH.pack(len(each)), each))

    def listed(self) -> list[Any]:
        """The values in row-major order, as JSON has them."""
        if len(self.form.shape) == 1:
            return list(self.values)
        return [number for row in self.values for number in row]


@dataclass(frozen=True, slots=True, eq=False)
class Inferred:
    """Answers to one call: in the order asked, of the version that answered."""

    task: str
    version: str
    outputs: Sequence[Tensor]


def inputs_of(spec: BranchSpec) -> tuple[TensorForm, ...]:
    """What a task takes."""
    text = TensorForm("text", "BYTES", (_ANY,))
    return (text, TensorForm("text_pair", "BYTES", (_ANY,))) if spec.input == "pair" else (text,)


def outputs_of(spec: BranchSpec) -> tuple[TensorForm, ...]:
    """What a task gives."""
    probabilities = TensorForm("probabilities", "FP32", (_ANY, len(spec.labels)))
    if spec.kind == "classification":
        return TensorForm("label", "BYTES", (_ANY,)), TensorForm("confidence", "FP32", (_ANY,)), probabilities
    if spec.kind == "multilabel":
        return TensorForm("labels", "BYTES", (_ANY,)), probabilities
    if spec.kind == "regression":
        return (TensorForm("score", "FP32", (_ANY,)),)
    return (TensorForm("spans", "BYTES", (_ANY,)),)


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
    branch = _find_version(routes.snapshot, task, version[:_LONGEST_NAME])
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
            400, "invalid_request", f"parameter {named[0][:_LONGEST_NAME]!r}: is given to load; none is allowed; "
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
    forms = _wanted(branch.spec, asked.outputs)
    question = Question(
        examples=_examples(branch.spec, asked.inputs, service.settings.limits.texts),
        tasks=(asked.task,),
        caller=asking.caller,
        arrived=asking.arrived,
        probabilities=any(form.name == "probabilities" for form in forms),
        truncate=bool(_parameter(asked.parameters, "truncate", bool)),
        deadline_ms=_deadline_ms(asked.parameters, asking.within_ms),
    )
    answers = sorted(await service.analyzer.all_answers(question, snapshot), key=lambda answer: answer.index)
    return Inferred(asked.task, branch.digest, [Tensor(form, _values(form, answers)) for form in forms])


def unpack(content: bytes, n_elements: int, subject: str) -> list[bytes]:
    """Elements that are packed one after the other, each with its length before it.

    Args:
        content: All of them.
        n_elements: How many there should be.
        subject: What messages are about.

    Raises:
        DataError: There are more, fewer, or one is cut off.
    """
    elements: list[bytes] = []
    place = 0
    for number in range(n_elements):
        if len(content) - place < _LENGTH.size:
            raise DataError(
                f"{subject}: holds {number} elements in {len(content)} bytes; its shape says {n_elements}; send as many"
            )
        (length,) = _LENGTH.unpack_from(content, place)
        place += _LENGTH.size
        if length > len(content) - place:
            raise DataError(
                f"{subject}: element {number} has {length} bytes by its length, and {len(content) - place} follow; "
                "each element is its length as 4 bytes, the lowest first, and its bytes; mend the length"
            )
        elements.append(content[place : place + length])
        place += length
    if place < len(content):
        raise DataError(
            f"{subject}: {len(content) - place} bytes follow its {n_elements} elements; none are allowed; mend "
            "the shape"
        )
    return elements


def refuse_shared_memory(parameters: Mapping[str, Any], subject: str) -> None:
    """Refuse a tensor that lies, or is to be put, in memory of the client.

    Raises:
        DataError: It is one.
    """
    if _SHARED_MEMORY in parameters:
        raise DataError(f"{subject}: is to be in shared memory, which is not offered; send it with the request")


def _short(task: str) -> str:
    """A name that the nearest may be looked for to."""
    if len(task) > _LONGEST_NAME:
        raise UnknownNameError(
            f"task {task[:_LONGEST_NAME]!r}…: has {len(task)} characters; up to {_LONGEST_NAME} are allowed; check "
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


def _wanted(spec: BranchSpec, outputs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[TensorForm]:
    known = {form.name: form for form in outputs_of(spec)}
    if not outputs:
        return list(known.values())
    wanted: dict[str, TensorForm] = {}
    for name, parameters in outputs:
        _check_name(name, known, wanted, f"task {spec.task!r}: output")
        subject = f"output {name!r}"
        refuse_shared_memory(parameters, subject)
        if parameters.get("classification"):
            raise DataError(
                f"{subject}: parameter 'classification' is not offered; leave it out and ask for label or probabilities"
            )
        wanted[name] = known[name]
    return list(wanted.values())


def _examples(spec: BranchSpec, inputs: Sequence[Given], most_texts: int) -> list[Example]:
    known = {form.name: form for form in inputs_of(spec)}
    texts: dict[str, list[str]] = {}
    for given in inputs:
        _check_name(given.name, known, texts, f"task {spec.task!r}: input")
        refuse_shared_memory(given.parameters, f"input {given.name!r}")
        texts[given.name] = _texts(given, most_texts)
    missing = next((name for name in known if name not in texts), None)
    if missing is not None:
        raise DataError(f"task {spec.task!r}: input {missing!r} is missing; {' and '.join(known)} are needed; send it")
    if "text_pair" not in texts:
        return [Example(text) for text in texts["text"]]
    if len(texts["text_pair"]) != len(texts["text"]):
        raise DataError(
            f"input 'text_pair': has {len(texts['text_pair'])} elements; text has {len(texts['text'])}; send as many"
        )
    return [Example(text, pair) for text, pair in zip(texts["text"], texts["text_pair"], strict=True)]


def _check_name(name: str, known: Mapping[str, Any], before: Mapping[str, Any], subject: str) -> None:
    if name not in known:
        shown = name[:_LONGEST_NAME]
        raise DataError(f"{subject} {shown!r} is not known; {nearest_hint(shown, known)}")
    if name in before:
        raise DataError(f"{subject} {name!r} is there twice; once is allowed; remove one")


def _texts(given: Given, most_texts: int) -> list[str]:
    subject = f"input {given.name!r}"
    if given.datatype != "BYTES":
        raise DataError(f"{subject}: has datatype {given.datatype[:20]!r}; BYTES is allowed; send texts")
    n_texts = _n_texts(given.shape, subject)
    if n_texts > most_texts:
        raise refuse(413, "too_many_texts", f"{subject}: has {n_texts} texts; {most_texts} are allowed; send fewer")
    elements = given.elements if given.elements is not None else unpack(given.packed, n_texts, subject)
    if len(elements) != n_texts:
        raise DataError(f"{subject}: holds {len(elements)} elements; its shape says {n_texts}; send as many")
    return [_text(element, number, subject) for number, element in enumerate(elements)]


def _n_texts(shape: Sequence[int], subject: str) -> int:
    if len(shape) not in {1, 2} or shape[0] < 1 or shape[1:] not in ([], [1], (), (1,)):
        shown = ", ".join(str(size) for size in shape[:8]) + (", …" if len(shape) > 8 else "")
        raise DataError(
            f"{subject}: has shape [{shown[:80]}]; [texts] or [texts, 1] is allowed; send at least one text"
        )
    return shape[0]


def _text(element: str | bytes, number: int, subject: str) -> str:
    if isinstance(element, str):
        return element
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{subject}: element {number} is no UTF-8 (byte {error.start}: {error.reason}); send UTF-8"
        ) from error


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


_OF_LABEL: Mapping[str, Callable[[Any], Any]] = {
    "label": lambda answer: answer.label or "",
    "confidence": lambda answer: answer.confidence,
    "labels": lambda answer: msgspec.json.encode([each.label for each in answer.labels]).decode(),
    "probabilities": lambda answer: [*answer.probabilities.values()],
    "score": lambda answer: answer.score,
    "spans": lambda answer: msgspec.json.encode(answer.spans).decode(),
}
"""What an output tells of one answer of a kind that has it."""


def _values(form: TensorForm, answers: Sequence[Answer]) -> list[Any]:
    return [_OF_LABEL[form.name](answer) for answer in answers]
