import numpy as np
import pytest

from tests.tiny_bundles import backbone_of, branch_spec
from trunkline.core.errors import DataError, NonFiniteError
from trunkline.core.specs import Calibration
from trunkline.core.types import Example, Target
from trunkline.model.score import answer, score_predictions


def rows(*targets: Target | None) -> list[Example]:
    return [Example(text="t", target=target) for target in targets]


def test_a_classification_answer_is_the_most_probable_label() -> None:
    assert answer(np.float32([0.1, 2.0, -1.0]), branch_spec("intent", backbone_of())) == "music"


def test_a_branch_that_abstains_is_judged_by_its_best_label() -> None:
    branch = branch_spec("intent", backbone_of(), calibration=Calibration(abstain_below=0.99))
    assert answer(np.float32([0.1, 0.2, 0.0]), branch) == "music"


def test_a_multilabel_answer_uses_the_thresholds_of_the_branch() -> None:
    logits = np.float32([0.5, -0.5, 3.0])
    assert answer(logits, branch_spec("topics", backbone_of())) == ("food", "travel")
    branch = branch_spec("topics", backbone_of(), calibration=Calibration(thresholds=(0.9, 0.3, 0.9)))
    assert answer(logits, branch) == ("news", "travel")


def test_a_score_is_in_the_unit_of_the_data() -> None:
    branch = branch_spec("urgency", backbone_of(), score_mean=3.0, score_std=2.0)
    assert answer(np.float32([1.5]), branch) == pytest.approx(6.0)


def test_a_word_without_a_token_is_outside() -> None:
    branch = branch_spec("slots", backbone_of())
    logits = np.float32([[0, 5, 0], [0, 0, 5]])
    assert answer(logits, branch, np.array([1, 2, -1])) == ("B-city", "I-city", "O")


def test_a_word_inside_the_token_before_continues_its_span() -> None:
    branch = branch_spec("slots", backbone_of())
    logits = np.float32([[0, 5, 0], [5, 0, 0]])
    assert answer(logits, branch, np.array([1, -2, 2, -2])) == ("B-city", "I-city", "O", "O")


def test_tags_that_no_span_can_have_are_not_answered() -> None:
    branch = branch_spec("slots", backbone_of())
    tags = answer(np.float32([[5, 0, 4], [0, 1, 5]]), branch, np.array([1, 2]))
    assert tags in {("O", "B-city"), ("B-city", "I-city")}


def test_tagging_without_positions_is_refused() -> None:
    with pytest.raises(DataError, match="no word positions"):
        answer(np.zeros((1, 3), np.float32), branch_spec("slots", backbone_of()))


@pytest.mark.parametrize("task", ["intent", "slots"])
def test_an_answer_from_nan_is_refused(task: str) -> None:
    branch = branch_spec(task, backbone_of())
    logits = np.full((1, 3) if task == "slots" else 3, np.nan, np.float32)
    with pytest.raises(NonFiniteError, match=task):
        answer(logits, branch, np.array([1]))


def test_classification_is_scored_by_its_metric() -> None:
    branch = branch_spec("intent", backbone_of())
    assert score_predictions(branch, ["book", "music"], rows("book", "weather")) == pytest.approx(50.0)


def test_multilabel_is_scored_by_its_metric() -> None:
    branch = branch_spec("topics", backbone_of())
    points = score_predictions(branch, [("food",), ("food", "news")], rows(("food",), ("news",)))
    assert points == pytest.approx(100 * 2 * 2 / (2 * 2 + 1))


def test_regression_is_scored_by_its_metric() -> None:
    branch = branch_spec("urgency", backbone_of())
    assert score_predictions(branch, [1.0, 2.0, 3.0], rows(10.0, 20.0, 30.0)) == pytest.approx(100.0)


def test_tagging_is_scored_by_spans() -> None:
    branch = branch_spec("slots", backbone_of())
    points = score_predictions(branch, [("B-city", "O"), ("O", "O")], rows(("B-city", "O"), ("O", "B-city")))
    assert points == pytest.approx(100 * 2 / 3)


def test_a_row_without_a_target_is_not_scored() -> None:
    with pytest.raises(DataError, match="row 1 has no target"):
        score_predictions(branch_spec("intent", backbone_of()), ["book", "book"], rows("book", None))


def test_predictions_must_be_as_many_as_rows() -> None:
    with pytest.raises(DataError, match="1 predictions for 2 rows"):
        score_predictions(branch_spec("intent", backbone_of()), ["book"], rows("book", "book"))
