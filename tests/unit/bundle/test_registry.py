import dataclasses
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import msgspec
import pytest

from tests.tiny_bundles import backbone_of, make_branch, make_bundle, other_trunk, put_branch, tree_bytes
from tests.tiny_registries import NEWER, SAID, digest_of, make_registry, read_whole
from trunkline.bundle import merge as merging
from trunkline.bundle.history import Entry, encode_entry, sealed
from trunkline.bundle.registry import Registry, is_registry
from trunkline.bundle.store import Bundle, open_bundle, write_branch
from trunkline.bundle.versions import Canary, TaskState
from trunkline.core.errors import (
    BundleError,
    DigestMismatchError,
    MissingBranchError,
    RegistryError,
    SpecError,
    TrunkMismatchError,
    UnknownNameError,
)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_registry(tmp_path_factory.mktemp("registries"))


@pytest.fixture
def registry(pristine: Path, tmp_path: Path) -> Registry:
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    return Registry.open(tmp_path / "registry")


@pytest.fixture
def first(registry: Registry) -> str:
    return registry.state.tasks["intent"].active or ""


@pytest.fixture
def newer(registry: Registry, tmp_path: Path) -> list[str]:
    return [registry.register(tmp_path / name, **SAID) for name in NEWER]


def intent(registry: Registry) -> TaskState:
    return registry.state.tasks["intent"]


def refused(registry: Registry, change: Callable[[], Any], error: type[Exception], match: str) -> None:
    """The change raises, and nothing on disk is another than before."""
    before = tree_bytes(registry.path)
    with pytest.raises(error, match=match) as caught:
        change()
    assert caught.type is error
    assert tree_bytes(registry.path) == before
    assert Registry.open(registry.path).state == registry.state


def test_a_new_registry_holds_what_the_bundle_does(registry: Registry, tmp_path: Path) -> None:
    bundle = open_bundle(tmp_path / "bundle")
    assert registry.bundle().manifest == bundle.manifest
    assert [entry.action for entry in registry.history()] == ["create", *["register"] * 2, *["activate"] * 2]
    files = tree_bytes(registry.path)
    assert {name for name in files if name.startswith(("trunk", "branches"))} == {
        name for name in tree_bytes(bundle.path) if name.startswith(("trunk", "branches"))
    }
    read_whole(registry.path)


def test_a_registry_needs_the_bundle_no_longer(registry: Registry, tmp_path: Path) -> None:
    before = read_whole(registry.path)
    shutil.rmtree(tmp_path / "bundle")
    assert read_whole(registry.path) == before
    assert registry.bundle().branch("intent").spec.task == "intent"


def test_a_registry_can_be_made_of_a_registry(registry: Registry, tmp_path: Path) -> None:
    copy = Registry.create(tmp_path / "copy", registry.bundle(), **SAID)
    assert copy.bundle().manifest == registry.bundle().manifest


def test_creating_in_a_folder_in_use_is_refused(registry: Registry, tmp_path: Path) -> None:
    bundle = open_bundle(tmp_path / "bundle")
    refused(registry, lambda: Registry.create(registry.path, bundle, **SAID), BundleError, "exists already")


