"""Pictures for the terminal: what they say, not how it looks."""

import io
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from tests.tiny_bundles import provenance_of
from tests.tiny_plans import rule_plan
from tests.tiny_records import run_record
from trunkline.bundle.manifest import Manifest, TaskEntry, TrunkEntry
from trunkline.core.specs import Calibration
from trunkline.core.types import LabelPrediction, LabelsPrediction, ScorePrediction, Span, SpansPrediction
from trunkline.engine.calibrate import Calibrated
from trunkline.train.candidates import candidates_of
from trunkline.train.contest import PlanRequest, contest_of
from trunkline.train.pareto import pareto_of
from trunkline.train.plan import plan_contest
from trunkline.train.price import Budget
from trunkline.views import (
    answer_table,
    answer_text,
    bundle_picture,
    calibration_table,
    candidate_table,
    cost_table,
    front_table,
    plan_table,
)

N_LAYERS = 12
tasks = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=8)


def drawn(picture: RenderableType, width: int = 200) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(picture, highlight=False)
    return stream.getvalue()


def manifest_of(branches: list[tuple[int, int]]) -> Manifest:
    depth = max(exit_layer for exit_layer, _ in branches)
    entry = TaskEntry(
        branch="b" * 64,
        exit_layer=0,
        own_layers=0,
        kind="classification",
        input="text",
        labels=("a", "b"),
        label_schema_version=1,
        metric="accuracy",
        max_length=32,
        pooling="cls",
        provenance=provenance_of("intent", dev_metric=81.25),
        files={},
    )
    return Manifest(
        trunkline_version="0.1.0",
        backbone="bert",
        n_layers=N_LAYERS,
        trunk=TrunkEntry(depth=depth, chain=("c" * 64,) * (depth + 1), files={}),
        tasks={
            f"task{i}": msgspec.structs.replace(entry, exit_layer=exit_layer, own_layers=own_layers)
            for i, (exit_layer, own_layers) in enumerate(branches)
        },
    )


def total_of(manifest: Manifest) -> int:
    found = re.search(r"all tasks at once +(\d+)", drawn(cost_table(manifest)))
    assert found is not None
    return int(found[1])


@given(branches=tasks)
def test_the_cost_shown_is_the_trunk_once_plus_every_branch(branches: list[tuple[int, int]]) -> None:
    assert total_of(manifest_of(branches)) == max(e for e, _ in branches) + sum(own for _, own in branches)


@given(branches=tasks, own_layers=st.integers(0, 3), data=st.data())
def test_one_more_task_costs_its_own_layers_alone_when_the_trunk_is_deep_enough(
    branches: list[tuple[int, int]], own_layers: int, data: st.DataObject
) -> None:
    # Paper section 4.1: the overhead is linear in the tasks, however many there are already.
    exit_layer = data.draw(st.integers(0, max(e for e, _ in branches)))
    more = manifest_of([*branches, (exit_layer, own_layers)])
    assert total_of(more) - total_of(manifest_of(branches)) == own_layers


def test_each_task_is_shown_with_what_it_costs_alone_and_added() -> None:
    shown = drawn(bundle_picture(manifest_of([(7, 1), (4, 3)])))
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.startswith("task")}
    assert rows == {"task0": ["7", "+", "1", "1", "12"], "task1": ["4", "+", "3", "3", "12"]}
    assert "7 of 12 layers run" in shown
    assert "11 (46%)" in shown


def tree_of(manifest: Manifest, width: int = 200) -> list[str]:
    """The lines above the table of costs."""
    lines = drawn(bundle_picture(manifest), width).splitlines()
    return lines[: next(i for i, line in enumerate(lines) if not line.strip())]


def test_branches_hang_below_the_part_of_the_trunk_they_leave_at() -> None:
    lines = tree_of(manifest_of([(0, 1), (2, 2), (3, 0), (9, 5)]))
    assert [line.split(" classification")[0] for line in lines] == [
        "trunk  bert: 9 of 12 layers stored",
        "├── embeddings",
        "│   └── task0 [0]",
        "├── layers 0-1",
        "│   └── task1 [2] [3]",
        "├── layer 2",
        "│   └── task2 ",
        "└── layers 3-8",
        "    └── task3 [9]..[13]",
    ]
    assert "accuracy 81.2 on dev" in lines[2]


def test_layers_that_are_stored_and_not_read_are_told_from_those_that_run() -> None:
    deep = manifest_of([(4, 1)])
    shown = drawn(bundle_picture(msgspec.structs.replace(deep, trunk=manifest_of([(9, 1)]).trunk)))
    assert "bert: 9 of 12 layers stored" in shown
    assert "└── layers 4-8: no branch reads so deep" in shown
    assert "trunk, 4 of 12 layers run" in shown


@pytest.mark.parametrize(
    ("n_layers", "exits"), [(24, (8, 20)), (12, tuple(i % 12 for i in range(21))), (24, tuple(range(24)))]
)
def test_every_task_is_whole_in_a_picture_80_columns_wide(n_layers: int, exits: tuple[int, ...]) -> None:
    plain = manifest_of([(exit_layer, 1) for exit_layer in exits])
    named = {f"a-task-with-a-name-of-some-length-{name}": entry for name, entry in plain.tasks.items()}
    manifest = msgspec.structs.replace(plain, n_layers=n_layers, tasks=named)
    lines = tree_of(manifest, 80)
    for name in named:
        assert sum(f"── {name} [" in line for line in lines) == 1, name
    # A branch may take two lines, never a column of single words.
    assert len(lines) <= 1 + len(set(exits)) + 2 * len(exits)


