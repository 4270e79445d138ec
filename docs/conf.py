"""Settings of the documentation: Sphinx with MyST and furo, built by ``make docs`` with warnings as errors."""

from importlib.metadata import version as installed_version

project = "Trunkline"
author = "The Trunkline maintainers"
copyright = f"2026, {author}"  # noqa: A001 - Sphinx reads this name
release = installed_version("trunkline")

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = f"Trunkline {release}"
