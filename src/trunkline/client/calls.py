"""What a client asks: each method's request as a value, checked before it is sent. No network here."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypedDict, TypeVar
from urllib.parse import quote

import msgspec

from trunkline.core.errors import DataError, SpecError, UnknownNameError, nearest_hint, spec_error
from trunkline.wire import (
    ActivateRequest,
    AnalyzeRequest,
    AnalyzeResponse,
    CanaryRequest,
    Change,
    History,
    Offsets,
    ReasonRequest,
    RegisterRequest,
    TaskInfo,
    TaskList,
    VersionList,
)

JSON, NDJSON, TAR = "application/json", "application/x-ndjson", "application/x-tar"
_LONGEST_DEADLINE_S = 3600.0
AnswerT = TypeVar("AnswerT")
BodyT = TypeVar("BodyT", bound=msgspec.Struct)
Again: TypeAlias = Literal["repeatable", "if_undone", "if_unreached"]
"""When a call is made again: after everything that may pass; only where nothing can have been done; only where the
server was not reached."""


class AnalyzeOptions(TypedDict, total=False):
    """What `Client.analyze` and `Client.stream` take, by keyword.

    Attributes:
        texts: Single texts; either these or ``pairs``.
        pairs: Pairs of texts, for tasks that take pairs.
        tasks: Which tasks answer; None lets all that take this form of input.
        probabilities: Whether answers carry the probability of every label.
        top_k: Give so many labels, the most probable first: 1 to 1000.
        offsets: What spans count in: ``codepoints`` (as Python does; the default), ``utf16`` or ``bytes``.
        truncate: Cut texts that are longer than a task's ``max_length``; without it they are refused.
        deadline_s: Seconds after which no answer is wanted, retries included; None lets the server decide.
        canary_key: Whose request this is: equal keys get equal versions where a canary is tried.
    """

    texts: Sequence[str] | None
    pairs: Sequence[tuple[str, str]] | None
    tasks: Sequence[str] | None
    probabilities: bool
    top_k: int | None
    offsets: Offsets
    truncate: bool
    deadline_s: float | None
    canary_key: str | None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What ``/health/ready`` answers."""

    status: str


@dataclass(frozen=True, slots=True)
class Call(Generic[AnswerT]):
    """One request, as often as it is sent.

    Attributes:
        method: Of HTTP.
        path: Quoted.
        answers: Type of the answer.
        again: When it is made again.
        body: What is sent as JSON.
        archive: A tar that is sent instead.
        query: Of the address.
        accept: Form of the answer.
        deadline_s: Seconds after which no answer is wanted.
        request_id: The same for every attempt, so that canaries and logs see one request.
    """

    method: str
    path: str
    answers: type[AnswerT]
    again: Again = "repeatable"
    body: msgspec.Struct | None = None
    archive: Path | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    accept: str = JSON
    deadline_s: float | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def headers(self) -> dict[str, str]:
        """What this call carries besides the client's own headers."""
        headers = {"Accept": self.accept, "X-Request-Id": self.request_id}
        if self.archive is not None:
            return {**headers, "Content-Type": TAR, "Content-Length": str(self.archive.stat().st_size)}
        return headers if self.body is None else {**headers, "Content-Type": JSON}

    def content(self, elapsed_s: float) -> bytes | None:
        """The body as JSON; a deadline counts from the first attempt.

        Raises:
            DataError: A text cannot be written as UTF-8.
        """
        body = self.body
        if isinstance(body, AnalyzeRequest) and self.deadline_s is not None:
            body = msgspec.structs.replace(body, deadline_ms=max(1e3 * (self.deadline_s - elapsed_s), 1.0))
        try:
            return None if body is None else msgspec.json.encode(body)
        except UnicodeEncodeError as error:
            raise DataError(f"request: a text is no Unicode ({error.reason}); decode or mend it first") from error


