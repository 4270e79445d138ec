"""What README and docs say is so: blocks run, links lead to files, every key, option, metric and error is there."""

import re
import shutil
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import typer

from benchmarks.first_light_report import PAGES as PAGES_OF_RESULTS
from benchmarks.first_light_report import markdown_table
from benchmarks.harness import RESULTS
from benchmarks.paper_tables_report import NO_RESULT, PAGE, RESULT, markdown_result
from tests.docs_blocks import PAGES, ROOT, all_commands, blocks, commands_of, make_site, parse_command, run_page
from trunkline.bundle.golden import Golden
from trunkline.bundle.history import Base, Entry
from trunkline.bundle.manifest import Manifest, TaskEntry, TaskGate, TrunkEntry, TrunkGate
from trunkline.bundle.versions import Canary, RegistryState, TaskState, Version
from trunkline.cli.main import app
from trunkline.core import errors
from trunkline.core.costs import CostTable
from trunkline.core.specs import (
    DEFAULT_METRIC,
    METRICS_OF_KIND,
    BranchSpec,
    Calibration,
    Columns,
    DataSpec,
    Metric,
    Provenance,
    TaskSpec,
)
from trunkline.core.types import Prediction
from trunkline.demo.run import DemoReport, ReportedTask
from trunkline.engine.calibrate import Calibrated
from trunkline.engine.evaluate import Evaluation
from trunkline.engine.quantize import QuantizedTask, QuantizeReport, QuantizeRequest
from trunkline.engine.verify import VerifiedTask, VerifyReport
from trunkline.train.candidates import Candidate
from trunkline.train.choices import Choice
from trunkline.train.contest import FrontPoint, FrontTask, PlanRequest
from trunkline.train.pareto import Pareto
from trunkline.train.plan import Kept, Plan, PlannedTask
from trunkline.train.price import Budget
from trunkline.train.reproduction import Cell, Cost, Reproduction, Row, StudiedTask, TradeOff
from trunkline.train.search_spec import SearchReport, SearchRequest, Tried
from trunkline.train.spec import (
    PRESETS,
    Distillation,
    EpochPoint,
    Hyperparameters,
    RunRecord,
    RunSpec,
    TrainRequest,
)

DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
RUN_PAGES = [
    page for page in PAGES if any(block.language in {"python", "sh", "yaml", "json"} for block in blocks(page))
]
GROUP = typer.main.get_command(app)
COMMANDS: Mapping[str, click.Command] = commands_of(GROUP)
PLAN_SPECS = (Plan, PlannedTask, Kept, PlanRequest, Budget, CostTable, Pareto, FrontPoint, FrontTask)
PAGES_OF_SPECS: dict[type, tuple[str, str]] = {
    TaskSpec: ("reference/task-file.md", "Keys"),
    DataSpec: ("reference/task-file.md", "Keys of `data`"),
    Columns: ("reference/task-file.md", "Keys of `columns`"),
    **{spec: ("reference/training.md", spec.__name__) for spec in (TrainRequest, Hyperparameters, Distillation)},
    **{spec: ("reference/runs.md", spec.__name__) for spec in (RunSpec, RunRecord, EpochPoint, Candidate)},
    **{spec: ("reference/search.md", spec.__name__) for spec in (SearchRequest, SearchReport, Tried, Choice)},
    **{spec: ("reference/plan.md", spec.__name__) for spec in PLAN_SPECS},
    **{
        spec: ("reference/reproduction.md", spec.__name__)
        for spec in (Reproduction, StudiedTask, Row, Cell, Cost, TradeOff)
    },
    **{
        spec: ("reference/bundle-format.md", spec.__name__)
        for spec in (Manifest, TrunkEntry, TrunkGate, TaskEntry, TaskGate, BranchSpec, Calibration, Provenance, Golden)
    },
    **{
        spec: ("reference/registry.md", spec.__name__)
        for spec in (Entry, Base, RegistryState, TaskState, Version, Canary)
    },
    **{
        spec: ("how-to/get-json.md", spec.__name__)
        for spec in (
            Evaluation,
            VerifyReport,
            VerifiedTask,
            Calibrated,
            QuantizeReport,
            QuantizedTask,
            QuantizeRequest,
            DemoReport,
            ReportedTask,
        )
    },
}


def table(page: Path, heading: str) -> dict[str, list[str]]:
    """The first table below a heading: first cell without quotes -> the other cells."""
    content = page.read_text("utf-8")
    below = re.split(rf"^#+ {re.escape(heading)}$", content, maxsplit=1, flags=re.MULTILINE)
    assert len(below) == 2, f"{page.name} has no heading {heading!r}"
    lines = re.split(r"^#", below[1], maxsplit=1, flags=re.MULTILINE)[0].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return {row[0].strip(" `|"): [cell.strip(" |") for cell in row[1:]] for row in rows}


