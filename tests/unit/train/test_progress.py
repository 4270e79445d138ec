"""What a person sees of training."""

import io

from rich.console import Console

from tests.tiny_records import run_record, run_spec
from trunkline.train.device import make_accelerator
from trunkline.train.progress import RunProgress


def shown(*, width: int = 160) -> tuple[RunProgress, io.StringIO]:
    stream = io.StringIO()
    return RunProgress(Console(file=stream, width=width), make_accelerator()), stream


def test_a_finished_run_is_one_line() -> None:
    progress, stream = shown()
    with progress:
        progress.rows(32)
        progress.run_started(run_spec(), 2)
        progress.step(0.5)
        progress.run_finished(run_record(80.04, dev=70.0, seed=3), resumed=False)
    assert stream.getvalue().strip() == (
        "mood partial (exit 2, 2 own) seed 3: accuracy 80.0 on the selection rows, dev 70.0 (2 s)"
    )


def test_a_run_of_the_ledger_says_so_and_a_task_without_dev_rows_has_none() -> None:
    progress, stream = shown()
    progress.run_finished(run_record(80.0, arm="student", init="teacher"), resumed=True)
    assert stream.getvalue().strip() == (
        "mood student from teacher (exit 2, 2 own) seed 0: accuracy 80.0 on the selection rows (already in the ledger)"
    )


def test_names_in_brackets_are_not_taken_for_markup() -> None:
    progress, stream = shown()
    progress.note("task 'x': label [red] is not in train")
    assert stream.getvalue().strip() == "task 'x': label [red] is not in train"
