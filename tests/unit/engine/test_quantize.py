"""The precision gate of a bundle, and how a bundle is served that passed it."""

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.tiny_bundles import TEXTS, backbone_of, make_bundle, put_branch, tree_bytes
from tests.tiny_cli import run_cli
from tests.tiny_engines import open_fp32
from tests.tiny_tasks import write_rows
from trunkline.bundle.golden import TOLERANCE_INT8
from trunkline.bundle.manifest import Manifest, decode_manifest
from trunkline.bundle.merge import attach, replace
from trunkline.bundle.served import Range, form_of
from trunkline.bundle.store import Bundle, StoredBranch, StoredTrunk, open_bundle
from trunkline.core.errors import BundleError, DigestMismatchError, SpecError, VerificationError
from trunkline.core.specs import TaskSpec, encode_spec
from trunkline.core.types import Encoded
from trunkline.engine import quantize as quantizing
from trunkline.engine.backends import observe
from trunkline.engine.backends.openvino import OpenVinoBackend, available_precisions
from trunkline.engine.engine import Engine
from trunkline.engine.gated import describe_served, serving_notes
from trunkline.engine.quantize import QuantizeReport, QuantizeRequest, quantize, sample
from trunkline.engine.snapshot import load_snapshot
from trunkline.engine.verify import replay, verify

NAMES = ("intent", "mood")
TOLERANT = QuantizeRequest(max_loss=60.0)


def task_of(folder: Path, bundle: Bundle, name: str) -> TaskSpec:
    """Rows whose labels are what the task answers in fp32: it reaches 100 points."""
    texts = [*TEXTS, *(f"{text} {word}" for text in TEXTS for word in ("good", "rain", "music", "paris"))]
    with open_fp32(bundle.path, tasks=(name,)) as engine:
        labels = engine.answers(texts, name)
    rows = [{"text": text, "label": str(label)} for text, label in zip(texts, labels, strict=True)]
    path = str(write_rows(folder / f"{name}.jsonl", rows))
    value = {"name": name, "kind": "classification", "data": {"train": path, "dev": path}}
    (folder / f"{name}.yaml").write_text(msgspec.json.encode(value).decode())
    return msgspec.convert(value, TaskSpec)


def gated(folder: Path, *, request: QuantizeRequest = TOLERANT) -> tuple[Bundle, list[TaskSpec], QuantizeReport]:
    bundle = make_bundle(folder, *NAMES)
    tasks = [task_of(folder, bundle, name) for name in NAMES]
    report = quantize(bundle.path, tasks, request)
    return open_bundle(bundle.path), tasks, report


def lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task reaches 100 points in fp32, which is measured first, and 90 from then on."""
    asked = itertools.count()
    monkeypatch.setattr(quantizing, "score_predictions", lambda *_: 100.0 if next(asked) < len(NAMES) else 90.0)


def test_an_accepted_bundle_keeps_precision_ranges_and_figures(tmp_path: Path) -> None:
    bundle, _, report = gated(tmp_path)
    trunk, tasks = bundle.manifest.trunk, bundle.manifest.tasks
    assert report.refused == ()
    assert (trunk.precision, tasks["intent"].precision, tasks["mood"].precision) == ("int8", "int8", "int8")
    assert trunk.gate is not None
    assert (trunk.gate.max_loss, trunk.gate.n_texts, trunk.gate.chain) == (60.0, 60, trunk.chain[-1])
    for each in report.tasks:
        gate = tasks[each.task].gate
        assert gate is not None
        assert (gate.points_fp32, gate.n_rows) == (100.0, 30)
        assert (gate.points_trunk, gate.points) == (each.points_trunk, each.points)
    assert set(bundle.trunk().served.ranges) == {f"layers.{n}.{p}" for n in (0, 1) for p in parts()}
    assert bundle.branch("mood").served.precision == "int8"
    assert verify(bundle.path).n_files == 1 + 3 + 4 * 2 + 3


def parts() -> tuple[str, ...]:
    return ("attention.output", "attention.qkv", "ffn.down", "ffn.up")


def test_a_refused_trunk_leaves_the_bundle_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path, *NAMES)
    tasks = [task_of(tmp_path, bundle, name) for name in NAMES]
    lose(monkeypatch)
    before = tree_bytes(bundle.path)
    report = quantize(bundle.path, tasks, QuantizeRequest(max_loss=9.5))
    assert report.refused == NAMES
    assert report.trunk == "int8 but for ffn.down"
    assert all(task.precision is None and task.points is None for task in report.tasks)
    assert tree_bytes(bundle.path) == before


def test_a_branch_that_loses_too_much_stays_in_a_wider_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = observe.find_ranges

    def spoiled(trunk: StoredTrunk, rows: Sequence[Encoded], *, branch: StoredBranch | None = None) -> Any:
        found = honest(trunk, rows, branch=branch)
        return found if branch is None else {name: Range(0.0, 1e-6) for name in found}

    monkeypatch.setattr(observe, "find_ranges", spoiled)
    bundle, _, report = gated(tmp_path, request=QuantizeRequest(max_loss=30.0))
    assert report.refused == ()
    widest = "bf16" if "bf16" in available_precisions() else "fp32"
    assert {entry.precision for entry in bundle.manifest.tasks.values()} <= {"int8", widest}
    assert widest in {entry.precision for entry in bundle.manifest.tasks.values()}


def test_a_gated_bundle_is_served_as_accepted_and_an_override_wins(tmp_path: Path) -> None:
    bundle, _, _ = gated(tmp_path)
    with open_fp32(bundle.path) as plain, Engine.open(bundle.path) as served:
        assert served.backend.as_gated
        branch = served.snapshot.branches["intent"]
        assert branch.form == form_of(bundle.manifest, "intent") != ""
        assert plain.snapshot.branches["intent"].form == ""
        exact, rounded = (np.stack(engine.logits(TEXTS, "intent")) for engine in (plain, served))
    assert 0 < np.abs(exact - rounded).max() < 0.5 * np.abs(exact).max()


def test_a_running_engine_takes_the_gate_in(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, *NAMES)
    tasks = [task_of(tmp_path, bundle, name) for name in NAMES]
    with Engine.open(bundle.path, cache_bytes=1 << 20) as engine:
        before = engine.logits(TEXTS, "intent")
        quantize(bundle.path, tasks, TOLERANT)
        assert engine.activate(open_bundle(bundle.path)) == NAMES
        after = engine.logits(TEXTS, "intent")
        with Engine.open(bundle.path) as fresh:
            assert all(map(np.array_equal, after, fresh.logits(TEXTS, "intent")))
    assert not all(map(np.array_equal, before, after))


def test_a_later_task_is_never_judged_until_it_is_and_moves_no_other(tmp_path: Path) -> None:
    bundle, tasks, _ = gated(tmp_path)
    replace(bundle, put_branch(tmp_path / "newer", "mood", backbone_of(), seed=5))
    attach(bundle, put_branch(tmp_path / "later", "slots", backbone_of()))
    bundle = open_bundle(bundle.path)
    assert bundle.manifest.tasks["mood"].gate is None
    assert bundle.manifest.tasks["slots"].precision == "fp32"
    backend = OpenVinoBackend(as_gated=True, n_threads=1)
    assert describe_served(bundle.manifest, backend) == "openvino, fp32, trunk accepted in int8"
    (note, *_) = serving_notes(bundle.manifest, backend)
    assert "mood, slots" in note
    before = bundle.manifest
    quantize(bundle.path, [task_of(tmp_path, bundle, "mood")], TOLERANT)
    after = open_bundle(bundle.path).manifest
    assert after.tasks["mood"].gate is not None
    assert (after.trunk, after.tasks["intent"]) == (before.trunk, before.tasks["intent"])
    assert tasks


def test_the_trunk_is_judged_by_every_task(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, *NAMES)
    with pytest.raises(SpecError, match=r"accepted in no precision yet.*every task.*mood too"):
        quantize(bundle.path, [task_of(tmp_path, bundle, "intent")])


def test_another_writer_in_the_meantime_is_noticed(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, *NAMES)
    tasks = [task_of(tmp_path, bundle, name) for name in NAMES]
    newer = put_branch(tmp_path / "newer", "mood", backbone_of(), seed=5)

    def write_once(step: str) -> None:
        if step == "measuring in fp32":
            replace(bundle, newer)

    with pytest.raises(BundleError, match="another writer changed it"):
        quantize(bundle.path, tasks, TOLERANT, on_step=write_once)
    assert open_bundle(bundle.path).manifest.trunk.gate is None


@pytest.mark.parametrize("folder", ["trunk", "branches/mood"])
def test_damaged_ranges_are_noticed(tmp_path: Path, folder: str) -> None:
    bundle, _, _ = gated(tmp_path)
    (path,) = (bundle.path / folder).glob("ranges-*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DigestMismatchError, match="ranges-"):
        Engine.open(bundle.path)


def test_a_manifest_without_the_new_fields_is_read_as_never_judged(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, *NAMES)
    value = msgspec.to_builtins(bundle.manifest)
    for entry in (value["trunk"], *value["tasks"].values()):
        for name in ("ranges", "gate", *(() if entry is value["trunk"] else ("precision",))):
            del entry[name]
    text = msgspec.json.encode(value, order="deterministic")
    sealed = {**value, "digest": hashlib.sha256(text).hexdigest()}
    manifest: Manifest = decode_manifest(msgspec.json.format(msgspec.json.encode(sealed), indent=2) + b"\n", "old")
    assert manifest == bundle.manifest


@pytest.mark.parametrize(("name", "value"), [("max_loss", -0.1), ("max_loss", float("nan")), ("rows", 0)])
def test_requests_that_nothing_can_be_judged_by_are_refused(name: str, value: float) -> None:
    with pytest.raises(SpecError, match=name):
        QuantizeRequest(**{name: value})


def test_a_sample_keeps_the_order_and_is_always_the_same() -> None:
    rows = list(range(50))
    assert sample(rows, None) == sample(rows, 50) == rows
    assert len(sample(rows, 10)) == 10
    assert sample(rows, 10) == sorted(sample(rows, 10)) == sample(rows, 10)


@pytest.mark.parametrize(
    ("flags", "warned"), [("flags : avx2 fma", True), ("flags : avx2 avx_vnni", False), ("model : other", False)]
)
def test_a_processor_whose_sums_saturate_is_said(tmp_path: Path, flags: str, *, warned: bool) -> None:
    bundle, _, _ = gated(tmp_path)
    facts = tmp_path / "cpuinfo"
    facts.write_text(flags)
    notes = serving_notes(bundle.manifest, OpenVinoBackend(as_gated=True, n_threads=1), cpu_facts=facts)
    assert any("VNNI" in note for note in notes) == warned
    assert serving_notes(bundle.manifest, OpenVinoBackend(n_threads=1), cpu_facts=facts) == []


def test_the_command_shows_a_table_and_fails_where_a_task_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path, *NAMES)
    files = [tmp_path / f"{task_of(tmp_path, bundle, name).name}.yaml" for name in NAMES]
    done = run_cli("quantize", bundle.path, "--data", *files, "--max-loss", 60, "--rows", 20)
    assert done.code == 0, done.err
    assert "trunk in int8" in done.out
    lose(monkeypatch)
    done = run_cli("quantize", bundle.path, "--data", files[0], "--data", files[1], "--max-loss", 0, "--json")
    assert done.code == 1
    assert done.json()["refused"] == list(NAMES)
    assert "the bundle is as it was" in done.err
    assert encode_spec(open_bundle(bundle.path).manifest.trunk.gate)


def test_in_int8_a_golden_input_gives_the_same_label_or_nearly_the_same_probability(tmp_path: Path) -> None:
    bundle, _, _ = gated(tmp_path)
    backend = OpenVinoBackend(as_gated=True, n_threads=1)
    snapshot, stored = load_snapshot(bundle, backend), bundle.branch("intent")
    loaded = snapshot.branches["intent"]
    assert replay(stored.golden, loaded, snapshot.trunk, backend).tolerance == TOLERANCE_INT8
    sharper = tuple(tuple(tuple(30 * x for x in line) for line in lines) for lines in stored.golden.logits)
    same_label = msgspec.structs.replace(stored.golden, logits=sharper)
    found = replay(same_label, loaded, snapshot.trunk, backend)
    assert found.largest_difference > TOLERANCE_INT8
    turned = tuple(tuple(tuple(-x for x in line) for line in lines) for lines in sharper)
    other_label = msgspec.structs.replace(stored.golden, logits=turned)
    with pytest.raises(VerificationError, match=r"probabilities that differ by .*; 0\.25 is allowed"):
        replay(other_label, loaded, snapshot.trunk, backend)
