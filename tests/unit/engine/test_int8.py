"""Int8 programs: close to fp32, out of ranges that were found on rows and stored."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_bundles import TEXTS, backbone_of
from tests.tiny_engines import encoded, run_all, stored_branch, stored_trunk
from trunkline.bundle.served import Range, Served, decode_ranges, encode_ranges
from trunkline.bundle.store import StoredBranch
from trunkline.core.errors import BundleError
from trunkline.engine.backends.observe import find_ranges
from trunkline.engine.backends.openvino import OpenVinoBackend, available_precisions
from trunkline.engine.snapshot import Snapshot, load_branch, load_trunk
from trunkline.engine.weights import WeightStore
from trunkline.model.tensors import to_int8, write_tensors

WHOLE = {"attention.qkv", "attention.output", "ffn.up", "ffn.down"}


def run_int8(folder: Path, architecture: str, tasks: tuple[str, ...], *, whole: bool) -> dict[str, list[np.ndarray]]:
    backend = OpenVinoBackend(as_gated=True, n_threads=1, store=WeightStore(folder / "served"))
    backbone, rows = backbone_of(architecture), encoded(*TEXTS, architecture=architecture)
    trunk = stored_trunk(backbone)
    branches = [stored_branch(task, backbone) for task in tasks]
    if whole:
        branches = [
            replace(each, served=Served("int8", find_ranges(trunk, rows, branch=each)), digest=each.digest[::-1])
            for each in branches
        ]
    trunk = replace(trunk, served=Served("int8", find_ranges(trunk, rows)))
    loaded = {each.spec.task: load_branch(each, backbone.config, backend) for each in branches}
    exits = {each.spec.exit_layer for each in branches}
    return run_all(backend, Snapshot(load_trunk(trunk, backend, exits=exits), loaded), rows)


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
@pytest.mark.parametrize("whole", [False, True])
def test_int8_answers_are_close_to_those_of_fp32_and_not_equal(
    tmp_path: Path, architecture: str, *, whole: bool
) -> None:
    tasks = ("intent", "mood", "slots", "urgency")
    backend = OpenVinoBackend(n_threads=1, store=WeightStore(tmp_path / "served"))
    backbone = backbone_of(architecture)
    loaded = {task: load_branch(stored_branch(task, backbone), backbone.config, backend) for task in tasks}
    snapshot = Snapshot(load_trunk(stored_trunk(backbone), backend, exits={1, 2}), loaded)
    expected = run_all(backend, snapshot, encoded(*TEXTS, architecture=architecture))
    found = run_int8(tmp_path, architecture, tasks, whole=whole)
    for task in tasks:
        left, right = (np.concatenate([np.atleast_2d(x) for x in logits[task]]) for logits in (expected, found))
        error = np.sqrt(((left - right) ** 2).mean()) / max(float(left.std()), 0.1)
        assert 0 < error < 0.1, (task, error)


def ranges_of(task: str) -> set[str]:
    backbone = backbone_of()
    return set(find_ranges(stored_trunk(backbone), encoded(*TEXTS), branch=stored_branch(task, backbone)))


def test_a_folded_layer_is_int8_behind_its_attention_alone() -> None:
    behind = WHOLE - {"attention.qkv"}
    assert ranges_of("intent") == {f"layers.1.{part}" for part in WHOLE} | {f"layers.2.{part}" for part in behind}
    assert ranges_of("slots") == {f"layers.2.{part}" for part in WHOLE}
    assert ranges_of("urgency") == set()


def test_rows_of_any_order_give_the_same_ranges() -> None:
    trunk, rows = stored_trunk(backbone_of()), encoded(*TEXTS)
    assert encode_ranges(find_ranges(trunk, rows)) == encode_ranges(find_ranges(trunk, rows[::-1]))


def test_ranges_survive_writing_and_reading() -> None:
    ranges = find_ranges(stored_trunk(backbone_of()), encoded(*TEXTS))
    plain = {"layers.0.ffn.up": Range(-1.5, 2.0)}
    assert encode_ranges(decode_ranges(encode_ranges(ranges | plain), "ranges")) == encode_ranges(ranges | plain)


@pytest.mark.parametrize(
    "tensors",
    [
        {"layers.0.ffn.up": [2.0, 1.0]},
        {"layers.0.ffn.up": [1.0]},
        {"layers.0.ffn.up": [-1.0, np.inf]},
        {"head.output": [-1.0, 1.0]},
        {"layers.0.ffn.up": [-1.0, 1.0], "layers.0.ffn.up.divisors": [1.0, 0.0]},
        {"layers.0.ffn.up.divisors": [1.0, 1.0]},
    ],
)
def test_what_is_no_range_is_refused(tensors: dict[str, list[float]]) -> None:
    content = write_tensors({name: np.array(values, dtype=np.float32) for name, values in tensors.items()})
    with pytest.raises(BundleError, match=r"is no range.*quantize the bundle again"):
        decode_ranges(content, "ranges")


def test_bytes_that_are_no_tensors_are_refused() -> None:
    with pytest.raises(BundleError, match="safetensors"):
        decode_ranges(b"nothing", "ranges")


def test_weights_are_rounded_by_output_channel() -> None:
    weights = np.array([[1.0, -0.5], [0.001, 0.002], [0.0, 0.0]], dtype=np.float32)
    whole, scales = to_int8(weights)
    assert whole.tolist() == [[127, -64], [64, 127], [0, 0]]
    assert np.abs(whole * scales - weights).max() <= np.abs(weights).max(axis=1).max() / 254


def test_a_backend_that_does_not_follow_the_gate_computes_in_its_own_precision(tmp_path: Path) -> None:
    backbone, rows = backbone_of(), encoded(*TEXTS)
    backend = OpenVinoBackend(n_threads=1, store=WeightStore(tmp_path / "served"))
    branch: StoredBranch = stored_branch("slots", backbone)
    served = replace(stored_trunk(backbone), served=Served("int8", find_ranges(stored_trunk(backbone), rows)))
    loaded = {"slots": load_branch(branch, backbone.config, backend)}
    plain, gated = (
        run_all(backend, Snapshot(load_trunk(trunk, backend, exits={2}), loaded), rows)["slots"]
        for trunk in (stored_trunk(backbone), served)
    )
    assert all(np.array_equal(left, right) for left, right in zip(plain, gated, strict=True))


@pytest.mark.skipif("bf16" not in available_precisions(), reason="the processor does not compute in bf16")
def test_a_branch_accepted_in_fp32_alone_computes_in_it_on_a_bf16_trunk(tmp_path: Path) -> None:
    backbone, rows, store = backbone_of(), encoded(*TEXTS), WeightStore(tmp_path / "served")
    backend = OpenVinoBackend(precision="bf16", as_gated=True, n_threads=1, store=store)
    trunk = load_trunk(replace(stored_trunk(backbone), served=Served("bf16")), backend, exits={1, 2})
    exact = OpenVinoBackend(n_threads=1, store=store)
    expected = load_trunk(stored_trunk(backbone), exact, exits={1, 2})
    errors: dict[str, float] = {}
    for precision in ("fp32", "bf16"):
        for task in ("intent", "mood", "slots"):
            branch = replace(stored_branch(task, backbone), served=Served(precision))
            logits = [
                np.concatenate(
                    run_all(user, Snapshot(on, {task: load_branch(branch, backbone.config, user)}), rows)[task]
                )
                for user, on in ((backend, trunk), (exact, expected))
            ]
            errors[precision] = errors.get(precision, 0.0) + float(np.abs(logits[0] - logits[1]).mean())
    assert 0 < errors["fp32"] < errors["bf16"]
