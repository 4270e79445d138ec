"""Pieces of the benchmark of servers: batches, the answers of single models, checkpoints for Infinity, tables."""

import asyncio
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from starlette.testclient import TestClient

from benchmarks import server_peers
from benchmarks.peers.batcher import Batcher
from benchmarks.peers.infinity_peer import write_classifiers
from benchmarks.peers.processes import Listening, free_port, tree_megabytes
from benchmarks.peers.service import Answers
from benchmarks.peers.single_server import Config, SingleTask, decoder, make_app
from benchmarks.server_peers_report import figures_of
from trunkline.wire import LabelAnswer

TASKS = (
    SingleTask(name="domain", labels=("home", "music"), model=""),
    SingleTask(name="mood", labels=("bad", "so", "good"), model=""),
)
CONFIG = Config(port=0, tasks=TASKS, precision="f32", max_tokens=64, sizes=(), texts=())


def logits_of(texts: Sequence[str]) -> Answers:
    """The first task tells by the text's length whether it is music; the second is always good."""
    return {
        "domain": [np.array([0.0, 9.0 if len(text) > 5 else -9.0], np.float32) for text in texts],
        "mood": [np.array([0.0, 0.0, 9.0], np.float32) for _ in texts],
    }


def test_texts_that_wait_are_answered_together_and_each_gets_its_own() -> None:
    batches: list[list[str]] = []
    first_runs, go_on = threading.Event(), threading.Event()

    def answer(texts: Sequence[str]) -> list[str]:
        batches.append(list(texts))
        first_runs.set()
        assert go_on.wait(10)
        return [text.upper() for text in texts]

    async def ask_all() -> list[str]:
        batcher = Batcher(answer, most=4)
        asked = [asyncio.ensure_future(batcher.ask("first"))]
        await asyncio.to_thread(first_runs.wait, 10)
        asked += [asyncio.ensure_future(batcher.ask(f"t{n}")) for n in range(6)]
        await asyncio.sleep(0)
        go_on.set()
        found = await asyncio.gather(*asked)
        await asyncio.to_thread(batcher.close)
        return found

    assert asyncio.run(ask_all()) == ["FIRST", *(f"T{n}" for n in range(6))]
    assert batches == [["first"], ["t0", "t1", "t2", "t3"], ["t4", "t5"]]


def test_what_a_batch_raises_reaches_everyone_in_it_and_the_next_is_answered() -> None:
    def answer(texts: Sequence[str]) -> list[int]:
        return [int(text) for text in texts]

    async def ask_all() -> list[Any]:
        batcher = Batcher(answer, n_workers=2, linger_s=0.001)
        found = [await asyncio.gather(batcher.ask("no"), return_exceptions=True), await batcher.ask("7")]
        await asyncio.to_thread(batcher.close)
        return found

    (error,), number = asyncio.run(ask_all())
    assert isinstance(error, ValueError)
    assert number == 7


def test_single_models_answer_in_the_form_of_ours() -> None:
    with TestClient(make_app(CONFIG, logits_of)) as client:
        said = client.post("/v1/analyze", json={"texts": ["play it"]}, headers={"X-Request-Id": "12.34"})
        assert said.headers["x-request-id"] == "12.34"
        (result,) = said.json()["results"]
        assert client.get("/health").status_code == 200
        for wrong in ({"texts": []}, {"texts": ["a", "b"]}, {"text": "a"}):
            assert client.post("/v1/analyze", json=wrong).status_code == 400
    answers = {name: msgspec.convert(each, LabelAnswer) for name, each in result.items()}
    assert {name: each.label for name, each in answers.items()} == {"domain": "music", "mood": "good"}
    assert answers["domain"].confidence == pytest.approx(1 / (1 + np.exp(-9)), abs=1e-6)


def test_answers_of_a_batch_stay_with_their_texts() -> None:
    results = decoder(TASKS)(logits_of(["short", "a longer one"]), 2)
    assert [each["domain"].label for each in results if isinstance(each["domain"], LabelAnswer)] == ["home", "music"]


def test_classifiers_for_infinity_are_the_backbone_with_a_head(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = write_classifiers(tmp_path, {"mood": TASKS[1].labels})["mood"]
    model, found = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (6, 384)
    assert model.config.id2label == {0: "bad", 1: "so", 2: "good"}


SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_process_is_waited_for_and_ended() -> None:
    port = free_port()
    with Listening([sys.executable, "-c", SERVER, str(port)], port=port, environment={}) as server:
        pid = server.pid
        assert 0 < tree_megabytes(pid) < 500
        assert "GET /health" in server.log()
    assert not psutil.pid_exists(pid)


def test_a_server_that_does_not_start_is_told_with_its_last_words() -> None:
    with pytest.raises(RuntimeError, match=r"ended with code 1.*no such thing"):
        Listening([sys.executable, "-c", "raise SystemExit('no such thing')"], port=free_port(), environment={})


def test_ratios_are_of_medians_and_the_table_says_what_is_met(tmp_path: Path) -> None:
    def of(rate: float, **more: Any) -> dict[str, Any]:
        return {
            "answers_a_second": rate, "requests_a_second": rate / 9, "p50_ms": 5.0, "p99_ms": 9.0, "megabytes": 300.0,
            **more,
        }  # fmt: skip

    opened = {"rate_a_second": 70.0, "n_requests": 9, "status": {"200": 9}, "p50_ms": 3.0, "p99_ms": 7.0}
    rounds = [
        {"trunkline": of(3000 + n, open=opened), "single_models": of(1000, open=opened), "infinity": of(100 + n)}
        for n in (0, 50, 1000)
    ]
    figures = figures_of(rounds)
    assert figures == {"throughput_over_infinity": 3050 / 150, "throughput_over_best_single": 3.05}
    result = {
        "command": "python -m benchmarks server-peers", "commit": "0" * 40, "started_at": "2026-01-02T03:04:05+00:00",
        "machine": {"n_cpus": 2, "cpu": "A processor"}, "versions": {"openvino": "1.0"}, "figures": figures,
        "details": {
            "tasks": {"domain": 2}, "rounds": rounds, "bundle": "some", "engine": "openvino, bf16",
            "infinity": {"options": "--engine torch", "versions": {"torch": "2.0"}},
        },
    }  # fmt: skip
    table = server_peers.markdown_table(result)
    assert "| `throughput_over_infinity` | 20.3 | 20 | 30 | met |" in table
    assert "| `throughput_over_best_single` | 3.05 | 4 | 6 | not met |" in table
    assert "| Trunkline | 3050 (3000 to 4000) |" in table
    assert "| Trunkline | 3.0 | 7.0 | 27 of 27 |" in table
    server_peers.draw(result, tmp_path / "server-peers.png")
    assert (tmp_path / "server-peers.png").stat().st_size > 1000
