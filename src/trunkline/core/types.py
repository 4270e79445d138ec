"""The values that flow from a text to an answer: Example -> Encoded -> Batch -> … -> Prediction.

Shapes are spelt here for numpy and in `trunkline.model.shapes` for torch, nowhere else.
"""

from dataclasses import dataclass
from typing import TypeAlias

import msgspec
import numpy as np
from jaxtyping import Bool, Float, Int

TokenIds: TypeAlias = Int[np.ndarray, " tokens"]
"""int32: ids of one encoded row, special tokens included."""
CharOffsets: TypeAlias = Int[np.ndarray, "tokens 2"]
"""int32: start and end of each token in its own text, in characters; (0, 0) for special tokens."""
BatchIds: TypeAlias = Int[np.ndarray, "rows tokens"]
"""int64: padded ids of several rows."""
BatchMask: TypeAlias = Bool[np.ndarray, "rows tokens"]
"""True where a token is real, False where it is padding."""
Logits: TypeAlias = Float[np.ndarray, "*positions labels"]
"""float32: one column for each label; one line for each row or word, or for a single row just its columns."""

Target: TypeAlias = str | float | tuple[str, ...]
"""A class name; a score; class names (multi-label) or one tag for each word (tagging)."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data set, as read.

    Attributes:
        text: The text that is encoded. Pre-split words have been joined to this string.
        text_pair: The second text of a pair, or None.
        target: What is to be predicted, or None where a row has no label.
        word_spans: For tagging: (start, end) of each word in ``text``, in characters.
    """

    text: str
    text_pair: str | None = None
    target: Target | None = None
    word_spans: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One row: token ids and where they came from.

    Attributes:
        token_ids: (tokens,) int32.
        type_ids: (tokens,) int32; 0 for the first text, 1 for the second where the architecture has types.
        offsets: (tokens, 2) int32, characters in the token's own text.
        sequence: (tokens,) int8; 0 first text, 1 second text, -1 special token.
        truncated: Whether the text was longer than ``max_length`` tokens and was cut.
    """

    token_ids: TokenIds
    type_ids: TokenIds
    offsets: CharOffsets
    sequence: TokenIds
    truncated: bool

    def key(self) -> bytes:
        """What makes two rows one row: their token ids and types (design.md, section 2)."""
        return self.token_ids.astype("<i4").tobytes() + b"|" + self.type_ids.astype("<i4").tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Several rows, padded to the longest of them.

    Attributes:
        token_ids: (rows, tokens) int64.
        type_ids: (rows, tokens) int64.
        mask: (rows, tokens) bool, True where a token is real.
    """

    token_ids: BatchIds
    type_ids: BatchIds
    mask: BatchMask


class LabelPrediction(msgspec.Struct, frozen=True, tag="label", tag_field="kind", kw_only=True, gc=False):
    """Answer of a classification task.

    ``label`` is None when the branch abstains: its confidence lies under the branch's ``abstain_below``.
    """

    label: str | None
    confidence: float
    probabilities: dict[str, float]


class LabelsPrediction(msgspec.Struct, frozen=True, tag="labels", tag_field="kind", kw_only=True, gc=False):
    """Answer of a multi-label task: every label whose probability reaches its threshold."""

    labels: tuple[str, ...]
    probabilities: dict[str, float]


class ScorePrediction(msgspec.Struct, frozen=True, tag="score", tag_field="kind", kw_only=True, gc=False):
    """Answer of a regression task, in the unit of the training data."""

    score: float


class Span(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One tagged span: ``text[start:end]``, offsets in characters; confidence is its least sure word's."""

    label: str
    start: int
    end: int
    text: str
    confidence: float


class SpansPrediction(msgspec.Struct, frozen=True, tag="spans", tag_field="kind", kw_only=True, gc=False):
    """Answer of a tagging task."""

    spans: tuple[Span, ...]


Prediction: TypeAlias = LabelPrediction | LabelsPrediction | ScorePrediction | SpansPrediction
