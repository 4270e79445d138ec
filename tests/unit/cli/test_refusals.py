"""What is wrong is said in one message on standard error, with an honest exit code and without a traceback."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import write_checkpoint
from tests.tiny_bundles import backbone_of, make_bundle, put_branch, tree_bytes
from tests.tiny_cli import run_cli
from tests.tiny_tasks import write_task
from trunkline.cli import main

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico backbone, a task, a bundle of two tasks, and some files that are no such thing."""
    folder = tmp_path_factory.mktemp("place")
    write_checkpoint(folder / "backbone", backbone_of())
    write_task(folder, "topic", n_train=20, n_dev=6)
    write_task(folder, "places", n_train=20, n_dev=6)
    write_task(folder / "copy", "topic", n_train=20, n_dev=6)
    write_task(folder / "long", "topic", max_length=100)
    make_bundle(folder, "intent", "slots")
    write_task(folder / "other", "topic", name="intent", kind="multilabel")
    write_task(folder / "same", "topic", name="intent")
    put_branch(folder / "foreign", "mood", backbone_of("bert", seed=1), exit_layer=1)
    (folder / "unknown_key.yaml").write_text("name: a\nkind: classification\nmetrik: accuracy\n")
    (folder / "not.yaml").write_text("name: [a\n")
    (folder / "bytes.yaml").write_bytes(b"name: \xff\xfe\n")
    (folder / "empty").mkdir()
    (folder / "file").write_text("in the way")
    return folder


TRAIN = ("train", "topic.yaml", "--backbone", "backbone", "--out", "runs", "--precision", "fp32")

REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no layers": (TRAIN, "nothing to do; give at least one of --layers, or --full"),
    "layers that are no numbers": ((*TRAIN, "--layers", "2,x"), "--layers is '2,x'; give whole numbers"),
    "more layers than there are": ((*TRAIN, "--layers", "9"), "--layers 9 is outside 1..4"),
    "a negative seed": ((*TRAIN, "--layers", "2", "--seeds", "-1"), "seed -1 is below 0"),
    "a student that does not fit": ((*TRAIN, "--layers", "2", "--student-exits", "4"), "does not fit into 4 layers"),
    "a share above one": ((*TRAIN, "--layers", "2", "--alpha", "1.5"), "distillation: alpha 1.5 is outside 0..1"),
    "a weight below zero": ((*TRAIN, "--layers", "2", "--hidden-weight", "-1"), "hidden_weight is -1.0; give 0 or"),
    "augmented tags": (
        ("train", "places.yaml", *TRAIN[2:], "--layers", "2", "--augment", "1"), "--augment 1 is not for tagging",
    ),
    "a transfer file that is not there": (
        (*TRAIN, "--layers", "2", "--transfer", "none.jsonl"), "none.jsonl: there is no such file",
    ),
    "a start on another trunk": ((*TRAIN, "--layers", "2", "--init-from", "foreign"), "was trained on trunk"),
    "a tracker nobody knows": ((*TRAIN, "--layers", "2", "--tracker", "tensorbord"), "did you mean 'tensorboard'?"),
    "an out folder that is a file": ((*TRAIN[:5], "file", "--layers", "2"), "ledger file/ledger.jsonl: cannot"),
    "no such task file": (("train", "none.yaml", *TRAIN[2:], "--layers", "2"), "task file 'none.yaml': cannot be read"),
    "an unknown key": (("train", "unknown_key.yaml", *TRAIN[2:]), "unknown key 'metrik'; did you mean 'metric'?"),
    "a file that is no YAML": (("train", "not.yaml", *TRAIN[2:]), "task file 'not.yaml': not valid YAML"),
    "a file that is no text": (("train", "bytes.yaml", *TRAIN[2:]), "task file 'bytes.yaml': not valid YAML"),
    "a task given twice": (("train", "topic.yaml", "copy/topic.yaml", *TRAIN[2:]), "'topic' is described by 2 files"),
    "too long rows": (("train", "long/topic.yaml", *TRAIN[2:], "--layers", "2"), "max_length 100 is more than the 64"),
    "no such backbone": (("train", "topic.yaml", "--backbone", "./none", "--out", "runs"), "'./none'"),
    "a backbone folder without files": (
        ("train", "topic.yaml", "--backbone", "empty", "--out", "runs"), "config.json",
    ),
    "a plan of nothing": (("plan", "empty"), "has no runs; run `trunkline train` first"),
    "no such plan": (("merge", "none.json", "--out", "b"), "plan 'none.json': cannot be read"),
    "a plan that is none": (("merge", "unknown_key.yaml", "--out", "b"), "plan 'unknown_key.yaml': not valid JSON"),
    "no such bundle": (("inspect", "none"), "none: there is no such folder"),
    "a folder that is no bundle": (("verify", "empty"), "manifest.json"),
    "a branch of another trunk": (("attach", "bundle", "foreign"), "was trained on trunk"),
    "a task that is there": (("attach", "bundle", "run-intent"), "is there already"),
    "an unknown task to detach": (("detach", "bundle", "intend"), "did you mean 'intent'?"),
    "an unknown task to ask": (("predict", "bundle", "--tasks", "intend"), "did you mean 'intent'?"),
    "an unknown task to evaluate": (("evaluate", "bundle", "topic.yaml"), "task 'topic': is not in the bundle"),
    "a part that is not there": (
        ("evaluate", "bundle", "same/topic.yaml", "--part", "test"), "task 'intent': has no test data",
    ),
    "another kind to evaluate": (("evaluate", "bundle", "other/topic.yaml"), "the task file says multilabel"),
    "a list of tasks that names none": (("predict", "bundle", "--tasks", ","), "--tasks is ',': it names no task"),
    "an empty list of tasks": (("predict", "bundle", "--tasks", ""), "--tasks is '': it names no task"),
    "a plan of tasks that names none": (("plan", "runs", "--tasks", ","), "--tasks is ',': it names no task"),
    "an unknown task to calibrate": (("calibrate", "bundle", "topic.yaml"), "task 'topic': is not in the bundle"),
    "a second task to calibrate that is unknown": (
        ("calibrate", "bundle", "same/topic.yaml", "topic.yaml"), "task 'topic': is not in the bundle",
    ),
    "a second task to evaluate that is unknown": (
        ("evaluate", "bundle", "same/topic.yaml", "topic.yaml"), "task 'topic': is not in the bundle",
    ),
    "abstention beyond 1": (
        ("calibrate", "bundle", "same/topic.yaml", "--abstain-below", "1.5"), "abstain_below: 1.5 is outside 0..1",
    ),
    "another kind to calibrate": (("calibrate", "bundle", "other/topic.yaml"), "the task file says multilabel"),
}  # fmt: skip

MISUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "an unknown command": (("trian",), "No such command 'trian'"),
    "an unknown option": (("inspect", "bundle", "--jsn"), "No such option"),
    "a value that is no choice": ((*TRAIN, "--select", "test"), "Invalid value for '--select'"),
    "a number that is none": (("plan", "runs", "--min-gain", "much"), "Invalid value for '--min-gain'"),
    "a missing argument": (("merge",), "Missing argument"),
    "a missing option": (("train", "topic.yaml"), "Missing option '--out'"),
}


