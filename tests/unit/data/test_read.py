"""Rows of files into examples, and what is said of bad ones."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from trunkline.core.errors import DataError, SpecError
from trunkline.core.specs import Columns, DataSpec, TaskSpec
from trunkline.core.types import Example
from trunkline.data.read import Part, read_inputs, read_part, read_unlabelled


def _task(path: Path | str | None, *, part: Part = "train", rows: int | None = None, **changes: Any) -> TaskSpec:
    data = DataSpec(**{part: None if path is None else str(path)}, max_train_rows=rows)
    fields: dict[str, Any] = {"name": "sample", "kind": "classification", "data": data}
    return TaskSpec(**(fields | changes))


def _write(folder: Path, *rows: object, name: str = "train.jsonl") -> Path:
    path = folder / name
    content = "".join(f"{row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_json_lines_are_read_in_order(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path, {"text": "a b", "label": "x"}, {"text": "é", "label": "y"}, name=name)
    assert read_part(_task(path), "train") == [Example(text="a b", target="x"), Example(text="é", target="y")]


def test_pairs_are_read_from_their_columns(tmp_path: Path) -> None:
    path = _write(tmp_path, {"q1": "a", "q2": "b", "score": 2})
    columns = Columns(text="q1", text_pair="q2", label="score")
    task = _task(path, kind="regression", input="pair", columns=columns)
    assert read_part(task, "train") == [Example(text="a", text_pair="b", target=2.0)]


def test_a_second_text_is_left_alone_by_a_task_of_single_texts(tmp_path: Path) -> None:
    path = _write(tmp_path, {"text": "a", "text_pair": "b", "label": "x"})
    assert read_part(_task(path), "train") == [Example(text="a", target="x")]


def test_multilabel_rows_may_have_any_number_of_labels(tmp_path: Path) -> None:
    path = _write(tmp_path, {"text": "a", "labels": []}, {"text": "b", "labels": ["y", "x"]})
    assert [row.target for row in read_part(_task(path, kind="multilabel"), "train")] == [(), ("y", "x")]


def test_tagging_rows_are_joined_and_keep_their_word_spans(tmp_path: Path) -> None:
    path = _write(tmp_path, {"tokens": ["去", "北", "京", "now"], "tags": ["O", "B-loc", "I-loc", "O"]})
    assert read_part(_task(path, kind="tagging"), "train") == [
        Example(text="去北京 now", target=("O", "B-loc", "I-loc", "O"), word_spans=((0, 1), (1, 2), (2, 3), (4, 7)))
    ]


def test_a_whole_number_is_taken_as_a_class_name(tmp_path: Path) -> None:
    assert read_part(_task(_write(tmp_path, {"text": "a", "label": 3})), "train")[0].target == "3"


def test_whole_numbers_are_taken_as_the_class_names_of_a_row(tmp_path: Path) -> None:
    path = _write(tmp_path, {"text": "a", "labels": [1, 2, "x"]})
    assert read_part(_task(path, kind="multilabel"), "train")[0].target == ("1", "2", "x")


def test_lists_of_whole_numbers_in_parquet_are_class_names(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    parquet.write_table(pa.table({"text": ["a", "b"], "labels": [[1, 2], []]}), path)
    assert [row.target for row in read_part(_task(path, kind="multilabel"), "train")] == [("1", "2"), ()]


def test_blank_lines_count_but_are_no_rows(tmp_path: Path) -> None:
    path = _write(tmp_path, {"text": "a", "label": "x"}, "", "{")
    with pytest.raises(DataError, match="line 3: not valid JSON"):
        read_part(_task(path), "train")


def test_csv_rows_may_be_quoted_over_lines(tmp_path: Path) -> None:
    path = _write(tmp_path, "\ufefftext,label", '"a, ""b""\nc",x', "d,y", name="train.csv")
    assert [row.text for row in read_part(_task(path), "train")] == ['a, "b"\nc', "d"]


def test_tsv_rows_have_no_quoting(tmp_path: Path) -> None:
    path = _write(tmp_path, "text\tlabel", '"a said\tx', name="train.tsv.gz")
    assert read_part(_task(path), "train") == [Example(text='"a said', target="x")]


@pytest.mark.parametrize(
    ("kind", "header", "row", "target"),
    [
        ("multilabel", "text,labels", "a,x|y", ("x", "y")),
        ("multilabel", "text,labels", "a,", ()),
        ("regression", "text,label", "a,-2.5", -2.5),
        ("classification", "text,label", "a,1", "1"),
        ("tagging", "tokens,tags", "new york,B-l I-l", ("B-l", "I-l")),
    ],
)
def test_cells_of_a_table_become_targets(tmp_path: Path, kind: str, header: str, row: str, target: object) -> None:
    path = _write(tmp_path, header, row, name="dev.csv")
    assert read_part(_task(path, part="dev", kind=kind), "dev")[0].target == target


def test_parquet_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    parquet.write_table(pa.table({"text": ["a", "b"], "label": [1, 0], "other": [None, None]}), path)
    assert read_part(_task(path), "train") == [Example(text="a", target="1"), Example(text="b", target="0")]


def test_parquet_rows_are_named_by_number(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    parquet.write_table(pa.table({"text": ["a", None], "label": ["x", "y"]}), path)
    with pytest.raises(DataError, match=r"train.parquet row 2: 'text' is null"):
        read_part(_task(path), "train")


@pytest.mark.parametrize("names", [["text", "lable"], ["text", "zzz", "lable"]])
def test_a_column_that_parquet_lacks_is_named_with_the_nearest_of_all_columns(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "train.parquet"
    parquet.write_table(pa.table([["a"]] * len(names), names=names), path)
    with pytest.raises(DataError, match=r"train.parquet: has no column 'label'; did you mean 'lable'\?"):
        read_part(_task(path), "train")


def test_a_wanted_column_that_parquet_has_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    parquet.write_table(pa.table([["a"], ["x"], ["y"]], names=["text", "label", "label"]), path)
    with pytest.raises(DataError, match="the schema names column 'label' 2 times; rename all but one"):
        read_part(_task(path), "train")


def test_a_column_that_nobody_reads_may_stand_twice(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    parquet.write_table(pa.table([["a"], ["x"], ["n"], ["m"]], names=["text", "label", "note", "note"]), path)
    table = _write(tmp_path, "note,text,label,note", "n,a,x,m", name="train.csv")
    for source in (path, table):
        assert read_part(_task(source), "train") == [Example(text="a", target="x")]


def test_a_parquet_string_that_is_not_utf8_is_refused_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    texts = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"b", b"caf\xe9"]).buffers())
    parquet.write_table(pa.table({"text": texts, "label": ["x"] * 3}), path)
    with pytest.raises(DataError, match=r"train.parquet row 3: a string is not UTF-8 .*; write the file again"):
        read_part(_task(path), "train")


@pytest.mark.parametrize("name", ["train.csv", "train.tsv"])
def test_a_cell_may_be_longer_than_the_csv_modules_default(tmp_path: Path, name: str) -> None:
    text = "ab " * 60_000 + "c"
    separator = "," if name.endswith("csv") else "\t"
    path = _write(tmp_path, f"text{separator}label", f"{text}{separator}x", name=name)
    assert read_part(_task(path), "train") == [Example(text=text, target="x")]


GOOD = {"text": "fine", "label": "x"}


def test_a_train_row_may_have_a_null_label_and_a_dev_row_may_not(tmp_path: Path) -> None:
    path = _write(tmp_path, GOOD, {"text": "a", "label": None})
    task = _task(path, data=DataSpec(train=str(path), dev=str(path)))
    assert [row.target for row in read_part(task, "train")] == ["x", None]
    with pytest.raises(DataError, match="line 2: 'label' is null"):
        read_part(task, "dev")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{'text': 1}", "not valid JSON"),
        ('{"text": "a", "label": NaN}', "not valid JSON"),
        (["a", "x"], "holds a list, not a JSON object"),
        ({"txt": "a", "label": "x"}, r"has no column 'text'; did you mean 'txt'\?"),
        ({"text": "a"}, "has no column 'label'"),
        ({"text": 5, "label": "x"}, "'text' is a number, not a string"),
        ({"text": " \n", "label": "x"}, "'text' is empty"),
        ({"text": None, "label": "x"}, "'text' is null"),
        ({"text": "a", "label": ""}, r"'label' is empty or blank \(''\)"),
        ({"text": "a", "label": " "}, r"'label' is empty or blank \(' '\)"),
        ({"text": "a", "label": " x"}, "'label' is ' x'; labels have no white space around them"),
        ('{"text": "a", "label": "x", "text": "b"}', "gives 'text' twice"),
        ('{"text": "a", "label": ' + "[" * 100_000, "not valid JSON"),
        ({"text": "a", "label": True}, "'label' is a boolean, not a class name"),
        ({"text": "a", "label": 1.5}, "'label' is a number, not a class name"),
        ({"text": "a", "label": ["x"]}, "'label' is a list, not a class name"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(tmp_path: Path, row: object, message: str) -> None:
    path = _write(tmp_path, GOOD, row)
    with pytest.raises(DataError, match=f"train.jsonl line 2: {message}"):
        read_part(_task(path), "train")


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("regression", {"text": "a", "label": "3.5"}, r"is a string \('3.5'\), not a number"),
        ("regression", {"text": "a", "label": True}, "is a boolean"),
        ("regression", {"text": "a", "label": int("9" * 400)}, "is a whole number beyond 1e308"),
        ("regression", {"text": "a", "label": [[1]]}, "is a list, not a number"),
        ("multilabel", {"text": "a", "labels": "x|y"}, "is a string, not a list of labels"),
        ("multilabel", {"text": "a", "labels": ["x", True]}, "item 1 of 'labels' is a boolean, not a class name"),
        ("multilabel", {"text": "a", "labels": ["x", 1.5]}, "item 1 of 'labels' is a number, not a class name"),
        ("multilabel", {"text": "a", "labels": ["x", None]}, "item 1 of 'labels' is null, not a class name"),
        ("multilabel", {"text": "a", "labels": ["x", "x"]}, "repeated label"),
        ("multilabel", {"text": "a", "labels": ["1", 1]}, r"repeated label \(1, 1\)"),
        ("multilabel", {"text": "a", "labels": ["x", ""]}, "item 1 of 'labels' is empty or blank"),
        ("multilabel", {"text": "a", "labels": ["x", "y "]}, "item 1 of 'labels' is 'y '; labels have no white space"),
        ("tagging", {"tokens": "a b", "tags": ["O", "O"]}, "is a string, not a list"),
        ("tagging", {"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags"),
        ("tagging", {"tokens": [], "tags": []}, "'tokens' is empty"),
        ("tagging", {"tokens": ["a", ""], "tags": ["O", "O"]}, r"token 1 of 'tokens' is blank \(''\)"),
        ("tagging", {"tokens": ["\u3000", "a"], "tags": ["O", "O"]}, r"token 0 of 'tokens' is blank \('\\u3000'\)"),
        ("tagging", {"tokens": ["a"], "tags": ["B- x"]}, "tag 0 is 'B- x'; IOB2 allows"),
        ("tagging", {"tokens": ["a", "b"], "tags": ["O", "I-x"]}, "tag 1 is 'I-x' after 'O'"),
        ("tagging", {"tokens": ["a", "b"], "tags": ["B-y", "I-x"]}, "tag 1 is 'I-x' after 'B-y'"),
        ("tagging", {"tokens": ["a"], "tags": ["I-x"]}, "tag 0 is 'I-x' after 'O'"),
        ("tagging", {"tokens": ["a"], "tags": ["x"]}, "tag 0 is 'x'; IOB2 allows"),
        ("tagging", {"tokens": ["a"], "tags": ["B-"]}, "tag 0 is 'B-'; IOB2 allows"),
    ],
)
def test_a_bad_target_is_refused_with_file_and_line(tmp_path: Path, kind: str, row: object, message: str) -> None:
    with pytest.raises(DataError, match=f"line 1: .*{message}"):
        read_part(_task(_write(tmp_path, row), kind=kind), "train")


@pytest.mark.parametrize("cell", ["nan", "inf", "high"])
def test_a_score_that_is_no_finite_number_is_refused(tmp_path: Path, cell: str) -> None:
    path = _write(tmp_path, "text,label", "a,1", f"b,{cell}", name="train.csv")
    with pytest.raises(DataError, match=r"train.csv line 3: 'label' is"):
        read_part(_task(path, kind="regression"), "train")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("text,label", "a,x,y"), "line 2: has 3 fields, the header has 2"),
        (("text,label", '"a\nb",x', "c"), "line 4: has 1 fields"),
        (("text,label,text", "a,x,b"), "line 1: the header names column 'text' 2 times"),
        (("text,label", '"a"b,x'), "line 2: not a valid table"),
        (("text,lable", "a,x"), "line 2: has no column 'label'; did you mean 'lable'"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_part(_task(_write(tmp_path, *lines, name="train.csv")), "train")


def test_bytes_that_are_not_utf8_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"text": "a", "label": "x"}\n{"text": "caf\xe9", "label": "x"}\n')
    with pytest.raises(DataError, match=r"train.jsonl line 2: not UTF-8 \(byte 0xe9 at 13\)"):
        read_part(_task(path), "train")


def test_half_a_gzip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl.gz"
    whole = gzip.compress(b"".join(b'{"text": "a%d", "label": "x"}\n' % number for number in range(500)))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="broken gzip"):
        read_part(_task(path), "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl.gz", b"plain", "broken gzip"),
        ("train.jsonl", b"", "has no rows"),
        ("train.csv", b"text,label\n", "has no rows"),
        ("train.parquet", b"PAR1", "not a readable Parquet file"),
        ("train.json.gz", b"[]", "the ending '.json.gz' is not known"),
        ("train", b"a", "the ending '' is not known"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_part(_task(path), "train")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        read_part(_task(tmp_path / "train.jsonl"), "train")


def test_a_part_that_the_task_lacks_is_refused() -> None:
    with pytest.raises(SpecError, match="task 'sample': has no test data"):
        read_part(_task(None), "test")


def test_a_train_label_that_the_task_file_lacks_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, GOOD, {"text": "a", "label": "spma"})
    with pytest.raises(DataError, match=r"line 2: label 'spma' is none .* did you mean 'spam'"):
        read_part(_task(path, labels=("spam", "x")), "train")


def test_a_train_tag_is_checked_against_the_entity_types_of_the_task_file(tmp_path: Path) -> None:
    path = _write(tmp_path, {"tokens": ["a"], "tags": ["B-per"]}, {"tokens": ["a"], "tags": ["B-loc"]})
    with pytest.raises(DataError, match="line 2: label 'B-loc' is none"):
        read_part(_task(path, kind="tagging", labels=("per",)), "train")


def test_a_dev_label_that_the_task_file_lacks_is_kept(tmp_path: Path) -> None:
    path = _write(tmp_path, {"text": "a", "label": "new"}, name="dev.jsonl")
    assert read_part(_task(path, part="dev", labels=("x", "y")), "dev")[0].target == "new"


def test_a_train_sample_is_seeded_and_keeps_the_order(tmp_path: Path) -> None:
    path = _write(tmp_path, *({"text": f"{number:03}", "label": "x"} for number in range(200)))
    first, second = (read_part(_task(path, rows=20), "train") for _ in range(2))
    texts = [row.text for row in first]
    assert first == second
    assert len(set(texts)) == 20
    assert texts == sorted(texts) != [f"{number:03}" for number in range(20)]


def test_a_sample_larger_than_train_takes_all_rows(tmp_path: Path) -> None:
    assert len(read_part(_task(_write(tmp_path, GOOD, GOOD), rows=5), "train")) == 2


@pytest.mark.parametrize(
    "row",
    [
        '{"text": "label", "label": "text", "note": 1, "note": 2}',
        '{"text": "label", "label": "text", "more": {"text": 1, "text": 2}, "long": ' + "9" * 4000 + "}",
    ],
)
def test_names_that_stand_twice_but_not_as_wanted_keys_are_left_alone(tmp_path: Path, row: str) -> None:
    assert read_part(_task(_write(tmp_path, row)), "train") == [Example(text="label", target="text")]


def test_dev_is_never_sampled(tmp_path: Path) -> None:
    path = _write(tmp_path, GOOD, GOOD, GOOD, name="dev.jsonl")
    assert len(read_part(_task(path, part="dev", rows=1), "dev")) == 3


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Makes data sets that are read as if they lay on the Hub."""
    import datasets

    # `datasets` takes a folder of that name before it asks the Hub.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def make(columns: dict[str, list[Any]], **features: Any) -> str:
        known = datasets.Features({"text": datasets.Value("string"), **features})
        (tmp_path / "owner" / "set").mkdir(parents=True)
        made = datasets.Dataset.from_dict({"text": ["a", "b"], **columns}, features=known)
        made.to_parquet(str(tmp_path / "owner" / "set" / "train.parquet"))
        return "hub:owner/set:train"

    return make


