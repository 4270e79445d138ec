"""``/v1/analyze`` and ``/v1/tasks``: what most clients use."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trunkline.core.errors import DataError, TrunklineError
from trunkline.core.types import Example
from trunkline.server.analyze import Question, check_count
from trunkline.server.bodies import while_there
from trunkline.server.operation import Asked, JsonResponse, Operation
from trunkline.server.refusals import refuse
from trunkline.wire import (
    AnalyzeRequest,
    AnalyzeResponse,
    Answer,
    AnswerEvent,
    EndEvent,
    ErrorDetail,
    ErrorEvent,
    Event,
    TaskInfo,
    TaskList,
)

NDJSON, SSE = "application/x-ndjson", "text/event-stream"


async def analyze(asked: Asked) -> Response:
    """Answer texts: all at once, or as a stream where the client accepts one."""
    asked.service.analyzer.admit()
    body: AnalyzeRequest = await asked.decoded(AnalyzeRequest)
    question = question_of(body, asked)
    snapshot = asked.service.deployment.routes.snapshot_for(body.key or asked.request_id)
    writer = _writer(asked.request.headers.get("accept", ""))
    async with while_there(asked.request):
        if writer is not None:
            answers = asked.service.analyzer.stream(question, snapshot)
            return StreamResponse(await _started(answers), asked, writer)
        answers_now = await asked.service.analyzer.all_answers(question, snapshot)
    results: list[dict[str, Answer]] = [{} for _ in question.examples]
    for answer in answers_now:
        results[answer.index][answer.task] = answer
    return JsonResponse(AnalyzeResponse(request_id=asked.request_id, results=results))


async def list_tasks(asked: Asked) -> Response:
    """Every task that is served, and the names of those that rest."""
    deployment = asked.service.deployment
    return JsonResponse(TaskList(tasks=deployment.tasks(), resting=list(deployment.resting())))


async def show_task(asked: Asked) -> Response:
    """One task."""
    return JsonResponse(asked.service.deployment.task(asked.task))


def question_of(body: AnalyzeRequest, asked: Asked) -> Question:
    """What a body asks.

    Raises:
        DataError: It has both texts and pairs, or neither.
    """
    if (body.texts is None) == (body.pairs is None):
        found = "both texts and pairs" if body.texts is not None else "neither texts nor pairs"
        raise DataError(f"body: has {found}; one of them is needed; send either")
    if body.tasks is not None and not body.tasks:
        raise DataError("tasks: none is named; name at least one, or leave the field out for all that fit")
    check_count(len(body.texts or body.pairs or ()), asked.service.settings.limits)
    singles = [Example(text) for text in body.texts or ()]
    pairs = [Example(text, text_pair) for text, text_pair in body.pairs or ()]
    return Question(
        examples=singles or pairs,
        tasks=body.tasks,
        caller=asked.caller.name,
        arrived=asked.arrived,
        probabilities=body.probabilities,
        top_k=body.top_k,
        offsets=body.offsets,
        truncate=body.truncate,
        deadline_ms=body.deadline_ms,
    )


class StreamResponse(Response):
    """Events one by one; a client that goes away, or does not read, ends it."""

    def __init__(
        self, answers: AsyncIterator[list[Answer]], asked: Asked, writer: tuple[str, Callable[[Event], bytes]]
    ) -> None:
        """Take what is to be told, and in which form."""
        self.media_type, self._write = writer
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._answers, self._asked = answers, asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - as ASGI has it
        """Send it."""

        async def tell(content: bytes, *, more: bool) -> None:
            await send({"type": "http.response.body", "body": content, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with while_there(self._asked.request):
            async for events in self._events():
                await tell(b"".join(map(self._write, events)), more=True)
            await tell(b"", more=False)

    async def _events(self) -> AsyncIterator[list[Event]]:
        n_answers = 0
        try:
            async for answers in self._answers:
                n_answers += len(answers)
                yield [AnswerEvent(answer=answer) for answer in answers]
            yield [EndEvent(request_id=self._asked.request_id, n_answers=n_answers)]
        except TrunklineError as error:
            refusal = self._asked.service.failed(error, self._asked.request_id)
            detail = ErrorDetail(code=refusal.code, message=refusal.message, request_id=self._asked.request_id)
            yield [ErrorEvent(error=detail)]


async def _started(answers: AsyncIterator[list[Answer]]) -> AsyncIterator[list[Answer]]:
    """A stream whose first answers are there: what is refused before them gets a status of its own."""
    first = await anext(answers, None)

    async def whole() -> AsyncIterator[list[Answer]]:
        if first is not None:
            yield first
        async for more in answers:
            yield more

    return whole()


def _writer(accept: str) -> tuple[str, Callable[[Event], bytes]] | None:
    """The form of stream that a client accepts; None for one JSON answer."""
    if not accept or accept == "*/*":
        return None
    wanted = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    for each in wanted:
        if each == NDJSON:
            return NDJSON, lambda event: msgspec.json.encode(event) + b"\n"
        if each == SSE:
            return SSE, _as_sse
        if each in {"application/json", "application/*", "*/*"}:
            return None
    raise refuse(
        406, "not_acceptable", f"header Accept: {accept[:100]!r} names no form of answer; use application/json, "
        f"{NDJSON} or {SSE}",
    )  # fmt: skip


def _as_sse(event: Any) -> bytes:
    name = event.__struct_config__.tag
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(event))


OPERATIONS = (
    Operation(
        "POST", "/v1/analyze", analyze, "Answer texts or pairs with some or all tasks", "answers",
        asks=AnalyzeRequest, answers=AnalyzeResponse, example={"texts": ["wake me up at seven"], "top_k": 2},
        other_answers={NDJSON: "one event a line, as soon as it is ready", SSE: "the same as server-sent events"},
    ),
    Operation("GET", "/v1/tasks", list_tasks, "Every task, served or at rest", "answers", answers=TaskList),
    Operation("GET", "/v1/tasks/{task}", show_task, "One task", "answers", answers=TaskInfo),
)  # fmt: skip
