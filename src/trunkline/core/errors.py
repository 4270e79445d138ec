"""Every error Trunkline raises on purpose.

TrunklineError
├── SpecError            (ValueError)   a task file, preset or option is wrong
│   └── UnknownNameError (KeyError)     a name nobody knows; carries the nearest one
├── DataError            (ValueError)   a data file or row is wrong
├── CheckpointError      (ValueError)   a pretrained checkpoint cannot be used
├── TrainingError        (RuntimeError) a run went wrong (diverged, ledger damaged)
├── BundleError          (ValueError)   a bundle or branch on disk cannot be used
│   ├── DigestMismatchError             bytes are not the bytes that were written
│   ├── TrunkMismatchError              a branch was trained on another trunk
│   ├── SchemaVersionError              written by a newer Trunkline
│   ├── MissingBranchError (KeyError)   the manifest or a file lacks a branch
│   ├── NonFiniteError                  NaN or infinity among weights or answers
│   └── VerificationError               golden inputs give other answers
└── MissingDependencyError (ImportError) an optional extra is not installed

A message says, in this order: the subject, what was found, what is allowed, what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class TrunklineError(Exception):
    """Root of every deliberate error; catch this to catch them all."""

    def __str__(self) -> str:
        """The message as written (``KeyError`` would put it in quotes)."""
        return str(self.args[0]) if self.args else ""


class SpecError(TrunklineError, ValueError):
    """A task file, preset or option is wrong."""


class UnknownNameError(SpecError, KeyError):
    """A name nobody knows: a task, label, metric, column or key."""


class DataError(TrunklineError, ValueError):
    """A data file or one of its rows is wrong; the message names file and line."""


class CheckpointError(TrunklineError, ValueError):
    """A pretrained checkpoint is unsupported, incomplete or unsafe."""


class TrainingError(TrunklineError, RuntimeError):
    """A training run cannot go on, or its records are damaged."""


class BundleError(TrunklineError, ValueError):
    """A bundle or branch on disk cannot be used."""


class DigestMismatchError(BundleError):
    """A file's bytes are not the bytes that its digest was taken from."""


class TrunkMismatchError(BundleError):
    """A branch names another trunk than the one it is to be put on."""


class SchemaVersionError(BundleError):
    """The bundle or branch was written by a newer version of Trunkline."""


class MissingBranchError(BundleError, KeyError):
    """A branch that is named is not there."""


class NonFiniteError(BundleError):
    """A weight or an answer is NaN or infinite."""


class VerificationError(BundleError):
    """Golden inputs no longer give the answers that were stored with the branch."""


class MissingDependencyError(TrunklineError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known name, or lists a few of them.

    Args:
        name: The name that was not found.
        known: The names that are allowed.

    Returns:
        For example ``"did you mean 'cola'?"``; never empty.
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    if not names:
        return "there are none"
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"known: {shown}"
