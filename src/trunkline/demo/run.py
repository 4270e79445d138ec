"""The main job on an embedded default: train, distil, plan, merge, verify and ask a handful of tasks."""

import shutil
import time
from pathlib import Path

import msgspec
from rich.console import Console

from trunkline.bundle.manifest import layer_cost
from trunkline.bundle.merge import merge
from trunkline.bundle.store import Bundle
from trunkline.core.errors import SpecError
from trunkline.core.specs import DataSpec, InputForm, Kind, Metric, Spec, TaskSpec, read_task
from trunkline.core.types import Example
from trunkline.data.read import read_part
from trunkline.demo.samples import write_samples
from trunkline.engine.backends.choose import choose_backend
from trunkline.engine.engine import Engine
from trunkline.engine.evaluate import evaluate
from trunkline.engine.verify import verify
from trunkline.model.backbone import Backbone, load_backbone
from trunkline.train.bench import Workbench
from trunkline.train.cache import ActivationCache
from trunkline.train.cache_room import default_cache_root
from trunkline.train.candidates import candidates_of
from trunkline.train.device import make_accelerator
from trunkline.train.ledger import Ledger
from trunkline.train.pipeline import train_tasks
from trunkline.train.plan import plan_runs, write_plan
from trunkline.train.progress import RunProgress
from trunkline.train.spec import Distillation, Hyperparameters, Preset, TrainRequest
from trunkline.views import answer_table, bundle_picture, candidate_table, plan_table

BACKBONE = "minilm"
# Small batches: about a thousand rows give too few steps otherwise.
_TUNING = Hyperparameters(learning_rate=5e-4, batch_size=16, epochs=3)
REQUEST = TrainRequest(
    layers=(3,),
    student_layers=(1, 2),
    preset=Preset(full=_TUNING, partial=_TUNING, student=_TUNING, distillation=Distillation()),
)
MIN_GAIN = 1.0
N_ASKED = 2
MARKER = ".trunkline-demo"
"""Says that the demo made the folder, and may empty it."""


class RealSet(Spec, frozen=True, kw_only=True):
    """A real data set that `--data` uses; rows are a stated subset, so that the demo stays short."""

    name: str
    kind: Kind
    metric: Metric
    input: InputForm = "text"
    max_length: int = 48
    max_train_rows: int = 1000


REAL_SETS = (
    RealSet(name="emotion", kind="classification", metric="f1_macro"),
    RealSet(name="glue_mrpc", kind="classification", metric="accuracy", input="pair", max_length=96),
    RealSet(name="snips_slots", kind="tagging", metric="span_f1"),
    RealSet(name="glue_stsb", kind="regression", metric="pearson", input="pair", max_length=64),
    RealSet(name="goemotions", kind="multilabel", metric="f1_micro"),
)


class ReportedTask(Spec, frozen=True, kw_only=True):
    """One task of the report; metrics in points, 0 to 100.

    Attributes:
        name: The task's name.
        kind: What is predicted.
        metric: What the two figures are.
        dev_metric: The merged bundle's own, measured through the engine.
        untrained_metric: Of the teacher before its first step, on the selection rows: backbone layers and a new head.
        exit_layer: Trunk layers below the branch.
        own_layers: Layers of the branch.
    """

    name: str
    kind: Kind
    metric: Metric
    dev_metric: float
    untrained_metric: float
    exit_layer: int
    own_layers: int


class DemoReport(Spec, frozen=True, kw_only=True):
    """What the demo writes to ``report.json``; layers as in `Plan`, wall time in seconds."""

    tasks: tuple[ReportedTask, ...]
    layer_cost: int
    single_task_layers: int
    seconds: float


