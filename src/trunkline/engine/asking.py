"""A request that was sent, and its answers as they come: for threads, and for event loops."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeAlias

from trunkline.core.errors import TrunklineError
from trunkline.engine.answers import TaskAnswer, task_answers
from trunkline.engine.encoding import EncodedRequest
from trunkline.engine.loop import Loop
from trunkline.engine.request import Part, Request

_Event: TypeAlias = Part | TrunklineError | None


class Parts(Iterator[Part]):
    """The parts of a request; closing it early, or letting go of it, cancels what is left."""

    def __init__(self, loop: Loop, encoded: EncodedRequest, *, caller: str = "", deadline: float | None = None) -> None:
        """Send the request.

        Args:
            loop: Runs it.
            encoded: What is asked.
            caller: Who asks.
            deadline: On the loop's clock.

        Raises:
            QueueFullError: There is no room; nothing was queued.
            ClosedError: The loop was closed.
        """
        self.encoded = encoded
        self._loop = loop
        self._ended = False
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._request = _request(encoded, self._events.put, caller, deadline)
        loop.submit(self._request)

    def __next__(self) -> Part:
        """Wait for the next part."""
        if self._ended:
            raise StopIteration
        event = self._events.get()
        self._ended = not isinstance(event, Part)
        if event is None:
            raise StopIteration
        return _part(event)

    def close(self) -> None:
        """Cancel what is left."""
        self._ended = True
        self._loop.cancel(self._request)

    def __del__(self) -> None:
        """Nobody will read the rest."""
        if hasattr(self, "_request"):
            self.close()


class Answers(Iterator[TaskAnswer]):
    """Answers one by one; closing it early, or letting go of it, cancels what is left."""

    def __init__(self, parts: Parts) -> None:
        """Read what was sent.

        Args:
            parts: The request's.
        """
        self._parts = parts
        self._ready: deque[TaskAnswer] = deque()

    def __next__(self) -> TaskAnswer:
        """Wait for the next answer."""
        while not self._ready:
            self._ready.extend(task_answers(self._parts.encoded, next(self._parts)))
        return self._ready.popleft()

    def close(self) -> None:
        """Cancel what is left."""
        self._ready.clear()
        self._parts.close()


class AsyncParts(AsyncIterator[Part]):
    """As `Parts`, without blocking the event loop that it was made in."""

    def __init__(self, loop: Loop, encoded: EncodedRequest, *, caller: str = "", deadline: float | None = None) -> None:
        """Send the request; arguments and errors as of `Parts`."""
        self.encoded = encoded
        self._loop = loop
        self._events: asyncio.Queue[_Event] = asyncio.Queue()
        self._ended = False
        here = asyncio.get_running_loop()
        events = self._events

        def deliver(event: _Event) -> None:
            with suppress(RuntimeError):  # The event loop was closed: nobody waits any more.
                here.call_soon_threadsafe(events.put_nowait, event)

        self._request = _request(encoded, deliver, caller, deadline)
        loop.submit(self._request)

    async def __anext__(self) -> Part:
        """Wait for the next part."""
        if self._ended:
            raise StopAsyncIteration
        try:
            event = await self._events.get()
        except asyncio.CancelledError:
            self.close()
            raise
        self._ended = not isinstance(event, Part)
        if event is None:
            raise StopAsyncIteration
        return _part(event)

    def close(self) -> None:
        """Cancel what is left."""
        self._ended = True
        self._loop.cancel(self._request)

    def __del__(self) -> None:
        """Nobody will read the rest."""
        if hasattr(self, "_request"):
            self.close()


class AsyncAnswers(AsyncIterator[TaskAnswer]):
    """As `Answers`, without blocking the event loop that it was made in."""

    def __init__(self, parts: AsyncParts) -> None:
        """Read what was sent.

        Args:
            parts: The request's.
        """
        self._parts = parts
        self._ready: deque[TaskAnswer] = deque()

    async def __anext__(self) -> TaskAnswer:
        """Wait for the next answer."""
        while not self._ready:
            self._ready.extend(task_answers(self._parts.encoded, await anext(self._parts)))
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Cancel what is left."""
        self._ready.clear()
        self._parts.close()


class Collected:
    """A request whose parts are taken as they come, and whose end can be awaited, without a task of its own.

    What is done with a part is done while the engine runs the next branch; only the end wakes whoever waits.
    """

    def __init__(
        self,
        loop: Loop,
        encoded: EncodedRequest,
        take: Callable[[Part], None],
        *,
        caller: str = "",
        deadline: float | None = None,
    ) -> None:
        """Send the request; other arguments and errors as of `Parts`.

        Args:
            loop: Runs it.
            encoded: What is asked.
            take: Is given each part, in the event loop; what it raises is raised to whoever waits.
            caller: Who asks.
            deadline: On the loop's clock.
        """
        self._loop = loop
        self._take = take
        here = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = here.create_future()

        def deliver(event: _Event) -> None:
            with suppress(RuntimeError):  # The event loop was closed: nobody waits any more.
                here.call_soon_threadsafe(self._receive, event)

        self._request = _request(encoded, deliver, caller, deadline)
        loop.submit(self._request)

    def __await__(self) -> Generator[Any, None, None]:
        """Wait for the last part; `cancel` drops the request when nobody waits any more."""
        return self._done.__await__()

    def cancel(self) -> None:
        """Drop what is left."""
        self._done.cancel()
        self._loop.cancel(self._request)

    def _receive(self, event: _Event) -> None:
        if self._done.done():
            return
        if event is None:
            self._done.set_result(None)
            return
        try:
            self._take(_part(event))
        except Exception as error:  # noqa: BLE001 - it is whoever waits that must know
            self._loop.cancel(self._request)
            self._done.set_exception(error)


def _request(
    encoded: EncodedRequest, deliver: Callable[[_Event], None], caller: str, deadline: float | None
) -> Request:
    trunk = encoded.snapshot.trunk
    return Request(trunk, encoded.rows, encoded.asked, deliver=deliver, caller=caller, deadline=deadline)


def _part(event: Part | TrunklineError) -> Part:
    if isinstance(event, TrunklineError):
        raise event
    return event
