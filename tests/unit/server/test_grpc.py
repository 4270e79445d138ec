"""gRPC, asked by hand: what no well-behaved client sends, and what happens when one goes away."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_bundles import make_bundle
from tests.tiny_servers import make_keys, make_service, running, with_settings
from trunkline.core.errors import SpecError
from trunkline.server.grpc import serve_grpc
from trunkline.server.oip_pb2 import InferTensorContents, ModelInferRequest, RepositoryModelUnloadRequest
from trunkline.server.operation import Service

TOKENS, KEYS = make_keys(cleo=("infer",))
OK = grpc.StatusCode.OK
INVALID = grpc.StatusCode.INVALID_ARGUMENT
FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}
Told = tuple[grpc.StatusCode, str, dict[str, Any]]
Call = Callable[..., Told]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    bundle = make_bundle(tmp_path_factory.mktemp("grpc"), "intent", "same")
    with make_service(bundle.path, keys=KEYS) as made:
        yield made


@pytest.fixture(scope="module")
def channel(service: Service) -> Iterator[grpc.Channel]:
    with running(service) as (_, port), grpc.insecure_channel(f"127.0.0.1:{port}") as made:
        yield made


@pytest.fixture
def call(channel: grpc.Channel) -> Call:
    def run(content: Any, method: str = "ModelInfer", **options: Any) -> Told:
        content = content if isinstance(content, bytes) else content.SerializeToString()
        ask = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        metadata = options.pop("metadata", (("authorization", f"Bearer {TOKENS['cleo']}"),))
        try:
            _, answer = ask.with_call(content, timeout=30, metadata=metadata, **options)
        except grpc.RpcError as error:
            return error.code(), error.details(), dict(error.trailing_metadata() or ())
        return OK, "", dict(answer.trailing_metadata())

    return run


def asked(*raw: bytes, shape: tuple[int, ...] = (1,), contents: list[bytes] | None = None, **more: Any) -> Any:
    message = ModelInferRequest(model_name="intent", raw_input_contents=raw, **more)
    tensor = message.inputs.add(name="text", datatype="BYTES", shape=shape)
    if contents is not None:
        tensor.contents.CopyFrom(InferTensorContents(bytes_contents=contents))
    return message


def test_contents_are_taken_as_well_as_raw_ones(call: Call) -> None:
    assert call(asked(b"\x02\0\0\0no"))[0] == OK
    assert call(asked(contents=[b"no"]))[0] == OK
    assert call(asked(contents=[b"no", b"yes"], shape=(2, 1)))[0] == OK


def test_the_request_id_comes_back(call: Call) -> None:
    key = ("authorization", f"Bearer {TOKENS['cleo']}")
    assert call(asked(contents=[b"no"]), metadata=(key, ("x-request-id", "mine-1")))[2]["x-request-id"] == "mine-1"


@pytest.mark.parametrize(
    "message",
    [
        b"\xff\xff\xff",
        asked(b"\x02\0\0\0no", b"more"),
        asked(b"\x02\0\0\0no", contents=[b"no"]),
        asked(contents=[b"no", b"yes"]),
        asked(contents=[b"\xff"]),
        asked(b"\xff\xff\xff\xffno"),
        asked(b"\x02\0\0\0no", shape=(2**62, 2**62)),
        asked(b"\x02\0\0\0no", shape=(-1,)),
        asked(b"\x02\0\0\0no", shape=(0,)),
        asked(b"\x02\0\0\0no", shape=()),
    ],
)
def test_what_does_not_fit_together_is_an_invalid_argument(call: Call, message: Any) -> None:
    code, details, trailing = call(message)
    assert (code, bool(details)) == (INVALID, True)
    assert trailing["x-request-id"]


def test_nothing_is_decoded_for_a_client_without_a_key(call: Call) -> None:
    assert call(b"\xff\xff\xff", metadata=())[0] == grpc.StatusCode.UNAUTHENTICATED


def test_health_needs_no_key(call: Call) -> None:
    assert call(b"", "ServerLive", metadata=())[0] == call(b"", "ServerReady", metadata=())[0] == OK


@pytest.mark.parametrize("character", ["x", "é", "明", "😀"])
def test_an_error_about_a_very_long_name_still_arrives(call: Call, character: str) -> None:
    code, details, _ = call(RepositoryModelUnloadRequest(model_name=character * 100_000), "RepositoryModelUnload")
    assert code == grpc.StatusCode.PERMISSION_DENIED
    assert "scopes infer" in details


def test_a_message_that_is_large_when_unpacked_is_not_unpacked(call: Call, service: Service) -> None:
    code, _, _ = call(b"\0" * (16 * service.settings.limits.body_bytes), compression=grpc.Compression.Gzip)
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED


_VALUES = st.binary(max_size=12)


@settings(max_examples=100, deadline=None)
@given(
    raw=st.lists(_VALUES, max_size=3),
    contents=st.none() | st.lists(_VALUES, max_size=3),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 3), max_size=3),
    name=st.sampled_from(["text", "text_pair", "x"]),
    version=st.text(max_size=10),
)
def test_no_message_is_a_fault_of_the_server(
    call: Call, raw: list[bytes], contents: list[bytes] | None, shape: list[int], name: str, version: str
) -> None:
    message = asked(*raw, contents=contents, model_version=version)
    message.inputs[0].name = name
    message.inputs[0].shape[:] = shape
    assert call(message)[0] not in FAULTS


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=64))
def test_no_bytes_are_a_fault_of_the_server(call: Call, content: bytes) -> None:
    assert call(content)[0] not in FAULTS


def test_a_full_server_says_when_to_ask_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    full = with_settings(service, max_wait_ms=1)
    backlog = replace(service.analyzer.engine.loop.backlog(), wait_s=5.0)
    monkeypatch.setattr(type(service.analyzer.engine.loop), "backlog", lambda _: backlog)
    with running(full) as (_, port), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            ask(asked(contents=[b"no"]).SerializeToString(), metadata=(("authorization", f"Bearer {TOKENS['cleo']}"),))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(caught.value.trailing_metadata())["retry-after"] == "5"


def test_a_client_that_takes_its_call_back_cancels_the_work(
    channel: grpc.Channel, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = [], []

    async def endless(*_: Any) -> Any:
        begun.append(1)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(1)
            raise

    monkeypatch.setattr(type(service.analyzer), "all_answers", endless)
    ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    metadata = (("authorization", f"Bearer {TOKENS['cleo']}"),)
    running_call = ask.future(asked(contents=[b"no"]).SerializeToString(), metadata=metadata)
    assert _comes(begun)
    running_call.cancel()
    assert _comes(ended)
    assert b'route="grpc ModelInfer",status="499"' in _counted(service)


def _counted(service: Service) -> bytes:
    for _ in range(100):
        text = service.metrics.text()
        if b'status="499"' in text:
            return text
        time.sleep(0.05)
    return text


def _comes(events: list[int]) -> bool:
    for _ in range(200):
        if events:
            return True
        time.sleep(0.05)
    return False


def test_a_taken_port_is_told(service: Service) -> None:
    async def twice() -> None:
        first = serve_grpc(with_settings(service, grpc_port=0))
        async with first as port, serve_grpc(with_settings(service, grpc_port=port)):
            pass

    with pytest.raises(SpecError, match="choose another --grpc-port"):
        asyncio.run(twice())


def test_without_a_port_nothing_listens(service: Service) -> None:
    async def port_of() -> int | None:
        async with serve_grpc(with_settings(service, grpc_port=None)) as port:
            return port

    assert asyncio.run(port_of()) is None


def test_messages_leave_the_names_of_the_common_pool_to_others() -> None:
    assert ModelInferRequest.DESCRIPTOR.file.pool is not descriptor_pool.Default()
