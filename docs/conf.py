"""Settings of the documentation: Sphinx with MyST and furo, built by ``make docs`` with warnings as errors."""

import tomllib
from pathlib import Path

project = "Trunkline"
author = "The Trunkline maintainers"
copyright = f"2026, {author}"  # noqa: A001 - Sphinx reads this name
# Read, not imported: the documentation builds without the package being installed.
release = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]["version"]

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = f"Trunkline {release}"
