"""The client for asyncio."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx
from tenacity import AsyncRetrying

from trunkline.client import calls
from trunkline.client.archives import chunks, pack_branch
from trunkline.client.calls import AnalyzeOptions, AnswerT, Call
from trunkline.client.patience import Patience
from trunkline.client.replies import EventReader, Place, closed, read_reply, refusal, timed_out, told_as_ours
from trunkline.client.settings import read_settings, with_timeout
from trunkline.core.errors import ServerBusyError
from trunkline.wire import AnalyzeResponse, Answer, Change, HistoryEntry, TaskInfo, VersionInfo

T = TypeVar("T")


class AsyncClient:
    """Asks a server. Connections are kept and used again; tasks of one event loop may share a client.

    Args:
        base_url: Of the server.
        key: API key; None takes the one of the environment variable ``TRUNKLINE_API_KEY``, if there is one.
        timeout_s: Seconds for a call with all its retries; of a stream, for each wait for more.
        retries: Most further attempts after the first, at times that are drawn anew for each.
        transport: Of httpx, in the place of the network.

    Raises:
        SpecError: The address, the key or a number is not allowed.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = read_settings(base_url, key=key, timeout_s=timeout_s, retries=retries)
        self._http = httpx.AsyncClient(
            base_url=self._settings.base_url, headers=self._settings.headers(), transport=transport
        )
        self._clock, self._sleep = time.monotonic, asyncio.sleep

    def __repr__(self) -> str:
        """Without the key."""
        return self._settings.shown("AsyncClient")

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections; it cannot be used after."""
        await self._http.aclose()

    async def analyze(self, **options: Unpack[AnalyzeOptions]) -> AnalyzeResponse:
        """Answer texts or pairs with some or all tasks.

        Args:
            **options: As `AnalyzeOptions` lists them: ``texts`` or ``pairs``, ``tasks``, …

        Returns:
            ``results``: for each text or pair, in the order asked, its answers by task.

        Raises:
            DataError: There are both texts and pairs, or neither; or a single str in the place of several.
            SpecError: An option is not known, of another type, or out of its range.
            ClientError: The server gave no answer; the leaf says why, and ``code`` what the server said.
        """
        return await self._run(calls.analyze_call(options))

    def stream(self, **options: Unpack[AnalyzeOptions]) -> "AsyncAnswerStream":
        """As `analyze`, but answers come one by one, as soon as each is ready: those of the lowest exits first.

        Args:
            **options: As of `analyze`.

        Returns:
            An iterator; use it in an ``async with`` where it may be left early. The request is sent when that or the
            iteration begins, and retried until the first answer is there; errors of the server come from there.

        Raises:
            DataError: As of `analyze`.
            SpecError: As of `analyze`.
        """
        call = calls.analyze_call(options, streamed=True)
        place = Place.of(call, self._settings)
        return AsyncAnswerStream(partial(self._started, call, place), place)

    async def tasks(self) -> list[TaskInfo]:
        """Every task that is served; errors as of `analyze`."""
        return (await self._run(calls.tasks_call())).tasks

    async def resting_tasks(self) -> list[str]:
        """Every task that is registered and that no version answers; errors as of `analyze`."""
        return (await self._run(calls.tasks_call())).resting

    async def task(self, task: str) -> TaskInfo:
        """One task; errors as of `analyze`."""
        return await self._run(calls.task_call(task))

    async def ready(self) -> bool:
        """Whether the server takes requests: False while it loads, drains or stops.

        Raises:
            ServerUnreachableError: There is no server, so nobody knows.
        """
        try:
            await self._run(calls.ready_call())
        except ServerBusyError:
            return False
        return True

    async def register(
        self, task: str, folder: Path, *, why: str, version: str | None = None, timeout_s: float | None = None
    ) -> Change:
        """Upload a branch. The server checks and loads it; it answers nobody before `activate`.

        Args:
            task: Which task it is a version of.
            folder: Of the branch.
            why: For the history.
            version: The digest that the branch must have; None takes any.
            timeout_s: Seconds for this call in the place of the client's: large branches take long.

        Raises:
            BundleError: The folder is none of a branch, or cannot be read.
            ClientError: As of `analyze`; after a `ServerTimeoutError` the version may have been registered.
        """
        with TemporaryDirectory(prefix="trunkline-client-") as temporary:
            archive = Path(temporary) / "branch.tar"
            call = calls.upload_call(task, archive, why=why, version=version)
            await asyncio.to_thread(pack_branch, Path(folder), archive)
            return await self._run(call, timeout_s)

    async def register_from(
        self, task: str, source: str, *, why: str, version: str | None = None, timeout_s: float | None = None
    ) -> Change:
        """Register a branch from a folder of the server, or an address that its settings allow; else as `register`."""
        return await self._run(calls.register_call(task, source, why=why, version=version), timeout_s)

    async def activate(self, task: str, version: str, *, why: str) -> Change:
        """Answer with a version from now on.

        Args:
            task: Whose version.
            version: Its digest, or the first 8 digits or more.
            why: For the history.

        Raises:
            ClientError: As of `analyze`; where the connection broke off or the time was over, it may have been done.
        """
        return await self._run(calls.activate_call(task, version, why=why))

    async def canary(self, task: str, version: str, *, percent: float, why: str) -> Change:
        """Answer ``percent`` (0 to 100) of the requests with a version; 0 ends it; else as `activate`."""
        return await self._run(calls.canary_call(task, version, percent=percent, why=why))

    async def rollback(self, task: str, *, why: str) -> Change:
        """Answer with the version that answered before; else as `activate`."""
        return await self._run(calls.rollback_call(task, why=why))

    async def remove(self, task: str, version: str | None = None, *, why: str) -> Change:
        """Take a task out of service, or drop one version that answers nobody; else as `activate`."""
        return await self._run(calls.remove_call(task, version, why=why))

    async def versions(self, task: str) -> list[VersionInfo]:
        """Every version of a task, oldest first; errors as of `analyze`."""
        return (await self._run(calls.versions_call(task))).versions

    async def history(self, task: str | None = None) -> list[HistoryEntry]:
        """Every change, or those of one task, oldest first; errors as of `analyze`."""
        return (await self._run(calls.history_call(task))).entries

    async def _run(self, call: Call[AnswerT], timeout_s: float | None = None) -> AnswerT:
        settings = with_timeout(self._settings, timeout_s)
        place = Place.of(call, settings)
        patience = Patience(call, settings, self._clock)
        return await self._patiently(partial(self._attempt, call, place, patience), place, patience)

    async def _started(self, call: Call[Any], place: Place) -> "_Opened":
        patience = Patience(call, self._settings, self._clock)
        return await self._patiently(partial(self._start, call, place, patience), place, patience)

    async def _patiently(self, attempt: Callable[[], Awaitable[T]], place: Place, patience: Patience) -> T:
        if self._http.is_closed:
            raise closed(place)
        return await AsyncRetrying(sleep=self._sleep, **patience.rules())(attempt)

    async def _attempt(self, call: Call[AnswerT], place: Place, patience: Patience) -> AnswerT:
        parts = []
        with told_as_ours(place):
            async with aclosing(await self._send(call, patience)) as response:
                async for part in response.aiter_bytes():
                    if patience.left_s <= 0:
                        raise timed_out(place)
                    parts.append(part)
        return read_reply(call, place, response, b"".join(parts))

    async def _start(self, call: Call[Any], place: Place, patience: Patience) -> "_Opened":
        with told_as_ours(place):
            async with AsyncExitStack() as undo:
                response = await undo.enter_async_context(aclosing(await self._send(call, patience)))
                if not response.is_success:
                    raise refusal(place, response, await response.aread())
                patience.begin_stream()
                opened = _Opened(response, response.aiter_bytes(), EventReader(place))
                while not opened.reader.has_line:
                    await opened.read()
                undo.pop_all()
        return opened

    async def _send(self, call: Call[Any], patience: Patience) -> httpx.Response:
        patience.begin_attempt()
        content = call.content(patience.elapsed_s) if call.archive is None else chunks(call.archive)
        request = self._http.build_request(
            call.method,
            call.path,
            params=call.query or None,
            headers=call.headers(),
            content=content,
            extensions={"timeout": patience},
        )
        return await self._http.send(request, stream=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    """A stream whose first line is there."""

    response: httpx.Response
    chunks: AsyncIterator[bytes]
    reader: EventReader

    async def read(self) -> None:
        """Have the reader read on."""
        chunk = await anext(self.chunks, None)
        if chunk is None:
            raise self.reader.broken_off()
        self.reader.feed(chunk)

    async def drain(self) -> None:
        """Read up to the very end, so that the connection can be used again; every answer is there already."""
        with suppress(httpx.HTTPError):
            async for _ in self.chunks:
                pass


class AsyncAnswerStream(AsyncIterator[Answer]):
    """Answers as they come; made by `AsyncClient.stream`. Closing it closes its connection, and the server stops."""

    def __init__(self, start: Callable[[], Awaitable[_Opened]], place: Place) -> None:
        self._start, self._place = start, place
        self._opened: _Opened | None = None
        self._is_over = False

    async def __aenter__(self) -> Self:
        """Send the request, if that was not done; errors as of `AsyncClient.analyze`."""
        if not self._is_over:
            await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()

    async def __anext__(self) -> Answer:
        """The next answer.

        Raises:
            StopAsyncIteration: All answers came, or the stream was closed.
            ServerUnreachableError: The stream broke off; the answers before hold.
            ClientError: The server refused or broke it off, or it is not understood.
        """
        answer = None
        try:
            answer = None if self._is_over else await self._next()
        finally:  # There are no more answers, for whatever reason.
            if answer is None:
                await self.aclose()
        if answer is None:
            raise StopAsyncIteration
        return answer

    async def aclose(self) -> None:
        """Take the request back; there are no more answers. May be called again."""
        self._is_over = True
        if self._opened is not None:
            await self._opened.response.aclose()

    async def _open(self) -> _Opened:
        if self._opened is None:
            self._opened = await self._start()
        return self._opened

    async def _next(self) -> Answer | None:
        opened = await self._open()
        while (answer := opened.reader.take()) is None:
            if opened.reader.ended:
                await opened.drain()
                return None
            with told_as_ours(self._place):
                await opened.read()
        return answer
