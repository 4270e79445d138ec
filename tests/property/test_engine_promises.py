"""Whatever is asked, of whichever rows and together with whatever else: the answers are the same."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_bundles import TASKS, TEXTS, make_bundle
from tests.tiny_engines import BACKENDS, backend_of, encoded, open_fp32, run_all, run_some, snapshot_of
from trunkline.engine.engine import LIMITS, Engine

TEXT_TASKS = tuple(task for task in TASKS if task != "same")
POOL = (*TEXTS, "yes " * 25, "rain", "play music in london tonight and book a table for two", "7:30", "好")
rows_asked = st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=8)
tasks_asked = st.lists(st.sampled_from(TEXT_TASKS), min_size=1, unique=True)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """The whole bundle as usual, in tiny steps, with a cache, by torch; and each task's own."""
    folder = tmp_path_factory.mktemp("bundles")
    whole = make_bundle(folder / "whole", *TEXT_TASKS).path
    with ExitStack() as opened:
        yield {
            "whole": opened.enter_context(open_fp32(whole)),
            "steps": opened.enter_context(open_fp32(whole, limits=replace(LIMITS, batch_tokens=24, batch_rows=2))),
            "cache": opened.enter_context(open_fp32(whole, cache_bytes=100_000)),
            "torch": opened.enter_context(open_fp32(whole, name="torch")),
            **{task: opened.enter_context(open_fp32(make_bundle(folder / task, task).path)) for task in TEXT_TASKS},
        }


@pytest.fixture(scope="module")
def expected(engines: dict[str, Engine]) -> dict[str, list[np.ndarray]]:
    """Every row alone."""
    return {task: [engines["whole"].logits([text], task)[0] for text in POOL] for task in TEXT_TASKS}


def assert_near(found: np.ndarray, wanted: np.ndarray, where: object) -> None:
    assert found.shape == wanted.shape, where
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4, err_msg=str(where))


@pytest.mark.parametrize("which", ["whole", "steps", "cache", "torch"])
@settings(max_examples=12)
@given(numbers=rows_asked, task=st.sampled_from(TEXT_TASKS))
def test_any_rows_in_any_order_answer_as_each_alone(
    engines: dict[str, Engine], expected: dict[str, list[np.ndarray]], which: str, numbers: list[int], task: str
) -> None:
    for number, found in zip(numbers, engines[which].logits([POOL[n] for n in numbers], task), strict=True):
        assert_near(found, expected[task][number], (which, task, number))


@settings(max_examples=15)
@given(numbers=rows_asked, task=st.sampled_from(TEXT_TASKS))
def test_a_merged_bundle_answers_as_the_tasks_own(engines: dict[str, Engine], numbers: list[int], task: str) -> None:
    texts = [POOL[number] for number in numbers]
    for one, other in zip(engines["whole"].logits(texts, task), engines[task].logits(texts, task), strict=True):
        assert_near(one, other, task)


@settings(max_examples=15)
@given(numbers=rows_asked, tasks=tasks_asked)
def test_any_tasks_in_any_order_answer_as_when_all_are_asked(
    engines: dict[str, Engine], numbers: list[int], tasks: list[str]
) -> None:
    texts = [POOL[number] for number in numbers]
    everything = {(each.index, each.task): each for each in engines["whole"].stream(texts)}
    found = list(engines["whole"].stream(texts, tasks=tasks))
    assert sorted((each.index, each.task) for each in found) == sorted(
        (index, task) for index in range(len(texts)) for task in tasks
    )
    for each in found:
        assert type(each.prediction) is type(everything[each.index, each.task].prediction)
        assert each.version == everything[each.index, each.task].version


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=12)
@given(data=st.data())
def test_each_task_on_rows_of_its_own_answers_as_all_tasks_on_all_rows(
    answered: dict[str, object], name: str, data: st.DataObject
) -> None:
    backend, snapshot, rows, whole = answered[name]  # type: ignore[misc]
    some = st.lists(st.integers(0, len(POOL) - 1), unique=True).map(sorted)
    asked = {task: data.draw(some, label=task) for task in TEXT_TASKS}
    found = run_some(backend, snapshot.trunk, rows, {snapshot.branches[task]: each for task, each in asked.items()})
    assert set(found) == {task for task, numbers in asked.items() if numbers}
    for task, logits in found.items():
        for number, row in zip(asked[task], logits, strict=True):
            assert_near(row, whole[task][number], (task, number))


@pytest.fixture(scope="module")
def answered() -> dict[str, object]:
    """By backend: itself, a snapshot, all rows, and every task's logits of them."""
    found: dict[str, object] = {}
    for name in BACKENDS:
        backend, rows = backend_of(name), encoded(*POOL)
        snapshot = snapshot_of(backend, *TEXT_TASKS)
        found[name] = (backend, snapshot, rows, run_all(backend, snapshot, rows))
    return found