def run_demo(
    out: Path, *, data: Path | None, backbone_name: str = BACKBONE, request: TrainRequest = REQUEST
) -> DemoReport:
    """Go the whole way once and show it; runs and bundle of a former demo in the same folder are replaced.

    Args:
        out: Gets ``data/`` (sample data only), ``runs/``, ``bundle/`` and ``report.json``.
        data: Folder of real data sets; None writes sample data.
        backbone_name: As `load_backbone` takes it.
        request: What is trained for each task.

    Raises:
        SpecError: `data` lacks a data set that the demo uses, or `out` is a folder that the demo did not make.
    """
    console = Console()
    started = time.perf_counter()
    backbone = load_backbone(backbone_name)
    _refuse_foreign_folder(out)
    if data is not None:
        _check_real_sets(data)
    for leftover in ("data", "runs", "bundle"):
        shutil.rmtree(out / leftover, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    tasks = [read_task(path) for path in write_samples(out / "data")] if data is None else _real_tasks(data)
    ledger = _train(console, tasks, backbone, runs=out / "runs", request=request)
    bundle = _plan_and_merge(console, ledger, backbone, out / "bundle")
    engine = Engine.open(bundle.path, backend=choose_backend(precision="fp32"))
    report = _report(engine, bundle, tasks, ledger, started=started)
    console.print(bundle_picture(bundle.manifest), highlight=False)
    _ask(console, engine, tasks)
    (out / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    _say_what_next(console, out, report)
    return report


def _refuse_foreign_folder(out: Path) -> None:
    """A folder that the demo did not make is not emptied."""
    if out.exists() and not (out / MARKER).exists() and (not out.is_dir() or any(out.iterdir())):
        raise SpecError(f"demo folder {str(out)!r}: exists and was not made by the demo; choose another --out")


def _check_real_sets(folder: Path) -> None:
    for real in REAL_SETS:
        if not (folder / real.name / "train.jsonl.gz").is_file():
            wanted = ", ".join(each.name for each in REAL_SETS)
            raise SpecError(
                f"data folder {str(folder)!r}: {real.name}/train.jsonl.gz is missing; it must hold {wanted}"
            )


def _real_tasks(folder: Path) -> list[TaskSpec]:
    return [
        TaskSpec(
            name=real.name,
            kind=real.kind,
            input=real.input,
            metric=real.metric,
            max_length=real.max_length,
            pooling="mean",
            data=DataSpec(
                train=str(folder / real.name / "train.jsonl.gz"),
                dev=str(folder / real.name / "dev.jsonl.gz"),
                max_train_rows=real.max_train_rows,
            ),
        )
        for real in REAL_SETS
    ]


def _train(console: Console, tasks: list[TaskSpec], backbone: Backbone, *, runs: Path, request: TrainRequest) -> Ledger:
    ledger = Ledger(runs)
    accelerator = make_accelerator()
    with RunProgress(console, accelerator) as progress:
        cache = ActivationCache(default_cache_root(), on_rows=progress.rows)
        bench = Workbench.build(backbone, ledger, cache, accelerator=accelerator, reporter=progress)
        train_tasks(bench, tasks, request)
    console.print(candidate_table(candidates_of(ledger.records())), highlight=False)
    return ledger


def _plan_and_merge(console: Console, ledger: Ledger, backbone: Backbone, out: Path) -> Bundle:
    plan = plan_runs(ledger.folder, min_gain=MIN_GAIN)
    write_plan(plan, ledger.folder / "plan.json")
    console.print(plan_table(plan), highlight=False)
    bundle = merge(
        [Path(task.branch) for task in plan.tasks], backbone, out, digests=[task.branch_digest for task in plan.tasks]
    )
    checked = verify(bundle.path)
    console.print(f"\nverified: {checked.n_files} files whole, {len(checked.tasks)} tasks answer as when trained\n")
    return bundle


def _report(engine: Engine, bundle: Bundle, tasks: list[TaskSpec], ledger: Ledger, *, started: float) -> DemoReport:
    untrained = {
        record.spec.task: record.curve[0].selection_metric
        for record in ledger.records()
        if record.spec.arm == "partial"
    }
    reported = []
    for task in tasks:
        entry = bundle.manifest.tasks[task.name]
        reported.append(
            ReportedTask(
                name=task.name,
                kind=task.kind,
                metric=entry.metric,
                dev_metric=evaluate(engine, task, "dev").points,
                untrained_metric=untrained[task.name],
                exit_layer=entry.exit_layer,
                own_layers=entry.own_layers,
            )
        )
    return DemoReport(
        tasks=tuple(reported),
        layer_cost=layer_cost(bundle.manifest),
        single_task_layers=bundle.manifest.n_layers * len(tasks),
        seconds=time.perf_counter() - started,
    )


def _ask(console: Console, engine: Engine, tasks: list[TaskSpec]) -> None:
    """Ask every task that fits, about dev texts: single texts first, then a pair."""
    texts: list[Example] = []
    for form in ("text", "pair"):
        asked = next((task for task in tasks if task.input == form), None)
        if asked is not None:
            rows = read_part(asked, "dev")
            texts += [Example(text=row.text, text_pair=row.text_pair) for row in rows[:N_ASKED]]
    for example, answers in zip(texts, engine.predict(texts), strict=True):
        title = example.text if example.text_pair is None else f"{example.text} | {example.text_pair}"
        console.print()
        console.print(answer_table(title, answers), highlight=False)


def _say_what_next(console: Console, out: Path, report: DemoReport) -> None:
    bundle = out / "bundle"
    console.print(f"\n{len(report.tasks)} tasks in {report.seconds:.0f} s; report: {out / 'report.json'}\nTry next:")
    console.print(f'  echo \'{{"text": "wake me at seven"}}\' | .venv/bin/trunkline predict {bundle}', highlight=False)
    console.print(f"  .venv/bin/trunkline inspect {bundle}", highlight=False)
    console.print(f"  .venv/bin/trunkline plan {out / 'runs'} --min-gain 0.5", highlight=False)
    console.print("  make demo DATA=../shared/data   (any folder with these data sets)", highlight=False)
