"""Which server a client asks, with which key, and how patiently."""

import os
from dataclasses import dataclass, field, replace

import httpx

from trunkline import __version__
from trunkline.core.errors import SpecError

ENVIRONMENT = "TRUNKLINE_API_KEY"
"""Variable of the environment that holds the key of a client that was given none."""
_MOST_RETRIES = 100


@dataclass(frozen=True, slots=True)
class Settings:
    """What a client was made with; the key is never shown.

    Attributes:
        base_url: Of the server.
        key: API key, or None.
        timeout_s: Seconds for a call with all its retries.
        retries: Most further attempts after the first.
    """

    base_url: httpx.URL
    key: str | None = field(repr=False)
    timeout_s: float
    retries: int

    def headers(self) -> dict[str, str]:
        """What every request carries."""
        headers = {"User-Agent": f"trunkline-client/{__version__}"}
        return headers if self.key is None else {**headers, "Authorization": f"Bearer {self.key}"}

    def shown(self, name: str) -> str:
        """A client of this name for people."""
        key = "no key" if self.key is None else "with a key"
        return f"<{name} of {self.base_url}, {key}, timeout_s={self.timeout_s:g}, retries={self.retries}>"


def read_settings(base_url: str, *, key: str | None, timeout_s: float, retries: int) -> Settings:
    """Settings, checked; a key that is not given is read from the environment.

    Raises:
        SpecError: The address is none of HTTP, the key cannot be sent, or a number is out of its range.
    """
    _check_timeout(timeout_s)
    if not 0 <= retries <= _MOST_RETRIES:
        raise SpecError(f"client: retries {retries} is outside 0..{_MOST_RETRIES}; choose a number inside")
    return Settings(_read_url(base_url), _read_key(key), timeout_s, retries)


def with_timeout(settings: Settings, timeout_s: float | None) -> Settings:
    """Settings with other seconds for a call; None leaves them.

    Raises:
        SpecError: They are out of their range.
    """
    if timeout_s is None:
        return settings
    _check_timeout(timeout_s)
    return replace(settings, timeout_s=timeout_s)


def _check_timeout(timeout_s: float) -> None:
    if not 0 < timeout_s < float("inf"):
        raise SpecError(f"client: timeout_s {timeout_s} is not allowed; choose a number of seconds above 0")


def _read_url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise SpecError(f"client: base_url cannot be read ({error}); write it like http://127.0.0.1:8000") from error
    if url.userinfo:  # httpx would send it in the place of the key.
        raise SpecError("client: base_url holds a user name or password; leave it out, and give the key as key=…")
    if url.scheme not in {"http", "https"} or not url.host:
        raise SpecError(f"client: base_url {base_url!r} is no address of HTTP; write it like http://127.0.0.1:8000")
    if url.query or url.fragment:
        raise SpecError(f"client: base_url {base_url!r} has more than an address and a path; leave out what follows")
    return url


def _read_key(key: str | None) -> str | None:
    subject = "client: key" if key is not None else f"environment variable {ENVIRONMENT}"
    found = key if key is not None else os.environ.get(ENVIRONMENT)
    if found is None or (key is None and not found):
        return None
    if not (found and found.isascii() and found.isprintable()) or " " in found:
        raise SpecError(
            f"{subject}: is empty or holds what no key holds (spaces, line ends, other than ASCII); mend it"
        )
    return found
