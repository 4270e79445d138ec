"""The load generator against a server whose latency is known."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from benchmarks import server_load_generator
from benchmarks.server_load_generator import Load, closed_loop, joined, open_loop, poisson
from trunkline.core.errors import MissingDependencyError

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


@contextmanager
def slow_server(latency_s: float, *, at_a_time: int = 1000) -> Iterator[str]:
    """Answers every request after so long, so many at a time; echoes its id."""
    loop = asyncio.new_event_loop()
    ready, stopped, ports = threading.Event(), asyncio.Event(), []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
                body = await reader.readexactly(int(fields[b"Content-Length"]))
                async with rooms:
                    await asyncio.sleep(latency_s)
                status = b"429 No\r\nretry-after: 7" if body == b'{"refuse":1}' else b"200 OK"
                identity = fields.get(b"X-Request-Id", b"")
                writer.write(b"HTTP/1.1 %b\r\nx-request-id: %b\r\ncontent-length: 2\r\n\r\nok" % (status, identity))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    rooms = asyncio.Semaphore(at_a_time)

    async def serve() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        await stopped.wait()
        server.close()
        answering = asyncio.all_tasks() - {asyncio.current_task()}
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)
        await asyncio.sleep(0.01)  # transports close in the loop's next turn

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield f"http://127.0.0.1:{ports[0]}/"
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.close()


@needs_wrk
def test_every_request_is_sent_when_due_and_its_latency_is_the_servers() -> None:
    with slow_server(0.05) as url:
        seen = open_loop(
            url, [b'{"a":1}', b'{"refuse":1}'], poisson(100, 1.0, n_bodies=2, seed=0), n_connections=32, wait_s=0.5
        )
    assert set(seen.status) == {200, 429}
    assert 50 <= seen.percentile_ms(50, status=(200, 429)) < 75
    assert -0.1 < seen.lateness_ms(50) < 20
    assert set(seen.retry_after_s[seen.status == 429]) == {7.0}
    assert seen.told()["n_requests"] == len(seen.status)


@needs_wrk
def test_waiting_counts_where_a_server_answers_one_at_a_time() -> None:
    # Ten at once, 50 ms each, one after the other: the last waits half a second, though it was served in 50 ms.
    load = Load(np.full(10, 0.1), np.zeros(10, dtype=np.int64))
    with slow_server(0.05, at_a_time=1) as url:
        many = open_loop(url, [b"{}"], load, n_connections=16, wait_s=1.0)
        few = open_loop(url, [b"{}"], load, n_connections=1, wait_s=1.0)
    for seen in (many, few):
        assert 0.5 <= float(seen.latency_s.max()) < 0.75
    assert many.lateness_ms(99) < 50
    assert few.lateness_ms(99) > 400


@needs_wrk
def test_a_closed_loop_is_as_fast_as_its_connections_are_answered() -> None:
    with slow_server(0.05) as url:
        seen = closed_loop(url, [b"{}"], 1, n_connections=4)
    assert 50 < seen.per_s <= 80
    assert (seen.not_2xx, seen.unanswered) == (0, 0)
    assert 0 < seen.generator_share < 1


def test_arrivals_are_the_same_for_the_same_seed_and_have_their_rate() -> None:
    load, again = (poisson(500, 20.0, n_bodies=3, seed=4, start_s=2.0) for _ in range(2))
    assert np.array_equal(load.due_s, again.due_s)
    assert 2.0 <= load.due_s[0] <= load.due_s[-1] < 22.0
    assert abs(len(load.due_s) - 10_000) < 500
    assert set(load.bodies) == {0, 1, 2}
    assert len(joined([load, again]).due_s) == 2 * len(load.due_s)


def test_bodies_with_line_breaks_are_refused() -> None:
    with pytest.raises(ValueError, match="line break"):
        closed_loop("http://127.0.0.1:9/", [b"{\n}"], 1)


def test_a_machine_without_wrk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_load_generator.shutil, "which", lambda _: None)
    with pytest.raises(MissingDependencyError, match="apt-get install wrk"):
        closed_loop("http://127.0.0.1:9/", [b"{}"], 1)
