"""Promises of design.md, section 7, on pico models: what merging, changing and serving may not change."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_bundles import TASKS, TEXTS, backbone_of, make_branch, put_branch
from tests.tiny_engines import executed, open_fp32
from trunkline.bundle.cut import cut
from trunkline.bundle.manifest import layer_cost
from trunkline.bundle.merge import attach, detach, merge, replace
from trunkline.bundle.store import Bundle, open_bundle, read_branch, write_branch
from trunkline.core.types import Example
from trunkline.engine.engine import Engine

TEXT_TASKS = tuple(task for task in TASKS if task != "same")
WORDS = (
    "play",
    "a",
    "song",
    "in",
    "paris",
    "tomorrow",
    "7",
    "days?",
    "明天",
    "北京",
    "😀",
    "rain,",
    "very-good",
    "it's",
)
ARCHITECTURES = ("bert", "mpnet")

texts = st.lists(
    st.one_of(
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join), st.text(max_size=20), st.just("no")
    ),
    min_size=1,
    max_size=6,
)
task_sets = st.lists(st.sampled_from(TEXT_TASKS), min_size=1, max_size=4, unique=True)
architectures = st.sampled_from(ARCHITECTURES)


@dataclass(frozen=True, slots=True)
class Shelf:
    """Branches, bundles and engines that are made once and never changed."""

    folder: Path
    opened: ExitStack
    engines: dict[tuple[Path, str], Engine] = field(default_factory=dict)

    def branch(self, architecture: str, task: str) -> Path:
        folder = self.folder / f"{architecture}-{task}"
        return folder if folder.exists() else put_branch(folder, task, backbone_of(architecture))

    def bundle(self, architecture: str, tasks: Sequence[str]) -> Bundle:
        folder = self.folder / "-".join((architecture, "bundle", *tasks))
        if folder.exists():
            return open_bundle(folder)
        return merge([self.branch(architecture, task) for task in tasks], backbone_of(architecture), folder)

    def engine(self, architecture: str, tasks: Sequence[str], name: str = "openvino") -> Engine:
        path = self.bundle(architecture, tasks).path
        if (path, name) not in self.engines:
            self.engines[path, name] = self.opened.enter_context(open_fp32(path, name=name))
        return self.engines[path, name]

    @contextmanager
    def copied(self, tasks: Sequence[str]) -> Iterator[Bundle]:
        """A bundle that may be changed."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            path = shutil.copytree(self.bundle("bert", tasks).path, Path(name) / "bundle")
            yield open_bundle(path)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with ExitStack() as opened:
        yield Shelf(tmp_path_factory.mktemp("shelf"), opened)


def bits(engine: Engine, task: str, rows: Sequence[str]) -> list[bytes]:
    return [logits.tobytes() for logits in engine.logits(rows, task)]


def all_bits(engine: Engine, tasks: Sequence[str], rows: Sequence[str]) -> dict[str, list[bytes]]:
    """Raw logits of several tasks asked together."""
    found: dict[str, list[bytes]] = {task: [b""] * len(rows) for task in tasks}
    for _, request, part in engine._run(engine.snapshot, [Example(text=row) for row in rows], tasks):
        task = part.branch.spec.task
        for number, logits in zip(part.rows, part.logits, strict=True):
            for index in request.readers[task][number]:
                found[task][index] = logits.tobytes()
    return found


def opened_bits(bundle: Bundle, tasks: Sequence[str], rows: Sequence[str]) -> dict[str, list[bytes]]:
    """As `all_bits`, of an engine that is opened for it and closed."""
    with open_fp32(bundle.path) as engine:
        return all_bits(engine, tasks, rows)


@given(architecture=architectures, tasks=task_sets, rows=texts)
def test_merged_answers_equal_single_task_answers_in_bits(
    shelf: Shelf, architecture: str, tasks: list[str], rows: list[str]
) -> None:
    together = all_bits(shelf.engine(architecture, sorted(tasks)), tasks, rows)
    for task in tasks:
        assert together[task] == bits(shelf.engine(architecture, (task,)), task, rows)


@given(architecture=architectures, tasks=task_sets, rows=texts)
def test_asking_more_tasks_changes_no_answer(
    shelf: Shelf, architecture: str, tasks: list[str], rows: list[str]
) -> None:
    engine = shelf.engine(architecture, TEXT_TASKS)
    everything = engine.predict(rows)
    for some, whole in zip(engine.predict(rows, tasks=tasks), everything, strict=True):
        assert some == {task: whole[task] for task in tasks}


@given(task=st.sampled_from(TEXT_TASKS), rows=texts, mates=texts, architecture=architectures)
def test_padding_and_batch_mates_change_nothing_beyond_tolerance(
    shelf: Shelf, task: str, rows: list[str], mates: list[str], architecture: str
) -> None:
    engine = shelf.engine(architecture, TEXT_TASKS)
    crowded = engine.logits([*rows, *mates, "yes " * 30], task)[: len(rows)]
    for row, logits in zip(rows, crowded, strict=True):
        alone = engine.logits([row], task)[0]
        np.testing.assert_allclose(logits, alone, rtol=0, atol=1e-4)


@given(rows=texts, architecture=architectures)
def test_pair_tasks_answer_the_same_alone_and_merged(shelf: Shelf, rows: list[str], architecture: str) -> None:
    pairs = [Example(text=row, text_pair=other) for row, other in zip(rows, reversed(rows), strict=True)]
    alone = [logits.tobytes() for logits in shelf.engine(architecture, ("same",)).logits(pairs, "same")]
    merged = shelf.engine(architecture, TASKS)
    assert [logits.tobytes() for logits in merged.logits(pairs, "same")] == alone


