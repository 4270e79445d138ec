"""Answering a stream of lines."""

import json
from collections.abc import Iterator

import pytest

from tests.tiny_bundles import make_bundle
from tests.tiny_engines import open_fp32
from trunkline.core.errors import DataError, UnknownNameError
from trunkline.engine.engine import Answered, Engine
from trunkline.engine.stream import LINES_PER_CHUNK, answer_lines, ready_lines


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with open_fp32(make_bundle(tmp_path_factory.mktemp("bundles"), "mood", "same").path) as opened:
        yield opened


def lines(*texts: str) -> list[bytes]:
    return [json.dumps({"text": text}).encode() + b"\n" for text in texts]


def answered_until_error(chunks: Iterator[Answered], match: str) -> int:
    found: list[int] = []
    with pytest.raises(DataError, match=match):
        found.extend(len(chunk.answers) for chunk in chunks)
    return sum(found)


def test_every_line_is_answered_in_order_over_chunks(engine: Engine) -> None:
    texts = ["yes " * (1 + number % 3) for number in range(LINES_PER_CHUNK + 2)]
    chunks = list(answer_lines(engine, [lines(*texts)], "in"))
    assert [len(chunk.answers) for chunk in chunks] == [LINES_PER_CHUNK, 2]
    assert chunks[1].answers == engine.predict(texts[LINES_PER_CHUNK:])


def test_nothing_is_answered_to_nothing(engine: Engine) -> None:
    assert list(answer_lines(engine, [], "in")) == []


@pytest.mark.parametrize("wrong", [b"{\n", b"[" * 100_000 + b"\n"], ids=["cut", "deep"])
def test_lines_before_a_wrong_one_are_answered(engine: Engine, wrong: bytes) -> None:
    chunks = answer_lines(engine, [[*lines("no", "yes"), wrong, *lines("no")]], "in")
    assert answered_until_error(chunks, "in line 3: not valid JSON") == 2


def test_a_line_that_does_not_fit_a_task_is_named_by_its_number_in_the_stream(engine: Engine) -> None:
    pair = b'{"text": "no", "text_pair": "yes"}\n'
    chunks = answer_lines(engine, [lines(*["no"] * 300), [b"\n", pair]], "in", tasks=["mood"])
    assert answered_until_error(chunks, "in line 302: is a pair; task 'mood' takes single texts") == 300


def test_cut_texts_are_counted_by_task(engine: Engine) -> None:
    (chunk,) = answer_lines(engine, [lines("yes " * 50, "no", "no " * 60)], "in")
    assert chunk.n_truncated == {"mood": 2, "same": 0}


def test_an_unknown_task_is_refused_before_a_line_is_read(engine: Engine) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mood'"):
        next(answer_lines(engine, iter(()), "in", tasks=["moot"]))


def test_lines_that_are_there_are_answered_before_more_are_taken(engine: Engine) -> None:
    taken: list[int] = []

    def partner() -> Iterator[list[bytes]]:
        for together in (lines("no"), [*lines("yes", "no"), b"\n", b" \n"], [b"\n"], lines("no")):
            taken.append(len(together))
            yield together

    chunks = answer_lines(engine, partner(), "in")
    assert [(len(chunk.answers), len(taken)) for chunk in chunks] == [(1, 1), (2, 2), (1, 4)]


class Pieces:
    """A stream that gives its pieces one by one."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    def read1(self, _size: int, /) -> bytes:
        """The next piece."""
        return self.pieces.pop(0) if self.pieces else b""


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        ((b"a\n",), [[b"a"]]),
        ((b"a\nb\nc", b"d", b"e\n\n"), [[b"a", b"b"], [b"cde", b""]]),
        ((b"a", b"b"), [[b"ab"]]),
        ((b"a\r\nb",), [[b"a\r"], [b"b"]]),
        ((), []),
    ],
)
def test_lines_are_whole_and_come_when_they_can_be_read(pieces: tuple[bytes, ...], found: list[list[bytes]]) -> None:
    assert list(ready_lines(Pieces(*pieces))) == found
