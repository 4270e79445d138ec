"""From task files to answers by commands alone, on a pico backbone."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.tiny import write_checkpoint
from tests.tiny_bundles import backbone_of, put_branch, tree_bytes
from tests.tiny_cli import Finished, run_cli
from tests.tiny_tasks import rows_of, write_rows, write_task
from trunkline.bundle.manifest import Manifest
from trunkline.bundle.store import open_bundle
from trunkline.train.plan import Plan
from trunkline.train.spec import Distillation, RunRecord

NAMES = ("topic", "topics", "places")


@dataclass(frozen=True, slots=True)
class Project:
    """A folder in which everything up to the bundle was done by commands."""

    folder: Path
    tasks: tuple[Path, ...]
    trained: Finished
    planned: Finished
    merged: Finished

    @property
    def bundle(self) -> Path:
        """The merged bundle."""
        return self.folder / "bundle"

    def train(self, *options: object) -> Finished:
        """Train all tasks again."""
        return train(self.folder, *self.tasks, *options)

    def copy(self, folder: Path) -> Path:
        """A copy of the bundle that a test may change."""
        return Path(shutil.copytree(self.bundle, folder / "bundle"))


def train(folder: Path, *arguments: object) -> Finished:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUNKLINE_CACHE", str(folder / "cache"))
        return run_cli(
            "train", *arguments, "--backbone", folder / "backbone", "--out", folder / "runs", "--precision", "fp32"
        )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project")
    write_checkpoint(folder / "backbone", backbone_of())
    tasks = tuple(write_task(folder, name, n_train=60, n_dev=12) for name in NAMES)
    return Project(
        folder,
        tasks,
        train(folder, *tasks, "--layers", "2", "--students", "1", "--json"),
        run_cli("plan", folder / "runs", "--min-gain", "1.5", "--json"),
        run_cli("merge", folder / "runs" / "plan.json", "--out", folder / "bundle", "--json"),
    )


def succeeded(done: Finished) -> Finished:
    assert done.code == 0, done.err
    return done


def test_train_prints_its_records(project: Project) -> None:
    records = msgspec.convert(succeeded(project.trained).json(), list[RunRecord])
    assert [(r.spec.task, r.spec.arm) for r in records] == [
        (name, arm) for name in NAMES for arm in ("partial", "student")
    ]
    assert all(r.dev_metric is not None for r in records)


def test_train_tells_on_standard_error_what_it_does(project: Project) -> None:
    assert "topic partial (exit 2, 2 own) seed 0: accuracy" in project.trained.err
    assert "task 'places': new head: head.output.weight, head.output.bias" in project.trained.err


def test_started_again_train_resumes(project: Project) -> None:
    again = succeeded(project.train("--layers", "2", "--students", "1", "--json"))
    assert again.out == project.trained.out
    assert again.err.count("already in the ledger") == 6


def test_without_json_train_shows_a_table_of_candidates(project: Project) -> None:
    shown = succeeded(project.train("--layers", "2", "--students", "1"))
    assert "Candidates (points; mean over seeds)" in shown.out
    assert shown.out.count("student") == 3


def test_options_of_distillation_reach_the_runs(project: Project, tmp_path: Path) -> None:
    more = write_rows(tmp_path / "more.jsonl", rows_of("topic", 10, seed=5))
    old = next(record for record in project.trained.json() if record["spec"]["task"] == "topic")
    branch = project.folder / "runs" / "runs" / old["run_id"] / "branch"
    write_checkpoint(tmp_path / "backbone", backbone_of())
    done = train(
        tmp_path, project.folder / "topic.yaml", "--layers", "1", "--students", "1", "--json",
        "--kd-temperature", "4", "--alpha", "0", "--hidden-weight", "0.5",
        "--transfer", more, "--augment", "1", "--init-from", branch,
    )  # fmt: skip
    teacher, student = msgspec.convert(succeeded(done).json(), list[RunRecord])
    assert (teacher.spec.init, teacher.spec.init_from, teacher.spec.transfer) == ("branch", old["run_id"], None)
    assert student.spec.distillation == Distillation(kd_temperature=4.0, alpha=0.0, hidden_weight=0.5)
    assert student.spec.transfer is not None
    assert "of 10 read and 30 made" in done.err


def test_plan_writes_what_it_prints(project: Project) -> None:
    printed = msgspec.convert(succeeded(project.planned).json(), Plan)
    written = msgspec.json.decode((project.folder / "runs" / "plan.json").read_bytes(), type=Plan)
    assert printed == written
    assert printed.min_gain == 1.5
    assert printed.layer_cost == printed.trunk_depth + sum(task.own_layers for task in printed.tasks)


def test_plan_shows_choices_cost_and_the_next_command(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "one.json"
    shown = succeeded(run_cli("plan", project.folder / "runs", "--tasks", "topic", "--out", out))
    assert "start at 1 layer with" in shown.out
    assert "layers; 4 for single models" in shown.out
    assert f"trunkline merge {out} --out BUNDLE" in shown.out.replace("\n", "")
    assert [task["task"] for task in msgspec.json.decode(out.read_bytes())["tasks"]] == ["topic"]


def test_merge_prints_the_manifest(project: Project) -> None:
    printed = msgspec.convert(succeeded(project.merged).json(), Manifest)
    assert printed == open_bundle(project.bundle).manifest
    assert tuple(sorted(printed.tasks)) == tuple(sorted(NAMES))


def test_merge_does_not_write_over_a_bundle(project: Project) -> None:
    before = tree_bytes(project.bundle)
    refused = run_cli("merge", project.folder / "runs" / "plan.json", "--out", project.bundle)
    assert (refused.code, refused.out) == (1, "")
    assert "exists already" in refused.err
    assert tree_bytes(project.bundle) == before


def test_merge_refuses_a_branch_that_changed_since_the_plan(project: Project, tmp_path: Path) -> None:
    plan = project.planned.json()
    plan["tasks"][0]["branch_digest"] = "0" * 64
    (tmp_path / "plan.json").write_bytes(msgspec.json.encode(plan))
    refused = run_cli("merge", tmp_path / "plan.json", "--out", tmp_path / "bundle")
    assert refused.code == 1
    assert "was recorded; it was damaged or changed" in refused.err
    assert not (tmp_path / "bundle").exists()


def test_inspect_draws_trunk_branches_and_cost(project: Project) -> None:
    shown = succeeded(run_cli("inspect", project.bundle))
    manifest = open_bundle(project.bundle).manifest
    own = sum(entry.own_layers for entry in manifest.tasks.values())
    depth = max(entry.exit_layer for entry in manifest.tasks.values())
    assert f"{depth} of 4 layers" in shown.out
    for name in NAMES:
        assert f"── {name} [" in shown.out
    (total,) = [line for line in shown.out.splitlines() if line.startswith("all tasks at once")]
    assert total.split()[4:] == [str(depth + own), f"({(depth + own) / 12:.0%})", "12"]
    printed = succeeded(run_cli("inspect", project.bundle, "--json")).json()
    assert printed.pop("cost") == {"trunk_depth": depth, "layer_cost": depth + own, "single_task_layers": 12}
    assert msgspec.convert(printed, Manifest) == manifest


def test_verify_says_how_near_the_answers_are(project: Project) -> None:
    shown = succeeded(run_cli("verify", project.bundle))
    assert "3 tasks verified, largest logit difference" in shown.out
    report = succeeded(run_cli("verify", project.bundle, "--json")).json()
    assert report["path"] == str(project.bundle)
    assert [task["task"] for task in report["tasks"]] == sorted(NAMES)
    assert all(0 <= task["largest_difference"] <= 1e-4 for task in report["tasks"])


def test_verify_refuses_a_flipped_byte(project: Project, tmp_path: Path) -> None:
    bundle = project.copy(tmp_path)
    weights = next(bundle.rglob("branch.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    refused = run_cli("verify", bundle)
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("error: ")
    assert "restore it from a copy" in refused.err


def lines(done: Finished) -> list[Any]:
    return [msgspec.json.decode(line) for line in succeeded(done).out.splitlines()]


def test_predict_answers_each_line_in_order(project: Project) -> None:
    rows = b'{"text": "play music in paris"}\n{"text": "rain"}\n{"tokens": ["we", "find", "york"]}\n'
    answers = lines(run_cli("predict", project.bundle, stdin=rows))
    assert len(answers) == 3
    for answer in answers:
        assert sorted(answer) == sorted(NAMES)
        assert {answer[name]["kind"] for name in NAMES} == {"label", "labels", "spans"}
    (alone,) = lines(run_cli("predict", project.bundle, stdin=b'{"text": "rain"}\n'))
    assert answers[1]["topic"]["probabilities"] == pytest.approx(alone["topic"]["probabilities"], abs=1e-5)


def test_predict_asks_only_the_named_tasks_in_their_order(project: Project) -> None:
    (answer,) = lines(run_cli("predict", project.bundle, "--tasks", "topics, topic", stdin=b'{"text": "no"}'))
    assert list(answer) == ["topics", "topic"]


def test_predict_answers_nothing_to_nothing(project: Project) -> None:
    assert succeeded(run_cli("predict", project.bundle)).out == ""


def test_predict_names_the_line_that_is_wrong(project: Project) -> None:
    refused = run_cli("predict", project.bundle, stdin=b'{"text": "no"}\n{"text": 3}\n')
    assert refused.code == 1
    assert "standard input line 2" in refused.err
    assert refused.out.count("\n") == 1


def test_predict_and_evaluate_read_no_branch_that_is_not_asked(project: Project, tmp_path: Path) -> None:
    bundle = project.copy(tmp_path)
    for weights in (bundle / "branches" / "places").rglob("branch.safetensors"):
        weights.write_bytes(b"damaged")
    assert run_cli("predict", bundle, stdin=b'{"text": "no"}').code == 1
    (answer,) = lines(run_cli("predict", bundle, "--tasks", "topic", stdin=b'{"text": "no"}'))
    assert list(answer) == ["topic"]
    assert succeeded(run_cli("evaluate", bundle, *project.tasks[:2]))
    assert succeeded(run_cli("calibrate", bundle, project.tasks[0]))


def test_predict_answers_the_lines_before_one_that_is_nested_too_deep(project: Project) -> None:
    refused = run_cli("predict", project.bundle, stdin=b'{"text": "no"}\n' + b"[" * 100_000 + b"\n")
    assert refused.code == 1
    assert "\nerror: standard input line 2: not valid JSON" in refused.err
    assert refused.out.count("\n") == 1


def test_predict_says_how_many_texts_were_cut(project: Project) -> None:
    done = succeeded(run_cli("predict", project.bundle, "--tasks", "topic", stdin=b'{"text": "%s"}\n' % (b"no " * 90)))
    announced, counted = done.err.splitlines()
    assert announced.startswith(f"{project.bundle}: computing with openvino, ")
    assert counted == "task 'topic': texts longer than 32 tokens, which were cut: 1"


def test_evaluate_gives_the_dev_metrics_of_the_runs(project: Project) -> None:
    results = succeeded(run_cli("evaluate", project.bundle, *project.tasks, "--json")).json()
    chosen = {task["task"]: task["dev_metric"] for task in project.planned.json()["tasks"]}
    assert {r["task"]: r["points"] for r in results} == pytest.approx(chosen)
    assert [r["n_rows"] for r in results] == [12, 12, 12]
    shown = succeeded(run_cli("evaluate", project.bundle, project.tasks[0], "--part", "train"))
    assert shown.out.splitlines()[1].split()[:3] == ["topic", "train", "accuracy"]


def test_detach_then_attach_gives_the_same_bundle(project: Project, tmp_path: Path) -> None:
    bundle = project.copy(tmp_path)
    before = open_bundle(bundle).manifest
    branch = next(task["branch"] for task in project.planned.json()["tasks"] if task["task"] == "topics")
    assert "topics" not in succeeded(run_cli("detach", bundle, "topics", "--json")).json()["tasks"]
    assert "── topics [" in succeeded(run_cli("attach", bundle, branch)).out
    after = open_bundle(bundle).manifest
    assert after.tasks == before.tasks
    assert succeeded(run_cli("verify", bundle))


def test_replace_puts_another_branch_in_place(project: Project, tmp_path: Path) -> None:
    bundle = project.copy(tmp_path)
    before = open_bundle(bundle).manifest.tasks
    runs = msgspec.convert(project.trained.json(), list[RunRecord])
    (other,) = [
        r for r in runs if r.spec.task == "topic" and r.branch_digest != before["topic"].branch
    ]  # fmt: skip
    folder = project.folder / "runs" / "runs" / other.run_id / "branch"
    printed = succeeded(run_cli("replace", bundle, folder, "--json")).json()
    assert printed["tasks"]["topic"]["branch"] == other.branch_digest
    after = open_bundle(bundle).manifest.tasks
    assert {name: after[name] for name in ("topics", "places")} == {name: before[name] for name in ("topics", "places")}


def test_attach_makes_the_trunk_deeper_when_given_the_backbone(project: Project, tmp_path: Path) -> None:
    bundle = project.copy(tmp_path)
    branch = put_branch(tmp_path / "deep", "mood", backbone_of(), exit_layer=3, own_layers=1)
    refused = run_cli("attach", bundle, branch)
    assert refused.code == 1
    assert "backbone" in refused.err
    printed = succeeded(run_cli("attach", bundle, branch, "--backbone", project.folder / "backbone", "--json")).json()
    assert printed["trunk"]["depth"] == 3
    assert succeeded(run_cli("verify", bundle))


def test_calibrate_replaces_the_branch_and_leaves_the_others(project: Project, tmp_path: Path) -> None:
    bundle = project.copy(tmp_path)
    before = open_bundle(bundle).manifest.tasks
    topic, topics = succeeded(run_cli("calibrate", bundle, *project.tasks[:2], "--json")).json()
    after = open_bundle(bundle).manifest.tasks
    assert topic["calibration"]["temperature"] != 1.0
    # A temperature never changes which label is first.
    assert topic["metric_after"] == topic["metric_before"]
    assert len(topics["calibration"]["thresholds"]) == 3
    assert [topic["n_rows"], topics["n_rows"]] == [30, 30]
    assert [topic["n_unseen_labels"], topics["n_unseen_labels"]] == [0, 0]
    assert (after["topic"].branch, after["topics"].branch) == (topic["branch"], topics["branch"])
    assert before["topic"].branch != topic["branch"]
    assert after["places"] == before["places"]
    assert open_bundle(bundle).branch("topic").spec.calibration.temperature == topic["calibration"]["temperature"]
    assert succeeded(run_cli("verify", bundle))
    assert "temperature" in succeeded(run_cli("calibrate", bundle, project.tasks[0])).out
    dev = next(r for r in succeeded(run_cli("evaluate", bundle, project.tasks[1], "--json")).json())
    assert after["topics"].dev_metric == dev["points"]


def test_version_is_printed() -> None:
    assert succeeded(run_cli("--version")).out.strip() == "0.1.0"
