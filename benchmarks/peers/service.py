"""What every contestant can be asked, and the part that all of them share: tokens in, sub-batches, answers in order."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeAlias

import numpy as np
from tokenizers import Tokenizer

from benchmarks.peers.batching import CallCost, measure_call_cost, sub_batches
from benchmarks.peers.shapes import ServedTask
from benchmarks.peers.tokens import encode, padded

PRICES = (8.0, 16.0, 32.0, 64.0, 1e9)
"""What a call may count beside its tokens, in tokens: from a call for nearly each length to one call for all."""
N_TRIED_MODELS, N_TRIES = 2, 2

Answers: TypeAlias = dict[str, list[np.ndarray]]
"""For each task, in the order of the texts: logits (C,) float32, of a tagger (tokens of the text, C)."""


class Contestant(Protocol):
    """N tasks answered on texts."""

    name: str
    precision: str

    def warm(self, texts: Sequence[str]) -> None:
        """Meet every shape that answering `texts` will meet."""

    def answer(self, texts: Sequence[str]) -> Answers:
        """Every task on every text; each model tokenizes for itself, as separate services do."""

    def answer_shared(self, texts: Sequence[str]) -> Answers:
        """The same with texts tokenized once for all models."""

    def close(self) -> None:
        """Let go of models, threads and processes."""


class Runner(Protocol):
    """One compiled model."""

    tasks: tuple[ServedTask, ...]

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
        """Logits for each task, (B, S, C) or (B, C) float32, from ids and mask (B, S) int64."""


class Service:
    """A contestant made of models in this process.

    Args:
        name: As it is printed.
        precision: Of its products.
        tokenizer: Shared by all models; separate services would hold one each.
        runners: One for each task, or one that answers all.
        lanes: Calls that run at a time. With more than one, each call has one thread of its own; largest calls start
            first.

    Attributes:
        cost: A call's cost, measured here on the first model: orders calls, and is one of the prices that are tried.
    """

    def __init__(
        self, name: str, precision: str, tokenizer: Tokenizer, runners: Sequence[Runner], *, lanes: int = 1
    ) -> None:
        self.name, self.precision = name, precision
        self._tokenizer, self._runners = tokenizer, list(runners)
        self._pool = ThreadPoolExecutor(lanes) if lanes > 1 else None
        self.cost: CallCost = measure_call_cost(self._runners[0])
        self._prices: dict[int, float] = {}

    @property
    def n_models(self) -> int:
        """Models that a text passes through."""
        return len(self._runners)

    def warm(self, texts: Sequence[str]) -> None:
        """Find the fastest way to cut so many texts, then answer twice: shapes compiled, memory in its place."""
        if len(texts) > 1 and len(texts) not in self._prices:
            self._prices[len(texts)] = self._best_price(texts)
        # with lanes a shape may be new to the second stream, so every lane gets its turn
        for _ in range(2 if self._pool is None else 4):
            self.answer(texts)

    def answer(self, texts: Sequence[str]) -> Answers:
        """Every task on every text; each model tokenizes for itself."""
        price = self._price(texts)
        return self._run([_Work(runner, encode(self._tokenizer, texts), self.cost, price) for runner in self._runners])

    def answer_shared(self, texts: Sequence[str]) -> Answers:
        """Every task on every text, tokenized once and cut once."""
        first = _Work(self._runners[0], encode(self._tokenizer, texts), self.cost, self._price(texts))
        return self._run([first, *(first.for_runner(runner) for runner in self._runners[1:])])

    def close(self) -> None:
        """Drop the models."""
        self._runners.clear()
        if self._pool is not None:
            self._pool.shutdown()

    def _price(self, texts: Sequence[str]) -> float:
        return self._prices.get(len(texts), self.cost.fixed_tokens)

    def _best_price(self, texts: Sequence[str]) -> float:
        """What a call is to count beside its tokens, by trying: a busy machine tilts any line through few points."""
        rows = encode(self._tokenizer, texts)
        lengths = sorted(map(len, rows))
        prices = {tuple((cut.start, cut.stop) for cut in sub_batches(lengths, each)): each for each in self._tried()}
        if len(prices) == 1:
            return next(iter(prices.values()))
        # several models in turn, so that no weights are in a cache that would not be there when all are asked
        runners = self._runners[:N_TRIED_MODELS]
        seconds = dict.fromkeys(prices.values(), float("inf"))
        for turn in range(N_TRIES + 1):
            for price in seconds:
                began = time.process_time()
                for runner in runners:
                    self._run([_Work(runner, rows, self.cost, price)])
                if turn > 0:  # in the first, shapes are compiled
                    seconds[price] = min(seconds[price], time.process_time() - began)
        return min(seconds, key=lambda price: seconds[price])

    def _tried(self) -> tuple[float, ...]:
        return (self.cost.fixed_tokens, *PRICES)

    def _run(self, works: "Sequence[_Work]") -> Answers:
        if self._pool is None:
            for work in works:
                for cut in work.cuts:
                    work.run(cut)
        else:
            jobs = [(work, cut) for work in works for cut in work.cuts]
            jobs.sort(key=lambda job: -job[0].seconds(job[1]))
            # list() waits, and raises what a call raised
            list(self._pool.map(lambda job: job[0].run(job[1]), jobs))
        return {name: rows for work in works for name, rows in work.answers.items()}


class _Work:
    """One model's share of a request: its rows sorted and cut, its answers as they come."""

    def __init__(self, runner: Runner, rows: list[list[int]], cost: CallCost, price: float) -> None:
        self._runner, self._cost = runner, cost
        self._order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        self._rows = [rows[place] for place in self._order]
        self.cuts = sub_batches([len(row) for row in self._rows], price)
        self.answers: Answers = self._empty()

    def for_runner(self, runner: Runner) -> "_Work":
        """The same rows and cuts for another model."""
        other = object.__new__(_Work)
        other._runner, other._cost = runner, self._cost
        other._order, other._rows, other.cuts = self._order, self._rows, self.cuts
        other.answers = other._empty()
        return other

    def seconds(self, cut: slice) -> float:
        """What a cut is expected to take."""
        return self._cost.seconds(cut.stop - cut.start, len(self._rows[cut.stop - 1]))

    def run(self, cut: slice) -> None:
        """Run a cut and put its answers in place."""
        rows, order = self._rows[cut], self._order[cut]
        for task, logits in zip(self._runner.tasks, self._runner(*padded(rows)), strict=True):
            answers = self.answers[task.name]
            for row, place, values in zip(rows, order, logits, strict=True):
                answers[place] = values[: len(row)] if task.kind == "tagging" else values

    def _empty(self) -> Answers:
        blank = np.empty(0, dtype=np.float32)
        return {task.name: [blank] * len(self._rows) for task in self._runner.tasks}
