"""The bundle of assistant12 goes only where nothing is lost."""

from pathlib import Path

import pytest

from benchmarks.assistant12_run import QUICK, SETS, check_replaceable
from trunkline.core.errors import BundleError


def test_a_folder_with_anything_but_a_bundle_is_refused(tmp_path: Path) -> None:
    check_replaceable(tmp_path / "none")
    check_replaceable(tmp_path)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"is not empty and holds no manifest\.json"):
        check_replaceable(tmp_path)
    with pytest.raises(BundleError, match="is not empty and holds no"):
        check_replaceable(tmp_path / "thesis.txt")
    (tmp_path / "manifest.json").write_text("{}")
    check_replaceable(tmp_path)


def test_twelve_tasks_have_test_rows_and_short_texts() -> None:
    assert len({each.name for each in SETS}) == 12
    for each in (*SETS, *QUICK):
        task = each.task()
        assert (task.max_length, task.data.max_train_rows) == (64, each.rows)
        assert task.data.test is not None
    assert [each.rows for each in QUICK] == [500, 500]
