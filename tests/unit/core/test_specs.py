"""Task files and specs: what is read, and what is refused."""

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.tiny_bundles import provenance_of
from trunkline.core.errors import SpecError, UnknownNameError
from trunkline.core.specs import (
    BranchSpec,
    Calibration,
    Columns,
    DataSpec,
    TaskSpec,
    convert_spec,
    decode_spec,
    read_task,
)


def task_file(folder: Path, text: str) -> Path:
    path = folder / "task.yaml"
    path.write_text(text)
    return path


def task_of(**changes: Any) -> TaskSpec:
    return TaskSpec(**({"name": "a", "kind": "classification"} | changes))


def branch_of(**changes: Any) -> BranchSpec:
    fields: dict[str, Any] = {
        "task": "a",
        "kind": "classification",
        "input": "text",
        "labels": ("x", "y"),
        "metric": "accuracy",
        "max_length": 32,
        "pooling": "cls",
        "exit_layer": 1,
        "own_layers": 1,
        "trunk_digest": "0" * 64,
        "provenance": provenance_of("mood"),
    }
    return BranchSpec(**(fields | changes))


def test_data_paths_are_taken_from_the_task_files_folder(tmp_path: Path) -> None:
    path = task_file(tmp_path, "name: a\nkind: classification\ndata: {train: rows.jsonl, dev: 'hub:x:dev'}\n")
    data = read_task(path).data
    assert (data.train, data.dev) == (str(tmp_path.resolve() / "rows.jsonl"), "hub:x:dev")


def test_a_tilde_in_a_data_path_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = task_file(tmp_path, "name: a\nkind: classification\ndata: {train: ~/rows.jsonl}\n")
    assert read_task(path).data.train == str(tmp_path.resolve() / "home" / "rows.jsonl")


def test_the_home_folder_of_nobody_is_refused(tmp_path: Path) -> None:
    path = task_file(tmp_path, "name: a\nkind: classification\ndata: {train: ~no-such-user/rows.jsonl}\n")
    with pytest.raises(SpecError, match=r"data path '~no-such-user/rows.jsonl' has no home folder"):
        read_task(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nkind: classification\nname: b\n", "key 'name' is given again in line 3"),
        ("name: a\nkind: regression\ndata:\n  dev: x\n  dev: y\n", "key 'dev' is given again in line 5"),
        ("- {a: [b, b]}\n- {a: b, c: d, a: b}\n", "key 'a' is given again in line 2"),
    ],
    ids=["at the top", "inside", "in a list"],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_task(task_file(tmp_path, text))


def test_an_alias_may_stand_for_a_value_in_two_places(tmp_path: Path) -> None:
    path = task_file(tmp_path, "name: a\nkind: classification\ndata: {train: &rows rows.jsonl, dev: *rows}\n")
    data = read_task(path).data
    assert data.train == data.dev


@pytest.mark.parametrize("depth", [200, 5_000, 200_000])
def test_a_task_file_that_is_nested_too_deeply_is_refused(tmp_path: Path, depth: int) -> None:
    with pytest.raises(SpecError, match="line 1 is nested deeper than 100 levels"):
        read_task(task_file(tmp_path, "labels: " + "[" * depth))


@pytest.mark.parametrize("text", ["{", "name: [a", "a: *b", "\x07"])
def test_what_is_no_yaml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match="not valid YAML"):
        read_task(task_file(tmp_path, text))


def test_json_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(SpecError, match="branch 'a': not valid JSON"):
        decode_spec(b"[" * 100_000, BranchSpec, "branch 'a'")


