"""`trunkline search`: layers and settings chosen within a budget."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from trunkline.cli.bench import CacheLimitOption, cache_limit_bytes, open_bench
from trunkline.cli.options import (
    BackboneOption,
    JsonOption,
    PresetOption,
    SelectOption,
    TaskFiles,
    numbers,
    open_backbone,
    read_tasks,
)
from trunkline.cli.show import show, show_json


def search_command(  # noqa: PLR0913 - each option is one of the request's fields
    tasks: TaskFiles,
    *,
    out: Annotated[Path, typer.Option(help="Folder of runs and their ledger.")],
    backbone: BackboneOption = "minilm",
    budget: Annotated[
        float, typer.Option(help="What the search of a task may cost, in full fine-tunings of it.")
    ] = 1.5,
    students: Annotated[str, typer.Option(help="Numbers l of student layers that are searched.")] = "1,2,3",
    seeds: Annotated[str, typer.Option(help="Seeds of the final teacher and student.")] = "0",
    min_gain: Annotated[float, typer.Option(help="Points that a student's own layer must be worth.")] = 1.0,
    n_students: Annotated[int, typer.Option(help="How many students are trained on all rows.")] = 1,
    n_proposals: Annotated[int, typer.Option(help="Further trials of each stage that Optuna proposes.")] = 0,
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="Run the whole grid, to compare with.")] = False,
    preset: PresetOption = "default",
    select: SelectOption = "train_slice",
    cache_limit: CacheLimitOption = "",
    storage: Annotated[
        str, typer.Option(help="Database of the trials (postgresql://...); empty: a journal in the runs folder.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Choose layers, exit, pooling and rates for about the price of one full fine-tuning; resumes."""
    from trunkline.core.specs import convert_spec
    from trunkline.train.search import search_tasks
    from trunkline.train.search_spec import SearchRequest
    from trunkline.train.spec import preset as preset_of

    limit_bytes = cache_limit_bytes(cache_limit)
    specs = read_tasks(tasks)
    loaded = open_backbone(backbone)
    request = convert_spec(
        {
            "budget": budget,
            "student_layers": numbers(students, "--students"),
            "seeds": numbers(seeds, "--seeds"),
            "min_gain": min_gain,
            "n_students": n_students,
            "n_proposals": n_proposals,
            "exhaustive": exhaustive,
            "preset": msgspec.to_builtins(preset_of(preset, width=loaded.config.width)),
            "selection": select,
            "storage": storage or None,
        },
        SearchRequest,
        "options of `trunkline search`",
    )
    with open_bench(loaded, out, limit_bytes=limit_bytes) as bench:
        reports = search_tasks(bench, specs, request)
    if as_json:
        show_json([{**msgspec.to_builtins(report), "cost": report.cost} for report in reports])
    else:
        from trunkline.views import search_table

        for report in reports:
            show(search_table(report))
