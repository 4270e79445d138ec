"""The Open Inference Protocol over gRPC, with the same limits, keys and errors as over HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from trunkline.core.errors import DataError, SpecError
from trunkline.server import oip, oip_pb2
from trunkline.server.keys import Caller
from trunkline.server.oip import Asking, Inference, Inferred
from trunkline.server.oip_tensors import Given, TensorForm, inputs_of, outputs_of
from trunkline.server.operation import Needs, Service, request_id_of, require
from trunkline.server.refusals import Refusal, refuse

SERVICE = "inference.GRPCInferenceService"
_HEAD_BYTES = 64 * 1024
"""Names, shapes and parameters beside the texts, which may be as many bytes as over HTTP."""
_GRACE_S = 10.0
_LONGEST_WAIT_S = 3600.0
_LONGEST_DETAILS = 2000
"""Bytes of an error, each of which may travel as three: clients have 8 KB for it and all other metadata."""
_CODES: Mapping[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A call that may be answered."""

    service: Service
    message: Any
    caller: str
    request_id: str
    arrived: float
    within_s: float | None


@asynccontextmanager
async def serve_grpc(service: Service) -> AsyncIterator[int | None]:
    """Listen while the block runs.

    Args:
        service: What is served; its settings say where.

    Yields:
        The port; None where no gRPC is wanted.

    Raises:
        SpecError: The port is taken.
    """
    settings = service.settings
    if settings.grpc_port is None:
        yield None
        return
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.limits.body_bytes + _HEAD_BYTES),
            ("grpc.max_metadata_size", 32 * 1024),
            ("grpc.so_reuseport", 0),
        ]
    )
    handlers = {name: _handler(service, name, *call) for name, call in _CALLS.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port = server.add_insecure_port(f"{host}:{settings.grpc_port}")
    except RuntimeError as error:
        raise SpecError(
            f"server: cannot listen for gRPC on {host}:{settings.grpc_port}; choose another --grpc-port, or --no-grpc"
        ) from error
    await server.start()
    try:
        yield port
    finally:
        await server.stop(_GRACE_S)


def _handler(
    service: Service, name: str, request_type: Any, needs: Needs, answer: Callable[[_Asked], Awaitable[Any]]
) -> grpc.RpcMethodHandler:
    async def run(content: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        started = time.perf_counter()
        told = {str(key): value for key, value in context.invocation_metadata() or ()}
        request_id = request_id_of(_text(told.get("x-request-id")))
        status = 200
        try:
            arrived, within_s = service.analyzer.now(), _within(context.time_remaining())
            caller = None if needs == "nothing" else service.keyring.caller(_text(told.get("authorization")))
            message = _decoded(content, request_type)
            if caller is not None:
                require(service, caller, needs, task=getattr(message, "model_name", ""))
            found = await answer(_Asked(service, message, _name_of(caller), request_id, arrived, within_s))
            context.set_trailing_metadata((("x-request-id", request_id),))
        except asyncio.CancelledError:
            status = 499
            raise
        except Exception as error:  # noqa: BLE001 - told to the client, and logged
            refusal = service.failed(error, request_id)
            status = refusal.status
            await _refuse(context, refusal, request_id)
        else:
            return found
        finally:
            seconds = time.perf_counter() - started
            service.count(route=f"grpc {name}", method="grpc", status=status, seconds=seconds, request_id=request_id)

    # Messages are decoded by the call itself: what grpc decodes has no key yet, and its errors no code of ours.
    return grpc.unary_unary_rpc_method_handler(run, response_serializer=lambda found: found.SerializeToString())


def _decoded(content: bytes, request_type: Any) -> Any:
    try:
        return request_type.FromString(content)
    except DecodeError as error:
        raise refuse(
            400, "invalid_request", f"message: is no {request_type.DESCRIPTOR.full_name}; send one as oip.proto has it"
        ) from error


async def _refuse(context: "grpc.aio.ServicerContext[Any, Any]", refusal: Refusal, request_id: str) -> None:
    trailing = [("x-request-id", request_id), ("x-error-code", refusal.code)]
    trailing += [("retry-after", value) for name, value in refusal.headers.items() if name == "Retry-After"]
    code = _CODES.get(refusal.status, grpc.StatusCode.INTERNAL)
    details = refusal.message.encode("utf-8", "replace")[:_LONGEST_DETAILS].decode("utf-8", "ignore")
    await context.abort(code, details, tuple(trailing))


def _name_of(caller: Caller | None) -> str:
    return "" if caller is None else caller.name


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _within(seconds: float | None) -> float | None:
    """Seconds that the client waits; clients that wait for ever say a number beyond all measure."""
    return None if seconds is None or seconds > _LONGEST_WAIT_S else max(seconds, 1e-6)


async def _live(asked: _Asked) -> Any:
    return oip_pb2.ServerLiveResponse(live=asked.service.metrics.is_live)


async def _ready(asked: _Asked) -> Any:
    return oip_pb2.ServerReadyResponse(ready=asked.service.metrics.is_ready)


async def _server(_: _Asked) -> Any:
    return oip_pb2.ServerMetadataResponse(name=oip.NAME, version=oip.VERSION, extensions=oip.EXTENSIONS)


async def _model_ready(asked: _Asked) -> Any:
    oip.find_task(asked.service, asked.message.name, asked.message.version, asked.request_id)
    return oip_pb2.ModelReadyResponse(ready=asked.service.metrics.is_ready)


async def _model(asked: _Asked) -> Any:
    _, branch = oip.find_task(asked.service, asked.message.name, asked.message.version, asked.request_id)

    def described(forms: tuple[TensorForm, ...]) -> list[Any]:
        tensor = oip_pb2.ModelMetadataResponse.TensorMetadata
        return [tensor(name=form.name, datatype=form.datatype, shape=form.shape) for form in forms]

    return oip_pb2.ModelMetadataResponse(
        name=branch.spec.task,
        versions=oip.versions_of(asked.service, branch.spec.task),
        platform=oip.PLATFORM,
        inputs=described(inputs_of(branch.spec)),
        outputs=described(outputs_of(branch.spec)),
    )


async def _infer(asked: _Asked) -> Any:
    asked.service.analyzer.admit()
    message = asked.message
    within_ms = None if asked.within_s is None else 1e3 * asked.within_s
    inferred = await oip.infer(
        asked.service,
        Inference(
            task=message.model_name,
            version=message.model_version,
            inputs=_inputs(message),
            outputs=[(output.name, _parameters(output.parameters)) for output in message.outputs],
            parameters=_parameters(message.parameters),
        ),
        Asking(asked.caller, asked.request_id, asked.arrived, within_ms),
    )
    return _answered(inferred, message.id)


def _inputs(message: Any) -> list[Given]:
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise DataError(
            f"raw_input_contents: there are {len(raw)} for {len(message.inputs)} inputs; one for each is needed, "
            "or none"
        )
    inputs = []
    for number, given in enumerate(message.inputs):
        if raw and given.HasField("contents"):
            raise DataError(
                f"input {given.name[:64]!r}: has contents beside raw_input_contents; one of them is needed; send either"
            )
        packed = raw[number] if raw else b""
        elements = None if raw else list(given.contents.bytes_contents)
        inputs.append(
            Given(given.name, given.datatype, list(given.shape), elements, packed, _parameters(given.parameters))
        )
    return inputs


def _parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in parameters.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is not None:
            found[name] = getattr(value, choice)
    return found


def _answered(inferred: Inferred, request_id: str) -> Any:
    tensor = oip_pb2.ModelInferResponse.InferOutputTensor
    return oip_pb2.ModelInferResponse(
        model_name=inferred.task,
        model_version=inferred.version,
        id=request_id,
        outputs=[
            tensor(name=output.form.name, datatype=output.form.datatype, shape=output.shape)
            for output in inferred.outputs
        ],
        raw_output_contents=[output.packed() for output in inferred.outputs],
    )


async def _index(asked: _Asked) -> Any:
    model = oip_pb2.RepositoryIndexResponse.ModelIndex
    listed = oip.index(asked.service, ready=asked.message.ready)
    return oip_pb2.RepositoryIndexResponse(
        models=[model(name=each.name, version=each.version, state=each.state, reason=each.reason) for each in listed]
    )


async def _load(asked: _Asked) -> Any:
    task, named = asked.message.model_name, asked.message.parameters
    await oip.load(asked.service, task, named, who=asked.caller, request_id=asked.request_id)
    return oip_pb2.RepositoryModelLoadResponse()


async def _unload(asked: _Asked) -> Any:
    await oip.unload(asked.service, asked.message.model_name, who=asked.caller, request_id=asked.request_id)
    return oip_pb2.RepositoryModelUnloadResponse()


_CALLS: Mapping[str, tuple[Any, Needs, Callable[[_Asked], Awaitable[Any]]]] = {
    "ServerLive": (oip_pb2.ServerLiveRequest, "nothing", _live),
    "ServerReady": (oip_pb2.ServerReadyRequest, "nothing", _ready),
    "ServerMetadata": (oip_pb2.ServerMetadataRequest, "nothing", _server),
    "ModelReady": (oip_pb2.ModelReadyRequest, "infer", _model_ready),
    "ModelMetadata": (oip_pb2.ModelMetadataRequest, "infer", _model),
    "ModelInfer": (oip_pb2.ModelInferRequest, "infer", _infer),
    "RepositoryIndex": (oip_pb2.RepositoryIndexRequest, "infer", _index),
    "RepositoryModelLoad": (oip_pb2.RepositoryModelLoadRequest, "owner", _load),
    "RepositoryModelUnload": (oip_pb2.RepositoryModelUnloadRequest, "owner", _unload),
}
