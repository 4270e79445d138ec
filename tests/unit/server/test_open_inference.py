"""The Open Inference Protocol, asked by Triton's own clients; and ``/predict`` as TEI has it."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from tests.tiny_bundles import backbone_of, branch_digest, make_bundle, put_branch
from tests.tiny_servers import ask, make_keys, make_service, running, with_settings
from trunkline.bundle.registry import Registry
from trunkline.server import oip_pb2
from trunkline.server.operation import Service
from trunkline.server.settings import RequestLimits

TEXTS = ["play a song", "what is the weather in paris tomorrow?"]
TOKENS, KEYS = make_keys(ada=("admin",), cleo=("infer",))
HEADERS = {"authorization": f"Bearer {TOKENS['ada']}"}
PROTOCOLS = ("http", "grpc")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("oip")
    bundle = make_bundle(folder, "intent", "topics", "urgency", "slots", "same")
    registry = Registry.create(folder / "registry", bundle, who="ada", why="first")
    registry.register(put_branch(folder / "new", "intent", backbone_of(), seed=1), who="ada", why="second")
    return registry


@pytest.fixture(scope="module")
def service(registry: Registry) -> Iterator[Service]:
    with make_service(registry.path, keys=KEYS) as made:
        yield made


@pytest.fixture(scope="module")
def ports(service: Service) -> Iterator[tuple[int, int]]:
    with running(service) as found:
        yield found


@pytest.fixture(params=PROTOCOLS)
def triton(request: pytest.FixtureRequest, ports: tuple[int, int]) -> Iterator[Any]:
    if request.param == "http":
        with triton_http.InferenceServerClient(f"127.0.0.1:{ports[0]}") as client:
            yield client
    else:
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{ports[1]}") as client:
            yield client


def module_of(client: Any) -> Any:
    return triton_http if isinstance(client, triton_http.InferenceServerClient) else triton_grpc


def infer(client: Any, task: str, outputs: tuple[str, ...] = (), **inputs: list[str]) -> Any:
    module = module_of(client)
    tensors = []
    for name, texts in inputs.items():
        tensor = module.InferInput(name, [len(texts)], "BYTES")
        tensor.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_))
        tensors.append(tensor)
    wanted = [module.InferRequestedOutput(name) for name in outputs] or None
    return client.infer(task, tensors, outputs=wanted, headers=dict(HEADERS), request_id="mine")


def words(tensor: np.ndarray) -> list[str]:
    return [each.decode() for each in tensor.tolist()]


def analyzed(service: Service, task: str, **body: Any) -> list[Any]:
    answer = ask(service, "POST", "/v1/analyze", token=TOKENS["ada"], json={"tasks": [task], **body})
    return [answers[task] for answers in answer.json()["results"]]


def test_triton_gets_the_answers_that_analyze_gives(triton: Any, service: Service) -> None:
    expected = analyzed(service, "intent", texts=TEXTS, probabilities=True)
    found = infer(triton, "intent", text=TEXTS)
    assert words(found.as_numpy("label")) == [each["label"] for each in expected]
    shares = [list(each["probabilities"].values()) for each in expected]
    np.testing.assert_allclose(found.as_numpy("probabilities"), shares, atol=1e-5)
    np.testing.assert_allclose(found.as_numpy("confidence"), [each["confidence"] for each in expected], atol=1e-5)


def test_triton_asks_every_kind_of_task(triton: Any, service: Service) -> None:
    score = infer(triton, "urgency", text=TEXTS).as_numpy("score")
    np.testing.assert_allclose(score, [each["score"] for each in analyzed(service, "urgency", texts=TEXTS)], rtol=1e-4)
    spans = infer(triton, "slots", text=TEXTS).as_numpy("spans")
    expected = [each["spans"] for each in analyzed(service, "slots", texts=TEXTS)]
    assert [[span["text"] for span in json.loads(each)] for each in words(spans)] == [
        [span["text"] for span in each] for each in expected
    ]
    labels = infer(triton, "topics", text=TEXTS).as_numpy("labels")
    expected = [each["labels"] for each in analyzed(service, "topics", texts=TEXTS)]
    assert [set(json.loads(each)) for each in words(labels)] == [{one["label"] for one in each} for each in expected]
    pairs = infer(triton, "same", text=TEXTS, text_pair=TEXTS[::-1]).as_numpy("label")
    assert len(pairs) == 2


def test_only_outputs_that_are_asked_for_come(triton: Any) -> None:
    found = infer(triton, "intent", ("confidence",), text=TEXTS)
    assert found.as_numpy("confidence").shape == (2,)
    assert found.as_numpy("label") is None


def test_triton_sees_a_live_and_ready_server_and_its_models(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("intent", headers=dict(HEADERS))
    metadata = triton.get_model_metadata("intent", headers=dict(HEADERS))
    inputs = metadata["inputs"] if isinstance(metadata, dict) else metadata.inputs
    assert [(each["name"] if isinstance(each, dict) else each.name) for each in inputs] == ["text"]


def test_a_version_that_is_loaded_can_be_asked_by_its_digest(triton: Any) -> None:
    module = module_of(triton)
    tensor = module.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"play"], dtype=np.object_))
    metadata = triton.get_model_metadata("intent", headers=dict(HEADERS))
    versions = metadata["versions"] if isinstance(metadata, dict) else list(metadata.versions)
    assert versions[0] == branch_digest("intent")
    assert len(versions) == 2
    found = triton.infer("intent", [tensor], model_version=versions[1][:12], headers=dict(HEADERS)).get_response()
    assert (found["model_version"] if isinstance(found, dict) else found.model_version) == versions[1]


def refused(triton: Any, *args: Any, **inputs: list[str]) -> str:
    with pytest.raises(InferenceServerException) as caught:
        infer(triton, *args, **inputs)
    return str(caught.value)


def test_refusals_reach_triton_with_their_reason(triton: Any) -> None:
    assert "did you mean 'intent'" in refused(triton, "intant", text=TEXTS)
    assert "input 'txt' is not known" in refused(triton, "intent", txt=TEXTS)
    assert "output 'lable' is not known" in refused(triton, "intent", ("lable",), text=TEXTS)
    assert "'text_pair' is missing" in refused(triton, "same", text=TEXTS)
    assert "more than the 32 tokens" in refused(triton, "intent", text=["song " * 50])


def test_a_key_is_needed(triton: Any) -> None:
    with pytest.raises(InferenceServerException, match="no API key"):
        triton.get_model_metadata("intent")


def test_a_model_is_unloaded_and_loaded_again_by_who_may(triton: Any, service: Service) -> None:
    with pytest.raises(InferenceServerException, match="scopes infer"):
        triton.unload_model("urgency", headers={"authorization": f"Bearer {TOKENS['cleo']}"})
    triton.unload_model("urgency", headers=dict(HEADERS))
    assert not is_ready(triton, "urgency")
    index = triton.get_model_repository_index(headers=dict(HEADERS))
    rows = index if isinstance(index, list) else [{"name": m.name, "state": m.state} for m in index.models]
    assert {each["name"]: each["state"] for each in rows}["urgency"] == "UNAVAILABLE"
    triton.load_model("urgency", headers=dict(HEADERS))
    assert is_ready(triton, "urgency")
    assert service.deployment.history("urgency")[-1].why


def is_ready(triton: Any, task: str) -> bool:
    try:
        return bool(triton.is_model_ready(task, headers=dict(HEADERS)))
    except InferenceServerException:
        return False


def test_grpc_codes_are_those_of_the_refusals(ports: tuple[int, int]) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{ports[1]}") as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=oip_pb2.ModelInferResponse.FromString,
        )
        for message, metadata, code in (
            (oip_pb2.ModelInferRequest(model_name="intent"), (), grpc.StatusCode.UNAUTHENTICATED),
            (oip_pb2.ModelInferRequest(model_name="none"), HEADERS, grpc.StatusCode.NOT_FOUND),
            (oip_pb2.ModelInferRequest(model_name="intent"), HEADERS, grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(message, metadata=tuple(dict(metadata).items()))
            assert caught.value.code() == code
            assert "Traceback" not in caught.value.details()
            assert dict(caught.value.trailing_metadata())["x-request-id"]


def test_the_messages_are_those_of_the_protocol() -> None:
    ours, theirs = oip_pb2.DESCRIPTOR, service_pb2.DESCRIPTOR

    def check(own: Any, other: Any) -> None:
        for field in own.fields:
            same = other.fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (same.number, same.type, same.is_repeated), (
                field.name
            )
        for nested in own.nested_types:
            check(nested, other.nested_types_by_name[nested.name])

    assert ours.package == theirs.package
    for name, message in ours.message_types_by_name.items():
        check(message, theirs.message_types_by_name[name])
    methods = {method.name for method in ours.services_by_name["GRPCInferenceService"].methods}
    assert methods <= {method.name for method in theirs.services_by_name["GRPCInferenceService"].methods}


def raw(service: Service, content: bytes, length: str | None = None) -> Any:
    headers = {} if length is None else {"Inference-Header-Content-Length": length}
    return ask(service, "POST", "/v2/models/intent/infer", token=TOKENS["ada"], content=content, headers=headers)


def binary(n_elements: int, size: int, packed: bytes) -> tuple[bytes, str]:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [n_elements], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + packed, str(len(head))


def test_lengths_that_lie_are_refused(service: Service) -> None:
    good = struct.pack("<I", 4) + b"play"
    assert raw(service, *binary(1, 8, good)).status_code == 200
    for content, length in (
        binary(2, 8, good),
        binary(1, 7, good),
        binary(1, 9, good),
        binary(1, -1, good),
        binary(1, 8, struct.pack("<I", 5) + b"play"),
        binary(1, 8, struct.pack("<I", 4) + b"pl\xffy"),
        binary(2**62, 8, good),
        (binary(1, 8, good)[0], "9999"),
        (binary(1, 8, good)[0], "-1"),
    ):
        answer = raw(service, content, length)
        assert 400 <= answer.status_code < 500, answer.text
        assert isinstance(answer.json()["error"], str)


_NAMES = st.sampled_from(["inputs", "name", "shape", "datatype", "data", "parameters", "outputs"])
_JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(_NAMES, inner), max_leaves=20
).map(lambda value: json.dumps(value).encode())


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | _JSON, st.none() | st.text(alphabet="0123456789-+e", max_size=8))
def test_whatever_comes_is_no_fault_of_the_server(service: Service, content: bytes, length: str | None) -> None:
    assert raw(service, content, length).status_code < 500


def test_limits_hold_for_tensors_too(service: Service) -> None:
    small = with_settings(service, limits=RequestLimits(texts=1))
    data = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": TEXTS}]}
    answer = ask(small, "POST", "/v2/models/intent/infer", token=TOKENS["ada"], json=data)
    assert answer.status_code == 413


def test_compressed_bodies_are_refused(service: Service) -> None:
    answer = ask(
        service,
        "POST",
        "/v2/models/intent/infer",
        token=TOKENS["ada"],
        content=b"x",
        headers={"Content-Encoding": "gzip"},
    )
    assert answer.status_code == 415


def predict(service: Service, inputs: Any, path: str = "/tei/intent/predict", **more: Any) -> Any:
    return ask(service, "POST", path, token=TOKENS["ada"], json={"inputs": inputs, **more})


def test_tei_gives_labels_with_scores_the_best_first(service: Service) -> None:
    (expected,) = analyzed(service, "intent", texts=TEXTS[:1], probabilities=True)
    found = predict(service, TEXTS[0]).json()
    assert {each["label"]: each["score"] for each in found} == pytest.approx(expected["probabilities"], abs=1e-6)
    assert [each["score"] for each in found] == sorted((each["score"] for each in found), reverse=True)
    assert predict(service, [TEXTS[0]]).json() == found
    batch = predict(service, [[text] for text in TEXTS]).json()
    assert len(batch) == 2
    assert predict(service, TEXTS[0], "/predict?task=intent").json() == found
    assert predict(service, [TEXTS, TEXTS[::-1]], "/tei/same/predict").status_code == 200


def test_tei_is_refused_in_its_own_form(service: Service) -> None:
    for answer in (predict(service, TEXTS[0], "/tei/slots/predict"), predict(service, TEXTS[0], "/predict")):
        assert 400 <= answer.status_code < 500
        assert set(answer.json()) == {"error", "error_type"}


def test_a_path_stays_in_its_protocol_where_it_is_unknown(service: Service) -> None:
    assert isinstance(ask(service, "GET", "/v2/nothing").json()["error"], str)
