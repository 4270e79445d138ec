"""The search: what it spends is what it may, weak choices are dropped and said why, and it resumes."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.tiny_tasks import QUICK_PRESET, Notebook, make_bench, make_task
from trunkline.core.errors import SpecError, TrainingError
from trunkline.train.bench import Reporter
from trunkline.train.choices import grid, student_choices, student_grid, teacher_choices, teacher_layers
from trunkline.train.pipeline import prepare_tasks
from trunkline.train.search import TaskSearch
from trunkline.train.search_spec import SearchReport, SearchRequest


def searched(folder: Path, *, reporter: Reporter | None = None, **fields: Any) -> tuple[SearchReport, TaskSearch]:
    request = SearchRequest(**({"preset": QUICK_PRESET, "student_layers": (0, 1, 2), "min_gain": 0.1} | fields))
    bench = make_bench(folder, reporter=reporter)
    task = make_task(folder, "topic", n_train=1400, n_dev=8)
    (prepared,) = prepare_tasks(bench, [task], selection="train_slice")
    search = TaskSearch(bench, prepared, request)
    return search.run(), search


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
    small, _ = searched(tmp_path / "small", budget=1.2)
    large, _ = searched(tmp_path / "large", budget=3.0)
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
    report, _ = searched(tmp_path, exhaustive=True, student_layers=(1,))
    teachers = [tried for tried in report.tried if tried.choice.stage == "teacher"]
    assert [tried.n_rows for tried in report.tried] == [None] * len(report.tried)
    assert {tried.choice.own_layers for tried in teachers} == set(teacher_layers(4))
    assert report.cost > report.budget


def test_optuna_may_propose_further_trials(tmp_path: Path) -> None:
    report, _ = searched(tmp_path, budget=6.0, n_proposals=2)
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
