"""The long part of `paper-tables`: its runs, resumable at any moment; several processes share the work.

    python -m benchmarks.paper_tables_run [--minutes N] [--tasks NAME ...]

Records go to the benchmark's working folder as they come, and from there to ``results/paper-tables.ledger.jsonl``.
"""

import argparse
import gzip
import os
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import platformdirs
from filelock import FileLock

from benchmarks.fetch_mpnet import FOLDER as MPNET
from benchmarks.harness import DATA, RESULTS
from trunkline.bundle.files import swap_file
from trunkline.core.specs import DataSpec, InputForm, Kind, Metric, TaskSpec
from trunkline.data.split import sample_indices
from trunkline.model.backbone import load_backbone
from trunkline.train.bench import Workbench
from trunkline.train.cache import ActivationCache
from trunkline.train.cache_room import default_cache_root
from trunkline.train.device import make_accelerator
from trunkline.train.ledger import Ledger
from trunkline.train.pipeline import train_each
from trunkline.train.reproduction import teacher_range
from trunkline.train.spec import RunRecord, RunSpec, TrainRequest, preset

FOLDER = platformdirs.user_cache_path("trunkline") / "benchmarks" / "paper-tables"
KEPT = RESULTS / "paper-tables.ledger.jsonl"
LAYERS = (1, 2, 4, 8)
ALL_LAYERS = (1, 2, 4, 6, 8, 12)
"""As the paper; of the tasks for which there was time."""
N_LAYERS = 12
FREE_EXITS = (6, 8, 10)
TRAIN_ROWS = 1000
MORE_TRAIN_ROWS = 3000
"""Of tasks with short texts, which cost a third."""
DEV_ROWS = 1000
"""Of the tasks whose dev part is longer: measured whole, it would cost more than the training."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One task of the study.

    Attributes:
        name: Of the GLUE task.
        metric: The paper's.
        layers: L of the partial fine-tunings.
        seeds: Of every run.
        rows: Of train, a seeded sample; None for all.
        dev_rows: Of dev, a seeded sample; None for all.
        kind: What is predicted.
        form: What is read.
    """

    name: str
    metric: Metric
    layers: tuple[int, ...]
    seeds: tuple[int, ...]
    rows: int | None = TRAIN_ROWS
    dev_rows: int | None = None
    kind: Kind = "classification"
    form: InputForm = "pair"

    def task(self) -> TaskSpec:
        """Its rows lie in ../shared/data; a sample of its dev part is drawn into the working folder."""
        folder = DATA / f"glue_{self.name}"
        dev = folder / "dev.jsonl.gz"
        return TaskSpec(
            name=self.name,
            kind=self.kind,
            input=self.form,
            metric=self.metric,
            data=DataSpec(
                train=str(folder / "train.jsonl.gz"),
                dev=str(dev if self.dev_rows is None else _sampled(dev, self.name, self.dev_rows)),
                max_train_rows=self.rows,
            ),
        )

    def free_depth(self, width: int) -> TrainRequest:
        """Students of the same teacher at further exits, for the plan of `headline`."""
        return msgspec.structs.replace(
            self.request(width), student_exits=FREE_EXITS, student_layers=(1, 2), student_inits=("teacher",)
        )

    def request(self, width: int) -> TrainRequest:
        """What the paper's tables need of it."""
        return TrainRequest(
            layers=self.layers,
            teacher_layers=teacher_range(self.layers, N_LAYERS),
            seeds=self.seeds,
            full=True,
            student_layers=(1, 2, 3),
            student_inits=("teacher", "backbone"),
            preset=preset("default", width=width),
        )


# Further seeds once all tasks have the first. NLI, duplicates and question-answer pairs were in this backbone's own
# tuning.
STUDY: tuple[Entry, ...] = (
    Entry("sst2", "accuracy", (2, 4, 8), (0,), MORE_TRAIN_ROWS, form="text"),
    Entry("cola", "matthews", LAYERS, (0,), rows=None, form="text"),
    Entry("stsb", "pearson", ALL_LAYERS, (0, 1), rows=None, kind="regression"),
    Entry("mrpc", "accuracy", ALL_LAYERS, (0, 1), rows=None),
    Entry("rte", "accuracy", LAYERS, (0, 1), rows=None),
    Entry("qqp", "accuracy", LAYERS, (0,), dev_rows=DEV_ROWS),
    Entry("mnli", "accuracy", LAYERS, (0,), dev_rows=DEV_ROWS),
    Entry("qnli", "accuracy", LAYERS, (0,), dev_rows=DEV_ROWS),
)


def _sampled(dev: Path, name: str, n_rows: int) -> Path:
    path = FOLDER / f"{name}.dev.{n_rows}.jsonl"
    with gzip.open(dev) as file:
        lines = file.readlines()
    path.parent.mkdir(parents=True, exist_ok=True)
    swap_file(path, b"".join(lines[index] for index in sample_indices(len(lines), n_rows)))
    return path


class KeepRecords:
    """Copies each record to the results, so that a vanished cache folder costs no measurement."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def run_started(self, spec: RunSpec, n_steps: int) -> None:
        """Say what begins."""
        print(f"{time.strftime('%H:%M')} {spec.task} {spec.arm} {spec.own_layers} {spec.init}: {n_steps}", flush=True)

    def step(self, loss: float) -> None:
        """Say nothing."""

    def run_finished(self, record: RunRecord, *, resumed: bool) -> None:
        """Keep it."""
        if not resumed:
            keep_records(self._ledger)
            print(f"  {record.selection_metric:.1f}, dev {record.dev_metric:.1f}, {record.seconds:.0f} s", flush=True)

    def note(self, message: str) -> None:
        """Print it."""
        print(message, flush=True)


def kept_ledger() -> Ledger:
    """Records that are committed with the results; branches do not lie beside it."""
    return Ledger(KEPT.parent, name=KEPT.name)


def keep_records(ledger: Ledger) -> None:
    """Append to the kept ledger what it lacks; one process at a time."""
    with FileLock(FOLDER / "kept.lock"):
        kept = kept_ledger()
        known = kept.records()
        for record in ledger.records():
            if record not in known:
                kept.append(record)


def main() -> None:
    """Run what is open: the first seed of every task with its students at further exits, then the next seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, help="begin no run after so many minutes")
    names = [entry.name for entry in STUDY]
    parser.add_argument("--tasks", nargs="+", choices=names, default=names, help="these alone")
    arguments = parser.parse_args()
    minutes: float | None = arguments.minutes
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    ledger = Ledger(FOLDER / "runs")
    backbone = load_backbone(str(MPNET))
    bench = Workbench.build(
        backbone,
        ledger,
        ActivationCache(default_cache_root()),
        accelerator=make_accelerator(),
        reporter=KeepRecords(ledger),
    )
    if not ledger.records():  # The cache folder has vanished; branches that are needed again are run again.
        for record in kept_ledger().records():
            ledger.append(record)
    width = backbone.config.width
    tasks = [(entry, entry.task()) for entry in STUDY if entry.name in arguments.tasks]
    for n_seeds in range(1, 1 + max(len(entry.seeds) for entry in STUDY)):
        asked = [
            (task, msgspec.structs.replace(ask(entry, width), seeds=entry.seeds[:n_seeds]))
            for entry, task in tasks
            for ask in (Entry.request, Entry.free_depth)
        ]
        train_each(bench, asked, needed="record", deadline=deadline)


if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    main()
