"""Run specs and records made up, for what reads a ledger."""

from typing import Any

from trunkline.model.cost import EncoderSizes
from trunkline.train.spec import EpochPoint, Hyperparameters, RunRecord, RunSpec


def run_spec(**changes: Any) -> RunSpec:
    """A partial fine-tuning of two layers of a backbone of four; any field can be changed."""
    fields: dict[str, Any] = {
        "task": "mood",
        "task_digest": "t" * 64,
        "data_digest": "d" * 64,
        "backbone_digest": "b" * 64,
        "arm": "partial",
        "exit_layer": 2,
        "own_layers": 2,
        "pooling": "cls",
        "seed": 0,
        "hyperparameters": Hyperparameters(),
        "selection": "train_slice",
        "cache_dtype": "bfloat16",
        "precision": "fp32",
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
    }
    return RunSpec(**(fields | changes))


def run_record(
    points: float, *, dev: float | None = None, spec: RunSpec | None = None, branch: str = "f" * 64, **changes: Any
) -> RunRecord:
    """What came of it: so many points on the selection rows, and on dev; ``changes`` are fields of the spec."""
    spec = spec or run_spec(**changes)
    return RunRecord(
        run_id=spec.run_id,
        spec=spec,
        backbone="tiny",
        sizes=EncoderSizes(n_layers=4, width=8, n_heads=2, ffn_width=16),
        metric="accuracy",
        curve=(EpochPoint(epoch=0, train_loss=None, selection_metric=10.0),),
        best_epoch=0,
        selection_metric=points,
        dev_metric=dev,
        n_train_rows=100,
        mean_tokens=10.0,
        n_truncated=0,
        n_unseen_labels=0,
        seconds=2.0,
        cache_seconds=0.5,
        flops=2e6,
        cache_flops=5e5,
        finished_at="2025-01-01T00:00:00+00:00",
        branch_digest=None if spec.arm == "full" else branch,
        trunkline_version="0.1.0",
    )
