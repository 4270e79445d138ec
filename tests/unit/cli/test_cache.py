"""`trunkline cache`: list and prune, and the limit that train takes."""

from pathlib import Path

import pytest

from tests.tiny_bundles import backbone_of
from tests.tiny_cli import run_cli
from trunkline.core.types import Example
from trunkline.model.trunk import Trunk
from trunkline.train.cache import ActivationCache


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path))
    backbone = backbone_of()
    trunk = Trunk.build(backbone.config, backbone.tensors, depth=2)
    rows = backbone.tokenizer.encode([Example(text="play a song")], max_length=32)
    for exit_layer in (1, 2):
        ActivationCache(tmp_path / "activations").rows(trunk, backbone, rows, exit_layer=exit_layer, dtype="float32")
    return tmp_path / "activations"


def test_list_shows_every_store_and_the_sum(root: Path) -> None:
    done = run_cli("cache", "list")
    assert done.code == 0
    assert str(root) in done.out
    assert done.out.count("tiny-bert") == 2
    assert "2 stores" in done.out
    listed = run_cli("cache", "list", "--json").json()
    assert {store["exit_layer"] for store in listed} == {1, 2}
    assert all(store["n_rows"] == 1 for store in listed)


def test_prune_removes_what_is_old_or_too_much_and_says_so(root: Path) -> None:
    assert run_cli("cache", "prune", "--json").json() == []
    one = run_cli("cache", "list", "--json").json()[0]["size_bytes"]
    assert len(run_cli("cache", "prune", "--max-size", f"{one}B", "--json").json()) == 1
    done = run_cli("cache", "prune", "--older-than-days", "0")
    assert (done.code, "1 stores" in done.out) == (0, True)
    assert list(root.iterdir()) == []


def test_a_limit_that_is_no_size_is_refused_before_any_work(root: Path) -> None:
    del root
    for arguments in (
        ("cache", "prune", "--max-size", "20"),
        ("train", "x.yaml", "--out", "r", "--cache-limit", "much"),
    ):
        done = run_cli(*arguments)
        assert done.code == 1
        assert "is not a size; give a number" in done.err
