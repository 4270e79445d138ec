"""Hostile uploads: links, paths that lead out, bombs, torn archives, branches that are no branches, flipped bytes."""

import gzip
import io
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

from benchmarks.hostile_wire import Tried, exchange, request_bytes, tried
from benchmarks.served import Served
from benchmarks.uploads import tar_of
from trunkline.bundle.files import files_digest, sha256_hex

_OUTSIDE = (
    "../branch.json",
    "/etc/passwd",
    "/var/branch.json",
    "a/../../branch.json",
    "..",
    "a/b/branch.json",
    "branch.json\x00",
    "C:\\x",
)
_TYPES = ("application/x-tar", "application/gzip", "application/zip")


def archives(server: Served, rng: random.Random, n: int, files: dict[str, bytes], task: str) -> Iterator[Tried]:
    """Archives that are none, or hold what they should not; `files` are those of a good branch."""
    small = {name: body[:2000] for name, body in files.items()}
    makers: dict[str, Callable[[], bytes]] = {
        "link": lambda: _member(rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)), "branch.json", "/etc/passwd"),
        "device": lambda: _member(rng.choice((tarfile.CHRTYPE, tarfile.FIFOTYPE)), "branch.json", ""),
        "path in tar": lambda: tar_of({rng.choice(_OUTSIDE): b"x", **small}),
        "path in zip": lambda: _zip({rng.choice(_OUTSIDE): b"x", **small}),
        "link in zip": lambda: _zip({"branch.json": b"/etc/passwd"}, mode=0o120777),
        "bomb": lambda: _bomb_zip() if rng.random() < 0.5 else _bomb_gzip(),
        "said to be larger": _said_larger,
        "many members": lambda: tar_of({f"{i}/branch.json": b"" for i in range(300)}),
        "twice": lambda: _zip_twice(small),
        "torn": lambda: tar_of(small)[: rng.randint(1, 4000)],
        "random bytes": lambda: rng.choice((b"", b"PK\x03\x04", b"\x1f\x8b\x08", b"BZh9",
        b"\xfd7zXZ\x00")) + rng.randbytes(600),
        "mutated": lambda: _mutated(tar_of(small), rng),
        "cut files": lambda: tar_of(small),
        "files of nonsense": lambda: tar_of({name: _nonsense(rng) for name in files}),
        "no files": lambda: tar_of({}),
    }  # fmt: skip
    kinds = list(makers)
    for number in range(n):
        kind = kinds[number % len(kinds)]
        yield _uploaded(server, kind, task, makers[kind](), rng.choice(_TYPES))


def flipped(server: Served, rng: random.Random, files: dict[str, bytes], task: str, n_each: int) -> Iterator[Tried]:
    """The files of a good branch, announced by its digest, each with one byte flipped: all are to be refused."""
    version = files_digest({name: sha256_hex(body) for name, body in files.items()})
    for name, body in files.items():
        for place in places(len(body), n_each, rng):
            content = tar_of({**files, name: flip(body, place)})
            yield _uploaded(server, f"flipped byte {place} of {name}", task, content, _TYPES[0], version=version)


def places(n_bytes: int, n: int, rng: random.Random) -> list[int]:
    """Positions in a file: the first, the last, and others at random."""
    return sorted({0, n_bytes - 1, *(rng.randrange(n_bytes) for _ in range(n - 2))})


def flip(content: bytes, place: int) -> bytes:
    """The bytes with one of them changed."""
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def _uploaded(
    server: Served, kind: str, task: str, content: bytes, content_type: str, *, version: str | None = None
) -> Tried:
    query = {"why": kind} | ({} if version is None else {"version": version})
    path, headers = f"/v1/tasks/{task}/versions?{urlencode(query)}", {"Content-Type": content_type}
    return tried(kind, exchange(server, request_bytes(server, "POST", path, content, headers=headers)))


def _member(kind: bytes, name: str, target: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        archive.addfile(member)
    return content.getvalue()


def _zip(files: dict[str, bytes], *, mode: int = 0o100644) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, body)
    return content.getvalue()


def _zip_twice(files: dict[str, bytes]) -> bytes:
    """Members of the same name: what is unpacked second must not replace what was checked first."""
    content = _zip(files)
    name = next(iter(files)).encode()
    other = b"x" * len(name)
    return _zip({**files, other.decode(): b"second"}).replace(other, name) if name in content else content


def _bomb_zip() -> bytes:
    return _zip({"branch.safetensors": bytes(64 * 2**20), "branch.json": b"{}"})


def _bomb_gzip() -> bytes:
    return gzip.compress(tar_of({"branch.safetensors": bytes(64 * 2**20)}), compresslevel=1)


def _said_larger() -> bytes:
    content = bytearray(tar_of({"branch.safetensors": b"x" * 100}))
    content[124:136] = b"77777777777\x00"
    return bytes(content)


def _mutated(content: bytes, rng: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        found[rng.randrange(min(len(found), 1500))] = rng.randrange(256)
    return bytes(found)


def _nonsense(rng: random.Random) -> bytes:
    return rng.choice((b"", b"{}", b"[]", b"null", b"[" * 50_000, b'{"schema_version":1e400}', b"\xff" * 100,
    rng.randbytes(200),
                       (2**63).to_bytes(8, "little") + b"{}", (8).to_bytes(8, "little") + b'{"a":{}}'))  # fmt: skip


def branch_files(folder: Path) -> dict[str, bytes]:
    """Every file of a branch in a registry or bundle."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
