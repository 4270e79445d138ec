"""Figures, table and picture of `server-peers`."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.pages import measured_by, picture

TITLES = {
    "trunkline": "Trunkline",
    "single_models": "the same edge over nine single models, OpenVINO",
    "infinity": "Infinity",
}
LEAST = {"throughput_over_infinity": (20.0, 30.0), "throughput_over_best_single": (4.0, 6.0)}
"""At least, and aimed at."""


def figures_of(rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Ratios of the medians of task answers a second."""
    rate = {name: _middle(rounds, name, "answers_a_second") for name in TITLES}
    return {
        "throughput_over_infinity": rate["trunkline"] / rate["infinity"],
        "throughput_over_best_single": rate["trunkline"] / rate["single_models"],
    }


def markdown_table(result: dict[str, Any]) -> str:
    """Figures beside what they are to be, then what each server did."""
    details = result["details"]
    rounds = details["rounds"]
    lines = ["| figure | measured | at least | aim | |", "|---|---|---|---|---|"]
    for name, (least, aim) in LEAST.items():
        value = result["figures"][name]
        lines.append(f"| `{name}` | {value:.3g} | {least:g} | {aim:g} | {'met' if value >= least else 'not met'} |")
    lines += [
        "",
        (
            f"| server, {len(details['tasks'])} tasks | task answers a second (slowest to fastest round) | "
            "requests a second | P50, ms | P99, ms | memory, MB |"
        ),
        "|---|---|---|---|---|---|",
        *(_closed_row(rounds, name) for name in TITLES),
        "",
        f"| open loop, {_rate(rounds):.0f} texts a second | P50, ms | P99, ms | answered |",
        "|---|---|---|---|",
        *(_open_row(rounds, name) for name in TITLES if "open" in rounds[0][name]),
        "",
        _versions(result),
        "",
        measured_by(result),
    ]
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Task answers a second, and memory."""
    rounds = result["details"]["rounds"]
    names = [name for name in TITLES if name in rounds[0]][::-1]
    with picture(path, width=10, height=2.6) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        left.barh(range(len(names)), [_middle(rounds, name, "answers_a_second") for name in names], color="tab:blue")
        left.set_xscale("log")
        left.set_xlabel("task answers a second")
        right.barh(range(len(names)), [_middle(rounds, name, "megabytes") for name in names], color="0.6")
        right.set_xlabel("memory, MB")
        left.set_yticks(range(len(names)), [TITLES[name] for name in names], fontsize=8)


def _closed_row(rounds: Sequence[dict[str, Any]], name: str) -> str:
    rates = [each[name]["answers_a_second"] for each in rounds]
    middles = {key: _middle(rounds, name, key) for key in ("requests_a_second", "p50_ms", "p99_ms", "megabytes")}
    return (
        f"| {TITLES[name]} | {median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f}) | "
        f"{middles['requests_a_second']:.0f} | {middles['p50_ms']:.1f} | {middles['p99_ms']:.1f} | "
        f"{middles['megabytes']:.0f} |"
    )


def _open_row(rounds: Sequence[dict[str, Any]], name: str) -> str:
    opened = [each[name]["open"] for each in rounds]
    p50, p99 = (median(each[key] for each in opened) for key in ("p50_ms", "p99_ms"))
    answered, asked = (
        sum(each["status"].get("200", 0) for each in opened),
        sum(each["n_requests"] for each in opened),
    )
    return f"| {TITLES[name]} | {p50:.1f} | {p99:.1f} | {answered} of {asked} |"


def _rate(rounds: Sequence[dict[str, Any]]) -> float:
    return float(rounds[0]["trunkline"]["open"]["rate_a_second"])


def _versions(result: dict[str, Any]) -> str:
    details = result["details"]
    theirs = ", ".join(f"{name} {version}" for name, version in details["infinity"]["versions"].items())
    return (
        f"Bundle: {details['bundle']}; engine: {details['engine']}. OpenVINO {result['versions']['openvino']}. "
        f"Infinity: `{details['infinity']['options']}`, {theirs}."
    )


def _middle(rounds: Sequence[dict[str, Any]], name: str, key: str) -> float:
    return float(median(each[name][key] for each in rounds))
