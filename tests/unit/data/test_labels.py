"""Labels and their order."""

from typing import Any

import pytest

from trunkline.core.errors import DataError, SpecError, UnknownNameError
from trunkline.core.specs import TaskSpec
from trunkline.core.types import Example, Target
from trunkline.data.labels import entity_types, label_index, labels_of, listed_labels, unseen_labels


def _task(**changes: Any) -> TaskSpec:
    return TaskSpec(**({"name": "sample", "kind": "classification"} | changes))


def _rows(*targets: Target) -> list[Example]:
    return [Example(text="x", target=target) for target in targets]


def test_labels_of_the_task_file_keep_their_order() -> None:
    assert labels_of(_task(labels=("no", "yes", "maybe")), _rows("yes")) == ("no", "yes", "maybe")


def test_labels_read_from_train_are_sorted() -> None:
    assert labels_of(_task(), _rows("b", "c", "a", "b")) == ("a", "b", "c")


def test_multilabel_labels_read_from_train_are_sorted() -> None:
    assert labels_of(_task(kind="multilabel"), _rows(("z", "a"), (), ("m",))) == ("a", "m", "z")


def test_tags_read_from_train_begin_with_o_and_have_both_prefixes() -> None:
    rows = _rows(("B-per", "O"), ("B-loc", "I-loc"))
    assert labels_of(_task(kind="tagging"), rows) == ("O", "B-loc", "I-loc", "B-per", "I-per")


def test_entity_types_of_the_task_file_become_tags_in_their_order() -> None:
    assert labels_of(_task(kind="tagging", labels=("per", "loc")), []) == ("O", "B-per", "I-per", "B-loc", "I-loc")


def test_tags_of_the_task_file_stay_as_they_are() -> None:
    assert listed_labels(_task(kind="tagging", labels=("B-x", "I-x", "O"))) == ("B-x", "I-x", "O")


@pytest.mark.parametrize(
    "labels", [("B-x", "I-x"), ("O", "I-x"), ("O", "B-x", "person"), ("O", "B-"), ("O", "B- x"), ("B-", "I-")]
)
def test_tags_of_the_task_file_that_make_no_set_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(SpecError, match=r"task 'sample': labels"):
        listed_labels(_task(kind="tagging", labels=labels))


def test_regression_has_no_labels() -> None:
    assert labels_of(_task(kind="regression"), _rows(1.0)) == ()


@pytest.mark.parametrize(("kind", "target"), [("classification", "only"), ("multilabel", ()), ("tagging", ("O", "O"))])
def test_train_with_too_few_labels_is_refused(kind: str, target: Target) -> None:
    with pytest.raises(DataError, match="at least"):
        labels_of(_task(kind=kind), _rows(target))


def test_a_task_file_with_too_few_labels_is_refused() -> None:
    with pytest.raises(SpecError, match="the task file lists 1 labels"):
        labels_of(_task(labels=("only",)), [])


def test_an_unknown_positive_label_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'spam'"):
        labels_of(_task(metric="f1_binary", positive_label="spma"), _rows("ham", "spam"))


def test_labels_that_train_lacks_are_counted() -> None:
    assert unseen_labels(("a", "b"), _rows("a", "d", "c", "d")) == {"c": 1, "d": 2}


def test_tags_that_train_lacks_are_counted_by_word() -> None:
    assert unseen_labels(("O", "B-x", "I-x"), _rows(("B-y", "I-y", "I-y", "O"), ("B-x",))) == {"B-y": 1, "I-y": 2}


def test_scores_and_missing_targets_have_no_unseen_labels() -> None:
    assert unseen_labels((), [Example(text="x", target=1.5), Example(text="y")]) == {}


def test_label_index_gives_columns() -> None:
    assert label_index(("b", "a")) == {"b": 0, "a": 1}


def test_entity_types_keep_hyphens() -> None:
    assert entity_types(("O", "B-a-b", "I-a-b", "B-PER.NOM")) == ("PER.NOM", "a-b")
