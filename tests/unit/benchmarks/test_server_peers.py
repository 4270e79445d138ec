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
from benchmarks.peers.infinity_peer import embedded_checkpoint, write_classifiers
from benchmarks.peers.processes import Listening, free_port, tree_megabytes
from benchmarks.peers.service import Answers
from benchmarks.peers.shapes import Shape
from benchmarks.peers.single_peer import write_graphs
from benchmarks.peers.single_server import Config, SingleTask, decoder, make_app
from benchmarks.server_bundle import XIAOAI9, Planned, random_bundle, random_checkpoint
from benchmarks.server_peers_report import figures_of
from trunkline.bundle.store import open_bundle
from trunkline.engine.verify import verify
from trunkline.model.backbone import load_backbone
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

    folder = write_classifiers(tmp_path, embedded_checkpoint(), {"mood": TASKS[1].labels})["mood"]
    model, found = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (6, 384)
    assert model.config.id2label == {0: "bad", 1: "so", 2: "good"}


def test_a_random_backbone_is_read_by_us_and_by_transformers_and_carries_a_bundle(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    checkpoint = random_checkpoint(tmp_path / "checkpoint", Shape(n_layers=2, width=32, n_heads=2, ffn_width=64))
    backbone = load_backbone(str(checkpoint))
    assert (backbone.config.n_layers, backbone.config.width) == (2, 32)
    _, found = AutoModelForSequenceClassification.from_pretrained(
        write_classifiers(tmp_path / "classifiers", checkpoint, {"mood": TASKS[1].labels})["mood"],
        output_loading_info=True,
    )
    assert not found["missing_keys"]
    plan = (Planned("domain", "classification", 1, 1, 2), Planned("slots", "tagging", 1, 1, 5))
    bundle = random_bundle(tmp_path, str(checkpoint), plan)
    assert {each.task for each in verify(bundle).tasks} == {"domain", "slots"}
    layers = {"trunk": 1, "own": 2, "folded": 1, "plan": 2, "single_models": 4}
    assert server_peers.layers_of(open_bundle(bundle).manifest, 2) == layers
    assert random_bundle(tmp_path, "never read again", plan) == bundle


def test_nine_tasks_of_xiaoai_pass_12_layers_of_108() -> None:
    own = [task.own_layers for task in XIAOAI9]
    assert own == [1] * 5 + [2] * 4
    assert 8 + sum(own) - len(own) == 12


def test_graphs_of_two_shapes_have_names_of_their_own(tmp_path: Path) -> None:
    for shape in ("minilm", "bert-base"):
        (tmp_path / f"{shape}.mood.3.xml").touch()
    paths = {write_graphs(tmp_path, shape, {"mood": TASKS[1].labels})[0].model for shape in ("minilm", "bert-base")}
    assert len(paths) == 2


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
    slow = [{"trunkline": of(900, open=opened), "single_models": of(100, open=opened), "infinity": of(30)}]
    figures = figures_of({"minilm": rounds, "bert-base": slow})
    assert figures == {
        "throughput_over_infinity": 3050 / 150, "throughput_over_best_single": 3.05,
        "throughput_over_infinity_bert_base": 30.0, "throughput_over_best_single_bert_base": 9.0,
    }  # fmt: skip
    layers = {"trunk": 8, "own": 13, "folded": 9, "plan": 12, "single_models": 108}
    scenario = {"tasks": {"domain": 2}, "bundle": "some", "layers": layers}
    result = {
        "command": "python -m benchmarks server-peers", "commit": "0" * 40, "started_at": "2026-01-02T03:04:05+00:00",
        "machine": {"n_cpus": 2, "cpu": "A processor"}, "versions": {"openvino": "1.0"}, "figures": figures,
        "details": {
            "scenarios": {"minilm": {**scenario, "rounds": rounds}, "bert-base": {**scenario, "rounds": slow}},
            "engine": "openvino, bf16", "trunkline": {"options": "--cache-mb 0"},
            "infinity": {"options": "--engine torch", "versions": {"torch": "2.0"}},
        },
    }  # fmt: skip
    table = server_peers.markdown_table(result)
    assert "| `throughput_over_infinity` | 20.3 | 20 | 30 | met |" in table
    assert "| `throughput_over_best_single` | 3.05 | 4 | 6 | not met |" in table
    assert "| `throughput_over_best_single_bert_base` | 9 | 4 | 6 | met |" in table
    assert "| BERT-base, 12 layers of 768 | 8 | 13 | 9 | 12 | 108 | 9.0 |" in table
    assert "| Trunkline | 3050 (3000 to 4000) |" in table
    assert "| Trunkline | 3.0 | 7.0 | 27 of 27 |" in table
    server_peers.draw(result, tmp_path / "server-peers.png")
    assert (tmp_path / "server-peers.png").stat().st_size > 1000
