"""Starts `single_server`: graphs of single-task models on disk, so that the server holds no torch."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from benchmarks.harness import ROOT
from benchmarks.peers.processes import Listening, free_port
from benchmarks.peers.shapes import SHAPES, ServedTask, Shape
from benchmarks.peers.single_server import Config, SingleTask

MAX_TOKENS = 64


def write_graphs(folder: Path, shape: str, tasks: Mapping[str, Sequence[str]]) -> tuple[SingleTask, ...]:
    """A whole model for each task, with random weights.

    Args:
        folder: They are made there where they are missing.
        shape: Of each model, a name of `SHAPES`.
        tasks: Labels of each task.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for place, (task, labels) in enumerate(tasks.items()):
        path = folder / f"{shape}.{task}.{len(labels)}.xml"
        if not path.exists():
            _write(path, SHAPES[shape], ServedTask(task, "classification", len(labels)), place)
        made.append(SingleTask(name=task, labels=tuple(labels), model=str(path)))
    return tuple(made)


def single_server(
    folder: Path,
    tasks: Sequence[SingleTask],
    *,
    precision: str,
    sizes: Sequence[int],
    texts: Sequence[str],
    **options: float,
) -> Listening:
    """The server over these models.

    Args:
        folder: For its configuration.
        tasks: A model each.
        precision: ``f32`` or ``bf16``.
        sizes: Of batches that are tried out at the start.
        texts: To try them out with.
        options: Others of `Config`.
    """
    port = free_port()
    config = Config(
        port=port, tasks=tuple(tasks), precision=precision, max_tokens=MAX_TOKENS, sizes=tuple(sizes),
        texts=tuple(texts[: max(sizes)]), **options,
    )  # fmt: skip
    path = folder / f"config-{port}.json"
    path.write_bytes(msgspec.json.encode(config))
    command = [sys.executable, "-m", "benchmarks.peers.single_server", str(path)]
    return Listening(command, port=port, environment={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"})


def _write(path: Path, shape: Shape, task: ServedTask, place: int) -> None:
    import openvino

    from benchmarks.peers.models import seed_of
    from benchmarks.peers.openvino_peer import convert

    print(f"making {path.name}", flush=True)
    graph = convert(shape, (task,), seed_of(place))
    partial = path.with_name(f"partial-{path.name}")
    openvino.save_model(graph, partial, compress_to_fp16=False)
    partial.with_suffix(".bin").rename(path.with_suffix(".bin"))
    partial.rename(path)
