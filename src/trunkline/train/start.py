"""Where branches start: in the backbone, in a teacher, or in an older branch (warm start)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from trunkline.bundle.store import StoredBranch, check_trunk, read_branch
from trunkline.core.specs import BranchSpec
from trunkline.model.backbone import Backbone
from trunkline.model.encoder import build_empty, parameter_arrays
from trunkline.model.heads import build_head, init_head, start_at_frequencies
from trunkline.train.bench import Workbench
from trunkline.train.prepare import PreparedTask
from trunkline.train.run import Start, learned_rows
from trunkline.train.spec import RunRecord, RunSpec


def initial_tensors(
    backbone: Backbone, teacher: Mapping[str, np.ndarray] | None, *, exit_layer: int, own_layers: int
) -> Start:
    """Where a branch starts: each layer from the teacher if it tuned that layer, else from the backbone.

    With a teacher that leaves the trunk at or above `exit_layer`, the branch on its trunk then equals the
    teacher's bottommost `exit_layer + own_layers` layers (paper section 3.2), because what the teacher did not tune
    is the backbone's.

    Args:
        backbone: The pretrained encoder.
        teacher: The initialization teacher's tensors by canonical name, its head included; None for a new head.
        exit_layer: Of the branch.
        own_layers: Of the branch.
    """
    tensors = {}
    for layer in range(exit_layer, exit_layer + own_layers):
        prefix = f"layers.{layer}."
        tuned = {} if teacher is None else {name: a for name, a in teacher.items() if name.startswith(prefix)}
        tensors.update(tuned or {name: a for name, a in backbone.tensors.items() if name.startswith(prefix)})
    if teacher is not None:
        tensors.update({name: a for name, a in teacher.items() if name.startswith("head.")})
    return Start(tensors=tensors, head=teacher is not None)


def teacher_start(bench: Workbench, spec: RunSpec, teacher: RunRecord | None) -> Start:
    """Where a run starts: in a finished teacher whose branch is there, or with None in the backbone."""
    tensors = None
    if teacher is not None:
        tensors = read_branch(bench.ledger.branch_folder(teacher.run_id)).tensors
    return initial_tensors(bench.backbone, tensors, exit_layer=spec.exit_layer, own_layers=spec.own_layers)


def read_start(folder: Path, backbone: Backbone) -> StoredBranch:
    """Read a branch that others are to start in.

    Args:
        folder: Of a run or a bundle.
        backbone: What will be trained on.

    Raises:
        TrunkMismatchError: The branch was trained on another trunk; the message gives both chain values.
        BundleError: It cannot be read; errors of `read_branch`.
    """
    branch = read_branch(folder)
    check_trunk(branch.spec, backbone.chain, f"backbone {backbone.name!r}")
    return branch


def warm_start(backbone: Backbone, task: PreparedTask, branch: StoredBranch, spec: RunSpec) -> Start:
    """Start in an older branch: of the same task, whose labels may have changed, or of another (Phang et al. 2018).

    Layers that the branch tuned are taken over. So is its head where it reads the same place and has a label in
    common: lines of the output layer by the name of their label, and the pooler; other labels have the line of a new
    head. Of a regression only the same task's head is taken over, in the new standard unit.

    Args:
        backbone: The pretrained encoder.
        task: The prepared task.
        branch: From `read_start`.
        spec: Of the run that starts.
    """
    start = initial_tensors(backbone, branch.tensors, exit_layer=spec.exit_layer, own_layers=spec.own_layers)
    layers = {name: array for name, array in start.tensors.items() if not name.startswith("head.")}
    if not _head_fits(task, branch.spec, spec):
        return Start(tensors=layers, head=False)
    return replace(start, tensors=layers | _head(backbone, task, branch, spec))


def taken_over(task: PreparedTask, branch: BranchSpec, spec: RunSpec) -> str:
    """What a warm start takes over, in words; arguments as of `warm_start`."""
    tuned = range(branch.exit_layer, branch.exit_layer + branch.own_layers)
    own = range(spec.exit_layer, spec.exit_layer + spec.own_layers)
    taken, other = [k for k in own if k in tuned], [k for k in own if k not in tuned]
    left = [k for k in tuned if k not in own]
    parts = [f"{_layers(taken)} from branch {branch.provenance.run_id} of task {branch.task!r}"]
    if other:
        parts.append(f"{_layers(other)} from the backbone")
    if left:
        parts.append(f"{_layers(left)}, which the branch tuned too, left to the trunk as in the backbone")
    shared = [label for label in task.labels if label in branch.labels]
    if not _head_fits(task, branch, spec):
        parts.append("new head")
    elif branch.kind == "regression":
        parts.append("head taken over")
    else:
        fresh = [label for label in task.labels if label not in branch.labels]
        parts.append(f"head taken over for {len(shared)} of {len(task.labels)} labels")
        if fresh:
            parts.append(f"new: {', '.join(fresh)}")
    return f"task {task.spec.name!r}: start of {spec.own_layers} layers: {'; '.join(parts)}"


def _layers(indices: list[int]) -> str:
    if not indices:
        return "no layer"
    return f"layer{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"


def _head_fits(task: PreparedTask, branch: BranchSpec, spec: RunSpec) -> bool:
    if branch.kind != task.spec.kind or (branch.kind != "tagging" and branch.pooling != spec.pooling):
        return False
    if branch.kind == "regression":
        return branch.task == task.spec.name
    return any(label in branch.labels for label in task.labels)


def _head(backbone: Backbone, task: PreparedTask, branch: StoredBranch, spec: RunSpec) -> dict[str, np.ndarray]:
    """A whole head by canonical name: a new one, over which what the branch has is written."""
    config = backbone.config
    head = build_empty(
        lambda: build_head(
            task.spec.kind,
            spec.pooling,
            width=config.width,
            n_outputs=task.n_outputs,
            dropout=config.hidden_dropout,
        )
    )
    init_head(head, seed=spec.seed)
    if task.spec.kind == "multilabel":
        start_at_frequencies(head, learned_rows(task, spec).targets)
    tensors = {f"head.{name}": array for name, array in parameter_arrays(head).items()}
    tensors.update({name: a for name, a in branch.tensors.items() if name.startswith("head.pooler.")})
    weight, bias = branch.tensors["head.output.weight"], branch.tensors["head.output.bias"]
    if task.spec.kind == "regression":
        # The same score in the unit of the data, whose mean and spread may have changed.
        scale = branch.spec.score_std / task.score_std
        shift = (branch.spec.score_mean - task.score_mean) / task.score_std
        output = (weight * scale, bias * scale + shift)
        tensors["head.output.weight"], tensors["head.output.bias"] = (a.astype(np.float32) for a in output)
        return tensors
    for line, label in enumerate(task.labels):
        if label in branch.spec.labels:
            found = branch.spec.labels.index(label)
            tensors["head.output.weight"][line] = weight[found]
            tensors["head.output.bias"][line] = bias[found]
    return tensors
