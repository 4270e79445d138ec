"""The engine: texts in, every task's answer out, one trunk pass for each distinct row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from trunkline.bundle.store import open_bundle
from trunkline.core.errors import DataError, NonFiniteError, UnknownNameError, nearest_hint
from trunkline.core.specs import BranchSpec
from trunkline.core.types import Encoded, Example, Prediction
from trunkline.data.collate import collate, length_batches
from trunkline.data.tokenize import Tokenizer, word_positions
from trunkline.data.words import split_words
from trunkline.engine.runner import Runner
from trunkline.model.branch import load_branch
from trunkline.model.decode import decode
from trunkline.model.score import Answer, answer
from trunkline.model.trunk import Trunk

ROWS_PER_BATCH = 32

ValueT = TypeVar("ValueT")

_Asked: TypeAlias = dict[str, list[int]]
"""Task name to the indices of the examples that it answers."""


@dataclass(frozen=True, slots=True, eq=False)
class _Raw:
    """One example under one task: how it was encoded, and its logits without padding."""

    row: Encoded
    logits: np.ndarray


@dataclass(frozen=True, slots=True)
class Answered:
    """What `Engine.predict_counted` gives.

    Attributes:
        answers: For each example its answers by task, in the order asked.
        n_truncated: Task name to how many of the examples were longer than its ``max_length`` and were cut.
    """

    answers: list[dict[str, Prediction]]
    n_truncated: dict[str, int]


class Engine:
    """Answers texts with the tasks of a bundle; open one with `Engine.open`."""

    def __init__(self, runner: Runner, specs: Mapping[str, BranchSpec], tokenizer: Tokenizer) -> None:
        """Take the parts together; `Engine.open` reads them from a bundle.

        Args:
            runner: Has a branch for each task.
            specs: Task name to what its branch is.
            tokenizer: The backbone's tokenizer.
        """
        self.runner = runner
        self.specs = dict(specs)
        self.tokenizer = tokenizer

    @classmethod
    def open(cls, path: Path, *, tasks: Sequence[str] | None = None, device: str = "cpu") -> "Engine":
        """Read and verify a bundle, or those of its branches that are asked for.

        Args:
            path: The bundle's folder.
            tasks: Which branches to read, so that a damaged one elsewhere is no hindrance, and the trunk only as deep
                as they need; None reads all.
            device: As torch names it.

        Raises:
            UnknownNameError: A task is not in the bundle; the message names the nearest.
            BundleError: What is read is damaged or does not fit together (see `trunkline.bundle.store`).
            SpecError: The machine has no such device.
        """
        bundle = open_bundle(path)
        entries = bundle.manifest.tasks
        wanted = entries if tasks is None else {task: known_task(task, entries) for task in tasks}
        stored = bundle.trunk()
        depth = max((entry.exit_layer for entry in wanted.values()), default=0)
        trunk = Trunk.build(stored.config, stored.tensors, depth=depth)
        branches, specs = {}, {}
        for task in wanted:
            branch = bundle.branch(task)
            specs[task] = branch.spec
            branches[task] = load_branch(branch.spec, stored.config, branch.tensors)
        return cls(Runner(trunk, branches, device), specs, stored.tokenizer)

    def spec(self, task: str) -> BranchSpec:
        """What a task's branch is.

        Raises:
            UnknownNameError: There is no such task; the message names the nearest.
        """
        return known_task(task, self.specs)

    def predict(
        self,
        examples: Sequence[Example] | Sequence[str],
        *,
        tasks: Sequence[str] | None = None,
    ) -> list[dict[str, Prediction]]:
        """Answer texts.

        Args:
            examples: Texts, or texts and pairs; tagging takes an example's ``word_spans`` for words where it has them.
            tasks: Which tasks answer; None lets every task answer whose input form fits the example.

        Returns:
            For each example its answers by task, in the order asked.

        Raises:
            UnknownNameError: A task is not in the bundle.
            DataError: A task for pairs is asked about a single text, or the other way round; or `examples` is a str.
            NonFiniteError: A logit is NaN or infinite.
        """
        return self.predict_counted(examples, tasks=tasks).answers

    def predict_counted(
        self,
        examples: Sequence[Example] | Sequence[str],
        *,
        tasks: Sequence[str] | None = None,
    ) -> Answered:
        """Answer texts, and count those that were cut; arguments and errors as of `predict`."""
        rows = _as_examples(examples)
        asked = self._asked(rows, tasks)
        answers: list[dict[str, Prediction]] = [{} for _ in rows]
        n_truncated = {}
        for task, raw in self._run(rows, asked).items():
            for index, found in zip(asked[task], raw, strict=True):
                answers[index][task] = self._prediction(found, rows[index], self.specs[task])
            n_truncated[task] = sum(found.row.truncated for found in raw)
        return Answered(answers, n_truncated)

    def answers(self, examples: Sequence[Example] | Sequence[str], task: str) -> list[Answer]:
        """Answers of one task in the form that metrics take (see `trunkline.model.score`); errors as of `predict`."""
        return self.answers_counted(examples, task)[0]

    def answers_counted(self, examples: Sequence[Example] | Sequence[str], task: str) -> tuple[list[Answer], int]:
        """As `answers`, and how many of the texts were longer than the task's ``max_length`` and were cut."""
        rows = _as_examples(examples)
        spec = self.spec(task)
        found = self._raw(rows, task)
        answers = []
        for example, raw in zip(rows, found, strict=True):
            positions = _positions(raw.row, example) if spec.kind == "tagging" else None
            answers.append(answer(_lines(raw, positions), spec, positions))
        return answers, sum(raw.row.truncated for raw in found)

    def logits(self, examples: Sequence[Example] | Sequence[str], task: str) -> list[np.ndarray]:
        """Raw logits of one task.

        Returns:
            For each example (n_outputs,) float32, or (tokens, n_labels) for tagging, special tokens included,
            padding left out. Errors as of `predict`.
        """
        return [raw.logits for raw in self._raw(_as_examples(examples), task)]

    def _raw(self, examples: list[Example], task: str) -> list[_Raw]:
        return self._run(examples, self._asked(examples, (task,)))[task]

    def _asked(self, examples: list[Example], tasks: Sequence[str] | None) -> _Asked:
        if tasks is None:
            return {
                task: [index for index, example in enumerate(examples) if _fits(example, spec)]
                for task, spec in self.specs.items()
            }
        for task in tasks:
            spec = self.spec(task)
            for index, example in enumerate(examples):
                check_form(example, spec, f"input {index}")
        return {task: list(range(len(examples))) for task in dict.fromkeys(tasks)}

    def _run(self, examples: list[Example], asked: _Asked) -> dict[str, list[_Raw]]:
        encoded = self._encode(examples, asked)
        distinct, users = _distinct(encoded)
        used = {task: np.isin(np.arange(len(distinct)), rows) for task, rows in users.items()}
        logits: dict[str, dict[int, np.ndarray]] = {task: {} for task in encoded}
        for batch in length_batches([len(row.token_ids) for row in distinct], rows_per_batch=ROWS_PER_BATCH):
            wanted = {task: np.flatnonzero(uses[batch]) for task, uses in used.items()}
            padded = collate([distinct[number] for number in batch], self.tokenizer.pad_id)
            for task, values in self.runner.run(padded, wanted):
                _refuse_non_finite(values, padded.mask[wanted[task]], task)
                logits[task].update(zip(batch[wanted[task]].tolist(), values, strict=True))
        return {
            task: [
                _Raw(row, _unpadded(logits[task][number], row))
                for row, number in zip(rows, users[task].tolist(), strict=True)
            ]
            for task, rows in encoded.items()
        }

    def _encode(self, examples: list[Example], asked: _Asked) -> dict[str, list[Encoded]]:
        # Tasks differ in max_length only: each text is encoded once at the longest, and again only where it is cut.
        indices = sorted({index for chosen in asked.values() for index in chosen})
        longest = max((self.specs[task].max_length for task in asked), default=0)
        whole = dict(
            zip(indices, self.tokenizer.encode([examples[i] for i in indices], max_length=longest), strict=True)
        )
        encoded: dict[str, list[Encoded]] = {}
        for task, chosen in asked.items():
            limit = self.specs[task].max_length
            cut = [index for index in chosen if len(whole[index].token_ids) > limit]
            rows = whole | dict(
                zip(cut, self.tokenizer.encode([examples[i] for i in cut], max_length=limit), strict=True)
            )
            encoded[task] = [rows[index] for index in chosen]
        return encoded

    def _prediction(self, raw: _Raw, example: Example, spec: BranchSpec) -> Prediction:
        if spec.kind != "tagging":
            return decode(raw.logits, spec, example, None)
        positions = _positions(raw.row, example)
        words = Example(text=example.text, word_spans=_word_spans(example))
        return decode(_lines(raw, positions), spec, words, positions)


