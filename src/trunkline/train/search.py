"""Choosing L, exit, l and what else a task needs, for about the price of one full fine-tuning (design.md, section 3).

The paper fine-tunes once for every L and then for every l. Here weak choices are dropped on few rows (successive
halving), students come in only when their teacher is chosen, and what the budget cannot pay is not begun: every cost is
known by formula before it is spent.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import msgspec
from filelock import FileLock
from optuna.distributions import BaseDistribution
from optuna.trial import Trial

from trunkline.bundle.store import read_branch
from trunkline.core.specs import TaskSpec, spec_digest
from trunkline.model.cost import branch_flops, folds, layer_flops, sizes_of
from trunkline.train.bench import Workbench
from trunkline.train.choices import (
    Choice,
    Stage,
    grid,
    searched_poolings,
    student_choices,
    student_grid,
    teacher_choices,
)
from trunkline.train.halving import (
    better_half,
    finish,
    open_study,
    propose,
    read_choice,
    report,
    student_space,
    teacher_space,
)
from trunkline.train.jobs import run_fields
from trunkline.train.pipeline import prepare_tasks
from trunkline.train.prepare import PreparedTask, Split
from trunkline.train.run import Start, Taught, execute, planned_flops
from trunkline.train.search_spec import SearchReport, SearchRequest, Tried
from trunkline.train.spec import RunRecord, RunSpec
from trunkline.train.spending import TrunkAccount, full_flops
from trunkline.train.start import initial_tensors
from trunkline.train.teach import taught_by

RUNG_SHARES = (1 / 16, 1 / 8)
NOISE_SHARE = 0.5
"""Of the standard error of a share on the selection rows: what is closer than this to the best counts as equal."""
RUNG_ROWS = (256, 512)
"""A rung learns from this share of the rows, and from no fewer than so many."""


class TaskSearch:
    """The search of one task.

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
        self.n_layers = self.sizes.n_layers
        self.full_flops = full_flops(bench, task, request.preset)
        self.trunk = TrunkAccount(bench)
        self.tried: list[Tried] = []
        self.not_tried: list[Choice] = []
        self.seconds = 0.0

    def run(self) -> SearchReport:
        """Search, from nothing to the final teacher and student.

        Raises:
            TrainingError: A run failed, or the storage cannot be used.
        """
        request = self.request
        poolings = searched_poolings(self.task.spec.kind, self.task.spec.pooling)
        if request.exhaustive:
            teachers = grid(self.n_layers, pooling=self.task.spec.pooling, preset=request.preset)
        else:
            teachers = teacher_choices(self.n_layers, poolings=poolings, preset=request.preset)
        teacher = self._race("teacher", teachers, teacher_space(self.n_layers, poolings), n_final=1, taught=None)[0]
        taught = max(teacher[1], key=lambda record: record.selection_metric)
        listed = student_grid if request.exhaustive else student_choices
        students = listed(
            self.n_layers,
            teacher=teacher[0],
            student_layers=request.student_layers,
            preset=request.preset,
        )
        space = student_space(self.n_layers, request.student_layers)
        finals = self._race("student", students, space, n_final=request.n_students, taught=taught)
        winner = max([*finals, teacher], key=lambda final: self._worth("student", final[0], _mean(final[1])))
        return SearchReport(
            task=self.task.spec.name,
            exhaustive=request.exhaustive,
            budget=request.budget,
            full_flops=self.full_flops,
            spent_flops=self._spent(),
            trunk_flops=self.trunk.flops,
            seconds=self.seconds + self.trunk.seconds,
            tried=tuple(self.tried),
            not_tried=tuple(self.not_tried),
            teacher=teacher[0],
            winner=winner[0],
        )

    def again(self, report: SearchReport, *, seed: int) -> RunRecord:
        """Train what a search chose once more from nothing, with another seed: teacher first, then what it teaches.

        Args:
            report: Of a search of this very task.
            seed: Of both runs.
        """
        (teacher,) = self._execute_all([self._spec(report.teacher, None, seed, None)], None)
        if report.winner == report.teacher:
            return teacher
        return self._execute_all([self._spec(report.winner, None, seed, teacher)], teacher)[0]

    def _spent(self) -> float:
        return self.trunk.flops + sum(tried.flops for tried in self.tried)

    def _worth(self, stage: Stage, choice: Choice, points: float) -> float:
        """What is served pays for its layers; a teacher that only teaches does not."""
        return points - (self.request.min_gain * choice.own_layers if stage == "student" else 0.0)

    # ------------------------------------------------------------------------------------------ racing

    def _race(
        self,
        stage: Stage,
        choices: Sequence[Choice],
        space: Mapping[str, BaseDistribution],
        *,
        n_final: int,
        taught: RunRecord | None,
    ) -> list[tuple[Choice, list[RunRecord]]]:
        """Drop the weak on few rows, then train the rest on all rows, once a seed."""
        if self.request.exhaustive:
            finals = [(choice, self._final(choice, taught)) for choice in choices]
            finals.sort(key=lambda final: -self._worth(stage, final[0], _mean(final[1])))
            return finals[:n_final]
        rungs = self._rungs()
        payable = [choice for choice in choices if self._reserve(choice) <= self._left()]
        n_affordable = self._n_affordable(stage, payable, rungs, n_final)
        chosen = payable[:n_affordable]
        self.not_tried += [choice for choice in choices if choice not in chosen]
        if len(chosen) > n_final:
            trials = self._proposed(stage, chosen, space)
            for n_rows in rungs:
                if len(trials) > n_final:
                    trials = self._rung(stage, trials, n_rows, n_final=n_final, taught=taught)
            chosen = [choice for _, choice in trials]
        return [(choice, self._final(choice, taught)) for choice in chosen[:n_final]]

    def _rungs(self) -> list[int]:
        n_rows = len(self.task.fit)
        rungs = [max(least, round(share * n_rows)) for share, least in zip(RUNG_SHARES, RUNG_ROWS, strict=True)]
        return [rows for rows in rungs if rows < n_rows // 2]

    def _n_affordable(self, stage: Stage, choices: Sequence[Choice], rungs: Sequence[int], n_final: int) -> int:
        """How many choices the budget has room for, beside the final runs."""
        allowance = self._left() - (self._reserve(choices[0]) if choices else 0.0)
        if stage == "teacher":
            allowance /= 2  # The other half is for students.
        if not rungs:
            return n_final  # Too few rows to try anything on a part of them.
        for count in range(len(choices), n_final, -1):
            # Of each rung the costlier half is assumed to stay.
            costs = [sorted((self._cost(c, rows) for c in choices[:count]), reverse=True) for rows in rungs]
            kept = [max(n_final, count // 2**i) for i in range(len(rungs))]
            if sum(sum(cost[:n]) for cost, n in zip(costs, kept, strict=True)) <= allowance:
                return count
        return n_final

    def _left(self) -> float:
        return self.request.budget * self.full_flops - self._spent()

    def _reserve(self, choice: Choice) -> float:
        """What the final runs of a choice will cost; of a teacher, with a student that reads where it does."""
        n_seeds = len(self.request.seeds)
        trunk = choice.exit_layer * layer_flops(self.sizes, self.task.fit.lengths)
        reserve = n_seeds * self._cost(choice, None) + trunk
        if choice.stage == "teacher":
            shorter = [count for count in self.request.student_layers if count < choice.own_layers]
            for count in sorted(shorter)[-2:][:1]:
                student = msgspec.structs.replace(
                    choice, stage="student", own_layers=count, epochs=self.request.preset.student.epochs
                )
                reserve += self.request.n_students * n_seeds * self._cost(student, None)
        return reserve

    def _proposed(
        self, stage: Stage, choices: Sequence[Choice], space: Mapping[str, BaseDistribution]
    ) -> list[tuple[Trial, Choice]]:
        subject = (self.task.task_digest, self.task.data_digest, self.bench.backbone.chain[-1], self.request)
        name = f"{self.task.spec.name}-{stage}-{spec_digest(subject)[:12]}"
        if stage == "student":
            # Students of another teacher are other trials.
            name += f"-{spec_digest(choices[0])[:8]}"
        folder = self.bench.ledger.folder
        read = partial(read_choice, like=choices[0], n_layers=self.n_layers)
        # One process at a time, or two would propose the same trials twice.
        with FileLock(folder / "search.lock"):
            study = open_study(folder, name, storage=self.request.storage)
            return list(propose(study, choices, space=space, n_more=self.request.n_proposals, read=read))

    def _rung(
        self,
        stage: Stage,
        trials: Sequence[tuple[Trial, Choice]],
        n_rows: int,
        *,
        n_final: int,
        taught: RunRecord | None,
    ) -> list[tuple[Trial, Choice]]:
        """Run every trial on so many rows; keep the better half, and at the last rung as many as are trained out."""
        exits = sorted({choice.exit_layer for _, choice in trials})
        self.trunk.fill(self.task.fit.sample(n_rows), exits, dtype=self.request.cache_dtype)
        self.trunk.fill(self.task.selection, exits, dtype="float32")
        specs = [self._spec(choice, n_rows, self.request.seeds[0], taught) for _, choice in trials]
        records = self._execute_all(specs, taught)
        worth = [
            self._worth(stage, choice, record.selection_metric)
            for (_, choice), record in zip(trials, records, strict=True)
        ]
        best = max(range(len(trials)), key=lambda i: worth[i])
        for (trial, _), points in zip(trials, worth, strict=True):
            report(trial, points, n_rows=n_rows)
        last = n_rows == self._rungs()[-1]
        numbers = [trial.number for trial, _ in trials]
        better = better_half(trials[0][0].study, n_rows, among=numbers)
        stays = {i for i, number in enumerate(numbers) if number in better}
        if last or len(stays) < n_final:
            stays = set(self._first_of_the_best(worth, n_final))
        for i, ((trial, choice), record) in enumerate(zip(trials, records, strict=True)):
            reached = f"worth {worth[i]:.1f}" if stage == "student" else f"{record.selection_metric:.1f}"
            fate = f"kept: {reached}"
            if i not in stays:
                fate = f"dropped: {reached}, the best is {worth[best]:.1f} ({trials[best][1]})"
            self._note(choice, record, n_rows=n_rows, fate=fate)
            if i not in stays or last:
                finish(trial, worth[i], pruned=i not in stays)
        return [trials[i] for i in sorted(stays)]

    def _first_of_the_best(self, worth: Sequence[float], count: int) -> list[int]:
        """The best, where those within half a standard error of it count as equal, and the earlier one goes first.

        Without it the luckiest of many trials on few selection rows would win against what mostly is best.
        """
        best = max(worth)
        share = min(max(best / 100, 0.01), 0.99)
        margin = NOISE_SHARE * 100 * math.sqrt(share * (1 - share) / len(self.task.selection))
        return sorted(range(len(worth)), key=lambda i: (0.0, i) if worth[i] >= best - margin else (best - worth[i], i))[
            :count
        ]

    # ------------------------------------------------------------------------------------------ runs

    def _final(self, choice: Choice, taught: RunRecord | None) -> list[RunRecord]:
        self.trunk.fill(self.task.fit, [choice.exit_layer], dtype=self.request.cache_dtype)
        for part in (self.task.selection, self.task.dev):
            if part is not None:
                self.trunk.fill(part, [choice.exit_layer], dtype="float32")
        specs = [self._spec(choice, None, seed, taught) for seed in self.request.seeds]
        records = self._execute_all(specs, taught)
        for record in records:
            self._note(choice, record, n_rows=None, fate="trained on all rows")
        return records

    def _execute_all(self, specs: Sequence[RunSpec], taught: RunRecord | None) -> list[RunRecord]:
        """Every run once, here or in another process that searches too."""
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
        def start() -> Start:
            tensors = None
            if spec.init == "teacher" and taught is not None:
                tensors = read_branch(self.bench.ledger.branch_folder(taught.run_id)).tensors
            return initial_tensors(self.bench.backbone, tensors, exit_layer=spec.exit_layer, own_layers=spec.own_layers)

        return start

    def _teach(self, taught: RunRecord | None) -> Callable[[Split], Taught] | None:
        return None if taught is None else lambda rows: taught_by(self.bench, self.task, [taught], rows)

    def _spec(self, choice: Choice, n_rows: int | None, seed: int, taught: RunRecord | None) -> RunSpec:
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

    def _cost(self, choice: Choice, n_rows: int | None) -> float:
        """Of one run, its teacher's answers included."""
        flops = planned_flops(self.task, self._spec(choice, n_rows, 0, None), self.sizes, with_dev=n_rows is None)
        if choice.stage == "student":
            own = self.n_layers - choice.exit_layer
            folded = folds(self.task.spec.kind, choice.pooling)
            flops += branch_flops(self.sizes, self.task.fit.sample(n_rows).lengths, own_layers=own, folded=folded)
        return flops

    def _note(self, choice: Choice, record: RunRecord, *, n_rows: int | None, fate: str) -> None:
        self.seconds += record.seconds + record.cache_seconds
        self.tried.append(
            Tried(
                choice=choice,
                n_rows=n_rows,
                seed=record.spec.seed,
                selection_metric=record.selection_metric,
                dev_metric=record.dev_metric,
                flops=record.flops,
                seconds=record.seconds + record.cache_seconds,
                fate=fate,
                run_id=record.run_id,
            )
        )
        rows = "all rows" if n_rows is None else f"{n_rows} rows"
        self.bench.reporter.note(f"task {record.spec.task!r}: {choice.stage} {choice} on {rows}: {fate}")


def search_tasks(
    bench: Workbench,
    tasks: Sequence[TaskSpec],
    request: SearchRequest,
    *,
    done: Callable[[SearchReport], None] = lambda _report: None,
) -> list[SearchReport]:
    """Search each task, one after the other; all of them are read and checked before the first run.

    Args:
        bench: Backbone, ledger, cache.
        tasks: What to search for.
        request: Budget, seeds, students.
        done: Told of each report as it comes.

    Raises:
        SpecError: A task does not fit the backbone.
        DataError: A row is wrong.
        TrainingError: A run failed.
    """
    reports = []
    for prepared in prepare_tasks(bench, tasks, selection=request.selection):
        reports.append(TaskSearch(bench, prepared, request).run())
        done(reports[-1])
    return reports


def _mean(records: Sequence[RunRecord]) -> float:
    return fmean(record.selection_metric for record in records)
