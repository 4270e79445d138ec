"""The search: what it spends is what it may, weak choices are dropped and said why, and it resumes."""

from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console, RenderableType

from tests.tiny_tasks import (
    QUICK,
    QUICK_PRESET,
    Notebook,
    make_bench,
    make_task,
    rows_of,
    write_rows,
    write_task,
)
from trunkline.core.errors import SpecError, TrainingError
from trunkline.core.specs import read_task
from trunkline.train.bench import Reporter
from trunkline.train.choices import Choice, grid, student_choices, student_grid, teacher_choices, teacher_layers
from trunkline.train.halving import TrialList, by_worth, noise, propose, rungs_of
from trunkline.train.pipeline import prepare_tasks
from trunkline.train.search import Race, TaskSearch
from trunkline.train.search_spec import SearchReport, SearchRequest
from trunkline.train.spec import Distillation, Preset
from trunkline.train.spending import TrunkAccount
from trunkline.views import search_table

SHORT = msgspec.structs.replace(QUICK, epochs=1, batch_size=64)
SHORT_PRESET = Preset(full=SHORT, partial=SHORT, student=SHORT, distillation=Distillation())


def searched(
    folder: Path, *, reporter: Reporter | None = None, limit_bytes: int | None = None, **fields: Any
) -> tuple[SearchReport, TaskSearch]:
    request = SearchRequest(**({"preset": QUICK_PRESET, "student_layers": (0, 1, 2), "min_gain": 0.1} | fields))
    bench = make_bench(folder, reporter=reporter)
    bench.cache.limit_bytes = limit_bytes
    task = make_task(folder, "topic", n_train=1400, n_dev=8)
    (prepared,) = prepare_tasks(bench, [task], selection="train_slice")
    search = TaskSearch(bench, prepared, request)
    return search.run(), search


def rendered(view: RenderableType) -> str:
    console = Console(file=StringIO(), width=400)
    console.print(view)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_layers_are_the_papers_shares_of_any_depth() -> None:
    assert list(teacher_layers(12)) == [4, 5, 6, 7, 8, 9, 10]
    assert list(teacher_layers(6)) == [2, 3, 4, 5]
    assert list(teacher_layers(2)) == [1]


def test_choices_begin_at_half_the_layers_and_each_is_listed_once() -> None:
    choices = teacher_choices(12, poolings=("cls", "mean"), preset=QUICK_PRESET)
    assert (choices[0].own_layers, choices[0].pooling) == (6, "cls")
    assert choices[1].pooling == "mean"
    assert len(set(choices)) == len(choices)
    assert {choice.own_layers for choice in grid(12, pooling="cls", preset=QUICK_PRESET)} == set(teacher_layers(12))


def test_students_are_shorter_than_their_teacher_and_read_inside_the_backbone() -> None:
    (teacher, *_) = teacher_choices(6, poolings=("cls",), preset=QUICK_PRESET)
    fields = {"teacher": teacher, "student_layers": (0, 1, 2, 3), "preset": QUICK_PRESET}
    students = student_choices(6, **fields)
    assert all(student.own_layers < teacher.own_layers for student in students)
    assert all(student.exit_layer + student.own_layers <= 6 for student in students)
    assert students[0].exit_layer == teacher.exit_layer
    assert {(s.exit_layer, s.own_layers) for s in student_grid(6, **fields)} == {
        (e, own) for own in range(teacher.own_layers) for e in range(7 - own)
    }


def test_a_search_stays_within_its_budget_and_says_what_it_dropped(tmp_path: Path) -> None:
    report, search = searched(tmp_path, budget=3.0)
    assert 0 < report.cost <= report.budget
    assert report.spent_flops == pytest.approx(report.trunk_flops + sum(tried.flops for tried in report.tried))
    dropped = [tried for tried in report.tried if tried.fate.startswith("dropped")]
    assert dropped
    assert all(tried.n_rows is not None and tried.dev_metric is None for tried in dropped)
    finals = [tried for tried in report.tried if tried.n_rows is None]
    assert {tried.choice.stage for tried in finals} == {"teacher", "student"}
    assert report.winner in {tried.choice for tried in finals}
    # Trials leave no branch behind; final runs do.
    ledger = search.bench.ledger
    assert all(ledger.branch_folder(tried.run_id).exists() == (tried.n_rows is None) for tried in report.tried)


