"""The command line: parse, call the library, print; nothing else."""

from trunkline.cli.main import main

__all__ = ["main"]
