"""`trunkline train`: runs that are asked for one by one."""

from pathlib import Path
from typing import Annotated, Literal

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
    train_request,
)
from trunkline.cli.show import show, show_json


def train_command(  # noqa: PLR0913 - each option is one of the request's fields
    tasks: TaskFiles,
    *,
    out: Annotated[Path, typer.Option(help="Folder of runs and their ledger.")],
    backbone: BackboneOption = "minilm",
    layers: Annotated[str, typer.Option(help="Numbers L of top layers to tune, for example 2,4.")] = "",
    seeds: Annotated[str, typer.Option(help="Seeds, for example 0,1,2.")] = "0",
    full: Annotated[bool, typer.Option("--full", help="Run full fine-tuning too, as a baseline.")] = False,
    students: Annotated[str, typer.Option(help="Numbers l of student layers; empty for none.")] = "1,2,3",
    student_exits: Annotated[str, typer.Option(help="Exit layers of students; empty: the teacher's.")] = "",
    init: Annotated[Literal["teacher", "backbone", "both"], typer.Option(help="Where students start.")] = "teacher",
    label_teacher: Annotated[
        Literal["partial", "ensemble", "full"], typer.Option(help="Whose answers students learn.")
    ] = "partial",
    init_layers: Annotated[int | None, typer.Option(help="L of the teacher that students start in.")] = None,
    kd_temperature: Annotated[float | None, typer.Option(help="T of distillation; none: the preset's.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Share of the loss against labels; none: the preset's.")] = None,
    hidden_weight: Annotated[float | None, typer.Option(help="Weight of matching hidden states.")] = None,
    transfer: Annotated[str | None, typer.Option(help="More rows, without labels, that students learn from.")] = None,
    augment: Annotated[int, typer.Option(help="Make so many rows of each row for students to learn from.")] = 0,
    init_from: Annotated[Path | None, typer.Option(help="Branch that the tuned layers start in.")] = None,
    preset: PresetOption = "default",
    select: SelectOption = "train_slice",
    cache_dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="Of cached activations.")] = "bfloat16",
    cache_limit: CacheLimitOption = "",
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="Of the multiplications; auto: what the machine has.")
    ] = "auto",
    tracker: Annotated[list[str] | None, typer.Option(help="A tracker of accelerate, e.g. tensorboard.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Tune the top layers for each task, then distil students; killed and started again, it resumes."""
    from trunkline.train.candidates import candidates_of
    from trunkline.train.pipeline import check_request, train_tasks

    limit_bytes = cache_limit_bytes(cache_limit)
    specs = read_tasks(tasks)
    loaded = open_backbone(backbone)
    request = train_request(
        width=loaded.config.width,
        layers=numbers(layers, "--layers"),
        seeds=numbers(seeds, "--seeds"),
        full=full,
        student_layers=numbers(students, "--students"),
        student_exits=numbers(student_exits, "--student-exits") or None,
        student_inits=("teacher", "backbone") if init == "both" else (init,),
        label_teacher=label_teacher,
        init_layers=init_layers,
        distillation={"kd_temperature": kd_temperature, "alpha": alpha, "hidden_weight": hidden_weight},
        transfer=transfer,
        augment=augment,
        init_from=None if init_from is None else str(init_from),
        preset=preset,
        selection=select,
        cache_dtype=cache_dtype,
    )
    check_request(request, loaded.config.n_layers)
    with open_bench(loaded, out, limit_bytes=limit_bytes, precision=precision, trackers=tracker or ()) as bench:
        records = train_tasks(bench, specs, request)
    if as_json:
        show_json(records)
    else:
        from trunkline.views import candidate_table

        show(candidate_table(candidates_of(records)))
