"""What is counted, in the form that Prometheus reads.

prometheus_client writes it down; counting is ours, because one request of twelve tasks brings sixty observations, and
the library's cost more than the rest of the request (decision 0018). What answers took is noted, and sorted into
buckets some hundreds at a time. All of it happens in the event loop's thread, but for steps of the engine, which nobody
else counts.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from trunkline.engine.engine import Engine
from trunkline.engine.request import StepReport
from trunkline.wire import Answer, LabelAnswer, Timings

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
TOKENS = (16, 32, 64, 128, 256, 512, 1024)
CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
STAGES = ("queue", "trunk", "branch", "decode")
_NOTED = 256
"""Parts of answers of a task that are sorted into buckets together."""


class Histogram:
    """Counts by bucket; ``bounds`` are upper ends, a last bucket takes what is above."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def observe_all(self, values: np.ndarray) -> None:
        """Count values, (n,) float64."""
        found = np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
        self._counts = [before + n for before, n in zip(self._counts, found.tolist(), strict=True)]
        self._sum += float(values.sum())

    def buckets(self) -> list[tuple[str, float]]:
        """Upper end to how many values lie at or below it."""
        ends = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        return list(zip(ends, map(float, accumulate(self._counts)), strict=True))

    @property
    def sum(self) -> float:
        """Of all values."""
        return self._sum


class _OfTask:
    """What is counted of a task, and what is noted but not yet sorted into buckets."""

    def __init__(self) -> None:
        self.texts, self.abstained = 0, 0
        self.stages = tuple(Histogram(SECONDS) for _ in STAGES)
        self.confidence = Histogram(CONFIDENCE)
        self.timings: list[Timings] = []
        self.confidences: list[float] = []

    def sort_in(self) -> None:
        """Sort what was noted into buckets."""
        rows = [(each.queue_ms, each.trunk_ms, each.branch_ms, each.decode_ms) for each in self.timings]
        seconds = np.array(rows, dtype=np.float64).reshape(-1, len(STAGES)) / 1e3
        for histogram, values in zip(self.stages, seconds.T, strict=True):
            histogram.observe_all(values)
        self.confidence.observe_all(np.array(self.confidences, dtype=np.float64))
        self.timings, self.confidences = [], []


