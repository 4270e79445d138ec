"""A compiled OpenVINO graph that answers tasks; no torch here, so that a server need not hold it."""

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peers.shapes import ServedTask

if TYPE_CHECKING:
    import openvino


class OpenVinoRunner:
    """A compiled graph; safe to call from as many threads as it has streams.

    Args:
        model: The graph.
        tasks: In the order of its outputs.
        precision: ``f32`` or ``bf16``, of what is not int8 in the graph.
        n_threads: Of the whole graph.
        lanes: Calls at a time, each on ``n_threads / lanes`` threads; weights are held once.
        pinned: Whether threads stay on processors of their own; None leaves it to OpenVINO. Lanes of several graphs
            that run at a time must not be pinned: they would meet on one processor while another is idle.
    """

    def __init__(
        self,
        model: "openvino.Model",
        tasks: tuple[ServedTask, ...],
        *,
        precision: str,
        n_threads: int = 2,
        lanes: int = 1,
        pinned: bool | None = None,
    ) -> None:
        import openvino

        self.tasks = tasks
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": n_threads}
        options |= {"PERFORMANCE_HINT": "LATENCY"} if lanes == 1 else {"NUM_STREAMS": lanes}
        if pinned is not None:
            options["ENABLE_CPU_PINNING"] = pinned
        self._compiled = openvino.Core().compile_model(model, "CPU", options)
        self._idle = [self._compiled.create_infer_request() for _ in range(lanes)]

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
        """Logits for each task."""
        request = self._idle.pop()
        try:
            answered = request.infer([ids, mask], share_inputs=True)
            # a request's outputs are its own memory, which the next call writes over: infer() has copied them
            return list(answered.values())
        finally:
            self._idle.append(request)
