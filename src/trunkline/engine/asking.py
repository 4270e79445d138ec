"""A request that was sent, and its answers as they come: for threads, and for event loops."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, ref

from trunkline.core.errors import TrunklineError
from trunkline.engine.answers import TaskAnswer, task_answers
from trunkline.engine.encoding import EncodedRequest
from trunkline.engine.loop import Loop
from trunkline.engine.request import Part, Request

_Event: TypeAlias = Part | TrunklineError | None
_TAKEN_S = 0.001
"""So long an event loop takes answers before it looks at the network again."""


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


class _Inbox:
    """Where the engine's thread leaves events for an event loop: one call wakes it for all that came together.

    They are taken a few at a time, and between them the event loop looks at the network: a step that ends answers many
    requests at once, and whoever asks meanwhile must not wait until all of them are decoded.
    """

    def __init__(self, event_loop: asyncio.AbstractEventLoop) -> None:
        self._event_loop = ref(event_loop)  # Not the loop itself: that would keep it for ever.
        self._left: deque[tuple[Callable[[_Event], object], _Event]] = deque()
        self._is_called = False

    @classmethod
    def here(cls) -> "_Inbox":
        """That of the event loop that runs."""
        event_loop = asyncio.get_running_loop()
        found = _INBOXES.get(event_loop)
        if found is None:
            found = _INBOXES[event_loop] = cls(event_loop)
        return found

    def leave(self, take: Callable[[_Event], object], event: _Event) -> None:
        """Have `take` called with an event, in the event loop; any thread may."""
        self._left.append((take, event))
        if self._is_called or (event_loop := self._event_loop()) is None:
            return
        self._is_called = True
        if asyncio._get_running_loop() is event_loop:  # noqa: SLF001 - the public one raises where none runs
            event_loop.call_soon(self._empty)
            return
        with suppress(RuntimeError):  # The event loop was closed: nobody waits any more.
            event_loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._is_called = False  # Before anything is taken: what comes later calls again.
        until = time.perf_counter() + _TAKEN_S
        while self._left:
            take, event = self._left.popleft()
            take(event)
            if self._left and time.perf_counter() >= until:
                self._is_called = True
                asyncio.get_running_loop().call_soon(self._empty)
                return


_INBOXES: WeakKeyDictionary[asyncio.AbstractEventLoop, _Inbox] = WeakKeyDictionary()


class AsyncParts(AsyncIterator[Part]):
    """As `Parts`, without blocking the event loop that it was made in."""

    def __init__(self, loop: Loop, encoded: EncodedRequest, *, caller: str = "", deadline: float | None = None) -> None:
        """Send the request; arguments and errors as of `Parts`."""
        self.encoded = encoded
        self._loop = loop
        self._events: asyncio.Queue[_Event] = asyncio.Queue()
        self._ended = False
        deliver = partial(_Inbox.here().leave, self._events.put_nowait)
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
        try:
            return _part(event)
        finally:
            del event  # An error's traceback knows this frame.

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
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = _request(encoded, partial(_Inbox.here().leave, self._receive), caller, deadline)
        try:
            loop.submit(self._request)
        except TrunklineError:
            del self._request  # It knows this receiver, and nobody will end it.
            raise

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
        if isinstance(event, TrunklineError):  # Not raised here: its traceback would know this receiver.
            self._done.set_exception(event)
            return
        try:
            self._take(event)
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
