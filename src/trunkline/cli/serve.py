"""``trunkline serve`` and ``trunkline keys``."""

from pathlib import Path
from typing import Annotated

import typer

from trunkline.core.errors import MissingDependencyError

SERVER_MODULES = frozenset({"fsspec", "google", "grpc", "httptools", "prometheus_client", "starlette", "uvicorn"})

keys_app = typer.Typer(help="API keys of a server.", no_args_is_help=True)


def serve_command(  # noqa: PLR0913 - options of a command
    path: Annotated[Path, typer.Argument(help="Folder of a bundle or of a registry.")],
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="For HTTP; 0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="For gRPC; 0 takes a free one.")] = 8001,
    grpc: Annotated[bool, typer.Option(help="Whether gRPC is offered.")] = True,
    keys: Annotated[Path | None, typer.Option(help="File with API keys (see `trunkline keys new`).")] = None,
    public: Annotated[bool, typer.Option("--public", help="Listen beyond loopback without API keys.")] = False,
    deadline_ms: Annotated[float, typer.Option(help="Of requests that state none.")] = 10_000.0,
    max_wait_ms: Annotated[
        float, typer.Option(help="Refuse requests that would wait longer before they run.")
    ] = 1_000.0,
    cache_mb: Annotated[int, typer.Option(help="Megabytes for answers to texts that are asked again.")] = 64,
    ready_versions: Annotated[
        int, typer.Option(help="Versions of each task kept loaded beside those that answer.")
    ] = 2,
    max_branch_ms: Annotated[float, typer.Option(help="Slower branches are not registered.")] = 200.0,
    source: Annotated[list[str] | None, typer.Option(help="Where branches may be registered from; repeatable.")] = None,
    cors_origin: Annotated[list[str] | None, typer.Option(help="Origin whose pages may ask; repeatable.")] = None,
    max_texts: Annotated[int, typer.Option(help="Most texts of a request.")] = 512,
    max_text_characters: Annotated[int, typer.Option(help="Most characters of one text.")] = 20_000,
    max_body_mb: Annotated[float, typer.Option(help="Most megabytes of a request.")] = 4.0,
    drain_s: Annotated[float, typer.Option(help="After SIGTERM: seconds of being not ready before it stops.")] = 0.0,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log every request, not failed ones alone.")] = False,
    threads: Annotated[int | None, typer.Option(help="That compute; one for each processor by default.")] = None,
) -> None:
    """Answer over HTTP and gRPC."""
    from trunkline.server.run import serve
    from trunkline.server.settings import RequestLimits, Settings

    settings = Settings(
        host=host,
        port=port,
        grpc_port=grpc_port if grpc else None,
        keys=keys,
        limits=RequestLimits(texts=max_texts, text_characters=max_text_characters, body_bytes=int(max_body_mb * 2**20)),
        deadline_ms=deadline_ms,
        max_wait_ms=max_wait_ms,
        cache_bytes=cache_mb * 2**20,
        ready_versions=ready_versions,
        max_branch_ms=max_branch_ms,
        sources=tuple(source or ()),
        cors_origins=tuple(cors_origin or ()),
        drain_s=drain_s,
        access_log=access_log,
        n_threads=threads,
        public=public,
    )
    serve(path, settings, typer.echo)


@keys_app.command("new")
def new_key_command(
    name: Annotated[str, typer.Argument(help="Whose key it is; the history says this name.")],
    scope: Annotated[list[str] | None, typer.Option(help="infer, owner:TASK or admin; repeatable.")] = None,
) -> None:
    """Make a key; it is shown once, and the keys file holds its SHA-256 alone."""
    from trunkline.server.keys import as_yaml, new_key

    token, key = new_key(name, tuple(scope or ("infer",)))
    typer.echo(f"# The key, shown only now; send it as Authorization: Bearer KEY\n# {token}", err=True)
    typer.echo(as_yaml(key), nl=False)


def missing_server(error: ModuleNotFoundError) -> MissingDependencyError | None:
    """What to tell when a package of the extra ``server`` is not installed; None of other packages."""
    module = (error.name or "").partition(".")[0]
    if module not in SERVER_MODULES:
        return None
    return MissingDependencyError(
        f"package {module!r}: not installed; this command needs it; install the extra with: pip install "
        "'trunkline[server]'"
    )
