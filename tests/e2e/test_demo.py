"""The demo from end to end, on a pico backbone: what it leaves behind, whatever the metrics are."""

from pathlib import Path

import msgspec
import pytest

from tests.tiny import write_tiny_checkpoint
from tests.tiny_engines import open_fp32
from trunkline.core.errors import SpecError
from trunkline.demo.run import run_demo
from trunkline.engine.verify import verify
from trunkline.train.spec import Distillation, Hyperparameters, Preset, TrainRequest

TUNING = Hyperparameters(batch_size=64, epochs=1)
SHORT = TrainRequest(
    layers=(2,),
    student_layers=(1,),
    preset=Preset(full=TUNING, partial=TUNING, student=TUNING, distillation=Distillation()),
)
REPORT_KEYS = {"name", "kind", "metric", "dev_metric", "untrained_metric", "exit_layer", "own_layers"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_tiny_checkpoint(folder / "backbone", "bert")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUNKLINE_CACHE", str(folder / "cache"))
        run_demo(folder / "out", data=None, backbone_name=str(folder / "backbone"), request=SHORT)
    return folder / "out"


def test_its_report_has_a_line_for_each_kind_of_task(demo: Path) -> None:
    report = msgspec.json.decode((demo / "report.json").read_bytes())
    assert {task["kind"] for task in report["tasks"]} == {"classification", "tagging", "regression", "multilabel"}
    assert len(report["tasks"]) == 6
    for task in report["tasks"]:
        assert set(task) == REPORT_KEYS
        assert -100 <= task["dev_metric"] <= 100
        assert task["exit_layer"] + task["own_layers"] <= 4


def test_its_bundle_verifies_and_answers_every_task(demo: Path) -> None:
    assert len(verify(demo / "bundle").tasks) == 6
    with open_fp32(demo / "bundle") as engine:
        (answers,) = engine.predict(["turn the light in the kitchen on"])
    assert set(answers) == {"domain", "intent", "slots", "topics", "urgency"}


def test_it_empties_no_folder_that_it_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    write_tiny_checkpoint(tmp_path / "backbone", "bert")
    with pytest.raises(SpecError, match="was not made by the demo"):
        run_demo(tmp_path, data=None, backbone_name=str(tmp_path / "backbone"))
    assert (tmp_path / "data" / "mine.txt").read_text() == "mine"


def test_it_names_the_real_set_that_a_data_folder_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trunkline.cli import main

    monkeypatch.setattr("sys.argv", ["trunkline", "demo", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert "emotion/train.jsonl.gz is missing" in capsys.readouterr().err
