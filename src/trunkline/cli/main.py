"""Commands: parse, call the library, print; nothing else. Heavy libraries are imported inside the commands."""

import errno
import os
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, cast

import msgspec
import typer

import trunkline
from trunkline.cli import cache as cache_commands
from trunkline.cli.measure import measure_command
from trunkline.cli.options import (
    BackendOption,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    TaskFiles,
    names,
    open_backbone,
    read_tasks,
)
from trunkline.cli.plan import plan_command
from trunkline.cli.quantize import quantize_command
from trunkline.cli.registry import registry_app, tasks_app
from trunkline.cli.reproduce import reproduce_command
from trunkline.cli.search import search_command
from trunkline.cli.serve import keys_app, missing_server, serve_command
from trunkline.cli.show import show, show_json, show_manifest, show_manifest_and_cost
from trunkline.cli.status import working
from trunkline.cli.train import train_command
from trunkline.core.errors import MissingDependencyError, SpecError, TrunklineError

if TYPE_CHECKING:
    from trunkline.engine.stream import ReadsWhatIsThere

app = typer.Typer(
    name="trunkline",
    help="One frozen encoder trunk, many task branches: train them apart, run them in one pass.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help in boxes would cost the import of rich and two thirds of the time that --help takes
)

BundleArgument = Annotated[Path, typer.Argument(help="Folder of the bundle.")]
BranchArgument = Annotated[Path, typer.Argument(help="Folder of the branch, for example RUNS/runs/<id>/branch.")]
DeeperOption = Annotated[str | None, typer.Option(help="The backbone; needed to make the trunk deeper.")]
# Modules that the extra `train` brings; without it inspect, plan, merge, attach, replace and detach still work.
TRAIN_MODULES = frozenset({"accelerate", "datasets", "pyarrow", "scipy", "seqeval", "sklearn", "torch", "transformers"})

app.add_typer(cache_commands.app, name="cache")
app.add_typer(registry_app, name="registry")
app.add_typer(tasks_app, name="tasks")
app.command("train")(train_command)
app.command("search")(search_command)
app.command("reproduce")(reproduce_command)
app.command("plan")(plan_command)
app.command("quantize")(quantize_command)
app.command("measure")(measure_command)
app.command("serve")(serve_command)
app.add_typer(keys_app, name="keys")


def main() -> NoReturn:
    """Run the command line; a deliberate error, or one of the operating system, ends it with a message and code 1."""
    _spin_little()
    try:
        _require_streams()
        try:
            _run()
        finally:
            # What is still buffered is written here, where a full disk can be told of.
            sys.stdout.flush()
    except TrunklineError as error:
        _fail(str(error))
    except OSError as error:
        _drop_output()
        if error.errno == errno.EPIPE:  # The reader went away, as `head` does.
            sys.exit(1)
        subject = "standard output or a file" if error.filename is None else repr(str(error.filename))
        _fail(f"{subject}: {error.strerror or error}; make room or mend it, then run the command again")
    sys.exit(0)


def _require_streams() -> None:
    """Refuse to run without standard output or standard error; Python has None for those that are closed."""
    for name, stream in (("error", sys.stderr), ("output", sys.stdout)):
        if stream is None:
            _fail(f"standard {name}: is closed; a command needs it; lead it to a file or to /dev/null")


def _fail(message: str) -> NoReturn:
    if sys.stderr is not None:
        sys.stderr.write(f"error: {message}\n")
    sys.exit(1)


