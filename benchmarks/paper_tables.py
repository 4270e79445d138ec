"""paper-tables: the paper's tables 1, 2 and 5 and figures 2 and 5 on eight GLUE tasks with MPNet.

The runs take days on two cores: `python -m benchmarks.paper_tables_run` does them and may be stopped at any moment.
This is the result side: whatever the ledgers hold becomes tables and pictures within seconds. ``--quick`` trains a tiny
study with MiniLM and reports it through the same code.
"""

import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.fetch_mpnet import NAME
from benchmarks.harness import DATA, Benchmark, Measured
from benchmarks.pages import runs_facts
from benchmarks.paper_tables_run import FOLDER, KEPT, STUDY, Entry, kept_ledger
from trunkline.core.errors import DataError, TrainingError
from trunkline.model.backbone import load_backbone
from trunkline.train.bench import Workbench
from trunkline.train.cache import ActivationCache
from trunkline.train.cache_room import default_cache_root
from trunkline.train.device import make_accelerator
from trunkline.train.ledger import Ledger
from trunkline.train.pipeline import train_each
from trunkline.train.reproduction import Reproduction, average, teacher_range
from trunkline.train.reproduction_tables import reproduce
from trunkline.train.spec import RunRecord, TrainRequest, preset
from trunkline.train.study import Study, asked_records

CONTAMINATED = ("qqp", "mnli", "qnli")
"""Tasks whose kind of data the backbone saw in its own tuning (design.md, section 9)."""
QUICK = (Entry("sst2", "accuracy", (1, 2), (0,), rows=300, form="text"),)


def measure(*, quick: bool, out: Path) -> Measured:  # noqa: ARG001 - what every benchmark is called with
    """Sum up what the ledgers hold; with ``quick``, after a tiny study was trained.

    Args:
        quick: One small task with MiniLM, ends within 3 minutes on 2 cores.
        out: Of the result; nothing is kept beside it while it is measured.

    Raises:
        DataError: The data sets are not beside the checkout.
        TrainingError: No run is there yet.
    """
    if not DATA.is_dir():
        raise DataError(f"data folder {str(DATA)!r} is not there; put the data sets beside the checkout")
    if quick:
        study, records = quick_study()
    else:
        records = ledger_records()
        study = study_of(records[-1])
    made, entries = reproduce(study, records), QUICK if quick else STUDY
    contaminated = [entry.name for entry in entries if entry.name in CONTAMINATED]
    return Measured(
        figures=figures_of(made, contaminated),
        details={
            "reproduction": msgspec.to_builtins(made),
            "contaminated": contaminated,
            "entries": [_entry_facts(entry) for entry in entries],
            "runs": runs_facts(asked_records(study, records)),
        },
    )


def ledger_records() -> list[RunRecord]:
    """Records that were kept, then those of the working folder; many are in both, which whoever sums up minds.

    Raises:
        TrainingError: There are none.
    """
    records = [*kept_ledger().records(), *Ledger(FOLDER / "runs").records()]
    if not records:
        raise TrainingError(
            f"paper-tables: neither {KEPT} nor {FOLDER / 'runs'} has a run; "
            "do some first: python -m benchmarks.paper_tables_run --minutes 60"
        )
    return records


def kept_study(records: Sequence[RunRecord]) -> Reproduction:
    """The study of MPNet as far as these records go."""
    return reproduce(study_of(records[-1]), records)


def study_of(last: RunRecord) -> Study:
    """What is asked of the backbone of a record."""
    requests = {entry.name: entry.request(last.sizes.width) for entry in STUDY}
    return Study(NAME, last.spec.backbone_digest, last.sizes, requests)


def figures_of(made: Reproduction, contaminated: Sequence[str]) -> dict[str, float]:
    """Flat figures; an average that is not known yet is left out.

    Args:
        made: What is there.
        contaminated: Tasks that every average is given without, too.
    """
    finished = [each.task for each in made.tasks if each.finished]
    clean = [task for task in finished if task not in contaminated]
    # The cells of tables 2 and 5 are chosen among those of table 1 and figure 2.
    cells = [*(cell for row in made.table1 for cell in row.cells), *made.figure2]
    figures: dict[str, float | None] = {
        "cells_done": float(made.cells_done),
        "cells_wanted": float(made.cells_wanted),
        "tasks_finished": float(len(finished)),
        "seeds_min": float(min((len(cell.seeds) for cell in cells if cell.done), default=0)),
        "teacher_init_gain_mean": made.teacher_init_gain,
    }
    for row in made.table5:
        name = row.name.lower().replace(", c = ", "_c").replace(" ", "_").replace("-", "_")
        figures[f"{name}_average"] = row.average
        figures[f"{name}_average_uncontaminated"] = average(row, clean)
        figures[f"{name}_overhead_share"] = None if row.cost is None else row.cost.share
    return {name: value for name, value in figures.items() if value is not None}


def quick_study() -> tuple[Study, list[RunRecord]]:
    """Train the tiny study of ``--quick`` from nothing."""
    folder = FOLDER.with_name("paper-tables-quick")
    shutil.rmtree(folder, ignore_errors=True)
    backbone = load_backbone("minilm")
    ledger = Ledger(folder / "runs")
    bench = Workbench.build(backbone, ledger, ActivationCache(default_cache_root()), accelerator=make_accelerator())
    requests = {entry.name: quick_request(entry, backbone.config.n_layers, backbone.config.width) for entry in QUICK}
    train_each(bench, [(entry.task(), requests[entry.name]) for entry in QUICK], needed="record")
    return Study.of(backbone, requests), ledger.records()


def quick_request(entry: Entry, n_layers: int, width: int) -> TrainRequest:
    """As `Entry.request`, for a backbone of another depth than the study's."""
    return TrainRequest(
        layers=entry.layers,
        teacher_layers=teacher_range(entry.layers, n_layers),
        seeds=entry.seeds,
        full=True,
        student_layers=(1, 2),
        student_inits=("teacher", "backbone"),
        preset=preset("default", width=width),
    )


def _entry_facts(entry: Entry) -> dict[str, Any]:
    return {
        "task": entry.name,
        "metric": entry.metric,
        "max_train_rows": entry.rows,
        "n_seeds": len(entry.seeds),
        "n_dev_rows": n_dev_rows(entry.name),
    }


def n_dev_rows(task: str) -> int:
    """Rows of a GLUE task's dev part that its runs are measured on."""
    with gzip.open(DATA / f"glue_{task}" / "dev.jsonl.gz") as file:
        n_rows = sum(1 for _ in file)
    sampled = next((entry.dev_rows for entry in STUDY if entry.name == task), None)
    return min(n_rows, sampled or n_rows)


def report(path: Path) -> None:
    """Print the tables of a written result and draw its pictures."""
    from benchmarks.paper_tables_report import write_page

    write_page(path)


BENCHMARK = Benchmark(
    name="paper-tables",
    purpose="the paper's tables 1, 2, 5 and figures 2, 5 on eight GLUE tasks with MPNet",
    measure=measure,
    after=report,
)
