"""Pure pieces of the server's benchmarks of faults, attacks and changes: judging, timelines, flips, tables."""

import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks import server_hostile, server_kills, server_swaps
from benchmarks.hostile_archives import flip, places
from benchmarks.hostile_wire import Tried, tried
from benchmarks.kills_files import fail_every_call
from benchmarks.kills_writer import change_at_random, unreadable
from benchmarks.server_hostile import Found
from benchmarks.swaps_changes import Made, shuffled_kinds
from benchmarks.swaps_judge import Timeline, difference_of, judge, timeline_of
from benchmarks.swaps_load import Answered, Seen, SeenSpan
from tests.tiny_registries import NEWER, SAID, make_registry
from trunkline.bundle import files as bundle_files
from trunkline.bundle import history
from trunkline.bundle.registry import Registry

BEFORE = [{"intent": Seen("a", "music", 0.9)}]


def timeline() -> Timeline:
    """Version a; b is activated at 10 and acknowledged at 11; c is a canary from 20, acknowledged at 21."""
    entries = [
        {"seq": 4, "at": "1970-01-01T00:00:10+00:00", "task": "intent", "action": "activate", "version": "b"},
        {"seq": 5, "at": "1970-01-01T00:00:20+00:00", "task": "intent", "action": "canary", "version": "c",
        "percent": 5.0},
    ]  # fmt: skip
    made = [Made("activate", 9.0, 11.0, 4), Made("canary", 19.0, 21.0, 5)]
    return timeline_of(entries, {"intent": frozenset("a")}, made)


@pytest.mark.parametrize(
    ("asked", "answered", "allowed"),
    [(1, 2, "a"), (1, 10.5, "ab"), (10.5, 10.6, "ab"), (12, 13, "b"), (12, 20.5, "bc"), (22, 23, "bc"), (1, 23, "abc")],
)
def test_versions_in_place_between_asking_and_answering_are_allowed(
    asked: float, answered: float, allowed: str
) -> None:
    assert timeline().allowed("intent", asked, answered) == frozenset(allowed)


def test_the_end_of_a_canary_leaves_the_active_version() -> None:
    entries = [
        {
            "seq": 1,
            "at": "1970-01-01T00:00:10+00:00",
            "task": "intent",
            "action": "canary",
            "version": "c",
            "percent": p,
        }
        for p in (5.0, 0.0)
    ]
    states = timeline_of(entries, {"intent": frozenset("a")}, []).states
    assert [each["intent"] for each in states] == [frozenset("a"), frozenset("ac"), frozenset("a")]


def test_answers_are_judged_by_version_and_by_value() -> None:
    def answered(version: str, label: str, confidence: float) -> Answered:
        return Answered(0, 12.0, 13.0, {"intent": Seen(version, label, confidence)})

    asked = [
        answered("b", "music", 0.91), answered("a", "music", 0.9), answered("b", "music", 0.8), answered("b",
        "book", 0.9),
        Answered(0, 12.0, 13.0, None, "refused"), Answered(0, 12.0, 13.0, {}),
    ]  # fmt: skip
    judged = judge(asked, timeline(), BEFORE)
    assert (len(judged.failed), len(judged.wrong_version), len(judged.changed)) == (2, 1, 2)
    assert judged.n_answers == 5


def test_spans_are_compared_with_their_places() -> None:
    span = SeenSpan("city", 0, 5, 0.9)
    assert difference_of(Seen("a", spans=(span,)), Seen("b", spans=(SeenSpan("city", 0, 5, 0.8),))) == pytest.approx(
        0.1
    )
    assert difference_of(Seen("a", spans=(span,)), Seen("b", spans=(SeenSpan("city", 1, 5, 0.9),))) is None
    assert difference_of(Seen("a", spans=(span,)), Seen("b")) is None


def test_changes_are_as_many_as_asked_for() -> None:
    kinds = shuffled_kinds(60, 10, random.Random(0))
    assert len(kinds) == 60
    assert kinds.count("upload") == 10
    assert min(kinds.count(each) for each in ("activate", "canary", "rollback")) >= 16


def test_a_flipped_byte_is_the_only_difference() -> None:
    content = bytes(range(100))
    chosen = places(100, 5, random.Random(0))
    assert {0, 99} <= set(chosen)
    for place in chosen:
        flipped = flip(content, place)
        assert [i for i in range(100) if flipped[i] != content[i]] == [place]


def test_statuses_of_all_pipelined_answers_are_found() -> None:
    answer = b"HTTP/1.1 200 OK\r\n\r\n{}HTTP/1.1 404 Not Found\r\n\r\n"
    assert tried("x", answer).statuses == (200, 404)
    assert tried("x", b"").statuses == ()


