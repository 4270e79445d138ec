"""``/predict`` as Text Embeddings Inference has it, for clients that were written for that server."""

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from trunkline.core.errors import DataError, UnknownNameError
from trunkline.core.specs import BranchSpec
from trunkline.core.types import Example
from trunkline.engine.encoding import known_task
from trunkline.engine.snapshot import Snapshot
from trunkline.server.analyze import Question
from trunkline.server.bodies import while_there
from trunkline.server.operation import Asked, ErrorForm, JsonResponse, Operation
from trunkline.server.refusals import Refusal
from trunkline.wire import Answer, LabelAnswer, LabelsAnswer

_KINDS = ("classification", "multilabel")
_ERROR_TYPES = {413: "validation", 422: "tokenizer", 429: "overloaded", 503: "unhealthy"}


class PredictRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Texts, or pairs of texts, for one task.

    Attributes:
        inputs: A text; an array of one text, or of the two of a pair; or an array of such arrays.
        raw_scores: Give logits in the place of probabilities.
        truncate: Cut texts that are longer than the task's ``max_length``; without it they are refused.
        truncation_direction: Where to cut: at the end.
    """

    inputs: str | list[str | list[str]]
    raw_scores: bool = False
    truncate: bool | None = False
    truncation_direction: str = "Right"


class PredictedLabel(msgspec.Struct, frozen=True, kw_only=True):
    """A label and its score."""

    label: str
    score: float


class TeiError(msgspec.Struct, frozen=True, kw_only=True):
    """Every answer that is no success."""

    error: str
    error_type: str


async def predict(asked: Asked) -> Response:
    """Every label of a text with its score, the best first; for an array of arrays an array of these."""
    asked.service.analyzer.admit()
    routes = asked.service.deployment.routes
    return await _predicted(asked, asked.request.query_params.get("task"), routes.snapshot_for(asked.request_id))


async def predict_task(asked: Asked) -> Response:
    """As ``/predict``, for clients that take the address of a server alone."""
    asked.service.analyzer.admit()
    routes = asked.service.deployment.routes
    return await _predicted(asked, asked.task, routes.snapshot_for(asked.request_id))


async def _predicted(asked: Asked, task: str | None, snapshot: Snapshot) -> Response:
    spec = _only(snapshot) if task is None else _with_labels(known_task(task, snapshot.branches).spec)
    body: PredictRequest = await asked.decoded(PredictRequest)
    if body.truncation_direction.lower() != "right":
        raise DataError(f"truncation_direction: is {body.truncation_direction[:20]!r}; Right is allowed; leave it out")
    examples, is_batch = examples_of(body.inputs)
    question = Question(
        examples=examples,
        tasks=(spec.task,),
        caller=asked.caller.name,
        arrived=asked.arrived,
        probabilities=True,
        truncate=bool(body.truncate),
    )
    async with while_there(asked.request):
        analyzer = asked.service.analyzer
        if body.raw_scores:
            raw = await analyzer.raw_answers(question, snapshot)
            scored = {each.index: dict(zip(spec.labels, each.logits.tolist(), strict=True)) for each in raw}
        else:
            scored = {each.index: _shares(each) for each in await analyzer.all_answers(question, snapshot)}
    results = [_best_first(scored[index]) for index in range(len(examples))]
    return JsonResponse(results if is_batch else results[0])


def examples_of(inputs: str | Sequence[str | Sequence[str]]) -> tuple[list[Example], bool]:
    """Texts and pairs, and whether they are a batch.

    Raises:
        DataError: They are none of the forms that are allowed.
    """
    if isinstance(inputs, str):
        return [Example(inputs)], False
    texts = [each for each in inputs if isinstance(each, str)]
    if not texts:
        return [_example([*each], f"inputs[{number}]") for number, each in enumerate(inputs)], True
    if len(texts) < len(inputs):
        raise DataError(
            "inputs: mix texts with arrays; all of a batch are arrays of one text or two; put each text in brackets"
        )
    return [_example(texts, "inputs")], False


def _example(texts: list[str], subject: str) -> Example:
    if len(texts) not in {1, 2}:
        raise DataError(
            f"{subject}: has {len(texts)} texts; one, or the two of a pair, are allowed; for more texts send each in "
            "an array of its own, [[…], […]]"
        )
    return Example(texts[0], texts[1] if len(texts) == 2 else None)


def _only(snapshot: Snapshot) -> BranchSpec:
    fitting = [branch.spec for branch in snapshot.branches.values() if branch.spec.kind in _KINDS]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(spec.task for spec in fitting) or "none"
    raise DataError(
        f"query: names no task, and {len(fitting)} have labels ({names}); name one with ?task=… or ask "
        "/tei/TASK/predict"
    )


def _with_labels(spec: BranchSpec) -> BranchSpec:
    if spec.kind not in _KINDS:
        raise DataError(
            f"task {spec.task!r}: is of kind {spec.kind}; {' and '.join(_KINDS)} are allowed here; ask it with "
            "/v1/analyze"
        )
    return spec


def _shares(answer: Answer) -> dict[str, float]:
    if isinstance(answer, LabelAnswer | LabelsAnswer) and isinstance(answer.probabilities, dict):
        return answer.probabilities
    raise UnknownNameError(f"task {answer.task!r}: gives no labels; ask one that does")


def _best_first(scores: dict[str, float]) -> list[PredictedLabel]:
    ordered = sorted(scores.items(), key=lambda item: -item[1])
    return [PredictedLabel(label=label, score=score) for label, score in ordered]


def _error(refusal: Refusal, request_id: str) -> TeiError:  # noqa: ARG001 - the header tells the request's id
    otherwise = "backend" if refusal.status >= 500 else "validation"
    return TeiError(error=refusal.message, error_type=_ERROR_TYPES.get(refusal.status, otherwise))


ERRORS = ErrorForm(TeiError, _error)
_MORE: dict[str, Any] = {
    "asks": PredictRequest,
    "answers": list[PredictedLabel | list[PredictedLabel]],
    "example": {"inputs": "wake me up at seven"},
    "errors": ERRORS,
}
OPERATIONS = (
    Operation("POST", "/predict", predict, "Labels and their scores, as Text Embeddings Inference gives them",
              "text embeddings inference", query={"task": "which task; may be left out where one alone has labels"},
              **_MORE),
    Operation("POST", "/tei/{task}/predict", predict_task, "The same, the task in the path",
              "text embeddings inference", **_MORE),
)  # fmt: skip
