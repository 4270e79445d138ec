"""API keys: who asks, and what they may do. Keys are stored as SHA-256, compared in constant time."""

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import msgspec

from trunkline.core.errors import SpecError
from trunkline.core.specs import TASK_NAME, Spec, convert_spec
from trunkline.core.yaml import read_yaml
from trunkline.server.refusals import refuse

ENVIRONMENT = "TRUNKLINE_KEYS"
"""Variable of the environment that may hold what a keys file holds."""
_PREFIX = "tl_"
_OWNER = "owner:"


class Key(Spec, frozen=True, kw_only=True):
    """One key as a file holds it.

    Attributes:
        name: Whose it is; callers share the server fairly by this name, and the history says it.
        sha256: Of the key, 64 hex digits.
        scopes: ``infer``; ``owner:TASK`` for the life of one task; ``admin`` for everything.
    """

    name: str
    sha256: str
    scopes: tuple[str, ...] = ("infer",)

    def __post_init__(self) -> None:
        """Refuse scopes that nobody knows, which would otherwise be keys that do nothing."""
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise SpecError(f"key {self.name!r}: sha256 is no 64 hex digits; make one with: trunkline keys new")
        if not self.name or len(self.name) > 100 or not self.name.isprintable():
            raise SpecError(f"key {self.name[:100]!r}: the name is empty, long or not printable; 1 to 100 characters")
        for scope in self.scopes:
            owned = scope.removeprefix(_OWNER)
            if scope not in {"infer", "admin"} and not (scope.startswith(_OWNER) and TASK_NAME.fullmatch(owned)):
                raise SpecError(f"key {self.name!r}: scope {scope!r} is not known; use infer, owner:TASK or admin")


class Keys(Spec, frozen=True, kw_only=True):
    """What a keys file holds."""

    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        name: Of the key; empty on an open server.
        scopes: What the key allows.
    """

    name: str
    scopes: frozenset[str]

    def may_infer(self) -> bool:
        """Whether it may ask for answers."""
        return bool(self.scopes)

    def may_change(self, task: str) -> bool:
        """Whether the life of a task is its business."""
        return "admin" in self.scopes or f"{_OWNER}{task}" in self.scopes

    def may_see_changes(self) -> bool:
        """Whether it is anybody who changes tasks."""
        return any(scope != "infer" for scope in self.scopes)


ANYBODY = Caller("", frozenset({"infer"}))


class Keyring:
    """Knows callers by their keys."""

    def __init__(self, keys: tuple[Key, ...]) -> None:
        """Take the keys; none leave inference open, and changes to nobody.

        Raises:
            SpecError: Two keys are the same, or have one name.
        """
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in keys]
            if len(set(values)) < len(values):
                raise SpecError(f"keys: two have the same {what}; each has its own; remove one")
        self._known = [(bytes.fromhex(key.sha256), Caller(key.name, frozenset(key.scopes))) for key in keys]

    @property
    def is_open(self) -> bool:
        """Whether anybody may ask for answers."""
        return not self._known

    def caller(self, authorization: str | None) -> Caller:
        """Who asks.

        Args:
            authorization: The header, ``Bearer KEY``.

        Raises:
            ServerError: 401: there are keys, and this is none of them.
        """
        if self.is_open:
            return ANYBODY
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise refuse(
                401, "no_key", "request: has no API key; send the header Authorization: Bearer KEY",
                WWW_Authenticate="Bearer",
            )  # fmt: skip
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, caller in self._known:  # All of them, so that time tells nothing.
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise refuse(
                401, "wrong_key", "request: its API key is not known; check the key", WWW_Authenticate="Bearer"
            )
        return found


def read_keys(path: Path | None) -> tuple[Key, ...]:
    """Keys of a file, or of the environment where no file is named.

    Raises:
        SpecError: The file cannot be read, or holds something else.
    """
    subject = f"keys file {str(path)!r}" if path is not None else f"environment variable {ENVIRONMENT}"
    if path is None:
        content = os.environ.get(ENVIRONMENT)
        if content is None:
            return ()
    else:
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"{subject}: cannot be read ({error}); check the path and its permissions") from error
    keys = convert_spec(read_yaml(content.encode(), subject), Keys, subject).keys
    if not keys:
        raise SpecError(f"{subject}: holds no keys; add one made with `trunkline keys new`, or leave it out")
    return keys


def new_key(name: str, scopes: tuple[str, ...]) -> tuple[str, Key]:
    """A random key of 256 bits, and what a keys file holds of it.

    Raises:
        SpecError: The name or a scope is not allowed.
    """
    token = _PREFIX + secrets.token_urlsafe(32)
    return token, Key(name=name, sha256=hashlib.sha256(token.encode()).hexdigest(), scopes=scopes)


def as_yaml(key: Key) -> str:
    """The lines that a keys file holds of a key."""
    return msgspec.yaml.encode({"keys": [msgspec.to_builtins(key)]}).decode()
