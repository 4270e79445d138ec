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
│   ├── VerificationError               golden inputs give other answers
│   └── RegistryError                   a change does not fit what the registry holds
├── EngineError          (RuntimeError) an engine does not answer a request
│   ├── QueueFullError                  its bounded queue has no room
│   ├── DeadlineError (TimeoutError)    the request's deadline has passed
│   ├── CancelledRequestError           whoever asked took the request back
│   └── ClosedError                     it is closed, or closes
├── ClientError          (RuntimeError) a server gave a client no answer
│   ├── ServerRefusedError              it refused the request; the error carries status and code
│   │   ├── ServerBusyError             now; it says when to ask again
│   │   ├── KeyRefusedError (PermissionError) of this API key, or without one
│   │   └── NotServedError (LookupError) a task, version or path that it does not have
│   ├── ServerUnreachableError (ConnectionError) no connection, or one that broke off
│   ├── ServerTimeoutError (TimeoutError) not in the time that was given
│   └── ServerAnswerError (ValueError)  its answer cannot be understood
└── MissingDependencyError (ImportError) an optional extra is not installed

A message says, in this order: the subject, what was found, what is allowed, what to do.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec


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


class RegistryError(BundleError):
    """A change of a registry is refused: it does not fit the versions that the registry holds, or came too late."""


class EngineError(TrunklineError, RuntimeError):
    """An engine does not answer a request, for a reason that lies in neither the request's form nor the bundle."""


class QueueFullError(EngineError):
    """The bounded queue has no room for a request; nothing of it was queued."""


class DeadlineError(EngineError, TimeoutError):
    """The deadline of a request passed before it was answered."""


class CancelledRequestError(EngineError):
    """Whoever asked took the request back before it was answered."""


class ClosedError(EngineError):
    """The engine is closed, or closes, and takes no more requests."""


class ClientError(TrunklineError, RuntimeError):
    """A server gave its client no answer, or none that could be used.

    Attributes:
        status: Of HTTP; None where no answer began, or one broke off.
        code: For programs, as the server's reference lists them; None where the server said none.
        request_id: Of the request; the server's log knows it by this.
        retry_after_s: Seconds after which the server wants to be asked again; None where it did not say.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class ServerRefusedError(ClientError):
    """The server refused the request, or failed at it."""


class ServerBusyError(ServerRefusedError):
    """The server takes no requests now: it has too many, loads or stops."""


class KeyRefusedError(ServerRefusedError, PermissionError):
    """The server does not know the API key, or does not allow it this."""


class NotServedError(ServerRefusedError, LookupError):
    """The server has no such task, version or path."""


class ServerUnreachableError(ClientError, ConnectionError):
    """There is no connection to the server, or it broke off before the answer was whole."""


class ServerTimeoutError(ClientError, TimeoutError):
    """The answer was not whole in the time that the client, or the request's deadline, gave it."""


class ServerAnswerError(ClientError, ValueError):
    """The server's answer is none that this client understands."""


class MissingDependencyError(TrunklineError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


_LONGEST_NAME = 128  # characters of a name that a message repeats


def brief(name: str) -> str:
    """A name for a message: one that nobody can have meant is cut, so that it costs neither time nor room."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known name, or lists a few of them.

    Args:
        name: The name that was not found.
        known: The names that are allowed.

    Returns:
        For example ``"did you mean 'cola'?"``; never empty.
    """
    names = sorted(known)
    close = get_close_matches(brief(name), names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    if not names:
        return "there are none"
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"known: {shown}"


def spec_error(error: msgspec.ValidationError, spec_type: Any, subject: str) -> SpecError:
    """Say what msgspec found wrong with a value, in the order of all messages.

    Args:
        error: What `msgspec.convert` raised.
        spec_type: The type that was wanted.
        subject: What the message is about, for example ``"task file 'cola.yaml'"``.

    Returns:
        An `UnknownNameError` for an unknown key or a word that is none of those allowed; a spec's own refusal with the
        subject before it; a plain `SpecError` for everything else.
    """
    if isinstance(error.__cause__, SpecError):
        return type(error.__cause__)(f"{subject}: {error.__cause__}")
    found = re.fullmatch(r"(?P<reason>.*?)(?: - at `(?P<path>\$.*)`)?", str(error), flags=re.DOTALL)
    reason, path = (found["reason"], found["path"] or "$") if found else (str(error), "$")
    place = path.removeprefix("$").lstrip(".")
    types = _types_by_path(spec_type)
    inside = f" under {place!r}" if place else ""
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", reason):
        hint = _key_hint(unknown[1], re.sub(r"\[.*?\]", "[]", path), types)
        return UnknownNameError(f"{subject}: unknown key {unknown[1]!r}{inside}; {hint}")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", reason):
        return SpecError(f"{subject}: key {missing[1]!r} is missing{inside}; add it")
    if word := re.fullmatch(r"Invalid enum value (.*)", reason):
        words = [str(each) for each in _words(types.get(re.sub(r"\[.*?\]", "[]", path), ()))]
        close = get_close_matches(word[1].strip("'"), words, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "choose one of them"
        return UnknownNameError(f"{subject}: {place} is {word[1]}; allowed are {', '.join(words)}; {hint}")
    if kinds := re.fullmatch(r"Expected `(.*)`, got `(.*)`", reason):
        quote = "str" in kinds[1] and kinds[2] in ("int", "float", "bool")
        todo = "put it in quotes" if quote else "write it so"
        return SpecError(f"{subject}: {place or 'the content'} is of type {kinds[2]}, not {kinds[1]}; {todo}")
    return SpecError(f"{subject}: {place or 'the content'} is not allowed ({reason}); mend it")


def _types_by_path(spec_type: Any) -> dict[str, list[Any]]:
    """Each place of a spec, by msgspec's path with ``[]`` for any item, and the types that it may have.

    No spec holds itself, so the walk ends.
    """
    from msgspec import inspect

    types: dict[str, list[Any]] = {}
    waiting = [("$", inspect.type_info(spec_type))]
    for path, info in waiting:
        types.setdefault(path, []).append(info)
        if isinstance(info, inspect.UnionType):
            waiting += [(path, each) for each in info.types]
        elif isinstance(info, inspect.StructType):
            waiting += [(f"{path}.{field.encode_name}", field.type) for field in info.fields]
        elif isinstance(info, inspect.CollectionType):
            waiting.append((f"{path}[]", info.item_type))
        elif isinstance(info, inspect.DictType):
            waiting.append((f"{path}[]", info.value_type))
    return types


def _key_hint(name: str, here: str, types: Mapping[str, Sequence[Any]]) -> str:
    """Where an unknown key belongs, else what it was meant to be: here before anywhere else."""
    keys = {
        path: tuple(field.encode_name for info in infos for field in getattr(info, "fields", ()))
        for path, infos in types.items()
    }
    homes = [_home(path) for path, names in keys.items() if name in names]
    if homes:
        return f"it belongs {' or '.join(homes)}; move it there"
    elsewhere = {each: path for path, names in keys.items() for each in names}
    close = get_close_matches(name, elsewhere, n=1, cutoff=0.75)
    if close and not get_close_matches(name, keys.get(here, ()), n=1, cutoff=0.5):
        return f"did you mean {close[0]!r}, which belongs {_home(elsewhere[close[0]])}?"
    return nearest_hint(name, keys.get(here, ()))


def _home(path: str) -> str:
    place = path.removeprefix("$").lstrip(".").replace("[]", "")
    return f"under {place!r}" if place else "at the top level"


def _words(infos: Iterable[Any]) -> list[Any]:
    return [value for info in infos for value in getattr(info, "values", ())]
