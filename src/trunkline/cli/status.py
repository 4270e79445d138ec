"""What a command is doing, while it does it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def working(message: str, *, prints: bool = False) -> Iterator[Callable[[str], None]]:
    """Show a message on standard error while the block runs, and take it away afterwards.

    Nothing is shown where standard error is no terminal.

    Args:
        message: What is being done.
        prints: Whether the block writes to standard output; if that is a terminal too, nothing is shown.

    Yields:
        A function that puts another message in its place.
    """
    if not sys.stderr.isatty() or (prints and sys.stdout.isatty()):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.text import Text

    # As plain text: a path may hold brackets, which rich would take for markup.
    with Console(stderr=True).status(Text(message)) as status:
        yield lambda text: status.update(Text(text))
