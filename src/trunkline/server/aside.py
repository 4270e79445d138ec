"""Threads for what happens beside requests: they get what requests leave of a processor."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

ResultT = TypeVar("ResultT")


class Aside:
    """A thread in which changes are made, one after the other, and one in which the next is prepared meanwhile."""

    def __init__(self) -> None:
        """Make both; they start with the first work."""
        self._changes = ThreadPoolExecutor(1, thread_name_prefix="trunkline-changes", initializer=_step_back)
        self._preparations = ThreadPoolExecutor(1, thread_name_prefix="trunkline-aside", initializer=_step_back)

    async def change(self, work: Callable[[], ResultT]) -> ResultT:
        """Make a change when those before it are made."""
        return await asyncio.get_running_loop().run_in_executor(self._changes, work)

    async def prepare(self, work: Callable[[], ResultT]) -> ResultT:
        """Prepare a change; changes that are ready do not wait for it."""
        return await asyncio.get_running_loop().run_in_executor(self._preparations, work)

    def close(self) -> None:
        """Finish what runs and take nothing more."""
        self._changes.shutdown()
        self._preparations.shutdown()


def _step_back() -> None:
    """Have this thread scheduled as idle.

    Whoever wakes up takes a processor from it at once; from a thread that is only of lower priority not before that has
    had its few milliseconds, for which all threads of a parallel program wait.
    """
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
