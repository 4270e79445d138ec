"""Choosing L, exit, l and what else a task needs, for about the price of one full fine-tuning (design.md, section 3).

The paper fine-tunes once for every L and then for every l. Here weak choices are dropped on few rows (successive
halving), students come in only when their teacher is chosen, and what the budget cannot pay is not begun: every cost is
known by formula before it is spent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from trunkline.core.errors import SpecError
from trunkline.core.specs import TaskSpec, spec_digest
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
from trunkline.train.halving import Measured, TrialList, by_worth, fate_of, noise, propose, rungs_of
from trunkline.train.jobs import run_fields
from trunkline.train.pipeline import prepare_tasks
from trunkline.train.prepare import PreparedTask
from trunkline.train.search_runs import SearchRuns
from trunkline.train.search_spec import SearchReport, SearchRequest, Tried
from trunkline.train.spec import RunRecord
from trunkline.train.spending import Estimate, TrunkAccount, full_flops


@dataclass(frozen=True, slots=True)
class Race:
    """One stage of a search.

    Attributes:
        stage: Which.
        choices: What could be tried, the most promising first.
        n_final: How many are trained on all rows.
        teacher: Of students.
        taught: The teacher's run.
    """

    stage: Stage
    choices: Sequence[Choice]
    n_final: int
    teacher: Choice | None = None
    taught: RunRecord | None = None


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
        self.n_layers = bench.backbone.config.n_layers
        self.full_flops = full_flops(bench, task, request.preset)
        self.runs = SearchRuns(bench, task, request)
        self.trunk = TrunkAccount(bench)
        self.estimate = Estimate(self.runs, self.trunk)
        self.tried: list[Tried] = []
        self.not_tried: list[Choice] = []
        self.not_compared: list[Choice] = []
        self.seconds = 0.0
        self._flops: dict[str, float] = {}

    def check(self) -> None:
        """Refuse what cannot be searched, before the first run.

        Raises:
            SpecError: The backbone has not so many layers, or the budget pays no teacher with a student.
        """
        request, subject = self.request, f"search: task {self.task.spec.name!r}"
        too_long = [count for count in request.student_layers if count > self.n_layers]
        if too_long:
            raise SpecError(
                f"{subject}: students of {', '.join(map(str, too_long))} layers; the backbone has {self.n_layers}; "
                "give shorter ones (--students)"
            )
        if request.exhaustive:
            return
        least = min(self._least(choice) for choice in self._teachers()) / self.full_flops
        if least > request.budget:
            raise SpecError(
                f"{subject}: budget {request.budget:g}; the cheapest teacher and student cost "
                f"{math.ceil(least * 100) / 100:.2f} full fine-tunings; raise --budget or use fewer --seeds"
            )

    def run(self) -> SearchReport:
        """Search, from nothing to the final teacher and student.

        Raises:
            SpecError: As of `check`.
            TrainingError: A run failed, or the storage cannot be used.
        """
        self.check()
        request = self.request
        (teacher,) = self._decide(Race("teacher", self._teachers(), n_final=1))
        taught = max(teacher[1], key=lambda record: record.selection_metric)
        students = self._students(teacher[0])
        finals = self._decide(Race("student", students, request.n_students, teacher[0], taught))
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
            not_compared=tuple(self.not_compared),
            teacher=teacher[0],
            winner=winner[0],
        )

    def again(self, report: SearchReport, *, seed: int) -> RunRecord:
        """Train what a search chose once more from nothing, with another seed: teacher first, then what it teaches.

        Args:
            report: Of a search of this very task.
            seed: Of both runs.
        """
        (teacher,) = self.runs.execute([self.runs.spec(report.teacher, n_rows=None, seed=seed, taught=None)], None)
        if report.winner == report.teacher:
            return teacher
        spec = self.runs.spec(report.winner, n_rows=None, seed=seed, taught=teacher)
        return self.runs.execute([spec], teacher)[0]

    # ------------------------------------------------------------------------------------------ what there is

    def _teachers(self) -> list[Choice]:
        spec, preset = self.task.spec, self.request.preset
        if self.request.exhaustive:
            return grid(self.n_layers, pooling=spec.pooling, preset=preset)
        return teacher_choices(self.n_layers, poolings=searched_poolings(spec.kind, spec.pooling), preset=preset)

    def _students(self, teacher: Choice) -> list[Choice]:
        listed = student_grid if self.request.exhaustive else student_choices
        layers, preset = self.request.student_layers, self.request.preset
        return listed(self.n_layers, teacher=teacher, student_layers=layers, preset=preset)

    def _worth(self, stage: Stage, choice: Choice, points: float) -> float:
        """What is served pays for its layers; a teacher that only teaches does not."""
        return points - (self.request.min_gain * choice.own_layers if stage == "student" else 0.0)

    # ------------------------------------------------------------------------------------------ what can be paid

    def _spent(self) -> float:
        return self.trunk.flops + sum(self._flops.values())

    def _left(self) -> float:
        return self.request.budget * self.full_flops - self._spent()

    def _least(self, teacher: Choice) -> float:
        """What a teacher costs with as many students as are asked for, the shortest that read where it does."""
        return self._with_students(teacher, rank=-1)

    def _usual(self, teacher: Choice) -> float:
        """The same with students of the second largest length, or of the only one."""
        return self._with_students(teacher, rank=1)

    def _with_students(self, teacher: Choice, *, rank: int) -> float:
        listed = student_grid(
            self.n_layers,
            teacher=teacher,
            student_layers=self.request.student_layers,
            preset=self.request.preset,
        )
        longest_first = [student for student in listed if student.exit_layer == teacher.exit_layer]
        students = longest_first[rank:][:1] or longest_first[:1]
        return self.estimate.pair(teacher, students * self.request.n_students)

    def _cost(self, race: Race, choice: Choice) -> float:
        """What is set aside for a choice that may win: its final runs, and of a teacher the student after it."""
        return self._usual(choice) if race.teacher is None else self.estimate.final(choice, race.teacher)

    def _answers(self, race: Race) -> float:
        """What the teacher's answers to all rows cost, once for all final students."""
        if race.teacher is None or not race.choices:
            return 0.0
        return self.estimate.answers(race.choices[0], race.teacher, None)

    def _affordable(self, race: Race, rungs: Sequence[int]) -> list[Choice]:
        """Those choices, from the front of the order, that the budget has room to compare beside the final runs."""
        left = self._left() - self._answers(race)
        costs = {choice: self._cost(race, choice) for choice in race.choices}
        chosen: list[Choice] = []
        for choice in race.choices:
            if len(chosen) >= race.n_final and not rungs:
                self.not_compared.append(choice)
            elif self._needed(race, [*chosen, choice], costs, rungs) <= left:
                chosen.append(choice)
            else:
                self.not_tried.append(choice)
        if not chosen and race.choices:
            chosen = self._payable(race, race.choices)[:1]
            listed = self.not_tried if chosen[0] in self.not_tried else self.not_compared
            listed.remove(chosen[0])
        return chosen

    def _needed(
        self, race: Race, choices: Sequence[Choice], costs: Mapping[Choice, float], rungs: Sequence[int]
    ) -> float:
        """What it takes to compare some choices and train out the dearest of them; students keep half of the rest."""
        dear = [costs[choice] for choice in choices]
        if len(choices) <= race.n_final:
            n_open = min(race.n_final, len(race.choices)) - len(choices)
            return sum(dear) + n_open * min(costs.values())
        trials, count = 0.0, len(choices) + self.request.n_proposals
        for n_rows in rungs:
            if count <= race.n_final:
                break
            if n_rows == rungs[0]:
                trials += self.estimate.rung(choices, n_rows, race.teacher, count=len(choices))
                trials += self.request.n_proposals * max(self.runs.flops(choice, n_rows) for choice in choices)
            else:
                trials += self.estimate.rung(choices, n_rows, race.teacher, count=count)
            count = max(race.n_final, count // 2)
        return race.n_final * max(dear) + trials * (2 if race.stage == "teacher" else 1)

    def _payable(self, race: Race, order: Sequence[Choice]) -> list[Choice]:
        """The first of an order whose final runs the budget still pays; the cheapest where it pays none."""
        left = self._left() - self._answers(race)
        costs = [self._least(choice) if race.teacher is None else self._cost(race, choice) for choice in order]
        picked: list[Choice] = []
        for choice, cost in zip(order, costs, strict=True):
            if len(picked) < race.n_final and cost <= left:
                picked.append(choice)
                left -= cost
        return picked or [order[costs.index(min(costs))]]

    # ------------------------------------------------------------------------------------------ racing

    def _decide(self, race: Race) -> list[tuple[Choice, list[RunRecord]]]:
        """Drop the weak on few rows, then train the rest on all rows, once a seed."""
        if not race.choices:
            return []
        if self.request.exhaustive:
            finals = [(choice, self._final(race, choice)) for choice in race.choices]
            finals.sort(key=lambda final: -self._worth(race.stage, final[0], _mean(final[1])))
            return finals[: race.n_final]
        rungs = rungs_of(len(self.runs.rows(race.choices[0], None)))
        chosen = self._affordable(race, rungs)
        if len(chosen) > race.n_final:
            chosen = self._halve(race, chosen, rungs)
        return [(choice, self._final(race, choice)) for choice in chosen]

    def _halve(self, race: Race, chosen: Sequence[Choice], rungs: Sequence[int]) -> list[Choice]:
        """Run every trial on a rung's rows; keep the better half, and at the last rung as many as are trained out."""
        trials, standing = self._trial_list(race), list(chosen)
        trials.begin(standing)
        for n_rows, next_rows in zip(rungs, [*rungs[1:], None], strict=True):
            if len(standing) <= race.n_final:
                break
            measured = self._measure(race, standing, n_rows)
            if n_rows == rungs[0]:
                measured += self._proposed(race, measured, n_rows, trials)
            for each in measured:
                trials.report(each.choice, each.worth, n_rows=n_rows)
            standing = self._staying(race, measured, next_rows)
            for each in measured:
                self._note(each.choice, each.record, n_rows=n_rows, fate=fate_of(each, measured, standing))
                if each.choice not in standing or next_rows is None or len(standing) <= race.n_final:
                    trials.finish(each.choice, each.worth, pruned=each.choice not in standing)
        return standing

    def _trial_list(self, race: Race) -> TrialList:
        # All that a figure depends on: precision and dropout too, and which run is the teacher.
        fields = run_fields(self.bench, self.task, seed=0, pooling=self.task.spec.pooling)
        taught = None if race.taught is None else race.taught.run_id
        name = f"{self.task.spec.name}-{race.stage}-{spec_digest((fields, self.request, taught))[:20]}"
        return TrialList(self.bench.ledger.folder, name, storage=self.request.storage)

    def _measure(self, race: Race, choices: Sequence[Choice], n_rows: int) -> list[Measured]:
        records = self._execute(race, choices, n_rows, seed=self.request.seeds[0])
        return [
            Measured(choice, record, self._worth(race.stage, choice, record.selection_metric))
            for choice, record in zip(choices, records, strict=True)
        ]

    def _proposed(self, race: Race, measured: Sequence[Measured], n_rows: int, trials: TrialList) -> list[Measured]:
        """What Optuna proposes after the first rung, one after the other; nothing dearer than what was compared."""
        known = {each.choice: each.worth for each in measured}
        dearest = max(self._cost(race, choice) for choice in known)
        longest = max(self.runs.flops(choice, n_rows) for choice in known)

        def fits(choice: Choice) -> bool:
            return self.runs.flops(choice, n_rows) <= longest and self._cost(race, choice) <= dearest

        further: list[Measured] = []
        for _ in range(self.request.n_proposals):
            proposal = propose(known, fits=fits)
            if proposal is None:
                self.bench.reporter.note(f"task {self.task.spec.name!r}: Optuna proposed no further {race.stage}")
                break
            trials.begin([proposal])
            further += self._measure(race, [proposal], n_rows)
            known[proposal] = further[-1].worth
        return further

    def _staying(self, race: Race, measured: Sequence[Measured], next_rows: int | None) -> list[Choice]:
        """Who is measured at the next rung, or trained out where there is none."""
        worth, half = [each.worth for each in measured], max(race.n_final, len(measured) // 2)
        if next_rows is None or half <= race.n_final:
            best = max(measured, key=lambda each: each.worth)
            margin = noise(best.record.selection_metric, len(self.task.selection))
            return self._payable(race, [measured[i].choice for i in by_worth(worth, margin=margin)])
        staying = [measured[i].choice for i in by_worth(worth)[:half]]
        left = self._left() - self._answers(race)
        while len(staying) > race.n_final:
            reserve = race.n_final * max(self._cost(race, choice) for choice in staying)
            if reserve + self.estimate.rung(staying, next_rows, race.teacher, count=len(staying)) <= left:
                break
            staying.pop()
        return [each.choice for each in measured if each.choice in staying]

    # ------------------------------------------------------------------------------------------ runs

    def _final(self, race: Race, choice: Choice) -> list[RunRecord]:
        records = [self._execute(race, [choice], None, seed=seed)[0] for seed in self.request.seeds]
        for record in records:
            self._note(choice, record, n_rows=None, fate="trained on all rows")
        return records

    def _execute(self, race: Race, choices: Sequence[Choice], n_rows: int | None, *, seed: int) -> list[RunRecord]:
        for part in self.runs.parts(choices, n_rows, race.teacher):
            self.trunk.fill(part.rows, part.exits, dtype=part.dtype)
        specs = [self.runs.spec(choice, n_rows=n_rows, seed=seed, taught=race.taught) for choice in choices]
        records = self.runs.execute(specs, race.taught)
        for choice, record in zip(choices, records, strict=True):
            needed = self.runs.parts([choice], n_rows, race.teacher)
            held = all(self.trunk.holds(part.rows, e, dtype=part.dtype) for part in needed for e in part.exits)
            self._flops[record.run_id] = record.flops + (0.0 if held else record.cache_flops)
        return records

    def _note(self, choice: Choice, record: RunRecord, *, n_rows: int | None, fate: str) -> None:
        self.seconds += record.seconds + record.cache_seconds
        self.tried.append(
            Tried(
                choice=choice,
                n_rows=n_rows,
                seed=record.spec.seed,
                selection_metric=record.selection_metric,
                dev_metric=record.dev_metric,
                flops=self._flops[record.run_id],
                seconds=record.seconds + record.cache_seconds,
                fate=fate,
                run_id=record.run_id,
            )
        )
        rows = "all rows" if n_rows is None else f"{n_rows} rows"
        self.bench.reporter.note(f"task {record.spec.task!r}: {choice.stage} {choice} on {rows}: {fate}")


def search_tasks(bench: Workbench, tasks: Sequence[TaskSpec], request: SearchRequest) -> list[SearchReport]:
    """Search each task, one after the other; all of them are read and checked before the first run.

    Args:
        bench: Backbone, ledger, cache.
        tasks: What to search for.
        request: Budget, seeds, students.

    Raises:
        SpecError: A task does not fit the backbone, or the budget pays no teacher with a student.
        DataError: A row is wrong.
        TrainingError: A run failed, or the storage cannot be used.
    """
    searches = [TaskSearch(bench, task, request) for task in prepare_tasks(bench, tasks, selection=request.selection)]
    for search in searches:
        search.check()
    return [search.run() for search in searches]


def _mean(records: Sequence[RunRecord]) -> float:
    return fmean(record.selection_metric for record in records)
