"""``/v1/analyze`` and ``/v1/tasks`` on a pico bundle."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.tiny_bundles import make_bundle
from tests.tiny_engines import open_fp32
from tests.tiny_servers import ask, make_keys, make_service, with_settings
from trunkline.core.errors import SpecError
from trunkline.server.operation import Service
from trunkline.server.settings import RequestLimits
from trunkline.wire import AnalyzeResponse, Event, TaskList

TEXTS = ["play a song", "what is the weather in paris tomorrow?", "明天北京天气好吗 please"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), "intent", "topics", "urgency", "slots", "same").path


@pytest.fixture(scope="module")
def service(path: Path) -> Iterator[Service]:
    with make_service(path) as made:
        yield made


def analyze(service: Service, **body: Any) -> AnalyzeResponse:
    answer = ask(service, "POST", "/v1/analyze", json=body)
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=AnalyzeResponse)


def refused(service: Service, status: int, code: str, **options: Any) -> str:
    answer = ask(service, "POST", "/v1/analyze", **options)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["request_id"] == answer.headers["x-request-id"]
    return str(error["message"])


def test_answers_are_those_of_the_engine(service: Service, path: Path) -> None:
    found = analyze(service, texts=TEXTS, probabilities=True).results
    with open_fp32(path) as engine:
        expected = engine.predict(TEXTS)
    for answers, predictions in zip(found, expected, strict=True):
        assert set(answers) == {"intent", "topics", "urgency", "slots"}
        assert answers["intent"].label == predictions["intent"].label
        assert answers["intent"].probabilities == pytest.approx(predictions["intent"].probabilities, abs=1e-4)
        assert {each.label for each in answers["topics"].labels} == set(predictions["topics"].labels)
        assert answers["urgency"].score == pytest.approx(predictions["urgency"].score, abs=1e-3)
        spans = [(span.label, span.start, span.end, span.text) for span in answers["slots"].spans]
        assert spans == [(span.label, span.start, span.end, span.text) for span in predictions["slots"].spans]


def test_every_answer_says_who_made_it_and_where_the_time_went(service: Service) -> None:
    (answers,) = analyze(service, texts=TEXTS[:1]).results
    for task, answer in answers.items():
        info = service.deployment.task(task)
        assert (answer.task, answer.version, answer.index) == (task, info.version, 0)
        assert answer.label_schema_version == info.label_schema_version
        assert answer.timings.branch_ms >= 0


def test_pairs_are_answered_by_tasks_for_pairs(service: Service) -> None:
    (answers,) = analyze(service, pairs=[["play a song", "play music"]]).results
    assert set(answers) == {"same"}


def test_only_tasks_that_are_named_answer(service: Service) -> None:
    (answers,) = analyze(service, texts=TEXTS[:1], tasks=["topics"]).results
    assert set(answers) == {"topics"}


def test_probabilities_and_the_best_labels_come_when_asked_for(service: Service) -> None:
    (plain,) = analyze(service, texts=TEXTS[:1], tasks=["intent"]).results
    assert plain["intent"].top is msgspec.UNSET
    assert plain["intent"].probabilities is msgspec.UNSET
    (asked,) = analyze(service, texts=TEXTS[:1], tasks=["intent"], top_k=2, probabilities=True).results
    top = asked["intent"].top
    assert len(top) == 2
    assert top[0].label == asked["intent"].label
    assert top[0].confidence == max(asked["intent"].probabilities.values())


@pytest.mark.parametrize(
    ("offsets", "encoding", "unit"), [("codepoints", "utf-32-le", 4), ("utf16", "utf-16-le", 2), ("bytes", "utf-8", 1)]
)
def test_spans_count_in_the_unit_that_is_asked_for(service: Service, offsets: str, encoding: str, unit: int) -> None:
    text = "𝒳𝒴 明天 paris new york 北京 😀 paris"
    (answers,) = analyze(service, texts=[text], tasks=["slots"], offsets=offsets).results
    assert answers["slots"].spans
    for span in answers["slots"].spans:
        assert text.encode(encoding)[unit * span.start : unit * span.end].decode(encoding) == span.text


@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/event-stream"])
def test_a_stream_gives_the_same_answers_and_an_end(service: Service, accept: str) -> None:
    answer = ask(service, "POST", "/v1/analyze", json={"texts": TEXTS}, headers={"Accept": accept})
    assert answer.headers["content-type"].startswith(accept)
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line and not line.startswith("event:")]
    *answers, end = [msgspec.json.decode(line, type=Event) for line in lines]
    assert (end.n_answers, end.request_id) == (12, answer.headers["x-request-id"])
    found = {(event.answer.index, event.answer.task): event.answer for event in answers}
    for index, expected in enumerate(analyze(service, texts=TEXTS).results):
        for task, whole in expected.items():
            streamed = found[index, task]
            assert getattr(streamed, "label", None) == getattr(whole, "label", None)
            assert getattr(streamed, "spans", None) == getattr(whole, "spans", None)


def test_an_unknown_task_is_told_the_nearest(service: Service) -> None:
    assert "did you mean 'intent'" in refused(service, 404, "unknown_name", json={"texts": ["a"], "tasks": ["intant"]})


def test_an_unknown_field_is_told_the_nearest(service: Service) -> None:
    assert "did you mean 'texts'" in refused(service, 400, "unknown_field", json={"text": ["a"]})


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "neither texts nor pairs"),
        ({"texts": ["a"], "pairs": [["a", "b"]]}, "both texts and pairs"),
        ({"texts": []}, "none was given"),
        ({"texts": ["a"], "tasks": []}, "none is named"),
        ({"texts": ["a"], "tasks": ["same"]}, "is a single text"),
        ({"pairs": [["a", "b"]], "tasks": ["intent"]}, "is a pair"),
    ],
)
def test_what_does_not_fit_is_refused(service: Service, body: dict[str, Any], says: str) -> None:
    assert says in refused(service, 400, "invalid_input", json=body)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"texts": "a"}', b'{"texts": [1]}', b'{"texts": ["\xff"]}', b"[" * 100_000]
)
def test_a_body_that_is_no_request_is_refused(service: Service, content: bytes) -> None:
    refused(service, 400, "invalid_request", content=content)


def test_a_text_with_half_a_surrogate_is_refused(service: Service) -> None:
    refused(service, 400, "invalid_request", content=b'{"texts": ["\\ud800"]}')


@pytest.mark.parametrize(
    ("limits", "body", "code"),
    [
        (RequestLimits(texts=2), {"texts": ["a", "b", "c"]}, "too_many_texts"),
        (RequestLimits(text_characters=5), {"texts": ["abcdef"]}, "text_too_long"),
        (RequestLimits(characters=5), {"texts": ["abc", "def"]}, "texts_too_long"),
        (RequestLimits(body_bytes=20), {"texts": ["abcdefghijklmnop"]}, "body_too_large"),
    ],
)
def test_limits_are_kept_before_anything_is_tokenized(
    service: Service, limits: RequestLimits, body: dict[str, Any], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.server.analyze.encode_request", None)
    refused(with_settings(service, limits=limits), 413, code, json=body)


def test_a_text_that_is_too_long_is_cut_only_when_that_is_asked(service: Service) -> None:
    body = {"texts": ["play a song " * 40], "tasks": ["intent"]}
    assert "more than the 32 tokens" in refused(service, 413, "text_too_long", json=body)
    (answers,) = analyze(service, **body, truncate=True).results
    assert answers["intent"].truncated


def test_a_deadline_that_passes_is_a_504(service: Service) -> None:
    refused(service, 504, "deadline_exceeded", json={"texts": ["never asked before"], "deadline_ms": 0.001})


def test_what_would_wait_too_long_is_told_when_to_come_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    full = type("Backlog", (), {"n_rows": 1, "n_tokens": 9, "wait_s": 3.5})()
    monkeypatch.setattr(service.analyzer.engine.loop, "backlog", lambda: full)
    answer = ask(service, "POST", "/v1/analyze", json={"texts": ["a"]})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert answer.json()["error"]["code"] == "overloaded"


def test_no_form_of_answer_that_a_client_accepts_is_a_406(service: Service) -> None:
    refused(service, 406, "not_acceptable", json={"texts": ["a"]}, headers={"Accept": "image/png"})


def test_a_request_id_that_is_harmless_is_kept_and_another_is_not(service: Service) -> None:
    kept = ask(service, "GET", "/v1/tasks", headers={"X-Request-Id": "order-66.a_b"})
    assert kept.headers["x-request-id"] == "order-66.a_b"
    for bad in ("a" * 65, "a b", "a\tb"):
        assert ask(service, "GET", "/v1/tasks", headers={"X-Request-Id": bad}).headers["x-request-id"] != bad


def test_tasks_are_told_with_what_they_take_and_give(service: Service) -> None:
    listed = msgspec.json.decode(ask(service, "GET", "/v1/tasks").content, type=TaskList)
    assert [info.task for info in listed.tasks] == ["intent", "topics", "urgency", "slots", "same"]
    one = ask(service, "GET", "/v1/tasks/intent").json()
    assert (one["kind"], one["labels"], one["precision"]) == ("classification", ["book", "music", "weather"], "fp32")
    assert ask(service, "GET", "/v1/tasks/intant").status_code == 404


def test_a_bundle_has_no_versions(path: Path) -> None:
    tokens, keys = make_keys(ada=("admin",))
    with make_service(path, keys=keys) as keyed:
        answer = ask(keyed, "GET", "/v1/tasks/intent/versions", token=tokens["ada"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_a_registry")


def test_an_unknown_path_is_refused_in_the_same_form(service: Service) -> None:
    assert ask(service, "GET", "/v1/nothing").json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("where", "methods"),
    [
        ("/v1/analyze", "POST"),
        ("/v1/tasks/intent", "DELETE, GET, HEAD"),
        ("/v1/tasks/intent/versions", "GET, HEAD, POST"),
        ("/v1/tasks/intent/versions/12345678", "DELETE"),
        ("/openapi.json", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_offered_is_told_all_that_are(service: Service, where: str, methods: str) -> None:
    answer = ask(service, "PUT", where)
    assert (answer.status_code, answer.headers["allow"]) == (405, methods)
    assert f"allowed here: {methods};" in answer.json()["error"]["message"]


def test_the_head_of_an_answer_is_given_alone(service: Service) -> None:
    assert ask(service, "HEAD", "/v1/tasks/intent").status_code == 200
    assert ask(service, "HEAD", "/v1/analyze").status_code == 405


def test_health_metrics_and_docs_are_there(service: Service) -> None:
    analyze(service, texts=["count me"])
    assert ask(service, "GET", "/health/live").status_code == 200
    assert ask(service, "GET", "/health/ready").status_code == 200
    text = ask(service, "GET", "/metrics").text
    assert 'trunkline_answers_total{task="intent"}' in text
    assert "count me" not in text
    assert "openapi.json" in ask(service, "GET", "/docs").text


def test_a_server_that_is_not_ready_says_so(service: Service) -> None:
    service.metrics.takes_requests = False
    try:
        assert ask(service, "GET", "/health/ready").status_code == 503
    finally:
        service.metrics.takes_requests = True


def test_a_server_whose_engine_ended_is_to_be_restarted(path: Path) -> None:
    with make_service(path) as service:
        service.analyzer.engine.loop.close()
        for path_of in ("/health/live", "/v2/health/live"):
            answer = ask(service, "GET", path_of)
            assert answer.status_code == 503
            assert "restart" in answer.text
        assert ask(service, "GET", "/health/ready").status_code == 503
        assert "trunkline_ready 0.0" in ask(service, "GET", "/metrics").text


def test_long_texts_beyond_what_may_wait_are_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trunkline.server.long_texts.WAITING_CHARACTERS", 9_999)
    body = {"texts": ["word " * 2_000], "truncate": True}
    assert "10000 characters" in refused(service, 429, "overloaded", json=body)
    assert analyze(service, texts=["word " * 1_900], truncate=True).results


def test_tokenizing_long_texts_ends_at_the_deadline(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, let_go = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        begun.set()
        let_go.wait(10)

    monkeypatch.setattr("trunkline.server.analyze.encode_request", slow)
    body = {"texts": ["word " * 2_000], "truncate": True, "deadline_ms": 50}
    try:
        assert "deadline" in refused(service, 504, "deadline_exceeded", json=body)
        assert begun.is_set()
    finally:
        let_go.set()


def test_openapi_names_every_operation_and_its_example_runs(service: Service) -> None:
    document = ask(service, "GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    operations = [each["operationId"] for verbs in document["paths"].values() for each in verbs.values()]
    assert len(set(operations)) == len(operations)
    example = document["paths"]["/v1/analyze"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert analyze(service, **example).results
    assert "$ref" in json.dumps(document["paths"]["/v1/analyze"]["post"])


def test_a_fault_is_told_without_its_reason(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret reason")

    monkeypatch.setattr("trunkline.server.analyze.encode_request", fail)
    answer = ask(service, "POST", "/v1/analyze", json={"texts": ["a"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert "secret" not in answer.text


def test_texts_are_encoded_in_another_thread_when_they_are_long(service: Service) -> None:
    texts = [f"{index} " + "play a song " * 50 for index in range(20)]
    assert sum(map(len, texts)) > 8000
    assert len(analyze(service, texts=texts, tasks=["intent"], truncate=True).results) == 20


def test_a_task_that_is_named_often_is_looked_at_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr("trunkline.engine.encoding.check_form", lambda _example, spec, _where: looked.append(spec.task))
    analyze(service, texts=TEXTS, tasks=["intent"] * 1_000)
    assert looked == ["intent"] * len(TEXTS)


def test_a_compressed_body_is_refused(service: Service) -> None:
    refused(service, 415, "compressed_body", content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})


def test_a_fault_of_the_engine_is_logged_with_its_cause(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("primitive could not be made")

    monkeypatch.setattr("trunkline.engine.runner.Runner.run", fail)
    refused(service, 500, "internal", json={"texts": ["a text that nobody asked before"]})
    assert "primitive could not be made" in caplog.text


def test_limits_that_refuse_everything_are_refused_themselves() -> None:
    with pytest.raises(SpecError, match="the limit of body_bytes is -1; choose 1 or more"):
        RequestLimits(body_bytes=-1)


def test_a_body_that_comes_byte_by_byte_ends_too(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trunkline.server.bodies._WHOLE_S", 0.05)

    async def slowly() -> AsyncIterator[bytes]:
        for byte in b'{"texts": ["a"]}':
            await asyncio.sleep(0.02)
            yield bytes([byte])

    refused(service, 408, "slow_body", content=slowly())
