"""first-light: full fine-tuning, partial fine-tuning, students and the merged bundle, on real data with MiniLM.

Every arm gets the same budget: three epochs a run, two trials on the first seed (three for taggers, which want high
rates; a trial is a pair of tuned layers and learning rate), chosen on the selection slice of train; the winner is then
run on the other seeds, and its rate is the students'. Dev is only reported on. Runs go through the ledger, so that a
benchmark that was stopped goes on where it was.
"""

import multiprocessing
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import numpy as np
import platformdirs
import torch

from benchmarks.harness import DATA, Benchmark, Measured
from trunkline.bundle.manifest import layer_cost
from trunkline.bundle.merge import merge
from trunkline.core.errors import DataError
from trunkline.core.specs import DataSpec, InputForm, Kind, Metric, TaskSpec
from trunkline.data.read import read_part
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
from trunkline.train.pipeline import train_task
from trunkline.train.plan import plan_runs, write_plan
from trunkline.train.spec import PRESETS, Preset, RunRecord, TrainRequest

FULL_TRIALS = ((6, 2e-4), (6, 5e-4), (6, 3e-4))
PARTIAL_TRIALS = ((4, 2e-4), (3, 5e-4), (4, 5e-4))
"""(tuned layers, peak learning rate) of each arm's trials."""
STUDENT_LAYERS = (1, 2, 3)
MIN_GAIN = 1.0
EPOCHS = 3
N_COMPARED = 64
N_WORKERS = 2


@dataclass(frozen=True, slots=True)
class Set:
    """A data set as this benchmark uses it."""

    name: str
    kind: Kind
    metric: Metric
    max_train_rows: int | None
    seeds: tuple[int, ...] = (0, 1, 2)
    n_trials: int = 2
    input: InputForm = "text"
    max_length: int = 64

    def task(self, folder: Path) -> TaskSpec:
        """The task file's content."""
        return TaskSpec(
            name=self.name,
            kind=self.kind,
            input=self.input,
            metric=self.metric,
            max_length=self.max_length,
            pooling="mean",
            data=DataSpec(
                train=str(folder / self.name / "train.jsonl.gz"),
                dev=str(folder / self.name / "dev.jsonl.gz"),
                max_train_rows=self.max_train_rows,
            ),
        )


# The longest first, so that no worker idles at the end.
SETS = (
    Set("goemotions", "multilabel", "f1_micro", 6667),
    Set("glue_rte", "classification", "accuracy", 1300, input="pair", max_length=96),
    Set("glue_mrpc", "classification", "accuracy", 1200, input="pair", max_length=96),
    Set("glue_stsb", "regression", "pearson", 1500, input="pair", max_length=96),
    Set("btc_ner", "tagging", "span_f1", 1500, n_trials=3),
    Set("glue_cola", "classification", "matthews", 2000),
    Set("emotion", "classification", "f1_macro", 1500),
    Set("snips_intent", "classification", "accuracy", 1500),
    Set("snips_slots", "tagging", "span_f1", 1500, n_trials=3),
)
# Short texts, so that learning from float32 states too is cheap.
CONTROL_SETS = SETS[-2:]
QUICK_SETS = tuple(replace(each, max_train_rows=600, seeds=(0,), n_trials=1) for each in SETS[-2:])


