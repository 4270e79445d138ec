"""Long texts are tokenized beside the event loop: a few at a time, no more waiting than is worth it, none too late."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from trunkline.core.errors import DeadlineError, QueueFullError

ResultT = TypeVar("ResultT")
INLINE_CHARACTERS = 8_000
"""Texts that are longer in all are tokenized in another thread, so that the event loop goes on."""
WAITING_CHARACTERS = 4_000_000
"""So many may wait or be at it: what a processor tokenizes in a few seconds."""
_N_THREADS = 2


class LongTexts:
    """Two threads, and a count of what they have before them."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_N_THREADS, thread_name_prefix="trunkline-tokenize")
        self._n_characters = 0

    async def run(self, work: Callable[[], ResultT], n_characters: int, seconds: float) -> ResultT:
        """Do it in one of the threads; only the event loop's thread calls this.

        Args:
            work: What is done.
            n_characters: How much it is.
            seconds: Until its deadline.

        Raises:
            QueueFullError: Too much waits; nothing was begun.
            DeadlineError: Its time was over; what had not begun is not done.
        """
        if self._n_characters + n_characters > WAITING_CHARACTERS:
            raise QueueFullError(
                f"texts: have {n_characters} characters, and {self._n_characters} wait to be tokenized; up to "
                f"{WAITING_CHARACTERS} may; ask again later, or send fewer"
            )
        self._n_characters += n_characters
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except TimeoutError as error:
            raise DeadlineError(
                f"texts of {n_characters} characters: were not tokenized before the deadline; allow more time or send "
                "fewer"
            ) from error
        finally:
            self._n_characters -= n_characters
