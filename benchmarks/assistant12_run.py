"""Makes the bundle of twelve assistant tasks from nothing: search, plan, merge, verify.

    python -m benchmarks.assistant12_run [--out FOLDER] [--quick]

Resumable: what the ledger has is not run again. The serving benchmarks use this bundle.
"""

import argparse
import math
import multiprocessing
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import msgspec
import platformdirs
import torch

from benchmarks.sets import Set
from trunkline.bundle.files import swap_file
from trunkline.bundle.manifest import MANIFEST_NAME
from trunkline.bundle.merge import merge
from trunkline.core.errors import BundleError
from trunkline.core.specs import Metric, spec_digest
from trunkline.engine.verify import verify
from trunkline.model.backbone import load_backbone
from trunkline.train.bench import Workbench
from trunkline.train.cache import ActivationCache
from trunkline.train.cache_room import default_cache_root
from trunkline.train.contest import PlanRequest, read_contest
from trunkline.train.device import make_accelerator
from trunkline.train.ledger import Ledger
from trunkline.train.pareto import draw_pareto, pareto_of, write_pareto
from trunkline.train.pipeline import train_task
from trunkline.train.plan import Plan, plan_contest, write_plan
from trunkline.train.price import Budget
from trunkline.train.search import search_tasks
from trunkline.train.search_spec import SearchReport, SearchRequest
from trunkline.train.spec import RunRecord, TrainRequest

FOLDER = platformdirs.user_cache_path("trunkline") / "benchmarks" / "assistant12"
N_WORKERS = 2
N_LAYERS = 6
# Three students a task, so that the plan has something to choose from beside the teacher: half of the layers are to
# spend, and a layer need not be worth a point.
REQUEST = SearchRequest(budget=2.0, n_students=3, min_gain=0.25)


def _set(name: str, rows: int, metric: Metric = "accuracy", **more: Any) -> Set:
    return Set(name, rows, metric=metric, max_length=64, has_test=True, **more)


SETS = (
    _set("clinc150_intent", 6000),
    _set("hwu64_intent", 4000),
    _set("snips_slots", 3000, "span_f1", kind="tagging"),
    _set("atis_slots", 3000, "span_f1", kind="tagging"),
    _set("btc_ner", 6000, "span_f1", kind="tagging"),
    _set("emotion", 8000, "f1_macro"),
    _set("clinc150_domain", 3000),
    # One row in sixty is out of scope: a sample would leave too few of them to learn from or to select by.
    _set("clinc150_oos", 15_250, "f1_binary", positive_label="oos"),
    _set("hwu64_domain", 3000),
    _set("snips_intent", 2000),
    _set("atis_intent", 3000),
    _set("sms_spam", 4000, "f1_binary", positive_label="spam"),
)
QUICK = tuple(replace(each, rows=500) for each in (SETS[9], SETS[11]))


@dataclass(frozen=True, slots=True)
class Made:
    """How the bundle came to be.

    Attributes:
        reports: Of the searches.
        retaught: Further runs, of the tasks that had them (`_retaught`).
        plan: Who is in the bundle.
    """

    reports: list[SearchReport]
    retaught: list[RunRecord]
    plan: Plan

    @property
    def minutes(self) -> float:
        """That all workers took for search and training."""
        seconds = [each.seconds for each in self.reports] + [run.seconds + run.cache_seconds for run in self.retaught]
        return sum(seconds) / 60 / N_WORKERS


def make_bundle(folder: Path, sets: Sequence[Set], bundle: Path) -> Made:
    """Search every task, plan all of them for half of the layers, merge and verify.

    Args:
        folder: Of the runs; the plan and its fronts go there too.
        sets: Which tasks.
        bundle: Where the bundle goes; a bundle that is there is replaced.

    Raises:
        BundleError: Something else is there.
    """
    check_replaceable(bundle)
    runs = folder / "runs"
    # Processes with one thread each: two threads in one process wait for each other whenever the machine is shared.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(N_WORKERS, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        reports = list(pool.map(_search, sets, repeat(folder)))
        retaught = [run for found in pool.map(_retaught, sets, reports, repeat(runs)) for run in found]
    request = PlanRequest(budget=Budget(amount=N_LAYERS * len(sets) / 2, unit="layers"))
    contest = read_contest(runs, [each.name for each in sets])
    plan = plan_contest(contest, request)
    write_plan(plan, folder / "plan.json")
    pareto = pareto_of(contest, request, plan)
    write_pareto(pareto, folder / "pareto.json")
    draw_pareto(pareto, folder / "pareto.png")
    put_bundle(bundle, [Path(task.branch) for task in plan.tasks], [task.branch_digest for task in plan.tasks])
    return Made(reports, retaught, plan)


