"""Connections: uvicorn's, with what it lacks against clients that say nothing, never end their head, or never read."""

import asyncio
import socket
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from trunkline.server.bodies import ALL_HERE

_CONTINUE = b"HTTP/1.1 100 "
MAX_HEAD_BYTES = 32 * 1024
"""Of request line and headers together."""
SEND_BYTES = 128 * 1024
"""What the system may hold of an answer that a client does not read; by itself it takes megabytes a connection."""


class WholeAnswers:
    """A transport that sends the head of an answer together with what follows: one packet, and one call of the system.

    ASGI wants it so: nothing of an answer is sent before the first of its body.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        """Take the one that sends."""
        self._transport = transport
        self._head = b""
        self._comes_head = True

    def __getattr__(self, name: str) -> Any:
        """All else is as it was."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send, but for the head of an answer, which is kept until there is more."""
        if self._comes_head and not data.startswith(_CONTINUE):
            self._head, self._comes_head = data, False
        elif self._head:
            self._transport.writelines((self._head, data))
            self._head = b""
        else:
            self._transport.write(data)

    def answer_ended(self) -> None:
        """Send what was kept; a head comes next."""
        if self._head:
            self._transport.write(self._head)
            self._head = b""
        self._comes_head = True

    def close(self) -> None:
        """Send what was kept, and close."""
        self.answer_ended()
        self._transport.close()


class ImpatientProtocol(HttpToolsProtocol):
    """Ends a connection whose request head takes longer than ``read_s``, or grows beyond `MAX_HEAD_BYTES`.

    What comes behind the last chunk of a body (trailers) has the same limit, but for what came along with that chunk.
    One whose client reads less than `SEND_BYTES` of its answer in that time is dropped, with what the answer holds.
    """

    read_s = 10.0
    _in_head = True
    _head_begun = False
    _in_trailer = False
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a head."""
        self._whole = WholeAnswers(transport)
        super().connection_made(cast("asyncio.Transport", self._whole))
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._head_arrived()
        self._read_on()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """What was kept of the answer, where it has no body, must go."""
        self._whole.answer_ended()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """More lies unread than the socket takes: begin to wait for the client."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """The client reads on."""
        self._read_on()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head, then parse it."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and b"\r\n\r\n" not in data:
                self.send_400_response("Request head is too large.")
                return
        was_in_trailer = self._in_trailer
        super().data_received(data)
        if was_in_trailer and self._in_trailer:  # The parser tells of a line at its end alone, and keeps it until then.
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.abort()
                return
        # Bytes that begin no request, or the rest of one that was answered early: uvicorn waits for more without end.
        cycle: RequestResponseCycle | None = self.cycle
        if self._head_timer is None and (self._head_begun or cycle is None or cycle.response_complete):
            self._wait_for_head()

    def on_message_begin(self) -> None:
        """A head begins; most come whole, so that nobody needs to wait for the rest."""
        super().on_message_begin()
        self._head_begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those behind a body (trailers) are not wanted, and must not fill memory."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole; what comes now is the body, which its reader times."""
        self._head_arrived()
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Nothing comes of the last chunk, so that this may be where trailers begin."""
        self._in_trailer, self._head_bytes = True, 0

    def on_body(self, body: bytes) -> None:
        """It was not the last chunk."""
        self._in_trailer = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        """What comes next is another head."""
        super().on_message_complete()
        self.scope[ALL_HERE] = True  # type: ignore[literal-required]
        self._in_head, self._in_trailer, self._head_bytes = True, False, 0

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self.read_s, self._give_up)

    def _head_arrived(self) -> None:
        self._in_head = self._head_begun = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _wait_for_reader(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._unread_timer = self.loop.call_later(self.read_s, self._look_at_reader, unread)

    def _look_at_reader(self, unread_before: int) -> None:
        if unread_before - self.transport.get_write_buffer_size() >= SEND_BYTES:
            self._wait_for_reader()
            return
        self._unread_timer = None
        # To close it would wait for the client without end: what lies unread goes with the connection.
        self.transport.abort()

    def _read_on(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()


def protocol_of(read_s: float) -> type[asyncio.Protocol]:
    """The protocol with a time limit.

    Args:
        read_s: Seconds that a head may take.
    """
    return cast("type[asyncio.Protocol]", type("Protocol", (ImpatientProtocol,), {"read_s": read_s}))
