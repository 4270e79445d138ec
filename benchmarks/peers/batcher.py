"""Dynamic batching: texts that wait are answered together."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting(Generic[AnswerT]):
    text: str
    answered: "asyncio.Future[AnswerT]"


class Batcher(Generic[AnswerT]):
    """Threads that each take all texts that wait, answer them together, and take again; made inside the event loop.

    Args:
        answer: Called in a thread with the texts; gives an answer for each, in their order.
        n_workers: Threads, and so batches at a time.
        most: Texts of a batch.
        linger_s: So long a batch waits for more texts once it has one; 0 takes what is there.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[str]], Sequence[AnswerT]],
        *,
        n_workers: int = 1,
        most: int = 32,
        linger_s: float = 0.0,
    ) -> None:
        self._answer, self._most, self._linger_s = answer, most, linger_s
        self._waiting: queue.SimpleQueue[_Waiting[AnswerT] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(n_workers)]
        for worker in self._workers:
            worker.start()

    async def ask(self, text: str) -> AnswerT:
        """The answer to one text; what `answer` raises for its batch is raised here."""
        answered: asyncio.Future[AnswerT] = self._loop.create_future()
        self._waiting.put(_Waiting(text, answered))
        return await answered

    def close(self) -> None:
        """Let batches that run end; what waits behind stays without an answer."""
        for _ in self._workers:
            self._waiting.put(None)
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            go_on = self._fill(batch)
            found: Sequence[AnswerT] | Exception
            try:
                found = self._answer([each.text for each in batch])
            except Exception as error:  # noqa: BLE001 - told to everyone who asked
                found = error
            self._loop.call_soon_threadsafe(_deliver, batch, found)
            if not go_on:
                return

    def _fill(self, batch: list[_Waiting[AnswerT]]) -> bool:
        """Take what waits; whether to take again."""
        until = time.monotonic() + self._linger_s
        while len(batch) < self._most:
            try:
                left_s = until - time.monotonic()
                each = self._waiting.get(timeout=left_s) if left_s > 0 else self._waiting.get_nowait()
            except queue.Empty:
                return True
            if each is None:
                return False
            batch.append(each)
        return True


def _deliver(batch: list[_Waiting[AnswerT]], found: Sequence[AnswerT] | Exception) -> None:
    for place, each in enumerate(batch):
        if each.answered.done():  # its client has gone
            continue
        if isinstance(found, Exception):
            each.answered.set_exception(found)
        else:
            each.answered.set_result(found[place])
