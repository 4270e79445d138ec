"""A stream of input lines, answered as they come: what is wrong is said with its line, after the lines before it."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from trunkline.core.errors import DataError
from trunkline.core.types import Example
from trunkline.data.read import read_inputs
from trunkline.engine.encoding import check_form
from trunkline.engine.engine import Answered, Engine

LINES_PER_CHUNK = 256
READ_BYTES = 1 << 18


@runtime_checkable
class ReadsWhatIsThere(Protocol):
    """A binary stream, as ``sys.stdin.buffer`` is one."""

    def read1(self, size: int, /) -> bytes:
        """At most so many bytes; waits only where there is none, and gives none at the end alone."""
        ...


def ready_lines(stream: ReadsWhatIsThere) -> Iterator[list[bytes]]:
    """Whole lines as they come: those that can be read without waiting, together.

    A partner at the other end of a pipe who waits for an answer before it asks again is never waited for.

    Yields:
        At least one line; the last may lack its line break.
    """
    begun: list[bytes] = []
    while piece := stream.read1(READ_BYTES):
        first, *others = piece.split(b"\n")
        begun.append(first)
        if others:
            lines = [b"".join(begun), *others]
            begun = [lines.pop()]
            yield lines
    last = b"".join(begun)
    if last:
        yield [last]


def answer_lines(
    engine: Engine, lines: Iterable[Sequence[bytes]], subject: str, *, tasks: Sequence[str] | None = None
) -> Iterator[Answered]:
    """Answer JSON lines (see `trunkline.data.read.read_inputs`) in their order, a chunk at a time.

    Args:
        engine: Who answers.
        lines: Raw JSON lines in UTF-8, those together that came together (see `ready_lines`): they are answered before
            more are taken.
        subject: What messages are about, for example ``"standard input"``.
        tasks: Which tasks answer; None lets every task answer whose input form fits the line.

    Yields:
        Answers to the next lines, at most `LINES_PER_CHUNK`.

    Raises:
        UnknownNameError: A task is not in the bundle; said before a line is read.
        DataError: A line is wrong or does not fit a task; the message names it, and all lines before it are answered.
        NonFiniteError: A logit is NaN or infinite.
    """
    for task in tasks or ():
        engine.spec(task)
    source = _Lines(lines)
    examples = _checked(engine, source, subject, tasks=tasks or ())
    while True:
        chunk, failure = _next_chunk(examples, source)
        if chunk:
            yield engine.predict_counted(chunk, tasks=tasks)
        if failure is not None:
            raise failure
        if not chunk:
            return


class _Lines:
    """Lines one by one, the number of the one taken last, and whether taking another example might wait for more.

    `read_inputs` takes no line ahead, and passes over blank ones.
    """

    def __init__(self, lines: Iterable[Sequence[bytes]]) -> None:
        self._lines = lines
        self._ready: deque[bytes] = deque()
        self.number = 0

    def __iter__(self) -> Iterator[bytes]:
        for together in self._lines:
            self._ready.extend(together)
            while self._ready:
                self.number += 1
                yield self._ready.popleft()

    def holds_more(self) -> bool:
        """Whether a line that is not blank is there already."""
        return any(line.decode("utf-8-sig", "replace").strip() for line in self._ready)


def _next_chunk(examples: Iterator[Example], source: _Lines) -> tuple[list[Example], DataError | None]:
    chunk: list[Example] = []
    try:
        for example in examples:
            chunk.append(example)
            if len(chunk) == LINES_PER_CHUNK or not source.holds_more():
                break
    except DataError as failure:
        return chunk, failure
    return chunk, None


def _checked(engine: Engine, source: _Lines, subject: str, *, tasks: Sequence[str]) -> Iterator[Example]:
    for example in read_inputs(source, subject):
        for task in tasks:
            check_form(example, engine.spec(task), f"{subject} line {source.number}")
        yield example
