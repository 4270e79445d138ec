"""Tables and pictures of a reproduction, and the files that they become."""

import io
import struct
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.tiny_study import TASKS, study_of, whole_task
from trunkline.core.errors import BundleError, MissingDependencyError
from trunkline.reports.pictures import draw_figure2, draw_figure5, draw_table1, pictures
from trunkline.reports.tables import OPEN, markdown_tables, methods_table, progress_line, students_table, table1
from trunkline.reports.write import write_report
from trunkline.train.reproduction import Reproduction
from trunkline.train.reproduction_tables import reproduce

WHOLE = [*whole_task("mood", best=3), *whole_task("topic", best=2)]


@pytest.fixture(scope="module")
def whole() -> Reproduction:
    return reproduce(study_of(), WHOLE)


@pytest.fixture(scope="module")
def half() -> Reproduction:
    """Topic is done; of mood nothing but the full fine-tuning's first seed."""
    started = [r for r in whole_task("mood") if r.spec.arm == "full" and r.spec.seed == 0]
    return reproduce(study_of(), [*whole_task("topic", best=2), *started])


@pytest.fixture(scope="module")
def empty() -> Reproduction:
    return reproduce(study_of(), [])


def cells(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_table_1_has_mean_spread_and_maximum_and_bold_from_99_percent_on(whole: Reproduction) -> None:
    table = table1(whole)
    assert cells(table, "L = 1") == ["61.0 ± 1.4 (62.0)", "61.0 ± 1.4 (62.0)", "61.0"]
    assert cells(table, "L = 3") == ["**80.5** ± 1.4 (80.5)".replace("(80.5)", "(81.5)"), "71.0 ± 1.4 (72.0)", "75.8"]
    assert cells(table, "full") == ["81.0 ± 1.4 (82.0)", "81.0 ± 1.4 (82.0)", "81.0"]


def test_rows_of_methods_say_layers_overhead_and_operations(whole: Reproduction) -> None:
    shown = cells(methods_table(whole, whole.table2), "KD-1")
    assert shown[0] == "66.0 ± 1.4 (67.0), 1 + 1"
    assert shown[1] == "66.0 ± 1.4 (67.0), 2 + 1"
    assert shown[2:5] == ["66.0", "2 + 2", "4 (50.0%)"]


def test_a_second_average_leaves_tasks_out(whole: Reproduction) -> None:
    table = table1(whole, without=("mood",))
    assert "without mood" in table.splitlines()[0]
    assert cells(table, "L = 3")[-2:] == ["75.8", "71.0"]


def test_what_is_missing_is_said(half: Reproduction) -> None:
    assert cells(table1(half), "L = 1")[0] == OPEN
    assert cells(table1(half), "full")[0] == "80.0 [1 of 2 seeds]"
    assert cells(methods_table(half, half.table2), "mixed, c = 1")[0] == OPEN
    assert cells(methods_table(half, half.table2), "without KD")[0] == OPEN
    assert "average (1 of 2 tasks)" in table1(half).splitlines()[0]
    assert progress_line(half) == "8 of 16 cells are open; averages and layers are over topic."


def test_a_whole_report_says_that_nothing_is_open(whole: Reproduction) -> None:
    text = markdown_tables(whole)
    assert "All 16 cells are done." in text
    assert OPEN not in [cell.strip() for line in text.splitlines() for cell in line.split("|")]


def test_students_of_both_starts_stand_side_by_side(whole: Reproduction) -> None:
    table = students_table(whole)
    assert cells(table, "l = 1, from the teacher")[0].startswith("66.0")
    assert cells(table, "l = 1, from the backbone")[0].startswith("62.0")
    assert "worth +4.0 points" in table


def test_nothing_done_is_a_report_too(empty: Reproduction, tmp_path: Path) -> None:
    assert "16 of 16 cells are open; there are no averages yet." in markdown_tables(empty)
    assert [path.name for path in write_report(empty, tmp_path)] == ["reproduction.json", "tables.md"]


def test_a_report_is_data_tables_and_three_pictures(whole: Reproduction, tmp_path: Path) -> None:
    paths = write_report(whole, tmp_path / "a" / "b")
    assert sorted(path.name for path in paths) == sorted(path.name for path in (tmp_path / "a" / "b").iterdir())
    read = msgspec.json.decode((tmp_path / "a" / "b" / "reproduction.json").read_bytes(), type=Reproduction)
    assert read == whole
    for path in paths[2:]:
        content = path.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", content[16:24])
        assert min(width, height) > 300


def test_the_pictures_of_a_half_done_study_are_those_of_what_is_there(half: Reproduction) -> None:
    assert sorted(pictures(half)) == ["figure2.png", "figure5.png", "table1.png"]
    mood, topic = draw_figure2(half).axes
    assert [text.get_text() for text in mood.texts] == [OPEN]
    assert [text.get_text() for text in topic.texts] == []


def test_figure_2_has_a_box_for_each_start_and_length_and_a_dot_for_each_seed(whole: Reproduction) -> None:
    figure = draw_figure2(whole)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(TASKS)
    for axes in figure.axes:
        assert len(axes.patches) == 4
        dots = [y for line in axes.lines if line.get_marker() == "o" for y in line.get_ydata()]
        assert sorted(dots) == [61, 63, 65, 67, 71, 73, 75, 77]
        assert axes.get_ylabel() == "accuracy, points"
        assert axes.get_xlabel() == "student layers l"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "starts in the backbone",
        "starts in the teacher",
    ]


def test_table_1_is_drawn_with_full_fine_tuning_and_99_percent_of_it(whole: Reproduction) -> None:
    axes = draw_table1(whole).axes[0]
    mean = next(line for line in axes.lines if line.get_label() == "mean of partial fine-tuning")
    assert (list(mean.get_xdata()), list(mean.get_ydata())) == ([1, 2, 3], [61.0, 71.0, 80.5])
    levels = {line.get_label(): line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1}
    assert (levels["full fine-tuning"], levels["99% of it"]) == (81.0, pytest.approx(80.19))


@pytest.mark.parametrize("draw", [draw_table1, draw_figure2], ids=lambda draw: draw.__name__)
def test_title_and_legend_of_a_single_panel_are_inside_the_picture(draw: Any) -> None:
    figure = draw(reproduce(study_of(TASKS[:1]), WHOLE))
    figure.savefig(io.BytesIO(), format="png")
    for part in (figure.legends[0], figure._suptitle):
        box = part.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_figure_5_names_every_row_once(whole: Reproduction) -> None:
    axes = draw_figure5(whole).axes[0]
    named = [name for text in axes.texts for name in text.get_text().split("; ")]
    assert sorted(named) == sorted(row.name for row in whole.table5)
    assert axes.get_xlabel() == "layers that one row runs through for 2 tasks"


def test_without_matplotlib_data_and_tables_are_still_written(
    whole: Reproduction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'trunkline\[bench\]'"):
        write_report(whole, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reproduction.json", "tables.md"]


def test_a_folder_that_cannot_be_made_is_refused(whole: Reproduction, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BundleError, match="choose another folder"):
        write_report(whole, tmp_path / "file" / "report")
