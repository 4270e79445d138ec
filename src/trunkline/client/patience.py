"""How long a call may take, and whether and when it is made again. Decisions only: nobody sleeps here."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
from tenacity import RetryCallState, retry_if_exception, wait_random_exponential

from trunkline.client.calls import Again, Call
from trunkline.client.settings import Settings
from trunkline.core.errors import ClientError, ServerUnreachableError

_CONNECT_S = 5.0
_LEAST_S = 0.001
# Nothing of the request was sent.
_UNREACHED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
_BACKOFF = wait_random_exponential(multiplier=0.25, max=8)
"""Full jitter (Brooker 2015): uniform between 0 and 0.25 s, 0.5 s, 1 s, … 8 s."""
_log = logging.getLogger("trunkline.client")


class Patience(Mapping[str, float]):
    """Of one call, over all its attempts.

    It is also what httpcore asks for the seconds of each step (``connect``, ``write``, …), so that steps share what is
    left and do not each get the whole.
    """

    def __init__(self, call: Call[Any], settings: Settings, clock: Callable[[], float]) -> None:
        """Begin to count.

        Args:
            call: Says when it is made again, and until when an answer is wanted.
            settings: Give the seconds of all attempts together, and their number.
            clock: In seconds, never goes back.
        """
        self._call, self._settings, self._clock = call, settings, clock
        self._began = clock()
        self._last_start_s = min(settings.timeout_s, call.deadline_s or settings.timeout_s)
        self._streams = False

    @property
    def elapsed_s(self) -> float:
        """Since the first attempt began."""
        return self._clock() - self._began

    @property
    def left_s(self) -> float:
        """Until the call ends without an answer; not above 0 when it is over."""
        return self._settings.timeout_s - self.elapsed_s

    def begin_attempt(self) -> None:
        """From now on the steps of an attempt share what is left."""
        self._streams = False

    def begin_stream(self) -> None:
        """From now on each wait for more has the whole time."""
        self._streams = True

    def rules(self) -> dict[str, Any]:
        """What tenacity is told."""
        return {
            "retry": retry_if_exception(self._retries),
            "stop": self._stops,
            "wait": self._wait_s,
            "before_sleep": self._tell,
            "reraise": True,
        }

    def __getitem__(self, step: str) -> float:
        """Seconds that a step of httpcore's may take."""
        left = self._settings.timeout_s if self._streams else max(self.left_s, _LEAST_S)
        return min(left, _CONNECT_S) if step == "connect" else left

    def __iter__(self) -> Iterator[str]:
        """The steps of httpcore."""
        return iter(("connect", "read", "write", "pool"))

    def __len__(self) -> int:
        """How many steps."""
        return 4

    def _retries(self, error: BaseException) -> bool:
        """Whether an error may pass, and making the call again does no harm."""
        return isinstance(error, ClientError) and may_pass(error, self._call.again)

    def _wait_s(self, state: RetryCallState) -> float:
        """Seconds until the next attempt: not before the server wants it, and never all clients at once."""
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after_s if isinstance(error, ClientError) else None
        return (asked or 0.0) + float(_BACKOFF(state))

    def _stops(self, state: RetryCallState) -> bool:
        """Whether there is no next attempt: there were enough, or it would begin too late."""
        enough = state.attempt_number > self._settings.retries
        return enough or self.elapsed_s + state.upcoming_sleep >= self._last_start_s

    def _tell(self, state: RetryCallState) -> None:
        """Write a retry into the log."""
        error = state.outcome.exception() if state.outcome is not None else None
        _log.info(
            "%s %s: attempt %d failed (%s); again in %.2f s; request %s",
            self._call.method, self._call.path, state.attempt_number, type(error).__name__, state.upcoming_sleep,
            self._call.request_id,
        )  # fmt: skip


def may_pass(error: ClientError, again: Again) -> bool:
    """Whether a call is made again after an error.

    A server of ours that answers 429 or 503 has done nothing; something between it and us may answer 503 after the
    server did its work, and says no code. A 504 of the server's own means that its deadline is over.
    """
    if isinstance(error, ServerUnreachableError) or error.status is None:
        unreached = isinstance(error.__cause__, _UNREACHED)
        return unreached or (again == "repeatable" and isinstance(error, ServerUnreachableError))
    if again == "if_unreached":
        return False
    if error.code is not None:
        return error.status in {429, 503} or (error.status == 502 and again == "repeatable")
    return error.status == 429 or (again == "repeatable" and error.status in {502, 503, 504})
