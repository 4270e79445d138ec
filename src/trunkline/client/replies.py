"""What a server says, as typed answers or as errors. No network here: bytes come in."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import msgspec

from trunkline.client.calls import AnswerT, Call
from trunkline.client.settings import Settings
from trunkline.core.errors import (
    ClientError,
    KeyRefusedError,
    NotServedError,
    ServerAnswerError,
    ServerBusyError,
    ServerRefusedError,
    ServerTimeoutError,
    ServerUnreachableError,
)
from trunkline.wire import Answer, AnswerEvent, EndEvent, ErrorBody, ErrorEvent, Event

_SHOWN = 80
_STATUS_OF_CODE = {"overloaded": 429, "stopping": 503, "deadline_exceeded": 504}
"""What an error in a stream would have been as an answer of its own."""
_EVENT: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call goes, for messages.

    Attributes:
        shown: Method and address, without the query.
        request_id: Of the call.
        timeout_s: Seconds that it has.
        changes: Whether it changes something.
    """

    shown: str
    request_id: str
    timeout_s: float
    changes: bool

    @classmethod
    def of(cls, call: Call[Any], settings: Settings) -> "Place":
        """Where a call with these settings goes."""
        shown = f"{call.method} {str(settings.base_url).rstrip('/')}{call.path}"
        return cls(shown, call.request_id, settings.timeout_s, call.again == "if_undone")

    @property
    def hint(self) -> str:
        """What to do where nobody knows how far the server came."""
        return "the change may have been made: look at the history before asking again" if self.changes else "ask again"


def read_reply(call: Call[AnswerT], place: Place, response: httpx.Response, content: bytes) -> AnswerT:
    """The answer to a call.

    Args:
        call: Knows the answer's type.
        place: Where it went.
        response: Status and headers.
        content: The body.

    Raises:
        ServerRefusedError: The server refused, with one of the leaves where it fits.
        ServerTimeoutError: The deadline passed.
        ServerAnswerError: The answer is not of the type.
    """
    if not response.is_success:
        raise refusal(place, response, content)
    try:
        return msgspec.json.decode(content, type=call.answers)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _not_understood(place, error, response.status_code) from error


def refusal(place: Place, response: httpx.Response, content: bytes) -> ClientError:
    """What an answer that is no success says, whoever gave it."""
    status, wait_s = response.status_code, retry_after_s(response.headers)
    try:
        detail = msgspec.json.decode(content, type=ErrorBody).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        started = content[:_SHOWN].decode("utf-8", "replace")
        message = (
            f"{place.shown}: answered {status} {response.reason_phrase} without an error of Trunkline's (the body "
            f"begins {started!r}); check base_url and what stands between; request {place.request_id}"
        )
        return _error_type(status)(message, status=status, request_id=place.request_id, retry_after_s=wait_s)
    message = f"{detail.message} ({status} {detail.code}, request {detail.request_id})"
    return _error_type(status)(
        message, status=status, code=detail.code, request_id=detail.request_id, retry_after_s=wait_s
    )


def retry_after_s(headers: httpx.Headers) -> float | None:
    """Seconds of ``Retry-After``, which is a number or a date; None where it is neither (RFC 9110, 10.2.3)."""
    stated = headers.get("retry-after", "").strip()
    if stated.isascii() and stated.isdecimal():
        return float(stated)
    try:
        at = parsedate_to_datetime(stated)
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
        return max((at - now).total_seconds(), 0.0)
    except (TypeError, ValueError):  # The latter also where only one of the two dates has a time zone.
        return None