def analyze_call(options: AnalyzeOptions, *, streamed: bool = False) -> Call[AnalyzeResponse]:
    """Answer texts or pairs.

    Raises:
        UnknownNameError: An option is not known.
        DataError: There are both texts and pairs, or neither; or a single str in the place of several.
        SpecError: An option is of another type, or out of its range.
    """
    for name in options:
        if name not in AnalyzeOptions.__annotations__:
            raise UnknownNameError(
                f"analyze: {name!r} is no option; {nearest_hint(name, AnalyzeOptions.__annotations__)}"
            )
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if ("texts" in given) == ("pairs" in given):
        found = "both texts and pairs" if "texts" in given else "neither texts nor pairs"
        raise DataError(f"request: has {found}; one of them is needed; give either")
    given |= {name: _listed(given[name], name) for name in ("texts", "pairs", "tasks") if name in given}
    deadline_s = given.pop("deadline_s", None)
    if deadline_s is not None and not 0 < deadline_s <= _LONGEST_DEADLINE_S:
        raise SpecError(f"request: deadline_s {deadline_s} is outside 0..{_LONGEST_DEADLINE_S:g}; choose one inside")
    if "canary_key" in given:
        given["key"] = given.pop("canary_key")
    body = _checked(given, AnalyzeRequest)
    accept = NDJSON if streamed else JSON
    return Call("POST", "/v1/analyze", AnalyzeResponse, body=body, accept=accept, deadline_s=deadline_s)


def tasks_call() -> Call[TaskList]:
    """Every task, served or at rest."""
    return Call("GET", "/v1/tasks", TaskList)


def task_call(task: str) -> Call[TaskInfo]:
    """One task."""
    return Call("GET", _task_path(task), TaskInfo)


def ready_call() -> Call[Health]:
    """Whether requests are taken; that they are not is an answer too."""
    return Call("GET", "/health/ready", Health, "if_unreached")


def upload_call(task: str, archive: Path, *, why: str, version: str | None = None) -> Call[Change]:
    """Register the branch in an archive, which need not be there yet, if it has the digest `version`."""
    query = _reason(why) if version is None else {**_reason(why), "version": version}
    return Call("POST", _task_path(task, "versions"), Change, "if_undone", archive=archive, query=query)


def register_call(task: str, source: str, *, why: str, version: str | None = None) -> Call[Change]:
    """Register the branch that lies somewhere else, if it has the digest `version`."""
    body = _checked({"source": source, "why": why, "version": version}, RegisterRequest)
    return Call("POST", _task_path(task, "versions"), Change, "if_undone", body)


def activate_call(task: str, version: str, *, why: str) -> Call[Change]:
    """Answer with a version."""
    body = _checked({"version": version, "why": why}, ActivateRequest)
    return Call("POST", _task_path(task, "activate"), Change, "if_undone", body)


def canary_call(task: str, version: str, *, percent: float, why: str) -> Call[Change]:
    """Answer a part of the requests with a version."""
    body = _checked({"version": version, "percent": percent, "why": why}, CanaryRequest)
    return Call("POST", _task_path(task, "canary"), Change, "if_undone", body)


def rollback_call(task: str, *, why: str) -> Call[Change]:
    """Answer with the version before."""
    return Call("POST", _task_path(task, "rollback"), Change, "if_undone", _checked({"why": why}, ReasonRequest))


def remove_call(task: str, version: str | None, *, why: str) -> Call[Change]:
    """Take a task out of service, or drop one of its versions."""
    path = _task_path(task) if version is None else _task_path(task, "versions", version)
    return Call("DELETE", path, Change, "if_undone", query=_reason(why))


def versions_call(task: str) -> Call[VersionList]:
    """Every version of a task."""
    return Call("GET", _task_path(task, "versions"), VersionList)


def history_call(task: str | None) -> Call[History]:
    """Every change, or those of one task."""
    return Call("GET", "/v1/history" if task is None else _task_path(task, "history"), History)


def _task_path(task: str, *rest: str) -> str:
    for name in (task, *rest):
        if not name.strip("."):  # Such a piece of a path would be another path.
            raise SpecError(f"client: {name!r} names no task or version; give its name")
    return "/".join(("/v1/tasks", *(quote(each, safe="") for each in (task, *rest))))


def _reason(why: str) -> dict[str, str]:
    return {"why": _checked({"why": why}, ReasonRequest).why}


def _listed(values: Iterable[Any], name: str) -> list[Any]:
    if isinstance(values, str | bytes):  # A string is a sequence of strings too: of its letters.
        raise DataError(f"{name}: is a single str; a list is taken; write it in brackets")
    try:
        return list(values)
    except TypeError as error:
        raise DataError(f"{name}: is of type {type(values).__name__}; a list is taken; write it in brackets") from error


def _checked(given: Mapping[str, Any], body_type: type[BodyT]) -> BodyT:
    try:
        return msgspec.convert(given, body_type)
    except msgspec.ValidationError as error:
        raise spec_error(error, body_type, "request") from error