def test_a_smaller_budget_tries_less(tmp_path: Path) -> None:
    small, _ = searched(tmp_path / "small", budget=1.2, preset=SHORT_PRESET)
    large, _ = searched(tmp_path / "large", budget=3.0, preset=SHORT_PRESET)
    assert small.spent_flops < large.spent_flops

    def n_left(report: SearchReport) -> int:
        return sum(choice.stage == "teacher" for choice in report.not_tried)

    assert n_left(small) > n_left(large)


def test_a_search_asked_again_runs_nothing_and_finds_the_same(tmp_path: Path) -> None:
    report, _ = searched(tmp_path, budget=2.0)
    notebook = Notebook()
    again, _ = searched(tmp_path, budget=2.0, reporter=notebook)
    assert all(resumed for _, resumed in notebook.finished)
    assert (again.teacher, again.winner) == (report.teacher, report.winner)
    assert [tried.run_id for tried in again.tried] == [tried.run_id for tried in report.tried]


def test_the_whole_grid_trains_every_choice_on_all_rows(tmp_path: Path) -> None:
    report, _ = searched(tmp_path, exhaustive=True, student_layers=(1,), preset=SHORT_PRESET)
    teachers = [tried for tried in report.tried if tried.choice.stage == "teacher"]
    assert [tried.n_rows for tried in report.tried] == [None] * len(report.tried)
    assert {tried.choice.own_layers for tried in teachers} == set(teacher_layers(4))
    assert report.cost > report.budget


def test_optuna_may_propose_further_trials(tmp_path: Path) -> None:
    report, _ = searched(tmp_path, budget=4.0, n_proposals=2, preset=SHORT_PRESET)
    factors = {tried.choice.rate_factor for tried in report.tried if tried.choice.stage == "teacher"}
    assert factors - {0.5, 1.0, 2.0}


def test_a_storage_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="search storage nonsense://x: cannot be used"):
        searched(tmp_path, budget=3.0, storage="nonsense://x")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budget": 0.0}, "budget is 0.0"),
        ({"seeds": ()}, "seeds are"),
        ({"student_layers": ()}, "students are"),
        ({"budget": float("inf")}, "budget is inf"),
        ({"min_gain": float("nan")}, "min_gain is nan"),
        ({"seeds": (0, 1, 0)}, "--seeds 0, 1, 0 names one twice"),
        ({"student_layers": (1, 1)}, "--students 1, 1 names one twice"),
        ({"n_proposals": -1}, "n_proposals is -1"),
        ({"n_students": 0}, "n_students is 0"),
    ],
)
def test_requests_that_make_no_search_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        SearchRequest(**fields)


def test_a_report_is_written_and_read(tmp_path: Path) -> None:
    report, _ = searched(tmp_path, budget=1.5)
    assert msgspec.json.decode(msgspec.json.encode(report), type=SearchReport) == report


