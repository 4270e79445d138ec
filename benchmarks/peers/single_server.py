"""A server over single-task models, as strong as it can be made: ``python -m benchmarks.peers.single_server CONFIG``.

The same edge as ours (uvicorn with uvloop and httptools, Starlette, msgspec; the body and the answers of
``/v1/analyze``) without what ours does besides: no keys, limits, metrics, versions, deadlines or fairness. Behind it a
whole model for each task in OpenVINO. Texts that wait are tokenized once and answered together, sorted by length and
cut into calls in the way that was fastest when it was tried.
"""

import hashlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.peers.batcher import Batcher
from benchmarks.peers.openvino_runner import OpenVinoRunner
from benchmarks.peers.service import Answers, Service
from benchmarks.peers.shapes import ServedTask
from benchmarks.peers.tokens import read_tokenizer
from trunkline.wire import AnalyzeRequest, AnalyzeResponse, Answer, LabelAnswer, Timings

SWITCH_S = 0.0005
"""As in our server: the event loop must not wait 5 ms for a thread that computes."""
_NO_TIMINGS = Timings(queue_ms=0.0, trunk_ms=0.0, branch_ms=0.0, decode_ms=0.0)


class SingleTask(msgspec.Struct, frozen=True, kw_only=True):
    """One task.

    Attributes:
        name: Of the task.
        labels: In the order of the logits.
        model: Path of its graph, as OpenVINO writes it.
    """

    name: str
    labels: tuple[str, ...]
    model: str


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What the program is told.

    Attributes:
        port: On loopback.
        tasks: A model each.
        precision: ``f32`` or ``bf16``.
        max_tokens: Longer texts are cut.
        sizes: Batches for which the fastest way to cut is looked for.
        texts: To look for it with, as many as the largest of them.
        n_threads: Of all models together.
        lanes: Calls at a time, each on a share of the threads.
        n_workers: Batches at a time.
        most: Texts of a batch.
        linger_ms: So long a batch waits for more texts once it has one.
    """

    port: int
    tasks: tuple[SingleTask, ...]
    precision: str
    max_tokens: int
    sizes: tuple[int, ...]
    texts: tuple[str, ...]
    n_threads: int = 2
    lanes: int = 1
    n_workers: int = 1
    most: int = 32
    linger_ms: float = 0.0


def load(config: Config) -> Service:
    """Compile every model, and meet batches of every size."""
    import openvino

    core = openvino.Core()
    runners = []
    for task in config.tasks:
        served = ServedTask(task.name, "classification", len(task.labels))
        runners.append(
            OpenVinoRunner(
                core.read_model(task.model), (served,), precision=config.precision, n_threads=config.n_threads,
                lanes=config.lanes, pinned=None if config.lanes == 1 else False,
            )
        )  # fmt: skip
    # lanes belong to the batches where those are several, else to the calls of one batch
    lanes = config.lanes if config.n_workers == 1 else 1
    service = Service("single models", config.precision, read_tokenizer(config.max_tokens), runners, lanes=lanes)
    for size in config.sizes:
        service.warm(config.texts[:size])
    return service


def decoder(tasks: Sequence[SingleTask]) -> Callable[[Answers, int], list[dict[str, Answer]]]:
    """What turns logits of so many texts into answers to each."""
    versions = {task.name: hashlib.sha256(task.name.encode()).hexdigest() for task in tasks}

    def decode(answers: Answers, n_texts: int) -> list[dict[str, Answer]]:
        results: list[dict[str, Answer]] = [{} for _ in range(n_texts)]
        for task in tasks:
            logits = np.stack(answers[task.name]).astype(np.float64)
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            best = shares.argmax(axis=1)
            confidences = shares[np.arange(n_texts), best].tolist()
            for result, place, confidence in zip(results, best.tolist(), confidences, strict=True):
                result[task.name] = LabelAnswer(
                    index=0, task=task.name, version=versions[task.name], label_schema_version=1, truncated=False,
                    timings=_NO_TIMINGS, label=task.labels[place], confidence=confidence, abstained=False,
                )  # fmt: skip
        return results

    return decode


def make_app(config: Config, answer: Callable[[Sequence[str]], Answers]) -> Starlette:
    """The application.

    Args:
        config: As the program got it.
        answer: Logits of every task for some texts.
    """
    decode = decoder(config.tasks)
    batchers: list[Batcher[dict[str, Answer]]] = []

    def results_of(texts: Sequence[str]) -> list[dict[str, Answer]]:
        return decode(answer(texts), len(texts))

    @asynccontextmanager
    async def batching(_app: Starlette) -> AsyncIterator[None]:
        batchers.append(
            Batcher(results_of, n_workers=config.n_workers, most=config.most, linger_s=config.linger_ms / 1e3)
        )
        yield
        batchers.pop().close()

    async def analyze(request: Request) -> Response:
        identity = request.headers.get("x-request-id", "")
        try:
            body = msgspec.json.decode(await request.body(), type=AnalyzeRequest)
        except msgspec.MsgspecError as error:
            return Response(str(error), status_code=400)
        if body.texts is None or len(body.texts) != 1:
            return Response("texts: one a request", status_code=400)
        results = [await batchers[0].ask(body.texts[0])]
        content = msgspec.json.encode(AnalyzeResponse(request_id=identity, results=results))
        return Response(content, media_type="application/json", headers={"x-request-id": identity})

    async def health(_request: Request) -> Response:
        return Response(b"{}", media_type="application/json")

    routes = [Route("/v1/analyze", analyze, methods=["POST"]), Route("/health", health)]
    return Starlette(routes=routes, lifespan=batching)


def main() -> None:
    """Load, then serve until the process is ended."""
    sys.setswitchinterval(SWITCH_S)
    config = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Config)
    started = time.perf_counter()
    service = load(config)
    print(f"loaded in {time.perf_counter() - started:.1f} s", flush=True)
    uvicorn.run(
        make_app(config, service.answer_shared), host="127.0.0.1", port=config.port, loop="uvloop", http="httptools",
        ws="none", lifespan="on", access_log=False, log_level="warning", server_header=False,
        timeout_keep_alive=75,
    )  # fmt: skip


if __name__ == "__main__":
    main()
