"""From a request to its answers: limits, rows, the engine, decoding."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from trunkline.core.errors import DataError
from trunkline.core.types import Example, LabelPrediction, LabelsPrediction, Prediction, ScorePrediction, Span
from trunkline.engine.answers import RawAnswer, predictions, raw_answers
from trunkline.engine.asking import AsyncParts, Collected
from trunkline.engine.encoding import EncodedRequest, encode_request
from trunkline.engine.engine import Engine
from trunkline.engine.request import Part
from trunkline.engine.snapshot import Snapshot
from trunkline.server.long_texts import INLINE_CHARACTERS, LongTexts
from trunkline.server.metrics import Metrics
from trunkline.server.refusals import refuse
from trunkline.server.settings import RequestLimits, Settings
from trunkline.wire import (
    Answer,
    LabelAnswer,
    LabelsAnswer,
    Offsets,
    ScoreAnswer,
    ScoredLabel,
    SpansAnswer,
    TextSpan,
    Timings,
)

_Common: TypeAlias = tuple[int, str, str, int, bool, Timings]


class Question(msgspec.Struct, frozen=True):
    """What is asked, whatever protocol it came by.

    Attributes:
        examples: Texts or pairs.
        tasks: Which tasks answer; None lets all that fit.
        caller: Who asks; callers get equal shares.
        arrived: On the engine's clock.
        probabilities: See `trunkline.wire.AnalyzeRequest`, as all below.
        top_k: As above.
        offsets: As above.
        truncate: As above.
        deadline_ms: As above.
    """

    examples: Sequence[Example]
    tasks: Sequence[str] | None
    caller: str
    arrived: float
    probabilities: bool = False
    top_k: int | None = None
    offsets: Offsets = "codepoints"
    truncate: bool = False
    deadline_ms: float | None = None


class Analyzer:
    """Asks the engine on behalf of all protocols, with the same limits for each.

    Attributes:
        engine: Answers.
    """

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics) -> None:
        """Take what answers, what is allowed, and who counts."""
        self.engine = engine
        self._settings = settings
        self._metrics = metrics
        self._long_texts = LongTexts()

    def now(self) -> float:
        """Seconds on the clock of deadlines."""
        return self.engine.loop.clock()

    def admit(self) -> None:
        """Refuse at once what would wait too long; call it before a body is decoded.

        Raises:
            ServerError: 429, with the time after which it may be worth to ask again.
        """
        wait_ms = 1e3 * self.engine.loop.backlog().wait_s
        if wait_ms > self._settings.max_wait_ms:
            raise refuse(
                429,
                "overloaded",
                f"server: {wait_ms:.0f} ms of work wait; up to {self._settings.max_wait_ms:.0f} ms are taken; "
                "ask again later",
                Retry_After=str(max(1, math.ceil((wait_ms - self._settings.max_wait_ms) / 1e3))),
            )

    async def all_answers(self, question: Question, snapshot: Snapshot) -> list[Answer]:
        """Every answer, in no order; errors as of `trunkline.engine.engine.Engine.stream`, and `ServerError`."""
        encoded = await self._encoded(question, snapshot)
        answers: list[Answer] = []
        await self._collected(question, encoded, lambda part: answers.extend(_answers_of(question, encoded, part)))
        self._metrics.answered(answers)
        return answers

    async def stream(self, question: Question, snapshot: Snapshot) -> AsyncIterator[list[Answer]]:
        """Answers as they come, those that come together at once."""
        encoded = await self._encoded(question, snapshot)
        parts = AsyncParts(self.engine.loop, encoded, caller=question.caller, deadline=self._deadline(question))
        try:
            async for part in parts:
                answers = _answers_of(question, encoded, part)
                self._metrics.answered(answers)
                yield answers
        finally:
            parts.close()

    async def parts(self, question: Question, snapshot: Snapshot) -> tuple[EncodedRequest, list[Part]]:
        """Logits, for protocols that have tensors; errors as of `all_answers`."""
        encoded = await self._encoded(question, snapshot)
        parts: list[Part] = []
        await self._collected(question, encoded, parts.append)
        return encoded, parts

    async def _collected(self, question: Question, encoded: EncodedRequest, take: Callable[[Part], None]) -> None:
        deadline = self._deadline(question)
        collected = Collected(self.engine.loop, encoded, take, caller=question.caller, deadline=deadline)
        try:
            await collected
        except asyncio.CancelledError:
            collected.cancel()
            raise
        finally:
            del collected  # It keeps its error, whose traceback knows this frame.

    async def raw_answers(self, question: Question, snapshot: Snapshot) -> list[RawAnswer]:
        """Logits of every text, in no order; errors as of `all_answers`."""
        encoded, parts = await self.parts(question, snapshot)
        for part in parts:  # Decoded all the same: metrics tell what was answered.
            self._metrics.answered(_answers_of(question, encoded, part))
        return [raw for part in parts for raw in raw_answers(encoded, part)]

    async def _encoded(self, question: Question, snapshot: Snapshot) -> EncodedRequest:
        n_characters = check_texts(question.examples, self._settings.limits)
        if n_characters <= INLINE_CHARACTERS:
            encoded = encode_request(snapshot, question.examples, question.tasks)
        else:
            work = partial(encode_request, snapshot, question.examples, question.tasks)
            encoded = await self._long_texts.run(work, n_characters, self._deadline(question) - self.now())
        if not question.truncate:
            _refuse_long(encoded)
        return encoded

    def _deadline(self, question: Question) -> float:
        return question.arrived + (question.deadline_ms or self._settings.deadline_ms) / 1e3


def check_count(n_texts: int, limits: RequestLimits) -> None:
    """Refuse too many texts, or none, before anything is made of them; errors as of `check_texts`."""
    if not n_texts:
        raise DataError("texts: none was given; give at least one")
    if n_texts > limits.texts:
        raise refuse(413, "too_many_texts", f"texts: {n_texts} were given; {limits.texts} are allowed; send fewer")


def check_texts(examples: Sequence[Example], limits: RequestLimits) -> int:
    """Count characters before anything is tokenized.

    Returns:
        Characters of all texts.

    Raises:
        ServerError: 413: there are too many texts or characters.
        DataError: There is no text.
    """
    check_count(len(examples), limits)
    total = 0
    for index, example in enumerate(examples):
        n_characters = max(len(example.text), len(example.text_pair or ""))
        if n_characters > limits.text_characters:
            raise refuse(
                413,
                "text_too_long",
                f"text {index}: has {n_characters} characters; {limits.text_characters} are allowed; cut or split it",
            )
        total += len(example.text) + len(example.text_pair or "")
    if total > limits.characters:
        raise refuse(
            413, "texts_too_long", f"texts: have {total} characters; {limits.characters} are allowed; send fewer"
        )
    return total


def _refuse_long(encoded: EncodedRequest) -> None:
    if not any(row.truncated for row in encoded.rows):
        return
    for branch, numbers in encoded.asked.items():
        for number in numbers.tolist():
            if encoded.rows[number].truncated:
                index = encoded.readers[branch.spec.task][number][0]
                raise refuse(
                    413,
                    "text_too_long",
                    f"text {index}: has more than the {branch.spec.max_length} tokens that task {branch.spec.task!r} "
                    "reads; cut it yourself, or set truncate to true",
                )


def _answers_of(question: Question, encoded: EncodedRequest, part: Part) -> list[Answer]:
    started = time.perf_counter()
    best_only = question.top_k is None and not question.probabilities
    decoded = predictions(encoded, part, best_only=best_only)
    timings = _timings(part, time.perf_counter() - started)
    version, spec = part.branch.digest, part.branch.spec
    return [
        to_wire(found, question, (index, spec.task, version, spec.label_schema_version, truncated, timings))
        for index, found, truncated in decoded
    ]


def _timings(part: Part, decode_s: float) -> Timings:
    seconds = (part.queued_s, part.trunk_s, part.branch_s, decode_s)
    # As `round` does to three places, in half of its time: four an answer.
    return Timings(*[int(1e6 * each + 0.5) / 1e3 for each in seconds])


def to_wire(found: Prediction, question: Question, common: _Common) -> Answer:
    """An answer in the form that goes over the network; `common` is what all kinds begin with."""
    if isinstance(found, LabelPrediction):
        return LabelAnswer(
            *common,
            found.label,
            found.confidence,
            found.label is None,
            _top(found.probabilities, question.top_k),
            found.probabilities if question.probabilities else UNSET,
        )
    if isinstance(found, LabelsPrediction):
        chosen = [ScoredLabel(label=label, confidence=found.probabilities[label]) for label in found.labels]
        return LabelsAnswer(
            *common,
            sorted(chosen, key=lambda each: -each.confidence),
            _top(found.probabilities, question.top_k),
            found.probabilities if question.probabilities else UNSET,
        )
    if isinstance(found, ScorePrediction):
        return ScoreAnswer(*common, found.score)
    text = question.examples[common[0]].text
    return SpansAnswer(*common, _spans(found.spans, text, question.offsets))


def _top(probabilities: dict[str, float], top_k: int | None) -> list[ScoredLabel] | UnsetType:
    if top_k is None:
        return UNSET
    best = sorted(probabilities.items(), key=lambda item: -item[1])[:top_k]
    return [ScoredLabel(label=label, confidence=share) for label, share in best]


def _spans(spans: Sequence[Span], text: str, offsets: Offsets) -> list[TextSpan]:
    def place(position: int) -> int:
        if offsets == "codepoints" or text.isascii():
            return position
        if offsets == "utf16":
            return len(text[:position].encode("utf-16-le", "surrogatepass")) // 2
        return len(text[:position].encode("utf-8", "surrogatepass"))

    return [
        TextSpan(
            label=span.label, start=place(span.start), end=place(span.end), text=span.text, confidence=span.confidence
        )
        for span in spans
    ]
