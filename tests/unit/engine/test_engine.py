from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_bundles import TASKS, TEXTS, backbone_of, make_bundle, put_branch
from trunkline.bundle.merge import merge
from trunkline.core.errors import DataError, DigestMismatchError, NonFiniteError, SpecError, UnknownNameError
from trunkline.core.types import Example, LabelPrediction, LabelsPrediction, ScorePrediction, SpansPrediction
from trunkline.engine.engine import Engine

TEXT_TASKS = tuple(task for task in TASKS if task != "same")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.open(make_bundle(tmp_path_factory.mktemp("bundles"), *TASKS).path)


def test_an_engine_knows_its_tasks(engine: Engine) -> None:
    assert tuple(engine.specs) == TASKS
    assert engine.spec("intent").labels == ("book", "music", "weather")


def test_every_text_task_answers_a_text_with_its_kind_of_answer(engine: Engine) -> None:
    (found,) = engine.predict(["play a song in new york"])
    assert tuple(found) == TEXT_TASKS
    assert {task: type(prediction) for task, prediction in found.items()} == {
        "intent": LabelPrediction,
        "mood": LabelPrediction,
        "slots": SpansPrediction,
        "topics": LabelsPrediction,
        "urgency": ScorePrediction,
    }


def test_a_single_text_in_the_place_of_a_list_is_refused(engine: Engine) -> None:
    with pytest.raises(DataError, match="'wake me': is a single text; a list of texts is taken"):
        engine.predict("wake me")


def test_every_pair_task_answers_a_pair(engine: Engine) -> None:
    (found,) = engine.predict([Example(text="play a song", text_pair="music please")])
    assert tuple(found) == ("same",)


def test_texts_and_pairs_may_be_mixed(engine: Engine) -> None:
    found = engine.predict([Example(text="no"), Example(text="no", text_pair="yes"), Example(text="yes")])
    assert [tuple(answers) for answers in found] == [TEXT_TASKS, ("same",), TEXT_TASKS]


def test_only_the_tasks_asked_answer_in_the_order_asked(engine: Engine) -> None:
    assert [tuple(found) for found in engine.predict(TEXTS, tasks=("topics", "intent"))] == [("topics", "intent")] * 6


def test_no_texts_get_no_answers(engine: Engine) -> None:
    assert engine.predict([]) == []


def test_no_tasks_get_no_answers(engine: Engine) -> None:
    assert engine.predict(["no"], tasks=()) == [{}]


def test_a_task_named_twice_answers_once(engine: Engine) -> None:
    assert engine.predict(["no"], tasks=("intent", "intent")) == engine.predict(["no"], tasks=("intent",))


def test_an_unknown_task_names_the_nearest(engine: Engine) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'intent'"):
        engine.predict(["no"], tasks=("intend",))


def test_a_pair_task_asked_about_a_text_is_refused(engine: Engine) -> None:
    with pytest.raises(DataError, match="input 0: is a single text; task 'same' takes pairs; give text_pair with"):
        engine.predict(["no"], tasks=("same",))


def test_a_text_task_asked_about_a_pair_is_refused(engine: Engine) -> None:
    with pytest.raises(DataError, match="input 1: is a pair; task 'intent' takes single texts; remove text_pair or"):
        engine.predict([Example(text="no"), Example(text="no", text_pair="yes")], tasks=("intent",))


def test_answers_do_not_depend_on_the_size_of_batches(engine: Engine) -> None:
    # More rows than one batch takes, so that the first three have other mates and padding than alone.
    texts = TEXTS * (32 // len(TEXTS) + 1)
    longer = [f"{text} {'yes ' * (number % 7)}" for number, text in enumerate(texts)]
    for task in TEXT_TASKS:
        for one, other in zip(engine.logits(longer, task)[:3], engine.logits(longer[:3], task), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_answers_come_back_in_the_order_of_the_texts(engine: Engine) -> None:
    together = engine.logits(TEXTS, "intent")
    for text, logits in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(engine.logits([text], "intent")[0], logits, atol=1e-4)


def test_logits_of_a_tagger_have_one_line_a_token_and_none_for_padding(engine: Engine) -> None:
    rows = engine.tokenizer.encode([Example(text=text) for text in TEXTS], max_length=32)
    assert [len(logits) for logits in engine.logits(TEXTS, "slots")] == [len(row.token_ids) for row in rows]


def test_the_answer_of_a_classifier_is_a_distribution(engine: Engine) -> None:
    found = engine.predict(["play a song"], tasks=("intent",))[0]["intent"]
    assert isinstance(found, LabelPrediction)
    assert tuple(found.probabilities) == ("book", "music", "weather")
    assert sum(found.probabilities.values()) == pytest.approx(1.0)
    assert found.confidence == max(found.probabilities.values())


def test_a_score_is_in_the_unit_of_the_data(engine: Engine) -> None:
    found = engine.predict(["play a song"], tasks=("urgency",))[0]["urgency"]
    assert isinstance(found, ScorePrediction)
    assert found.score == pytest.approx(float(engine.logits(["play a song"], "urgency")[0][0]) + 3.0, abs=1e-5)


def test_spans_lie_in_the_text(engine: Engine) -> None:
    for text, found in zip(TEXTS, engine.predict(TEXTS, tasks=("slots",)), strict=True):
        spans = found["slots"]
        assert isinstance(spans, SpansPrediction)
        assert all(text[span.start : span.end] == span.text for span in spans.spans)


def test_tagging_takes_the_words_it_is_given(engine: Engine) -> None:
    example = Example(text="new york city", word_spans=((0, 8), (9, 13)))
    assert len(engine.answers([example], "slots")[0]) == 2  # type: ignore[arg-type]
    assert len(engine.answers(["new york city"], "slots")[0]) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "   "])
