"""What is counted of answers, of requests that found no room, and of clients that left."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc
import httpx
import pytest

from tests.tiny_bundles import make_bundle
from tests.tiny_servers import ask, make_service, running
from trunkline.server.oip_pb2 import InferTensorContents, ModelInferRequest
from trunkline.server.operation import Service

N_ASKED = 20
TEXT = "a text that nobody asked before"
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
NDJSON = {"Accept": "application/x-ndjson"}


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with make_service(make_bundle(tmp_path_factory.mktemp("bundle"), "intent").path) as made:
        yield made


def refusals(service: Service) -> float:
    found = re.search(rb'^trunkline_refused_total{code="overloaded"} (.+)$', service.metrics.text(), re.MULTILINE)
    return 0.0 if found is None else float(found[1])


def test_every_answer_lies_in_the_buckets_of_its_task(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trunkline.server.metrics._NOTED", 8)  # Some are sorted in meanwhile, some when one looks.
    confidences = []
    for _ in range(N_ASKED):
        (result,) = ask(service, "POST", "/v1/analyze", json={"texts": [TEXT, "play a song"]}).json()["results"][:1]
        confidences.append(result["intent"]["confidence"])
    told = service.metrics.text().decode()
    assert told == service.metrics.text().decode()  # To look changes nothing.
    for stage in ("queue", "trunk", "branch", "decode"):
        buckets = values_of(told, "trunkline_stage_seconds_bucket", f'stage="{stage}"')
        assert buckets == sorted(buckets)
        assert buckets[-1] == values_of(told, "trunkline_stage_seconds_count", f'stage="{stage}"')[0] >= N_ASKED
    assert values_of(told, "trunkline_answers_total", 'task="intent"') == [2 * N_ASKED]
    at_most = {float(end): count for end, count in re.findall(r'confidence_bucket{le="([0-9.]+)".*} (.+)', told)}
    for end, count in at_most.items():
        assert float(count) >= sum(each <= end for each in confidences)
    assert values_of(told, "trunkline_confidence_bucket", "+Inf") == [2 * N_ASKED]
    assert values_of(told, "trunkline_confidence_sum", "intent")[0] >= sum(confidences)


def values_of(told: str, name: str, labels: str) -> list[float]:
    return [
        float(line.rpartition(" ")[2]) for line in told.splitlines() if line.startswith(f"{name}{{") and labels in line
    ]


def fill_queue(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = service.analyzer.engine.loop._scheduler
    monkeypatch.setattr(scheduler, "_limits", replace(scheduler._limits, queued_tokens=1))


def let_much_wait(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    backlog = service.analyzer.engine.loop.backlog()
    monkeypatch.setattr(service.analyzer.engine.loop, "backlog", lambda: replace(backlog, wait_s=1e6))


@pytest.mark.parametrize("full", [fill_queue, let_much_wait])
@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/v1/analyze", {"json": {"texts": [TEXT]}}),
        ("/v1/analyze", {"json": {"texts": [TEXT]}, "headers": NDJSON}),
        ("/v2/models/intent/infer", {"json": {"inputs": [TENSOR]}}),
        ("/predict?task=intent", {"json": {"inputs": TEXT}}),
    ],
    ids=["analyze", "stream", "open inference", "tei"],
)
def test_a_request_that_finds_no_room_is_counted_once(
    service: Service, full: Callable[..., None], path: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    full(service, monkeypatch)
    assert ask(service, "POST", path, **options).status_code == 429
    assert refusals(service) == 1


@pytest.mark.parametrize("full", [fill_queue, let_much_wait])
def test_a_call_of_grpc_that_finds_no_room_is_counted_once(
    service: Service, full: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = ModelInferRequest(model_name="intent")
    tensor = message.inputs.add(name="text", datatype="BYTES", shape=(1,))
    tensor.contents.CopyFrom(InferTensorContents(bytes_contents=[TEXT.encode()]))
    full(service, monkeypatch)
    with running(service) as (_, port), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(message.SerializeToString(), timeout=30)
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refusals(service) == 1


def test_a_stream_whose_client_left_is_no_success(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(*_: object) -> AsyncIterator[list[Any]]:
        yield []
        await asyncio.sleep(60)

    monkeypatch.setattr(type(service.analyzer), "stream", endless)
    with running(service) as (port, _):
        address = f"http://127.0.0.1:{port}/v1/analyze"
        with httpx.stream("POST", address, json={"texts": [TEXT]}, headers=NDJSON) as begun:
            assert begun.status_code == 200
        until = time.monotonic() + 10
        while b'route="/v1/analyze"' not in service.metrics.text() and time.monotonic() < until:
            time.sleep(0.05)
    assert b'route="/v1/analyze",status="499"' in service.metrics.text()
    assert b'status="200"' not in service.metrics.text()


def test_a_stream_that_ended_is_a_success(service: Service) -> None:
    ask(service, "POST", "/v1/analyze", json={"texts": [TEXT]}, headers=NDJSON)
    assert b'route="/v1/analyze",status="200"' in service.metrics.text()