def _drop_output() -> None:
    """Lead standard output nowhere: what could not be written must not be tried again when Python ends."""
    with suppress(OSError):  # Something that is no file stands in its place.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _spin_little() -> None:
    """Let idle threads of torch wait instead of spin; read by libgomp when torch is loaded (decision 0010)."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def _run() -> None:
    try:
        app(prog_name="trunkline")
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        of_server = missing_server(error)
        if of_server is not None:
            raise of_server from error
        if module not in TRAIN_MODULES:
            raise
        raise MissingDependencyError(
            f"package {module!r}: not installed; this command needs it; "
            "install the extra with: pip install 'trunkline[train]'"
        ) from error


@app.callback(invoke_without_command=True)
def _root(*, version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(trunkline.__version__)
        raise typer.Exit


@app.command()
def merge(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="File that `plan` wrote.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the new bundle; must not exist or be empty.")],
    as_json: JsonOption = False,
) -> None:
    """Put the planned branches on one trunk (paper section 3.3)."""
    from trunkline.bundle.merge import merge as merge_branches
    from trunkline.train.plan import read_plan

    made = read_plan(plan_file)
    if made.kept is not None:
        raise SpecError(
            f"plan {str(plan_file)!r}: is of one task beside those of bundle {made.kept.bundle!r}; merge makes a new "
            f"bundle of all tasks of a plan; {made.kept.next_step}"
        )
    with working(f"merging {len(made.tasks)} branches"):
        bundle = merge_branches(
            [Path(task.branch) for task in made.tasks],
            open_backbone(made.backbone),
            out,
            digests=[task.branch_digest for task in made.tasks],
        )
    show_manifest(bundle.manifest, as_json=as_json)


@app.command()
def attach(
    bundle: BundleArgument, branch: BranchArgument, *, backbone: DeeperOption = None, as_json: JsonOption = False
) -> None:
    """Add a task to a bundle; the other tasks stay as they are."""
    from trunkline.bundle.merge import attach as attach_branch
    from trunkline.bundle.store import open_bundle

    with working(f"attaching {branch} to {bundle}"):
        deeper = None if backbone is None else open_backbone(backbone)
        manifest = attach_branch(open_bundle(bundle), branch, backbone=deeper)
    show_manifest(manifest, as_json=as_json)


@app.command()
def replace(
    bundle: BundleArgument, branch: BranchArgument, *, backbone: DeeperOption = None, as_json: JsonOption = False
) -> None:
    """Put another branch in the place of a task's present one."""
    from trunkline.bundle.merge import replace as replace_branch
    from trunkline.bundle.store import open_bundle

    with working(f"replacing a branch of {bundle} by {branch}"):
        deeper = None if backbone is None else open_backbone(backbone)
        manifest = replace_branch(open_bundle(bundle), branch, backbone=deeper)
    show_manifest(manifest, as_json=as_json)