def without_note(err: str) -> str:
    """Without the line that says which backend computes, which no other line precedes."""
    first, _, rest = err.partition("\n")
    return rest if first.partition(": ")[2].startswith("computing with ") else err


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_exits_with_1_and_one_message(place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    arguments, message = REFUSED[name]
    monkeypatch.chdir(place)
    monkeypatch.setenv("TRUNKLINE_CACHE", str(place / "cache"))
    before = tree_bytes(place / "bundle")
    done = run_cli(*arguments, stdin=b'{"text": "no"}\n')
    assert (done.code, done.out) == (1, "")
    # A progress bar that was begun leaves an empty line.
    assert without_note(done.err).lstrip("\n").startswith("error: ")
    assert message in done.err
    assert tree_bytes(place / "bundle") == before


@pytest.mark.parametrize("name", MISUSED)
def test_misuse_exits_with_2_and_says_what_is_wrong(place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    arguments, message = MISUSED[name]
    monkeypatch.chdir(place)
    done = run_cli(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("min_gain", ["-1", "nan", "inf"])
def test_a_min_gain_that_is_no_number_from_0_is_refused(place: Path, min_gain: str) -> None:
    from tests.tiny_records import run_record
    from trunkline.train.ledger import Ledger

    Ledger(place / "ledger").append(run_record(80.0))
    done = run_cli("plan", place / "ledger", "--min-gain", min_gain)
    assert done.code == 1
    assert "it must be 0 or more" in done.err


def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "from trunkline.cli import main; main()", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_a_reader_that_goes_away_ends_the_command_quietly(place: Path) -> None:
    with start("predict", place / "bundle", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(b'{"text": "no"}\n' * 600)
        process.stdin.close()
        assert without_note(process.stderr.read().decode()) == ""
        assert process.wait(60) == 1


def test_a_partner_that_waits_for_each_answer_gets_it(place: Path) -> None:
    with start("predict", place / "bundle", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for text in ("no", "yes"):
            process.stdin.write(b'{"text": "%s"}\n' % text.encode())
            process.stdin.flush()
            assert process.stdout.readline().startswith(b'{"intent":')
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait(60) == 0


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full on this system")
@pytest.mark.parametrize("arguments", [("predict", "bundle"), ("inspect", "bundle"), ("inspect", "bundle", "--json")])
def test_a_full_disk_is_said_in_one_line(place: Path, arguments: tuple[str, ...]) -> None:
    with FULL.open("wb") as full:
        done = in_a_process(place, *arguments, stdout=full)
    assert done.returncode == 1
    assert without_note(done.stderr.decode()) == (
        "error: standard output or a file: No space left on device; make room or mend it, then run the command again\n"
    )


@pytest.mark.parametrize(
    ("arguments", "closed", "message"),
    [
        (("predict", "bundle"), 0, "error: standard input: is closed"),
        (("predict", "bundle"), 1, "error: standard output: is closed"),
        (("inspect", "bundle"), 1, "error: standard output: is closed"),
        (("inspect", "bundle"), 2, ""),
    ],
)
def test_a_closed_stream_is_refused(place: Path, arguments: tuple[str, ...], closed: int, message: str) -> None:
    done = in_a_process(place, *arguments, closed=closed, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith(message)
    assert done.stderr.count(b"\n") == bool(message)


def test_a_command_that_reads_nothing_needs_no_standard_input(place: Path) -> None:
    assert in_a_process(place, "inspect", "bundle", closed=0, stdout=subprocess.PIPE).returncode == 0


def in_a_process(place: Path, *arguments: str, stdout: Any, closed: int | None = None) -> Any:
    """Run a command in a process of its own, by a shell that may close one of its streams."""
    command = 'exec "$@"' if closed is None else f'exec "$@" {closed}>&-'
    code = "from trunkline.cli import main; main()"
    return subprocess.run(
        ["/bin/sh", "-c", command, "sh", sys.executable, "-c", code, *arguments],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        input=None if closed == 0 else b'{"text": "no"}\n',
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from trunkline.cli import main
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        (*TRAIN, "--layers", "2"),
        ("demo", "--out", "demo"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_torch_a_command_names_the_extra(place: Path, arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        check=False,
        input=b"",
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == (
        "error: package 'torch': not installed; this command needs it; "
        "install the extra with: pip install 'trunkline[train]'\n"
    )


@pytest.mark.parametrize("command", ["predict", "verify"])
def test_without_torch_a_bundle_is_served_and_verified(place: Path, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, command, "bundle"],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        check=False,
        input=b'{"text": "no"}\n' if command == "predict" else b"",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b'{"intent":' if command == "predict" else b"bundle: ")


def test_a_module_of_no_extra_that_is_missing_is_no_refusal(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trunkline.engine.verify", None)
    monkeypatch.setattr(sys, "argv", ["trunkline", "verify", str(place / "bundle")])
    with pytest.raises(ModuleNotFoundError, match=r"trunkline\.engine\.verify"):
        main()
