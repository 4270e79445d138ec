"""Candidates: what the ledger says of each (exit layer, own layers, arm), over its seeds. No torch."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import TypeAlias

from trunkline.core.errors import SpecError
from trunkline.core.specs import METRICS_OF_KIND, Metric, Pooling, Spec, spec_digest
from trunkline.model.cost import EncoderSizes, folds
from trunkline.train.spec import Arm, Init, RunRecord, RunSpec

_Identity: TypeAlias = tuple[str, Arm, int, int, Pooling, Init, int | str | None]


class Candidate(Spec, frozen=True, kw_only=True):
    """One way to solve a task, with what it reached.

    Attributes:
        task: The task's name.
        arm: What was tuned.
        exit_layer: Trunk layers below.
        own_layers: Layers of its own: the cost that it adds to the bundle.
        pooling: Where the head reads.
        init: Where its layers started.
        started_in: Layers that the teacher tuned in which it starts, or that run's id where no record of it is at
            hand; None where it starts in no teacher.
        metric: What the figures are; all in points.
        seeds: In the order of the figures below.
        selection_metrics: One a seed; what choices are made by.
        dev_metrics: One a seed, only reported; empty when the task has no dev rows.
        seconds: Wall time of all its runs.
        run_ids: Of its seeds, in their order.
        run_id: The seed that is used if this candidate is chosen: the best on the selection rows.
        branch_digest: That run's branch; None for full fine-tuning, which can never be a branch.
        sizes: Of the backbone; what the cost of a layer depends on.
        mean_tokens: Mean length of the rows that run learned from.
    """

    task: str
    arm: Arm
    exit_layer: int
    own_layers: int
    pooling: Pooling
    init: Init
    metric: Metric
    seeds: tuple[int, ...]
    selection_metrics: tuple[float, ...]
    dev_metrics: tuple[float, ...]
    seconds: float
    run_id: str
    branch_digest: str | None
    sizes: EncoderSizes
    mean_tokens: float
    run_ids: tuple[str, ...] = ()
    started_in: int | str | None = None

    @property
    def folded(self) -> bool:
        """Whether its last layer makes the first token alone; the metric tells the kind as far as this goes."""
        kind = next(kind for kind, metrics in METRICS_OF_KIND.items() if self.metric in metrics)
        return folds(kind, self.pooling)

    @property
    def selection_mean(self) -> float:
        """Mean over seeds, points."""
        return fmean(self.selection_metrics)

    @property
    def dev_mean(self) -> float | None:
        """Mean over seeds, points."""
        return fmean(self.dev_metrics) if self.dev_metrics else None

    @property
    def dev_spread(self) -> float | None:
        """Standard deviation over seeds (n − 1), points; None for a single seed."""
        return stdev(self.dev_metrics) if len(self.dev_metrics) > 1 else None

    @property
    def dev_max(self) -> float | None:
        """The best seed, as the paper reports it; not what is chosen by."""
        return max(self.dev_metrics, default=None)


def candidates_of(records: Sequence[RunRecord]) -> list[Candidate]:
    """Group runs that differ by seed alone, and keep the best hyperparameters of each candidate.

    Args:
        records: Of any tasks; a run that was recorded twice counts once, one that learned from a subset not at all.

    Returns:
        Sorted by task, then own layers, then exit layer.
    """
    best: dict[_Identity, Candidate] = {}
    for candidate in groups_of(records):
        key = _identity(candidate)
        # A mean over more seeds is worth more than a lucky one.
        rank = (len(candidate.seeds), candidate.selection_mean)
        if key not in best or rank > (len(best[key].seeds), best[key].selection_mean):
            best[key] = candidate
    return sorted(best.values(), key=_order)


def groups_of(records: Sequence[RunRecord]) -> list[Candidate]:
    """Every group of runs that differ by seed alone, whatever its hyperparameters.

    Students that start in teachers of different lengths are different candidates: the start is a choice, as the exit
    is. Who gave the logits is not: students of one candidate may have different teachers of labels.

    Args:
        records: As of `candidates_of`.
    """
    groups: dict[tuple[str, int | str | None], list[RunRecord]] = {}
    latest: dict[str, RunRecord] = {}
    for record in records:
        # Taken out first, so that a run that was recorded again stands where it was recorded last.
        latest.pop(record.run_id, None)
        latest[record.run_id] = record
    for record in latest.values():
        if record.spec.fit_rows is not None:
            continue
        key = (_without_seed(record.spec), _started_in(record.spec, latest))
        groups.setdefault(key, []).append(record)
    return [_candidate(group, started_in) for (_, started_in), group in groups.items()]


def comparable(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Of each task the runs on the same labels, rows and selection as the one that was asked for last."""
    latest = {record.spec.task: record.spec.variant for record in records}
    return [record for record in records if record.spec.variant == latest[record.spec.task]]


