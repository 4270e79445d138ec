"""The Open Inference Protocol over HTTP, with its extensions for binary tensors and the model repository."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from trunkline.core.errors import DataError
from trunkline.engine.snapshot import LoadedBranch
from trunkline.server import oip
from trunkline.server.bodies import decode_body, while_there
from trunkline.server.health_api import refuse_dead, refuse_unready
from trunkline.server.oip import Asking, Inference, Inferred
from trunkline.server.oip_tensors import Given, Tensor, TensorForm, inputs_of, outputs_of
from trunkline.server.operation import Asked, ErrorForm, JsonResponse, Operation
from trunkline.server.refusals import Refusal

BINARY = "application/octet-stream"
LENGTH_HEADER = "Inference-Header-Content-Length"
_SIZE, _AS_BINARY, _ALL_BINARY = "binary_data_size", "binary_data", "binary_data_output"
_MOST_DIGITS = 12


class OipError(msgspec.Struct, frozen=True, kw_only=True):
    """Every answer that is no success."""

    error: str


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class InferInput(_Body, frozen=True, kw_only=True):
    """A tensor of texts.

    Attributes:
        name: ``text`` or ``text_pair``.
        shape: One size, the number of texts; a second one of 1 may follow.
        datatype: BYTES.
        parameters: ``binary_data_size`` where the elements follow the JSON; others are ignored.
        data: The elements, where they do not.
    """

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[str | list[str]] | UnsetType = UNSET


class InferOutput(_Body, frozen=True, kw_only=True):
    """An output that is wanted; parameter ``binary_data`` says in which form."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(_Body, frozen=True, kw_only=True):
    """Texts for one task.

    Attributes:
        inputs: ``text``, and ``text_pair`` for a task that takes pairs.
        outputs: Those that are wanted; all where none is named.
        id: Comes back with the answer.
        parameters: ``truncate``, ``timeout`` (microseconds), ``key`` (equal keys get equal versions) and
            ``binary_data_output``; others are ignored.
    """

    inputs: list[InferInput]
    outputs: list[InferOutput] = []
    id: str | UnsetType = UNSET
    parameters: dict[str, Any] = {}


class OutputTensor(msgspec.Struct, frozen=True, kw_only=True):
    """An output; its elements follow the JSON where there is a ``binary_data_size``."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | UnsetType = UNSET
    data: list[str | float] | UnsetType = UNSET


class InferResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Answers of one version of one task."""

    model_name: str
    model_version: str
    id: str | UnsetType = UNSET
    outputs: list[OutputTensor]


class ServerMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a tensor looks like; sizes of -1 are free."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a task takes and gives, and its versions that can be asked, the active one first."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Liveness(msgspec.Struct, frozen=True, kw_only=True):
    """The process runs."""

    live: bool


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Requests are taken."""

    ready: bool


class ModelReadiness(msgspec.Struct, frozen=True, kw_only=True):
    """A task answers."""

    name: str
    ready: bool


class IndexRequest(_Body, frozen=True, kw_only=True):
    """Which tasks to list; ``ready`` leaves out those that do not answer."""

    ready: bool = False


class ModelIndex(msgspec.Struct, frozen=True, kw_only=True):
    """One task: READY, or UNAVAILABLE with the reason."""

    name: str
    version: str
    state: str
    reason: str


class RepositoryRequest(_Body, frozen=True, kw_only=True):
    """Parameters of a change; load takes none, those of unload are ignored."""

    parameters: dict[str, Any] = {}


class Nothing(msgspec.Struct, frozen=True):
    """Done."""


async def oip_server(asked: Asked) -> Response:  # noqa: ARG001 - every handler gets what was asked
    """Name, version and extensions."""
    return JsonResponse(ServerMetadata(name=oip.NAME, version=oip.VERSION, extensions=list(oip.EXTENSIONS)))


async def oip_live(asked: Asked) -> Response:
    """As `trunkline.server.health_api.live`."""
    refuse_dead(asked.service)
    return JsonResponse(Liveness(live=True))


async def oip_ready(asked: Asked) -> Response:
    """Requests are taken."""
    refuse_unready(asked.service)
    return JsonResponse(Readiness(ready=True))


async def oip_model(asked: Asked) -> Response:
    """What a task takes and gives."""
    spec = _branch(asked).spec
    return JsonResponse(
        ModelMetadata(
            name=spec.task,
            versions=oip.versions_of(asked.service, spec.task),
            platform=oip.PLATFORM,
            inputs=[_described(form) for form in inputs_of(spec)],
            outputs=[_described(form) for form in outputs_of(spec)],
        )
    )


async def oip_model_ready(asked: Asked) -> Response:
    """Whether a task, or one of its versions, answers; an error where it does not."""
    refuse_unready(asked.service)
    return JsonResponse(ModelReadiness(name=_branch(asked).spec.task, ready=True))


async def oip_infer(asked: Asked) -> Response:
    """Answer texts with one task; tensors as JSON, or as bytes after it."""
    asked.service.analyzer.admit()
    request, inputs = read_inference(await asked.body(), asked.request.headers.get(LENGTH_HEADER))
    inference = Inference(
        task=asked.task,
        version=_version(asked),
        inputs=inputs,
        outputs=[(output.name, output.parameters) for output in request.outputs],
        parameters=request.parameters,
    )
    as_binary = [_flag(output.parameters, _AS_BINARY) for output in request.outputs]
    all_binary = bool(_flag(request.parameters, _ALL_BINARY))
    async with while_there(asked.request):
        inferred = await oip.infer(asked.service, inference, Asking(asked.caller.name, asked.request_id, asked.arrived))
    flags = [all_binary if flag is None else flag for flag in as_binary] or [all_binary] * len(inferred.outputs)
    return _answered(inferred, request.id, flags)


async def oip_index(asked: Asked) -> Response:
    """Every task, whether it answers, and why not."""
    body = await asked.body()
    request = decode_body(body, IndexRequest) if body else IndexRequest()
    listed = oip.index(asked.service, ready=request.ready)
    return JsonResponse(
        [ModelIndex(name=each.name, version=each.version, state=each.state, reason=each.reason) for each in listed]
    )


async def oip_load(asked: Asked) -> Response:
    """Let a task that is out of service answer again, with the version that was active last; else the newest."""
    request = await _repository_request(asked)
    await oip.load(asked.service, asked.task, request.parameters, who=asked.caller.name, request_id=asked.request_id)
    return JsonResponse(Nothing())


async def oip_unload(asked: Asked) -> Response:
    """Take a task out of service; its versions stay registered."""
    await _repository_request(asked)
    await oip.unload(asked.service, asked.task, who=asked.caller.name, request_id=asked.request_id)
    return JsonResponse(Nothing())


def read_inference(body: bytes, length: str | None) -> tuple[InferRequest, list[Given]]:
    """A request, and its inputs with the bytes that belong to them.

    Args:
        body: JSON, and after it the elements of binary inputs one after the other.
        length: The header that tells the bytes of the JSON; None where it is all.

    Raises:
        ServerError: 400: the JSON is something else.
        DataError: A length does not fit the bytes that are there.
    """
    end = len(body) if length is None else _json_end(length, len(body))
    request = decode_body(body[:end] if end < len(body) else body, InferRequest)
    place, inputs = end, list[Given]()
    for given in request.inputs:
        size = given.parameters.get(_SIZE)
        if size is None:
            inputs.append(Given(given.name, given.datatype, given.shape, _listed(given), b"", given.parameters))
            continue
        subject = f"input {given.name[:64]!r}"
        if type(size) is not int or not 0 <= size <= len(body) - place:
            raise DataError(
                f"{subject}: parameter {_SIZE!r} is not one of 0 to {len(body) - place}, the bytes that are left after "
                f"the JSON; give the number of its bytes, and their place with the header {LENGTH_HEADER}"
            )
        if given.data is not UNSET:
            raise DataError(f"{subject}: has both data and {_SIZE}; one of them is needed; send either")
        packed = body[place : place + size]
        inputs.append(Given(given.name, given.datatype, given.shape, None, packed, given.parameters))
        place += size
    if place < len(body):
        raise DataError(
            f"body: {len(body) - place} bytes follow the inputs; none are allowed; name them with {_SIZE}, or mend the "
            f"header {LENGTH_HEADER}"
        )
    return request, inputs


def _json_end(length: str, n_bytes: int) -> int:
    if length.isascii() and length.isdecimal() and len(length) <= _MOST_DIGITS and int(length) <= n_bytes:
        return int(length)
    raise DataError(
        f"header {LENGTH_HEADER}: is {length[:40]!r}; 0 to {n_bytes}, the bytes of the body, are allowed; give those "
        "of its JSON"
    )


def _listed(given: InferInput) -> list[str | bytes]:
    if given.data is UNSET:
        raise DataError(
            f"input {given.name[:64]!r}: has neither data nor parameter {_SIZE!r}; one of them is needed; send either"
        )
    return [text for each in given.data for text in ([each] if isinstance(each, str) else each)]


def _flag(parameters: Mapping[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise DataError(f"parameter {name!r}: is of type {type(value).__name__}; true or false is allowed; send that")


def _answered(inferred: Inferred, request_id: str | UnsetType, as_binary: list[bool]) -> Response:
    packed = [tensor.packed() if binary else None for tensor, binary in zip(inferred.outputs, as_binary, strict=True)]
    answer = InferResponse(
        model_name=inferred.task,
        model_version=inferred.version,
        id=request_id,
        outputs=[_written(tensor, content) for tensor, content in zip(inferred.outputs, packed, strict=True)],
    )
    if not any(as_binary):
        return JsonResponse(answer)
    head = msgspec.json.encode(answer)
    content = b"".join([head, *(each for each in packed if each is not None)])
    return Response(content, media_type=BINARY, headers={LENGTH_HEADER: str(len(head))})


def _written(tensor: Tensor, packed: bytes | None) -> OutputTensor:
    return OutputTensor(
        name=tensor.form.name,
        datatype=tensor.form.datatype,
        shape=tensor.shape,
        parameters=UNSET if packed is None else {_SIZE: len(packed)},
        data=tensor.listed() if packed is None else UNSET,
    )


async def _repository_request(asked: Asked) -> RepositoryRequest:
    body = await asked.body()
    return decode_body(body, RepositoryRequest) if body else RepositoryRequest()


def _version(asked: Asked) -> str:
    return str(asked.request.path_params.get("version", ""))


def _branch(asked: Asked) -> LoadedBranch:
    return oip.find_task(asked.service, asked.task, _version(asked), asked.request_id)[1]


def _described(form: TensorForm) -> TensorMetadata:
    return TensorMetadata(name=form.name, datatype=form.datatype, shape=list(form.shape))


def _error(refusal: Refusal, request_id: str) -> OipError:  # noqa: ARG001 - the header tells the request's id
    return OipError(error=refusal.message)


ERRORS = ErrorForm(OipError, _error)
_EXAMPLE = {
    "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["wake me up at seven"]}],
    "outputs": [{"name": "label"}],
}
_HOW_BINARY = f"JSON of as many bytes as the header {LENGTH_HEADER} says, and after it the elements of tensors"


def _operation(method: str, path: str, handler: Any, summary: str, **more: Any) -> Operation:
    return Operation(method, f"/v2{path}", handler, summary, "open inference protocol", errors=ERRORS, **more)


def _with_version(method: str, path: str, handler: Any, summary: str, **more: Any) -> tuple[Operation, Operation]:
    """An operation on a task, and the same on one version of it."""
    return (
        _operation(method, f"/models/{{task}}{path}", handler, summary, **more),
        _operation(method, f"/models/{{task}}/versions/{{version}}{path}", handler, f"{summary}, one version", **more),
    )


OPERATIONS = (
    _operation("GET", "", oip_server, "Name, version and extensions", needs="nothing", answers=ServerMetadata),
    _operation("GET", "/health/live", oip_live, "Whether the server lives", needs="nothing", answers=Liveness),
    _operation("GET", "/health/ready", oip_ready, "Whether requests are taken", needs="nothing", answers=Readiness),
    *_with_version("GET", "", oip_model, "What a task takes and gives", answers=ModelMetadata),
    *_with_version("GET", "/ready", oip_model_ready, "Whether a task answers", answers=ModelReadiness),
    *_with_version(
        "POST", "/infer", oip_infer, "Answer texts with one task", asks=InferRequest, answers=InferResponse,
        example=_EXAMPLE, other_bodies={BINARY: _HOW_BINARY}, other_answers={BINARY: _HOW_BINARY},
    ),
    _operation("POST", "/repository/index", oip_index, "Which tasks there are", asks=IndexRequest,
               answers=list[ModelIndex], example={}),
    _operation("POST", "/repository/models/{task}/load", oip_load, "Let a task answer again", needs="owner",
               asks=RepositoryRequest, answers=Nothing, example={}),
    _operation("POST", "/repository/models/{task}/unload", oip_unload, "Take a task out of service", needs="owner",
               asks=RepositoryRequest, answers=Nothing, example={}),
)  # fmt: skip
