"""What goes over the network: requests, answers, errors. Server and client share these types.

Unknown keys of a request are refused; a client ignores unknown keys of an answer, so that servers may be newer.
"""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

VersionState: TypeAlias = Literal["active", "canary", "ready", "stored"]
Offsets: TypeAlias = Literal["codepoints", "utf16", "bytes"]
Text: TypeAlias = Annotated[str, Meta(examples=["wake me up at seven"])]
Percent: TypeAlias = Annotated[float, Meta(ge=0, le=100)]
Why: TypeAlias = Annotated[str, Meta(min_length=1, max_length=500, examples=["better on short texts"])]
VersionName: TypeAlias = Annotated[
    str, Meta(pattern="^[0-9a-f]{8,64}$", description="Digest of a branch, or its first 8 digits or more.")
]


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of requests: frozen, keyword-only, unknown keys refused."""


class AnalyzeRequest(Asked, frozen=True, kw_only=True):
    """Texts, or pairs of texts, and what is asked about them.

    Attributes:
        texts: Single texts; either these or ``pairs``.
        pairs: Pairs of texts, for tasks that take pairs.
        tasks: Which tasks answer; leave it out for all that take this form of input.
        probabilities: Whether answers carry the probability of every label.
        top_k: Give so many labels, the most probable first.
        offsets: What spans count in: Unicode code points (as Python does), UTF-16 units (as JavaScript does), or bytes
            of UTF-8.
        truncate: Cut texts that are longer than a task's ``max_length``; without it they are refused.
        deadline_ms: Milliseconds from arrival after which no answer is wanted.
        key: Whose request this is, for canaries: equal keys get equal versions.
    """

    texts: list[Text] | None = None
    pairs: list[tuple[Text, Text]] | None = None
    tasks: list[str] | None = None
    probabilities: bool = False
    top_k: Annotated[int, Meta(ge=1, le=1000)] | None = None
    offsets: Offsets = "codepoints"
    truncate: bool = False
    deadline_ms: Annotated[float, Meta(gt=0, le=3_600_000)] | None = None
    key: Annotated[str, Meta(max_length=256)] | None = None


class Timings(msgspec.Struct, frozen=True, gc=False):
    """Where the time of an answer went, in milliseconds; 0 where it was known from before.

    Attributes:
        queue_ms: Until its text ran.
        trunk_ms: From there until the trunk had been run up to the branch's exit.
        branch_ms: That the branch took, for all texts that it ran on.
        decode_ms: From logits to answers, for all texts of this request that ran together.
    """

    queue_ms: float
    trunk_ms: float
    branch_ms: float
    decode_ms: float


class ScoredLabel(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A label and its probability, 0 to 1."""

    label: str
    confidence: float


class TextSpan(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One tagged span of the text; ``start`` and ``end`` in the unit asked for, ``end`` excluded."""

    label: str
    start: int
    end: int
    text: str
    confidence: float


class _Answer(msgspec.Struct, frozen=True, tag_field="kind", gc=False):
    """What all answers carry; given by place, in this order, where one is made: names take longer, once a task.

    Attributes:
        index: Which of the texts or pairs.
        task: Which task.
        version: Digest of the branch that answered.
        label_schema_version: Of its labels; raised by their owner when their meaning changes.
        truncated: Whether the text was cut.
        timings: Where the time went.
    """

    index: int
    task: str
    version: str
    label_schema_version: int
    truncated: bool
    timings: Timings


class LabelAnswer(_Answer, frozen=True, tag="label", gc=False):
    """Answer of a classification task.

    Attributes:
        label: None where the branch abstains.
        confidence: Of the most probable label.
        abstained: Whether it abstains: the confidence lies under the branch's threshold.
        top: With ``top_k``: so many labels, the most probable first.
        probabilities: When asked for: of every label.
    """

    label: str | None
    confidence: float
    abstained: bool
    top: list[ScoredLabel] | UnsetType = UNSET
    probabilities: dict[str, float] | UnsetType = UNSET


class LabelsAnswer(_Answer, frozen=True, tag="labels", gc=False):
    """Answer of a multi-label task: labels that reach their threshold, the most probable first; the rest as above."""

    labels: list[ScoredLabel]
    top: list[ScoredLabel] | UnsetType = UNSET
    probabilities: dict[str, float] | UnsetType = UNSET


class ScoreAnswer(_Answer, frozen=True, tag="score", gc=False):
    """Answer of a regression task, in the unit of its training data."""

    score: float


class SpansAnswer(_Answer, frozen=True, tag="spans", gc=False):
    """Answer of a tagging task, in the order of the text."""

    spans: list[TextSpan]


Answer: TypeAlias = LabelAnswer | LabelsAnswer | ScoreAnswer | SpansAnswer


class AnalyzeResponse(msgspec.Struct, frozen=True, kw_only=True):
    """All answers: for each text or pair, in the order asked, its answers by task."""

    request_id: str
    results: list[dict[str, Answer]]


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong.

    Attributes:
        code: For programs; see the reference of the server.
        message: For people: subject, found, allowed, what to do.
        request_id: Of the request; also in the header ``X-Request-Id`` and in the logs.
    """

    code: str
    message: str
    request_id: str


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """Every answer that is no success."""

    error: ErrorDetail


class AnswerEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="answer"):
    """In a stream: an answer, as soon as it is ready."""

    answer: Answer


class EndEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="end"):
    """Ends a stream that is complete."""

    request_id: str
    n_answers: int


class ErrorEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="error"):
    """Ends a stream that broke off; answers before it hold."""

    error: ErrorDetail


Event: TypeAlias = AnswerEvent | EndEvent | ErrorEvent


class CanaryInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A version that a part of the requests gets."""

    version: str
    percent: float


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One task as it is served.

    Attributes:
        task: Its name.
        kind: What it answers.
        input: ``text`` or ``pair``.
        labels: In the order of the probabilities.
        label_schema_version: Of the labels.
        metric: What it was judged by.
        dev_metric: Points it reached on its dev rows.
        max_length: Longest text in tokens.
        exit_layer: Trunk layers under its branch.
        own_layers: Layers of its branch.
        version: Digest of the branch that answers.
        precision: What the branch computes in.
        canary: A version that a part of the requests gets.
    """

    task: str
    kind: str
    input: str
    labels: tuple[str, ...]
    label_schema_version: int
    metric: str
    dev_metric: float | None
    max_length: int
    exit_layer: int
    own_layers: int
    version: str
    precision: str
    canary: CanaryInfo | None = None


class TaskList(msgspec.Struct, frozen=True, kw_only=True):
    """All tasks.

    Attributes:
        tasks: Those that are served.
        resting: Those that are registered, and that no version answers: new, or taken out of service.
    """

    tasks: list[TaskInfo]
    resting: list[str] = []


class VersionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One version that the registry holds.

    Attributes:
        version: Digest of the branch.
        state: ``active``, ``canary``, ``ready`` (loaded, comes at once) or ``stored``.
        registered_at: UTC, ISO 8601.
        registered_by: Who.
        label_schema_version: Of its labels.
        dev_metric: Points it reached on its dev rows.
        exit_layer: Trunk layers under the branch.
        own_layers: Layers of the branch.
        rollback: Whether `rollback` goes here.
    """

    version: str
    state: VersionState
    registered_at: str
    registered_by: str
    label_schema_version: int
    dev_metric: float | None
    exit_layer: int
    own_layers: int
    rollback: bool


class VersionList(msgspec.Struct, frozen=True, kw_only=True):
    """All versions of a task, oldest first."""

    task: str
    versions: list[VersionInfo]


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One change: who did what to which version, when and why."""

    seq: int
    at: str
    who: str
    action: str
    task: str | None
    version: str | None
    percent: float | None
    why: str


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Changes, oldest first."""

    entries: list[HistoryEntry]


class RegisterRequest(Asked, frozen=True, kw_only=True):
    """Register a branch from where it lies; an archive may be sent in the place of this body.

    Attributes:
        source: A folder of the server, or an address that its settings allow.
        version: The digest that the branch must have; leave it out to take any.
        why: For the history.
    """

    source: Annotated[str, Meta(min_length=1, max_length=2000)]
    version: VersionName | None = None
    why: Why


class ActivateRequest(Asked, frozen=True, kw_only=True):
    """Answer with a version from now on."""

    version: VersionName
    why: Why


class CanaryRequest(Asked, frozen=True, kw_only=True):
    """Answer a part of the requests with a version; 0 percent ends it."""

    version: VersionName
    percent: Percent
    why: Why


class ReasonRequest(Asked, frozen=True, kw_only=True):
    """A change that needs no more than its reason."""

    why: Why


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What a change led to.

    Attributes:
        task: Which task.
        version: Which version was registered, or answers now; None where the task is no longer served.
        seq: Of the entry in the history.
    """

    task: str
    version: str | None
    seq: int
