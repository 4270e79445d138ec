"""The transfer set: further rows without labels, which a teacher answers and students learn from."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from trunkline.core.errors import DataError
from trunkline.data.augment import augment_rows, find_neighbors
from trunkline.data.read import read_unlabelled
from trunkline.model.backbone import Backbone
from trunkline.train.prepare import PreparedTask, Split, encode_unlabelled
from trunkline.train.spec import TrainRequest

_WORDS = "embeddings.word.weight"


def with_transfer(
    task: PreparedTask, backbone: Backbone, request: TrainRequest, *, note: Callable[[str], None]
) -> PreparedTask:
    """Give a task the transfer set that a request asks for.

    Rows that equal one of the selection or dev rows, by their token ids, are left out: what is measured on was not
    learned from. So are repeats of each other and of the rows to learn from.

    Args:
        task: The prepared task; returned as it is where no transfer set is asked for.
        backbone: Its tokenizer encodes, its word embeddings say which words are neighbors.
        request: Where further rows are, and how many are to be made.
        note: Told how many rows came from where, and how many were left out.

    Raises:
        DataError: The file or a row is wrong, or no row is left.
    """
    if request.transfer is None and not request.augment:
        return task
    read, made = _read_rows(task, backbone, request), _made_rows(task, backbone, request)
    given = [split for split in (read, made) if split is not None]
    every = given[0] if len(given) == 1 else given[0].joined(given[1])
    kept = _sift(every, task)
    subject = f"task {task.spec.name!r}"
    if not kept.indices:
        raise DataError(
            f"{subject}: none of {len(every)} transfer rows is left, because they equal rows of the task; rows that it "
            "does not have are needed; give others with --transfer, or leave --transfer and --augment out"
        )
    transfer = every.take(kept.indices)
    n_read = 0 if read is None else len(read)
    n_cut = sum(row.truncated for row in transfer.rows)
    note(
        f"{subject}: {len(transfer)} transfer rows, of {n_read} read and {len(every) - n_read} made; left out were "
        f"{kept.n_measured} that equal selection or dev rows and {kept.n_repeated} repeats; "
        f"{n_cut} were cut to max_length tokens"
    )
    return replace(task, transfer=transfer)


@dataclass(frozen=True, slots=True)
class _Sifted:
    indices: list[int]
    n_measured: int
    n_repeated: int


def _sift(rows: Split, task: PreparedTask) -> _Sifted:
    measured = _keys(task.selection) | (set() if task.dev is None else _keys(task.dev))
    seen = _keys(task.fit)
    indices, n_measured, n_repeated = [], 0, 0
    for i, row in enumerate(rows.rows):
        key = row.key()
        if key in measured:
            n_measured += 1
        elif key in seen:
            n_repeated += 1
        else:
            indices.append(i)
            seen.add(key)
    return _Sifted(indices, n_measured, n_repeated)


def _keys(split: Split) -> set[bytes]:
    return {row.key() for row in split.rows}


def _read_rows(task: PreparedTask, backbone: Backbone, request: TrainRequest) -> Split | None:
    if request.transfer is None:
        return None
    return encode_unlabelled(task, backbone.tokenizer, read_unlabelled(task.spec, request.transfer))


def _made_rows(task: PreparedTask, backbone: Backbone, request: TrainRequest) -> Split | None:
    """Rows made of the fit rows; as its example each has the one that it was made of, without its target."""
    if not request.augment:
        return None
    neighbors = find_neighbors(backbone.tokenizer.vocabulary(), backbone.tensors[_WORDS], task.fit.rows)
    made = augment_rows(task.fit.rows, neighbors, n_each=request.augment, max_length=task.spec.max_length)
    examples = [replace(example, target=None) for example in task.fit.examples]
    # But for tagging, which is refused, all rows without a label have the same target.
    (unlabelled,) = encode_unlabelled(task, backbone.tokenizer, examples[:1]).targets
    return Split(
        examples=tuple(examples[i] for i, rows in enumerate(made) for _ in rows),
        rows=tuple(row for rows in made for row in rows),
        positions=None,
        targets=(unlabelled,) * sum(len(rows) for rows in made),
    )
