"""A client of the server: the same methods for code that waits and for asyncio, with typed answers and retries."""

from trunkline.client.async_client import AsyncAnswerStream, AsyncClient
from trunkline.client.calls import AnalyzeOptions
from trunkline.client.sync_client import AnswerStream, Client
from trunkline.wire import (
    AnalyzeResponse,
    Answer,
    CanaryInfo,
    Change,
    HistoryEntry,
    LabelAnswer,
    LabelsAnswer,
    ScoreAnswer,
    ScoredLabel,
    SpansAnswer,
    TaskInfo,
    TextSpan,
    Timings,
    VersionInfo,
)

__all__ = [
    "AnalyzeOptions",
    "AnalyzeResponse",
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncClient",
    "CanaryInfo",
    "Change",
    "Client",
    "HistoryEntry",
    "LabelAnswer",
    "LabelsAnswer",
    "ScoreAnswer",
    "ScoredLabel",
    "SpansAnswer",
    "TaskInfo",
    "TextSpan",
    "Timings",
    "VersionInfo",
]
