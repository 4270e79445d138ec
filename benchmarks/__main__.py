"""`python -m benchmarks NAME [--quick] [--out FILE]`."""

import argparse
import sys
from pathlib import Path

from benchmarks import (
    ablations,
    assistant12,
    engine_agreement,
    engine_glue8,
    engine_swaps,
    engine_xiaoai21,
    first_light,
    headline,
    paper_tables,
    search_cost,
    server_hostile,
    server_kills,
    server_load,
    server_overload,
    server_peers,
    server_swaps,
)
from benchmarks.harness import RESULTS, Benchmark, run_benchmark
from trunkline.core.errors import TrunklineError

MODULES = (
    ablations,
    assistant12,
    engine_agreement,
    engine_glue8,
    engine_swaps,
    engine_xiaoai21,
    first_light,
    headline,
    paper_tables,
    search_cost,
    server_hostile,
    server_kills,
    server_load,
    server_overload,
    server_peers,
    server_swaps,
)
BENCHMARKS: dict[str, Benchmark] = {module.BENCHMARK.name: module.BENCHMARK for module in MODULES}


def main() -> int:
    """Parse the command line and run one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", choices=sorted(BENCHMARKS), help="which benchmark")
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    parser.add_argument("--quick", action="store_true", help="a small version that ends within 3 minutes on 2 cores")
    parser.add_argument("--out", type=Path, help=f"where the result goes; {RESULTS.name}/NAME.json by default")
    arguments = parser.parse_args()
    if arguments.list or arguments.name is None:
        for name, benchmark in sorted(BENCHMARKS.items()):
            print(f"{name:16} {benchmark.purpose}")
        return 0
    try:
        run_benchmark(BENCHMARKS[arguments.name], quick=arguments.quick, out=arguments.out)
    except TrunklineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