def code(cell: str) -> str | None:
    found = re.match(r"`([^`]*)`", cell)
    return found.group(1) if found else None


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUNKLINE_CACHE", str(folder / "cache"))
        make_site(folder)
    return folder


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_a_page_run(page: Path, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_CACHE", str(site / "cache"))
    run_page(page, shutil.copytree(site, tmp_path / "site"))


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_can_be_parsed(page: Path) -> None:
    for command in all_commands(page):
        parse_command(command)


def test_readme_shows_a_session_of_at_most_ten_lines() -> None:
    session = next(block for block in blocks(ROOT / "README.md") if block.language == "python")
    assert session.text.count("\n") <= 10


@pytest.mark.parametrize("page", PAGES_OF_RESULTS, ids=lambda page: page.name)
def test_a_page_shows_the_table_of_the_kept_result(page: Path) -> None:
    result = msgspec.json.decode((RESULTS / "first-light.json").read_bytes())
    assert markdown_table(result) in page.read_text("utf-8")


def test_the_page_of_the_papers_tables_shows_the_kept_result() -> None:
    shown = markdown_result(msgspec.json.decode(RESULT.read_bytes())) if RESULT.exists() else NO_RESULT
    assert shown in PAGE.read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    targets = re.findall(r"(?<!!)\[[^\]]*\]\((?!https?:)([^)#\s]+)[^)]*\)", page.read_text("utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("spec", PAGES_OF_SPECS, ids=lambda spec: spec.__name__)
def test_every_field_of_a_spec_is_documented_and_no_other(spec: type) -> None:
    page, heading = PAGES_OF_SPECS[spec]
    names = [f.name for f in fields(spec)] if is_dataclass(spec) else [f.name for f in msgspec.structs.fields(spec)]
    assert sorted(table(DOCS / page, heading)) == sorted(names)


@pytest.mark.parametrize(
    ("spec", "page", "heading"),
    [
        (TaskSpec, "task-file.md", "Keys"),
        (Columns, "task-file.md", "Keys of `columns`"),
        (Hyperparameters, "training.md", "Hyperparameters"),
        (Distillation, "training.md", "Distillation"),
        (TrainRequest, "training.md", "TrainRequest"),
    ],
)
def test_documented_defaults_are_those_in_force(spec: Any, page: str, heading: str) -> None:
    documented = {name: code(cells[0]) for name, cells in table(REFERENCE / page, heading).items()}
    actual = {f.name: f.default for f in msgspec.structs.fields(spec)}
    plain = {name: value for name, value in documented.items() if value is not None and name != "preset"}
    assert plain == {name: str(actual[name]) for name in plain}
    for name, value in actual.items():
        if isinstance(value, int | float | str):
            assert documented[name] is not None, name


def test_documented_presets_are_those_in_force() -> None:
    lines = (REFERENCE / "training.md").read_text("utf-8").splitlines()
    rows = [[code(cell.strip()) or cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    rows = [row for row in rows if row[0] in PRESETS and len(row) == 5]
    expected = []
    for name, preset in PRESETS.items():
        for arm in ("full", "partial", "student"):
            hyper: Hyperparameters = getattr(preset, arm)
            shown = (hyper.learning_rate, hyper.head_learning_rate, hyper.epochs)
            expected.append([name, arm, *map(str, shown)])
            rest = msgspec.structs.replace(
                Hyperparameters(), learning_rate=shown[0], head_learning_rate=shown[1], epochs=shown[2]
            )
            assert hyper == rest, "the table would need another column"
        assert preset.distillation == Distillation()
    assert rows == expected


def test_every_metric_is_documented_with_its_kinds() -> None:
    documented = {name: cells[0] for name, cells in table(REFERENCE / "metrics.md", "Metrics").items()}
    assert sorted(documented) == sorted(typing.get_args(Metric))
    for metric, kinds in documented.items():
        assert {k.split()[0] for k in kinds.split(", ")} == {
            k for k, known in METRICS_OF_KIND.items() if metric in known
        }
        defaults = {kind for kind, default in DEFAULT_METRIC.items() if default == metric}
        assert set(re.findall(r"(\w+) \(its default\)", kinds)) == defaults


def test_every_error_is_documented_with_its_bases() -> None:
    tree = {c.__name__: c for c in vars(errors).values() if isinstance(c, type) and c.__module__ == errors.__name__}
    documented = table(REFERENCE / "errors.md", "Errors")
    assert sorted(documented) == sorted(tree)
    for name, cells in documented.items():
        bases = [base.__name__ for base in tree[name].__bases__]
        assert [found for cell in cells[:2] if (found := code(cell))] == bases


@pytest.mark.parametrize("kind", typing.get_args(Prediction), ids=lambda kind: kind.__name__)
def test_every_kind_of_answer_is_documented_with_its_keys(kind: Any) -> None:
    config = kind.__struct_config__
    keys = table(REFERENCE / "answers.md", "Answers")[config.tag][1]
    assert [f.name for f in msgspec.structs.fields(kind) if f"`{f.name}`" not in keys] == []


def test_every_command_is_documented_and_no_other() -> None:
    headings = re.findall(
        r"^## trunkline ([\w ]+)$", (REFERENCE / "command-line.md").read_text("utf-8"), flags=re.MULTILINE
    )
    assert sorted(headings) == sorted(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_of_a_command_is_documented_with_its_default(name: str) -> None:
    documented = table(REFERENCE / "command-line.md", f"trunkline {name}")
    actual = {_shown(parameter): parameter for parameter in COMMANDS[name].params}
    assert sorted(documented) == sorted(actual)
    for option, parameter in actual.items():
        if parameter.default not in (None, "", False):
            assert code(documented[option][0]) == str(parameter.default), option


def _shown(parameter: click.Parameter) -> str:
    if parameter.param_type_name == "argument":
        return (parameter.metavar or str(parameter.name)).upper()
    return parameter.opts[0]
