"""The loop: batches, rates, the best epoch, and the same bits for the same seed."""

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.tiny import tiny_backbone
from tests.tiny_bundles import backbone_of
from tests.tiny_records import run_spec
from tests.tiny_tasks import QUICK, Notebook, make_bench, make_task
from trunkline.core.errors import TrainingError
from trunkline.model.branch import Branch, FullModel
from trunkline.model.encoder import Attention
from trunkline.train.bench import Workbench, source_of
from trunkline.train.loop import (
    CachedSource,
    Lesson,
    TokenSource,
    _optimizer,
    _warm_up_and_decay,
    at_positions,
    fit,
    predict_logits,
    training_batches,
)
from trunkline.train.prepare import PreparedTask, prepare
from trunkline.train.spec import Distillation, Hyperparameters, RunSpec

SPEC = run_spec(hyperparameters=QUICK, cache_dtype="float32")


def prepared(folder: Path, name: str = "topic", *, n_train: int = 40) -> PreparedTask:
    return prepare(make_task(folder, name, n_train=n_train, n_dev=8), backbone_of().tokenizer, selection="train_slice")


def branch_of(task: PreparedTask, *, seed: int = 0, backbone: Any = None) -> Branch:
    backbone = backbone or backbone_of()
    branch = Branch.build(
        backbone.config,
        exit_layer=2,
        own_layers=2,
        kind=task.spec.kind,
        pooling="cls",
        n_outputs=task.n_outputs,
        seed=seed,
    )
    branch.load(backbone.tensors, head=False)
    return branch


def taught(
    bench: Workbench, task: PreparedTask, model: Branch | FullModel, spec: RunSpec = SPEC, **options: Any
) -> Any:
    lesson = Lesson(
        task.spec.kind,
        task.fit,
        options.get("source") or source_of(bench, task.fit, spec, dtype=spec.cache_dtype),
        options.get("teacher"),
    )
    return fit(
        model,
        lesson,
        spec=spec,
        score=options.get("score", lambda _model: 50.0),
        accelerator=bench.accelerator,
        reporter=options.get("reporter", Notebook()),
    )


@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=120), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_row_comes_once_an_epoch(lengths: list[int], size: int, seed: int) -> None:
    batches = list(training_batches(np.array(lengths), size, np.random.default_rng(seed)))
    assert Counter(np.concatenate(batches).tolist()) == Counter(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)
    assert sum(len(batch) < size for batch in batches) <= 1


def test_batches_hold_rows_of_similar_length_in_random_order() -> None:
    lengths = np.random.default_rng(0).integers(2, 100, 512)
    batches = list(training_batches(lengths, 32, np.random.default_rng(0)))
    spread = np.mean([lengths[batch].max() - lengths[batch].min() for batch in batches])
    assert spread < 15
    means = [lengths[batch].mean() for batch in batches]
    assert means != sorted(means)
    others = list(training_batches(lengths, 32, np.random.default_rng(1)))
    assert any((a != b).any() for a, b in zip(batches, others, strict=True))


def test_heads_have_a_rate_of_their_own_and_vectors_no_decay(tmp_path: Path) -> None:
    hyper = Hyperparameters(learning_rate=1e-4, head_learning_rate=1e-3, weight_decay=0.01)
    branch = branch_of(prepared(tmp_path))
    found = {}
    for group in _optimizer(branch, hyper).param_groups:
        for parameter in group["params"]:
            found[id(parameter)] = (group["lr"], group["weight_decay"])
    for name, parameter in branch.named_parameters():
        rate = 1e-3 if name.startswith("head.") else 1e-4
        assert found.pop(id(parameter)) == (rate, 0.01 if name.endswith("weight") and "norm" not in name else 0.0), name
    assert found == {}


def test_frozen_parameters_are_not_given_to_the_optimizer(tmp_path: Path) -> None:
    branch = branch_of(prepared(tmp_path))
    branch.layers.requires_grad_(requires_grad=False)
    tuned = [p for group in _optimizer(branch, QUICK).param_groups for p in group["params"]]
    assert {id(p) for p in tuned} == {id(p) for p in branch.head.parameters()}


