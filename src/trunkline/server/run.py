"""Starts a server and stops it: load, warm, listen; drain, close."""

import asyncio
import gc
import ipaddress
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import uvicorn

from trunkline.bundle.registry import Registry, is_registry
from trunkline.bundle.store import Bundle, open_bundle
from trunkline.core.errors import SpecError
from trunkline.engine.backends.choose import choose_backend, describe
from trunkline.engine.engine import LIMITS, Engine
from trunkline.server.analyze import Analyzer
from trunkline.server.app import make_app
from trunkline.server.connections import protocol_of
from trunkline.server.deployment import Deployment, keep_following
from trunkline.server.grpc import serve_grpc
from trunkline.server.keys import Keyring, read_keys
from trunkline.server.logs import set_up_logs
from trunkline.server.metrics import Metrics
from trunkline.server.operation import Service
from trunkline.server.settings import Settings

_SWITCH_S = 0.0005
"""How long a thread may keep the interpreter from another: the engine's must not wait 5 ms for the network's."""
_GC_THRESHOLDS = (1_000, 10, 200)
"""Often among what is young, which takes a millisecond; rarely among all that waits, which takes a hundred."""
_FOLLOW_S = 1.0
_KEEP_ALIVE_S = 75
_LAST_ANSWERS_S = 30


def serve(path: Path, settings: Settings, tell: Callable[[str], None]) -> None:
    """Serve a bundle or a registry until SIGTERM or SIGINT.

    Args:
        path: Its folder.
        settings: Of the server.
        tell: Is told, for people, what happens at start.

    Raises:
        SpecError: The settings do not go together, or the address is taken.
        BundleError: What is to be served cannot be used.
    """
    with _opened(path, settings) as service:
        tell(f"serving {len(service.deployment.tasks())} tasks of {path}")
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(service, tell))


@contextmanager
def _opened(path: Path, settings: Settings) -> Iterator[Service]:
    keyring = Keyring(read_keys(settings.keys))
    _check_open(keyring, settings)
    sys.setswitchinterval(_SWITCH_S)
    source: Bundle | Registry = Registry.open(path) if is_registry(path) else open_bundle(path)
    bundle = source.bundle() if isinstance(source, Registry) else source
    metrics = Metrics()
    backend = choose_backend(n_threads=settings.n_threads)
    engine = Engine.open(
        bundle, backend=backend, limits=LIMITS, cache_bytes=settings.cache_bytes, on_step=metrics.stepped
    )
    try:
        engine.warm()
        deployment = Deployment(engine, source, settings)
        metrics.watch(engine)
        log = set_up_logs()
        log.info("loaded", extra={"backend": describe(backend), "path": str(path)})
        _collect_rarely()
        yield Service(deployment, Analyzer(engine, settings, metrics), keyring, settings, metrics, log)
        deployment.close()
    finally:
        engine.close()


def _collect_rarely() -> None:
    """Let requests wait less for the garbage collector.

    What was loaded stays, so it is looked through no more. A request leaves no garbage in circles, so that a full
    collection, which looks through all that waits, finds next to nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


async def _serve(service: Service, tell: Callable[[str], None]) -> None:
    settings = service.settings
    server = _Server(
        uvicorn.Config(
            make_app(service),
            host=settings.host,
            port=settings.port,
            http=protocol_of(settings.limits.read_s),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # Nothing here asks for the client's address.
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_LAST_ANSWERS_S,
        )
    )
    async with serve_grpc(service) as grpc_port, _following(service), _draining(server, service):

        def started(port: int) -> None:
            service.metrics.takes_requests = True
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            if grpc_port is not None:
                tell(f"gRPC on {host}:{grpc_port}")
            tell(f"listening on http://{host}:{port} (try it at /docs)")

        server.on_started = started
        try:
            await server.serve()
        except SystemExit as error:  # uvicorn has told the reason, a taken port for example.
            raise SpecError(
                f"server: cannot listen on {settings.host}:{settings.port}; choose another --host or --port"
            ) from error
        finally:
            service.metrics.takes_requests = False


class _Server(uvicorn.Server):
    """Leaves signals to us: before it stops to listen, it says that it is not ready.

    Attributes:
        on_started: Is told the port once it listens.
    """

    on_started: Callable[[int], None] = staticmethod(lambda _: None)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        if self.started:
            self.on_started(self.servers[0].sockets[0].getsockname()[1])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: see `_draining`."""
        yield


@asynccontextmanager
async def _draining(server: _Server, service: Service) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if not service.metrics.takes_requests:
            server.should_exit = True
            return
        service.metrics.takes_requests = False
        service.log.info("draining", extra={"drain_s": service.settings.drain_s})
        loop.call_later(service.settings.drain_s, lambda: setattr(server, "should_exit", True))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@asynccontextmanager
async def _following(service: Service) -> AsyncIterator[None]:
    if not service.deployment.is_registry:
        yield
        return

    def told(error: Exception) -> None:
        service.log.error("cannot follow the registry", extra={"reason": f"{type(error).__name__}: {error}"})

    task = asyncio.create_task(keep_following(service.deployment, told, seconds=_FOLLOW_S))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _check_open(keyring: Keyring, settings: Settings) -> None:
    if not keyring.is_open or settings.public or _is_loopback(settings.host):
        return
    raise SpecError(
        f"server: is to listen on {settings.host} without API keys, so anybody could ask it; give --keys FILE (make a "
        "key with `trunkline keys new NAME`), or --public if that is meant"
    )


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ModuleNotFoundError:  # It is not made for every platform.
        return None
    return uvloop.new_event_loop
