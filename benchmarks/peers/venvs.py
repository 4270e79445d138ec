"""Virtual environments for contestants whose requirements clash with ours, made once and kept by what is in them."""

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path.home() / ".cache" / "trunkline" / "venvs"


def python_of(name: str) -> Path:
    """The interpreter of the environment with ``requirements-NAME.txt``, which is made when missing.

    Args:
        name: Of the requirements file beside this module; versions in it are pinned.

    Returns:
        A path under ``~/.cache/trunkline/venvs/NAME-DIGEST``, with the digest of the requirements and of our version of
        Python.

    Raises:
        RuntimeError: If pip fails; its last words are in the message.
    """
    requirements = Path(__file__).with_name(f"requirements-{name}.txt")
    said = requirements.read_bytes() + sys.version.encode()
    folder = FOLDER / f"{name}-{hashlib.sha256(said).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    done = folder / ".installed"
    if done.exists():
        return python
    # a half-made one is of no use: what is there without its mark goes
    shutil.rmtree(folder, ignore_errors=True)
    print(f"making {folder} from {requirements.name} (a minute or two, once)", file=sys.stderr)
    venv.create(folder, with_pip=True)
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "-q", "-r", requirements]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        raise RuntimeError(
            f"environment {folder.name}: pip ended with {installed.returncode}: {installed.stderr[-800:]}"
        )
    done.touch()
    return python