@contextmanager
def told_as_ours(place: Place) -> Iterator[None]:
    """Around everything that httpx does: its errors become ours.

    Raises:
        ServerTimeoutError: A step took longer than was left.
        ServerUnreachableError: There is no connection, or it broke off.
        ServerAnswerError: The body is not compressed as it says.
    """
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise _unreached(place, "did not take the connection in time") from error
    except httpx.TimeoutException as error:
        raise timed_out(place) from error
    except httpx.DecodingError as error:
        raise _not_understood(place, error, None) from error
    except (httpx.ConnectError, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
        raise _unreached(place, f"cannot be reached ({error})") from error
    except (httpx.HTTPError, httpx.StreamError) as error:
        message = f"{place.shown}: the connection broke off ({error}); {place.hint}; request {place.request_id}"
        raise ServerUnreachableError(message, request_id=place.request_id) from error


def timed_out(place: Place) -> ServerTimeoutError:
    """The answer is not whole, and the time over."""
    message = (
        f"{place.shown}: no whole answer within {place.timeout_s:g} s; {place.hint}, with less at a time or a longer "
        f"timeout_s; request {place.request_id}"
    )
    return ServerTimeoutError(message, request_id=place.request_id)


def closed(place: Place) -> ServerUnreachableError:
    """The client was closed before it was asked."""
    return ServerUnreachableError(f"{place.shown}: the client is closed; make a new one, or ask before it closes")


class EventReader:
    """Answers out of the bytes of a stream.

    Lines end at line feeds alone: answers quote texts, which may hold other characters that end lines elsewhere.
    """

    def __init__(self, place: Place) -> None:
        """Begin a stream."""
        self._place = place
        self._rest = bytearray()
        self._lines: deque[bytes] = deque()
        self._n_answers = 0
        self.ended = False

    @property
    def has_line(self) -> bool:
        """Whether there is something to take."""
        return bool(self._lines)

    def feed(self, chunk: bytes) -> None:
        """Take bytes as they came."""
        end = chunk.rfind(b"\n")
        if end < 0:
            self._rest += chunk
            return
        whole = bytes(self._rest) + chunk[:end]
        self._rest = bytearray(chunk[end + 1 :])
        self._lines.extend(line for line in whole.split(b"\n") if line.strip())

    def take(self) -> Answer | None:
        """The next answer; None where more bytes are needed, or the stream has ended.

        Raises:
            ServerRefusedError: The server ended the stream with an error; the answers before it hold.
            ServerTimeoutError: That error is that the deadline passed.
            ServerAnswerError: There is something else, or fewer or more answers than the server counted.
        """
        if self.ended or not self._lines:
            return None
        try:
            event = _EVENT.decode(self._lines.popleft())
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise _not_understood(self._place, error, None) from error
        if isinstance(event, AnswerEvent):
            self._n_answers += 1
            return event.answer
        if isinstance(event, ErrorEvent):
            raise _error_of(event)
        self._end(event)
        return None

    def broken_off(self) -> ServerUnreachableError:
        """There are no more bytes, and the stream did not say that it is whole."""
        message = (
            f"{self._place.shown}: the stream broke off after {self._n_answers} answers, which hold; ask again for the "
            f"rest; request {self._place.request_id}"
        )
        return ServerUnreachableError(message, request_id=self._place.request_id)

    def _end(self, event: EndEvent) -> None:
        self.ended = True
        if event.n_answers != self._n_answers:
            raise ServerAnswerError(
                f"{self._place.shown}: {self._n_answers} answers came, and the server counted {event.n_answers}; check "
                f"what stands between; request {event.request_id}",
                request_id=event.request_id,
            )


def _error_of(event: ErrorEvent) -> ClientError:
    detail = event.error
    message = f"{detail.message} ({detail.code}, in the stream of request {detail.request_id}; answers before it hold)"
    kind = _error_type(_STATUS_OF_CODE.get(detail.code, 500))
    return kind(message, code=detail.code, request_id=detail.request_id)


def _error_type(status: int) -> type[ClientError]:
    if status in {429, 503}:
        return ServerBusyError
    if status in {401, 403}:
        return KeyRefusedError
    if status == 404:
        return NotServedError
    return ServerTimeoutError if status == 504 else ServerRefusedError


def _unreached(place: Place, found: str) -> ServerUnreachableError:
    message = f"{place.shown}: the server {found}; check that it runs there, and base_url; nothing was asked"
    return ServerUnreachableError(message, request_id=place.request_id)


def _not_understood(place: Place, error: Exception, status: int | None) -> ServerAnswerError:
    message = (
        f"{place.shown}: the answer is not understood ({error}); it is no server of Trunkline's, or a newer one: check "
        f"base_url, or install a newer trunkline; request {place.request_id}"
    )
    return ServerAnswerError(message, status=status, request_id=place.request_id)
