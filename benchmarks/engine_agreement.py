"""`engine-agreement`: the engine's answers beside the training-side model's, on a real bundle and real dev rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch

from benchmarks.assistant12_run import SETS
from benchmarks.harness import DATA, Benchmark, Measured
from benchmarks.pages import measured_by, picture, publish
from benchmarks.sets import Set
from trunkline.bundle.manifest import MANIFEST_NAME
from trunkline.bundle.store import Bundle, open_bundle
from trunkline.core.errors import BundleError
from trunkline.core.types import Example
from trunkline.data.read import read_part
from trunkline.engine.backends.choose import choose_backend
from trunkline.engine.engine import Engine
from trunkline.model.branch import load_branch
from trunkline.model.golden_run import golden_logits
from trunkline.model.score import Answer
from trunkline.model.trunk import Trunk

FOLDERS = ("assistant12", "assistant12.kept")
N_QUICK_ROWS = 150
HOW = (
    "python -m benchmarks.assistant12_run makes it, in about an hour; python -m benchmarks.assistant12_kept makes one "
    "of the same plan from few rows, in minutes"
)


def real_bundle() -> Path:
    """The bundle of `assistant12`, or one of the same plan that was trained on few rows.

    Raises:
        BundleError: There is none.
    """
    root = platformdirs.user_cache_path("trunkline") / "benchmarks"
    for name in FOLDERS:
        if (root / name / "bundle" / MANIFEST_NAME).is_file():
            return root / name / "bundle"
    raise BundleError(f"bundle {str(root / FOLDERS[0] / 'bundle')!r}: is not there; {HOW}")


def measure(*, quick: bool, out: Path) -> Measured:  # noqa: ARG001 - every benchmark is told where its result goes
    """Each task on its own dev rows: fp32 against torch row by row, then bf16 against fp32."""
    path = real_bundle()
    bundle = open_bundle(path)
    sets = [each for each in SETS if each.name in bundle.manifest.tasks]
    dev = {each.name: _dev(each, quick=quick) for each in sets}
    torch.set_num_threads(1)  # each row alone is too small for two: they would wait for each other
    with Engine.open(path, backend=choose_backend(precision="fp32")) as engine:
        differences = {name: _differences(bundle, engine, name, rows) for name, rows in dev.items()}
        exact = {name: engine.answers(rows, name) for name, rows in dev.items()}
    with Engine.open(path, backend=choose_backend(precision="bf16")) as engine:
        narrow = {name: engine.answers(rows, name) for name, rows in dev.items()}
    rows = [
        {
            "task": name,
            "kind": bundle.manifest.tasks[name].kind,
            "n_rows": len(dev[name]),
            "largest_difference": max(differences[name]),
            "mean_difference": float(np.mean(differences[name])),
            "n_equal": _n_equal(exact[name], narrow[name]),
            "word_agreement": _word_agreement(exact[name], narrow[name]),
        }
        for name in dev
    ]
    n_rows = sum(row["n_rows"] for row in rows)
    return Measured(
        figures={
            "max_logit_difference_fp32": max(row["largest_difference"] for row in rows),
            "agreement_bf16": sum(row["n_equal"] for row in rows) / n_rows,
            "rows": float(n_rows),
        },
        details={
            "tasks": rows,
            "bundle": {"trunk": bundle.manifest.trunk.chain[-1], "backbone": bundle.manifest.backbone},
            "compared": "torch: trunkline.model in fp32, each row alone; the engine: rows in batches of its own making",
            "equal": "the same label; of a tagger the same tag for every word of the row",
        },
    )


def _dev(each: Set, *, quick: bool) -> list[Example]:
    if not DATA.is_dir():
        raise BundleError(f"folder {str(DATA)!r}: is not there; it holds the dev rows; put ../shared/data there")
    rows = read_part(each.task(), "dev")
    return rows[:N_QUICK_ROWS] if quick else rows


def _differences(bundle: Bundle, engine: Engine, task: str, rows: Sequence[Example]) -> list[float]:
    """Of each row, the largest difference of a logit to the torch modules."""
    stored, branch = bundle.trunk(), bundle.branch(task)
    trunk = Trunk.build(stored.config, stored.tensors, depth=branch.spec.exit_layer)
    module = load_branch(branch.spec, stored.config, branch.tensors)
    expected = golden_logits(trunk, module, stored.tokenizer, branch.spec, rows)
    found = engine.logits(rows, task)
    print(f"{task}: {len(rows)} rows", flush=True)
    return [
        float(np.abs(ours.reshape(theirs.shape) - theirs).max()) for ours, theirs in zip(found, expected, strict=True)
    ]


def _n_equal(one: Sequence[Answer], other: Sequence[Answer]) -> int:
    return sum(mine == theirs for mine, theirs in zip(one, other, strict=True))


def _word_agreement(one: Sequence[Answer], other: Sequence[Answer]) -> float | None:
    """Share of words with the same tag; None of a task that tags none."""
    pairs = [
        mine == theirs
        for row, also in zip(one, other, strict=True)
        if isinstance(row, tuple) and isinstance(also, tuple)
        for mine, theirs in zip(row, also, strict=True)
    ]
    return sum(pairs) / len(pairs) if pairs else None


def markdown_table(result: dict[str, Any]) -> str:
    """One line a task."""
    lines = [
        "| task | dev rows | largest logit difference, fp32 to torch | equal answers, bf16 to fp32 | equal tags |",
        "|---|---|---|---|---|",
    ]
    for row in result["details"]["tasks"]:
        words = "" if row["word_agreement"] is None else f"{100 * row['word_agreement']:.3f}%"
        share = 100 * row["n_equal"] / row["n_rows"]
        lines.append(f"| {row['task']} | {row['n_rows']} | {row['largest_difference']:.1e} | {share:.2f}% | {words} |")
    figures = result["figures"]
    lines += [
        (
            f"| **all** | **{figures['rows']:.0f}** | **{figures['max_logit_difference_fp32']:.1e}** (at most 1e-4) | "
            f"**{100 * figures['agreement_bf16']:.2f}%** (at least 99.5%) | |"
        ),
        "",
        measured_by(result),
    ]
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Disagreement by task."""
    tasks = result["details"]["tasks"]
    places = range(len(tasks))
    with picture(path, width=11, height=4) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        left.barh(places, [row["largest_difference"] for row in tasks], color="tab:blue")
        left.axvline(1e-4, color="0.3", linestyle="--")
        left.set_xscale("log")
        left.set_xlabel("largest difference of a logit, fp32 to torch")
        right.barh(places, [100 * (1 - row["n_equal"] / row["n_rows"]) for row in tasks], color="tab:blue")
        right.axvline(0.5, color="0.3", linestyle="--")
        right.set_xlabel("rows with another answer in bf16, %")
        left.set_yticks(list(places), [f"{row['task']} ({row['n_rows']})" for row in tasks], fontsize=8)


BENCHMARK = Benchmark(
    name="engine-agreement",
    purpose="the engine's answers beside the training-side model's on real dev rows",
    measure=measure,
    after=lambda path: publish(path, "engine-agreement", table=markdown_table, draw=draw),
)
