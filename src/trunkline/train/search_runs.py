"""The runs of a search: their specs, the rows that they learn from, and how they are done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trunkline.model.cost import sizes_of
from trunkline.train.bench import Workbench
from trunkline.train.choices import Choice, Stage
from trunkline.train.jobs import run_fields
from trunkline.train.prepare import PreparedTask, Split
from trunkline.train.run import Start, Taught, execute, learned_rows, planned_flops
from trunkline.train.search_spec import SearchRequest
from trunkline.train.spec import CacheDtype, RunRecord, RunSpec
from trunkline.train.start import teacher_start
from trunkline.train.teach import taught_by


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows whose states some runs need.

    Attributes:
        rows: Which.
        exits: Where, the most wanted first.
        dtype: Of the states.
        n_passes: So often the longest of the runs goes over them.
    """

    rows: Split
    exits: list[int]
    dtype: CacheDtype
    n_passes: int


class SearchRuns:
    """What the choices of a task's search are as runs.

    Args:
        bench: Backbone, ledger, cache.
        task: The prepared task.
        request: What is asked for.
    """

    def __init__(self, bench: Workbench, task: PreparedTask, request: SearchRequest) -> None:
        self.bench = bench
        self.task = task
        self.request = request
        self.sizes = sizes_of(bench.backbone.config)
        self._rows: dict[tuple[Stage, int | None], Split] = {}
        self._flops: dict[tuple[Stage, int, str, int, int | None], float] = {}

    def rows(self, choice: Choice, n_rows: int | None) -> Split:
        """The rows that a choice learns from: teachers need labels, students do not."""
        key = (choice.stage, n_rows)
        if key not in self._rows:
            self._rows[key] = learned_rows(self.task, self.spec(choice, n_rows=n_rows, seed=0, taught=None))
        return self._rows[key]

    def spec(self, choice: Choice, *, n_rows: int | None, seed: int, taught: RunRecord | None) -> RunSpec:
        """A choice as a run.

        Args:
            choice: What to train.
            n_rows: Learned from; None for all.
            seed: Of the run.
            taught: A student's teacher; None for a teacher, and where a run is only counted.
        """
        preset = self.request.preset
        fields: dict[str, Any] = run_fields(self.bench, self.task, seed=seed, pooling=choice.pooling)
        fields |= {"selection": self.request.selection, "cache_dtype": self.request.cache_dtype}
        fields |= {"exit_layer": choice.exit_layer, "own_layers": choice.own_layers, "fit_rows": n_rows}
        if choice.stage == "teacher":
            return RunSpec(**fields, arm="partial", hyperparameters=choice.tuned(preset.for_layers(choice.own_layers)))
        return RunSpec(
            **fields,
            arm="student",
            hyperparameters=choice.tuned(preset.student),
            distillation=choice.distilled(preset.distillation),
            taught_by="partial",
            label_teachers=() if taught is None else (taught.run_id,),
            init=choice.init,
            init_from=taught.run_id if taught is not None and choice.init == "teacher" else None,
        )

    def flops(self, choice: Choice, n_rows: int | None) -> float:
        """Of the steps and measurements of one run."""
        key = (choice.stage, choice.own_layers, choice.pooling, choice.epochs, n_rows)
        if key not in self._flops:
            spec = self.spec(choice, n_rows=n_rows, seed=0, taught=None)
            self._flops[key] = planned_flops(self.task, spec, self.sizes, with_dev=n_rows is None)
        return self._flops[key]

    def parts(self, choices: Sequence[Choice], n_rows: int | None, teacher: Choice | None) -> list[Part]:
        """The states that runs of some choices of one stage need.

        Args:
            choices: Of one stage.
            n_rows: Learned from; None for all, which are then measured after every epoch, and on dev.
            teacher: Of students; it answers their rows, which need no label, at its own exit.
        """
        exits = list(dict.fromkeys(choice.exit_layer for choice in choices))
        wanted = exits if teacher is None or teacher.exit_layer in exits else [*exits, teacher.exit_layer]
        epochs, dev = max(choice.epochs for choice in choices), None if n_rows is not None else self.task.dev
        n_measured = 1 if n_rows is not None else epochs + 1
        parts = [Part(self.rows(choices[0], n_rows), wanted, self.request.cache_dtype, epochs)]
        if dev is self.task.selection:
            return [*parts, Part(dev, exits, "float32", n_measured + 1)]
        parts.append(Part(self.task.selection, exits, "float32", n_measured))
        return parts if dev is None else [*parts, Part(dev, exits, "float32", 1)]

    def execute(self, specs: Sequence[RunSpec], taught: RunRecord | None) -> list[RunRecord]:
        """Every run once, here or in another process that searches too.

        Args:
            specs: The runs.
            taught: The teacher of those that are students.

        Raises:
            TrainingError: A run failed.
        """
        done: dict[str, RunRecord] = {}
        for wait in (False, True):
            for spec in specs:
                if spec.run_id in done or (not wait and self.bench.ledger.is_running(spec.run_id)):
                    continue
                # A trial is not looked at on dev: that would cost more than the trial.
                task = self.task if spec.fit_rows is None else replace(self.task, dev=None)
                done[spec.run_id] = execute(
                    self.bench,
                    task,
                    spec,
                    start=self._start(spec, taught),
                    teach=self._teach(taught) if spec.arm == "student" else None,
                )
        return [done[spec.run_id] for spec in specs]

    def _start(self, spec: RunSpec, taught: RunRecord | None) -> Callable[[], Start]:
        return lambda: teacher_start(self.bench, spec, taught if spec.init == "teacher" else None)

    def _teach(self, taught: RunRecord | None) -> Callable[[Split], Taught] | None:
        if taught is None:
            return None
        matches_hidden = self.request.preset.distillation.hidden_weight > 0
        return lambda rows: taught_by(self.bench, self.task, [taught], rows, features=matches_hidden)