def test_a_text_without_words_has_no_spans(engine: Engine, text: str) -> None:
    found = engine.predict([text], tasks=("slots", "intent"))[0]
    assert found["slots"] == SpansPrediction(spans=())
    assert engine.answers([text], "slots") == [()]


def test_words_that_are_cut_away_are_outside(engine: Engine) -> None:
    tags = engine.answers(["yes " * 50], "slots")[0]
    assert isinstance(tags, tuple)
    assert len(tags) == 50
    assert set(tags[30:]) == {"O"}


def test_truncated_texts_are_counted(engine: Engine) -> None:
    texts = ["yes " * 50, "yes", "no " * 31]
    assert engine.answers_counted(texts, "intent")[1] == 2
    assert engine.predict_counted(texts, tasks=("intent",)).n_truncated == {"intent": 2}


def test_texts_with_equal_token_ids_share_a_row(engine: Engine) -> None:
    rows: list[int] = []
    hook = engine.runner.trunk.layers[0].register_forward_hook(lambda _m, inputs, _o: rows.append(len(inputs[0])))
    found = engine.predict(["paris", "PARIS", "  paris"], tasks=("intent", "slots"))
    hook.remove()
    assert rows == [1]
    assert found[0]["intent"] == found[1]["intent"] == found[2]["intent"]


def test_texts_that_share_a_row_keep_their_own_offsets(tmp_path: Path) -> None:
    engine = Engine.open(make_bundle(tmp_path, "slots").path)
    bias = engine.runner.branches["slots"].head.output.bias
    bias.copy_(torch.tensor([0.0, 1e3, 0.0]))  # Every word begins a city.
    found = engine.predict(["paris", "PARIS", "  paris"])
    spans = [[(s.start, s.end, s.text) for s in answers["slots"].spans] for answers in found]  # type: ignore[union-attr]
    assert spans == [[(0, 5, "paris")], [(0, 5, "PARIS")], [(2, 7, "paris")]]


def test_tasks_of_different_max_length_share_a_row_unless_it_is_cut(tmp_path: Path) -> None:
    backbone = backbone_of()
    folders = [
        put_branch(tmp_path / "a", "intent", backbone, max_length=16),
        put_branch(tmp_path / "b", "mood", backbone, max_length=32),
    ]
    engine = Engine.open(merge(folders, backbone, tmp_path / "bundle").path)
    rows: list[tuple[int, ...]] = []
    hook = engine.runner.trunk.layers[0].register_forward_hook(
        lambda _module, inputs, _output: rows.append(tuple(inputs[0].shape[:2]))
    )
    engine.predict(["yes " * 10])
    assert rows == [(1, 12)]
    rows.clear()
    engine.predict(["yes " * 20])
    hook.remove()
    assert rows == [(2, 22)]
    assert engine.predict_counted(["yes " * 20]).n_truncated == {"intent": 1, "mood": 0}


def test_a_short_task_gets_the_answer_it_gives_alone(tmp_path: Path) -> None:
    backbone = backbone_of()
    folders = [
        put_branch(tmp_path / "a", "intent", backbone, max_length=16),
        put_branch(tmp_path / "b", "slots", backbone, max_length=32),
    ]
    both = Engine.open(merge(folders, backbone, tmp_path / "both").path)
    alone = Engine.open(merge(folders[:1], backbone, tmp_path / "alone").path)
    texts = ["yes " * 20, "no"]
    for one, other in zip(both.predict(texts), alone.predict(texts), strict=True):
        assert one["intent"].label == other["intent"].label  # type: ignore[union-attr]
        assert one["intent"].confidence == pytest.approx(other["intent"].confidence, abs=1e-5)  # type: ignore[union-attr]


def test_an_answer_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    engine = Engine.open(make_bundle(tmp_path, "intent").path)
    engine.runner.branches["intent"].head.output.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="intent"):
        engine.predict(["no"])


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nonsense"):
        Engine.open(make_bundle(tmp_path, "intent").path, device="nonsense")


def damage(bundle: Path, task: str) -> None:
    (weights,) = (bundle / "branches" / task).rglob("branch.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def test_a_damaged_branch_is_no_hindrance_to_tasks_opened_without_it(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "intent", "mood")
    before = Engine.open(bundle.path).predict(TEXTS, tasks=("intent",))
    damage(bundle.path, "mood")
    with pytest.raises(DigestMismatchError):
        Engine.open(bundle.path)
    engine = Engine.open(bundle.path, tasks=("intent",))
    assert [answers["intent"].label for answers in engine.predict(TEXTS)] == [  # type: ignore[union-attr]
        answers["intent"].label
        for answers in before  # type: ignore[union-attr]
    ]
    assert len(engine.runner.trunk.layers) == 1


def test_an_unknown_task_to_open_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'intent'"):
        Engine.open(make_bundle(tmp_path, "intent").path, tasks=("intend",))
