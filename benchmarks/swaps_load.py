"""An open loop of single-text requests whose every answer is looked at: arrival times are fixed beforehand."""

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import msgspec

from benchmarks.served import Served

_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length: "
PEAK_CONNECTIONS = 24


class SeenSpan(msgspec.Struct, frozen=True):
    """A span as far as it is compared."""

    label: str
    start: int
    end: int
    confidence: float


class Seen(msgspec.Struct, frozen=True):
    """An answer of one task as far as it is compared."""

    version: str
    label: str | None = None
    confidence: float = 0.0
    spans: tuple[SeenSpan, ...] = ()


class _Response(msgspec.Struct, frozen=True):
    results: list[dict[str, Seen]]


@dataclass(frozen=True, slots=True)
class Answered:
    """One request.

    Attributes:
        text: Number of the text that was asked.
        due: When it was to be sent, in seconds since the epoch.
        done: When the last byte of its answer was there.
        results: Of each task; None where the request failed.
        failure: What was answered then.
    """

    text: int
    due: float
    done: float
    results: dict[str, Seen] | None
    failure: str = ""


def bodies_of(server: Served, texts: Sequence[str]) -> list[bytes]:
    """A whole request for each text: all tasks."""
    found = []
    for text in texts:
        body = msgspec.json.encode({"texts": [text]})
        head = (
            f"POST /v1/analyze HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {server.admin}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        found.append(head.encode() + body)
    return found


@dataclass(slots=True)
class OpenLoop:
    """Asks at a steady mean rate, at random moments, from a thread of its own, while the context lasts.

    Attributes:
        server: Whom.
        requests: Of `bodies_of`; one is drawn at random each time.
        rate: A second, on average.
        seed: Of moments and texts.
        answered: Every request.
        latest_start_s: How much later than due a request was sent at worst: large where the generator is too slow.
    """

    server: Served
    requests: Sequence[bytes]
    rate: float
    seed: int
    answered: list[Answered] = field(default_factory=list)
    latest_start_s: float = 0.0
    _thread: threading.Thread | None = None
    _stopped: threading.Event = field(default_factory=threading.Event)
    _free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    async def _run(self) -> None:
        rng, asks = random.Random(self.seed), set[asyncio.Task[None]]()
        due = time.time()
        while not self._stopped.is_set():
            due += rng.expovariate(self.rate)
            await asyncio.sleep(max(0.0, due - time.time()))
            self.latest_start_s = max(self.latest_start_s, time.time() - due)
            task = asyncio.create_task(self._ask(rng.randrange(len(self.requests)), due))
            asks.add(task)
            task.add_done_callback(asks.discard)
        await asyncio.gather(*asks)
        for _, writer in self._free:
            writer.close()

    async def _ask(self, text: int, due: float) -> None:
        try:
            reader, writer = self._free.pop() if self._free else await self._connected()
            writer.write(self.requests[text])
            head = await reader.readuntil(_END_OF_HEAD)
            body = await reader.readexactly(_length_of(head))
        except (OSError, asyncio.IncompleteReadError) as error:
            self.answered.append(Answered(text, due, time.time(), None, f"{type(error).__name__}: {error}"))
            return
        done = time.time()
        self._free.append((reader, writer))
        if head[9:12] != b"200":
            self.answered.append(Answered(text, due, done, None, body[:300].decode("utf-8", "replace")))
            return
        (results,) = msgspec.json.decode(body, type=_Response).results
        self.answered.append(Answered(text, due, done, results))

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.server.host, self.server.port, limit=1 << 20)


def peak_of(server: Served, requests: Sequence[bytes], seconds: float) -> float:
    """Requests a second when so many connections ask again as soon as they are answered."""

    async def ask(number: int, until: float) -> int:
        reader, writer = await asyncio.open_connection(server.host, server.port, limit=1 << 20)
        n = 0
        while time.time() < until:
            writer.write(requests[(number + n * PEAK_CONNECTIONS) % len(requests)])
            await reader.readexactly(_length_of(await reader.readuntil(_END_OF_HEAD)))
            n += 1
        writer.close()
        return n

    async def run() -> float:
        began = time.time()
        counts = await asyncio.gather(*(ask(number, began + seconds) for number in range(PEAK_CONNECTIONS)))
        return sum(counts) / (time.time() - began)

    return asyncio.run(run())


def _length_of(head: bytes) -> int:
    place = head.lower().index(_LENGTH) + len(_LENGTH)
    return int(head[place : head.index(b"\r\n", place)])