@app.command()
def detach(
    bundle: BundleArgument,
    task: Annotated[str, typer.Argument(help="Name of the task.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Remove a task from a bundle; the other tasks stay as they are."""
    from trunkline.bundle.merge import detach as detach_task
    from trunkline.bundle.store import open_bundle

    show_manifest(detach_task(open_bundle(bundle), task), as_json=as_json)


@app.command()
def inspect(bundle: BundleArgument, *, as_json: JsonOption = False) -> None:
    """Show trunk, branches and what they cost."""
    from trunkline.bundle.store import open_bundle

    show_manifest_and_cost(open_bundle(bundle).manifest, as_json=as_json)


@app.command()
def verify(bundle: BundleArgument, *, as_json: JsonOption = False) -> None:
    """Check every digest, the trunk chain, and the answers to golden inputs."""
    from trunkline.engine.verify import verify as verify_bundle

    with working(f"verifying {bundle}"):
        report = verify_bundle(bundle)
    if as_json:
        show_json(report)
    else:
        typer.echo(
            f"{bundle}: {len(report.tasks)} tasks verified, largest logit difference {report.largest_difference:.1e}"
        )


@app.command()
def predict(
    bundle: BundleArgument,
    *,
    tasks: Annotated[str | None, typer.Option(help="Ask these tasks only, e.g. a,b; others are not read.")] = None,
    backend: BackendOption = None,
    precision: PrecisionOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Answer JSON lines from standard input, one JSON line each on standard output, as they come."""
    from trunkline.bundle.store import open_bundle
    from trunkline.engine.backends.choose import choose_backend
    from trunkline.engine.engine import Engine
    from trunkline.engine.gated import describe_served, serving_notes
    from trunkline.engine.stream import answer_lines, ready_lines

    asked = names(tasks, "--tasks")
    if sys.stdin is None:
        raise SpecError("standard input: is closed; predict reads lines from it; give it a file or a pipe")
    chosen = choose_backend(backend, precision=precision, device=device)
    manifest = open_bundle(bundle).manifest
    for said in (f"computing with {describe_served(manifest, chosen)}", *serving_notes(manifest, chosen, tasks=asked)):
        sys.stderr.write(f"{bundle}: {said}\n")
    with working(f"opening {bundle}"):
        engine = Engine.open(bundle, tasks=asked, backend=chosen)
    stdin = cast("ReadsWhatIsThere", sys.stdin.buffer)
    cut: Counter[str] = Counter()
    n_answered = 0
    try:
        with working("waiting for lines", prints=True) as tell:
            for chunk in answer_lines(engine, ready_lines(stdin), "standard input", tasks=asked):
                cut.update(chunk.n_truncated)
                for answers in chunk.answers:
                    sys.stdout.buffer.write(msgspec.json.encode(answers) + b"\n")
                sys.stdout.buffer.flush()
                n_answered += len(chunk.answers)
                tell(f"{n_answered} lines answered")
    finally:
        engine.close()
        for task, count in cut.items():
            if count:
                length = engine.spec(task).max_length
                sys.stderr.write(f"task {task!r}: texts longer than {length} tokens, which were cut: {count}\n")


@app.command()
def evaluate(  # noqa: PLR0913 - options of a command
    bundle: BundleArgument,
    tasks: TaskFiles,
    *,
    part: Annotated[Literal["train", "dev", "test"], typer.Option(help="Which rows.")] = "dev",
    backend: BackendOption = None,
    precision: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="What is computed in.")] = "fp32",
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle's tasks on labelled rows."""
    from trunkline.bundle.store import open_bundle
    from trunkline.engine.backends.choose import choose_backend
    from trunkline.engine.engine import Engine
    from trunkline.engine.evaluate import check_tasks
    from trunkline.engine.evaluate import evaluate as evaluate_task

    specs, results = read_tasks(tasks), []
    check_tasks(open_bundle(bundle).manifest, specs, part)
    chosen = choose_backend(backend, precision=precision, device=device)
    with (
        working(f"opening {bundle}") as tell,
        Engine.open(bundle, tasks=[spec.name for spec in specs], backend=chosen) as engine,
    ):
        for number, spec in enumerate(specs, start=1):
            tell(f"evaluating {spec.name} ({number} of {len(specs)})")
            results.append(evaluate_task(engine, spec, part))
    if as_json:
        show_json(results)
    else:
        from trunkline.views import evaluation_table

        show(evaluation_table(results))


@app.command()
def calibrate(
    bundle: BundleArgument,
    tasks: TaskFiles,
    *,
    abstain_below: Annotated[
        float | None, typer.Option(help="Confidence under which a classification task gives no label; kept as it is.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit temperature and thresholds on a slice of train, and replace the branches."""
    from trunkline.engine.calibrate import calibrate_tasks

    specs = read_tasks(tasks)
    with working(f"opening {bundle}") as tell:
        results = calibrate_tasks(
            bundle, specs, abstain_below=abstain_below, on_task=lambda task: tell(f"calibrating {task}")
        )
    if as_json:
        show_json(results)
    else:
        from trunkline.views import calibration_table

        show(calibration_table(results))


@app.command()
def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for data, runs, bundle and report.")] = Path("demo"),
    data: Annotated[Path | None, typer.Option(help="Folder of real data sets; sample data by default.")] = None,
) -> None:
    """Train, distil, plan, merge, verify and ask six small tasks; takes a few minutes."""
    from trunkline.demo.run import run_demo

    run_demo(out, data=data)
