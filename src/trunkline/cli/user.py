"""Who sits in front of the command line."""

import getpass
import os


def user() -> str:
    """The user of the operating system, by name or else by number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # As in a container, whose user has no name.
        return f"user {os.getuid()}"
