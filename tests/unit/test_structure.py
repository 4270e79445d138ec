"""What docs and habits promise about the source tree."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src" / "trunkline").rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__") for path in SOURCES}

# Most functions stay under 50 lines; this is where the rare exception ends.
MAX_FUNCTION_LINES = 70
HEAVY = {"torch", "transformers", "sklearn", "scipy", "datasets", "pyarrow"}
LIGHT_MODULES = sorted(
    m
    for m in MODULES
    if re.match(
        r"trunkline\.(core|data|views|cli$|cli\.(main|plan)|bundle\.(manifest|store)|"
        r"train\.(candidates|contest|keep|optimum|pareto|plan|price))",
        m,
    )
)


def test_structure_page_has_a_line_for_every_module_and_no_other() -> None:
    page = (ROOT / "docs" / "structure.md").read_text("utf-8")
    listed = set(re.findall(r"^\| \**`(trunkline[\w.]*)`\** \|", page, flags=re.MULTILINE))
    assert listed == MODULES - {"trunkline"}


def test_light_modules_import_no_heavy_library() -> None:
    code = f"import sys, {', '.join(LIGHT_MODULES)}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "src")
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src" / "trunkline")))
def test_source_is_short_enough_to_hold_in_the_head(path: Path) -> None:
    source = path.read_text("utf-8")
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [
        f"{f.name}: {f.end_lineno - f.lineno + 1} lines"
        for f in functions
        if f.end_lineno - f.lineno > MAX_FUNCTION_LINES
    ]
    assert long == []
    assert source.count("\n") <= 400
