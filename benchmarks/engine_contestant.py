"""The engine as a contestant: texts to every task's logits, through its own loop and queue."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from benchmarks.peers.service import Answers
from trunkline.core.errors import TrunklineError
from trunkline.core.types import Example
from trunkline.engine.encoding import EncodedRequest, encode_request
from trunkline.engine.engine import Engine
from trunkline.engine.request import Part, Request

Text = str | tuple[str, str]
"""A text, or a pair."""
INCLUDES = "tokenization, queue, scheduling, the pass, logits of each task as float32 arrays in the order of the texts"
LEAVES_OUT = "turning logits into labels, which no contestant does"


@dataclass(frozen=True, slots=True)
class Seen:
    """When the answers to one request came, in seconds from asking.

    Attributes:
        encoded_s: When the rows were ready.
        first_s: When the first task's answers came.
        last_s: When all had come.
    """

    encoded_s: float
    first_s: float
    last_s: float


class EngineContestant:
    """An open engine, asked as `benchmarks.peers.service.Contestant` is.

    Args:
        engine: Open; `close` closes it.
        tasks: Which tasks are asked; None asks all.

    Attributes:
        seen: Of the last request.
    """

    name = "trunkline"

    def __init__(self, engine: Engine, tasks: Sequence[str] | None = None) -> None:
        self._engine = engine
        self._tasks = tuple(tasks) if tasks is not None else tuple(engine.specs)
        self.precision: str = engine.backend.precision
        self.seen = Seen(0.0, 0.0, 0.0)

    def asking(self, tasks: Sequence[str]) -> "EngineContestant":
        """The same engine, asked for other tasks."""
        return EngineContestant(self._engine, tasks)

    def warm(self, texts: Sequence[Text]) -> None:
        """Answer three times, then let go of what only first runs needed."""
        for _ in range(3):
            self.answer(texts)
        self._engine.backend.settle()
        self.answer(texts)

    def answer(self, texts: Sequence[Text]) -> Answers:
        """Every task on every text."""
        started = time.perf_counter()
        examples = [Example(text) if isinstance(text, str) else Example(*text) for text in texts]
        encoded = encode_request(self._engine.snapshot, examples, self._tasks)
        encoded_s = time.perf_counter() - started
        blank = np.empty(0, dtype=np.float32)
        answers: Answers = {task: [blank] * len(examples) for task in self._tasks}
        first_s = 0.0
        for part in submit(self._engine, encoded):
            first_s = first_s or time.perf_counter() - started
            task = part.branch.spec.task
            readers = encoded.readers[task]
            for number, logits in zip(part.rows, part.logits, strict=True):
                for index in readers[number]:
                    answers[task][index] = logits
        self.seen = Seen(encoded_s, first_s, time.perf_counter() - started)
        return answers

    answer_shared = answer
    """The engine tokenizes once in any case."""

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


def submit(engine: Engine, encoded: EncodedRequest) -> "Parts":
    """Queue a request; iterating waits for its parts."""
    events: SimpleQueue[Part | TrunklineError | None] = SimpleQueue()
    request = Request(encoded.snapshot.trunk, encoded.rows, encoded.asked, deliver=events.put)
    engine.loop.submit(request)
    return Parts(events)


class Parts:
    """The parts of one request as they come; an error is raised."""

    def __init__(self, events: "SimpleQueue[Part | TrunklineError | None]") -> None:
        self._events = events

    def __iter__(self) -> "Parts":
        return self

    def __next__(self) -> Part:
        event = self._events.get()
        if event is None:
            raise StopIteration
        if isinstance(event, TrunklineError):
            raise event
        return event
