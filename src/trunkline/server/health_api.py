"""What operators ask: is it alive, is it ready, what has it counted, what can it do."""

from importlib import resources

from starlette.responses import HTMLResponse, Response

import trunkline
from trunkline.server.operation import Asked, JsonResponse, Operation, Service
from trunkline.server.refusals import refuse

_METRICS = "text/plain; version=0.0.4; charset=utf-8"


async def live(asked: Asked) -> Response:
    """The process runs, its event loop turns, its engine has a thread."""
    refuse_dead(asked.service)
    return JsonResponse({"status": "live", "version": trunkline.__version__})


async def ready(asked: Asked) -> Response:
    """Requests are taken: loaded, warm, live, not about to stop."""
    refuse_unready(asked.service)
    return JsonResponse({"status": "ready"})


def refuse_dead(service: Service) -> None:
    """Tell whoever restarts servers that this one must be.

    Raises:
        ServerError: 503: it must.
    """
    if not service.metrics.is_live:
        raise refuse(503, "engine_ended", "server: its engine ended, the log says why; restart it")


def refuse_unready(service: Service) -> None:
    """Tell whoever balances load that requests are not taken.

    Raises:
        ServerError: 503: they are not.
    """
    if not service.metrics.is_ready:
        raise refuse(503, "not_ready", "server: loads or stops; ask again, or ask another", Retry_After="1")


async def metrics(asked: Asked) -> Response:
    """Everything that was counted."""
    return Response(asked.service.metrics.text(), media_type=_METRICS)


async def docs(asked: Asked) -> Response:  # noqa: ARG001 - every handler gets what was asked
    """A page to read and try the operations on."""
    return HTMLResponse(
        resources.files("trunkline.server").joinpath("docs.html").read_text(encoding="utf-8"),
        headers={
            "Content-Security-Policy": "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        },
    )


OPERATIONS = (
    Operation("GET", "/health/live", live, "Whether it lives; if not, restart it", "operations", needs="nothing"),
    Operation("GET", "/health/ready", ready, "Whether requests are taken", "operations", needs="nothing"),
    Operation("GET", "/metrics", metrics, "Counts for Prometheus", "operations", needs="nothing",
              other_answers={"text/plain": "Prometheus' text format"}),
    Operation("GET", "/docs", docs, "A page to try all this on", "operations", needs="nothing",
              other_answers={"text/html": "a page"}),
)  # fmt: skip
