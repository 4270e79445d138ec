"""Help is instant because it imports nothing heavy, and so is everything that needs no torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_bundles import make_bundle
from tests.tiny_cli import run_cli
from tests.tiny_records import run_record
from trunkline.train.ledger import Ledger

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "transformers", "sklearn", "scipy", "datasets", "pyarrow", "accelerate", "pandas", "matplotlib")
COMMANDS = (
    "train", "reproduce", "plan", "merge", "attach", "replace", "detach", "inspect", "verify", "predict", "evaluate",
    "calibrate", "demo",
)  # fmt: skip


def modules_after(*arguments: object) -> set[str]:
    """Top-level modules that a command leaves imported in a fresh process."""
    code = (
        "import atexit, sys; sys.argv = ['trunkline', *sys.argv[1:]];"
        "atexit.register(lambda: print(*sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr));"
        "from trunkline.cli import main; main()"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True, env=environment
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help"), ("--version",)], ids=" ".join)
def test_help_imports_no_heavy_library(arguments: tuple[str, ...]) -> None:
    modules = modules_after(*arguments)
    assert not modules & set(HEAVY)
    # Numpy and rich are light enough for commands, not for help.
    assert not modules & {"numpy", "rich", "tokenizers", "huggingface_hub"}


def test_inspect_and_plan_import_no_torch(tmp_path: Path) -> None:
    make_bundle(tmp_path, "intent")
    Ledger(tmp_path / "runs").append(run_record(80.0, dev=70.0))
    for arguments in (("inspect", tmp_path / "bundle"), ("plan", tmp_path / "runs")):
        assert not modules_after(*arguments) & {"torch", "transformers", "sklearn", "accelerate"}, arguments


def test_help_lists_every_command() -> None:
    shown = run_cli("--help")
    assert shown.code == 0
    for command in COMMANDS:
        assert f"  {command} " in shown.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    shown = run_cli(command, "--help")
    assert shown.code == 0
    assert f"Usage: trunkline {command}" in shown.out


def test_without_a_command_help_is_shown() -> None:
    shown = run_cli()
    assert "Usage: trunkline" in shown.out + shown.err


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_idle_threads_wait_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # So that it is put back afterwards, whatever the command sets.
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    run_cli("--version")
    assert os.environ.get("GOMP_SPINCOUNT") == expected
