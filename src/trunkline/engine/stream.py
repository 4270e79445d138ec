"""A stream of input lines, answered in chunks: what is wrong is said with its line, after the lines before it."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from trunkline.core.errors import DataError
from trunkline.core.types import Example
from trunkline.data.read import read_inputs
from trunkline.engine.engine import Answered, Engine, check_form

LINES_PER_CHUNK = 256


def answer_lines(
    engine: Engine, lines: Iterable[bytes], subject: str, *, tasks: Sequence[str] | None = None
) -> Iterator[Answered]:
    """Answer JSON lines (see `trunkline.data.read.read_inputs`) in their order, a chunk at a time.

    Args:
        engine: Who answers.
        lines: Raw JSON lines in UTF-8.
        subject: What messages are about, for example ``"standard input"``.
        tasks: Which tasks answer; None lets every task answer whose input form fits the line.

    Yields:
        Answers to the next lines.

    Raises:
        UnknownNameError: A task is not in the bundle; said before a line is read.
        DataError: A line is wrong or does not fit a task; the message names it, and all lines before it are answered.
        NonFiniteError: A logit is NaN or infinite.
    """
    for task in tasks or ():
        engine.spec(task)
    examples = _checked(engine, lines, subject, tasks=tasks or ())
    while True:
        chunk, failure = _next_chunk(examples)
        if chunk:
            yield engine.predict_counted(chunk, tasks=tasks)
        if failure is not None:
            raise failure
        if len(chunk) < LINES_PER_CHUNK:
            return


def _next_chunk(examples: Iterator[Example]) -> tuple[list[Example], DataError | None]:
    chunk: list[Example] = []
    try:
        for example in islice(examples, LINES_PER_CHUNK):
            chunk.append(example)  # noqa: PERF402 - a list that is made at once is lost with the error
    except DataError as failure:
        return chunk, failure
    return chunk, None


def _checked(engine: Engine, lines: Iterable[bytes], subject: str, *, tasks: Sequence[str]) -> Iterator[Example]:
    numbered = _NumberedLines(lines)
    for example in read_inputs(numbered, subject):
        for task in tasks:
            check_form(example, engine.spec(task), f"{subject} line {numbered.number}")
        yield example


class _NumberedLines:
    """Lines with the number of the one taken last; `read_inputs` takes no line ahead, and passes over blank ones."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        self.number = 0

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            self.number += 1
            yield line
