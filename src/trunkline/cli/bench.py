"""The workbench of the commands that train."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

CacheLimitOption = Annotated[
    str,
    typer.Option(help="Most that all cached activations may take, for example 20GB; empty: half the free disk."),
]


def cache_limit_bytes(cache_limit: str) -> int | None:
    """Bytes of ``--cache-limit``; None where it was not given.

    Raises:
        SpecError: It is no size.
    """
    from trunkline.train.cache_room import parse_size

    return parse_size(cache_limit) if cache_limit else None


@contextmanager
def open_bench(
    backbone: Any,
    out: Path,
    *,
    limit_bytes: int | None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    trackers: Sequence[str] = (),
) -> Iterator[Any]:
    """Backbone, ledger, cache and progress on standard error.

    Args:
        backbone: As it was loaded.
        out: The runs folder.
        limit_bytes: Of all cached activations; None allows half of the free disk.
        precision: Of the multiplications; ``auto`` takes what the machine has.
        trackers: Names of trackers of accelerate.

    Raises:
        TrainingError: The folder cannot be written.
    """
    from rich.console import Console

    from trunkline.train.bench import Workbench
    from trunkline.train.cache import ActivationCache
    from trunkline.train.cache_room import default_cache_root
    from trunkline.train.device import make_accelerator
    from trunkline.train.ledger import Ledger
    from trunkline.train.progress import RunProgress

    chosen = None if precision == "auto" else precision
    accelerator = make_accelerator(trackers=trackers, log_dir=out / "trackers")
    with RunProgress(Console(stderr=True), accelerator) as progress:
        cache = ActivationCache(default_cache_root(), limit_bytes=limit_bytes, on_rows=progress.rows)
        yield Workbench.build(
            backbone, Ledger(out), cache, accelerator=accelerator, precision=chosen, reporter=progress
        )
