"""Task files: what is read, and what is refused."""

from pathlib import Path

import pytest

from trunkline.core.errors import SpecError
from trunkline.core.specs import read_task


def task_file(folder: Path, text: str) -> Path:
    path = folder / "task.yaml"
    path.write_text(text)
    return path


def test_data_paths_are_taken_from_the_task_files_folder(tmp_path: Path) -> None:
    path = task_file(tmp_path, "name: a\nkind: classification\ndata: {train: rows.jsonl, dev: 'hub:x:dev'}\n")
    data = read_task(path).data
    assert (data.train, data.dev) == (str(tmp_path.resolve() / "rows.jsonl"), "hub:x:dev")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nkind: classification\nname: b\n", "key 'name' is given again in line 3"),
        ("name: a\nkind: regression\ndata:\n  dev: x\n  dev: y\n", "key 'dev' is given again in line 5"),
    ],
    ids=["at the top", "inside"],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_task(task_file(tmp_path, text))


def test_an_alias_may_stand_for_a_value_in_two_places(tmp_path: Path) -> None:
    path = task_file(tmp_path, "name: a\nkind: classification\ndata: {train: &rows rows.jsonl, dev: *rows}\n")
    data = read_task(path).data
    assert data.train == data.dev
