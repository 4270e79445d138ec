"""Several versions of a task on one trunk, and requests that are collected in an event loop."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_bundles import backbone_of, make_bundle, put_branch
from tests.tiny_engines import open_fp32
from trunkline.bundle.merge import replace
from trunkline.bundle.store import Bundle, open_bundle
from trunkline.core.errors import DeadlineError, MissingBranchError
from trunkline.core.types import Example
from trunkline.engine.asking import Collected
from trunkline.engine.encoding import EncodedRequest, encode_request
from trunkline.engine.engine import Engine
from trunkline.engine.request import Part
from trunkline.engine.scheduler import Limits

TEXTS = ("play a song", "what is the weather in paris", "no")
SMALL = Limits(batch_tokens=64, batch_rows=4, queued_rows=100, queued_tokens=5000)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path, "intent", "slots")


@pytest.fixture
def engine(bundle: Bundle) -> Iterator[Engine]:
    with open_fp32(bundle.path, limits=SMALL) as opened:
        yield opened


@pytest.fixture
def other(bundle: Bundle) -> Bundle:
    """The same bundle with another version of one task, and that task alone in its manifest."""
    replace(bundle, put_branch(bundle.path.parent / "other", "intent", backbone_of(), seed=1))
    state = open_bundle(bundle.path)
    tasks = {"intent": state.manifest.tasks["intent"]}
    return Bundle(bundle.path, type(state.manifest)(**{**_fields(state), "tasks": tasks}))


def _fields(bundle: Bundle) -> dict[str, object]:
    return {name: getattr(bundle.manifest, name) for name in bundle.manifest.__struct_fields__}


def encoded(engine: Engine, *texts: str) -> EncodedRequest:
    return encode_request(engine.snapshot, [Example(text) for text in texts])


def test_a_version_beside_is_loaded_and_answers_only_who_chooses_it(
    engine: Engine, bundle: Bundle, other: Bundle
) -> None:
    before = engine.logits(TEXTS, "intent")
    digest = other.manifest.tasks["intent"].branch
    assert engine.activate(bundle, beside=[other]) == ()
    assert set(engine.snapshot.beside) == {digest}
    for old, new in zip(before, engine.logits(TEXTS, "intent"), strict=True):
        np.testing.assert_array_equal(old, new)
    chosen = engine.snapshot.choosing({"intent": digest})
    assert chosen.trunk is engine.snapshot.trunk
    assert chosen.branches["intent"].digest == digest
    assert chosen.branches["slots"] is engine.snapshot.branches["slots"]


def test_a_version_that_was_ready_becomes_active_without_being_loaded_again(
    engine: Engine, bundle: Bundle, other: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.activate(bundle, beside=[other])
    ready = engine.snapshot.beside[other.manifest.tasks["intent"].branch]
    monkeypatch.setattr("trunkline.engine.snapshot.load_branch", None)  # Whoever compiles fails.
    assert engine.activate(open_bundle(bundle.path), beside=[]) == ("intent",)
    assert engine.snapshot.branches["intent"] is ready


def test_choosing_a_version_that_is_not_loaded_is_refused(engine: Engine) -> None:
    with pytest.raises(MissingBranchError, match="'intent': version 'abc' is not loaded"):
        engine.snapshot.choosing({"intent": "abc"})


def test_choosing_another_tasks_version_is_refused(engine: Engine) -> None:
    with pytest.raises(MissingBranchError, match="'slots'"):
        engine.snapshot.choosing({"slots": engine.snapshot.branches["intent"].digest})


def test_preparing_changes_nothing_until_it_is_switched(engine: Engine, bundle: Bundle, other: Bundle) -> None:
    before = engine.snapshot
    after = engine.prepare(bundle, beside=[other])
    assert engine.snapshot is before
    engine.switch(after)
    assert engine.snapshot is after


def test_collected_parts_are_those_of_a_stream(engine: Engine) -> None:
    async def ask() -> list[Part]:
        parts: list[Part] = []
        await Collected(engine.loop, encoded(engine, *TEXTS), parts.append)
        return parts

    parts = asyncio.run(ask())
    assert {part.branch.spec.task for part in parts} == {"intent", "slots"}
    found = {
        row: logits
        for part in parts
        if part.branch.spec.task == "intent"
        for row, logits in zip(part.rows, part.logits, strict=True)
    }
    rows = encoded(engine, *TEXTS).readers["intent"]
    for number, indices in rows.items():
        np.testing.assert_allclose(found[number], engine.logits(TEXTS, "intent")[indices[0]], atol=1e-5)


def test_an_error_of_the_request_is_raised_to_who_waits(engine: Engine) -> None:
    async def ask() -> None:
        await Collected(engine.loop, encoded(engine, "no"), lambda _: None, deadline=engine.loop.clock() - 1)

    with pytest.raises(DeadlineError):
        asyncio.run(ask())


def test_an_error_of_who_takes_the_parts_is_raised_and_the_rest_is_dropped(engine: Engine) -> None:
    taken: list[Part] = []

    def take(part: Part) -> None:
        taken.append(part)
        raise KeyError("mine")

    async def ask() -> None:
        await Collected(engine.loop, encoded(engine, *TEXTS), take)

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(ask())
    assert len(taken) == 1
    assert engine.predict(["no"])


def test_a_cancelled_request_takes_nothing_more(engine: Engine) -> None:
    async def ask() -> list[Part]:
        parts: list[Part] = []
        collected = Collected(engine.loop, encoded(engine, *TEXTS), parts.append)
        collected.cancel()
        with pytest.raises(asyncio.CancelledError):
            await collected
        return parts

    assert asyncio.run(ask()) == []


def test_words_are_found_in_tokens_once_for_all_taggers(engine: Engine) -> None:
    request = encoded(engine, "what is the weather in paris")
    assert request.positions(0, 0) is request.positions(0, 0)
