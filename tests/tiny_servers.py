"""Servers over pico bundles: the whole application without a socket, asked through ASGI."""

import asyncio
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from tests.tiny_engines import backend_of
from trunkline.bundle.registry import Registry, is_registry
from trunkline.bundle.store import Bundle, open_bundle
from trunkline.engine.engine import Engine
from trunkline.engine.scheduler import Limits
from trunkline.server.analyze import Analyzer
from trunkline.server.app import make_app
from trunkline.server.deployment import Deployment
from trunkline.server.grpc import serve_grpc
from trunkline.server.keys import Key, Keyring, new_key
from trunkline.server.metrics import Metrics
from trunkline.server.operation import Service
from trunkline.server.settings import Settings

SMALL = Limits(batch_tokens=64, batch_rows=4, queued_rows=1000, queued_tokens=50_000)
"""Of a step, so that few shapes are warmed."""


def make_keys(**scopes: tuple[str, ...]) -> tuple[dict[str, str], tuple[Key, ...]]:
    """Name to token, and what a keys file would hold."""
    made = {name: new_key(name, of_name) for name, of_name in scopes.items()}
    return {name: token for name, (token, _) in made.items()}, tuple(key for _, key in made.values())


@contextmanager
def make_service(path: Path, *, keys: tuple[Key, ...] = (), **settings: Any) -> Iterator[Service]:
    """A service over a bundle or a registry, ready."""
    source: Bundle | Registry = Registry.open(path) if is_registry(path) else open_bundle(path)
    bundle = source.bundle() if isinstance(source, Registry) else source
    metrics = Metrics()
    chosen = Settings(**{"max_branch_ms": 10_000.0, "deadline_ms": 60_000.0, **settings})
    engine = Engine.open(
        bundle, backend=backend_of(), limits=SMALL, cache_bytes=chosen.cache_bytes, on_step=metrics.stepped
    )
    with engine:
        metrics.watch(engine)
        metrics.takes_requests = True
        deployment = Deployment(engine, source, chosen)
        log = logging.getLogger("trunkline.server")
        yield Service(deployment, Analyzer(engine, chosen, metrics), Keyring(keys), chosen, metrics, log)
        deployment.close()


def ask(
    service: Service, method: str, path: str, *, token: str | None = None, headers: Mapping[str, str] | None = None,
    **options: Any,
) -> httpx.Response:  # fmt: skip
    """One request, whole, through the application."""
    told = {**({} if token is None else {"Authorization": f"Bearer {token}"}), **(headers or {})}

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(make_app(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, headers=told, **options)

    return asyncio.run(run())


def with_settings(service: Service, **changes: Any) -> Service:
    """The same engine behind other limits."""
    settings = replace(service.settings, **changes)
    analyzer = Analyzer(service.analyzer.engine, settings, service.metrics)
    return replace(service, settings=settings, analyzer=analyzer)


@contextmanager
def running(service: Service) -> Iterator[tuple[int, int]]:
    """The ports, HTTP and gRPC, on which a service listens while the block runs, in a thread of its own."""
    ready, ports = threading.Event(), list[int]()
    settings = replace(service.settings, grpc_port=0)

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            ports.insert(0, self.servers[0].sockets[0].getsockname()[1])
            ready.set()

    server = Server(uvicorn.Config(make_app(service), port=0, log_config=None, lifespan="off"))

    async def run() -> None:
        async with serve_grpc(replace(service, settings=settings)) as grpc_port:
            ports.append(grpc_port or 0)
            await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    try:
        assert ready.wait(30), "the server did not start"
        yield ports[0], ports[1]
    finally:
        server.should_exit = True
        thread.join(30)
