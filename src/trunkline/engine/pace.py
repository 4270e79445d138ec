"""How work beside requests is spread, so that no request waits much for it."""

import time
from collections.abc import Callable

_TIMES = 4.0
"""Requests that waited for a piece of work get so many times as long as it took before the next."""
_LEAST_S, _MOST_S = 0.01, 0.5


class Pace:
    """Called between two pieces of work on a new version: waits for an idle moment, or some times as long as one took.

    An engine that always has something to do is slowed down a little for longer, not much for a moment: it is the few
    requests of that moment that would wait longest.
    """

    def __init__(self, give_way: Callable[[float], None], clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with a piece of work.

        Args:
            give_way: As of `trunkline.engine.loop.Loop.give_way`: waits for an idle moment, at most so many seconds.
            clock: Seconds, never going back.
        """
        self._give_way = give_way
        self._clock = clock
        self._resumed = clock()

    def __call__(self) -> None:
        """End a piece of work; comes back when the next may begin."""
        took_s = self._clock() - self._resumed
        self._give_way(min(max(_LEAST_S, _TIMES * took_s), _MOST_S))
        self._resumed = self._clock()