@pytest.mark.parametrize("budget", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("fields", [{}, {"n_students": 2, "n_proposals": 1, "seeds": (0, 1)}])
def test_a_budget_is_a_bound(tmp_path: Path, budget: float, fields: dict[str, Any]) -> None:
    try:
        report, _ = searched(tmp_path, budget=budget, preset=SHORT_PRESET, **fields)
    except SpecError:
        assert budget < 2
        assert fields
    else:
        assert report.cost <= budget


def test_a_budget_that_pays_no_teacher_with_a_student_is_refused_before_any_run(tmp_path: Path) -> None:
    message = r"search: task 'topic': budget 0.1; the cheapest teacher and student cost 0.\d\d full fine-tunings; raise"
    with pytest.raises(SpecError, match=message):
        searched(tmp_path, budget=0.1)
    assert not (tmp_path / "runs" / "runs").exists()


def test_the_least_budget_that_is_named_is_enough(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        searched(tmp_path, budget=0.01, preset=SHORT_PRESET)
    least = float(str(refused.value).split(" cost ")[1].split()[0])
    report, _ = searched(tmp_path, budget=least, preset=SHORT_PRESET)
    assert report.cost <= least


def test_students_that_the_backbone_cannot_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="students of 9 layers; the backbone has 4; give shorter ones"):
        searched(tmp_path, student_layers=(1, 9))


def test_teachers_are_tried_on_labelled_rows_students_on_all(tmp_path: Path) -> None:
    rows = rows_of("topic", 1400)
    path = write_task(tmp_path, "topic", n_dev=8)
    write_rows(
        tmp_path / "topic-train.jsonl",
        [row if i % 8 == 0 else {"text": row["text"], "label": None} for i, row in enumerate(rows)],
    )
    bench = make_bench(tmp_path)
    (prepared,) = prepare_tasks(bench, [read_task(path)], selection="train_slice")
    request = SearchRequest(preset=SHORT_PRESET, student_layers=(0, 1), budget=9.0)
    report = TaskSearch(bench, prepared, request).run()
    assert {tried.n_rows for tried in report.tried if tried.choice.stage == "teacher"} == {None}
    assert 256 in {tried.n_rows for tried in report.tried if tried.choice.stage == "student"}
    # With so few labelled rows no part of them says anything; the budget has room.
    assert {choice.stage for choice in report.not_compared} == {"teacher"}
    assert report.cost <= report.budget
    assert "too few rows" in rendered(search_table(report))


def test_a_student_may_match_what_its_teachers_head_reads(tmp_path: Path) -> None:
    distillation = msgspec.structs.replace(SHORT_PRESET.distillation, hidden_weight=1.0)
    preset = msgspec.structs.replace(SHORT_PRESET, distillation=distillation)
    report, _ = searched(tmp_path, budget=1.0, preset=preset)
    assert any(tried.choice.stage == "student" for tried in report.tried)


def test_a_cache_without_room_costs_what_was_set_aside(tmp_path: Path) -> None:
    report, search = searched(tmp_path, limit_bytes=20_000, budget=3.0, preset=SHORT_PRESET)
    assert report.cost <= report.budget
    assert report.spent_flops == pytest.approx(report.trunk_flops + sum(tried.flops for tried in report.tried))
    assert not search.trunk.holds(search.task.fit, report.teacher.exit_layer, dtype="bfloat16")


def test_the_cache_is_filled_exit_by_exit_as_far_as_there_is_room(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    (task,) = prepare_tasks(bench, [make_task(tmp_path, "topic")], selection="train_slice")
    size = bench.cache.missing_bytes(bench.backbone, task.fit.rows, exit_layer=1, dtype="float32")
    bench.cache.limit_bytes = 2 * size
    account = TrunkAccount(bench)
    expected = account.price(task.fit, [1, 3], dtype="float32")
    account.fill(task.fit, [3, 1, 2], dtype="float32")
    assert [account.holds(task.fit, e, dtype="float32") for e in (1, 2, 3)] == [True, False, True]
    assert account.flops == expected == account.flops + account.price(task.fit, [1, 3], dtype="float32")


def test_activations_that_a_run_had_to_make_itself_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrunkAccount, "fill", lambda *_args, **_fields: None)
    report, search = searched(tmp_path, budget=1.5, preset=SHORT_PRESET, exhaustive=True, student_layers=(1,))
    records = {record.run_id: record for record in search.bench.ledger.records()}
    assert report.spent_flops == pytest.approx(
        sum(records[tried.run_id].flops + records[tried.run_id].cache_flops for tried in report.tried)
    )
    assert any(record.cache_flops for record in records.values())


def test_what_was_left_in_the_storage_does_not_decide(tmp_path: Path) -> None:
    clean, _ = searched(tmp_path / "clean", budget=2.0, preset=SHORT_PRESET)
    folder = tmp_path / "dirty"
    make_bench(folder)
    opened: list[TrialList] = []

    class Misled(TrialList):
        def begin(self, choices: Sequence[Choice]) -> None:
            if not opened:
                # A kill left a trial in the queue, and another program wrote a figure that no run reached.
                self._study.enqueue_trial({"own_layers": 1})
                super().begin(choices[-1:])
                self.report(choices[-1], 1000.0, n_rows=256)
                self.finish(choices[-1], 1000.0, pruned=True)
            opened.append(self)
            super().begin(choices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trunkline.train.search.TrialList", Misled)
        misled, _ = searched(folder, budget=2.0, preset=SHORT_PRESET)
    assert [(t.choice, t.n_rows, t.fate) for t in misled.tried] == [(t.choice, t.n_rows, t.fate) for t in clean.tried]
    states = [trial.state.name for trial in opened[0]._study.get_trials()]
    assert states.count("WAITING") == 1
    assert "RUNNING" not in states


def test_trials_are_listed_by_precision_and_by_the_teachers_run(tmp_path: Path) -> None:
    _, search = searched(tmp_path, budget=1.0, preset=SHORT_PRESET)
    records = search.bench.ledger.records()
    names = set()
    for precision, record in (("fp32", records[0]), ("fp32", records[1]), ("bf16", records[0])):
        bench = replace(search.bench, precision=precision)
        each = TaskSearch(bench, search.task, search.request)
        names.add(each._trial_list(Race("student", (), 1, None, record))._study.study_name)
    assert len(names) == 3


def test_proposals_keep_to_what_may_be_tried() -> None:
    (teacher, *_) = teacher_choices(6, poolings=("cls",), preset=QUICK_PRESET)
    measured = {
        choice: 50.0 + 10 * choice.own_layers
        for choice in student_choices(6, teacher=teacher, student_layers=(0, 2), preset=QUICK_PRESET)
    }
    asked: list[Choice] = []

    def fits(choice: Choice) -> bool:
        asked.append(choice)
        return choice.epochs < 4

    proposal = propose(measured, fits=fits)
    assert proposal is not None
    assert proposal.epochs < 4
    places = {(choice.exit_layer, choice.own_layers) for choice in measured}
    assert {(choice.exit_layer, choice.own_layers) for choice in asked} <= places
    # The same figures give the same proposal; what was measured teaches: longer ones were worth more.
    assert propose(measured, fits=lambda choice: choice.epochs < 4) == proposal
    assert proposal.own_layers == 2
    asked.clear()
    assert propose(measured, fits=lambda choice: bool(asked.append(choice))) is None  # type: ignore[func-returns-value]
    assert len(asked) <= 20


def test_what_is_within_the_noise_of_the_best_goes_by_the_order() -> None:
    assert by_worth([70.0, 80.0, 79.0]) == [1, 2, 0]
    assert by_worth([70.0, 79.0, 80.0, 60.0], margin=2.0) == [1, 2, 0, 3]
    assert noise(50.0, 100) == pytest.approx(2.5)
    # The share is the metric itself, whatever its layers cost.
    assert noise(-12.0, 100) == noise(1.0, 100)


def test_rungs_are_of_no_fewer_rows_than_say_something() -> None:
    assert rungs_of(400) == []
    assert rungs_of(600) == [256]
    assert rungs_of(32_000) == [2000, 4000]


def test_a_lock_that_cannot_be_taken_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs" / "search.lock").mkdir(parents=True)
    with pytest.raises(TrainingError, match=r"search\.journal: cannot be used"):
        searched(tmp_path, budget=3.0, preset=SHORT_PRESET)
