"""Serving needs no torch, and none of training's other packages."""

import os
import subprocess
import sys
from pathlib import Path

from tests.tiny_bundles import backbone_of, make_bundle, put_branch
from trunkline.bundle.merge import replace

SERVE = """
import sys
from pathlib import Path

BLOCKED = ("torch", "transformers", "accelerate", "datasets", "scipy", "sklearn", "optuna")
for name in BLOCKED:
    sys.modules[name] = None

from trunkline.bundle.store import open_bundle
from trunkline.engine.backends.openvino import OpenVinoBackend
from trunkline.engine.engine import Engine
from trunkline.engine.verify import verify

first, second = (Path(argument) for argument in sys.argv[1:])
with Engine.open(first, backend=OpenVinoBackend(n_threads=1)) as engine:
    (answers,) = engine.predict(["play a song in paris"])
    assert set(answers) == {"intent", "slots", "mood"}, answers
    assert {each.task for each in engine.stream(["no"])} == {"intent", "slots", "mood"}
    assert engine.activate(open_bundle(second)) == ("intent",)
    engine.predict(["no"])
assert [task.task for task in verify(second).tasks] == ["intent", "slots", "mood"]
assert not [name for name in sys.modules if name.partition(".")[0] in BLOCKED and sys.modules[name] is not None]
print("served")
"""


def test_a_bundle_is_opened_asked_streamed_verified_and_swapped_without_torch(tmp_path: Path) -> None:
    first = make_bundle(tmp_path / "a", "intent", "slots", "mood")
    second = make_bundle(tmp_path / "b", "intent", "slots", "mood")
    replace(second, put_branch(tmp_path / "new", "intent", backbone_of(), seed=1))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SERVE, str(first.path), str(second.path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "served"), done.stderr
