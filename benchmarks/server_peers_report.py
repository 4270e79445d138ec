"""Figures, table and picture of `server-peers`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.pages import measured_by, picture

TITLES = {
    "trunkline": "Trunkline",
    "single_models": "the same edge over nine single models, OpenVINO",
    "infinity": "Infinity",
}
SCENARIOS = {"minilm": "MiniLM, 6 layers of 384", "bert-base": "BERT-base, 12 layers of 768"}
SUFFIXES = {"minilm": "", "bert-base": "_bert_base"}
"""Of figures."""
LEAST = {"throughput_over_infinity": (20.0, 30.0), "throughput_over_best_single": (4.0, 6.0)}
"""At least, and aimed at; for each scenario."""


def figures_of(rounds_of: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, float]:
    """Ratios of the medians of task answers a second, from the rounds of each scenario."""
    figures = {}
    for scenario, rounds in rounds_of.items():
        rate = {name: _middle(rounds, name, "answers_a_second") for name in TITLES}
        suffix = SUFFIXES[scenario]
        figures[f"throughput_over_infinity{suffix}"] = rate["trunkline"] / rate["infinity"]
        figures[f"throughput_over_best_single{suffix}"] = rate["trunkline"] / rate["single_models"]
    return figures


def markdown_table(result: dict[str, Any]) -> str:
    """Figures beside what they are to be and what layers alone would give, then what each server did."""
    details = result["details"]
    lines = ["| figure | measured | at least | aim | |", "|---|---|---|---|---|"]
    for scenario in details["scenarios"]:
        for name, (least, aim) in LEAST.items():
            value = result["figures"][f"{name}{SUFFIXES[scenario]}"]
            met = "met" if value >= least else "not met"
            lines.append(f"| `{name}{SUFFIXES[scenario]}` | {value:.3g} | {least:g} | {aim:g} | {met} |")
    lines += [
        "",
        "| whole layers a text passes | trunk | own | folded of them | on the plan | nine single models | times |",
        "|---|---|---|---|---|---|---|",
        *(_layers_row(name, found["layers"]) for name, found in details["scenarios"].items()),
    ]
    for name, found in details["scenarios"].items():
        lines += ["", *_servers(SCENARIOS[name], found)]
    return "\n".join([*lines, "", _versions(result), "", measured_by(result)])


def draw(result: dict[str, Any], path: Path) -> None:
    """Task answers a second, and memory; a line of panels for each scenario."""
    scenarios = result["details"]["scenarios"]
    names = list(TITLES)[::-1]
    with picture(path, width=10, height=2.6 * len(scenarios)) as figure:
        panels = figure.subplots(len(scenarios), 2, sharey=True, squeeze=False)
        for (left, right), (scenario, found) in zip(panels, scenarios.items(), strict=True):
            rates, megabytes = (
                [_middle(found["rounds"], name, key) for name in names] for key in ("answers_a_second", "megabytes")
            )
            left.barh(range(len(names)), rates, color="tab:blue")
            left.set_xscale("log")
            left.set_xlim(left=1)
            left.set_xlabel("task answers a second")
            left.set_title(SCENARIOS[scenario], fontsize=9, loc="left")
            left.set_yticks(range(len(names)), [TITLES[name] for name in names], fontsize=8)
            right.barh(range(len(names)), megabytes, color="0.6")
            right.set_xlabel("memory, MB")


def _layers_row(scenario: str, layers: dict[str, int]) -> str:
    cells = [layers[name] for name in ("trunk", "own", "folded", "plan", "single_models")]
    times = layers["single_models"] / layers["plan"]
    return f"| {SCENARIOS[scenario]} | {' | '.join(map(str, cells))} | {times:.1f} |"


def _servers(title: str, found: dict[str, Any]) -> list[str]:
    rounds = found["rounds"]
    return [
        (
            f"| {title}; {len(found['tasks'])} tasks | task answers a second (slowest to fastest round) | "
            "requests a second | P50, ms | P99, ms | memory, MB |"
        ),
        "|---|---|---|---|---|---|",
        *(_closed_row(rounds, name) for name in TITLES),
        "",
        f"| open loop, {_rate(rounds):.0f} texts a second | P50, ms | P99, ms | answered |",
        "|---|---|---|---|",
        *(_open_row(rounds, name) for name in TITLES if "open" in rounds[0][name]),
    ]


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
    bundles = "; ".join(f"{SCENARIOS[name]}: {found['bundle']}" for name, found in details["scenarios"].items())
    return (
        f"Bundles: {bundles}. Engine: {details['engine']}; `{details['trunkline']['options']}`. "
        f"OpenVINO {result['versions']['openvino']}. "
        f"Infinity: `{details['infinity']['options']}`, {theirs}."
    )


def _middle(rounds: Sequence[dict[str, Any]], name: str, key: str) -> float:
    return float(median(each[name][key] for each in rounds))
