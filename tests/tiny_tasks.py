"""Tasks that a pico backbone can learn, written as task files and rows, and the bench to train them on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tests.tiny import WORDS
from tests.tiny_bundles import backbone_of
from trunkline.core.specs import Kind, TaskSpec, read_task
from trunkline.model.backbone import Backbone
from trunkline.train.bench import Reporter, Workbench
from trunkline.train.cache import ActivationCache
from trunkline.train.device import Precision, make_accelerator
from trunkline.train.ledger import Ledger
from trunkline.train.spec import Distillation, Hyperparameters, Preset, RunRecord, RunSpec, TrainRequest

CITIES = ("london", "paris", "york")
TOPICS = ("music", "movie", "rain")
FILLERS = tuple(word for word in WORDS.split() if word not in {*CITIES, *TOPICS, "good", "bad", "yes", "no"})

QUICK = Hyperparameters(learning_rate=3e-3, head_learning_rate=1e-2, batch_size=16, epochs=4)
QUICK_PRESET = Preset(full=QUICK, partial=QUICK, student=QUICK, distillation=Distillation())


def text_with(rng: np.random.Generator, *words: str) -> list[str]:
    """These words, in their order, among a few fillers."""
    fillers = [str(word) for word in rng.choice(FILLERS, size=rng.integers(2, 5))]
    places = np.sort(rng.integers(0, len(fillers) + 1, size=len(words)))
    for shift, (place, word) in enumerate(zip(places, words, strict=True)):
        fillers.insert(int(place) + shift, word)
    return fillers


def _topic(rng: np.random.Generator) -> dict[str, Any]:
    word = str(rng.choice(TOPICS))
    return {"text": " ".join(text_with(rng, word)), "label": word}


def _topics(rng: np.random.Generator) -> dict[str, Any]:
    words = [word for word in TOPICS if rng.random() < 0.5]
    return {"text": " ".join(text_with(rng, *words)), "labels": words}


def _mood(rng: np.random.Generator) -> dict[str, Any]:
    score = int(rng.integers(0, 4))
    words = ["good"] * score + ["bad"] * (3 - score)
    return {"text": " ".join(text_with(rng, *words)), "label": 2.0 + score}


def _places(rng: np.random.Generator) -> dict[str, Any]:
    words = text_with(rng, str(rng.choice(CITIES)))
    return {"tokens": words, "tags": ["B-city" if word in CITIES else "O" for word in words]}


def _reply(rng: np.random.Generator) -> dict[str, Any]:
    word = str(rng.choice(["yes", "no"]))
    return {"text": " ".join(text_with(rng)), "text_pair": " ".join(text_with(rng, word)), "label": word}


TASKS: dict[str, tuple[Kind, Callable[[np.random.Generator], dict[str, Any]]]] = {
    "topic": ("classification", _topic),
    "topics": ("multilabel", _topics),
    "mood": ("regression", _mood),
    "places": ("tagging", _places),
    "reply": ("classification", _reply),
}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One JSON line a row."""
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def rows_of(task: str, count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of one of `TASKS`, as a data file has them."""
    rng = np.random.default_rng(seed)
    return [TASKS[task][1](rng) for _ in range(count)]


def write_task(folder: Path, task: str, *, n_train: int = 120, n_dev: int | None = 40, **fields: Any) -> Path:
    """Write one of `TASKS` below a folder; ``fields`` are put into its task file, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"train": f"{task}-train.jsonl"}
    write_rows(folder / data["train"], rows_of(task, n_train))
    if n_dev is not None:
        data["dev"] = f"{task}-dev.jsonl"
        write_rows(folder / data["dev"], rows_of(task, n_dev, seed=1))
    spec: dict[str, Any] = {"name": task, "kind": TASKS[task][0], "data": data, "max_length": 32}
    if task == "reply":
        spec["input"] = "pair"
    path = folder / f"{task}.yaml"
    path.write_bytes(msgspec.yaml.encode(spec | fields))
    return path


def make_task(folder: Path, task: str, **changes: Any) -> TaskSpec:
    """As `write_task`, read again."""
    return read_task(write_task(folder, task, **changes))


def make_bench(
    folder: Path, *, backbone: Backbone | None = None, reporter: Reporter | None = None, precision: Precision = "fp32"
) -> Workbench:
    """A bench with its cache and ledger below a folder."""
    return Workbench.build(
        backbone or backbone_of(),
        Ledger(folder / "runs"),
        ActivationCache(folder / "cache"),
        accelerator=make_accelerator(),
        precision=precision,
        reporter=reporter,
    )


def quick_request(**changes: Any) -> TrainRequest:
    """Two layers, one seed, a student of one layer, float32 cache, few epochs at high rates."""
    fields: dict[str, Any] = {
        "layers": (2,), "student_layers": (1,), "preset": QUICK_PRESET, "cache_dtype": "float32",
    }  # fmt: skip
    return TrainRequest(**(fields | changes))


class Notebook:
    """A reporter that writes everything down."""

    def __init__(self) -> None:
        """Start empty."""
        self.notes: list[str] = []
        self.losses: list[float] = []
        self.started: list[tuple[RunSpec, int]] = []
        self.finished: list[tuple[RunRecord, bool]] = []

    def run_started(self, spec: RunSpec, n_steps: int) -> None:
        """Write it down."""
        self.started.append((spec, n_steps))

    def step(self, loss: float) -> None:
        """Write it down."""
        self.losses.append(loss)

    def run_finished(self, record: RunRecord, *, resumed: bool) -> None:
        """Write it down."""
        self.finished.append((record, resumed))

    def note(self, message: str) -> None:
        """Write it down."""
        self.notes.append(message)