def test_a_hub_data_set_gives_class_names_for_numbers(hub: Callable[..., str]) -> None:
    import datasets

    source = hub({"label": [1, 0]}, label=datasets.ClassLabel(names=["no", "yes"]))
    assert [row.target for row in read_part(_task(source), "train")] == ["yes", "no"]


def test_class_minus_one_of_a_hub_data_set_is_no_label(hub: Callable[..., str]) -> None:
    import datasets

    source = hub({"label": [1, -1]}, label=datasets.ClassLabel(names=["no", "yes"]))
    assert [row.target for row in read_part(_task(source), "train")] == ["yes", None]
    with pytest.raises(DataError, match="hub:owner/set:train row 2: 'label' is null"):
        read_part(_task(None, data=DataSpec(dev=source)), "dev")


def test_lists_of_whole_numbers_of_a_hub_data_set_are_class_names(hub: Callable[..., str]) -> None:
    import datasets

    source = hub({"labels": [[1, 2], []]}, labels=datasets.Sequence(datasets.Value("int64")))
    assert [row.target for row in read_part(_task(source, kind="multilabel"), "train")] == [("1", "2"), ()]


def test_lists_of_classes_of_a_hub_data_set_are_given_their_names(hub: Callable[..., str]) -> None:
    import datasets

    source = hub({"labels": [[1, 0], []]}, labels=datasets.Sequence(datasets.ClassLabel(names=["no", "yes"])))
    assert [row.target for row in read_part(_task(source, kind="multilabel"), "train")] == [("yes", "no"), ()]


