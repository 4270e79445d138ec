"""How much room the cache takes, what may go, and what happens when something does not fit."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from tests.tiny_bundles import TEXTS, backbone_of
from tests.tiny_tasks import Notebook, make_bench, make_task, quick_request
from trunkline.core.errors import SpecError, TrainingError
from trunkline.core.types import Encoded, Example
from trunkline.model.trunk import Trunk
from trunkline.train import cache_room
from trunkline.train.bench import Workbench
from trunkline.train.cache import ActivationCache
from trunkline.train.cache_room import StoreFacts, list_stores, parse_size, prune, room_bytes, superfluous, used_bytes
from trunkline.train.pipeline import train_task

BACKBONE = backbone_of()
TRUNK = Trunk.build(BACKBONE.config, BACKBONE.tensors, depth=3)
DAY_S = 86400


def encoded(*texts: str) -> list[Encoded]:
    return BACKBONE.tokenizer.encode([Example(text=text) for text in texts], max_length=32)


def fill(root: Path, *exits: int, texts: tuple[str, ...] = TEXTS, dtype: Any = "float32") -> ActivationCache:
    cache = ActivationCache(root)
    for exit_layer in exits:
        cache.rows(TRUNK, BACKBONE, encoded(*texts), exit_layer=exit_layer, dtype=dtype)
    return cache


def stores(root: Path, **options: Any) -> list[StoreFacts]:
    return list_stores(root, **options)


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("20GB", 20 * 10**9), ("1.5 MB", 1_500_000), ("7B", 7), (" 3kB ", 3000), ("2TB", 2 * 10**12)]
)
def test_sizes_are_read_in_decimal_units(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "20", "GB", "-1GB", "20GiB", "20 gb"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is not a size; give a number and one of B, kB, MB, GB, TB"):
        parse_size(text)


def test_a_store_says_what_it_is_and_how_much_it_holds(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    (facts,) = stores(tmp_path)
    assert (facts.backbone, facts.exit_layer, facts.dtype, facts.n_rows) == ("tiny-bert", 2, "float32", len(TEXTS))
    assert facts.size_bytes == used_bytes(tmp_path) > sum(len(row.token_ids) for row in encoded(*TEXTS)) * 16 * 4
    assert 0 <= facts.last_used_days < 0.1


def test_a_store_that_does_not_say_what_it_is_is_listed_all_the_same(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    (facts,) = stores(tmp_path)
    (tmp_path / facts.name / cache_room.ABOUT_FILE).write_text("{")
    (again,) = stores(tmp_path)
    assert (again.backbone, again.exit_layer, again.n_rows) == ("", None, len(TEXTS))


def test_an_empty_cache_has_no_stores(tmp_path: Path) -> None:
    assert stores(tmp_path / "none") == []
    assert used_bytes(tmp_path / "none") == 0


def test_the_store_used_longest_ago_comes_first(tmp_path: Path) -> None:
    cache = fill(tmp_path, 1, 2, 3)
    for facts, days in zip(stores(tmp_path), (30, 10, 20), strict=True):
        for path in (tmp_path / facts.name).iterdir():
            then = path.stat().st_mtime - days * DAY_S
            os.utime(path, (then, then))
    assert [round(facts.last_used_days) for facts in stores(tmp_path)] == [30, 20, 10]
    oldest = stores(tmp_path)[0].exit_layer
    assert oldest is not None
    cache.rows(TRUNK, BACKBONE, encoded("no"), exit_layer=oldest, dtype="float32")
    assert stores(tmp_path)[-1].exit_layer == oldest


def test_pruned_stores_are_gone_and_are_computed_again(tmp_path: Path) -> None:
    cache = fill(tmp_path, 1, 2)
    removed = prune(tmp_path, stores(tmp_path))
    assert {facts.exit_layer for facts in removed} == {1, 2}
    assert stores(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    # The same object goes on, as a run does when somebody prunes beside it.
    rows = encoded(*TEXTS)
    again = cache.rows(TRUNK, BACKBONE, rows, exit_layer=2, dtype="float32")
    fresh = ActivationCache(tmp_path / "other").rows(TRUNK, BACKBONE, rows, exit_layer=2, dtype="float32")
    for position in range(len(rows)):
        for one, other in zip(again.gather(np.array([position])), fresh.gather(np.array([position])), strict=True):
            assert torch.equal(one, other)


def made_up(name: str, *, days: float, size_bytes: int) -> StoreFacts:
    return StoreFacts(
        name=name, backbone="b", exit_layer=1, dtype="float32", n_rows=1, size_bytes=size_bytes, last_used_days=days
    )


def test_old_stores_go_first_and_then_the_longest_unused_until_the_rest_fits() -> None:
    some = [made_up("a", days=40, size_bytes=5), made_up("b", days=3, size_bytes=6), made_up("c", days=1, size_bytes=7)]
    assert [s.name for s in superfluous(some, older_than_days=30)] == ["a"]
    assert [s.name for s in superfluous(some, older_than_days=30, max_bytes=13)] == ["a"]
    assert [s.name for s in superfluous(some, older_than_days=30, max_bytes=12)] == ["a", "b"]
    assert [s.name for s in superfluous(some, older_than_days=0)] == ["a", "b", "c"]
    assert superfluous(some, older_than_days=50) == []


def test_a_store_that_is_being_written_stays(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    (facts,) = stores(tmp_path)
    with FileLock(tmp_path / facts.name / "rows.idx.lock"):
        assert prune(tmp_path, [facts]) == []
    assert stores(tmp_path)[0].n_rows == len(TEXTS)


def test_the_size_of_what_is_missing_is_known_before(tmp_path: Path) -> None:
    cache = fill(tmp_path, 2, texts=TEXTS[:2])
    before = {path.name: path.stat().st_size for path in tmp_path.rglob("states.bin")}["states.bin"]
    wanted = cache.missing_bytes(BACKBONE, encoded(*TEXTS, *TEXTS), exit_layer=2, dtype="float32")
    cache.rows(TRUNK, BACKBONE, encoded(*TEXTS), exit_layer=2, dtype="float32")
    assert next(tmp_path.rglob("states.bin")).stat().st_size - before == wanted
    assert cache.missing_bytes(BACKBONE, encoded(*TEXTS), exit_layer=2, dtype="float32") == 0


def test_room_is_what_the_limit_leaves_and_without_one_half_of_the_disk(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    used = used_bytes(tmp_path)
    assert room_bytes(tmp_path, limit_bytes=used + 10) == 10
    assert room_bytes(tmp_path, limit_bytes=5) == 0
    assert room_bytes(tmp_path / "not" / "there", limit_bytes=None) > 0


def bench_of(folder: Path, limit_bytes: int | None, notebook: Notebook) -> Workbench:
    whole = make_bench(folder, reporter=notebook)
    cache = ActivationCache(folder / "cache", limit_bytes=limit_bytes)
    return Workbench(
        whole.backbone, whole.trunk, whole.ledger, cache, whole.accelerator, whole.precision, whole.reporter
    )


@pytest.mark.parametrize("name", ["topic", "places"])
def test_without_room_the_same_is_learned_from_states_that_are_not_kept(tmp_path: Path, name: str) -> None:
    figures = []
    for place, limit in (("roomy", None), ("full", 0)):
        notebook = Notebook()
        bench = bench_of(tmp_path / place, limit, notebook)
        records = train_task(bench, make_task(tmp_path / place, name, n_train=40, n_dev=8), quick_request())
        figures.append([[point.train_loss for point in record.curve[1:]] for record in records])
        told = [note for note in notebook.notes if "are computed in every epoch from the token ids" in note]
        assert bool(told) == (limit == 0)
        assert (used_bytes(tmp_path / place / "cache") == 0) == (limit == 0)
    np.testing.assert_allclose(figures[0], figures[1], rtol=1e-4)


def test_without_room_states_are_computed_from_the_deepest_exit_that_is_kept(tmp_path: Path) -> None:
    notebook = Notebook()
    task = make_task(tmp_path, "topic", n_train=40, n_dev=8)
    train_task(bench_of(tmp_path, None, Notebook()), task, quick_request(layers=(3,), student_layers=()))
    train_task(bench_of(tmp_path, 0, notebook), task, quick_request(layers=(1,), student_layers=()))
    assert sum("are computed in every epoch from exit layer 1" in note for note in notebook.notes) == 3


def test_what_will_be_added_is_told_before_the_first_run(tmp_path: Path) -> None:
    notebook = Notebook()
    task = make_task(tmp_path, "topic", n_train=40, n_dev=8)
    train_task(bench_of(tmp_path, 10**9, notebook), task, quick_request(layers=(1, 2), student_layers=()))
    assert any(note.startswith("activations at 2 exits (2, 3) add up to 0 MB to") for note in notebook.notes)
    again = Notebook()
    train_task(bench_of(tmp_path, 10**9, again), task, quick_request(layers=(1, 2), student_layers=()))
    assert not any(note.startswith("activations at") for note in again.notes)


def test_a_cache_that_cannot_be_written_is_a_training_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot be written"):
        fill(tmp_path / "file", 1)
