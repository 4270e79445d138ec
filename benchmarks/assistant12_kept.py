"""Makes a bundle as the kept result of `assistant12` planned it, in minutes: `python -m benchmarks.assistant12_kept`.

Each branch has the exit, the layers and the pooling that the search found, and is trained on few rows: as fast to serve
as the searched one, and made of weights that tell labels apart, but less often right.
"""

from typing import Any

import msgspec

from benchmarks.assistant12_run import FOLDER, N_LAYERS, SETS, check_replaceable, open_bench, put_bundle
from benchmarks.harness import RESULTS
from trunkline.core.errors import BundleError
from trunkline.train.pipeline import train_each
from trunkline.train.spec import TrainRequest

KEPT_FOLDER = FOLDER.with_name("assistant12.kept")
N_ROWS = 1000


def main() -> None:
    """Train and merge."""
    result = msgspec.json.decode((RESULTS / "assistant12.json").read_bytes())
    planned: dict[str, dict[str, Any]] = {row["task"]: row for row in result["details"]["tasks"]}
    bundle = KEPT_FOLDER / "bundle"
    check_replaceable(bundle)
    asked = []
    for each in SETS:
        row, task = planned[each.name], each.task()
        data = msgspec.structs.replace(task.data, max_train_rows=min(each.rows, N_ROWS))
        students = () if row["arm"] == "partial" else (row["own_layers"],)
        asked.append(
            (
                msgspec.structs.replace(task, pooling=row["pooling"], data=data),
                TrainRequest(layers=(N_LAYERS - row["exit_layer"],), student_layers=students),
            )
        )
    bench = open_bench(KEPT_FOLDER / "runs")
    records = train_each(bench, asked)
    branches = {record.spec.task: record for record in records if record.spec.arm == planned[record.spec.task]["arm"]}
    if missing := planned.keys() - branches.keys():
        raise BundleError(f"bundle {str(bundle)!r}: has no branch of {', '.join(sorted(missing))}; see the runs")
    put_bundle(bundle, [bench.ledger.branch_folder(record.run_id) for record in branches.values()])
    for task, record in branches.items():
        print(f"{task}: exit {record.spec.exit_layer} + {record.spec.own_layers}, dev {record.dev_metric:.1f}")


if __name__ == "__main__":
    main()
