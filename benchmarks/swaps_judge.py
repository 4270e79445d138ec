"""Whether answers under changes came from versions that were in place, and are what they were before."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from benchmarks.swaps_changes import Made
from benchmarks.swaps_load import Answered, Seen

TOLERANCE = 0.02
"""Of a probability, in bf16 (design.md, section 7)."""
_CLOCK_S = 0.002
"""Entries tell their time in whole milliseconds."""
Versions = Mapping[str, frozenset[str]]
"""Task to the versions that may answer: the active one and a canary."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Which versions were in place when.

    Attributes:
        states: After each entry of the history from the first that counts: task to versions.
        written: When each entry was written, in seconds since the epoch; never later than it took effect.
        acknowledged: When each was acknowledged; the state before it answers nobody who asks later.
    """

    states: Sequence[Versions]
    written: Sequence[float]
    acknowledged: Sequence[float]

    def allowed(self, task: str, asked: float, answered: float) -> frozenset[str]:
        """Versions that were in place at a moment between asking and answering."""
        # The state before the window lasts until its successor took effect, which is acknowledged after that.
        first = max((place for place, at in enumerate(self.acknowledged) if at < asked), default=0)
        last = max((place for place, at in enumerate(self.written) if at <= answered + _CLOCK_S), default=0)
        return frozenset().union(*(state.get(task, frozenset()) for state in self.states[first : last + 1]))


def timeline_of(entries: Sequence[Mapping[str, Any]], start: Versions, made: Iterable[Made]) -> Timeline:
    """The timeline of a registry that only one client changed.

    Args:
        entries: Of its history, those after the start.
        start: What was in place before them.
        made: Changes as the client saw them.
    """
    acknowledged = {each.seq: each.done for each in made if each.seq is not None}
    states, written, done = [start], [0.0], [0.0]
    active = {task: next(iter(versions)) for task, versions in start.items()}
    for entry in entries:
        task, action, version = entry["task"], entry["action"], entry["version"]
        present = states[-1][task]
        if action in ("activate", "rollback"):
            active[task], present = version, frozenset({version})
        elif action == "canary":
            present = frozenset({active[task], version} if entry["percent"] else {active[task]})
        states.append({**states[-1], task: present})
        written.append(datetime.fromisoformat(entry["at"]).timestamp())
        done.append(acknowledged.get(entry["seq"], float("inf")))
    return Timeline(states, written, done)


@dataclass(slots=True)
class Judged:
    """What answers were like.

    Attributes:
        n_answers: Of one task to one text.
        failed: What was said of requests without an answer.
        wrong_version: Answers of versions that were not in place.
        changed: Answers that are not what they were before.
        largest_difference: Of a probability, between equal labels.
        versions: How many versions of each task were seen.
    """

    n_answers: int = 0
    failed: list[str] = field(default_factory=list)
    wrong_version: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    largest_difference: float = 0.0
    versions: Counter[str] = field(default_factory=Counter)


def judge(answered: Iterable[Answered], timeline: Timeline, before: Sequence[Mapping[str, Seen]]) -> Judged:
    """Judge every request.

    Args:
        answered: Requests.
        timeline: What was in place.
        before: For each text what was answered before any change.
    """
    judged, seen = Judged(), set[tuple[str, str]]()
    for each in answered:
        if each.results is None:
            judged.failed.append(each.failure)
            continue
        for task, expected in before[each.text].items():
            found = each.results.get(task)
            judged.n_answers += 1
            if found is None:
                judged.failed.append(f"task {task} is missing from an answer")
                continue
            seen.add((task, found.version))
            if found.version not in timeline.allowed(task, each.due, each.done):
                judged.wrong_version.append(f"{task}: {found.version[:12]} at {each.done:.3f}")
            difference = difference_of(found, expected)
            if difference is None or difference > TOLERANCE:
                judged.changed.append(f"{task}, text {each.text}: {expected} became {found}")
            judged.largest_difference = max(judged.largest_difference, difference or 0.0)
    judged.versions.update(task for task, _ in seen)
    return judged


def difference_of(found: Seen, expected: Seen) -> float | None:
    """The largest difference of a probability; None where labels or spans are others."""
    if found.label != expected.label or len(found.spans) != len(expected.spans):
        return None
    pairs = [(found.confidence, expected.confidence)]
    for mine, theirs in zip(found.spans, expected.spans, strict=True):
        if (mine.label, mine.start, mine.end) != (theirs.label, theirs.start, theirs.end):
            return None
        pairs.append((mine.confidence, theirs.confidence))
    return max(abs(one - other) for one, other in pairs)