@settings(max_examples=4)
@given(rows=texts)
def test_changes_of_other_tasks_leave_pair_tasks_equal_in_bits(shelf: Shelf, rows: list[str]) -> None:
    pairs = [Example(text=row, text_pair=other) for row, other in zip(rows, reversed(rows), strict=True)]

    def answers(bundle: Bundle) -> list[bytes]:
        with open_fp32(bundle.path) as engine:
            return [logits.tobytes() for logits in engine.logits(pairs, "same")]

    with shelf.copied(TASKS) as bundle:
        before = answers(bundle)
        replace(bundle, put_branch(bundle.path.parent / "new", "intent", backbone_of(), seed=1))
        assert answers(bundle) == before
        for task in TEXT_TASKS:
            detach(bundle, task)
        assert answers(bundle) == before
        cut(bundle.path)
        assert answers(bundle) == before


@settings(max_examples=3)
@given(gone=st.sampled_from(TEXT_TASKS), rows=texts)
def test_detaching_and_attaching_a_task_leaves_all_others_equal_in_bits(
    shelf: Shelf, gone: str, rows: list[str]
) -> None:
    others = [task for task in TEXT_TASKS if task != gone]
    with shelf.copied(TEXT_TASKS) as bundle:
        before = opened_bits(bundle, TEXT_TASKS, rows)
        detach(bundle, gone)
        assert opened_bits(bundle, others, rows) == {task: before[task] for task in others}
        attach(bundle, shelf.branch("bert", gone))
        assert opened_bits(bundle, TEXT_TASKS, rows) == before


@settings(max_examples=3)
@given(task=st.sampled_from(TEXT_TASKS), rows=texts, seed=st.integers(1, 3))
def test_replacing_a_task_leaves_all_others_equal_in_bits(shelf: Shelf, task: str, rows: list[str], seed: int) -> None:
    others = [other for other in TEXT_TASKS if other != task]
    with shelf.copied(TEXT_TASKS) as bundle:
        before = opened_bits(bundle, others, rows)
        replace(bundle, put_branch(bundle.path.parent / "new", task, backbone_of(), seed=seed))
        assert opened_bits(bundle, others, rows) == before


@settings(max_examples=3)
@given(rows=texts)
def test_extending_the_trunk_leaves_all_tasks_equal_in_bits(shelf: Shelf, rows: list[str]) -> None:
    with shelf.copied(TEXT_TASKS) as bundle:
        before = opened_bits(bundle, TEXT_TASKS, rows)
        deep = put_branch(
            bundle.path.parent / "deep",
            "deep",
            backbone_of(),
            kind="multilabel",
            labels=("a", "b"),
            exit_layer=4,
            own_layers=0,
        )
        attach(bundle, deep, backbone=backbone_of())
        assert opened_bits(bundle, TEXT_TASKS, rows) == before


@given(tasks=task_sets, rows=texts)
def test_layers_executed_are_the_deepest_exit_and_the_branches_asked_for_each_distinct_row(
    shelf: Shelf, tasks: list[str], rows: list[str]
) -> None:
    engine = shelf.engine("bert", TEXT_TASKS, name="torch")
    with executed() as seen:
        engine.predict(rows, tasks=tasks)
    encoded = engine.snapshot.trunk.tokenizer.encode([Example(text=row) for row in rows], max_length=32)
    n_distinct = len({row.key() for row in encoded})
    specs = [engine.spec(task) for task in tasks]
    cost = max(spec.exit_layer for spec in specs) + sum(spec.own_layers for spec in specs)
    # All rows fit into one step: each layer is called once, with every row in it.
    assert seen.n_rows == n_distinct
    assert len(seen.layers) == cost


@given(architecture=architectures, tasks=task_sets)
def test_layer_weights_of_a_bundle_are_linear_in_the_cost_that_is_printed(
    shelf: Shelf, architecture: str, tasks: list[str]
) -> None:
    # Paper section 4.1: each layer of trunk and branches is stored, and run, once.
    bundle = shelf.bundle(architecture, tasks)
    stored = [bundle.trunk().tensors, *(bundle.branch(task).tensors for task in tasks)]
    n_weights = sum(a.size for tensors in stored for name, a in tensors.items() if name.startswith("layers."))
    one_layer = sum(a.size for name, a in backbone_of(architecture).tensors.items() if name.startswith("layers.0."))
    assert n_weights == layer_cost(bundle.manifest) * one_layer


@given(task=st.sampled_from(TASKS), seed=st.integers(0, 3), architecture=architectures)
def test_saving_and_loading_a_branch_is_identity(task: str, seed: int, architecture: str) -> None:
    made = make_branch(task, backbone_of(architecture), seed=seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digest = write_branch(folder / "one", made.spec, made.tensors, made.golden)
        stored = read_branch(folder / "one")
        assert write_branch(folder / "two", stored.spec, stored.tensors, stored.golden) == digest
    assert stored.spec == made.spec
    assert stored.golden == made.golden
    assert {name: tensor.tobytes() for name, tensor in stored.tensors.items()} == {
        name: tensor.tobytes() for name, tensor in made.tensors.items()
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_trunk_of_a_bundle_is_the_backbone_cut_short(shelf: Shelf, architecture: str) -> None:
    backbone = backbone_of(architecture)
    stored = shelf.bundle(architecture, TEXT_TASKS).trunk()
    assert stored.chain == backbone.chain[: len(stored.chain)]
    assert all(tensor.tobytes() == backbone.tensors[name].tobytes() for name, tensor in stored.tensors.items())


def test_the_texts_of_the_helper_are_not_cut() -> None:
    rows = backbone_of().tokenizer.encode([Example(text=text) for text in TEXTS], max_length=64)
    assert not any(row.truncated for row in rows)
