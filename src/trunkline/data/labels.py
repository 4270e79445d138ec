"""The labels of a task and their fixed order."""

from collections import Counter
from collections.abc import Iterable, Sequence

from trunkline.core.errors import DataError, SpecError, UnknownNameError, nearest_hint
from trunkline.core.specs import OUTSIDE, TaskSpec
from trunkline.core.types import Example, Target


def labels_of(task: TaskSpec, train: Sequence[Example]) -> tuple[str, ...]:
    """A task's labels in the order of its logits' columns: those of the task file, else those of train.

    Labels that are read from train are sorted; tags are ``O``, then ``B-x``, ``I-x`` for each entity type ``x``.

    Args:
        task: The task.
        train: Its train rows; not looked at when the task file lists labels.

    Returns:
        Labels, each once; empty for regression.

    Raises:
        DataError: Train holds too few labels to learn from.
        UnknownNameError: ``positive_label`` is none of the labels.
        SpecError: The task file lists too few labels, or what it lists makes no set of tags.
    """
    if task.kind == "regression":
        return ()
    labels = listed_labels(task)
    if labels is None:
        names = sorted({name for row in train for name in target_labels(row.target)})
        labels = _tags_of_types(entity_types(names)) if task.kind == "tagging" else tuple(names)
    least = 1 if task.kind == "multilabel" else 2
    if len(labels) < least:
        raise (DataError if task.labels is None else SpecError)(
            f"task {task.name!r}: {'train has' if task.labels is None else 'the task file lists'} {len(labels)} labels "
            f"({', '.join(labels) or 'none'}); {task.kind} needs at least {least}; check the data, or list them all"
        )
    if task.positive_label is not None and task.positive_label not in labels:
        raise UnknownNameError(
            f"task {task.name!r}: positive_label {task.positive_label!r} is none of its labels; "
            f"{nearest_hint(task.positive_label, labels)}"
        )
    return labels


def listed_labels(task: TaskSpec) -> tuple[str, ...] | None:
    """The labels that the task file lists, or None when it leaves them to train; entity types become tags.

    Raises:
        SpecError: Tags and entity types are mixed, ``O`` is missing, a tag has no type, or an ``I-x`` no ``B-x``.
    """
    if task.labels is None or task.kind != "tagging":
        return task.labels
    if not any(label == OUTSIDE or label.startswith(("B-", "I-")) for label in task.labels):
        return _tags_of_types(task.labels)
    for label in task.labels:
        begins = label == OUTSIDE or label.startswith("B-")
        if not is_tag(label) or not (begins or f"B-{label[2:]}" in task.labels):
            raise SpecError(
                f"task {task.name!r}: labels has {label!r} among tags; allowed are 'O', 'B-x', and 'I-x' where 'B-x' "
                "is there too; list all tags, or the entity types alone"
            )
    if OUTSIDE not in task.labels:
        raise SpecError(f"task {task.name!r}: labels lists tags without 'O'; add it, or list the entity types alone")
    return task.labels


def unseen_labels(labels: Sequence[str], examples: Iterable[Example]) -> dict[str, int]:
    """Count labels that a task does not know; they are reported, not refused (ATIS has some in dev).

    Args:
        labels: The labels that the branch knows.
        examples: Rows of dev or test.

    Returns:
        Each unknown label with how often it occurs (for tagging: on how many words), sorted by label.
    """
    known = frozenset(labels)
    counts = Counter(name for row in examples for name in target_labels(row.target) if name not in known)
    return dict(sorted(counts.items()))


def label_index(labels: Sequence[str]) -> dict[str, int]:
    """Each label's column of the logits."""
    return {label: index for index, label in enumerate(labels)}


def target_labels(target: Target | None) -> tuple[str, ...]:
    """The labels that a target holds: none for a score or a row without target."""
    if isinstance(target, tuple):
        return target
    return (target,) if isinstance(target, str) else ()


def entity_types(tags: Iterable[str]) -> tuple[str, ...]:
    """The entity types of tags, sorted."""
    return tuple(sorted({tag[2:] for tag in tags if tag != OUTSIDE}))


def is_tag(tag: str) -> bool:
    """Whether a tag is ``O``, or ``B-x`` or ``I-x`` with a type without white space around it."""
    return tag == OUTSIDE or (tag.startswith(("B-", "I-")) and len(tag) > 2 and tag[2:] == tag[2:].strip())


def _tags_of_types(types: Sequence[str]) -> tuple[str, ...]:
    return (OUTSIDE, *(f"{prefix}-{name}" for name in types for prefix in "BI"))