class Metrics:
    """All counts of a server. Labels are names of tasks that are served, of routes and of codes: never what came in."""

    def __init__(self) -> None:
        self._tasks: dict[str, _OfTask] = {}
        self._requests: dict[tuple[str, str, int], int] = {}
        self._seconds: dict[str, Histogram] = {}
        self._refused: dict[str, int] = {}
        self._changes: dict[str, int] = {}
        self._rows, self._tokens = Histogram(ROWS), Histogram(TOKENS)
        self._busy_s = 0.0
        self._engine: Engine | None = None
        self.takes_requests = False
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @property
    def is_live(self) -> bool:
        """Whether the engine's thread runs; when it does not, only a restart helps."""
        return self._engine is None or self._engine.loop.is_alive

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken, and will be answered: loaded, not about to stop, live."""
        return self.takes_requests and self.is_live

    def watch(self, engine: Engine) -> None:
        """Report this engine's queue and cache."""
        self._engine = engine

    def stepped(self, step: StepReport) -> None:
        """Count a step of the engine; in the engine's thread."""
        self._rows.observe(step.n_rows)
        self._tokens.observe(step.n_tokens)
        self._busy_s += step.seconds

    def answered(self, answers: Sequence[Answer]) -> None:
        """Count answers; those of one branch to one request stand together, and share their timings."""
        timings = None
        for answer in answers:
            counts = self._tasks.get(answer.task)
            if counts is None:
                counts = self._tasks[answer.task] = _OfTask()
            counts.texts += 1
            if answer.timings is not timings:
                timings = answer.timings
                if len(counts.timings) == _NOTED:
                    counts.sort_in()
                counts.timings.append(timings)
            if isinstance(answer, LabelAnswer):
                counts.confidences.append(answer.confidence)
                counts.abstained += answer.abstained

    def requested(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request of a known route."""
        key = (route, method, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        if route not in self._seconds:
            self._seconds[route] = Histogram(SECONDS)
        self._seconds[route].observe(seconds)

    def refused(self, code: str) -> None:
        """Count a request that found no room."""
        self._refused[code] = self._refused.get(code, 0) + 1

    def changed(self, action: str) -> None:
        """Count a change of tasks."""
        self._changes[action] = self._changes.get(action, 0) + 1

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """For prometheus_client."""
        yield from self._of_tasks()
        requests = CounterMetricFamily(
            "trunkline_requests", "Requests by route and status.", labels=["route", "method", "status"]
        )
        for (route, method, status), count in self._requests.items():
            requests.add_metric([route, method, str(status)], count)
        yield requests
        seconds = HistogramMetricFamily(
            "trunkline_request_seconds", "From the first byte to the last.", labels=["route"]
        )
        for route, histogram in self._seconds.items():
            seconds.add_metric([route], histogram.buckets(), histogram.sum)
        yield seconds
        for name, told, counts, label in (
            ("trunkline_refused", "Requests that found no room.", self._refused, "code"),
            ("trunkline_changes", "Changes of tasks (swaps are of action activate).", self._changes, "action"),
        ):
            family = CounterMetricFamily(name, told, labels=[label])
            for key, count in counts.items():
                family.add_metric([key], count)
            yield family
        yield from self._of_engine()

    def _of_tasks(self) -> Iterator[Metric]:
        texts = CounterMetricFamily("trunkline_answers", "Texts answered.", labels=["task"])
        abstained = CounterMetricFamily("trunkline_abstained", "Answers without a label.", labels=["task"])
        stages = HistogramMetricFamily(
            "trunkline_stage_seconds", "Where the time of a task's answers goes.", labels=["task", "stage"]
        )
        confidence = HistogramMetricFamily("trunkline_confidence", "Confidence of answers.", labels=["task"])
        for task, counts in self._tasks.items():
            counts.sort_in()
            texts.add_metric([task], counts.texts)
            abstained.add_metric([task], counts.abstained)
            confidence.add_metric([task], counts.confidence.buckets(), counts.confidence.sum)
            for stage, histogram in zip(STAGES, counts.stages, strict=True):
                stages.add_metric([task, stage], histogram.buckets(), histogram.sum)
        yield from (texts, abstained, stages, confidence)

    def _of_engine(self) -> Iterator[Metric]:
        for name, told, histogram in (
            ("trunkline_batch_rows", "Rows of a step.", self._rows),
            ("trunkline_batch_tokens", "Real tokens of a step.", self._tokens),
        ):
            family = HistogramMetricFamily(name, told)
            family.add_metric([], histogram.buckets(), histogram.sum)
            yield family
        yield CounterMetricFamily("trunkline_busy_seconds", "Time in which the engine ran.", value=self._busy_s)
        yield GaugeMetricFamily("trunkline_ready", "Whether requests are taken.", value=float(self.is_ready))
        if self._engine is None:
            return
        backlog = self._engine.loop.backlog()
        yield GaugeMetricFamily("trunkline_queue_rows", "Rows that wait.", value=backlog.n_rows)
        yield GaugeMetricFamily("trunkline_queue_tokens", "Tokens that wait.", value=backlog.n_tokens)
        yield GaugeMetricFamily("trunkline_queue_seconds", "How long all of it will take.", value=backlog.wait_s)
        cache = self._engine.cache
        if cache is not None:
            found = CounterMetricFamily("trunkline_cache", "Logits looked for in the cache.", labels=["found"])
            found.add_metric(["hit"], cache.hits)
            found.add_metric(["miss"], cache.misses)
            yield found
            yield GaugeMetricFamily("trunkline_cache_bytes", "Memory of the cache.", value=cache.size_bytes)