def test_creating_from_a_damaged_bundle_leaves_nothing(pristine: Path, tmp_path: Path) -> None:
    shutil.copytree(pristine / "bundle", tmp_path / "bundle")
    weights = next((tmp_path / "bundle" / "branches" / "slots").glob("*/branch.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(DigestMismatchError):
        Registry.create(tmp_path / "copy", open_bundle(tmp_path / "bundle"), **SAID)
    assert not (tmp_path / "copy").exists()
    assert not list(tmp_path.glob(".copy*"))


def test_only_a_folder_with_a_history_is_a_registry(registry: Registry, tmp_path: Path) -> None:
    assert is_registry(registry.path)
    assert not is_registry(tmp_path / "bundle")
    assert not is_registry(tmp_path / "nothing")
    assert not is_registry(Path("\0"))


@pytest.mark.parametrize("name", ["bundle", "nothing", "\0"])
def test_what_is_no_registry_is_not_opened(pristine: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(pristine / "bundle", tmp_path / "bundle")
    with pytest.raises(BundleError, match="trunkline registry create"):
        Registry.open(tmp_path / name)
    assert not (tmp_path / "nothing").exists()


def test_entries_say_who_when_what_and_why(registry: Registry, tmp_path: Path) -> None:
    clock = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
    other = Registry.open(registry.path, clock=lambda: clock)
    version = other.register(tmp_path / "mood", who="grace", why="asked for by support")
    entry = other.history()[-1]
    assert (entry.who, entry.action, entry.task, entry.version, entry.why) == (
        "grace", "register", "mood", version, "asked for by support"
    )  # fmt: skip
    assert entry.at == "2026-05-04T03:02:01.000+00:00"
    assert other.state.tasks["mood"].versions[version].who == "grace"


@pytest.mark.parametrize("name", ["who", "why"])
def test_a_change_without_a_reason_or_a_name_is_refused(registry: Registry, tmp_path: Path, name: str) -> None:
    said = SAID | {name: " "}
    refused(registry, lambda: registry.register(tmp_path / "mood", **said), SpecError, f"{name} is ' '")
    refused(registry, lambda: registry.remove("slots", **said), SpecError, f"{name} is ' '")


def test_a_registered_version_answers_nothing_yet(registry: Registry, first: str, newer: list[str]) -> None:
    assert list(intent(registry).versions) == [first, *newer]
    assert intent(registry).active == first
    assert registry.bundle().manifest.tasks["intent"].branch == first
    read_whole(registry.path)


def test_a_new_task_has_no_active_version_until_it_is_activated(registry: Registry, tmp_path: Path) -> None:
    version = registry.register(tmp_path / "mood", **SAID)
    assert registry.state.tasks["mood"].active is None
    assert "mood" not in registry.bundle().manifest.tasks
    registry.activate("mood", version, **SAID)
    assert registry.bundle().branch("mood").digest == version


def test_registering_the_same_bytes_again_adds_no_entry(registry: Registry, tmp_path: Path, newer: list[str]) -> None:
    before = registry.history()
    assert registry.register(tmp_path / NEWER[0], **SAID) == newer[0]
    assert registry.history() == before
    assert Registry.open(registry.path).history() == before


def test_a_removed_version_can_be_registered_again(registry: Registry, tmp_path: Path, newer: list[str]) -> None:
    registry.remove("intent", newer[0], **SAID)
    assert registry.register(tmp_path / NEWER[0], **SAID) == newer[0]
    assert list(intent(registry).versions)[1:] == [*newer[1:], newer[0]]


def test_who_checks_a_new_version_gets_the_branch_that_was_read(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[str, bool]] = []

    def refuse_to_read(*_: Any, **__: Any) -> bytes:
        raise AssertionError("the branch was read again")

    def check(bundle: Bundle) -> None:
        with monkeypatch.context() as patched:
            patched.setattr("trunkline.bundle.store.read_inside", refuse_to_read)
            branch = bundle.branch("intent")
            found.append((branch.digest, bundle.golden("intent") is branch.golden))

    version = registry.register(tmp_path / NEWER[0], check=check, **SAID)
    assert found == [(version, True)]
    assert registry.bundle({"intent": version}).branch("intent").digest == version


def test_a_branch_of_another_trunk_is_refused_with_both_values(registry: Registry, tmp_path: Path) -> None:
    made = make_branch("mood", backbone_of())
    write_branch(tmp_path / "other", other_trunk(made.spec), made.tensors, made.golden)
    match = f"{'f' * 64}.*{backbone_of().chain[2]}"
    refused(registry, lambda: registry.register(tmp_path / "other", **SAID), TrunkMismatchError, match)


def test_a_branch_deeper_than_the_trunk_is_refused_with_what_to_do(registry: Registry, tmp_path: Path) -> None:
    change = lambda: registry.register(tmp_path / "deep", **SAID)  # noqa: E731
    refused(registry, change, TrunkMismatchError, r"after layer 4.*up to layer 2.*create a registry from that")


def test_a_branch_that_does_not_fit_is_refused(registry: Registry, tmp_path: Path) -> None:
    made = make_branch("mood", backbone_of())
    tensors = {name: tensor for name, tensor in made.tensors.items() if name != "head.output.bias"}
    write_branch(tmp_path / "other", made.spec, tensors, made.golden)
    refused(registry, lambda: registry.register(tmp_path / "other", **SAID), BundleError, r"head\.output\.bias")


def test_other_labels_need_a_higher_label_schema_version(registry: Registry, tmp_path: Path) -> None:
    labels = {"labels": ("book", "music", "rain")}
    put_branch(tmp_path / "same", "intent", backbone_of(), **labels)
    put_branch(tmp_path / "higher", "intent", backbone_of(), label_schema_version=2, **labels)
    refused(registry, lambda: registry.register(tmp_path / "same", **SAID), BundleError, "version above 1")
    assert registry.register(tmp_path / "higher", **SAID) in intent(registry).versions


def test_a_missing_branch_folder_is_refused(registry: Registry, tmp_path: Path) -> None:
    refused(registry, lambda: registry.register(tmp_path / "nothing", **SAID), MissingBranchError, "no such folder")


def test_activating_ends_a_canary(registry: Registry, first: str, newer: list[str]) -> None:
    registry.canary("intent", newer[0], 5, **SAID)
    registry.activate("intent", newer[1], **SAID)
    assert (intent(registry).active, intent(registry).canary) == (newer[1], None)
    assert intent(registry).former == (first,)


def test_activating_the_active_version_is_refused(registry: Registry, first: str) -> None:
    refused(registry, lambda: registry.activate("intent", first, **SAID), RegistryError, "is active already")


def test_a_version_may_be_named_by_its_first_digits(registry: Registry, newer: list[str]) -> None:
    registry.activate("intent", newer[0][:8], **SAID)
    assert intent(registry).active == newer[0]
    assert registry.bundle({"intent": newer[1][:20]}).branch("intent").digest == newer[1]


@pytest.mark.parametrize("text", ["", "abc1234", "../../etc", "A" * 8, "g" * 64, "a" * 65])
def test_what_is_no_digest_names_no_version(registry: Registry, text: str) -> None:
    refused(registry, lambda: registry.activate("intent", text, **SAID), SpecError, "is no version")


def test_an_unknown_version_is_refused_with_those_there_are(registry: Registry, first: str) -> None:
    change = lambda: registry.activate("intent", "0" * 64, **SAID)  # noqa: E731
    refused(registry, change, MissingBranchError, f"has no version 0{{64}}; .*{first[:12]}")


def test_digits_that_several_versions_begin_with_are_refused(registry: Registry, first: str) -> None:
    task, twin = intent(registry), first[:10] + "0" * 54
    state = TaskState({**task.versions, twin: task.versions[first]})
    twins = dataclasses.replace(registry.state, tasks={"intent": state})
    with pytest.raises(RegistryError, match=f"2 versions begin with {first[:8]}.*{twin}"):
        twins.find("intent", first[:8])


def test_an_unknown_task_is_refused_with_the_nearest(registry: Registry, first: str) -> None:
    changes: list[Callable[[], Any]] = [
        lambda: registry.activate("intents", first, **SAID),
        lambda: registry.canary("intents", first, 5, **SAID),
        lambda: registry.rollback("intents", **SAID),
        lambda: registry.remove("intents", **SAID),
        lambda: registry.history("intents"),
        lambda: registry.bundle({"intents": first}),
    ]
    for change in changes:
        refused(registry, change, UnknownNameError, "'intents': is not in .*did you mean 'intent'")


def test_a_canary_answers_beside_the_active_version(registry: Registry, first: str, newer: list[str]) -> None:
    registry.canary("intent", newer[0], 2.5, **SAID)
    assert (intent(registry).active, intent(registry).canary) == (first, Canary(newer[0], 2.5))
    registry.canary("intent", newer[1], 100, **SAID)
    assert intent(registry).canary == Canary(newer[1], 100)
    registry.canary("intent", newer[1], 0, **SAID)
    assert intent(registry).canary is None


@pytest.mark.parametrize("percent", [-1, 101, float("nan")])
def test_a_canary_of_no_share_is_refused(registry: Registry, newer: list[str], percent: float) -> None:
    change = lambda: registry.canary("intent", newer[0], percent, **SAID)  # noqa: E731
    refused(registry, change, SpecError, "0 to 100")


def test_a_canary_value_is_above_0() -> None:
    with pytest.raises(SpecError, match="0 percent is no canary"):
        Canary("a" * 64, 0)


def test_canaries_that_do_not_fit_are_refused(registry: Registry, first: str, newer: list[str]) -> None:
    refused(registry, lambda: registry.canary("intent", first, 5, **SAID), RegistryError, "is the active one")
    refused(registry, lambda: registry.canary("intent", newer[0], 0, **SAID), RegistryError, "has no canary")
    registry.canary("intent", newer[0], 5, **SAID)
    refused(registry, lambda: registry.canary("intent", newer[1], 0, **SAID), RegistryError, newer[0][:12])
    registry.remove("intent", **SAID)
    refused(registry, lambda: registry.canary("intent", newer[0], 5, **SAID), RegistryError, "out of service")


def test_rollback_goes_back_one_activation_each_time(registry: Registry, first: str, newer: list[str]) -> None:
    for version in newer[:2]:
        registry.activate("intent", version, **SAID)
    registry.canary("intent", newer[2], 5, **SAID)
    assert registry.rollback("intent", **SAID) == newer[0]
    assert (intent(registry).active, intent(registry).canary) == (newer[0], None)
    assert registry.rollback("intent", **SAID) == first
    refused(registry, lambda: registry.rollback("intent", **SAID), RegistryError, "no version was active before")


def test_rollback_after_a_new_activation_goes_back_to_the_one_before_it(
    registry: Registry, first: str, newer: list[str]
) -> None:
    registry.activate("intent", newer[0], **SAID)
    registry.rollback("intent", **SAID)
    registry.activate("intent", newer[1], **SAID)
    assert registry.rollback("intent", **SAID) == first


def test_rollback_passes_over_versions_that_were_removed(registry: Registry, first: str, newer: list[str]) -> None:
    for version in (newer[0], first, newer[0], newer[1]):
        registry.activate("intent", version, **SAID)
    registry.remove("intent", newer[0], **SAID)
    assert intent(registry).former == (first,)
    assert registry.rollback("intent", **SAID) == first


def test_a_step_back_to_the_active_version_itself_is_none(registry: Registry, first: str, newer: list[str]) -> None:
    for version in (newer[0], first):
        registry.activate("intent", version, **SAID)
    registry.remove("intent", newer[0], **SAID)
    assert intent(registry).former == ()


def test_a_task_out_of_service_can_be_activated_or_rolled_back(
    registry: Registry, first: str, newer: list[str]
) -> None:
    registry.canary("intent", newer[0], 5, **SAID)
    registry.remove("intent", **SAID)
    assert (intent(registry).active, intent(registry).canary) == (None, None)
    assert list(intent(registry).versions) == [first, *newer]
    assert "intent" not in registry.bundle().manifest.tasks
    refused(registry, lambda: registry.remove("intent", **SAID), RegistryError, "out of service already")
    assert registry.rollback("intent", **SAID) == first
    registry.remove("intent", **SAID)
    registry.activate("intent", first, **SAID)
    assert (intent(registry).active, intent(registry).former) == (first, ())


def test_versions_in_use_are_not_removed(registry: Registry, first: str, newer: list[str]) -> None:
    registry.canary("intent", newer[0], 5, **SAID)
    refused(registry, lambda: registry.remove("intent", first, **SAID), RegistryError, "is active")
    refused(registry, lambda: registry.remove("intent", newer[0], **SAID), RegistryError, "is the canary")
    registry.remove("intent", newer[1], **SAID)
    refused(registry, lambda: registry.activate("intent", newer[1], **SAID), MissingBranchError, "has no version")


def test_a_task_whose_last_version_was_removed_is_gone_but_for_its_history(registry: Registry, tmp_path: Path) -> None:
    version = registry.register(tmp_path / "mood", **SAID)
    registry.remove("mood", version, **SAID)
    assert "mood" not in registry.state.tasks
    assert [entry.action for entry in registry.history("mood")] == ["register", "remove"]


def test_a_change_that_was_decided_on_an_older_state_is_refused_with_both(registry: Registry, newer: list[str]) -> None:
    seq = registry.state.seq
    change = lambda: registry.activate("intent", newer[0], expected_seq=seq - 1, **SAID)  # noqa: E731
    refused(registry, change, RegistryError, f"last entry is {seq}; {seq - 1} was expected")
    registry.activate("intent", newer[0], expected_seq=seq, **SAID)
    assert registry.state.seq == seq + 1


def test_another_writers_change_is_seen_after_a_refresh_and_by_the_next_change(
    registry: Registry, first: str, newer: list[str]
) -> None:
    other = Registry.open(registry.path)
    registry.activate("intent", newer[0], **SAID)
    assert intent(other).active == first
    assert other.refresh()
    assert not other.refresh()
    assert other.state == registry.state
    registry.activate("intent", newer[1], **SAID)
    assert other.rollback("intent", **SAID) == newer[0]
    assert [entry.seq for entry in other.history()] == list(range(len(other.history())))


def test_a_history_that_lost_entries_is_noticed_by_who_read_them(registry: Registry, newer: list[str]) -> None:
    path = registry.path / "history.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    with pytest.raises(DigestMismatchError, match="no longer begins"):
        registry.refresh()
    with pytest.raises(DigestMismatchError, match="no longer begins"):
        registry.activate("intent", newer[0], **SAID)


def test_an_entry_that_was_taken_back_while_it_was_read_is_forgotten(registry: Registry, newer: list[str]) -> None:
    path = registry.path / "history.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert registry.refresh()
    assert newer[-1] not in intent(registry).versions


def test_entries_that_do_not_follow_from_those_before_are_refused_with_their_line(registry: Registry) -> None:
    entries = registry.history()
    template = {name: getattr(entries[-1], name) for name in ("schema_version", "at", "who", "why")}
    wrong = [
        Entry(seq=5, action="activate", task="mood", version="a" * 64, **template),
        Entry(seq=7, action="remove", task="intent", **template),
        Entry(seq=5, action="create", base=entries[0].base, **template),
        Entry(seq=5, action="register", task="../up", version=entries[1].version, entry=entries[1].entry, **template),
        Entry(seq=5, action="register", task="mood", version="a" * 64, entry=entries[1].entry, **template),
    ]
    path = registry.path / "history.jsonl"
    content = path.read_bytes()
    for entry in wrong:
        path.write_bytes(content + encode_entry(sealed(entry, entries[-1])))
        with pytest.raises(BundleError, match=r"history\.jsonl: line 6: does not follow"):
            Registry.open(registry.path)


@pytest.mark.parametrize("content", [b"", b"{", b"torn\n"])
def test_a_history_without_an_entry_is_refused(registry: Registry, content: bytes) -> None:
    (registry.path / "history.jsonl").write_bytes(content)
    with pytest.raises(BundleError, match="holds no whole entry"):
        Registry.open(registry.path)


def test_a_torn_last_line_is_cut_off_by_the_next_change(registry: Registry, newer: list[str]) -> None:
    path = registry.path / "history.jsonl"
    with path.open("ab") as file:
        file.write(b'{"schema_version":1,"se')
    reopened = Registry.open(registry.path)
    assert reopened.state == registry.state
    reopened.activate("intent", newer[0], **SAID)
    assert b'"se{' not in path.read_bytes()
    assert Registry.open(registry.path).state == reopened.state


def test_a_damaged_version_is_noticed_when_it_is_read_and_registered_again(
    registry: Registry, tmp_path: Path, newer: list[str]
) -> None:
    damaged = registry.path / "branches" / "intent" / newer[0] / "golden.json"
    damaged.write_bytes(damaged.read_bytes() + b" ")
    with pytest.raises(DigestMismatchError, match=r"golden\.json"):
        registry.bundle({"intent": newer[0]}).branch("intent")
    with pytest.raises(DigestMismatchError, match=r"golden\.json"):
        registry.register(tmp_path / NEWER[0], **SAID)


def test_pruning_removes_what_is_no_version_and_nothing_else(registry: Registry, tmp_path: Path) -> None:
    mood = registry.register(tmp_path / "mood", **SAID)
    version = registry.register(tmp_path / NEWER[0], **SAID)
    assert registry.prune() == ()
    registry.remove("mood", mood, **SAID)
    registry.remove("intent", version, **SAID)
    (registry.path / "branches" / "intent" / ".half.tmp-0123").mkdir()
    entries = registry.history()
    assert registry.prune() == (f"branches/intent/{version}", f"branches/mood/{mood}", "branches/mood")
    assert not list(registry.path.rglob(".*.tmp-*"))
    assert read_whole(registry.path) == registry.state
    assert registry.history() == entries
    assert registry.register(tmp_path / "mood", **SAID) == mood
    read_whole(registry.path)


def test_ranges_are_copied_and_never_pruned(tmp_path: Path) -> None:
    bundle = quantized(tmp_path)
    made = Registry.create(tmp_path / "copy", bundle, **SAID)
    assert made.prune() == ()
    assert made.bundle().branch("intent").served.precision == "int8"
    assert made.bundle().trunk().served.precision == "int8"


def quantized(folder: Path) -> Any:
    from trunkline.bundle.manifest import TaskGate, TrunkGate
    from trunkline.bundle.merge import locked, swap_manifest
    from trunkline.bundle.served import Range, write_ranges

    made = make_bundle(folder / "int8", "intent")
    ranges = {"layers.0.ffn.up": Range(-1.0, 1.0)}
    at = "2026-01-01T00:00:00+00:00"
    with locked(made.path) as current:
        manifest = current.manifest
        gate = TrunkGate(made_at=at, chain=manifest.trunk.chain[-1], max_loss=0.5, n_texts=1)
        judged = TaskGate(made_at=at, max_loss=0.5, n_rows=1, points_fp32=1, points_trunk=1, points=1)
        trunk = {"precision": "int8", "gate": gate, "ranges": write_ranges(made.path, "trunk", ranges)}
        branch = {"precision": "int8", "gate": judged, "ranges": write_ranges(made.path, "branches/intent", ranges)}
        swap_manifest(
            made.path,
            msgspec.structs.replace(
                manifest,
                trunk=msgspec.structs.replace(manifest.trunk, **trunk),
                tasks={"intent": msgspec.structs.replace(manifest.tasks["intent"], **branch)},
            ),
        )
    return open_bundle(made.path)


def test_threads_that_share_a_registry_lose_no_change(registry: Registry, newer: list[str]) -> None:
    seq = registry.state.seq

    def work() -> None:
        for _ in range(5):
            registry.canary("intent", newer[0], 5, **SAID)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.state.seq == seq + 20
    assert Registry.open(registry.path).history() == registry.history()


def test_readers_of_a_shared_registry_never_undo_a_change(registry: Registry, newer: list[str]) -> None:
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            registry.refresh()

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    seqs = [registry.state.seq]
    for _ in range(30):
        registry.canary("intent", newer[0], 5, **SAID)
        seqs.append(registry.state.seq)
    done.set()
    for reader in readers:
        reader.join()
    assert seqs == list(range(seqs[0], seqs[0] + 31))
    assert Registry.open(registry.path).state == registry.state


def test_a_writer_that_holds_the_lock_too_long_is_named(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "LOCK_TIMEOUT_S", 0.05)
    with filelock.FileLock(registry.path / ".lock"), pytest.raises(BundleError, match="another writer"):
        registry.remove("slots", **SAID)
    assert digest_of(registry.path / "branches" / "slots" / (registry.state.tasks["slots"].active or ""))


def test_a_branch_folder_that_is_a_link_out_is_not_written_through(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (registry.path / "branches" / "mood").symlink_to(tmp_path / "outside")
    refused(registry, lambda: registry.register(tmp_path / "mood", **SAID), BundleError, "leads out")
    assert not list((tmp_path / "outside").iterdir())
