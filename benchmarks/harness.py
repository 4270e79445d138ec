"""What every benchmark shares: the result file, and what it says of machine, versions and commit."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT.parent / "shared" / "data"
PACKAGES = (
    "trunkline", "torch", "numpy", "tokenizers", "safetensors", "accelerate", "scikit-learn", "seqeval", "openvino",
    "nncf", "onnx", "onnxruntime", "transformers",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measured:
    """What a benchmark returns.

    Attributes:
        figures: Flat names to numbers: what is compared between runs.
        details: Everything behind them, as plain values.
    """

    figures: dict[str, float]
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark that can be named on the command line.

    Attributes:
        name: As it is asked for.
        purpose: In one line.
        measure: Takes ``quick``, whether the run is to be a small one, and ``out``, where its result will lie; what it
            keeps beside the result begins with the same name.
        after: Called with the path of a written result: tables and pictures.
    """

    name: str
    purpose: str
    measure: Callable[..., Measured]
    after: Callable[[Path], None]


def run_benchmark(benchmark: Benchmark, *, quick: bool, out: Path | None) -> Path:
    """Measure and write the result as JSON.

    Args:
        benchmark: What to run.
        quick: The small version; its result goes to ``NAME.quick.json`` unless `out` says otherwise.
        out: Where the result goes.
    """
    started, commit = datetime.now(UTC), _commit()
    before = os.getloadavg()[0]
    path = out or RESULTS / f"{benchmark.name}{'.quick' if quick else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    measured = benchmark.measure(quick=quick, out=path)
    result = {
        "name": benchmark.name,
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "quick": quick,
        "commit": commit,
        "started_at": started.isoformat(timespec="seconds"),
        "seconds": (datetime.now(UTC) - started).total_seconds(),
        "machine": {**_machine(), "load_average_before": before},
        "versions": _versions(),
        "figures": measured.figures,
        "details": measured.details,
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    print(f"written to {path}")
    for name, value in measured.figures.items():
        print(f"  {name} = {value:g}")
    benchmark.after(path)
    return path


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607
        return done.stdout.strip()

    # Results and their pages are what benchmarks write: those of the run before change nothing about this one.
    written = (f":!{RESULTS.relative_to(ROOT)}", ":!docs/benchmarks")
    changed = "+changes" if git("status", "--porcelain", "--untracked-files=no", "--", ".", *written) else ""
    return (git("rev-parse", "HEAD") or "unknown") + changed


def _machine() -> dict[str, Any]:
    facts: dict[str, Any] = {"system": platform.platform(), "n_cpus": os.cpu_count()}
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text(encoding="utf-8").splitlines() if ":" in line)
        stripped = {key.strip(): value.strip() for key, value in lines.items()}
        flags = stripped.get("flags", "").split()
        facts["cpu"] = stripped.get("model name", "unknown")
        facts["cpu_flags"] = [flag for flag in flags if flag.startswith(("avx512", "amx", "avx2"))]
    return facts


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
