"""The life of a task: versions come, answer, are tried, go back and leave."""

from functools import partial

import msgspec
from starlette.responses import Response

from trunkline.core.errors import DataError
from trunkline.server.archives import ARCHIVE_TYPES, open_source, unpack, upload_folder, write_upload
from trunkline.server.bodies import Body, decode_body
from trunkline.server.operation import Asked, JsonResponse, Operation
from trunkline.wire import (
    ActivateRequest,
    CanaryRequest,
    Change,
    History,
    ReasonRequest,
    RegisterRequest,
    VersionList,
)

REASON = {"why": "for the history"}
OF_ARCHIVE = {"why": "reason, where the body is an archive", "version": "digest that an archive must have"}


async def list_versions(asked: Asked) -> Response:
    """Every version of a task."""
    return JsonResponse(VersionList(task=asked.task, versions=asked.service.deployment.versions(asked.task)))


async def list_history(asked: Asked) -> Response:
    """Every change, of one task where the path names it."""
    task = asked.request.path_params.get("task")
    return JsonResponse(History(entries=asked.service.deployment.history(task)))


async def register(asked: Asked) -> Response:
    """Take a version in, from an archive in the body or from where the body says that it lies."""
    deployment, settings = asked.service.deployment, asked.service.settings
    content_type = asked.request.headers.get("content-type", "").partition(";")[0].strip().lower()
    async with upload_folder() as temporary:
        folder = temporary / "branch"
        if content_type in ARCHIVE_TYPES:
            why, expected = _reason_of_query(asked), asked.request.query_params.get("version")
            limits = settings.limits
            content = Body(asked.request, max_bytes=limits.archive_bytes, seconds=limits.read_s)
            pace = asked.service.analyzer.engine.pace()
            archive = await write_upload(content, temporary / "archive", before_each=pace)
            work = partial(unpack, archive, folder, max_bytes=limits.archive_bytes, before_each=pace)
            await deployment.aside.prepare(work)
        else:
            body: RegisterRequest = await asked.decoded(RegisterRequest)
            why, expected = body.why, body.version
            folder = await open_source(body.source, settings, folder)
        change = await deployment.register(asked.task, folder, who=asked.caller.name, why=why, expected=expected)
    return _changed(asked, "register", change, status=201)


async def activate(asked: Asked) -> Response:
    """Let a version answer."""
    body: ActivateRequest = await asked.decoded(ActivateRequest)
    change = await asked.service.deployment.activate(asked.task, body.version, who=asked.caller.name, why=body.why)
    return _changed(asked, "activate", change)


async def canary(asked: Asked) -> Response:
    """Let a version answer a part of the requests."""
    body: CanaryRequest = await asked.decoded(CanaryRequest)
    change = await asked.service.deployment.canary(
        asked.task, body.version, body.percent, who=asked.caller.name, why=body.why
    )
    return _changed(asked, "canary", change)


async def rollback(asked: Asked) -> Response:
    """Let the version answer that answered before."""
    body: ReasonRequest = await asked.decoded(ReasonRequest)
    change = await asked.service.deployment.rollback(asked.task, who=asked.caller.name, why=body.why)
    return _changed(asked, "rollback", change)


async def remove(asked: Asked) -> Response:
    """Take a task out of service, or drop one of its versions."""
    version = asked.request.path_params.get("version")
    change = await asked.service.deployment.remove(
        asked.task, version, who=asked.caller.name, why=_reason_of_query(asked)
    )
    return _changed(asked, "remove", change)


def _reason_of_query(asked: Asked) -> str:
    why = asked.request.query_params.get("why", "")
    if not why:
        raise DataError("query: has no why; every change has a reason in the history; add ?why=…")
    return decode_body(msgspec.json.encode({"why": why}), ReasonRequest).why


def _changed(asked: Asked, action: str, change: Change, *, status: int = 200) -> Response:
    asked.service.record(action, change, who=asked.caller.name, request_id=asked.request_id)
    return JsonResponse(change, status_code=status)


_TASK = "/v1/tasks/{task}"
_VERSION = "abcdef01" * 8
OPERATIONS = (
    Operation("GET", f"{_TASK}/versions", list_versions, "Every version of a task", "tasks", needs="owner",
              answers=VersionList),
    Operation("POST", f"{_TASK}/versions", register, "Register a version, verified and loaded", "tasks", needs="owner",
              asks=RegisterRequest, answers=Change, status=201, query=OF_ARCHIVE,
              other_bodies=dict.fromkeys(ARCHIVE_TYPES, "an archive of the four files of a branch"),
              example={"source": "/srv/branches/intent", "why": "trained on last week's texts"}),
    Operation("POST", f"{_TASK}/activate", activate, "Answer with a version from now on", "tasks", needs="owner",
              asks=ActivateRequest, answers=Change, example={"version": _VERSION, "why": "better on short texts"}),
    Operation("POST", f"{_TASK}/canary", canary, "Answer a part of the requests with a version", "tasks",
              needs="owner", asks=CanaryRequest, answers=Change,
              example={"version": _VERSION, "percent": 5, "why": "try it"}),
    Operation("POST", f"{_TASK}/rollback", rollback, "Answer with the version before", "tasks", needs="owner",
              asks=ReasonRequest, answers=Change, example={"why": "worse on names"}),
    Operation("DELETE", _TASK, remove, "Take a task out of service", "tasks", needs="owner", answers=Change,
              query=REASON),
    Operation("DELETE", f"{_TASK}/versions/{{version}}", remove, "Drop a version that does not answer", "tasks",
              needs="owner", answers=Change, query=REASON),
    Operation("GET", f"{_TASK}/history", list_history, "Every change of a task", "tasks", needs="owner",
              answers=History),
    Operation("GET", "/v1/history", list_history, "Every change", "tasks", needs="changes", answers=History),
)  # fmt: skip