def measure(*, quick: bool, out: Path) -> Measured:
    """Run every set and merge the planned branches.

    Args:
        quick: Two small sets, one seed; ends within 3 minutes on 2 cores.
        out: Of the result; the ledger is copied beside it after each set.

    Raises:
        DataError: The data sets are not beside the checkout.
    """
    if not DATA.is_dir():
        raise DataError(f"data folder {str(DATA)!r} is not there; put the data sets beside the checkout")
    sets, control_sets = (QUICK_SETS, QUICK_SETS) if quick else (SETS, CONTROL_SETS)
    name = "first-light-quick" if quick else "first-light"
    folder = platformdirs.user_cache_path("trunkline") / "benchmarks" / name
    if quick:
        shutil.rmtree(folder, ignore_errors=True)
    n_resumed = len(Ledger(folder / "runs").records())
    backbone = load_backbone("minilm")
    rows: list[dict[str, Any]] = []
    # Processes with one thread each: two threads in one process wait for each other whenever the machine is shared.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(N_WORKERS, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for row in pool.map(_measure_set, sets, [folder / "runs"] * len(sets)):
            rows.append(row)
            print(f"{row['task']}: full {row['full']['mean']:.1f}, partial {row['partial']['mean']:.1f}", flush=True)
            shutil.copyfile(folder / "runs" / "ledger.jsonl", out.with_suffix(".ledger.jsonl"))
        partial = {row["task"]: row["partial"] for row in rows}
        # In a ledger of its own: a control is no candidate.
        chosen = [partial[each.name] for each in control_sets]
        control = list(pool.map(_float32_control, control_sets, [folder / "control"] * len(control_sets), chosen))
    merged = _merge_and_compare(folder, backbone, sets)
    for row in rows:
        row["merged"] = merged["tasks"][row["task"]]
    figures = {
        "tasks": float(len(rows)),
        "seeds_min": float(min(len(each.seeds) for each in sets)),
        "full_average": fmean(row["full"]["mean"] for row in rows),
        "partial_average": fmean(row["partial"]["mean"] for row in rows),
        "student3_average": fmean(row["students"]["3"]["mean"] for row in rows),
        "merged_average": fmean(row["merged"]["dev_metric"] for row in rows),
        "merged_equals_student": float(all(task["equal_in_bits"] for task in merged["tasks"].values())),
        # Trainer and engine batch dev differently, so a row whose two best labels tie may fall to either side.
        "merged_metric_difference_max": max(
            abs(task["dev_metric"] - task["recorded_dev_metric"]) for task in merged["tasks"].values()
        ),
        "runs_resumed": float(n_resumed),
        "layer_cost": float(merged["layer_cost"]),
        "single_task_layers": float(merged["single_task_layers"]),
    }
    return Measured(
        figures=figures, details={"protocol": _protocol(), "tasks": rows, "merged": merged, "cache_dtype": control}
    )


def _bench(runs: Path) -> Workbench:
    return Workbench.build(
        load_backbone("minilm"), Ledger(runs), ActivationCache(default_cache_root()), accelerator=make_accelerator()
    )


def _measure_set(each: Set, runs: Path) -> dict[str, Any]:
    task = each.task(DATA)
    bench = _bench(runs)
    first, rest = each.seeds[:1], each.seeds[1:]
    full = [train_task(bench, task, _full_request(rate, first))[0] for _, rate in FULL_TRIALS[: each.n_trials]]
    partial = [
        train_task(bench, task, _partial_request(layers, rate, first))[0]
        for layers, rate in PARTIAL_TRIALS[: each.n_trials]
    ]
    best_full, best_partial = (max(arm, key=lambda record: record.selection_metric) for arm in (full, partial))
    full_rate, rate = (record.spec.hyperparameters.learning_rate for record in (best_full, best_partial))
    layers = best_partial.spec.own_layers
    chosen_full = [best_full] + (train_task(bench, task, _full_request(full_rate, rest)) if rest else [])
    records = train_task(bench, task, _partial_request(layers, rate, each.seeds, students=STUDENT_LAYERS))
    chosen_partial = [record for record in records if record.spec.arm == "partial"]
    students = [record for record in records if record.spec.arm == "student"]
    return {
        "task": each.name,
        "set": asdict(each),
        "full": _summary(chosen_full) | {"learning_rate": full_rate},
        "partial": _summary(chosen_partial)
        | {"own_layers": layers, "exit_layer": best_partial.spec.exit_layer, "learning_rate": rate},
        "trials": [_trial(record) for record in (*full, *partial)],
        "students": {
            str(n): _summary([record for record in students if record.spec.own_layers == n]) for n in STUDENT_LAYERS
        },
    }


def _float32_control(each: Set, runs: Path, chosen: dict[str, Any]) -> dict[str, Any]:
    """Dev points of the chosen partial fine-tuning from a bfloat16 cache (the default) and from a float32 cache."""
    request = msgspec.structs.replace(
        _partial_request(chosen["own_layers"], chosen["learning_rate"], each.seeds), cache_dtype="float32"
    )
    exact = [record.dev_metric for record in train_task(_bench(runs), each.task(DATA), request)]
    return {"task": each.name, "bfloat16": chosen["dev_metrics"], "float32": exact}


def _full_request(rate: float, seeds: tuple[int, ...]) -> TrainRequest:
    return TrainRequest(layers=(), full=True, seeds=seeds, student_layers=(), preset=_preset(rate))


def _partial_request(
    layers: int, rate: float, seeds: tuple[int, ...], *, students: tuple[int, ...] = ()
) -> TrainRequest:
    return TrainRequest(layers=(layers,), seeds=seeds, student_layers=students, preset=_preset(rate))


