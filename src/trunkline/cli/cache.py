"""`trunkline cache`: what the activation cache holds, and making room."""

from typing import Annotated

import typer

from trunkline.cli.options import JsonOption
from trunkline.cli.show import show, show_json

app = typer.Typer(
    help="Cached activations of the trunk: what there is, and making room.",
    no_args_is_help=True,
    rich_markup_mode=None,  # As for all commands: help that answers at once.
)


@app.command("list")
def list_command(*, as_json: JsonOption = False) -> None:
    """List the stores, the one used longest ago first."""
    from trunkline.train.cache_room import default_cache_root, list_stores
    from trunkline.views import store_table

    root = default_cache_root()
    stores = list_stores(root)
    if as_json:
        show_json(stores)
    else:
        show(store_table(str(root), stores))


@app.command("prune")
def prune_command(
    *,
    older_than_days: Annotated[
        float, typer.Option(help="Remove stores that were not used for so many days; 0 removes all.", min=0)
    ] = 30.0,
    max_size: Annotated[
        str, typer.Option(help="Then remove the longest unused until the rest takes at most this, for example 20GB.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Remove stores; what a later run needs of them is computed again."""
    from trunkline.train.cache_room import default_cache_root, list_stores, parse_size, prune, superfluous
    from trunkline.views import store_table

    root = default_cache_root()
    chosen = superfluous(
        list_stores(root), older_than_days=older_than_days, max_bytes=parse_size(max_size) if max_size else None
    )
    removed = prune(root, chosen)
    if as_json:
        show_json(removed)
    else:
        show(store_table(f"removed from {root}", removed))
