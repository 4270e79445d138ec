"""Every kind of task is learned: the metric on dev after training is far above the untrained one."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.tiny import tiny_backbone
from tests.tiny_tasks import TASKS, make_bench, make_task, quick_request
from trunkline.model.heads import build_head, init_head, start_at_frequencies
from trunkline.train.pipeline import train_task
from trunkline.train.spec import Distillation, Hyperparameters, Preset

HYPER = Hyperparameters(learning_rate=1e-2, head_learning_rate=2e-2, batch_size=8, epochs=6)
PRESET = Preset(full=HYPER, partial=HYPER, student=HYPER, distillation=Distillation())
# Points above the untrained selection metric, and in all, that one layer on one frozen random layer must reach on dev.
REACHED = {"topic": (50, 85), "topics": (25, 70), "mood": (15, 85), "places": (60, 80), "reply": (30, 80)}


@pytest.mark.parametrize("name", TASKS)
def test_every_kind_of_task_is_learned(tmp_path: Path, name: str) -> None:
    backbone = tiny_backbone(n_layers=2, hidden_dropout=0.0, attention_dropout=0.0)
    task = make_task(tmp_path, name, n_train=240, n_dev=60, pooling="mean")
    bench = make_bench(tmp_path, backbone=backbone)
    (record,) = train_task(bench, task, quick_request(layers=(1,), student_layers=(), preset=PRESET))
    assert record.dev_metric is not None
    gain, least = REACHED[name]
    assert record.dev_metric >= max(least, record.curve[0].selection_metric + gain), record


def test_a_multilabel_head_begins_at_the_share_of_each_label() -> None:
    targets = np.zeros((1000, 3), dtype=np.float32)
    targets[:250, 0], targets[:, 2] = 1.0, 1.0
    head = build_head("multilabel", "mean", width=8, n_outputs=3, dropout=0.0)
    init_head(head, seed=0)
    start_at_frequencies(head, list(targets))
    begun = 1 / (1 + np.exp(-head.output.bias.detach().numpy()))
    np.testing.assert_allclose(begun, [0.25, 0.001, 0.999], atol=1e-5)


def test_rare_labels_are_learned_beside_common_ones(tmp_path: Path) -> None:
    # From one half for every label, steps of this size drive all logits down and the layers do not recover.
    backbone = tiny_backbone(n_layers=2, hidden_dropout=0.0, attention_dropout=0.0)
    task = make_task(tmp_path, "topics", n_train=240, n_dev=60, pooling="mean")
    labels = tuple(f"never-{number}" for number in range(40))
    bench = make_bench(tmp_path, backbone=backbone)
    request = quick_request(layers=(1,), student_layers=(), preset=PRESET)
    (record,) = train_task(bench, msgspec.structs.replace(task, labels=("movie", "music", "rain", *labels)), request)
    assert record.dev_metric is not None
    assert record.dev_metric >= 60