def test_the_rate_rises_for_the_warm_up_share_and_falls_to_nothing() -> None:
    factor = _warm_up_and_decay(100, 0.1)
    rates = [factor(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[99] == pytest.approx(1 / 90)
    assert factor(100) == 0.0


@given(n_steps=st.integers(1, 500), warmup_share=st.floats(0, 0.99))
def test_the_rate_is_always_above_0_and_at_most_its_peak(n_steps: int, warmup_share: float) -> None:
    factor = _warm_up_and_decay(n_steps, warmup_share)
    assert all(0 < factor(step) <= 1 for step in range(n_steps))


def test_the_best_epoch_is_restored(tmp_path: Path) -> None:
    bench, task = make_bench(tmp_path), prepared(tmp_path)
    model = branch_of(task)
    seen: list[dict[str, torch.Tensor]] = []
    metrics = iter([90.0, 60.0, 70.0, 65.0, 70.0])

    def score(scored: nn.Module) -> float:
        seen.append({name: value.clone() for name, value in scored.state_dict().items()})
        return next(metrics)

    fitted = taught(bench, task, model, score=score)
    # Epoch 0 is never taken: a branch that learned nothing is no branch. Of equally good epochs the latest is.
    assert fitted.best_epoch == 4
    assert [point.selection_metric for point in fitted.curve] == [90.0, 60.0, 70.0, 65.0, 70.0]
    assert [point.epoch for point in fitted.curve] == [0, 1, 2, 3, 4]
    for name, value in model.state_dict().items():
        assert torch.equal(value, seen[4][name]), name
    assert not torch.equal(seen[2]["head.output.weight"], seen[4]["head.output.weight"])
    assert not model.training


def test_steps_and_losses_are_told(tmp_path: Path) -> None:
    bench, task, notebook = make_bench(tmp_path), prepared(tmp_path), Notebook()
    fitted = taught(bench, task, branch_of(task), reporter=notebook)
    # 20 rows in batches of 16, 4 epochs.
    assert len(notebook.losses) == 8
    assert fitted.curve[0].train_loss is None
    assert fitted.curve[4].train_loss == pytest.approx(np.mean(notebook.losses[6:]))
    assert notebook.losses[-1] < notebook.losses[0]


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    bench, task = make_bench(tmp_path), prepared(tmp_path)
    heads = []
    for seed in (3, 3, 4):
        model = branch_of(task)  # the same start: what differs is order and dropout
        torch.rand(7)
        taught(bench, task, model, msgspec.structs.replace(SPEC, seed=seed))
        heads.append(model.tensors())
    assert all(heads[0][name].tobytes() == heads[1][name].tobytes() for name in heads[0])
    assert heads[0]["head.output.weight"].tobytes() != heads[2]["head.output.weight"].tobytes()


def test_training_leaves_the_random_state_of_its_caller(tmp_path: Path) -> None:
    bench, task = make_bench(tmp_path), prepared(tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    taught(bench, task, branch_of(task))
    assert torch.equal(torch.rand(3), expected)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    bench, task = make_bench(tmp_path), prepared(tmp_path)
    model = branch_of(task)
    with torch.no_grad():
        model.head.output.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"task 'mood': the loss of a partial run became nan; lower learning_rate"):
        taught(bench, task, model)


def test_dropout_changes_what_is_learned(tmp_path: Path) -> None:
    bench, task = make_bench(tmp_path), prepared(tmp_path)
    wet, dry = branch_of(task), branch_of(task)
    for module in dry.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, Attention):
            module.dropout_share = 0.0
    curves = [taught(bench, task, model).curve for model in (wet, dry)]
    assert curves[0][1].train_loss != curves[1][1].train_loss


def test_a_student_without_its_teachers_logits_is_refused(tmp_path: Path) -> None:
    bench, task = make_bench(tmp_path), prepared(tmp_path)
    spec = msgspec.structs.replace(SPEC, arm="student", distillation=Distillation())
    with pytest.raises(TrainingError, match="no teacher logits"):
        taught(bench, task, branch_of(task), spec)


def test_dropout_acts_in_steps_and_not_in_scores(tmp_path: Path) -> None:
    bench, task = make_bench(tmp_path), prepared(tmp_path)
    model, source = branch_of(task), source_of(bench, task.fit, SPEC, dtype="float32")
    modes: list[bool] = []
    answers: list[list[np.ndarray]] = []
    hook = model.head.register_forward_pre_hook(lambda module, _args: modes.append(module.training))

    def score(scored: nn.Module) -> float:
        modes.clear()
        answers.append(predict_logits(scored, source, task.fit))
        answers.append(predict_logits(scored, source, task.fit))
        assert modes == [False, False]
        modes.clear()
        return 1.0

    taught(bench, task, model.eval(), score=score)
    hook.remove()
    assert all((a == b).all() for a, b in zip(answers[0], answers[1], strict=True))


def test_steps_are_taken_in_training_mode_whatever_mode_the_model_came_in(tmp_path: Path) -> None:
    bench, task = make_bench(tmp_path), prepared(tmp_path)
    model = branch_of(task).eval()
    modes: list[bool] = []
    model.head.register_forward_pre_hook(lambda module, _args: modes.append(module.training))
    taught(bench, task, model)
    assert modes == [True] * 8


def test_a_finished_model_is_not_kept_alive(tmp_path: Path) -> None:
    bench, task = make_bench(tmp_path), prepared(tmp_path)
    taught(bench, task, branch_of(task))
    assert bench.accelerator._models == bench.accelerator._optimizers == []


@pytest.mark.parametrize("name", ["topic", "places"])
def test_predicted_logits_do_not_depend_on_their_batch(tmp_path: Path, name: str) -> None:
    bench, task = make_bench(tmp_path), prepared(tmp_path, name)
    model, source = branch_of(task), source_of(bench, task.fit, SPEC, dtype="float32")
    together = predict_logits(model, source, task.fit)
    with torch.inference_mode():
        for i in range(len(task.fit)):
            alone = at_positions(model.eval()(*source.inputs(np.array([i]))), task.fit, np.array([i]))
            np.testing.assert_allclose(together[i], alone.numpy() if name == "places" else alone[0], atol=1e-5)
            assert len(together[i]) == (len(task.fit.targets[i]) if name == "places" else task.n_outputs)


class UncachedSource:
    """What `CachedSource` replaces: the trunk is run for every batch."""

    def __init__(self, bench: Workbench, task: PreparedTask) -> None:
        """Keep the trunk and the tokens."""
        self.trunk = bench.trunk
        self.tokens = TokenSource(task.fit.rows, bench.backbone.config.pad_id, torch.device("cpu"))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return self.tokens.lengths

    def inputs(self, indices: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Hidden states, bias and mask."""
        ids, types, mask = self.tokens.inputs(indices)
        with torch.no_grad():
            hidden = self.trunk(ids, types, mask, exits=(2,))[2]
        return hidden, self.trunk.bias(mask), mask


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
@pytest.mark.parametrize("name", ["topic", "places"])
def test_losses_from_an_fp32_cache_equal_uncached_ones(tmp_path: Path, name: str, architecture: Any) -> None:
    # design.md, section 3: 1e-4 relative over 50 steps. Dropout draws the same numbers for the same shapes.
    backbone = backbone_of(architecture)
    bench = make_bench(tmp_path, backbone=backbone)
    made = make_task(tmp_path, name, n_train=80, n_dev=8)
    task = prepare(made, backbone.tokenizer, selection="train_slice")
    spec = msgspec.structs.replace(
        SPEC, hyperparameters=msgspec.structs.replace(QUICK, learning_rate=1e-3, batch_size=8, epochs=10)
    )
    losses = []
    for source in (source_of(bench, task.fit, spec, dtype="float32"), UncachedSource(bench, task)):
        notebook = Notebook()
        taught(bench, task, branch_of(task, backbone=backbone), spec, source=source, reporter=notebook)
        losses.append(notebook.losses)
    assert len(losses[0]) == 50
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.parametrize("name", ["topic", "topics", "mood", "places"])
def test_a_student_of_a_perfect_start_has_nothing_to_learn_from_its_teacher(tmp_path: Path, name: str) -> None:
    backbone = tiny_backbone(hidden_dropout=0.0, attention_dropout=0.0)
    bench, task = make_bench(tmp_path, backbone=backbone), prepared(tmp_path, name)
    spec = msgspec.structs.replace(SPEC, distillation=Distillation(alpha=0.0))
    model = branch_of(task, backbone=backbone)
    teacher = predict_logits(model, source_of(bench, task.fit, spec, dtype="float32"), task.fit)
    notebook = Notebook()
    taught(bench, task, model, spec, teacher=teacher, reporter=notebook)
    assert notebook.losses[0] == pytest.approx(0.0, abs=1e-5)


def test_a_student_learns_from_a_teacher_without_any_label(tmp_path: Path) -> None:
    bench, task = make_bench(tmp_path), prepared(tmp_path)
    source = source_of(bench, task.fit, SPEC, dtype="float32")
    teacher = [np.float32([4.0, 0.0, 0.0])] * len(task.fit)
    model = branch_of(task)
    taught(bench, task, model, msgspec.structs.replace(SPEC, distillation=Distillation(alpha=0.0)), teacher=teacher)
    assert {int(row.argmax()) for row in predict_logits(model, source, task.fit)} == {0}


def test_full_fine_tuning_tunes_the_embeddings_too(tmp_path: Path) -> None:
    bench, task = make_bench(tmp_path), prepared(tmp_path)
    spec = msgspec.structs.replace(SPEC, arm="full", exit_layer=0, own_layers=4)
    model = FullModel.build(
        backbone_of().config, backbone_of().tensors, kind="classification", pooling="cls", n_outputs=3, seed=0
    )
    before = model.tensors()
    taught(bench, task, model, spec)
    changed = {name for name, value in model.tensors().items() if (value != before[name]).any()}
    assert "embeddings.word.weight" in changed
    assert any(name.startswith("layers.0.") for name in changed)


def test_with_bf16_steps_are_rounded_and_scores_are_not(tmp_path: Path) -> None:
    bench, task = make_bench(tmp_path), prepared(tmp_path)
    model, source = branch_of(task), source_of(bench, task.fit, SPEC, dtype="float32")
    dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    model.head.output.register_forward_hook(lambda module, _args, out: dtypes[module.training].add(out.dtype))

    def score(scored: nn.Module) -> float:
        predict_logits(scored, source, task.fit)
        return 1.0

    taught(bench, task, model, msgspec.structs.replace(SPEC, precision="bf16"), score=score)
    predict_logits(model, source, task.fit)
    assert dtypes == {True: {torch.bfloat16}, False: {torch.float32}}


@pytest.mark.parametrize("name", ["topic", "places"])
def test_cached_inputs_are_states_bias_and_mask(tmp_path: Path, name: str) -> None:
    bench, task = make_bench(tmp_path), prepared(tmp_path, name)
    source = source_of(bench, task.fit, SPEC, dtype="float32")
    assert isinstance(source, CachedSource)
    hidden, bias, mask = source.inputs(np.array([1, 0]))
    assert hidden.shape == (*mask.shape, 16)
    assert torch.broadcast_shapes(bias.shape, (2, 2, mask.shape[1], mask.shape[1])) == (2, 2, *([mask.shape[1]] * 2))
    assert (source.lengths == TokenSource(task.fit.rows, 0, torch.device("cpu")).lengths).all()
