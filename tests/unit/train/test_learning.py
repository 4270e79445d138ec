"""Every kind of task is learned: the metric on dev after training is far above the untrained one."""

from pathlib import Path

import pytest

from tests.tiny import tiny_backbone
from tests.tiny_tasks import TASKS, make_bench, make_task, quick_request
from trunkline.train.pipeline import train_task
from trunkline.train.spec import Distillation, Hyperparameters, Preset

HYPER = Hyperparameters(learning_rate=1e-2, head_learning_rate=2e-2, batch_size=8, epochs=6)
PRESET = Preset(full=HYPER, partial=HYPER, student=HYPER, distillation=Distillation())
# Points above the untrained dev metric, and points in all, that one layer on one frozen random layer must reach.
REACHED = {"topic": (50, 85), "topics": (25, 70), "mood": (15, 85), "places": (60, 80), "reply": (30, 80)}


@pytest.mark.parametrize("name", TASKS)
def test_every_kind_of_task_is_learned(tmp_path: Path, name: str) -> None:
    backbone = tiny_backbone(n_layers=2, hidden_dropout=0.0, attention_dropout=0.0)
    task = make_task(tmp_path, name, n_train=240, n_dev=60, pooling="mean")
    bench = make_bench(tmp_path, backbone=backbone)
    (record,) = train_task(bench, task, quick_request(layers=(1,), student_layers=(), preset=PRESET))
    assert record.dev_metric is not None
    assert record.untrained_dev_metric is not None
    gain, least = REACHED[name]
    assert record.dev_metric >= max(least, record.untrained_dev_metric + gain), record