def put_bundle(bundle: Path, branches: Sequence[Path], digests: Sequence[str] | None = None) -> None:
    """Merge branches in the place of the bundle that is there, and verify them; errors as of `check_replaceable`."""
    check_replaceable(bundle)
    shutil.rmtree(bundle, ignore_errors=True)
    merge(branches, load_backbone("minilm"), bundle, digests=digests)
    verify(bundle)


def check_replaceable(bundle: Path) -> None:
    """Refuse to remove anything that is neither an empty folder nor a bundle.

    Raises:
        BundleError: It is something else.
    """
    if not bundle.exists() or (bundle.is_dir() and not any(bundle.iterdir())) or (bundle / MANIFEST_NAME).is_file():
        return
    raise BundleError(
        f"folder {str(bundle)!r}: is not empty and holds no {MANIFEST_NAME}; only a bundle or an empty folder is "
        "replaced; choose another --out"
    )


def open_bench(runs: Path) -> Workbench:
    """MiniLM on a runs folder."""
    cache = ActivationCache(default_cache_root())
    return Workbench.build(load_backbone("minilm"), Ledger(runs), cache, accelerator=make_accelerator())


def _search(each: Set, folder: Path) -> SearchReport:
    """The search's report as it was when it was first made: what a resumed one finds costs nothing now."""
    asked = spec_digest({"set": each, "request": REQUEST})
    path = folder / f"search-{each.name}-{asked[:12]}.json"
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=SearchReport)
    (report,) = search_tasks(open_bench(folder / "runs"), [each.task()], REQUEST)
    swap_file(path, msgspec.json.encode(report))
    print(f"{time.strftime('%H:%M')} {each.name}: {report.cost:.2f} full fine-tunings; {report.winner}", flush=True)
    return report


def _retaught(each: Set, report: SearchReport, runs: Path) -> list[RunRecord]:
    """Where no student is as good as its teacher: a teacher of one more layer, and students as long as teachers are.

    They learn from a full fine-tuning. The plan has room for them: half of the layers are to spend.
    """
    finals = {stage: [t.selection_metric for t in report.tried if t.n_rows is None and t.choice.stage == stage]
              for stage in ("teacher", "student")}  # fmt: skip
    if max(finals["student"], default=-math.inf) >= max(finals["teacher"]):
        return []
    lengths = (report.teacher.own_layers, report.teacher.own_layers + 1)
    request = TrainRequest(layers=lengths, full=True, label_teacher="full", student_layers=lengths)
    task = msgspec.structs.replace(each.task(), pooling=report.teacher.pooling)
    known = {tried.run_id for tried in report.tried}
    found = [run for run in train_task(open_bench(runs), task, request) if run.run_id not in known]
    said = ", ".join(f"{run.spec.arm} of {run.spec.own_layers} {run.selection_metric:.1f}" for run in found)
    print(f"{each.name}: the teacher {max(finals['teacher']):.1f}, {said}", flush=True)
    return found


def main() -> None:
    """Make the bundle and say what it holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help=f"where the bundle goes; {FOLDER / 'bundle'} by default")
    parser.add_argument("--quick", action="store_true", help="two tasks on few rows")
    arguments = parser.parse_args()
    started = time.perf_counter()
    folder = FOLDER.with_name("assistant12-quick") if arguments.quick else FOLDER
    out: Any = arguments.out or folder / "bundle"
    plan = make_bundle(folder, QUICK if arguments.quick else SETS, out).plan
    for task in plan.tasks:
        print(f"{task.task}: exit {task.exit_layer} + {task.own_layers}, {task.metric} {task.selection_metric:.1f}")
    print(
        f"{out}: {len(plan.tasks)} tasks, {plan.layer_cost} of {plan.single_task_layers} layers, "
        f"{(time.perf_counter() - started) / 60:.0f} minutes"
    )


if __name__ == "__main__":
    main()
