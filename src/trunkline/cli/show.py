"""Results on standard output: pictures for people, one JSON value for programs."""

import sys
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import RenderableType


def show(picture: "RenderableType") -> None:
    """Print a picture."""
    from rich.console import Console

    Console().print(picture, highlight=False)


def show_json(value: Any) -> None:
    """Print one JSON value."""
    sys.stdout.write(msgspec.json.encode(value, enc_hook=str).decode() + "\n")
    # Flushed here, where a reader that has gone is met; at exit it would be a message on standard error.
    sys.stdout.flush()


def show_manifest(manifest: Any, *, as_json: bool) -> None:
    """Print a manifest, or the picture of it."""
    if as_json:
        show_json(manifest)
    else:
        from trunkline.views import bundle_picture

        show(bundle_picture(manifest))


def show_manifest_and_cost(manifest: Any, *, as_json: bool) -> None:
    """Print what the picture says as JSON too: the manifest's fields, and beside them ``cost``."""
    if as_json:
        show_json({**msgspec.to_builtins(manifest), "cost": cost_of(manifest)})
    else:
        show_manifest(manifest, as_json=False)


def cost_of(manifest: Any) -> dict[str, int]:
    """What one row costs when every task is asked, in layers (paper section 4.1)."""
    from trunkline.bundle.manifest import deepest_exit, layer_cost

    return {
        "trunk_depth": deepest_exit(manifest),
        "layer_cost": layer_cost(manifest),
        "single_task_layers": manifest.n_layers * len(manifest.tasks),
    }
