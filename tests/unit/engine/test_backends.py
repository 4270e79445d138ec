"""Backends: OpenVINO gives what torch gives, and what cannot be had is refused with the reason."""

import sys
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import ARCHITECTURES, tiny_backbone
from tests.tiny_bundles import TEXTS, backbone_of
from tests.tiny_engines import (
    backend_of,
    encoded,
    random_rows,
    run_all,
    snapshot_of,
    snapshot_with,
    stored_branch,
    stored_trunk,
)
from trunkline.core.errors import MissingDependencyError, SpecError
from trunkline.core.specs import Kind, Pooling
from trunkline.engine.backends.base import Backend, Program
from trunkline.engine.backends.choose import choose_backend, describe
from trunkline.engine.backends.openvino import OpenVinoBackend, available_precisions
from trunkline.engine.backends.torch import TorchBackend, usable_device
from trunkline.engine.snapshot import Snapshot
from trunkline.model.backbone import Backbone
from trunkline.model.config import Activation, Architecture
from trunkline.model.decode import probabilities
from trunkline.model.tensors import from_bits, to_bits

LABELS = {"classification": ("a", "b", "c"), "multilabel": ("a", "b"), "regression": (), "tagging": ("O", "B-x", "I-x")}
LENGTHS = (3, 17, 40, 1, 64, 9, 9)
FORMS: tuple[tuple[Kind, Pooling], ...] = (
    ("classification", "cls"),
    ("classification", "mean"),
    ("multilabel", "cls"),
    ("multilabel", "mean"),
    ("regression", "cls"),
    ("regression", "mean"),
    ("tagging", "cls"),
)
needs_bf16 = pytest.mark.skipif("bf16" not in available_precisions(), reason="this processor has no bf16")


def branches_of(backbone: Backbone, *forms: tuple[Kind, Pooling], own_layers: int, exit_layer: int = 1) -> list[Any]:
    return [
        stored_branch(
            f"{kind}-{pooling}-{own_layers}",
            backbone,
            kind=kind,
            pooling=pooling,
            labels=LABELS[kind],
            exit_layer=exit_layer,
            own_layers=own_layers,
        )
        for kind, pooling in forms
    ]


def assert_close(found: dict[str, list[np.ndarray]], expected: dict[str, list[np.ndarray]]) -> None:
    """Within 1e-5 of the largest logit of a task."""
    assert found.keys() == expected.keys()
    for task, logits in expected.items():
        scale = max(np.abs(row).max() for row in logits)
        assert [row.shape for row in found[task]] == [row.shape for row in logits]
        difference = max(np.abs(one - other).max() for one, other in zip(found[task], logits, strict=True))
        assert difference <= 1e-5 * max(1.0, scale), task


