"""`trunkline reproduce` from task files to tables and pictures, on a pico backbone."""

import shutil
import sys
from pathlib import Path

import msgspec
import pytest

from tests.tiny import write_checkpoint
from tests.tiny_bundles import backbone_of
from tests.tiny_cli import Finished, run_cli
from tests.tiny_tasks import write_task
from trunkline.train.ledger import Ledger
from trunkline.train.reproduction import Reproduction

FILES = ["figure2.png", "figure5.png", "reproduction.json", "table1.png", "tables.md"]
CELLS = 2 * (1 + 2 + 2)
"""Of two tasks: full, two L, and a student with both starts."""


def reproduce(folder: Path, *options: object) -> Finished:
    tasks = [folder / f"{name}.yaml" for name in ("topic", "mood")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUNKLINE_CACHE", str(folder / "cache"))
        return run_cli(
            "reproduce", *tasks, "--backbone", folder / "backbone", "--out", folder / "runs", "--layers", "1,2",
            "--students", "1", "--seeds", "0,1", *options,
        )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_checkpoint(folder / "backbone", backbone_of())
    for name in ("topic", "mood"):
        write_task(folder, name, n_train=40, n_dev=12)
    write_task(folder / "blind", "topic", n_train=40, n_dev=None)
    return folder


@pytest.fixture(scope="module")
def done(place: Path) -> Finished:
    return reproduce(place, "--json")


def read(folder: Path) -> Reproduction:
    return msgspec.json.decode((folder / "reproduction.json").read_bytes(), type=Reproduction)


def test_everything_is_trained_and_reported(place: Path, done: Finished) -> None:
    assert done.code == 0, done.err
    made = read(place / "runs" / "report")
    assert msgspec.convert(done.json(), Reproduction) == made
    assert made.cells_done == made.cells_wanted == CELLS
    assert [each.task for each in made.tasks] == ["topic", "mood"]
    # L = 1 of 4 layers is below a third: it stands in table 1 and teaches nobody.
    assert [each.teacher_layers for each in made.tasks] == [2, 2]
    assert {cell.exit_layer for cell in made.figure2} == {2}
    assert sorted(path.name for path in (place / "runs" / "report").iterdir()) == FILES
    assert "no cell is open" in done.err


@pytest.mark.usefixtures("done")
def test_started_again_it_runs_nothing_and_shows_tables(place: Path) -> None:
    n_records = len(Ledger(place / "runs").records())
    assert n_records == 2 * CELLS
    again = reproduce(place)
    assert again.code == 0, again.err
    assert again.out.startswith((place / "runs" / "report" / "tables.md").read_text("utf-8"))
    assert len(Ledger(place / "runs").records()) == n_records


@pytest.mark.usefixtures("done")
def test_a_branch_that_is_gone_is_not_trained_again(place: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(place, tmp_path / "copy"))
    shutil.rmtree(copy / "runs" / "runs")
    assert reproduce(copy).code == 0
    assert len(Ledger(copy / "runs").records()) == 2 * CELLS


def test_with_a_budget_of_nothing_it_only_reports(place: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(place, tmp_path / "copy", ignore=shutil.ignore_patterns("runs")))
    shown = reproduce(copy, "--report-only", "--report", tmp_path / "report")
    assert shown.code == 0
    assert f"{CELLS} of {CELLS} cells are open: the same command goes on" in shown.err
    assert read(tmp_path / "report").cells_done == 0
    assert not (copy / "runs").exists()


@pytest.mark.usefixtures("done")
def test_a_budget_that_is_over_begins_no_run_and_the_next_command_goes_on(place: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(place, tmp_path / "copy"))
    ledger = copy / "runs" / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:3]))
    shown = reproduce(copy, "--budget-minutes", "1e-9")
    assert shown.code == 0
    assert len(Ledger(copy / "runs").records()) == 3
    assert read(copy / "runs" / "report").cells_done == 1
    reproduce(copy)
    assert read(copy / "runs" / "report").cells_done == CELLS


@pytest.mark.usefixtures("done")
def test_without_matplotlib_data_and_tables_are_written_and_it_is_said(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    shown = reproduce(place, "--report-only", "--report", tmp_path / "report")
    assert shown.code == 0
    assert "no picture was drawn: package 'matplotlib': not installed" in shown.err
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["reproduction.json", "tables.md"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget-minutes", "0"), "--budget-minutes is 0; give minutes above 0"),
        (("--budget-minutes", "nan"), "--budget-minutes is nan; give minutes above 0"),
        (("--budget-minutes", "1", "--report-only"), "--report-only begins no run; leave one of the two out"),
        (("--layers", "1,4"), "1, 4; students on 4 layers are taught by 2 to 3"),
        (("--seeds", ""), "no seeds; give at least one"),
        (("--cache-limit", "much"), "size 'much': is not a size"),
    ],
)
def test_what_is_wrong_is_refused_before_any_run(
    place: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    refused = reproduce(place, "--out", tmp_path / "runs", *options)
    assert refused.code == 1
    assert message in refused.err
    assert not (tmp_path / "runs").exists()


def test_a_task_without_dev_rows_is_refused(place: Path, tmp_path: Path) -> None:
    refused = run_cli("reproduce", place / "blind" / "topic.yaml", "--out", tmp_path / "runs")
    assert refused.code == 1
    assert "task 'topic': has no dev rows" in refused.err
