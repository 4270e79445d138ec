"""A request as the loop sees it: rows that wait, and the parts of its answer as they come."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from trunkline.core.errors import TrunklineError
from trunkline.core.types import Encoded
from trunkline.engine.snapshot import LoadedBranch, LoadedTrunk


class Part(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Some answers of a request, as soon as they are there.

    Attributes:
        branch: Who answers.
        rows: Which rows of the request.
        logits: For each of them float32, (n_outputs,), or (tokens, n_outputs) for tagging.
        queued_s: Seconds that the request waited until its rows ran; 0 where the answers were known.
        trunk_s: Seconds from there until the trunk had been run up to the branch's exit.
        branch_s: Seconds that the branch took.
    """

    branch: LoadedBranch
    rows: list[int]
    logits: list[np.ndarray]
    queued_s: float = 0.0
    trunk_s: float = 0.0
    branch_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step took.

    Attributes:
        n_rows: Rows that ran.
        n_tokens: Their real tokens.
        seconds: How long it ran.
    """

    n_rows: int
    n_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits at one moment.

    Attributes:
        n_rows: Rows.
        n_tokens: Their real tokens.
        wait_s: How long all of it will take at the pace of the last steps; 0 before the first.
    """

    n_rows: int
    n_tokens: int
    wait_s: float


class Request:
    """Rows that wait for answers; made once, given to `Loop.submit`."""

    def __init__(
        self,
        trunk: LoadedTrunk,
        rows: Sequence[Encoded],
        asked: Mapping[LoadedBranch, np.ndarray],
        *,
        deliver: Callable[[Part | TrunklineError | None], None],
        caller: str = "",
        deadline: float | None = None,
    ) -> None:
        """Say what is asked.

        Args:
            trunk: On which the branches stand.
            rows: Distinct rows.
            asked: Branch to the numbers of the rows that it answers.
            deliver: Called with parts as they come and then once with None, or once with an error after which nothing
                comes. The loop's thread calls it; it must return at once and raise nothing.
            caller: Who asks; callers get equal shares.
            deadline: On the loop's clock; answers after it are not given.
        """
        self.trunk = trunk
        self.rows = rows
        self.asked = asked
        self.caller = caller
        self.deadline = deadline
        self.submitted = 0.0
        self._deliver = deliver
        self._lock = threading.Lock()
        self._n_open = sum(len(numbers) for numbers in asked.values())
        self._over = False

    @property
    def over(self) -> bool:
        """Whether nothing will be delivered any more."""
        return self._over

    def give(self, part: Part) -> None:
        """Deliver a part, and the end after the last."""
        with self._lock:
            if self._over:
                return
            self._n_open -= len(part.rows)
            self._over = self._n_open == 0
            self._deliver(part)
            if self._over:
                self._end(None)

    def end_if_empty(self) -> None:
        """Deliver the end of a request that asks for nothing."""
        with self._lock:
            if self._n_open == 0 and not self._over:
                self._over = True
                self._end(None)

    def fail(self, error: TrunklineError) -> None:
        """Deliver an error, unless it is over."""
        with self._lock:
            if not self._over:
                self._over = True
                self._end(error)

    def _end(self, event: TrunklineError | None) -> None:
        """Deliver the last event, and let go of the receiver, which knows this request: no garbage in a circle."""
        self._deliver(event)
        self._deliver = _nothing


def _nothing(_event: Part | TrunklineError | None) -> None:
    """Deliver to nobody."""
