import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.tiny_bundles import TASKS, TEXTS, backbone_of, make_branch, make_bundle, put_branch
from tests.tiny_engines import encoded, executed, open_fp32
from trunkline.bundle.golden import Golden
from trunkline.bundle.merge import attach, detach, merge, replace
from trunkline.bundle.store import Bundle, open_bundle, write_branch
from trunkline.core.errors import (
    ClosedError,
    DataError,
    DeadlineError,
    DigestMismatchError,
    NonFiniteError,
    QueueFullError,
    UnknownNameError,
    VerificationError,
)
from trunkline.core.types import Example, LabelPrediction, LabelsPrediction, ScorePrediction, SpansPrediction
from trunkline.engine.engine import EXAMPLES_PER_REQUEST, Engine, TaskAnswer
from trunkline.engine.request import Part, Request
from trunkline.engine.scheduler import Limits

TEXT_TASKS = tuple(task for task in TASKS if task != "same")
SMALL = Limits(batch_tokens=64, batch_rows=16, queued_rows=1000, queued_tokens=100_000)
"""Of a step, so that few shapes are warmed when a branch is activated."""
Open = Callable[..., Engine]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with open_fp32(make_bundle(tmp_path_factory.mktemp("bundles"), *TASKS).path) as opened:
        yield opened


def bundle_of(folder: Path, task: str, **tensors: Any) -> Bundle:
    """One task, some of whose tensors are other ones; its golden answers are left as they were."""
    return merge([put_changed(folder / "run", task, **tensors)], backbone_of(), folder / "bundle")


def put_changed(folder: Path, task: str, *, golden: Golden | None = None, **tensors: Any) -> Path:
    made = make_branch(task, backbone_of())
    renamed = {name.replace("__", "."): np.asarray(value, np.float32) for name, value in tensors.items()}
    write_branch(folder, made.spec, made.tensors | renamed, golden or made.golden)
    return folder


@contextmanager
def held(engine: Engine) -> Iterator[None]:
    """Keep the engine's thread in the middle of a step; what is asked meanwhile waits."""
    running, let_go = threading.Event(), threading.Event()

    def deliver(event: object) -> None:
        if isinstance(event, Part):
            running.set()
            assert let_go.wait(30)

    snapshot = engine.snapshot
    first = next(iter(snapshot.branches.values()))
    engine.loop.submit(Request(snapshot.trunk, encoded("stop"), {first: np.arange(1)}, deliver=deliver))
    assert running.wait(30)
    try:
        yield
    finally:
        let_go.set()


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
    rows = engine.snapshot.trunk.tokenizer.encode([Example(text=text) for text in TEXTS], max_length=32)
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


def test_texts_with_equal_token_ids_share_a_row(tmp_path: Path, open_engine: Open) -> None:
    engine = open_engine(make_bundle(tmp_path, "intent", "slots").path, name="torch")
    with executed() as seen:
        found = engine.predict(["paris", "PARIS", "  paris"], tasks=("intent", "slots"))
    assert seen.n_rows == 1
    assert found[0]["intent"] == found[1]["intent"] == found[2]["intent"]


def test_texts_that_share_a_row_keep_their_own_offsets(tmp_path: Path, open_engine: Open) -> None:
    # Every word begins a city.
    engine = open_engine(bundle_of(tmp_path, "slots", head__output__bias=[0.0, 1e3, 0.0]).path)
    found = engine.predict(["paris", "PARIS", "  paris"])
    spans = [[(s.start, s.end, s.text) for s in answers["slots"].spans] for answers in found]  # type: ignore[union-attr]
    assert spans == [[(0, 5, "paris")], [(0, 5, "PARIS")], [(2, 7, "paris")]]


def test_tasks_of_different_max_length_share_a_row_unless_it_is_cut(tmp_path: Path, open_engine: Open) -> None:
    backbone = backbone_of()
    folders = [
        put_branch(tmp_path / "a", "intent", backbone, max_length=16),
        put_branch(tmp_path / "b", "mood", backbone, max_length=32),
    ]
    engine = open_engine(merge(folders, backbone, tmp_path / "bundle").path, name="torch")
    with executed() as seen:
        engine.predict(["yes " * 10])
    assert seen.n_rows == 1
    with executed() as seen:
        engine.predict(["yes " * 20])
    assert seen.n_rows == 2
    assert engine.predict_counted(["yes " * 20]).n_truncated == {"intent": 1, "mood": 0}


