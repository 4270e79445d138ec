"""`ablations`: what each option of training and distillation is worth, one figure an option, with seeds and spread."""

import multiprocessing
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import msgspec
import platformdirs
import torch

from benchmarks.ablations_report import write_page
from benchmarks.harness import Benchmark, Measured
from benchmarks.pages import runs_facts, t_half_width
from benchmarks.sets import Set
from trunkline.core.specs import TaskSpec
from trunkline.model.backbone import load_backbone
from trunkline.train.bench import Workbench
from trunkline.train.cache import ActivationCache
from trunkline.train.cache_room import default_cache_root
from trunkline.train.candidates import Candidate, candidates_of
from trunkline.train.device import make_accelerator
from trunkline.train.ledger import Ledger
from trunkline.train.pipeline import train_task
from trunkline.train.spec import PRESETS, RunRecord, TrainRequest

SEEDS = (0, 1, 2)
STUDENTS = (1, 2)
TEACHER_LAYERS = 3
N_LAYERS = 6
N_WORKERS = 2
DEFAULT = PRESETS["default"]


SETS = (
    Set("mrpc", 1500, "glue_mrpc", form="pair"),
    Set("stsb", 1500, "glue_stsb", kind="regression", form="pair", metric="pearson"),
    Set("sst2", 1500, "glue_sst2"),
)
QUICK = (Set("sst2", 700, "glue_sst2"),)
WARM = Set("mnli", 3000, "glue_mnli", form="pair")
"""Its teacher is where pair tasks start warm (Phang et al. 2018)."""


def _distilled(**changes: float) -> TrainRequest:
    distillation = msgspec.structs.replace(DEFAULT.distillation, **changes)
    return msgspec.structs.replace(BASE, preset=msgspec.structs.replace(DEFAULT, distillation=distillation))


BASE = TrainRequest(layers=(TEACHER_LAYERS,), seeds=SEEDS, student_layers=STUDENTS)
OPTIONS: dict[str, tuple[TrainRequest, ...]] = {
    # Of several requests the one that is best on the selection rows counts, as a search would choose.
    "free_depth": (msgspec.structs.replace(BASE, student_exits=(3, 4)), msgspec.structs.replace(
        BASE, student_exits=(5,), student_layers=(1,))),
    "label_teacher_ensemble": (msgspec.structs.replace(BASE, label_teacher="ensemble"),),
    "label_teacher_full": (msgspec.structs.replace(BASE, label_teacher="full", full=True),),
    "init_backbone": (msgspec.structs.replace(BASE, student_inits=("backbone",)),),
    "temperature": (BASE, _distilled(kd_temperature=1.0), _distilled(kd_temperature=4.0)),
    "alpha": (BASE, _distilled(alpha=0.0), _distilled(alpha=0.6)),
    "labels_alone": (_distilled(alpha=1.0),),
    "hidden_states": (_distilled(hidden_weight=1.0),),
    "augmented_text": (msgspec.structs.replace(BASE, augment=2),),
}  # fmt: skip


