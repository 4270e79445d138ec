from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy.special import softmax

from tests.tiny_bundles import TASKS, backbone_of, make_branch, make_bundle, put_branch, tree_bytes
from trunkline.bundle.golden import TOLERANCE_BF16, Golden
from trunkline.bundle.merge import merge
from trunkline.bundle.store import StoredBranch, write_branch
from trunkline.core.errors import DigestMismatchError, VerificationError
from trunkline.engine.backends.openvino import OpenVinoBackend
from trunkline.engine.backends.torch import TorchBackend
from trunkline.engine.snapshot import load_snapshot
from trunkline.engine.verify import replay, verify


def bundle_with_golden(folder: Path, task: str, **changes: object) -> Path:
    made = make_branch(task, backbone_of())
    golden = msgspec.structs.replace(made.golden, **changes)
    write_branch(folder / "run", made.spec, made.tensors, golden)
    return merge([folder / "run"], backbone_of(), folder / "bundle").path


def shifted(golden: Golden, *, number: int, by: float) -> tuple[tuple[tuple[float, ...], ...], ...]:
    lines = [np.asarray(one, np.float32) for one in golden.logits]
    lines[number][-1, 0] += by
    return tuple(tuple(tuple(float(value) for value in line) for line in one) for one in lines)


def test_a_whole_bundle_is_verified_and_only_read(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, *TASKS)
    before = tree_bytes(tmp_path)
    report = verify(bundle.path)
    assert tree_bytes(tmp_path) == before
    assert tuple(one.task for one in report.tasks) == TASKS
    assert report.trunk_digest == backbone_of().chain[2]
    assert report.largest_difference == max(one.largest_difference for one in report.tasks)
    assert report.n_files == 1 + 3 + 4 * len(TASKS)
    assert all(one.n_inputs == 8 and one.largest_difference <= one.tolerance == 1e-4 for one in report.tasks)


def test_another_answer_is_refused_with_task_input_and_difference(tmp_path: Path) -> None:
    golden = make_branch("slots", backbone_of()).golden
    path = bundle_with_golden(tmp_path, "slots", logits=shifted(golden, number=3, by=0.01))
    with pytest.raises(VerificationError, match=r"task 'slots': golden input 3 .* differ by 0\.01"):
        verify(path)


def test_a_difference_within_tolerance_passes(tmp_path: Path) -> None:
    golden = make_branch("intent", backbone_of()).golden
    path = bundle_with_golden(tmp_path, "intent", logits=shifted(golden, number=3, by=2e-5))
    assert verify(path).tasks[0].largest_difference == pytest.approx(2e-5, rel=0.2)


def test_an_answer_of_another_shape_is_refused(tmp_path: Path) -> None:
    golden = make_branch("slots", backbone_of()).golden
    path = bundle_with_golden(tmp_path, "slots", logits=(golden.logits[0][:-1], *golden.logits[1:]))
    with pytest.raises(VerificationError, match="golden input 0"):
        verify(path)


def test_a_branch_without_a_tolerance_for_the_precision_is_refused(tmp_path: Path) -> None:
    path = bundle_with_golden(tmp_path, "intent", tolerance={"bf16": 0.02})
    with pytest.raises(VerificationError, match="no tolerance for 'fp32'"):
        verify(path)


def test_damage_is_found_before_anything_is_run(tmp_path: Path) -> None:
    made = make_branch("slots", backbone_of())
    wrong = msgspec.structs.replace(made.golden, logits=shifted(made.golden, number=0, by=1.0))
    write_branch(tmp_path / "slots", made.spec, made.tensors, wrong)  # Would be refused first, if it were run.
    folders = [tmp_path / "slots", put_branch(tmp_path / "intent", "intent", backbone_of())]
    bundle = merge(folders, backbone_of(), tmp_path / "bundle")
    path = bundle.path / "branches" / "intent" / bundle.manifest.tasks["intent"].branch / "README.md"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(DigestMismatchError, match=r"README\.md"):
        verify(bundle.path)


def test_an_answer_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    made = make_branch("slots", backbone_of())
    huge = {name: np.full_like(tensor, 3e38) if tensor.ndim == 2 else tensor for name, tensor in made.tensors.items()}
    write_branch(tmp_path / "run", made.spec, huge, made.golden)
    path = merge([tmp_path / "run"], backbone_of(), tmp_path / "bundle").path
    with pytest.raises(VerificationError, match="differ by inf"):
        verify(path)


@pytest.mark.parametrize("architecture", ["roberta", "mpnet", "electra", "distilbert"])
def test_bundles_of_every_architecture_verify(tmp_path: Path, architecture: str) -> None:
    bundle = make_bundle(tmp_path, "intent", "slots", backbone=backbone_of(architecture))
    assert [one.task for one in verify(bundle.path).tasks] == ["intent", "slots"]


@pytest.mark.parametrize(("by", "passes"), [(0.03, True), (0.12, False)])
def test_in_bf16_a_classifier_that_gives_the_same_label_may_differ_by_more(
    tmp_path: Path, by: float, passes: bool
) -> None:
    bundle, backend = make_bundle(tmp_path, "intent"), OpenVinoBackend(precision="bf16", n_threads=1)
    snapshot, stored = load_snapshot(bundle, backend), bundle.branch("intent")
    told = more_certain(stored, by)
    if passes:
        found = replay(told, snapshot.branches["intent"], snapshot.trunk, backend)
        assert TOLERANCE_BF16 < found.largest_difference < 3 * TOLERANCE_BF16
    else:
        with pytest.raises(VerificationError, match=r"probabilities that differ by .*; 0\.02 is allowed"):
            replay(told, snapshot.branches["intent"], snapshot.trunk, backend)


@pytest.mark.parametrize(("most_tokens", "least_runs"), [(1, 8), (40, 2), (10_000, 1)])
def test_golden_inputs_may_be_run_together(tmp_path: Path, most_tokens: int, least_runs: int) -> None:
    bundle, backend = make_bundle(tmp_path, "intent", "slots"), TorchBackend()
    snapshot, runs = load_snapshot(bundle, backend), list[None]()
    for task in ("intent", "slots"):
        runs.clear()
        found = replay(
            bundle.branch(task).golden, snapshot.branches[task], snapshot.trunk, backend, most_tokens=most_tokens,
            before_each=lambda: runs.append(None),
        )  # fmt: skip
        assert found.n_inputs == 8
        assert least_runs <= len(runs) <= 8
        assert (len(runs) == 8) == (most_tokens == 1)


def more_certain(stored: StoredBranch, by: float) -> Golden:
    """Expected logits whose likeliest label is likelier by so much."""
    lines = []
    for one in stored.golden.logits:
        shares = softmax(np.asarray(one, np.float64), axis=1)
        best = shares.argmax()
        wanted = shares * (1 - shares[0, best] - by) / (1 - shares[0, best])
        wanted[0, best] = shares[0, best] + by
        lines.append(tuple(tuple(float(value) for value in np.log(line)) for line in wanted))
    return msgspec.structs.replace(stored.golden, logits=tuple(lines))