def test_a_short_task_gets_the_answer_it_gives_alone(tmp_path: Path, open_engine: Open) -> None:
    backbone = backbone_of()
    folders = [
        put_branch(tmp_path / "a", "intent", backbone, max_length=16),
        put_branch(tmp_path / "b", "slots", backbone, max_length=32),
    ]
    both = open_engine(merge(folders, backbone, tmp_path / "both").path)
    alone = open_engine(merge(folders[:1], backbone, tmp_path / "alone").path)
    texts = ["yes " * 20, "no"]
    for one, other in zip(both.predict(texts), alone.predict(texts), strict=True):
        assert one["intent"].label == other["intent"].label  # type: ignore[union-attr]
        assert one["intent"].confidence == pytest.approx(other["intent"].confidence, abs=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_an_answer_that_is_not_finite_is_refused_and_other_tasks_are_not(
    tmp_path: Path, open_engine: Open, name: str
) -> None:
    folders = [
        put_changed(
            tmp_path / "a", "intent", head__pooler__bias=np.full(16, 1e3), head__output__weight=np.full((3, 16), 3e38)
        ),
        put_branch(tmp_path / "b", "slots", backbone_of()),
    ]
    engine = open_engine(merge(folders, backbone_of(), tmp_path / "bundle").path, name=name)
    with pytest.raises(NonFiniteError, match="task 'intent': a logit is NaN or infinite"):
        engine.predict(["no"])
    assert set(engine.predict(["no"], tasks=("slots",))[0]) == {"slots"}


def damage(bundle: Path, task: str) -> None:
    (weights,) = (bundle / "branches" / task).rglob("branch.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def test_a_damaged_branch_is_no_hindrance_to_tasks_opened_without_it(tmp_path: Path, open_engine: Open) -> None:
    bundle = make_bundle(tmp_path, "intent", "mood")
    before = open_engine(bundle.path).predict(TEXTS, tasks=("intent",))
    damage(bundle.path, "mood")
    with pytest.raises(DigestMismatchError):
        open_engine(bundle.path)
    engine = open_engine(bundle.path, tasks=("intent",))
    for answers, expected in zip(engine.predict(TEXTS), before, strict=True):
        assert answers["intent"].label == expected["intent"].label  # type: ignore[union-attr]
    assert engine.snapshot.trunk.segments[-1].stop == 1


def test_an_unknown_task_to_open_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'intent'"):
        Engine.open(make_bundle(tmp_path, "intent").path, tasks=("intend",))


def test_more_texts_than_one_request_takes_keep_their_order(engine: Engine) -> None:
    texts = [f"{number} songs" for number in range(EXAMPLES_PER_REQUEST + 5)]
    found = engine.logits(texts, "urgency")
    assert len(found) == len(texts)
    for number in (0, 3, EXAMPLES_PER_REQUEST - 1, EXAMPLES_PER_REQUEST, len(texts) - 1):
        np.testing.assert_allclose(engine.logits([texts[number]], "urgency")[0], found[number], atol=1e-4)


def test_warming_changes_no_answer(tmp_path: Path, open_engine: Open) -> None:
    engine = open_engine(make_bundle(tmp_path, "intent", "slots").path, limits=SMALL)
    before = [logits.tobytes() for logits in engine.logits(TEXTS, "slots")]
    engine.warm()
    assert [logits.tobytes() for logits in engine.logits(TEXTS, "slots")] == before


def test_a_text_that_is_asked_again_is_answered_from_the_cache(tmp_path: Path, open_engine: Open) -> None:
    engine = open_engine(make_bundle(tmp_path, "intent", "slots").path, name="torch", cache_bytes=1_000_000)
    first = engine.predict(TEXTS)
    with executed() as seen:
        assert engine.predict(TEXTS) == first
    assert not seen.n_rows


def test_a_request_that_can_never_fit_is_refused(tmp_path: Path, open_engine: Open) -> None:
    engine = open_engine(make_bundle(tmp_path, "urgency").path, limits=changed(SMALL, queued_rows=2))
    with pytest.raises(QueueFullError, match="3 rows"):
        engine.predict(["a", "b", "c"])
    assert len(engine.predict(["a", "b"])) == 2


def test_a_closed_engine_refuses_and_can_be_closed_again(tmp_path: Path) -> None:
    engine = open_fp32(make_bundle(tmp_path, "urgency").path)
    engine.close()
    with pytest.raises(ClosedError, match="engine: is closed"):
        engine.predict(["no"])
    engine.close()


def test_closing_fails_what_waits(tmp_path: Path) -> None:
    engine = open_fp32(make_bundle(tmp_path, "urgency").path)
    with held(engine):
        waiting = engine.stream(["no"])
        closer = threading.Thread(target=engine.close)
        closer.start()
        while not engine.loop._closing:
            time.sleep(0.001)
    closer.join(30)
    with pytest.raises(ClosedError, match="closed before the request was answered"):
        list(waiting)


# Streams


def by_place(answers: list[TaskAnswer]) -> dict[tuple[int, str], Any]:
    return {(each.index, each.task): each.prediction for each in answers}


def test_a_stream_gives_what_predict_gives(engine: Engine) -> None:
    streamed = list(engine.stream(TEXTS))
    assert len(streamed) == len(TEXTS) * len(TEXT_TASKS)
    expected = engine.predict(TEXTS)
    assert by_place(streamed) == {
        (index, task): prediction for index, row in enumerate(expected) for task, prediction in row.items()
    }


def test_a_stream_gives_answers_of_the_lowest_exits_first(engine: Engine) -> None:
    exits = [engine.spec(each.task).exit_layer for each in engine.stream(TEXTS)]
    assert exits == sorted(exits)
    assert set(exits) == {0, 1, 2}


def test_a_streamed_answer_says_who_gave_it_and_what_it_took(engine: Engine) -> None:
    for each in engine.stream(["yes " * 50], tasks=("slots", "topics")):
        branch = engine.snapshot.branches[each.task]
        assert (each.version, each.label_schema_version) == (branch.digest, branch.spec.label_schema_version)
        assert each.truncated
        assert min(each.queued_s, each.trunk_s, each.branch_s) >= 0
        assert each.branch_s > 0


def test_the_first_answer_is_there_while_deeper_layers_have_not_run(tmp_path: Path, open_engine: Open) -> None:
    engine = open_engine(make_bundle(tmp_path, "topics", "slots").path, name="torch")
    let_go = threading.Event()
    (segment,) = engine.snapshot.trunk.segments
    run = segment.run

    class Waiting:
        def __call__(self, *inputs: Any) -> Any:
            assert let_go.wait(30)
            return run(*inputs)

        def twin(self) -> Any:
            return self

    engine._snapshot = changed(
        engine.snapshot, trunk=changed(engine.snapshot.trunk, segments=(changed(segment, run=Waiting()),))
    )
    stream = engine.stream(["no"])
    assert next(stream).task == "topics"
    let_go.set()
    assert [each.task for each in stream] == ["slots"]


def test_a_stream_refuses_at_once_what_cannot_be_asked(engine: Engine) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'intent'"):
        engine.stream(["no"], tasks=("intend",))
    with pytest.raises(DataError, match="takes pairs"):
        engine.stream(["no"], tasks=("same",))


def test_a_stream_that_is_closed_early_is_cancelled(tmp_path: Path, open_engine: Open) -> None:
    limits = changed(SMALL, batch_rows=1)
    engine = open_engine(make_bundle(tmp_path, "urgency").path, limits=limits)
    ran: list[int] = []
    closed = threading.Event()
    run = engine.loop._runner.run

    def waiting(*inputs: Any) -> Any:
        ran.append(len(inputs[1]))
        if len(ran) > 1:
            assert closed.wait(30)
        return run(*inputs)

    engine.loop._runner.run = waiting  # type: ignore[method-assign, assignment]
    stream = engine.stream([f"{number} songs" for number in range(50)])
    with closing(stream):  # type: ignore[type-var]
        next(stream)
    closed.set()
    assert not engine.loop._waiting
    assert engine.predict(["no"])
    assert sum(ran) <= 3


def test_a_time_that_is_over_in_the_queue_ends_the_stream(engine: Engine) -> None:
    with held(engine):
        stream = engine.stream(TEXTS, timeout_s=0.005)
        time.sleep(0.01)
    with pytest.raises(DeadlineError, match="not answered before its deadline"):
        list(stream)


def test_no_time_at_all_is_refused(engine: Engine) -> None:
    with pytest.raises(DeadlineError):
        list(engine.stream(TEXTS, timeout_s=0.0))


def test_enough_time_changes_nothing(engine: Engine) -> None:
    assert by_place(list(engine.stream(TEXTS, timeout_s=60.0))) == by_place(list(engine.stream(TEXTS)))


async def collected(engine: Engine, **options: Any) -> list[TaskAnswer]:
    return [each async for each in engine.astream(TEXTS, **options)]


def test_an_asynchronous_stream_gives_what_predict_gives_lowest_exits_first(engine: Engine) -> None:
    streamed = asyncio.run(collected(engine))
    assert by_place(streamed) == by_place(list(engine.stream(TEXTS)))
    exits = [engine.spec(each.task).exit_layer for each in streamed]
    assert exits == sorted(exits)


def test_an_asynchronous_stream_does_not_block_the_event_loop(engine: Engine) -> None:
    async def run() -> list[TaskAnswer]:
        with held(engine):
            waiting = asyncio.create_task(collected(engine))
            for _ in range(5):
                await asyncio.sleep(0.002)
            assert not waiting.done()
        return await waiting

    assert len(asyncio.run(run())) == len(TEXTS) * len(TEXT_TASKS)


def test_an_asynchronous_stream_that_is_given_up_is_cancelled(engine: Engine) -> None:
    async def run() -> int:
        with held(engine):
            waiting = asyncio.create_task(collected(engine))
            await asyncio.sleep(0.01)
            assert engine.loop._waiting
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            return len(engine.loop._waiting)

    assert asyncio.run(run()) == 0


def test_an_asynchronous_stream_ends_with_the_error_that_a_stream_ends_with(engine: Engine) -> None:
    with pytest.raises(DeadlineError):
        asyncio.run(collected(engine, timeout_s=0.0))


def test_a_stream_that_nobody_reads_is_cancelled(engine: Engine) -> None:
    async def ask() -> None:
        engine.astream(TEXTS)

    with held(engine):
        unread = engine.stream(TEXTS)
        assert engine.loop._waiting
        unread.close()
        assert not engine.loop._waiting
        engine.stream(TEXTS)
        asyncio.run(ask())
        gc.collect()
        assert not engine.loop._waiting


def test_answers_that_several_callers_get_cannot_be_changed(engine: Engine) -> None:
    with pytest.raises(ValueError, match="read-only"):
        engine.logits(TEXTS, "intent")[0][0] = 0.0


def test_an_event_loop_that_was_closed_does_no_harm_to_the_mates_of_its_batch(engine: Engine) -> None:
    async def ask_and_leave() -> None:
        engine.astream(TEXTS)

    with held(engine):
        asyncio.run(ask_and_leave())
        other = engine.stream(TEXTS)
    assert len(list(other)) == len(TEXTS) * len(TEXT_TASKS)


def test_threads_that_ask_at_once_get_their_own_answers(engine: Engine) -> None:
    texts = [[f"{word} {number}" for number in range(8)] for word in ("play", "book", "rain", "movie")]
    expected = [engine.logits(each, "slots") for each in texts]
    found: dict[int, list[list[np.ndarray]]] = {number: [] for number in range(4)}

    def ask(number: int) -> None:
        for _ in range(10):
            found[number].append(engine.logits(texts[number], "slots"))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number, answers in found.items():
        assert len(answers) == 10
        for each in answers:
            for one, other in zip(each, expected[number], strict=True):
                np.testing.assert_allclose(one, other, atol=1e-4)


# Swaps


@pytest.fixture
def swapping(tmp_path: Path, open_engine: Open) -> tuple[Engine, Path]:
    path = make_bundle(tmp_path, "intent", "slots").path
    return open_engine(path, limits=SMALL), path


def put_other(path: Path, task: str = "intent", seed: int = 1, **changes: Any) -> Bundle:
    """Replace a task of a bundle."""
    folder = path.parent / f"new-{task}-{seed}"
    replace(
        open_bundle(path), folder if folder.exists() else put_branch(folder, task, backbone_of(), seed=seed, **changes)
    )
    return open_bundle(path)


def versions(engine: Engine) -> dict[str, str]:
    return {task: branch.digest for task, branch in engine.snapshot.branches.items()}


def test_activating_changes_only_what_changed(swapping: tuple[Engine, Path]) -> None:
    engine, path = swapping
    before = engine.snapshot
    slots = [logits.tobytes() for logits in engine.logits(TEXTS, "slots")]
    intent = engine.logits(TEXTS, "intent")
    bundle = put_other(path)
    assert engine.activate(bundle) == ("intent",)
    assert engine.snapshot.branches["slots"] is before.branches["slots"]
    assert engine.snapshot.trunk.segments == before.trunk.segments
    assert [logits.tobytes() for logits in engine.logits(TEXTS, "slots")] == slots
    assert max(np.abs(a - b).max() for a, b in zip(engine.logits(TEXTS, "intent"), intent, strict=True)) > 1e-2
    assert versions(engine)["intent"] == bundle.manifest.tasks["intent"].branch


def test_an_activated_branch_answers_as_an_engine_opened_anew(swapping: tuple[Engine, Path], open_engine: Open) -> None:
    engine, path = swapping
    engine.activate(put_other(path))
    fresh = open_engine(path)
    for one, other in zip(engine.logits(TEXTS, "intent"), fresh.logits(TEXTS, "intent"), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_activating_the_same_again_changes_nothing(swapping: tuple[Engine, Path]) -> None:
    engine, path = swapping
    before = versions(engine)
    assert engine.activate(open_bundle(path)) == ()
    assert versions(engine) == before


def test_a_task_can_be_added_and_removed(swapping: tuple[Engine, Path]) -> None:
    engine, path = swapping
    attach(open_bundle(path), put_branch(path.parent / "mood", "mood", backbone_of()))
    assert engine.activate(open_bundle(path)) == ("mood",)
    assert set(engine.predict(["no"])[0]) == {"intent", "slots", "mood"}
    detach(open_bundle(path), "intent")
    assert engine.activate(open_bundle(path)) == ()
    assert set(engine.predict(["no"])[0]) == {"slots", "mood"}
    with pytest.raises(UnknownNameError, match="'intent'"):
        engine.predict(["no"], tasks=("intent",))


def test_a_deeper_task_can_be_added(swapping: tuple[Engine, Path], open_engine: Open) -> None:
    engine, path = swapping
    fields = {"kind": "classification", "labels": ("a", "b"), "exit_layer": 3, "own_layers": 1}
    attach(open_bundle(path), put_branch(path.parent / "deep", "deep", backbone_of(), **fields), backbone=backbone_of())
    assert engine.activate(open_bundle(path)) == ("deep",)
    for one, other in zip(engine.logits(TEXTS, "deep"), open_engine(path).logits(TEXTS, "deep"), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def assert_goes_on(engine: Engine, before: dict[str, str], intent: list[bytes]) -> None:
    assert versions(engine) == before
    assert [logits.tobytes() for logits in engine.logits(TEXTS, "intent")] == intent


def test_a_branch_that_fails_its_golden_inputs_leaves_the_old_one_answering(swapping: tuple[Engine, Path]) -> None:
    engine, path = swapping
    before, intent = versions(engine), [logits.tobytes() for logits in engine.logits(TEXTS, "intent")]
    golden = make_branch("intent", backbone_of()).golden
    lines = [[list(line) for line in one] for one in golden.logits]
    lines[2][0][0] += 0.5
    wrong = msgspec.structs.replace(golden, logits=tuple(tuple(tuple(line) for line in one) for one in lines))
    replace(open_bundle(path), put_changed(path.parent / "wrong", "intent", golden=wrong))
    with pytest.raises(VerificationError, match=r"task 'intent': golden input 2 .* differ by 0\.5"):
        engine.activate(open_bundle(path))
    assert_goes_on(engine, before, intent)
    assert engine.activate(put_other(path)) == ("intent",)


def test_a_damaged_branch_leaves_the_old_one_answering(swapping: tuple[Engine, Path]) -> None:
    engine, path = swapping
    before, intent = versions(engine), [logits.tobytes() for logits in engine.logits(TEXTS, "intent")]
    bundle = put_other(path)
    folder = path / "branches" / "intent" / bundle.manifest.tasks["intent"].branch
    content = bytearray((folder / "branch.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "branch.safetensors").write_bytes(content)
    with pytest.raises(DigestMismatchError):
        engine.activate(bundle)
    assert_goes_on(engine, before, intent)


def test_requests_begun_before_a_swap_end_on_the_old_branch(swapping: tuple[Engine, Path]) -> None:
    engine, path = swapping
    old = versions(engine)["intent"]
    expected = [row["intent"] for row in engine.predict(TEXTS, tasks=("intent",))]
    with held(engine):
        begun = engine.stream(TEXTS, tasks=("intent",))
        engine.activate(put_other(path))
        later = engine.stream(TEXTS, tasks=("intent",))
    answers = list(begun)
    assert {each.version for each in answers} == {old}
    for each in answers:
        assert each.prediction.confidence == pytest.approx(expected[each.index].confidence, abs=1e-5)  # type: ignore[union-attr]
    assert {each.version for each in later} == {versions(engine)["intent"]} != {old}


def test_the_running_programs_are_not_disturbed_by_a_swap(swapping: tuple[Engine, Path]) -> None:
    engine, path = swapping
    with held(engine):  # In the middle of a step: replay and warming must not touch its states.
        before = engine.snapshot.trunk.segments[0].run
        states = before.request.get_output_tensor(0).data.copy()  # type: ignore[attr-defined]
        engine.activate(put_other(path))
        np.testing.assert_array_equal(before.request.get_output_tensor(0).data, states)  # type: ignore[attr-defined]


def test_the_weights_of_a_replaced_branch_are_let_go(swapping: tuple[Engine, Path]) -> None:
    engine, path = swapping
    engine.predict(TEXTS)
    old, kept = (weakref.ref(engine.snapshot.branches[task].programs.top.weights[0]) for task in ("intent", "slots"))  # type: ignore[attr-defined]
    engine.activate(put_other(path))
    engine.predict(TEXTS)
    gc.collect()
    assert old() is None
    assert kept() is not None


def test_twenty_swaps_under_load_lose_no_request_and_mix_no_versions(
    swapping: tuple[Engine, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.engine.pace._MOST_S", 0.001)
    engine, path = swapping
    texts = ["play a song", "rain in paris", "no"]
    expected: dict[str, list[np.ndarray]] = {}
    for seed in (1, 2):
        engine.activate(put_other(path, seed=seed))
        expected[versions(engine)["intent"]] = engine.logits(texts, "intent")
    probabilities = {
        version: [np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum() for logits in rows]
        for version, rows in expected.items()
    }
    over = threading.Event()
    failures: list[BaseException] = []
    seen: dict[str, int] = dict.fromkeys(expected, 0)

    def ask() -> None:
        try:
            while not over.is_set():
                answers = list(engine.stream(texts))
                assert len(answers) == len(texts) * 2
                mine = [each for each in answers if each.task == "intent"]
                (version,) = {each.version for each in mine}
                for each in mine:
                    found = list(each.prediction.probabilities.values())  # type: ignore[union-attr]
                    np.testing.assert_allclose(found, probabilities[version][each.index], atol=1e-4)
                seen[version] += 1
        except BaseException as failure:  # noqa: BLE001 - told by the test's own thread
            failures.append(failure)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(20):
            assert engine.activate(put_other(path, seed=1 + number % 2)) == ("intent",)
    finally:
        over.set()
        for thread in threads:
            thread.join(60)
    assert not failures
    assert min(seen.values()) > 0
