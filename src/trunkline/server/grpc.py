"""Takes the place of gRPC until it is there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from trunkline.server.operation import Service


@asynccontextmanager
async def serve_grpc(service: Service) -> AsyncIterator[int | None]:  # noqa: ARG001
    """Nothing yet."""
    yield 0