def measure(*, quick: bool, out: Path) -> Measured:
    """Every option beside the base, on every task."""
    del out
    sets = QUICK if quick else SETS
    name = "ablations-quick" if quick else "ablations"
    folder = platformdirs.user_cache_path("trunkline") / "benchmarks" / name
    if quick:
        shutil.rmtree(folder, ignore_errors=True)
    seeds, options = (SEEDS[:1], ("free_depth", "labels_alone")) if quick else (SEEDS, tuple(OPTIONS))
    context = multiprocessing.get_context("spawn")
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(N_WORKERS, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for row in pool.map(_measure_set, sets, repeat(folder / "runs"), repeat(seeds), repeat(options)):
            rows.append(row)
            print(
                f"{row['task']}: " + ", ".join(f"{k} {v['gain']:+.2f}" for k, v in row["options"].items()), flush=True
            )
    names = dict.fromkeys(name for row in rows for name in row["options"])
    gains = {name: [row["options"][name]["gain"] for row in rows if name in row["options"]] for name in names}
    return Measured(
        figures={
            "tasks": float(len(rows)),
            "seeds_min": float(len(seeds)),
            **{f"{name}_gain": fmean(values) for name, values in gains.items()},
        },
        details={
            "tasks": rows,
            "gains": gains,
            "half_widths": {name: t_half_width(values) for name, values in gains.items()},
            "sets": [asdict(each) for each in sets],
            "runs": runs_facts(Ledger(folder / "runs").records()),
        },
    )


def _measure_set(each: Set, runs: Path, seeds: tuple[int, ...], options: Sequence[str]) -> dict[str, Any]:
    def train(request: TrainRequest, task: TaskSpec | None = None) -> list[RunRecord]:
        asked = msgspec.structs.replace(request, seeds=seeds)
        return train_task(_bench(runs), task or each.task(), asked)

    base = _by_length(train(BASE))
    found: dict[str, dict[str, Any]] = {}
    for name in options:
        variants = [_by_length(train(request)) for request in OPTIONS[name]]
        found[name] = _compared(base, [base, *variants] if name == "free_depth" else variants)
    if len(seeds) > 1:
        mean = msgspec.structs.replace(each.task(), pooling="mean")
        found["pooling_mean"] = _compared(base, [_by_length(train(BASE, mean))])
        if each.form == "pair":
            found["warm_start"] = _compared(base, [_by_length(train(_warm(runs)))])
    return {"task": each.name, "base": {str(n): _summary(c) for n, c in base.items()}, "options": found}


def _warm(runs: Path) -> TrainRequest:
    request = msgspec.structs.replace(BASE, seeds=SEEDS[:1], student_layers=())
    (teacher,) = train_task(_bench(runs), WARM.task(), request)
    return msgspec.structs.replace(BASE, init_from=str(Ledger(runs).branch_folder(teacher.run_id)))


def _by_length(records: Sequence[RunRecord]) -> dict[int, Candidate]:
    """The best students of each length on the selection rows, over the seeds."""
    students = [c for c in candidates_of(records) if c.arm == "student"]
    best: dict[int, Candidate] = {}
    for candidate in students:
        known = best.get(candidate.own_layers)
        if known is None or candidate.selection_mean > known.selection_mean:
            best[candidate.own_layers] = candidate
    return best


def _compared(base: dict[int, Candidate], variants: Sequence[dict[int, Candidate]]) -> dict[str, Any]:
    """Dev points gained over the base, a mean over lengths and seeds; the variant is chosen on the selection rows."""
    chosen = {n: max((v[n] for v in variants if n in v), key=lambda candidate: candidate.selection_mean) for n in base}
    gains = {n: _seed_gains(base[n], chosen[n]) for n in base}
    every = [gain for values in gains.values() for gain in values]
    return {
        "gain": fmean(every),
        "spread": stdev(every) if len(every) > 1 else None,
        "by_length": {str(n): fmean(values) for n, values in gains.items()},
        "chosen": {str(n): _summary(candidate) for n, candidate in chosen.items()},
    }


def _seed_gains(base: Candidate, other: Candidate) -> list[float]:
    return [b - a for a, b in zip(base.dev_metrics, other.dev_metrics, strict=True)]


def _summary(candidate: Candidate) -> dict[str, Any]:
    return {
        "exit_layer": candidate.exit_layer,
        "dev_metrics": candidate.dev_metrics,
        "selection_metrics": candidate.selection_metrics,
        "run_id": candidate.run_id,
    }


def _bench(runs: Path) -> Workbench:
    cache = ActivationCache(default_cache_root())
    return Workbench.build(load_backbone("minilm"), Ledger(runs), cache, accelerator=make_accelerator())


BENCHMARK = Benchmark(
    name="ablations",
    purpose="what each option of training and distillation is worth on average (MiniLM)",
    measure=measure,
    after=write_page,
)
