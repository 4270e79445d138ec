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
    """All parts of a request at once: awaiting it wakes the event loop once, not for each part."""

    def __init__(self, loop: Loop, encoded: EncodedRequest, *, caller: str = "", deadline: float | None = None) -> None:
        """Send the request; arguments and errors as of `Parts`."""
        self.encoded = encoded
        self._loop = loop
        self._done: asyncio.Future[list[Part]] = asyncio.get_running_loop().create_future()
        here, parts = self._done.get_loop(), list[Part]()

        def deliver(event: _Event) -> None:
            if isinstance(event, Part):
                parts.append(event)
                return
            with suppress(RuntimeError):  # The event loop was closed: nobody waits any more.
                here.call_soon_threadsafe(self._finish, parts, event)

        self._request = _request(encoded, deliver, caller, deadline)
        loop.submit(self._request)

    def __await__(self) -> Generator[Any, None, list[Part]]:
        """Wait for the last part; `cancel` drops the request when nobody waits any more."""
        return self._done.__await__()

    def cancel(self) -> None:
        """Drop what is left."""
        self._done.cancel()
        self._loop.cancel(self._request)

    def _finish(self, parts: list[Part], error: TrunklineError | None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(parts)
        else:
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
