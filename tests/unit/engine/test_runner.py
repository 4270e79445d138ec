"""One forward pass: what is run, for whom, and in which order answers come."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny_bundles import TEXTS, backbone_of
from tests.tiny_engines import (
    backend_of,
    encoded,
    executed,
    run_all,
    run_some,
    snapshot_of,
    snapshot_with,
    stored_branch,
)
from trunkline.engine.backends.torch import TorchBackend
from trunkline.engine.runner import Ran, Runner
from trunkline.engine.snapshot import LoadedBranch, Snapshot

ROWS = encoded(*TEXTS)
TASKS = ("slots", "intent", "topics", "urgency", "mood")


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    return snapshot_of(TorchBackend(), *TASKS)


def running(
    snapshot: Snapshot, asked: dict[str, Any], dropped: Callable[[], frozenset[int]] | None = None
) -> Iterator[Ran]:
    wanted = {snapshot.branches[task]: np.array(rows, dtype=np.int64) for task, rows in asked.items()}
    options = () if dropped is None else (dropped,)
    return Runner(TorchBackend()).run(snapshot.trunk, ROWS, wanted, *options)


def everything(*tasks: str) -> dict[str, Any]:
    return dict.fromkeys(tasks, range(len(ROWS)))


def tasks_of(answers: Iterator[Ran]) -> list[str]:
    return [ran.branch.spec.task for ran in answers]


def test_answers_come_in_the_order_of_the_exits_and_of_one_exit_the_cheapest_first(snapshot: Snapshot) -> None:
    asked = everything("slots", "mood", "intent", "urgency", "topics")
    assert tasks_of(running(snapshot, asked)) == ["topics", "urgency", "intent", "slots", "mood"]


def test_a_folded_branch_answers_before_a_whole_one_of_as_many_layers() -> None:
    backend, backbone = TorchBackend(), backbone_of()
    branches = [
        stored_branch("mood", backbone, exit_layer=1, own_layers=1, pooling="mean"),
        stored_branch("intent", backbone, exit_layer=1, own_layers=1, pooling="cls"),
    ]
    snapshot = snapshot_with(backend, backbone, branches)
    assert list(run_all(backend, snapshot, ROWS)) == ["intent", "mood"]


def test_an_early_answer_is_there_before_deeper_layers_run(snapshot: Snapshot) -> None:
    with executed() as seen:
        answers = running(snapshot, everything("urgency", "slots"))
        assert next(answers).branch.spec.task == "urgency"
        assert len(seen.layers) == 1
        assert next(answers).branch.spec.task == "slots"
        assert len(seen.layers) == 3


def test_each_trunk_layer_runs_once_however_many_branches_ask(snapshot: Snapshot) -> None:
    with executed() as seen:
        list(running(snapshot, everything(*TASKS)))
    # Two of the trunk, and those of the branches' own.
    assert len(seen.layers) == 2 + sum(snapshot.branches[task].spec.own_layers for task in TASKS)


def test_the_trunk_runs_only_to_the_deepest_exit_asked(snapshot: Snapshot) -> None:
    with executed() as seen:
        list(running(snapshot, everything("urgency")))
    assert len(seen.layers) == 1


def test_a_branch_that_reads_the_embeddings_runs_no_layer_of_the_trunk(snapshot: Snapshot) -> None:
    with executed() as seen:
        list(running(snapshot, everything("topics")))
    assert len(seen.layers) == snapshot.branches["topics"].spec.own_layers == 1


def test_the_last_layer_under_a_head_that_reads_the_first_token_makes_that_one_alone(snapshot: Snapshot) -> None:
    with executed() as seen:
        list(running(snapshot, everything("intent")))
    assert [first_only for _, _, first_only in seen.layers] == [False, False, True]
    with executed() as seen:
        list(running(snapshot, everything("mood")))
    assert seen.n_whole == len(seen.layers) == 3


def test_rows_share_lines(snapshot: Snapshot) -> None:
    with executed() as seen:
        list(running(snapshot, everything("urgency")))
    n_tokens = sum(len(row.token_ids) for row in ROWS)
    ((lines, tokens, _),) = seen.layers
    assert seen.n_rows == len(ROWS)
    assert lines * tokens < n_tokens + 64


def test_rows_that_nobody_asks_for_are_not_embedded(snapshot: Snapshot) -> None:
    with executed() as seen:
        list(running(snapshot, {"urgency": [1, 4], "slots": [3]}))
    assert seen.n_rows == 3


def test_rows_that_nobody_asks_for_deeper_drop_out(snapshot: Snapshot) -> None:
    with executed() as seen:
        list(running(snapshot, {"urgency": range(6), "slots": [4]}))
    (lines, tokens, _), (deeper_lines, deeper_tokens, _), _ = seen.layers
    assert lines * tokens > 64
    assert (deeper_lines, deeper_tokens) == (1, 16)


@pytest.mark.parametrize("name", ["openvino", "torch"])
@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_dropping_rows_gives_the_answers_of_the_whole_batch(architecture: str, name: str) -> None:
    backend = backend_of(name)
    snapshot = snapshot_of(backend, "intent", "slots", "mood", architecture=architecture)
    rows = encoded(*TEXTS, architecture=architecture)
    whole = run_all(backend, snapshot, rows)
    asked = {"intent": [2, 5], "slots": [1, 2, 4], "mood": [0]}
    some = run_some(
        backend, snapshot.trunk, rows, {snapshot.branches[task]: numbers for task, numbers in asked.items()}
    )
    for task, logits in some.items():
        for number, found in zip(asked[task], logits, strict=True):
            np.testing.assert_allclose(found, whole[task][number], atol=1e-5)


def test_a_task_that_no_row_asks_for_is_not_run(snapshot: Snapshot) -> None:
    with executed() as seen:
        assert tasks_of(running(snapshot, {"urgency": [1], "slots": []})) == ["urgency"]
    assert len(seen.layers) == 1


def test_nothing_asked_runs_nothing(snapshot: Snapshot) -> None:
    with executed() as seen:
        assert list(running(snapshot, {})) == []
        assert list(running(snapshot, {"intent": []})) == []
    assert not seen.layers
    assert not seen.n_rows


def test_logits_are_float32_of_a_row_or_of_each_of_its_tokens(snapshot: Snapshot) -> None:
    for ran in running(snapshot, everything(*TASKS)):
        n_outputs = ran.branch.spec.n_outputs
        tagging = ran.branch.spec.kind == "tagging"
        shapes = [(len(row.token_ids), n_outputs) if tagging else (n_outputs,) for row in ROWS]
        assert [logits.shape for logits in ran.logits] == shapes
        assert {logits.dtype for logits in ran.logits} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(ran.rows, np.arange(6))


def test_rows_that_are_dropped_meanwhile_get_no_answer_and_the_others_theirs(snapshot: Snapshot) -> None:
    whole = {ran.branch.spec.task: ran.logits for ran in running(snapshot, everything("topics", "slots"))}
    gone: set[int] = set()
    answers = running(snapshot, everything("topics", "slots"), lambda: frozenset(gone))
    assert len(next(answers).rows) == 6
    gone.update((0, 3, 5))
    later = next(answers)
    assert later.rows.tolist() == [1, 2, 4]
    for number, logits in zip((1, 2, 4), later.logits, strict=True):
        np.testing.assert_allclose(logits, whole["slots"][number], atol=1e-5)


def test_rows_are_dropped_between_branches_of_one_exit(snapshot: Snapshot) -> None:
    gone: set[int] = set()
    answers = running(snapshot, everything("slots", "mood"), lambda: frozenset(gone))
    assert next(answers).branch.spec.task == "slots"
    gone.update((0, 1))
    assert next(answers).rows.tolist() == [2, 3, 4, 5]


def test_nothing_more_is_run_when_all_rows_were_dropped(snapshot: Snapshot) -> None:
    gone: set[int] = set()
    with executed() as seen:
        answers = running(snapshot, everything("urgency", "slots"), lambda: frozenset(gone))
        next(answers)
        gone.update(range(6))
        assert list(answers) == []
    assert len(seen.layers) == 1


def test_times_are_those_of_trunk_and_branch(snapshot: Snapshot) -> None:
    ticks = iter(range(100))
    wanted = {snapshot.branches[task]: np.arange(6) for task in ("urgency", "intent", "slots")}
    runner = Runner(TorchBackend(), clock=lambda: float(next(ticks)))
    found = [(ran.trunk_s, ran.branch_s) for ran in runner.run(snapshot.trunk, ROWS, wanted)]
    # Two readings around a piece of trunk and two around a branch; the trunk's add up.
    assert found == [(1.0, 1.0), (1.0, 1.0), (2.0, 1.0)]


def test_inference_mode_does_not_leak_to_whoever_reads_the_answers(snapshot: Snapshot) -> None:
    for _ in running(snapshot, everything("topics", "slots")):
        assert not torch.is_inference_mode_enabled()


def test_two_versions_of_a_task_may_answer_in_one_batch(snapshot: Snapshot) -> None:
    backend = TorchBackend()
    (other,) = snapshot_with(backend, backbone_of(), [stored_branch("slots", backbone_of(), seed=9)]).branches.values()
    mine: LoadedBranch = snapshot.branches["slots"]
    asked = {mine: np.arange(0, 3), other: np.arange(2, 6)}
    found = {ran.branch: ran for ran in Runner(backend).run(snapshot.trunk, ROWS, asked)}
    assert found[mine].rows.tolist() == [0, 1, 2]
    assert found[other].rows.tolist() == [2, 3, 4, 5]
    assert np.abs(found[mine].logits[2] - found[other].logits[0]).max() > 1e-2


def test_more_segments_than_exits_asked_give_the_same(snapshot: Snapshot) -> None:
    backend = TorchBackend()
    deep = snapshot_of(backend, "slots")  # One segment of two layers.
    assert len(deep.trunk.segments) == 1
    assert len(snapshot.trunk.segments) == 2
    mixed = replace(deep, trunk=snapshot.trunk)
    for one, other in zip(*(run_all(backend, each, ROWS)["slots"] for each in (deep, mixed)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