def test_an_empty_bundle_can_be_drawn() -> None:
    empty = msgspec.structs.replace(manifest_of([(3, 1)]), tasks={})
    assert total_of(empty) == 0


def test_candidates_show_mean_spread_and_maximum() -> None:
    records = [run_record(80.0 + s, dev=70.0 + s, seed=s) for s in range(3)]
    line = drawn(candidate_table(candidates_of(records))).splitlines()[-1].split()
    assert line == ["mood", "partial", "2", "2", "cls", "accuracy", "81.0", "71.0", "1.0", "72.0", "3", "8"]


def test_students_from_the_backbone_are_told_from_those_of_a_teacher() -> None:
    records = [run_record(80.0, arm="student", own_layers=1, init=init) for init in ("backbone", "teacher")]
    shown = drawn(candidate_table(candidates_of(records)))
    assert shown.count("student (from backbone)") == 1
    assert shown.count("student") == 2


def test_students_of_teachers_of_two_lengths_are_told_apart() -> None:
    teachers = [run_record(70.0, exit_layer=4 - n, own_layers=n) for n in (2, 3)]
    students = [
        run_record(80.0, arm="student", own_layers=1, init="teacher", init_from=each.run_id) for each in teachers
    ]
    shown = drawn(candidate_table(candidates_of([*teachers, *students])))
    assert "student (from a teacher of 2)" in shown
    assert "student (from a teacher of 3)" in shown
    assert "a teacher of" not in drawn(candidate_table(candidates_of([*teachers, students[0]])))


def test_a_plan_says_why_and_what_it_costs() -> None:
    candidates = candidates_of([run_record(80.0), run_record(85.0, exit_layer=1, own_layers=3)])
    shown = drawn(plan_table(rule_plan(candidates, min_gain=2.0, n_layers=4)))
    assert "mood: start at 2 layers with 80.0; 3 layers 85.0 (+5.00 a layer): accepted" in shown
    assert "trunk 1 + branches 3 = 4 layers; 4 for single models (100%)" in shown


def test_a_plan_for_a_budget_says_so_and_a_front_marks_it() -> None:
    candidates = candidates_of([
        run_record(points, task=task, exit_layer=1, own_layers=n)
        for task in ("mood", "topic") for n, points in ((1, 80.0), (2, 81.0), (3, 85.0))
    ])  # fmt: skip
    contest = contest_of(candidates, backbone="b", n_layers=4, branch_folders={c.run_id: "" for c in candidates})
    request = PlanRequest(budget=Budget(amount=5, unit="layers"))
    plan = plan_contest(contest, request)
    shown = drawn(plan_table(plan))
    assert "Plan, at most 5 layers" in shown
    assert re.search(r"FLOP for a row of 10 tokens \(\d+%\); mean 82.50 points", shown)
    rows = drawn(front_table(pareto_of(contest, request, plan), "layers")).splitlines()[2:]
    assert [row.split()[:1] == ["*"] for row in rows] == [False, False, True, False, False]
    assert "mood 1@1, topic 1@1" in rows[0]
    assert "topic 2@1 → 3@1" in rows[2]


def test_a_chosen_plan_off_the_front_has_a_row_of_its_own() -> None:
    records = [run_record(points, exit_layer=1, own_layers=n) for n, points in ((1, 70.0), (2, 70.9))]
    candidates = candidates_of([*records, run_record(70.1, exit_layer=3, own_layers=1)])
    contest = contest_of(candidates, backbone="b", n_layers=4, branch_folders={c.run_id: "" for c in candidates})
    request = PlanRequest(min_gain=1.0)
    shown = drawn(front_table(pareto_of(contest, request, plan_contest(contest, request)), "layers"))
    marked = [row for row in shown.splitlines() if row.startswith("*")]
    assert len(marked) == 1
    assert "not on this front" in marked[0]


SPAN = Span(label="city", start=3, end=8, text="paris", confidence=0.5)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (LabelPrediction(label="yes", confidence=0.912, probabilities={}), "yes (0.91)"),
        (LabelPrediction(label=None, confidence=0.4, probabilities={}), "abstains (0.40)"),
        (LabelsPrediction(labels=("a", "b"), probabilities={"a": 0.9, "b": 0.6, "c": 0.1}), "a (0.90), b (0.60)"),
        (LabelsPrediction(labels=(), probabilities={"a": 0.1}), "none"),
        (ScorePrediction(score=3.456), "3.46"),
        (SpansPrediction(spans=(SPAN,)), "city: 'paris' [3:8]"),
        (SpansPrediction(spans=()), "no spans"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_answer_is_a_few_words(answer: object, text: str) -> None:
    assert answer_text(answer) == text  # type: ignore[arg-type]


def test_brackets_in_texts_and_labels_are_shown_as_they_are() -> None:
    span = msgspec.structs.replace(SPAN, text="[/b] [red]x")
    shown = drawn(answer_table("see [/red]", {"slots": SpansPrediction(spans=(span,))}))
    assert "see [/red]" in shown
    assert "city: '[/b] [red]x' [3:8]" in shown


@pytest.mark.parametrize(("edge", "notes"), [(True, 1), (False, 0)])
def test_a_temperature_at_the_edge_of_its_range_has_a_note(edge: bool, notes: int) -> None:
    done = Calibrated(
        task="intent",
        branch="b" * 64,
        calibration=Calibration(temperature=0.05),
        temperature_at_edge=edge,
        n_rows=20,
        n_unseen_labels=3,
        metric_before=100.0,
        metric_after=100.0,
    )
    shown = drawn(calibration_table([done]))
    assert shown.splitlines()[1].split() == ["intent", "0.05", "-", "20", "3", "100.0", "100.0"]
    assert shown.count("intent: temperature 0.05 is at the edge of its range") == notes