def _preset(rate: float) -> Preset:
    """The default preset with equally many epochs and this rate for every arm."""
    replaced, default = msgspec.structs.replace, PRESETS["default"]
    return Preset(
        full=replaced(default.full, learning_rate=rate, epochs=EPOCHS),
        partial=replaced(default.partial, learning_rate=rate, epochs=EPOCHS),
        student=replaced(default.student, learning_rate=rate, epochs=EPOCHS),
        distillation=default.distillation,
    )


def _summary(records: Sequence[RunRecord]) -> dict[str, Any]:
    (candidate,) = candidates_of(records)
    return {
        "mean": candidate.dev_mean,
        "spread": candidate.dev_spread,
        "max": candidate.dev_max,
        "dev_metrics": candidate.dev_metrics,
        "selection_metrics": candidate.selection_metrics,
        "seeds": candidate.seeds,
        "n_train_rows": records[0].n_train_rows,
        "n_truncated": records[0].n_truncated,
        "n_unseen_labels": records[0].n_unseen_labels,
        "seconds_each": [round(record.seconds, 1) for record in records],
        "cache_seconds": round(sum(record.cache_seconds for record in records), 1),
    }


def _trial(record: RunRecord) -> dict[str, Any]:
    return {
        "arm": record.spec.arm,
        "own_layers": record.spec.own_layers,
        "learning_rate": record.spec.hyperparameters.learning_rate,
        "selection_metric": record.selection_metric,
        "dev_metric": record.dev_metric,
        "seconds": round(record.seconds, 1),
    }


def _merge_and_compare(folder: Path, backbone: Backbone, sets: Sequence[Set]) -> dict[str, Any]:
    plan = plan_runs(folder / "runs", min_gain=MIN_GAIN, tasks=[each.name for each in sets])
    write_plan(plan, folder / "plan.json")
    shutil.rmtree(folder / "bundle", ignore_errors=True)
    branches = [Path(task.branch) for task in plan.tasks]
    bundle = merge(branches, backbone, folder / "bundle", digests=[task.branch_digest for task in plan.tasks])
    verify(bundle.path)
    engine = Engine.open(bundle.path, backend=choose_backend(precision="fp32"))
    tasks = {}
    for each in sets:
        planned = next(task for task in plan.tasks if task.task == each.name)
        record = Ledger(folder / "runs").get(planned.run_id)
        own = evaluate(engine, each.task(DATA), "dev")
        tasks[each.name] = {
            "exit_layer": planned.exit_layer,
            "own_layers": planned.own_layers,
            "reason": planned.reason,
            "dev_metric": own.points,
            "n_dev_rows": own.n_rows,
            "recorded_dev_metric": record.dev_metric,
            "equal_in_bits": _equal_in_bits(engine, each, Path(planned.branch), folder, backbone),
        }
    return {
        "tasks": tasks,
        "layer_cost": layer_cost(bundle.manifest),
        "single_task_layers": plan.single_task_layers,
        "trunk_depth": plan.trunk_depth,
    }


def _equal_in_bits(engine: Engine, each: Set, branch: Path, folder: Path, backbone: Backbone) -> bool:
    """Whether a task answers dev rows with the same bits alone, alone in the bundle, and beside all others in it."""
    rows = read_part(each.task(DATA), "dev")[:N_COMPARED]
    alone = folder / "alone"
    shutil.rmtree(alone, ignore_errors=True)
    single = Engine.open(merge([branch], backbone, alone).path, backend=engine.backend)
    pairs = zip(engine.logits(rows, each.name), single.logits(rows, each.name), strict=True)
    together, own = ([answers[each.name] for answers in some.predict(rows)] for some in (engine, single))
    return together == own and all(np.array_equal(merged, own) for merged, own in pairs)


def _protocol() -> dict[str, Any]:
    return {
        "backbone": "all-MiniLM-L6-v2 (6 layers, width 384)",
        "epochs": EPOCHS,
        "full_trials": FULL_TRIALS,
        "partial_trials": PARTIAL_TRIALS,
        "student_rate": "that of the partial fine-tuning",
        "distillation": msgspec.to_builtins(PRESETS["default"].distillation),
        "selection": "10% of the train rows, at least 300; dev only reported",
        "min_gain": MIN_GAIN,
        "pooling": "mean",
        "workers": N_WORKERS,
        "threads_per_worker": 1,
    }


def report(path: Path) -> None:
    """Print the table of a written result."""
    from benchmarks.first_light_report import write_page

    write_page(path)


BENCHMARK = Benchmark(
    name="first-light",
    purpose="full, partial, students and the merged bundle on nine real tasks with MiniLM",
    measure=measure,
    after=report,
)
