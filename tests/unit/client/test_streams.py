"""Answers that come one by one."""

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.client.conftest import Chunks, Face, Server, answer, end, event, refused
from trunkline.client.replies import EventReader, Place
from trunkline.core.errors import (
    ClientError,
    NotServedError,
    ServerAnswerError,
    ServerBusyError,
    ServerRefusedError,
    ServerTimeoutError,
    ServerUnreachableError,
)
from trunkline.wire import Answer

THREE = [answer(0), answer(1, "play\u2028now\x85"), answer(2)]


def streaming(*pieces: bytes | Exception) -> tuple[Chunks, httpx.Response]:
    chunks = Chunks(*pieces)
    return chunks, httpx.Response(200, stream=chunks)


def failed(code: str) -> bytes:
    return b'{"event":"error","error":{"code":"%s","message":"too late","request_id":"r1"}}\n' % code.encode()


def test_answers_come_before_the_stream_is_whole(face: Face) -> None:
    chunks, response = streaming(*map(event, THREE), end(3))
    server = Server(response)
    stream = face.open(server).client.stream(texts=["a", "b", "c"])
    assert face.take(stream) == THREE[0]
    assert chunks.n_read == 1
    assert face.all(stream) == THREE[1:]
    assert server.asked[0].headers["accept"] == "application/x-ndjson"


def test_a_stream_that_came_whole_is_read_to_its_end_and_closed(face: Face) -> None:
    chunks, response = streaming(event(THREE[0]) + end(1), b"")
    stream = face.open(Server(response)).client.stream(texts=["a"])
    assert face.all(stream) == THREE[:1]
    assert (chunks.n_read, chunks.is_closed) == (2, True)
    assert face.take(stream) is None


def test_no_answers_are_a_whole_stream_too(face: Face) -> None:
    assert face.all(face.open(Server(streaming(end(0))[1])).client.stream(texts=[])) == []


@pytest.mark.parametrize("cut", [1, 2, 7])
def test_lines_may_be_cut_anywhere(face: Face, cut: int) -> None:
    whole = b"".join(map(event, THREE)) + end(3)
    pieces = [whole[at : at + cut] for at in range(0, len(whole), cut)]
    assert face.all(face.open(Server(streaming(*pieces)[1])).client.stream(texts=["a"])) == THREE


@given(st.data())
def test_the_reader_gives_the_same_answers_however_bytes_come(data: st.DataObject) -> None:
    whole = b"".join(map(event, THREE)) + end(3)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    reader, got = EventReader(Place("GET x", "r", 30, changes=False)), list[Answer]()
    for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        reader.feed(whole[start:stop])
        while (taken := reader.take()) is not None:
            got.append(taken)
    assert got == THREE
    assert reader.ended


@pytest.mark.parametrize("break_off", [(), (httpx.ReadError("reset"),), (b'{"event":"ans',)])
def test_a_stream_that_breaks_off_gives_its_answers_and_then_an_error(face: Face, break_off: Any) -> None:
    chunks, response = streaming(event(THREE[0]), *break_off)
    server = Server(response)
    stream = face.open(server).client.stream(texts=["a", "b"])
    assert face.take(stream) == THREE[0]
    with pytest.raises(ServerUnreachableError, match="broke off"):
        face.take(stream)
    assert chunks.is_closed
    assert face.take(stream) is None
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [("deadline_exceeded", ServerTimeoutError), ("stopping", ServerBusyError), ("internal", ServerRefusedError)],
)
def test_an_error_in_the_stream_is_raised_after_the_answers_before_it(
    face: Face, code: str, kind: type[ClientError]
) -> None:
    stream = face.open(Server(streaming(event(THREE[0]) + failed(code))[1])).client.stream(texts=["a"])
    assert face.take(stream) == THREE[0]
    with pytest.raises(kind, match=f"too late .{code}, in the stream of request r1") as caught:
        face.take(stream)
    assert (caught.value.code, caught.value.status, caught.value.request_id) == (code, None, "r1")
    assert face.slept == []


def test_a_count_that_differs_is_an_error(face: Face) -> None:
    stream = face.open(Server(streaming(event(THREE[0]) + end(2))[1])).client.stream(texts=["a"])
    assert face.take(stream) == THREE[0]
    with pytest.raises(ServerAnswerError, match="1 answers came, and the server counted 2"):
        face.take(stream)


@pytest.mark.parametrize("line", [b"<html>\n", b'{"event":"news"}\n', b'{"event":"answer","answer":{"kind":"x"}}\n'])
def test_a_line_that_is_not_understood_is_an_error(face: Face, line: bytes) -> None:
    stream = face.open(Server(streaming(line)[1])).client.stream(texts=["a"])
    with pytest.raises(ServerAnswerError, match="is not understood"):
        face.take(stream)


def test_a_stream_that_is_left_early_closes_its_connection(face: Face) -> None:
    chunks, response = streaming(*map(event, THREE), end(3))
    stream = face.open(Server(response)).client.stream(texts=["a"])
    assert face.enter(stream) is stream
    face.take(stream)
    face.close_stream(stream)
    face.close_stream(stream)
    assert chunks.is_closed
    assert chunks.n_read == 1
    assert face.take(stream) is None


def test_a_stream_that_was_closed_before_it_began_asks_nothing(face: Face) -> None:
    server = Server(streaming(end(0))[1])
    stream = face.open(server).client.stream(texts=["a"])
    face.close_stream(stream)
    assert face.all(stream) == []
    assert server.asked == []


def test_a_refusal_comes_when_the_stream_begins(face: Face) -> None:
    stream = face.open(Server(refused(404, "unknown_name"))).client.stream(texts=["a"], tasks=["intnt"])
    with pytest.raises(NotServedError, match="intnt"):
        face.enter(stream)


@pytest.mark.parametrize("broken", [(), (httpx.ReadError("reset"),)])
def test_a_stream_is_begun_again_until_its_first_answer(face: Face, broken: Any) -> None:
    first, empty = streaming(*broken)
    face.open(Server(refused(503, "stopping"), empty, streaming(event(THREE[0]), end(1))[1]))
    assert face.all(face.client.stream(texts=["a"])) == THREE[:1]
    assert len(face.slept) == 2
    assert first.is_closed


def test_each_wait_for_more_has_the_whole_time(face: Face) -> None:
    seen: list[httpx.Request] = []

    def server(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        face.now += 20
        return streaming(event(THREE[0]), end(1))[1]

    face.all(face.open(server, timeout_s=30).client.stream(texts=["a"]))
    assert seen[0].extensions["timeout"].get("read") == 30