def test_what_was_answered_wrongly_is_found() -> None:
    found = Found()
    found.take(
        "some",
        iter([Tried("a", (200, 404), b""), Tried("b", (503,), b""), Tried("c", (500,), b""), Tried("d", (), b"")]),
    )
    found.take("more", iter([Tried("e", (400,), b"Traceback (most recent call last)")]))
    assert found.n == 6
    assert len(found.unexpected) == len(found.traced) == 1
    assert found.statuses["none"] == 1


def test_every_failing_operation_leaves_a_registry_that_goes_on(tmp_path: Path) -> None:
    folder = make_registry(tmp_path)
    changes = {"register": lambda registry: registry.register(folder / NEWER[0], **SAID)}
    found = fail_every_call(folder / "registry", changes, every=5)
    assert found.lost == []
    assert found.n > 10
    assert {"open", "write", "fsync"} & set(found.by_call)


def test_a_writer_that_does_not_take_back_what_failed_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_registry(tmp_path)

    def careless(path: Path, entry: history.Entry, *, size_bytes: int) -> None:  # noqa: ARG001
        path.write_bytes(path.read_bytes() + history.encode_entry(entry))
        bundle_files.fsync_folder(path.parent)

    monkeypatch.setattr("trunkline.bundle.registry.append_entry", careless)
    changes = {"remove": lambda registry: registry.remove("intent", **SAID)}
    assert fail_every_call(folder / "registry", changes, every=1).lost


def test_a_damaged_version_is_noticed(tmp_path: Path) -> None:
    folder = make_registry(tmp_path)
    registry = Registry.open(folder / "registry")
    assert unreadable(registry) == []
    file = next((folder / "registry").glob("branches/intent/*/branch.safetensors"))
    file.write_bytes(flip(file.read_bytes(), 500))
    assert len(unreadable(registry)) == 2


def test_random_changes_happen(tmp_path: Path) -> None:
    folder = make_registry(tmp_path)
    registry, rng = Registry.open(folder / "registry"), random.Random(0)
    made = [change_at_random(registry, [folder / name for name in NEWER], rng) for _ in range(120)]
    assert sum(made) > 10
    assert {"register", "activate"} <= {entry.action for entry in registry.history()}


def result_of(figures: dict[str, float], **details: Any) -> dict[str, Any]:
    return {
        "command": "python -m benchmarks some", "commit": "0" * 40, "started_at": "2026-01-02T03:04:05+00:00",
        "machine": {"n_cpus": 2, "cpu": "A processor"}, "figures": figures, "details": details,
    }  # fmt: skip


def test_tables_and_pictures_say_what_was_measured(tmp_path: Path) -> None:
    kills = result_of(
        {"kills": 210, "lost": 0, "failed_operations": 340},
        writers={"n_kills": 200, "n_acknowledged": 900},
        servers={"n_kills": 10, "n_acknowledged": 50, "n_answers": 9000, "restart_s": [1.5]},
        files={"by_call": {"open": 3}, "n_taken_back": 300, "n_made": 40},
    )
    hostile = result_of(
        {"requests": 20_000, "unexpected_5xx": 0, "memory_growth_share": 0.02, "tracebacks": 0,
        "same_answers_after": 1},
        n_tracebacks_in_log=0, flipped_bytes={"n": 32, "not_refused": []}, flipped_starts={"n": 6, "not_refused": []},
        megabytes=[500.0, 550.0, 561.0],
        statuses={"400": 10, "none": 2},
    )  # fmt: skip
    stretch = {"changing": False, "p99_ms": 10.0}
    swaps = result_of(
        {"changes": 1000, "failed": 0, "wrong_version": 0, "changed": 0, "p99_ratio": 1.05},
        n_requests=9, n_answers=90, rate_per_s=70.0, peak_per_s=140.0, stretches=[stretch, {**stretch,
        "changing": True}],
        changes={"upload": {"n": 1, "median_s": 1.0, "slowest_s": 2.0}},
    )  # fmt: skip
    for module, result, words in (
        (server_kills, kills, "| **lost** | **0** | to be 0 |"),
        (server_hostile, hostile, "| memory growth (PSS) | 2.0% | at most 5% |"),
        (server_hostile, hostile, "500 MB, 550 MB, 561 MB"),
        (server_swaps, swaps, "| ratio of the two | 1.05 | at most 1.15 |"),
    ):
        assert words in module.markdown_table(result)
        module.draw(result, tmp_path / f"{module.BENCHMARK.name}.png")
        assert (tmp_path / f"{module.BENCHMARK.name}.png").stat().st_size > 1000
