"""Run the command line in this process, as the installed script does."""

import io
import sys
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from trunkline.cli import main


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command left: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Standard output as one JSON value."""
        return msgspec.json.decode(self.out)


def run_cli(*arguments: object, stdin: bytes = b"") -> Finished:
    """Run ``trunkline ARGUMENTS``; a traceback reaches the test as the exception that it is."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["trunkline", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            main()
    return Finished(int(ended.value.code or 0), *(_text(stream) for stream in (out, err)))


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()
