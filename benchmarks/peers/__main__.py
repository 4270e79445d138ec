"""``python -m benchmarks.peers``: build every contestant with few tasks, check it against torch fp32, time it."""

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import psutil
import torch
from tokenizers import Tokenizer

from benchmarks.peers.adapters_peer import AdaptersService, seconds_of
from benchmarks.peers.onnx_peer import onnx_singles
from benchmarks.peers.openvino_peer import openvino_int8_singles, openvino_joint, openvino_singles
from benchmarks.peers.service import Answers, Contestant
from benchmarks.peers.shapes import SHAPES, ServedTask, Shape, sample_tasks
from benchmarks.peers.texts import source, texts
from benchmarks.peers.tokens import encode, padded, read_tokenizer
from benchmarks.peers.torch_peer import reference_runner, torch_singles

TOLERANCE = {"f32": 1e-3, "bf16": 0.03}
"""Root mean square of the differences to torch fp32, as a share of the logits' standard deviation. bf16 has 8 bits:
each of 12 layers rounds to 0.2 to 0.4%, and single logits may be off by several times the root mean square. Of int8 it
is told, not judged."""
REPEATS = 5
N_CHECKED = 8


def builders(
    shape: Shape, tasks: Sequence[ServedTask], tokenizer: Tokenizer, calibration: Sequence[str]
) -> dict[str, Callable[[], Contestant]]:
    """Every contestant by name; nothing is built until it is called."""
    half = shape.with_layers(shape.n_layers // 2)
    common = (shape, tasks, tokenizer)
    return {
        "openvino-bf16": partial(openvino_singles, *common),
        "openvino-bf16-lanes": partial(openvino_singles, *common, lanes=2),
        "openvino-int8": partial(openvino_int8_singles, *common, calibration),
        "openvino-int8-lanes": partial(openvino_int8_singles, *common, calibration, lanes=2),
        "onnxruntime-f32": partial(onnx_singles, *common),
        "onnxruntime-int8": partial(onnx_singles, *common, precision="int8"),
        "onnxruntime-int8-lanes": partial(onnx_singles, *common, precision="int8", lanes=2),
        "torch-bf16": partial(torch_singles, *common),
        "students-bf16": partial(openvino_singles, half, tasks, tokenizer, name="students"),
        "students-bf16-lanes": partial(openvino_singles, half, tasks, tokenizer, lanes=2, name="students-lanes"),
        "adapters-bf16": partial(AdaptersService, shape, tasks),
        "joint-bf16": partial(openvino_joint, *common),
    }


def main() -> None:
    """Parse, build one at a time, check, time, print."""
    arguments = _arguments()
    torch.set_num_threads(2)
    shape, tasks = SHAPES[arguments.shape], sample_tasks(arguments.tasks)
    tokenizer = read_tokenizer(shape.max_tokens)
    asked = texts(arguments.texts, 0)
    lengths = [len(row) for row in encode(tokenizer, asked)]
    print(f"{arguments.shape}, {len(tasks)} tasks; {source()}")
    print(f"tokens of a text {min(lengths)} to {max(lengths)}, in all {sum(lengths)}")
    print(f"load average {os.getloadavg()[0]:.1f} before; median of {REPEATS}, fastest in brackets, processor time / 2")
    common, half = (tasks, tokenizer, asked), shape.with_layers(shape.n_layers // 2)
    expected = {
        "singles": cache(partial(_expected, shape, *common)),
        "students": cache(partial(_expected, half, *common)),
        "joint": cache(partial(_expected_joint, shape, *common)),
    }
    failures = []
    for name, build in builders(shape, tasks, tokenizer, texts(arguments.calibration, 1)).items():
        if arguments.only and name not in arguments.only:
            continue
        before, started = _megabytes(), time.perf_counter()
        contestant = build()
        built = time.perf_counter() - started
        memory = _megabytes() - before
        told, passed = _check(contestant, asked, expected[_weights_of(name)]())
        failures += [] if passed else [name]
        print(f"{name:24s} built in {built:5.1f} s, {memory:6.0f} MB; {told}", flush=True)
        _print_times(contestant, asked, len(tasks))
        contestant.close()
        del contestant
        gc.collect()
    print(f"load average {os.getloadavg()[0]:.1f} after")
    if failures:
        raise SystemExit(f"differ from torch fp32 by more than {TOLERANCE} of the logits' size: {', '.join(failures)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="bert-base")
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--texts", type=int, default=32, help="texts in flight beside 1")
    parser.add_argument("--calibration", type=int, default=32, help="texts that nncf sees")
    parser.add_argument("--only", nargs="*", help="contestants by name; all without it")
    return parser.parse_args()


def _weights_of(name: str) -> str:
    """Which reference has the weights of the contestant of this name."""
    kind = name.split("-", maxsplit=1)[0]
    return kind if kind in {"students", "joint"} else "singles"


def _print_times(contestant: Contestant, asked: Sequence[str], n_tasks: int) -> None:
    for n in sorted({1, len(asked)}):
        # one text of usual length stands for one in flight
        batch = [sorted(asked, key=len)[len(asked) // 2]] if n == 1 else asked
        contestant.warm(batch)
        for shared in (False, True):
            taken = [seconds_of(contestant, batch, shared=shared) for _ in range(REPEATS)]
            wall = [pair[0] * 1e3 for pair in taken]
            cpu = min(pair[1] for pair in taken) * 1e3 / 2
            middle = statistics.median(wall)
            told = f"{middle:8.1f} ms ({min(wall):8.1f}), processor {cpu:8.1f}; {middle / n_tasks:7.1f} ms a task"
            print(f"    {n:3d} in flight, {'one tokenization ' if shared else 'each tokenizes   '} {told}", flush=True)


def _expected(shape: Shape, tasks: Sequence[ServedTask], tokenizer: Tokenizer, asked: Sequence[str]) -> Answers:
    rows = encode(tokenizer, asked[:N_CHECKED])
    found: Answers = {}
    for place, task in enumerate(tasks):
        runner = reference_runner(shape, (task,), place)
        # alone and unpadded: no mask and no batch mate can be wrong here
        found[task.name] = [runner(*padded([row]))[0][0] for row in rows]
    return found


def _expected_joint(shape: Shape, tasks: Sequence[ServedTask], tokenizer: Tokenizer, asked: Sequence[str]) -> Answers:
    runner = reference_runner(shape, tasks, 0)
    outputs = [runner(*padded([row])) for row in encode(tokenizer, asked[:N_CHECKED])]
    return {task.name: [output[place][0] for output in outputs] for place, task in enumerate(tasks)}


def _check(contestant: Any, asked: Sequence[str], expected: Answers) -> tuple[str, bool]:
    if isinstance(contestant, AdaptersService):
        found = contestant.check(asked[:N_CHECKED])
        changed = found.pop("adapters change the first task by")
        worst = max(found.values())
        told = f"to each adapter alone in fp32 at most {worst:.4f} (adapters change logits by {changed:.2f})"
        # a largest difference, not a root mean square: several times as large
        return told, worst <= 5 * TOLERANCE[contestant.precision] * max(changed, 1.0)
    answers = contestant.answer(asked)
    pairs = [(answers[task][place], row) for task, rows in expected.items() for place, row in enumerate(rows)]
    differences = np.concatenate([(ours - theirs).ravel() for ours, theirs in pairs])
    size = float(np.std(np.concatenate([theirs.ravel() for _, theirs in pairs])))
    share = float(np.sqrt(np.mean(differences**2))) / size
    told = (
        f"to torch fp32: root mean square {100 * share:.2f}% of the logits' standard deviation {size:.2f}, largest "
        f"{np.abs(differences).max():.4f}"
    )
    return told, share <= TOLERANCE.get(contestant.precision, float("inf"))


def _megabytes() -> float:
    return psutil.Process().memory_info().rss / 2**20


if __name__ == "__main__":
    main()
