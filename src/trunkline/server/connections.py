"""Connections: uvicorn's, with what it lacks against clients that open one and say nothing, or never end their head."""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 32 * 1024
"""Of request line and headers together."""


class ImpatientProtocol(HttpToolsProtocol):
    """Closes a connection whose request head takes longer than ``read_s`` or grows beyond `MAX_HEAD_BYTES`."""

    read_s = 10.0
    _in_head = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._head_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head, then parse it."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and b"\r\n\r\n" not in data:
                self.send_400_response("Request head is too large.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A further request on a connection that was kept."""
        super().on_message_begin()
        if self._head_timer is None:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        """The head is whole; what comes now is the body, which its reader times."""
        self._head_arrived()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """What comes next is another head."""
        super().on_message_complete()
        self._in_head, self._head_bytes = True, 0

    def _wait_for_head(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._head_timer = self.loop.call_later(self.read_s, self._give_up)

    def _head_arrived(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

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
