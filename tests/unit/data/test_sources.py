"""Raw rows out of sources; what their formats say is tested with `trunkline.data.read`."""

import pytest

from trunkline.core.errors import DataError
from trunkline.data.sources import _class_reader, is_table, read_rows


def test_a_hub_data_set_that_is_read_by_a_script_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found set.py")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"hub:owner/set:train: .*scripts are no longer supported"):
        next(read_rows("hub:owner/set:train", ("text",)))


@pytest.mark.parametrize(
    ("source", "expected"),
    [("a.csv", True), ("a.tsv.gz", True), ("a.jsonl", False), ("a.csv.parquet", False), ("hub:a/b:x.csv", False)],
)
def test_csv_and_tsv_are_tables(source: str, expected: bool) -> None:
    assert is_table(source) == expected


@pytest.mark.parametrize("number", [2, -2])
def test_a_class_that_a_hub_data_set_has_no_name_for_is_refused_with_its_row(number: int) -> None:
    import datasets

    # `datasets` checks what it writes, so such a number comes only from a file that something else has written.
    read = _class_reader(datasets.ClassLabel(names=["no", "yes"]))
    with pytest.raises(DataError, match=f"row 7: 'label' is class {number}; the data set has 0..1"):
        read(number, "label", "hub:owner/set:train row 7")