def test_a_column_that_a_hub_data_set_lacks_is_named_with_the_nearest_of_all_columns(hub: Callable[..., str]) -> None:
    import datasets

    source = hub({"lable": ["x", "y"]}, lable=datasets.Value("string"))
    with pytest.raises(DataError, match=r"hub:owner/set:train: has no column 'label'; did you mean 'lable'\?"):
        read_part(_task(source), "train")


@pytest.mark.parametrize("source", ["hub:squad", "hub::train", "hub:a/b/c/d:train", "hub:a//b:train"])
def test_a_hub_name_of_another_form_is_refused(source: str) -> None:
    with pytest.raises(DataError, match="not a Hub data set; write hub:NAME:SPLIT"):
        read_part(_task(source), "train")


def test_a_hub_data_set_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(DataError, match=r"hub:trunkline/absent:train: .* HF_HUB_OFFLINE"):
        read_part(_task("hub:trunkline/absent:train"), "train")


def test_inputs_are_read_without_targets() -> None:
    lines = [b'{"text": "a", "id": 7}', b'{"text": "a", "text_pair": "b"}', b'{"tokens": ["a", "b"], "text": null}']
    assert list(read_inputs(lines, "input")) == [
        Example(text="a"),
        Example(text="a", text_pair="b"),
        Example(text="a b", word_spans=((0, 1), (2, 3))),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"x", "not valid JSON"),
        (b"3", "holds a number, not a JSON object"),
        (b'{"txt": "a"}', "has no column 'text'; did you mean 'txt'"),
        (b'{"text": ""}', "'text' is empty"),
        (b'{"text": "a", "tokens": ["a"]}', "has both text and tokens"),
        (b'{"tokens": "a"}', "is a string, not a list"),
        (b'{"text": "\\ud800"}', "not valid JSON"),
        (b'{"text": "a", "text": "b"}', "gives 'text' twice"),
        (b'{"text": ' + b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_bad_input_is_refused_with_its_line(line: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"standard input line 2: .*{message}"):
        list(read_inputs([b'{"text": "a"}', line], "standard input"))


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "changes", "n_rows"),
    [
        ("glue_mrpc", {"input": "pair"}, 408),
        ("glue_stsb", {"kind": "regression", "input": "pair"}, 1500),
        ("goemotions", {"kind": "multilabel"}, 5426),
        ("snips_slots", {"kind": "tagging"}, 700),
        ("weibo_ner_zh", {"kind": "tagging"}, 270),
    ],
)
def test_real_sets_are_read_whole(shared_data: Path, name: str, changes: dict[str, Any], n_rows: int) -> None:
    task = _task(shared_data / name / "dev.jsonl.gz", part="dev", **changes)
    assert len(read_part(task, "dev")) == n_rows


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("classification", {"text": "play"}, Example("play")),
        ("classification", {"text": "play", "label": 3.5}, Example("play")),
        ("multilabel", {"text": "play", "labels": None}, Example("play")),
        ("regression", {"text": "play", "label": "not a score"}, Example("play")),
        ("tagging", {"tokens": ["to", "york"]}, Example("to york", word_spans=((0, 2), (3, 7)))),
        ("tagging", {"tokens": ["to"], "tags": ["B-x", "I-y"]}, Example("to", word_spans=((0, 2),))),
    ],
    ids=str,
)
def test_unlabelled_rows_are_read_without_a_look_at_their_labels(
    tmp_path: Path, kind: str, row: object, expected: Example
) -> None:
    path = _write(tmp_path, row)
    assert read_unlabelled(_task(None, kind=kind), str(path)) == [expected]


def test_unlabelled_cells_of_a_table_become_words(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("tokens\nto new york\n")
    (row,) = read_unlabelled(_task(None, kind="tagging"), str(tmp_path / "rows.csv"))
    assert (row.text, len(row.word_spans or ())) == ("to new york", 3)


def test_unlabelled_rows_of_another_input_form_are_refused_with_file_and_line(tmp_path: Path) -> None:
    path = _write(tmp_path, {"text": "play"})
    with pytest.raises(DataError, match=r"train.jsonl line 1: has no column 'text_pair'"):
        read_unlabelled(_task(None, input="pair"), str(path))


def test_a_file_without_unlabelled_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no rows; at least one is needed"):
        read_unlabelled(_task(None), str(_write(tmp_path)))
