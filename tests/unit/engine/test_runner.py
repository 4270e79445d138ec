from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tests.tiny_bundles import TEXTS, backbone_of, make_branch
from trunkline.core.errors import SpecError, UnknownNameError
from trunkline.core.types import Batch, Example
from trunkline.data.collate import collate
from trunkline.engine.runner import Runner, usable_device
from trunkline.model.branch import load_branch
from trunkline.model.encoder import EncoderLayer
from trunkline.model.trunk import Trunk


def runner_of(*tasks: str, architecture: str = "bert", depth: int = 2) -> Runner:
    backbone = backbone_of(architecture)
    made = {task: make_branch(task, backbone) for task in tasks}
    branches = {task: load_branch(one.spec, backbone.config, one.tensors) for task, one in made.items()}
    return Runner(Trunk.build(backbone.config, backbone.tensors, depth=depth), branches)


def batch_of(*texts: str, architecture: str = "bert") -> Batch:
    tokenizer = backbone_of(architecture).tokenizer
    return collate(tokenizer.encode([Example(text=text) for text in texts], max_length=32), tokenizer.pad_id)


@contextmanager
def counted_rows(runner: Runner) -> Iterator[Counter[int]]:
    """Rows that each encoder layer saw, by the layer's identity."""
    seen: Counter[int] = Counter()
    layers = [module for part in (runner.trunk, *runner.branches.values()) for module in part.modules()]
    hooks = [
        layer.register_forward_hook(lambda module, inputs, _output: seen.update({id(module): len(inputs[0])}))
        for layer in layers
        if isinstance(layer, EncoderLayer)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def everything(n_rows: int, *tasks: str) -> dict[str, np.ndarray]:
    return {task: np.arange(n_rows) for task in tasks}


def test_answers_come_in_the_order_of_the_exits() -> None:
    runner = runner_of("slots", "intent", "topics", "urgency")
    found = [task for task, _ in runner.run(batch_of(*TEXTS), everything(6, "slots", "intent", "topics", "urgency"))]
    assert found == ["topics", "intent", "urgency", "slots"]


def test_an_early_answer_is_there_before_deeper_layers_run() -> None:
    runner = runner_of("topics", "slots")
    with counted_rows(runner) as seen:
        answers = runner.run(batch_of(*TEXTS), everything(6, "topics", "slots"))
        assert next(answers)[0] == "topics"
        assert not any(seen[id(layer)] for layer in runner.trunk.layers)
        assert next(answers)[0] == "slots"
        assert all(seen[id(layer)] for layer in runner.trunk.layers)


def test_the_trunk_runs_only_to_the_deepest_exit_asked() -> None:
    runner = runner_of("intent", "slots")
    with counted_rows(runner) as seen:
        list(runner.run(batch_of(*TEXTS), everything(6, "intent")))
    assert [seen[id(layer)] for layer in runner.trunk.layers] == [6, 0]


def test_rows_that_nobody_asks_for_deeper_drop_out() -> None:
    runner = runner_of("intent", "slots")
    with counted_rows(runner) as seen:
        list(runner.run(batch_of(*TEXTS), {"intent": np.array([0, 1, 4]), "slots": np.array([3])}))
    assert [seen[id(layer)] for layer in runner.trunk.layers] == [4, 1]


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_dropping_rows_gives_the_answers_of_the_whole_batch(architecture: str) -> None:
    runner = runner_of("intent", "slots", "mood", architecture=architecture)
    batch = batch_of(*TEXTS, architecture=architecture)
    whole = dict(runner.run(batch, everything(6, "intent", "slots", "mood")))
    asked = {"intent": np.array([5, 2]), "slots": np.array([1, 2, 4]), "mood": np.array([0])}
    asked["intent"].sort()
    for task, logits in runner.run(batch, asked):
        np.testing.assert_allclose(logits, whole[task][asked[task]], atol=1e-5)


def test_a_task_that_no_row_asks_for_is_not_run() -> None:
    runner = runner_of("intent", "slots")
    found = dict(runner.run(batch_of(*TEXTS), {"intent": np.array([1]), "slots": np.zeros(0, np.int64)}))
    assert list(found) == ["intent"]


def test_nothing_asked_runs_nothing() -> None:
    runner = runner_of("intent")
    with counted_rows(runner) as seen:
        assert list(runner.run(batch_of(*TEXTS), {})) == []
    assert not seen


def test_shapes_are_rows_by_outputs_and_for_tagging_rows_by_tokens_by_labels() -> None:
    runner, batch = runner_of("intent", "slots"), batch_of(*TEXTS)
    found = dict(runner.run(batch, everything(6, "intent", "slots")))
    assert found["intent"].shape == (6, 3)
    assert found["slots"].shape == (6, batch.mask.shape[1], 3)
    assert {logits.dtype for logits in found.values()} == {np.dtype(np.float32)}


def test_inference_mode_does_not_leak_to_whoever_reads_the_answers() -> None:
    runner = runner_of("topics", "slots")
    for _ in runner.run(batch_of(*TEXTS), everything(6, "topics", "slots")):
        assert not torch.is_inference_mode_enabled()


def test_an_unknown_task_is_refused_before_anything_runs() -> None:
    runner = runner_of("intent")
    with counted_rows(runner) as seen, pytest.raises(UnknownNameError, match="did you mean 'intent'"):
        list(runner.run(batch_of(*TEXTS), everything(6, "intend")))
    assert not seen


@pytest.mark.parametrize("name", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match=name):
        usable_device(name)