def assert_backends_agree(backbone: Backbone, branches: list[Any], lengths: tuple[int, ...] = LENGTHS) -> None:
    rows = random_rows(lengths, n_types=backbone.config.n_types)
    found = {}
    for name in ("openvino", "torch"):
        backend = backend_of(name)
        found[name] = run_all(backend, snapshot_with(backend, backbone, branches), rows)
    assert_close(found["openvino"], found["torch"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_backends_agree_on_every_architecture(architecture: Architecture) -> None:
    backbone = backbone_of(architecture)
    assert_backends_agree(backbone, branches_of(backbone, ("classification", "cls"), ("tagging", "cls"), own_layers=2))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu"])
def test_backends_agree_on_every_activation(activation: Activation) -> None:
    backbone = tiny_backbone(activation=activation)
    assert_backends_agree(backbone, branches_of(backbone, ("classification", "cls"), ("tagging", "cls"), own_layers=1))


def test_activations_are_not_the_same_function() -> None:
    # Else the test above could not fail.
    rows = random_rows(LENGTHS)
    found = []
    for activation in ("gelu", "relu", "silu"):
        backbone, backend = tiny_backbone(activation=activation), backend_of()
        branches = branches_of(backbone, ("tagging", "cls"), own_layers=1)
        (logits,) = run_all(backend, snapshot_with(backend, backbone, branches), rows).values()
        found.append(np.concatenate(logits))
    assert min(np.abs(found[0] - other).max() for other in found[1:]) > 1e-2


@pytest.mark.parametrize("own_layers", [0, 1, 2, 3])
def test_backends_agree_on_every_kind_pooling_and_number_of_own_layers(own_layers: int) -> None:
    backbone = backbone_of("mpnet")
    assert_backends_agree(backbone, branches_of(backbone, *FORMS, own_layers=own_layers))


@pytest.mark.parametrize("own_layers", [0, 1])
def test_backends_agree_on_branches_that_read_the_embeddings(own_layers: int) -> None:
    backbone = backbone_of()
    assert_backends_agree(backbone, branches_of(backbone, *FORMS, own_layers=own_layers, exit_layer=0))


def test_backends_agree_where_embeddings_are_projected() -> None:
    backbone = backbone_of("electra")
    assert backbone.config.embedding_width != backbone.config.width
    assert_backends_agree(backbone, branches_of(backbone, *FORMS, own_layers=0, exit_layer=0))


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_programs_give_the_golden_logits_that_training_wrote(name: str) -> None:
    backbone, backend = backbone_of("mpnet"), backend_of(name)
    branches = branches_of(backbone, *FORMS, own_layers=2)
    snapshot = snapshot_with(backend, backbone, branches)
    golden = branches[0].golden
    rows = backbone.tokenizer.encode(golden.examples(), max_length=branches[0].spec.max_length)
    found = run_all(backend, snapshot, rows)
    for branch in branches:
        for logits, expected in zip(found[branch.spec.task], branch.golden.logits, strict=True):
            np.testing.assert_allclose(np.atleast_2d(logits), expected, rtol=0, atol=1e-4)


@needs_bf16
@pytest.mark.parametrize("architecture", ["bert", "mpnet", "electra"])
def test_bfloat16_probabilities_lie_near_those_of_float32(architecture: str) -> None:
    backbone = backbone_of(architecture)
    forms = [form for form in FORMS if form[0] != "regression"]
    branches = branches_of(backbone, *forms, own_layers=1)
    rows = random_rows(LENGTHS)
    exact, narrow = (
        run_all(backend, snapshot_with(backend, backbone, branches), rows)
        for backend in (backend_of(), backend_of(precision="bf16"))
    )
    differences = [
        np.abs(probabilities(np.atleast_2d(one), branch.spec) - probabilities(np.atleast_2d(other), branch.spec)).max()
        for branch in branches
        for one, other in zip(exact[branch.spec.task], narrow[branch.spec.task], strict=True)
    ]
    assert 0 < np.mean(differences) < 0.03
    assert max(differences) < 0.15


@needs_bf16
def test_bfloat16_states_are_kept_as_bits_and_logits_as_float32() -> None:
    backend = backend_of(precision="bf16")
    snapshot = snapshot_of(backend, "intent")
    states = embedded(snapshot)
    assert states.dtype == np.uint16
    assert np.abs(from_bits(states)).max() < 100
    assert {row.dtype for row in run_all(backend, snapshot, encoded(*TEXTS))["intent"]} == {np.dtype(np.float32)}


def embedded(snapshot: Snapshot, *, token: int = 5, embed: Program | None = None) -> Any:
    ids = np.full((1, 16), token, dtype=np.int32)
    positions = np.arange(16, dtype=np.int32)[None]
    return (embed or snapshot.trunk.embed)(ids, np.zeros_like(ids), positions)


def numbers(states: Any) -> np.ndarray:
    """A copy of states."""
    return np.array(states.numpy() if isinstance(states, torch.Tensor) else states)


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_a_twin_gives_the_same_answers(name: str) -> None:
    backend = backend_of(name)
    snapshot = snapshot_of(backend, "intent", "slots", "mood")
    rows = encoded(*TEXTS)
    twin = Snapshot(snapshot.trunk.twin(), snapshot.branches)
    expected = run_all(backend, snapshot, rows)
    for task, logits in run_all(backend, twin, rows).items():
        assert [row.tobytes() for row in logits] == [row.tobytes() for row in expected[task]]


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_a_twin_does_not_disturb_its_siblings_states(name: str) -> None:
    backend = backend_of(name)
    snapshot = snapshot_of(backend, "slots")
    twin = snapshot.trunk.twin()
    states = embedded(snapshot)
    before = numbers(states)
    other = numbers(embedded(snapshot, token=9, embed=twin.embed))
    assert np.abs(before - other).max() > 0.1
    np.testing.assert_array_equal(numbers(states), before)


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_a_branchs_twin_gives_the_same_logits(name: str) -> None:
    backend = backend_of(name)
    backbone = backbone_of()
    (branch,) = branches_of(backbone, ("classification", "cls"), own_layers=2)
    programs = backend.branch(branch, backbone.config)
    twin = programs.twin()
    rng = np.random.default_rng(0)
    states = backend.take(embedded(snapshot_of(backend, "slots")), np.arange(16)[None])
    bias = rng.normal(size=(1, 1, 16, 16)).astype(np.float32)
    assert programs.before is not None
    assert twin.before is not None
    one = numbers(programs.before(states, bias))
    np.testing.assert_array_equal(numbers(twin.before(states, bias)), one)
    first = np.zeros((1, 1, 16), dtype=np.float32)
    wanted = programs.top(programs.before(states, bias), first)
    np.testing.assert_array_equal(twin.top(twin.before(states, bias), first), wanted)


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_logits_stay_when_the_program_runs_again(name: str) -> None:
    backend = backend_of(name)
    snapshot = snapshot_of(backend, "intent", "slots", "mood")
    first = run_all(backend, snapshot, encoded("play a song"))
    before = {task: [row.copy() for row in logits] for task, logits in first.items()}
    run_all(backend, snapshot, encoded("rain is bad"))
    for task, logits in first.items():
        np.testing.assert_array_equal(logits[0], before[task][0])


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_settling_changes_no_answer(name: str) -> None:
    backend = backend_of(name)
    snapshot = snapshot_of(backend, "intent", "slots")
    before = run_all(backend, snapshot, encoded(*TEXTS))
    backend.settle()
    for task, logits in run_all(backend, snapshot, encoded(*TEXTS)).items():
        assert [row.tobytes() for row in logits] == [row.tobytes() for row in before[task]]


def test_shapes_that_ran_before_change_no_answer() -> None:
    used, fresh = ((backend, snapshot_of(backend, "intent", "slots")) for backend in (backend_of(), backend_of()))
    for lengths in ((3,), (50, 60, 20), (1, 1)):
        run_all(*used, random_rows(lengths))
    rows = random_rows((3, 7), seed=1)
    expected = run_all(*fresh, rows)
    for task, logits in run_all(*used, rows).items():
        assert [row.tobytes() for row in logits] == [row.tobytes() for row in expected[task]]


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_taken_tokens_are_a_copy(name: str) -> None:
    backend = backend_of(name)
    snapshot = snapshot_of(backend, "intent")
    states = embedded(snapshot)
    taken = backend.take(states, np.array([[0, 3], [1, 1]]))
    assert tuple(taken.shape) == (2, 2, 16)
    before = numbers(taken)
    np.testing.assert_array_equal(before[0, 1], numbers(states)[0, 3])
    embedded(snapshot, token=9)
    np.testing.assert_array_equal(numbers(taken), before)


def test_both_backends_are_backends_by_their_interface() -> None:
    assert isinstance(backend_of(), Backend)
    assert isinstance(backend_of("torch"), Backend)


def test_numbers_are_encoded_in_the_element_type() -> None:
    values = np.array([1.0, 2.7182817], dtype=np.float32)
    assert backend_of().encode(values).tobytes() == values.tobytes()
    assert backend_of("torch").encode(values).tobytes() == values.tobytes()
    if "bf16" in available_precisions():
        assert backend_of(precision="bf16").encode(values).tobytes() == to_bits(values).tobytes()


def test_the_processor_gets_openvino_in_the_fastest_precision() -> None:
    backend = choose_backend()
    assert (backend.name, backend.precision) == ("openvino", available_precisions()[-1])
    assert describe(backend) == f"openvino, {available_precisions()[-1]}"


def test_a_precision_that_is_asked_for_is_taken() -> None:
    assert choose_backend(precision="fp32").precision == "fp32"
    assert choose_backend("torch", precision="bf16").precision == "bf16"
    assert choose_backend("torch").precision == "fp32"


def test_openvino_on_another_device_is_refused() -> None:
    with pytest.raises(SpecError, match="device 'cuda': the openvino backend runs on 'cpu'; choose the torch backend"):
        choose_backend("openvino", device="cuda")


def test_a_number_of_threads_for_torch_is_refused() -> None:
    with pytest.raises(SpecError, match="n_threads: is OpenVINO's; torch reads OMP_NUM_THREADS; leave it out"):
        choose_backend("torch", n_threads=2)


def test_another_device_gets_torch_and_one_that_is_not_there_is_refused() -> None:
    with pytest.raises(SpecError, match="device 'nonsense': cannot be used"):
        choose_backend(device="nonsense")


@pytest.mark.parametrize("name", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match=name):
        usable_device(name)


def test_a_precision_that_openvino_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(SpecError, match=r"precision 'fp16': this processor computes in fp32.* with OpenVINO; choose"):
        OpenVinoBackend(precision="fp16")


def test_a_precision_that_torch_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(SpecError, match="precision 'int8': the torch backend has fp32, bf16, fp16; choose one of them"):
        TorchBackend(precision="int8")


@pytest.mark.parametrize(("name", "package"), [("openvino", "openvino"), ("torch", "torch")])
def test_a_package_that_is_not_installed_is_named_with_its_cure(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"trunkline.engine.backends.{name}")
    monkeypatch.delitem(sys.modules, "trunkline.engine.backends.graph", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=f"package '{package}': not installed; .*pip install"):
        choose_backend(name)  # type: ignore[arg-type]


def test_stored_weights_are_not_needed_once_they_are_compiled() -> None:
    backend, backbone = backend_of(), tiny_backbone(seed=5)
    tensors = {name: array.copy() for name, array in backbone.tensors.items()}
    stored = stored_trunk(backbone)
    program = backend.layers(type(stored)(stored.config, tensors, stored.tokenizer, stored.chain), range(2))
    states = np.random.default_rng(0).normal(size=(1, 16, 16)).astype(np.float32)
    bias = np.zeros((1, 1, 16, 16), dtype=np.float32)
    before = numbers(program(states, bias))
    for array in tensors.values():
        array.fill(np.nan)
    np.testing.assert_array_equal(numbers(program(states, bias)), before)
