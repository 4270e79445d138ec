"""Texts to the rows that run: one for all tasks with equal token ids (design.md, section 2)."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
import numpy as np

from trunkline.core.errors import DataError, UnknownNameError, brief, nearest_hint
from trunkline.core.specs import BranchSpec
from trunkline.core.types import Encoded, Example
from trunkline.data.tokenize import word_positions
from trunkline.data.words import WordSpans, split_words
from trunkline.engine.snapshot import LoadedBranch, Snapshot

ValueT = TypeVar("ValueT")


class EncodedRequest(msgspec.Struct, frozen=True, eq=False):
    """Texts and the tasks that were asked about them, as rows.

    Attributes:
        snapshot: Who answers.
        examples: The texts.
        rows: Distinct rows, shortest first.
        asked: Branch to the numbers of its rows, ascending int64.
        readers: Task to, for each of its rows, the indices of the examples that it answers.
    """

    snapshot: Snapshot
    examples: Sequence[Example]
    rows: list[Encoded]
    asked: dict[LoadedBranch, np.ndarray]
    readers: dict[str, dict[int, list[int]]]
    _words: dict[int, WordSpans] = msgspec.field(default_factory=dict)
    _positions: dict[tuple[int, int], np.ndarray] = msgspec.field(default_factory=dict)

    def words(self, index: int) -> WordSpans:
        """An example's words, for tagging: its own, or as `split_words` finds them, once for all tasks."""
        if index not in self._words:
            example = self.examples[index]
            self._words[index] = split_words(example.text) if example.word_spans is None else example.word_spans
        return self._words[index]

    def positions(self, number: int, index: int) -> np.ndarray:
        """Which tokens of a row the words of an example read, once for all tasks (see `word_positions`)."""
        if (number, index) not in self._positions:
            self._positions[number, index] = word_positions(self.rows[number], self.words(index))
        return self._positions[number, index]


def encode_request(
    snapshot: Snapshot, examples: Sequence[Example], tasks: Sequence[str] | None = None
) -> EncodedRequest:
    """Encode texts for tasks.

    Args:
        snapshot: Who answers.
        examples: Texts, or texts and pairs.
        tasks: Which tasks answer; None lets every task answer whose input form fits the example.

    Raises:
        UnknownNameError: A task is not in the bundle.
        DataError: A task for pairs is asked about a single text, or the other way round, or a text is no valid
            Unicode.
    """
    wanted = _wanted(snapshot, examples, tasks)
    encoded = _encode(snapshot, examples, wanted)
    # Tasks share the rows of a text: each object is looked at once.
    different = {id(row): row for each in encoded.values() for row in each}
    by_key: dict[bytes, int] = {}
    numbers: dict[int, int] = {}
    rows: list[Encoded] = []
    # Shortest first, so that rows that run together are about equally long.
    for identity, row in sorted(different.items(), key=lambda item: len(item[1].token_ids)):
        numbers[identity] = by_key.setdefault(row.key(), len(rows))
        if numbers[identity] == len(rows):
            rows.append(row)
    readers: dict[str, dict[int, list[int]]] = {}
    for task, indices in wanted.items():
        of_task = readers.setdefault(task, {})
        for index, row in zip(indices, encoded[task], strict=True):
            of_task.setdefault(numbers[id(row)], []).append(index)
    asked = {snapshot.branches[task]: np.array(sorted(of_task), dtype=np.int64) for task, of_task in readers.items()}
    return EncodedRequest(snapshot, examples, rows, asked, readers)


def known_task(task: str, known: Mapping[str, ValueT]) -> ValueT:
    """What is known of a task.

    Raises:
        UnknownNameError: There is no such task; the message names the nearest.
    """
    if task not in known:
        raise UnknownNameError(f"task {brief(task)!r}: is not in the bundle; {nearest_hint(task, known)}")
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


def as_examples(examples: Sequence[Example] | Sequence[str]) -> list[Example]:
    """Texts as examples.

    Raises:
        DataError: A single text was given in the place of several.
    """
    if isinstance(examples, str):  # A string is a sequence of strings too: of its letters.
        raise DataError(f"{examples[:40]!r}: is a single text; a list of texts is taken; write it in brackets")
    return [Example(text=example) if isinstance(example, str) else example for example in examples]


def _wanted(snapshot: Snapshot, examples: Sequence[Example], tasks: Sequence[str] | None) -> dict[str, list[int]]:
    """Task to the indices of the examples that it answers."""
    specs = {task: branch.spec for task, branch in snapshot.branches.items()}
    if tasks is None:
        fitting = {task: [i for i, example in enumerate(examples) if _fits(example, s)] for task, s in specs.items()}
        return {task: indices for task, indices in fitting.items() if indices}
    different = list(dict.fromkeys(tasks))
    for task in different:
        spec = known_task(task, specs)
        for index, example in enumerate(examples):
            check_form(example, spec, f"input {index}")
    return {task: list(range(len(examples))) for task in different} if examples else {}


def _encode(
    snapshot: Snapshot, examples: Sequence[Example], wanted: Mapping[str, list[int]]
) -> dict[str, list[Encoded]]:
    """The rows of each task, in the order of its examples.

    Tasks differ in ``max_length`` only: each text is encoded once at the longest, and again only where it is cut.
    """
    limits = {task: snapshot.branches[task].spec.max_length for task in wanted}
    tokenizer = snapshot.trunk.tokenizer
    indices = sorted({index for chosen in wanted.values() for index in chosen})
    longest = max(limits.values(), default=0)
    whole = dict(zip(indices, tokenizer.encode([examples[i] for i in indices], max_length=longest), strict=True))
    shorter: dict[int, dict[int, Encoded]] = {longest: {}}
    encoded: dict[str, list[Encoded]] = {}
    for task, chosen in wanted.items():
        cut = shorter.setdefault(limits[task], {})
        rows = []
        for index in chosen:
            if len(whole[index].token_ids) <= limits[task]:
                rows.append(whole[index])
                continue
            if index not in cut:
                (cut[index],) = tokenizer.encode([examples[index]], max_length=limits[task])
            rows.append(cut[index])
        encoded[task] = rows
    return encoded


def _fits(example: Example, spec: BranchSpec) -> bool:
    return (example.text_pair is not None) == (spec.input == "pair")