def best_partial(candidates: Sequence[Candidate]) -> Candidate:
    """The teacher (paper section 3.1): best mean metric on the selection rows, ties to the fewest layers.

    Raises:
        SpecError: No candidate is a partial fine-tuning.
    """
    partial = [candidate for candidate in candidates if candidate.arm == "partial"]
    if not partial:
        raise SpecError("no partial fine-tuning was run; students need a teacher, so ask for at least one of --layers")
    # Means that differ by a binary fraction alone are ties.
    return min(partial, key=lambda c: (-round(c.selection_mean, 9), c.own_layers))


def competing(candidates: Sequence[Candidate]) -> dict[str, tuple[Candidate, ...]]:
    """Those that a plan may choose from, by task.

    Full fine-tunings can never be a branch. Of equally many layers, a mean over more seeds is worth more than a lucky
    seed: only those with the most seeds compete.
    """
    most: dict[tuple[str, int], int] = {}
    branches = [candidate for candidate in candidates if candidate.branch_digest is not None]
    for c in branches:
        most[c.task, c.own_layers] = max(len(c.seeds), most.get((c.task, c.own_layers), 0))
    by_task: dict[str, list[Candidate]] = {}
    for c in branches:
        if len(c.seeds) == most[c.task, c.own_layers]:
            by_task.setdefault(c.task, []).append(c)
    return {task: tuple(by_task[task]) for task in sorted(by_task)}


def _identity(c: Candidate) -> _Identity:
    return (c.task, c.arm, c.exit_layer, c.own_layers, c.pooling, c.init, c.started_in)


def _order(c: Candidate) -> tuple[object, ...]:
    """Ties are broken by what a candidate is, never by when it was run."""
    return (c.task, c.own_layers, c.exit_layer, c.arm, c.init, c.pooling, str(c.started_in))


def _started_in(spec: RunSpec, records: Mapping[str, RunRecord]) -> int | str | None:
    if spec.init != "teacher" or spec.init_from is None:
        return None
    teacher = records.get(spec.init_from)
    return spec.init_from if teacher is None else teacher.spec.own_layers


def _without_seed(spec: RunSpec) -> str:
    # Students of one candidate may have different teachers: the best ones at the time of each call. Of the one that
    # they start in, its length counts (`_started_in`). Which branch a warm start began in was asked for: a choice, as a
    # rate is.
    ignored = {"seed", "label_teachers"} | ({"init_from"} if spec.init == "teacher" else set())
    fields = {name: getattr(spec, name) for name in spec.__struct_fields__ if name not in ignored}
    return spec_digest(fields)


def _candidate(group: Sequence[RunRecord], started_in: int | str | None) -> Candidate:
    # A seed counts once, with its latest run: it may have been taught by two teachers.
    latest = {record.spec.seed: record for record in group}
    ordered = [latest[seed] for seed in sorted(latest)]
    chosen = max(ordered, key=lambda record: record.selection_metric)
    spec = chosen.spec
    return Candidate(
        task=spec.task,
        arm=spec.arm,
        exit_layer=spec.exit_layer,
        own_layers=spec.own_layers,
        pooling=spec.pooling,
        init=spec.init,
        metric=chosen.metric,
        seeds=tuple(record.spec.seed for record in ordered),
        selection_metrics=tuple(record.selection_metric for record in ordered),
        dev_metrics=tuple(record.dev_metric for record in ordered if record.dev_metric is not None),
        seconds=sum(record.seconds + record.cache_seconds for record in ordered),
        run_id=chosen.run_id,
        run_ids=tuple(record.run_id for record in ordered),
        started_in=started_in,
        branch_digest=chosen.branch_digest,
        sizes=chosen.sizes,
        mean_tokens=chosen.mean_tokens,
    )