TASK = {"name": "a", "kind": "classification"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (TASK | {"train": "x"}, "unknown key 'train'; it belongs under 'data'; move it there"),
        (TASK | {"text": "x"}, "unknown key 'text'; it belongs under 'columns'; move it there"),
        (
            TASK | {"data": {"labels": ["x"]}},
            "unknown key 'labels' under 'data'; it belongs at the top level or under 'columns'; move it there",
        ),
        (TASK | {"data": {"metric": "x"}}, "unknown key 'metric' under 'data'; it belongs at the top level"),
        (TASK | {"data": {"trian": "x"}}, "unknown key 'trian' under 'data'; did you mean 'train'?"),
        (TASK | {"metrik": "x"}, "unknown key 'metrik'; did you mean 'metric'?"),
        (
            TASK | {"max_train_row": 5},
            "unknown key 'max_train_row'; did you mean 'max_train_rows', which belongs under",
        ),
        (TASK | {"columns": {"zzzzz": 5}}, "unknown key 'zzzzz' under 'columns'; known: label, labels, tags, text"),
    ],
)
def test_an_unknown_key_is_told_where_it_belongs(value: object, message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        convert_spec(value, TaskSpec, "task file 'a.yaml'")
    assert str(caught.value).startswith(f"task file 'a.yaml': {message}")


class Shelf(msgspec.Struct, forbid_unknown_fields=True):
    by_name: dict[str, DataSpec] = {}
    rows: tuple[Columns, ...] = ()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"by_name": {"x": {"trian": "y"}}}, "unknown key 'trian' under 'by_name[...]'; did you mean 'train'?"),
        ({"rows": [{}, {"tag": "y"}]}, "unknown key 'tag' under 'rows[1]'; did you mean 'tags'?"),
        ({"rows": [{"train": "y"}]}, "unknown key 'train' under 'rows[0]'; it belongs under 'by_name'; move it there"),
    ],
)
def test_an_unknown_key_of_an_item_is_told_from_the_items_own_keys(value: object, message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        convert_spec(value, Shelf, "shelf")
    assert str(caught.value) == f"shelf: {message}"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            TASK | {"kind": "clasification"},
            "kind is 'clasification'; allowed are classification, multilabel, regression, tagging; did you mean 'cl",
        ),
        (TASK | {"pooling": "zzz"}, "pooling is 'zzz'; allowed are cls, mean; choose one of them"),
        (
            TASK | {"metric": "acuracy"},
            "metric is 'acuracy'; allowed are accuracy, f1_binary, f1_macro, f1_micro, matthews, pearson, span_f1, sp",
        ),
        (TASK | {"labels": ["a", 7]}, "labels[1] is of type int, not str; put it in quotes"),
        (TASK | {"max_length": "64"}, "max_length is of type str, not int; write it so"),
        (["a"], "the content is of type array, not object; write it so"),
        ({"kind": "tagging"}, "key 'name' is missing; add it"),
        (
            TASK | {"data": {"max_train_rows": 0}},
            "data: max_train_rows 0 is not allowed; choose 1 or more, or leave it",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(value: object, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        convert_spec(value, TaskSpec, "task file 'a.yaml'")
    assert str(caught.value).startswith(f"task file 'a.yaml': {message}")


@pytest.mark.parametrize("name", ["", "A", "-a", "a b", "a/b", "ä", "a" * 65, "a\n"])
def test_a_task_name_of_other_characters_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="the name is not allowed; use 1 to 64"):
        task_of(name=name)


@pytest.mark.parametrize("name", ["a", "7", "a-b_c", "a" * 64])
def test_a_task_name_of_the_allowed_characters_is_taken(name: str) -> None:
    assert task_of(name=name).name == name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "pearson"}, "metric 'pearson' does not fit kind 'classification'; choose one of accuracy, f1_bin"),
        (
            {"kind": "tagging", "metric": "accuracy"},
            "metric 'accuracy' does not fit kind 'tagging'; choose one of span_f1",
        ),
        ({"metric": "f1_binary"}, "metric 'f1_binary' needs positive_label"),
        ({"kind": "multilabel", "positive_label": "x"}, "positive_label is for classification, not for multilabel"),
        ({"labels": ("x", "y", "x")}, "labels has 'x' twice"),
        ({"labels": ("x", "")}, "label '' is blank or has white space around it"),
        ({"labels": ("x", " ")}, "label ' ' is blank or has white space around it"),
        ({"labels": ("x", "y ")}, "label 'y ' is blank or has white space around it"),
        ({"kind": "regression", "labels": ("x",)}, "a regression task has no labels"),
        ({"kind": "tagging", "input": "pair"}, "tagging takes single texts"),
        ({"max_length": 7}, "max_length 7 is outside 8..8192"),
        ({"max_length": 8193}, "max_length 8193 is outside 8..8192"),
        ({"columns": Columns(text="label")}, "columns gives 'label' two meanings"),
        ({"columns": Columns(text="text_pair"), "input": "pair"}, "columns gives 'text_pair' two meanings"),
        ({"columns": Columns(tokens="x", tags="x"), "kind": "tagging"}, "columns gives 'x' two meanings"),
    ],
)
def test_a_task_that_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=f"^task 'a': {message}"):
        task_of(**changes)


