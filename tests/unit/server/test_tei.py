"""``/predict`` as Text Embeddings Inference has it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_bundles import TEXTS, make_bundle
from tests.tiny_servers import ask, make_service, with_settings
from trunkline.server.operation import Service

INTENT = "/tei/intent/predict"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    bundle = make_bundle(tmp_path_factory.mktemp("tei"), "intent", "topics", "urgency", "same")
    with make_service(bundle.path) as made:
        yield made


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    bundle = make_bundle(tmp_path_factory.mktemp("tei-single"), "topics", "urgency")
    with make_service(bundle.path) as made:
        yield made


def predict(service: Service, inputs: Any, path: str = INTENT, **more: Any) -> httpx.Response:
    return ask(service, "POST", path, json={"inputs": inputs, **more})


@pytest.mark.parametrize("task", ["intent", "topics"])
def test_raw_scores_are_what_the_probabilities_are_made_of(service: Service, task: str) -> None:
    path = f"/tei/{task}/predict"
    shares = {each["label"]: each["score"] for each in predict(service, TEXTS[0], path).json()}
    raw = {each["label"]: each["score"] for each in predict(service, TEXTS[0], path, raw_scores=True).json()}
    logits = np.array([raw[label] for label in shares])
    expected = np.exp(logits) / np.exp(logits).sum() if task == "intent" else 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(list(shares.values()), expected, atol=1e-5)


def test_one_text_gives_a_list_and_a_batch_a_list_of_lists(service: Service) -> None:
    one = predict(service, TEXTS[0]).json()
    assert predict(service, [TEXTS[0]]).json() == one
    batch = predict(service, [[TEXTS[0]], [TEXTS[1]]]).json()
    assert [each["label"] for each in batch[0]] == [each["label"] for each in one]
    assert len(batch) == 2
    assert len(predict(service, [[TEXTS[0]]]).json()) == 1


def test_two_texts_are_one_pair(service: Service) -> None:
    assert {each["label"] for each in predict(service, list(TEXTS[:2]), "/tei/same/predict").json()} == {"no", "yes"}
    assert predict(service, list(TEXTS[:2])).status_code == 400


def test_the_task_may_be_left_out_where_one_alone_has_labels(service: Service, single: Service) -> None:
    assert {each["label"] for each in predict(single, TEXTS[0], "/predict").json()} == {"food", "news", "travel"}
    answer = predict(service, TEXTS[0], "/predict")
    assert answer.status_code == 400
    assert "intent, topics, same" in answer.json()["error"]


def test_what_a_text_embeddings_client_sends_is_taken(service: Service) -> None:
    assert predict(service, TEXTS[0], truncate=None, truncation_direction="Right").status_code == 200
    assert predict(service, "song " * 60, truncate=True, truncation_direction="right").status_code == 200


@pytest.mark.parametrize(
    ("inputs", "more", "path", "status"),
    [
        ([], {}, INTENT, 400),
        (["a", ["b"]], {}, INTENT, 400),
        ([["a", "b", "c"]], {}, INTENT, 400),
        ([[]], {}, INTENT, 400),
        (3, {}, INTENT, 400),
        ("a", {"truncation_direction": "Left"}, INTENT, 400),
        ("a", {"raw_score": True}, INTENT, 400),
        ("song " * 60, {}, INTENT, 413),
        ("a", {}, "/tei/urgency/predict", 400),
        ("a", {}, "/predict?task=urgency", 400),
        ("a", {}, "/tei/intant/predict", 404),
        ("a", {}, "/predict?task=" + "x" * 5000, 404),
        ("a", {}, "/tei/nothing", 404),
    ],
)
def test_a_refusal_has_the_servers_form(service: Service, inputs: Any, more: Any, path: str, status: int) -> None:
    answer = predict(service, inputs, path, **more)
    assert (answer.status_code, answer.json()["error_type"]) == (status, "validation")
    assert len(answer.json()["error"]) < 500


def test_a_full_server_is_overloaded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    backlog = replace(service.analyzer.engine.loop.backlog(), wait_s=5.0)
    monkeypatch.setattr(type(service.analyzer.engine.loop), "backlog", lambda _: backlog)
    answer = predict(with_settings(service, max_wait_ms=1), TEXTS[0])
    assert (answer.status_code, answer.json()["error_type"]) == (429, "overloaded")
    assert answer.headers["retry-after"] == "5"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10), lambda inner: st.lists(inner, max_size=3)
)


@settings(max_examples=100, deadline=None)
@given(inputs=_JSON, raw_scores=st.booleans())
def test_no_inputs_are_a_fault_of_the_server(service: Service, inputs: Any, raw_scores: bool) -> None:
    content = json.dumps({"inputs": inputs, "raw_scores": raw_scores})
    assert ask(service, "POST", INTENT, content=content.encode()).status_code < 500
