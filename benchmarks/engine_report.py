"""Tables and pictures of the races, made from their result files alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.pages import measured_by, picture, publish

WHAT = {
    "trunkline": "the engine, all tasks",
    "trunkline-int8": "the engine in int8, all tasks",
    "trunkline, 1 task": "the engine, one task of them",
    "trunkline, 4 taggers": "the engine, four taggers (16 whole layers)",
    "openvino-bf16": "single models, OpenVINO bf16",
    "openvino-bf16+shared": "the same, texts tokenized once for all",
    "openvino-bf16-lanes": "single models, OpenVINO bf16, two calls at a time",
    "openvino-int8": "single models, OpenVINO int8 (nncf)",
    "torch-bf16": "single models, torch bf16",
    "onnxruntime-f32": "single models, ONNX Runtime fp32",
    "onnxruntime-int8": "single models, ONNX Runtime int8",
    "onnxruntime-int8-lanes": "single models, ONNX Runtime int8, two calls at a time",
    "students-bf16": "6-layer students, OpenVINO bf16",
    "adapters-bf16": "AdapterHub: Parallel, AdapterDrop (5 of 12), torch bf16",
    "joint-bf16": "one jointly trained trunk, linear heads, OpenVINO bf16",
    "student of 9 layers alone": "one 9-layer student, OpenVINO bf16",
    "openvino encoder, 16 layers": "OpenVINO's own encoder graph of 16 layers, bf16",
    "roofline-openvino": "bare products of the engine's work, OpenVINO bf16",
    "roofline-torch": "bare products of the engine's work, torch bf16",
}
"""How contestants are called in tables."""
TARGETS: dict[str, tuple[str, float]] = {
    "speedup_bf16_32": ("at least", 8.5),
    "speedup_bf16_1": ("at least", 5.5),
    "share_of_openvino_encoder": ("at least", 0.95),
    "roofline_share_32": ("at least", 0.68),
    "one_task_ratio": ("at most", 1.1),
    "first_answer_share": ("at most", 0.45),
    "next_task_share": ("at most", 0.01),
    "overhead_share_32": ("at most", 0.10),
    "memory_over_weights": ("at most", 1.4),
}
"""What `engine-xiaoai21` is to show."""
TARGETS_OF = {"engine-xiaoai21": TARGETS, "engine-glue8": {"speedup_bf16_32": ("at least", 3.4)}}


def write_page(path: Path, name: str) -> None:
    """Draw the picture beside the result; put both into the page when the result is the kept one.

    Args:
        path: Of the result.
        name: Of the benchmark.
    """
    publish(path, name, table=markdown_table, draw=draw)


def markdown_table(result: Mapping[str, Any]) -> str:
    """Figures beside what they are to be, then everyone's time."""
    targets = TARGETS_OF[result["name"]]
    details = result["details"]
    by_processor = details.get("by_processor_time") or details.get("speedups_by_processor_time") or {}
    lines = ["| figure | measured | by processor time | to be | |", "|---|---|---|---|---|"]
    for name, value in result["figures"].items():
        how, bound = targets.get(name, ("", None))
        met = "" if bound is None else "met" if (value >= bound) == (how == "at least") else "not met"
        told = f"{by_processor[name]:.3g}" if name in by_processor else ""
        lines.append(f"| `{name}` | {value:.3g} | {told} | {how} {'' if bound is None else bound} | {met} |")
    lines += ["", *_times(result["details"])]
    if "profile" in result["details"]:
        lines += ["", *_profile(result["details"]["profile"])]
    for name, points in result["details"].get("sweeps", {}).items():
        lines += ["", *_sweep(name, points)]
    return "\n".join([*lines, "", measured_by(dict(result))])


def _times(details: Mapping[str, Any]) -> list[str]:
    many, one = details["in_flight_32"], details.get("in_flight_1", {})
    n_ones = one.get("n_texts", 1)
    n_tasks = details["n_tasks"]
    lines = [
        f"| {n_tasks} tasks, ms | median (fastest to slowest) at 32 in flight | over ours | processor / 2 | at 1 |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(many, key=lambda each: many[each]["median_ms"]):
        row = many[name]
        single = f"{one[name]['median_ms'] / n_ones:.1f}" if name in one else ""
        spread = f"{row['median_ms']:.0f} ({row['fastest_ms']:.0f} to {row['slowest_ms']:.0f})"
        lines.append(
            f"| {WHAT.get(name, name)} | {spread} | {row['over_ours']:.2f} | {row['processor_ms']:.0f} | {single} |"
        )
    return lines


def _profile(spent: Mapping[str, Any]) -> list[str]:
    lines = ["| where the engine's time goes at 32 in flight | ms | share |", "|---|---|---|"]
    lines += [f"| {name} | {ms:.1f} | {100 * spent['share'][name]:.1f}% |" for name, ms in spent["ms"].items()]
    return lines


def _sweep(name: str, points: list[Mapping[str, float]]) -> list[str]:
    def row(title: str, cells: list[str]) -> str:
        return f"| {title} | {' | '.join(cells)} |"

    return [
        row(name, [f"{point['value']:g}" for point in points]),
        "|---" * (len(points) + 1) + "|",
        row("the engine, ms", [f"{point['ours_ms']:.0f}" for point in points]),
        row("single models, ms", [f"{point['theirs_ms']:.0f}" for point in points]),
        row("times", [f"{point['theirs_ms'] / point['ours_ms']:.1f}" for point in points]),
    ]


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Everyone's time at 32 in flight, and the sweeps."""
    details = result["details"]
    sweeps = details.get("sweeps", {})
    with picture(path, width=11, height=8 if sweeps else 5) as figure:
        top, *below = figure.subfigures(2 if sweeps else 1, 1, squeeze=False)[:, 0]
        _bars(top.subplots(), details["in_flight_32"])
        if sweeps:
            for axes, (name, points) in zip(below[0].subplots(1, len(sweeps)), sweeps.items(), strict=True):
                _lines(axes, name, points)
        top.suptitle(f"{result['name']}: {details['n_tasks']} tasks on {details['n_texts']} texts in flight")


def _bars(axes: Any, rows: Mapping[str, Mapping[str, float]]) -> None:
    names = sorted(rows, key=lambda each: -rows[each]["median_ms"])
    values = [rows[name]["median_ms"] for name in names]
    colors = ["tab:blue" if name.startswith("trunkline") else "0.7" for name in names]
    errors = [
        [rows[name]["median_ms"] - rows[name]["fastest_ms"] for name in names],
        [rows[name]["slowest_ms"] - rows[name]["median_ms"] for name in names],
    ]
    axes.barh(range(len(names)), values, color=colors, xerr=errors, ecolor="0.3")
    axes.set_yticks(range(len(names)), [WHAT.get(name, name) for name in names], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds: median, fastest and slowest (logarithmic)")


def _lines(axes: Any, name: str, points: list[Mapping[str, float]]) -> None:
    values = [point["value"] for point in points]
    axes.plot(values, [point["ours_ms"] for point in points], "o-", color="tab:blue", label="the engine")
    axes.plot(values, [point["theirs_ms"] for point in points], "s-", color="0.5", label="single models")
    axes.set_yscale("log")
    axes.set_xlabel(name)
    axes.set_ylabel("ms")
    axes.legend(fontsize=7)