def test_a_column_may_have_the_name_of_one_that_the_kind_does_not_read() -> None:
    columns = Columns(text="tokens", label="labels")
    assert task_of(columns=columns).columns_read == ("tokens", "labels")


@pytest.mark.parametrize("max_length", [8, 8192])
def test_the_ends_of_the_range_of_max_length_are_taken(max_length: int) -> None:
    assert task_of(max_length=max_length).max_length == max_length


@pytest.mark.parametrize("part", ["train", "dev", "test"])
@pytest.mark.parametrize("name", ["", "  "])
def test_a_part_without_a_name_is_refused(part: str, name: str) -> None:
    with pytest.raises(SpecError, match=f"data: {part} is '{name}'; a part is a path"):
        DataSpec(**{part: name})


@pytest.mark.parametrize("most", [0, -1])
def test_a_sample_without_rows_is_refused(most: int) -> None:
    with pytest.raises(SpecError, match=f"data: max_train_rows {most} is not allowed"):
        DataSpec(max_train_rows=most)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"temperature": value}, "temperature is") for value in (0.0, -1.0, math.nan, math.inf)),
        *(({"thresholds": (0.5, value)}, "threshold .* is outside") for value in (-0.1, 1.1, math.nan)),
        *(({"abstain_below": value}, "abstain_below .* is outside") for value in (-0.1, 1.1, math.nan)),
    ],
)
def test_a_calibration_that_gives_no_probabilities_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=f"^calibration: {message}"):
        Calibration(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "pearson"}, "metric 'pearson' does not fit"),
        ({"metric": "f1_binary"}, "'f1_binary' needs positive_label"),
        ({"metric": "f1_binary", "positive_label": "z"}, "positive_label 'z' is none of its labels"),
        ({"labels": ()}, "has 0 labels; classification has at least one"),
        ({"labels": ("x", "x")}, "labels has 'x' twice"),
        ({"labels": ("x", "")}, "label '' is blank"),
        ({"kind": "regression", "metric": "pearson"}, "has 2 labels; regression has none"),
        ({"kind": "tagging", "metric": "span_f1", "labels": ("B-x", "I-x")}, "its tags lack 'O'"),
        ({"max_length": 0}, "max_length is 0; 1 or more"),
        ({"exit_layer": -1}, "exit_layer is -1; 0 or more"),
        ({"own_layers": -1}, "own_layers is -1; 0 or more"),
        *(({"score_std": value}, "score_mean .* score_std") for value in (0.0, -1.0, math.nan, math.inf)),
        *(({"score_mean": value}, "score_mean .* score_std") for value in (math.nan, -math.inf)),
        (
            {"kind": "multilabel", "metric": "f1_micro", "calibration": Calibration(thresholds=(0.5,))},
            "has 1 thresholds for 2 labels of kind 'multilabel'",
        ),
        ({"calibration": Calibration(thresholds=(0.5, 0.5))}, "has 2 thresholds for 2 labels of kind 'classification'"),
        (
            {"kind": "multilabel", "metric": "f1_micro", "calibration": Calibration(abstain_below=0.5)},
            "multilabel cannot abstain",
        ),
    ],
)
def test_a_branch_that_cannot_answer_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=f"^branch of task 'a': .*{message}"):
        branch_of(**changes)


def test_a_stored_branch_is_checked_when_it_is_read() -> None:
    stored = msgspec.to_builtins(branch_of())
    stored["calibration"]["temperature"] = 0
    with pytest.raises(SpecError, match=r"branch.json: calibration: temperature is 0.0; give a finite number above 0"):
        convert_spec(stored, BranchSpec, "branch.json")