def known_task(task: str, known: Mapping[str, ValueT]) -> ValueT:
    """What is known of a task.

    Raises:
        UnknownNameError: There is no such task; the message names the nearest.
    """
    if task not in known:
        raise UnknownNameError(f"task {task!r}: is not in the bundle; {nearest_hint(task, known)}")
    return known[task]


def check_form(example: Example, spec: BranchSpec, where: str) -> None:
    """Refuse an example of another input form than the task's.

    Raises:
        DataError: It is a single text and the task takes pairs, or the other way round; the message names `where`.
    """
    if not _fits(example, spec):
        found, wanted, cure = (
            ("a single text", "pairs", "give text_pair with it")
            if spec.input == "pair"
            else ("a pair", "single texts", "remove text_pair")
        )
        raise DataError(f"{where}: is {found}; task {spec.task!r} takes {wanted}; {cure} or leave the task out")


def _as_examples(examples: Sequence[Example] | Sequence[str]) -> list[Example]:
    if isinstance(examples, str):  # A string is a sequence of strings too: of its letters.
        raise DataError(f"{examples[:40]!r}: is a single text; a list of texts is taken; write it in brackets")
    return [Example(text=example) if isinstance(example, str) else example for example in examples]


def _distinct(encoded: Mapping[str, list[Encoded]]) -> tuple[list[Encoded], dict[str, np.ndarray]]:
    """Rows that differ in token ids or types, and for each task which of them its examples read."""
    numbers: dict[bytes, int] = {}
    distinct: list[Encoded] = []
    users: dict[str, np.ndarray] = {}
    for task, rows in encoded.items():
        for row in rows:
            if numbers.setdefault(row.key(), len(distinct)) == len(distinct):
                distinct.append(row)
        users[task] = np.fromiter((numbers[row.key()] for row in rows), dtype=np.int64, count=len(rows))
    return distinct, users


def _fits(example: Example, spec: BranchSpec) -> bool:
    return (example.text_pair is not None) == (spec.input == "pair")


def _word_spans(example: Example) -> tuple[tuple[int, int], ...]:
    return split_words(example.text) if example.word_spans is None else example.word_spans


def _positions(row: Encoded, example: Example) -> np.ndarray:
    return word_positions(row, _word_spans(example))


def _lines(raw: _Raw, positions: np.ndarray | None) -> np.ndarray:
    return raw.logits if positions is None else raw.logits[positions[positions >= 0]]


def _unpadded(logits: np.ndarray, row: Encoded) -> np.ndarray:
    return logits if logits.ndim == 1 else logits[: len(row.token_ids)]


def _refuse_non_finite(logits: np.ndarray, mask: np.ndarray, task: str) -> None:
    # What a tagger says at padding is of no use and not looked at.
    real = logits if logits.ndim == 2 else logits[mask]
    if not np.isfinite(real).all():
        raise NonFiniteError(
            f"task {task!r}: a logit is NaN or infinite; answers must be finite; verify the bundle, replace the branch"
        )
