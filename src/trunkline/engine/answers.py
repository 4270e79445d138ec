"""From a part that the loop delivered to answers."""

from collections.abc import Iterator

import msgspec
import numpy as np

from trunkline.core.specs import BranchSpec
from trunkline.core.types import Example, Prediction
from trunkline.engine.encoding import EncodedRequest
from trunkline.engine.request import Part
from trunkline.model.decode import decode
from trunkline.model.score import Answer
from trunkline.model.score import answer as judged


class TaskAnswer(msgspec.Struct, frozen=True, gc=False):
    """One task's answer to one text.

    Attributes:
        index: Which of the texts.
        task: Which task.
        version: Digest of the branch that answered.
        label_schema_version: Of its labels.
        prediction: The answer.
        truncated: Whether the text was longer than the task's ``max_length`` and was cut.
        queued_s: Seconds that the text waited until it ran; 0 where the answer was known.
        trunk_s: Seconds from there until the trunk had been run up to the branch's exit.
        branch_s: Seconds that the branch took, for all rows that it ran on.
    """

    index: int
    task: str
    version: str
    label_schema_version: int
    prediction: Prediction
    truncated: bool
    queued_s: float
    trunk_s: float
    branch_s: float


class RawAnswer(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One task's logits for one text.

    Attributes:
        index: Which of the texts.
        logits: Float32, (n_outputs,), or (tokens, n_outputs) for tagging, special tokens included.
        positions: For tagging, which of the tokens each word reads (see `trunkline.data.tokenize.word_positions`).
        truncated: Whether the text was cut.
    """

    index: int
    logits: np.ndarray
    positions: np.ndarray | None
    truncated: bool

    @property
    def of_words(self) -> np.ndarray:
        """The logits, for tagging only those that words read."""
        return self.logits if self.positions is None else np.asarray(self.logits[self.positions[self.positions >= 0]])

    def judged(self, spec: BranchSpec) -> Answer:
        """In the form that metrics take."""
        return judged(self.of_words, spec, self.positions)


def raw_answers(encoded: EncodedRequest, part: Part) -> Iterator[RawAnswer]:
    """Logits, text by text."""
    spec = part.branch.spec
    for number, logits in zip(part.rows, part.logits, strict=True):
        row = encoded.rows[number]
        for index in encoded.readers[spec.task][number]:
            # Texts with equal token ids may have their words at other places.
            positions = encoded.positions(number, index) if spec.kind == "tagging" else None
            yield RawAnswer(index, logits, positions, row.truncated)


def predictions(encoded: EncodedRequest, part: Part, *, best_only: bool = False) -> list[tuple[int, Prediction, bool]]:
    """Decoded answers, text by text: which of the texts, the answer, and whether the text was cut.

    Args:
        encoded: What was asked.
        part: What was found.
        best_only: See `trunkline.model.decode.decode`.
    """
    spec = part.branch.spec
    found = []
    for raw in raw_answers(encoded, part):
        example = encoded.examples[raw.index]
        if spec.kind == "tagging":
            example = Example(text=example.text, word_spans=encoded.words(raw.index))
        prediction = decode(raw.of_words, spec, example, raw.positions, best_only=best_only)
        found.append((raw.index, prediction, raw.truncated))
    return found


def task_answers(encoded: EncodedRequest, part: Part) -> Iterator[TaskAnswer]:
    """As `predictions`, with who answered and where the time went."""
    spec = part.branch.spec
    for index, prediction, truncated in predictions(encoded, part):
        yield TaskAnswer(
            index=index,
            task=spec.task,
            version=part.branch.digest,
            label_schema_version=spec.label_schema_version,
            prediction=prediction,
            truncated=truncated,
            queued_s=part.queued_s,
            trunk_s=part.trunk_s,
            branch_s=part.branch_s,
        )
